//! What needs a hand on the private locks and timestamps of the baseline.

//! What takes a hand on the locks or on the timestamps; the rest is in `tests/baseline.rs`.

use chrono::TimeDelta;

use super::*;

const KEPT: [f32; 2] = [1.0, 2.0];

/// A cache with a TTL of one minute and `KEPT` under `key`, put `age` seconds ago.
async fn cache_with(key: &CacheKey, age: i64) -> SingleLockCache {
    let cache = SingleLockCache::new(10, 60, 1);
    cache.put(key.clone(), KEPT).await.unwrap();
    let put_at = Utc::now() - TimeDelta::seconds(age);
    cache.cache.write().await.map.get_mut(key).unwrap().timestamp = put_at;
    cache
}

#[tokio::test]
async fn an_entry_is_served_until_its_age_exceeds_the_ttl_and_a_negative_age_is_zero() {
    let key = CacheKey::new("a", "m");
    for (age, served) in [(0, true), (60, true), (61, false), (-60, true), (-9999, true)] {
        let expired = u64::from(!served);

        let cache = cache_with(&key, age).await;
        assert_eq!(cache.get(&key).await.is_some(), served, "get at age {age}");
        assert_eq!(cache.size().await, usize::from(served));
        assert_eq!(cache.stats().expired_entries, expired);

        let cache = cache_with(&key, age).await;
        assert_eq!(cache.remove(&key).await.is_some(), served, "remove at age {age}");
        assert_eq!(cache.stats().expired_entries, expired);

        let cache = cache_with(&key, age).await;
        assert_eq!(cache.cleanup_expired_safe().await as u64, expired, "cleanup at age {age}");
        assert_eq!(cache.size().await, usize::from(served));
        assert_eq!(cache.stats().expired_entries, expired);
    }
}

#[tokio::test(start_paused = true)]
async fn a_timed_out_operation_changes_nothing_and_a_put_gives_its_vector_back() {
    let (key, other) = (CacheKey::new("a", "m"), CacheKey::new("b", "m"));
    let cache = cache_with(&key, 0).await;
    for timeout_ms in [0, 25] {
        let guard = cache.cache.write().await;
        let error = cache.get_with_timeout(&key, timeout_ms).await.unwrap_err();
        assert!(error.is_timeout());
        assert!(error.to_string().contains(&format!("get timed out after {timeout_ms}")));
        for key in [&key, &other] {
            let put = cache.put_with_timeout(key.clone(), [9.0], timeout_ms);
            let error = put.await.unwrap_err();
            assert!(error.is_timeout());
            assert_eq!(error.into_vector().unwrap(), [9.0]);
        }
        drop(guard);

        // A put waits for a cleanup, a get does not.
        let guard = cache.cleanup_lock.lock().await;
        let put = cache.put_with_timeout(other.clone(), [9.0], timeout_ms);
        assert!(put.await.unwrap_err().is_timeout());
        let found = cache.get_with_timeout(&key, timeout_ms).await.unwrap();
        assert_eq!(found.unwrap(), KEPT);
        drop(guard);
    }
    let stats = cache.stats();
    assert_eq!((stats.timeouts, stats.hits, stats.misses), (8, 2, 0));
    assert_eq!((stats.insertions, stats.updates, cache.size().await), (1, 0, 1));
    // Neither lock stayed behind with a future that gave up.
    cache.put_with_timeout(other, [9.0], 0).await.unwrap();
}

#[tokio::test]
async fn a_cleanup_is_skipped_while_the_cleanup_lock_is_taken() {
    let key = CacheKey::new("a", "m");
    let cache = cache_with(&key, 61).await;
    let guard = cache.cleanup_lock.lock().await;
    assert_eq!(cache.cleanup_expired_safe().await, 0);
    drop(guard);
    assert_eq!(cache.cleanup_expired_safe().await, 1);
}

#[tokio::test]
async fn spare_capacity_is_given_back() {
    let key = CacheKey::new("a", "m");
    let cache = SingleLockCache::new(10, 60, 1);
    let mut roomy = Vec::with_capacity(1 << 20);
    roomy.push(1.0);
    cache.put(key.clone(), roomy).await.unwrap();
    assert_eq!(cache.cache.read().await.map[&key].embedding.capacity(), 1);
}

#[tokio::test]
async fn the_running_total_is_what_a_walk_finds() {
    let cache = SingleLockCache::new(8, 60, 1);
    for i in 0..if cfg!(miri) { 200 } else { 500_usize } {
        let key = CacheKey::new("a".repeat(i * 5 % 13), "m").with_chunk("c");
        match i % 7 {
            6 => drop(cache.remove(&key).await),
            _ => cache.put(key.clone(), vec![0.0; i * 7919 % 90_000]).await.unwrap(),
        }
        let mut entries = cache.cache.write().await;
        if i % 50 == 49 {
            for cached in entries.map.values_mut().take(2) {
                cached.timestamp -= TimeDelta::seconds(61);
            }
        }
        drop(entries);
        if i % 100 == 99 {
            assert_eq!(cache.cleanup_expired_safe().await, 2);
        }
        let entries = cache.cache.read().await;
        let walk = entries.map.iter().map(|(key, cached)| weigh(key, &cached.embedding));
        assert_eq!(entries.bytes, walk.sum::<u64>());
    }
    let stats = cache.stats();
    for count in [stats.updates, stats.removals, stats.expired_entries] {
        assert!(count > 0, "{stats:?}");
    }
    assert!(stats.evicted_by_entries > 0 && stats.evicted_by_weight > 0, "{stats:?}");
    cache.clear().await;
    assert_eq!(cache.info().await.memory_bytes, 0);
}
