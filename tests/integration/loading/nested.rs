//! Loads inside loads: none waits for what its own ancestors hold, and a circle of keys is an error at
//! once.

use std::sync::Arc;
use std::time::Duration;

use embedding_cache::{Batcher, BatcherBuilder, CacheError, EmbeddingCache, EmbeddingVector};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::model::{Model, cache, get, key, until, vector};

type Answer = Result<EmbeddingVector, CacheError>;

fn narrow(loads: usize) -> EmbeddingCache {
    EmbeddingCache::builder()
        .max_entries(100_000)
        .max_concurrent_loads(loads)
        .load_timeout(Duration::from_secs(3600))
        .build()
        .unwrap()
}

/// Loads `chain[0]`, whose closure loads `chain[1]`, and so on; the last answers its own vector, which
/// all the others hand on.
fn chain(cache: EmbeddingCache, chain: &[u32], borrowed: bool) -> Boxed {
    let (first, rest) = (chain[0], chain[1..].to_vec());
    Box::pin(async move {
        let inner = cache.clone();
        let embed = move || async move {
            match &rest[..] {
                [] => Ok(EmbeddingVector::from(vector(first))),
                rest => self::chain(inner, rest, borrowed).await,
            }
        };
        if borrowed {
            cache.load().get_or_embed_borrowed(key(first), embed).await
        } else {
            cache.get_or_embed(key(first), embed).await
        }
    })
}

type Boxed = std::pin::Pin<Box<dyn Future<Output = Answer> + Send>>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_loads_that_load_inside_all_end() {
    for cache in [cache(), narrow(1), narrow(256)] {
        let mut outer = JoinSet::new();
        for text in 0..300 {
            outer.spawn(chain(cache.clone(), &[text, text + 1000, text + 2000], false));
        }
        while let Some(answer) = outer.join_next().await {
            assert!(answer.unwrap().is_ok());
        }
        assert_eq!(cache.info().keys_in_flight, 0);
        get(&cache, &Model::new(), &[5000]).await;
    }
}

/// Siblings share the permit of their ancestor, all loads inside a batch too.
#[tokio::test]
async fn many_loads_at_once_inside_one_load_need_no_permit_more() {
    let cache = narrow(1);
    let inner = cache.clone();
    let outer = cache.get_or_embed(key(0), move || async move {
        let mut siblings = JoinSet::new();
        for text in 1..5 {
            siblings.spawn(chain(inner.clone(), &[text], false));
        }
        let texts: Vec<u32> = (10..200).collect();
        get(&inner, &Model::new(), &texts).await;
        // The spawned ones know of no ancestor: they go on when this has ended.
        siblings.detach_all();
        vector(0)
    });
    assert_eq!(outer.await.unwrap(), vector(0));
    for text in 1..5 {
        assert_eq!(chain(cache.clone(), &[text], false).await.unwrap(), vector(text));
    }
}

#[tokio::test]
async fn a_key_that_waits_for_itself_is_an_error_at_once() {
    for borrowed in [false, true] {
        for circle in [vec![1, 1], vec![1, 2, 1], vec![1, 2, 3, 4, 2]] {
            let cache = cache();
            let error = chain(cache.clone(), &circle, borrowed).await.unwrap_err();
            assert!(error.is_recursive(), "{circle:?}: {error}");
            assert!(error.to_string().contains("wait for itself"), "{error}");
            assert_eq!(cache.info().keys_in_flight, 0);
            // Nothing of it stays.
            assert_eq!(chain(cache, &[1], borrowed).await.unwrap(), vector(1));
        }
    }
}

/// A borrowed load inside an owned one, and the reverse; a batch inside a single load.
#[tokio::test]
async fn a_circle_is_found_through_either_kind_of_load() {
    for owned_outside in [true, false] {
        let cache = cache();
        let inner = cache.clone();
        let embed = || async move {
            let embed = |missing: embedding_cache::Missing<_>| {
                let asked = missing.keys().len();
                async move { vec![vector(9); asked] }
            };
            let answers = if owned_outside {
                inner.load().get_or_embed_many_borrowed([key(2), key(1)], embed).await
            } else {
                inner.get_or_embed_many([key(2), key(1)], embed).await
            };
            assert_eq!(answers[0].as_ref().unwrap(), &vector(9)[..]);
            answers[1].clone()
        };
        let answer = if owned_outside {
            cache.get_or_embed(key(1), embed).await
        } else {
            cache.load().get_or_embed_borrowed(key(1), embed).await
        };
        assert!(answer.unwrap_err().is_recursive());
    }
}

