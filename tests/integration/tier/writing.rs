//! How vectors get to the tier.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use embedding_cache::EmbeddingCache;
use embedding_cache::tier::SecondTier;

use super::fake::{Fake, Mode};
use super::{Model, flush, key, keys, process, process_with, vector};

#[tokio::test]
async fn every_way_to_store_reaches_the_tier() {
    let fake = Fake::default();
    let cache = process(&fake);
    let hour = Duration::from_secs(3600);
    cache.put(key(0), vector(0)).await.unwrap();
    cache.put_with_ttl(key(1), vector(1), hour).await.unwrap();
    cache.put_with_timeout(key(2), vector(2), 100).await.unwrap();
    cache.put_blocking(key(3), vector(3)).unwrap();
    cache.put_many([(key(4), vector(4)), (key(5), vector(5))]).await;
    cache.put_many_with_ttl([(key(6), vector(6), None), (key(7), vector(7), Some(hour))]).await;
    cache.get_or_embed(key(8), || async { vector(8) }).await.unwrap();
    cache.load().get_or_embed_borrowed(key(9), || async { vector(9) }).await.unwrap();
    Model::default().embed(&cache, 10..20).await;
    // Neither of these is one: refused, and expired at once.
    assert!(cache.put(key(98), [f32::NAN]).await.is_err());
    cache.put_with_ttl(key(99), vector(99), Duration::ZERO).await.unwrap();
    flush(&cache).await;
    assert_eq!(fake.len(), 20);
    assert!(fake.0.largest_write.load(Relaxed) <= 64);
    let found = process(&fake).get_through_many(&keys(0..20)).await;
    for (number, found) in found.into_iter().enumerate() {
        assert_eq!(found.unwrap(), vector(number));
    }
}

#[test]
fn a_put_from_a_thread_without_a_runtime_uses_one_that_was_seen() {
    let fake = Fake::default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_time().build().unwrap();
    let cache = runtime.block_on(async { process(&fake) });
    cache.put_blocking(key(1), vector(1)).unwrap();
    runtime.block_on(flush(&cache));
    assert_eq!(fake.len(), 1);
}

#[tokio::test]
async fn the_queue_drops_the_oldest_and_counts_it() {
    let fake = Fake::default();
    let second = SecondTier::new(fake.clone()).write_queue(1 << 20, 100);
    let cache = process_with(second);
    // Known, so that the first write does not wait for the nonces.
    cache.get_through(&key(0)).await;
    fake.set(Mode::Slow(Duration::from_millis(100)));
    for number in 0..1000 {
        cache.put(key(number), vector(number)).await.unwrap();
    }
    fake.set(Mode::Well);
    flush(&cache).await;
    let stats = cache.stats().tier;
    assert_eq!(stats.writes + stats.dropped, 1000, "{stats:?}");
    assert!(stats.dropped >= 800, "{stats:?}");
    let found = process(&fake).get_through(&key(999)).await;
    assert_eq!(found.unwrap(), vector(999), "the newest stay");
}

#[tokio::test]
async fn the_queue_is_bounded_in_bytes_as_they_are() {
    let fake = Fake::default();
    fake.set(Mode::Frozen);
    let cache = process_with(SecondTier::new(fake.clone()).write_queue(100_000, usize::MAX));
    for number in 0..500 {
        cache.put(key(number), vec![1.0; 1000]).await.unwrap();
    }
    // 4,000 bytes each, and a little more; two batches of 64 may be under way or lost beside them.
    let left = cache.tier_flush(Duration::ZERO).await;
    assert!(left <= 25 + 64, "{left}");
    assert!(cache.stats().tier.dropped > 300);
}

#[tokio::test]
async fn a_newer_put_is_not_overwritten_by_an_older_load() {
    let fake = Fake::default();
    let cache = process(&fake);
    let (begun, begins) = tokio::sync::oneshot::channel();
    let (release, released) = tokio::sync::oneshot::channel::<()>();
    let load = tokio::spawn({
        let cache = cache.clone();
        async move {
            cache
                .get_or_embed(key(1), || async move {
                    begun.send(()).unwrap();
                    released.await.unwrap();
                    vector(1)
                })
                .await
        }
    });
    begins.await.unwrap();
    cache.put(key(1), vector(7)).await.unwrap();
    release.send(()).unwrap();
    load.await.unwrap().unwrap();
    flush(&cache).await;
    assert_eq!(process(&fake).get_through(&key(1)).await.unwrap(), vector(7));
}

#[cfg(feature = "tier-f16")]
#[tokio::test]
async fn in_half_precision_all_processes_answer_alike() {
    let fake = Fake::default();
    let process = || process_with(SecondTier::new(fake.clone()).half_precision());
    let exact = vec![0.1_f32, 0.2, 0.3];
    let first = process();
    let answer = first.get_or_embed(key(1), || async { vec![0.1_f32, 0.2, 0.3] }).await.unwrap();
    first.put(key(2), exact.clone()).await.unwrap();
    flush(&first).await;
    assert_ne!(answer, exact, "rounded by the process that loads it, too");
    assert_eq!(first.get(&key(1)).await.unwrap(), answer);
    let second = process();
    for number in [1, 2] {
        assert_eq!(second.get_through(&key(number)).await.unwrap(), answer);
        assert_eq!(first.get(&key(number)).await.unwrap(), answer);
    }
}

#[tokio::test]
async fn a_cache_without_room_still_fills_the_tier() {
    let fake = Fake::default();
    let cache = EmbeddingCache::builder().max_entries(0).tier(fake.clone()).build().unwrap();
    let model = Model::default();
    model.embed(&cache, 0..10).await;
    flush(&cache).await;
    model.embed(&cache, 0..10).await;
    assert_eq!(model.asked(), 10);
}

/// A directory, say, is locked for as long.
#[tokio::test]
async fn the_tier_goes_with_the_cache_and_not_at_the_next_poll() {
    let fake = Arc::new(Fake::default());
    let tier = SecondTier::new(Arc::clone(&fake)).poll_interval(Duration::from_secs(3600));
    let cache = process_with(tier);
    cache.put(key(1), vector(1)).await.unwrap();
    assert!(cache.get_through(&key(2)).await.is_none());
    assert_eq!(cache.tier_flush(Duration::from_secs(10)).await, 0);
    drop(cache);
    let started = std::time::Instant::now();
    while Arc::strong_count(&fake) > 1 {
        assert!(started.elapsed() < Duration::from_secs(20), "something keeps it");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
