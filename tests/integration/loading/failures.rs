//! Whatever a model does wrong costs its own keys an error, and nothing else anything.

use std::error::Error;
use std::time::Duration;

use embedding_cache::{CacheError, EmbeddingCache, EmbeddingVector};

use super::model::{Model, cache, get, key, keys, until, vector};

/// Asks for 1, 2, 3 with a closure that answers `answer`.
async fn load<A>(cache: &EmbeddingCache, answer: A) -> Vec<Result<EmbeddingVector, CacheError>>
where
    A: embedding_cache::IntoEmbeddings + Send + 'static,
{
    let mut answer = Some(answer);
    let answers = cache
        .get_or_embed_many(keys(&[1, 2, 3]), |_| {
            let answer = answer.take().expect("asked once");
            async move { answer }
        })
        .await;
    assert_eq!(answers.len(), 3);
    assert_eq!(cache.info().keys_in_flight, 0, "nothing is left in flight");
    answers
}

/// After a failure the next call is asked for what failed, and is right.
async fn recovers(cache: &EmbeddingCache, failed: usize) {
    let model = Model::new();
    get(cache, &model, &[1, 2, 3]).await;
    assert_eq!(model.items(), failed);
}

#[tokio::test]
async fn too_few_or_too_many_vectors_fail_all_and_shift_none() {
    // Seen in the field: an empty text was skipped, and all later vectors went to other texts.
    for answer in [vec![vector(1), vector(3)], vec![vector(1); 4], vec![]] {
        let cache = cache();
        let answered = answer.len();
        for failed in load(&cache, answer).await {
            let failed = failed.unwrap_err();
            assert!(failed.is_wrong_count(), "{failed}");
            let told = format!("the model answered {answered} embeddings for 3 inputs");
            assert!(failed.to_string().starts_with(&told), "{failed}");
        }
        assert_eq!(cache.size().await, 0);
        recovers(&cache, 3).await;
    }
}

#[tokio::test]
async fn a_nan_fails_its_own_key_and_shifts_none() {
    // Seen in the field: a skipped NaN shifted the rest and poisoned the cache.
    let cache = cache();
    let answers = load(&cache, vec![vector(1), vec![f32::NAN, 0.0], vector(3)]).await;
    assert_eq!(answers[0].as_ref().unwrap(), &vector(1));
    assert!(answers[1].as_ref().unwrap_err().is_invalid_vector());
    assert_eq!(answers[2].as_ref().unwrap(), &vector(3));
    let stats = cache.stats();
    assert_eq!((stats.rejected, stats.loaded, stats.load_failures), (1, 2, 1));
    assert_eq!(cache.get(&key(2)).await, None);
    recovers(&cache, 1).await;
}

#[tokio::test]
async fn a_failed_item_fails_alone() {
    let cache = cache();
    let answers = load(&cache, vec![Ok(vector(1)), Err("too long"), Ok(vector(3))]).await;
    assert!(answers[0].is_ok() && answers[2].is_ok());
    let failed = answers[1].as_ref().unwrap_err();
    assert!(failed.is_load_failed());
    assert_eq!(failed.to_string(), "loading failed: too long");
    assert_eq!(failed.source().unwrap().to_string(), "too long");
    recovers(&cache, 1).await;
}

#[tokio::test]
async fn an_error_of_the_whole_call_is_every_keys_and_is_not_cached() {
    let cache = cache();
    let down = std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "model is down");
    for failed in load(&cache, Err::<Vec<Vec<f32>>, _>(down)).await {
        let failed = failed.unwrap_err();
        let cause = failed.source().unwrap().downcast_ref::<std::io::Error>().unwrap();
        assert_eq!(cause.kind(), std::io::ErrorKind::ConnectionRefused);
    }
    recovers(&cache, 3).await;
}

#[tokio::test]
async fn wrong_dimensions_are_refused_counted_and_never_stored() {
    let cache = EmbeddingCache::builder()
        .max_entries(100)
        .dimensions(2)
        .model_dimensions("large", 3)
        .build()
        .unwrap();
    let answers = load(&cache, vec![vector(1), vec![0.1, 0.2, 0.3], vector(3)]).await;
    let refused = answers[1].as_ref().unwrap_err();
    assert!(refused.is_invalid_vector());
    assert!(
        refused.to_string().contains("3 components") && refused.to_string().contains("takes 2")
    );
    assert_eq!((cache.stats().rejected, cache.size().await), (1, 2));
    let large = |revision: &str| embedding_cache::CacheKey::new("00", format!("large{revision}"));
    assert!(cache.put(large(""), [1.0, 2.0, 3.0]).await.is_ok());
    assert!(cache.put(large("@7"), [1.0, 2.0, 3.0]).await.is_ok());
    let refused = cache.put(large("@7"), [1.0, 2.0]).await.unwrap_err();
    assert!(refused.is_invalid_vector());
    assert_eq!(refused.into_vector().unwrap(), [1.0, 2.0]);
    assert!(cache.put(large("r"), [1.0, 2.0]).await.is_ok(), "another model's name begins so");
}