/// One task loads a and inside it b, another loads b and inside it a.
#[tokio::test(start_paused = true)]
async fn a_circle_through_several_tasks_is_an_error_for_the_one_that_closes_it() {
    for tasks in 2..6_u32 {
        let cache = cache();
        let mut circle = JoinSet::new();
        for text in 0..tasks {
            let cache = cache.clone();
            circle.spawn(async move {
                let inner = cache.clone();
                cache
                    .get_or_embed(key(text), move || async move {
                        until(|| inner.info().keys_in_flight == tasks as usize).await;
                        let next = key((text + 1) % tasks);
                        inner.get_or_embed(next, || async { vector(77) }).await
                    })
                    .await
            });
        }
        let started = tokio::time::Instant::now();
        while let Some(answer) = circle.join_next().await {
            assert!(answer.unwrap().unwrap_err().is_recursive());
        }
        assert!(started.elapsed() < Duration::from_millis(100), "it waited for a take-over");
        assert_eq!(cache.info().keys_in_flight, 0);
        assert_eq!(chain(cache, &[0], false).await.unwrap(), vector(0));
    }
}

/// The calls of a borrowed batch run one after the other, so the first must not wait for the second.
#[tokio::test(start_paused = true)]
async fn a_borrowed_call_that_waits_for_one_after_it_is_a_circle() {
    let cache = cache();
    let load = cache.load().max_batch(1);
    let answers = load
        .get_or_embed_many_borrowed([key(0), key(1), key(2)], |missing| {
            let (cache, at) = (cache.clone(), missing.positions()[0]);
            async move {
                if at == 0 {
                    let last = cache.get_or_embed(key(2), || async { vector(2) }).await;
                    return vec![last];
                }
                vec![Ok(vector(at as u32).into())]
            }
        })
        .await;
    assert!(answers[0].as_ref().unwrap_err().is_recursive());
    assert_eq!(answers[1].as_ref().unwrap(), &vector(1)[..]);
    assert_eq!(answers[2].as_ref().unwrap(), &vector(2)[..]);
}

/// A load waits inside for a call that itself waits for a permit, which that load holds.
#[tokio::test(start_paused = true)]
async fn a_call_that_a_load_waits_for_inside_needs_no_permit() {
    let cache = narrow(1);
    let (inner, ahead) = (cache.clone(), Arc::new(Notify::new()));
    let go = Arc::clone(&ahead);
    let outer = tokio::spawn({
        let cache = cache.clone();
        async move {
            let embed = move || async move {
                go.notified().await;
                inner.get_or_embed(key(2), || async { vector(3) }).await
            };
            cache.get_or_embed(key(1), embed).await
        }
    });
    until(|| cache.info().keys_in_flight == 1).await;
    let queued = tokio::spawn(chain(cache.clone(), &[2], false));
    until(|| cache.info().keys_in_flight == 2).await;
    let started = tokio::time::Instant::now();
    ahead.notify_one();
    assert_eq!(outer.await.unwrap().unwrap(), vector(2));
    assert_eq!(queued.await.unwrap().unwrap(), vector(2));
    assert!(started.elapsed() < Duration::from_millis(100));
}

/// Two caches, each of which loads through the other.
#[tokio::test]
async fn a_circle_through_two_caches_is_found() {
    let (first, second) = (cache(), cache());
    let (inside, again) = (second.clone(), first.clone());
    let answer = first.get_or_embed(key(1), || async move {
        inside
            .get_or_embed(key(1), || async move {
                again.get_or_embed(key(1), || async { vector(1) }).await
            })
            .await
    });
    assert!(answer.await.unwrap_err().is_recursive());
}

/// What waits for another load inside is no circle, however long the chain.
#[tokio::test]
async fn waiting_inside_a_load_for_an_unrelated_one_is_no_circle() {
    let (cache, model) = (cache(), Model::gated());
    let other = tokio::spawn({
        let (cache, model) = (cache.clone(), model.clone());
        async move { get(&cache, &model, &[2]).await }
    });
    until(|| model.calls() == 1).await;
    let outer = tokio::spawn(chain(cache.clone(), &[1, 3, 2], false));
    until(|| cache.stats().joins == 1).await;
    model.answer(1);
    assert_eq!(outer.await.unwrap().unwrap(), vector(2));
    other.await.unwrap();
}

/// A task spawned inside a closure knows of no ancestor, so a circle through it is not found: the time
/// limit of a load ends it, and everything else goes on.
#[tokio::test(start_paused = true)]
async fn what_cannot_be_detected_is_ended_by_the_load_timeout() {
    let cache = EmbeddingCache::builder()
        .max_entries(100)
        .max_concurrent_loads(4)
        .load_timeout(Duration::from_secs(30))
        .build()
        .unwrap();
    let mut outer = JoinSet::new();
    for text in 0..4 {
        let cache = cache.clone();
        outer.spawn(async move {
            let inner = cache.clone();
            cache
                .get_or_embed(key(text), move || async move {
                    // Itself, and in the others for a permit that all four hold.
                    let asked = if text == 0 { 0 } else { text + 100 };
                    tokio::spawn(async move {
                        inner.get_or_embed(key(asked), || async { vector(7) }).await
                    })
                    .await
                    .unwrap()
                })
                .await
        });
    }
    until(|| cache.info().keys_in_flight >= 7).await;
    // A deadline ends the wait of its caller, not the load.
    let impatient = cache.load().timeout(Duration::from_secs(1));
    assert!(
        impatient.get_or_embed(key(50), || async { vector(50) }).await.unwrap_err().is_timeout()
    );
    while let Some(answer) = outer.join_next().await {
        assert!(answer.unwrap().unwrap_err().is_load_timeout());
    }
    assert_eq!(chain(cache.clone(), &[60], false).await.unwrap(), vector(60));
    assert_eq!(chain(cache.clone(), &[0], false).await.unwrap(), vector(0));
    until(|| cache.info().keys_in_flight == 0).await;
}

