//! Vectors past their time-to-live: served for as long as allowed, while a fresh one comes or as none
//! does, and by loads only.

use std::sync::Arc;
use std::time::Duration;

use embedding_cache::{EmbeddingCache, EmbeddingCacheBuilder};

use super::model::{Model, get, key, keys, until, vector};
use crate::support::FakeClock;

const SECOND: Duration = Duration::from_secs(1);

/// What is stored at first, by a time-to-live of a minute; the model answers `vector(1)`.
const OLD: u32 = 100;

async fn with_old(builder: EmbeddingCacheBuilder) -> (EmbeddingCache, Arc<FakeClock>) {
    let clock = FakeClock::new();
    let cache = builder.time_to_live(60 * SECOND).clock(clock.clone()).build().unwrap();
    cache.put(key(1), vector(OLD)).await.unwrap();
    (cache, clock)
}

fn builder() -> EmbeddingCacheBuilder {
    EmbeddingCache::builder().max_entries(100)
}

#[tokio::test]
async fn an_old_vector_is_served_at_once_while_one_call_fetches_a_fresh_one() {
    let (cache, clock) = with_old(builder().stale_while_revalidate(30 * SECOND)).await;
    clock.advance(90 * SECOND);
    let model = Model::gated();
    for _ in 0..5 {
        let model = model.clone();
        let load = cache.get_or_embed(key(1), || async { model.embed(vec![1]).await.remove(0) });
        assert_eq!(load.await.unwrap(), vector(OLD));
    }
    assert_eq!(cache.get(&key(1)).await, None, "a get serves nothing old");
    until(|| model.calls() == 1).await;
    assert_eq!((cache.info().keys_in_flight, cache.stats().stale_served), (1, 5));
    model.answer(1);
    until(|| cache.info().keys_in_flight == 0).await;
    assert_eq!(cache.get(&key(1)).await.unwrap(), vector(1));
    assert_eq!((model.items(), cache.stats().joins), (1, 4));
}

#[tokio::test]
async fn past_what_is_allowed_the_fresh_one_is_waited_for() {
    let (cache, clock) = with_old(builder().stale_while_revalidate(30 * SECOND)).await;
    clock.advance(91 * SECOND);
    let model = Model::new();
    get(&cache, &model, &[1, 2]).await;
    assert_eq!((model.items(), cache.stats().stale_served), (2, 0));
}

#[tokio::test]
async fn in_a_batch_only_what_has_no_old_vector_is_waited_for() {
    let (cache, clock) = with_old(builder().stale_while_revalidate(30 * SECOND)).await;
    clock.advance(70 * SECOND);
    let texts = [1, 2, 1];
    let model = Model::new();
    let answers = cache
        .get_or_embed_many(keys(&texts), |missing| {
            model.clone().embed(missing.select(&texts).copied().collect())
        })
        .await;
    for (answer, expected) in answers.into_iter().zip([OLD, 2, OLD]) {
        assert_eq!(answer.unwrap(), vector(expected));
    }
    get(&cache, &model, &texts).await;
    assert_eq!((model.items(), cache.stats().stale_served), (2, 1));
}

#[tokio::test]
async fn a_borrowed_load_waits_for_the_fresh_one_as_nobody_else_would_load_it() {
    let (cache, clock) = with_old(builder().stale_while_revalidate(30 * SECOND)).await;
    clock.advance(70 * SECOND);
    let load = cache.load().get_or_embed_borrowed(key(1), || async { vector(1) });
    assert_eq!(load.await.unwrap(), vector(1));
}

#[tokio::test]
async fn an_old_vector_is_better_than_an_error_but_not_for_ever() {
    let (cache, clock) = with_old(builder().stale_if_error(30 * SECOND)).await;
    for (advance, served) in [(70, true), (20, true), (1, false)] {
        clock.advance(advance * SECOND);
        for borrowed in [false, true] {
            let down = || async { Err::<Vec<f32>, _>("model is down") };
            let answer = if borrowed {
                cache.load().get_or_embed_borrowed(key(1), down).await
            } else {
                cache.get_or_embed(key(1), down).await
            };
            match answer {
                Ok(old) => assert!(served && old == vector(OLD)),
                Err(error) => assert!(!served && error.is_load_failed()),
            }
        }
    }
    let stats = cache.stats();
    assert_eq!((stats.loads, stats.stale_served), (6, 4), "each asks the model first");
    assert_eq!(cache.get_or_embed(key(1), || async { vector(1) }).await.unwrap(), vector(1));
}

#[tokio::test]
async fn a_fresh_vector_is_preferred_to_one_that_only_an_error_would_allow() {
    let (cache, clock) = with_old(builder().stale_if_error(30 * SECOND)).await;
    clock.advance(70 * SECOND);
    get(&cache, &Model::new(), &[1]).await;
    assert_eq!(cache.stats().stale_served, 0);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_and_too_many_keys_are_errors_that_an_old_vector_makes_good() {
    let (cache, clock) = with_old(builder().stale_if_error(30 * SECOND).max_in_flight(1)).await;
    cache.put(key(2), vector(OLD)).await.unwrap();
    clock.advance(70 * SECOND);
    let never = || std::future::pending::<Vec<f32>>();
    let late = cache.load().timeout(SECOND).get_or_embed(key(1), never).await;
    assert_eq!(late.unwrap(), vector(OLD));
    let refused = cache.get_or_embed(key(2), never).await;
    assert_eq!(refused.unwrap(), vector(OLD), "the first is being loaded still");
    assert!(cache.get_or_embed(key(3), never).await.unwrap_err().is_overloaded());
}

#[tokio::test]
async fn what_was_invalidated_or_removed_is_never_served_old() {
    for how in 0..4 {
        let builder = builder().stale_while_revalidate(30 * SECOND).stale_if_error(30 * SECOND);
        let (cache, clock) = with_old(builder).await;
        clock.advance(70 * SECOND);
        match how {
            0 => drop(cache.invalidate_all().await),
            1 => drop(cache.invalidate_model("model").await),
            2 => drop(cache.remove(&key(1)).await),
            _ => {
                cache.put(key(1), vector(7)).await.unwrap();
                cache.remove(&key(1)).await;
            }
        }
        let down = || async { Err::<Vec<f32>, _>("model is down") };
        assert!(cache.get_or_embed(key(1), down).await.is_err(), "{how}");
        assert_eq!(cache.stats().stale_served, 0);
    }
}