#[tokio::test]
async fn a_panic_reaches_every_waiter_as_an_error() {
    // Seen in the field: a loader that panicked left its waiters hanging.
    let cache = cache();
    let (first, second) = (cache.clone(), cache.clone());
    let load = |cache: EmbeddingCache| async move {
        cache
            .get_or_embed(key(1), || async {
                tokio::task::yield_now().await;
                panic!("out of memory");
                #[allow(unreachable_code)]
                vector(1)
            })
            .await
    };
    let (first, second) = tokio::join!(load(first), load(second));
    for failed in [first, second] {
        let failed = failed.unwrap_err();
        assert!(failed.is_load_panicked());
        assert_eq!(failed.to_string(), "loading panicked: out of memory");
    }
    assert_eq!((cache.stats().loads, cache.info().keys_in_flight), (1, 0));
    recovers(&cache, 3).await;
}

#[tokio::test]
async fn a_closure_that_panics_before_it_makes_a_future_is_an_error_too() {
    let cache = cache();
    let answers = cache
        .get_or_embed_many(keys(&[1, 2, 3]), |missing| {
            let too_short = [0_u32];
            let texts: Vec<u32> = missing.select(&too_short).copied().collect();
            async move { texts.into_iter().map(vector).collect::<Vec<_>>() }
        })
        .await;
    for failed in answers {
        assert!(failed.unwrap_err().is_load_panicked());
    }
    assert_eq!(cache.info().keys_in_flight, 0);
    recovers(&cache, 3).await;
}

#[tokio::test]
async fn a_vector_that_finds_no_room_is_delivered_all_the_same() {
    let cache = EmbeddingCache::builder().max_bytes(1000).build().unwrap();
    let huge = cache.get_or_embed(key(1), || async { vec![1.0; 1000] }).await.unwrap();
    assert_eq!(huge.dimensions(), 1000);
    assert_eq!((cache.size().await, cache.stats().rejected), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn past_the_deadline_hits_are_returned_and_the_load_goes_on() {
    let (cache, model) = (cache(), Model::gated());
    cache.put(key(1), vector(1)).await.unwrap();
    let texts = [1, 2, 3];
    let answers = cache
        .load()
        .timeout(Duration::from_millis(20))
        .get_or_embed_many(keys(&texts), |missing| {
            model.clone().embed(missing.select(&texts).copied().collect())
        })
        .await;
    assert_eq!(answers[0].as_ref().unwrap(), &vector(1));
    for late in &answers[1..] {
        let late = late.as_ref().unwrap_err();
        assert!(late.is_timeout());
        assert_eq!(late.to_string(), "the embedding did not come within 20ms");
    }
    model.answer(1);
    until(|| cache.stats().loads == 1).await;
    get(&cache, &model, &texts).await;
    assert_eq!(model.items(), 2, "what came late is stored");
}

#[test]
fn outside_a_runtime_an_owned_load_says_so() {
    let cache = cache();
    let load = cache.get_or_embed(key(1), || async { vector(1) });
    let failed = poll_once(load).unwrap().unwrap_err();
    assert!(failed.is_configuration());
    assert_eq!(failed.to_string(), "an owned load needs a tokio runtime, and there is none here");
    let borrowed = cache.load().get_or_embed_borrowed(key(1), || async { vector(1) });
    assert_eq!(poll_once(borrowed).unwrap().unwrap(), vector(1), "a borrowed one needs none");
    assert_eq!(
        poll_once(cache.get_or_embed(key(1), || async { vector(9) })).unwrap().unwrap(),
        vector(1)
    );
}

fn poll_once<F: Future>(future: F) -> Option<F::Output> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut context) {
        std::task::Poll::Ready(output) => Some(output),
        std::task::Poll::Pending => None,
    }
}

#[tokio::test]
async fn a_listener_that_panics_costs_nobody_an_answer() {
    let builder = EmbeddingCache::builder().max_entries(1).shards(1);
    let listener = |_: &_, _: &_, _| panic!("a listener's own fault");
    let cache = builder.eviction_listener(listener).build().unwrap();
    cache.put(key(0), vector(0)).await.unwrap();
    let owned = cache.get_or_embed(key(1), || async { vector(1) }).await;
    assert_eq!(owned.unwrap(), vector(1));
    let borrowed = cache.load().get_or_embed_borrowed(key(2), || async { vector(2) }).await;
    assert_eq!(borrowed.unwrap(), vector(2));
    assert_eq!(cache.get(&key(2)).await.unwrap(), vector(2), "and it is stored");
    assert_eq!((cache.info().keys_in_flight, cache.stats().loads), (0, 2));
}