/// A batcher whose model function, for texts below 1000, loads the text itself through the cache
/// again, or another one, and embeds those above.
fn loading_batcher(
    cache: &EmbeddingCache,
    settings: BatcherBuilder,
    inner: impl Fn(u32) -> u32 + Send + Sync + Clone + 'static,
) -> Batcher<u32> {
    let cache = cache.clone();
    let embed = move |texts: Vec<u32>| {
        let (cache, inner) = (cache.clone(), inner.clone());
        async move {
            let mut answers = Vec::new();
            for text in texts {
                answers.push(if text < 1000 {
                    let load = cache.get_or_embed(key(inner(text)), || async { vector(9) });
                    load.await
                } else {
                    Ok(EmbeddingVector::from(vector(text)))
                });
            }
            answers
        }
    };
    settings.build(embed).unwrap()
}

async fn load_through(cache: &EmbeddingCache, batcher: &Batcher<u32>, text: u32) -> Answer {
    let batcher = batcher.clone();
    cache.get_or_embed(key(text), move || async move { batcher.embed(text).await }).await
}

#[tokio::test(start_paused = true)]
async fn a_key_that_waits_for_itself_through_a_batcher_is_an_error_at_once() {
    let cache = cache();
    let batcher = loading_batcher(&cache, Batcher::builder(), |text| text);
    let started = tokio::time::Instant::now();
    let mut loads = JoinSet::new();
    for text in 0..20 {
        let (cache, batcher) = (cache.clone(), batcher.clone());
        loads.spawn(async move { load_through(&cache, &batcher, text).await });
    }
    while let Some(answer) = loads.join_next().await {
        let error = answer.unwrap().unwrap_err();
        assert!(error.is_recursive(), "{error}");
    }
    assert!(started.elapsed() < Duration::from_millis(100), "more than the batch's delay");
    assert_eq!(cache.info().keys_in_flight, 0);
    assert_eq!(load_through(&cache, &batcher, 1000).await.unwrap(), vector(1000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_loads_through_a_batcher_whose_model_loads_all_end() {
    for (cache, calls) in [(cache(), 1), (narrow(1), 1), (narrow(256), 1), (narrow(256), 4)] {
        let settings = Batcher::builder().max_concurrent(calls).max_batch(4);
        let batcher = loading_batcher(&cache, settings, |text| text + 2000);
        let mut loads = JoinSet::new();
        for text in 0..300 {
            let (cache, batcher) = (cache.clone(), batcher.clone());
            loads.spawn(async move { load_through(&cache, &batcher, text).await });
        }
        while let Some(answer) = loads.join_next().await {
            assert_eq!(answer.unwrap().unwrap(), vector(9));
        }
        assert_eq!(cache.info().keys_in_flight, 0);
    }
}

/// Loads that a call of a batcher waits for may need its turn themselves: directly, through loads
/// that others began, and through another batcher.
#[tokio::test]
async fn a_call_that_waits_for_what_waits_for_its_turn_gives_it_up() {
    let cache = narrow(1);
    let one_by_one = || Batcher::builder().max_batch(1).max_delay(Duration::ZERO);
    let texts = one_by_one()
        .build(|texts: Vec<u32>| async move { texts.into_iter().map(vector).collect::<Vec<_>>() });
    let texts = texts.unwrap();
    // Each text below 100 is embedded by embedding the next one, with the same batcher.
    let itself: Arc<std::sync::OnceLock<Batcher<u32>>> = Arc::default();
    let again = Arc::clone(&itself);
    let (inner_cache, other) = (cache.clone(), texts.clone());
    let nested = one_by_one().build(move |texts: Vec<u32>| {
        let (again, cache, other) = (Arc::clone(&again), inner_cache.clone(), other.clone());
        async move {
            let text = texts[0];
            let answer = match text {
                0..100 => again.get().unwrap().embed(text + 1).await,
                100..200 => load_through(&cache, again.get().unwrap(), text + 100).await,
                _ => other.embed(text).await,
            };
            vec![answer]
        }
    });
    let nested = itself.get_or_init(|| nested.unwrap());
    let all = async {
        assert_eq!(nested.embed(90).await.unwrap(), vector(200), "ten deep, then through a load");
        let mut callers = JoinSet::new();
        for text in (0..100).chain(100..200).chain(100..200) {
            let nested = nested.clone();
            callers.spawn(async move { nested.embed(text).await });
        }
        for text in 100..300 {
            let (cache, nested) = (cache.clone(), nested.clone());
            callers.spawn(async move { load_through(&cache, &nested, text).await });
        }
        while let Some(answer) = callers.join_next().await {
            assert!(answer.unwrap().is_ok());
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all).await.unwrap();
    assert_eq!(cache.info().keys_in_flight, 0);
}
