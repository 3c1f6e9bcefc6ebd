//! Cleanup in the background: at its interval, as long as there is a handle and a cache.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use embedding_cache::EmbeddingCache;
use tokio::time::sleep;

use super::model::{key, until, vector};
use crate::support::FakeClock;

const SECOND: Duration = Duration::from_secs(1);

/// A cache whose entries live for a minute, and its clock.
fn short_lived() -> (EmbeddingCache, Arc<FakeClock>) {
    let clock = FakeClock::new();
    let builder = EmbeddingCache::builder().max_entries(1000).time_to_live(60 * SECOND);
    (builder.clock(clock.clone()).build().unwrap(), clock)
}

async fn fill(cache: &EmbeddingCache) {
    for text in 0..100 {
        cache.put(key(text), vector(text)).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn expired_entries_leave_at_the_interval_and_live_ones_stay() {
    let (cache, clock) = short_lived();
    let cleanup = cache.spawn_cleanup(10 * SECOND).unwrap();
    for kept in [0, 1, 1] {
        fill(&cache).await;
        sleep(11 * SECOND).await;
        assert_eq!(cache.size().await, 100 + kept, "nothing has expired");
        clock.advance(61 * SECOND);
        cache.put(key(999), vector(999)).await.unwrap();
        assert_eq!(cache.size().await, 101);
        sleep(11 * SECOND).await;
        assert_eq!(cache.size().await, 1);
    }
    assert_eq!(cache.stats().expired_entries, 302);
    assert!(!cleanup.is_finished());
}

#[tokio::test(start_paused = true)]
async fn the_first_cleanup_comes_after_the_interval_and_not_at_once() {
    let (cache, clock) = short_lived();
    fill(&cache).await;
    clock.advance(61 * SECOND);
    let _cleanup = cache.spawn_cleanup(10 * SECOND).unwrap();
    sleep(9 * SECOND).await;
    assert_eq!(cache.size().await, 100);
    sleep(2 * SECOND).await;
    assert_eq!(cache.size().await, 0);
}

#[tokio::test(start_paused = true)]
async fn it_stops_when_its_handle_is_dropped() {
    let (cache, clock) = short_lived();
    fill(&cache).await;
    drop(cache.spawn_cleanup(SECOND).unwrap());
    clock.advance(61 * SECOND);
    sleep(100 * SECOND).await;
    assert_eq!(cache.size().await, 100);
}

#[tokio::test(start_paused = true)]
async fn it_keeps_no_cache_alive_and_ends_with_it() {
    let probe = Arc::new(());
    let held = Arc::clone(&probe);
    let builder = EmbeddingCache::builder().max_entries(100);
    let listener = move |_: &_, _: &_, _| drop(Arc::clone(&held));
    let cache = builder.eviction_listener(listener).build().unwrap();
    let cleanup = cache.spawn_cleanup(SECOND).unwrap();
    sleep(5 * SECOND).await;
    assert_eq!(Arc::strong_count(&probe), 2);
    assert!(!cleanup.is_finished());
    drop(cache);
    assert_eq!(Arc::strong_count(&probe), 1, "the cache is gone, though the handle is there");
    sleep(2 * SECOND).await;
    assert!(cleanup.is_finished());
}

#[tokio::test(start_paused = true)]
async fn it_survives_a_listener_that_panics() {
    let clock = FakeClock::new();
    let told = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&told);
    let cache = EmbeddingCache::builder()
        .max_entries(1000)
        .time_to_live(60 * SECOND)
        .clock(clock.clone())
        .eviction_listener(move |_, _, _| {
            count.fetch_add(1, SeqCst);
            panic!("a listener's own fault");
        })
        .build()
        .unwrap();
    let cleanup = cache.spawn_cleanup(SECOND).unwrap();
    for round in 1..=3 {
        cache.put(key(round), vector(round)).await.unwrap();
        clock.advance(61 * SECOND);
        sleep(2 * SECOND).await;
        assert_eq!((cache.size().await, told.load(SeqCst)), (0, round as usize));
    }
    assert!(!cleanup.is_finished());
}

#[tokio::test(start_paused = true)]
async fn every_cleanup_stands_for_itself() {
    let (cache, clock) = short_lived();
    let (first, second) = (cache.spawn_cleanup(SECOND), cache.spawn_cleanup(SECOND));
    drop(first);
    fill(&cache).await;
    clock.advance(61 * SECOND);
    sleep(2 * SECOND).await;
    assert_eq!(cache.size().await, 0);
    drop(second);
}

#[test]
fn no_interval_and_no_runtime_are_errors() {
    let (cache, _) = short_lived();
    let error = cache.spawn_cleanup(SECOND).unwrap_err();
    assert!(error.is_configuration());
    assert_eq!(error.to_string(), "a cleanup needs a tokio runtime, and there is none here");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _inside = runtime.enter();
    let error = cache.spawn_cleanup(Duration::ZERO).unwrap_err();
    assert!(error.is_configuration());
    assert_eq!(error.to_string(), "the interval of a cleanup is 0; it must be at least 1");
}

#[tokio::test(start_paused = true)]
async fn an_interval_of_centuries_never_comes_and_does_not_panic() {
    let (cache, clock) = short_lived();
    fill(&cache).await;
    clock.advance(61 * SECOND);
    for interval in [Duration::MAX, Duration::from_secs(u64::MAX / 4)] {
        let cleanup = cache.spawn_cleanup(interval).unwrap();
        sleep(3600 * SECOND).await;
        assert_eq!(cache.size().await, 100);
        assert!(!cleanup.is_finished());
    }
}

#[test]
fn it_ends_with_its_runtime() {
    let (cache, _) = short_lived();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(1).enable_time().build().unwrap();
    let cleanup = runtime.block_on(async { cache.spawn_cleanup(SECOND).unwrap() });
    runtime.shutdown_background();
    let waiting = tokio::runtime::Builder::new_current_thread().build().unwrap();
    waiting.block_on(until(|| cleanup.is_finished()));
}
