//! The single-lock baseline: each repair of the original sketch, and each limit, has a test that
//! would fail without it. What takes a hand on its locks or timestamps is tested in its module.

use std::future::Future;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use baseline::SingleLockCache;
use embedding_cache::{CacheKey, EmbeddingVector};

const MIB: u64 = 1 << 20;

fn key(i: usize) -> CacheKey {
    CacheKey::new(format!("{i:064x}"), "e5-base")
}

/// A vector of `kib` KiB.
fn vector(kib: usize) -> Vec<f32> {
    vec![0.5; kib * 1024 / size_of::<f32>()]
}

/// Which of the keys `0..n` are there.
async fn present(cache: &SingleLockCache, n: usize) -> Vec<usize> {
    let mut present = Vec::new();
    for i in 0..n {
        if cache.get(&key(i)).await.is_some() {
            present.push(i);
        }
    }
    present
}

/// Runs `test` on a thread of its own and fails, rather than hangs, if it does not end: a loop that
/// never awaits cannot be stopped by a timeout of the runtime.
fn ends<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let (done, wait) = mpsc::channel();
    let thread = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(test());
        let _ = done.send(());
    });
    if wait.recv_timeout(Duration::from_secs(20)) == Err(mpsc::RecvTimeoutError::Timeout) {
        panic!("the operation does not end");
    }
    thread.join().unwrap();
}

/// The test that came with the sketch; only the name of the type has changed.
#[tokio::test]
#[expect(clippy::uninlined_format_args, reason = "word for word")]
async fn test_concurrent_access() {
    let cache = Arc::new(SingleLockCache::new(100, 3600, 100));
    let mut handles = vec![];

    // Spawn multiple concurrent operations
    for i in 0..10 {
        let cache_clone = Arc::clone(&cache);
        let handle = tokio::spawn(async move {
            let key = CacheKey {
                content_hash: format!("test_{}", i),
                model_version: "v1".to_string(),
                chunk_id: None,
            };

            let embedding = vec![i as f32; 768];

            // Concurrent put and get operations
            cache_clone.put(key.clone(), embedding).await.unwrap();
            let result = cache_clone.get(&key).await;
            assert!(result.is_some());
        });

        handles.push(handle);
    }

    // Wait for all operations to complete
    for handle in handles {
        handle.await.unwrap();
    }

    assert_eq!(cache.size().await, 10);
}

#[test]
fn what_can_never_fit_is_refused_at_once_with_its_vector_and_touches_nothing() {
    // (max_size, MiB, KiB of the newcomer, what the message names)
    let cases = [
        (0, 64, 1, "0 entries"),
        (10, 0, 1, "limit of 0"),
        (10, 1, 1024, "limit of 1048576"), // the vector fits, the entry does not
        (10, 1, 5000, "limit of 1048576"),
    ];
    for (max_size, mib, kib, named) in cases {
        ends(move || async move {
            let cache = SingleLockCache::new(max_size, 3600, mib);
            let stays = max_size > 0 && mib > 0;
            if stays {
                cache.put(key(0), vector(100)).await.unwrap();
                cache.put(key(1), vector(100)).await.unwrap();
            }
            let before = cache.info().await;
            // Once as a new key, once as an update, which must leave the old value in place.
            for i in [2, 0] {
                let error = cache.put(key(i), vector(kib)).await.unwrap_err();
                assert!(error.is_too_large() && !error.is_timeout());
                assert!(error.to_string().contains(named), "{error}");
                assert_eq!(error.into_vector().unwrap(), vector(kib));
                let error = cache.put_with_timeout(key(i), vector(kib), 50).await.unwrap_err();
                assert_eq!(error.into_vector().unwrap(), vector(kib));
            }
            let after = cache.info().await;
            assert_eq!((after.size, after.memory_bytes), (before.size, before.memory_bytes));
            assert_eq!((after.stats.rejected, after.stats.evictions), (4, 0));
            if stays {
                assert_eq!(cache.get(&key(0)).await.unwrap(), vector(100));
            }
        });
    }
}

#[tokio::test]
async fn the_entry_limit_is_reached_and_kept() {
    for max_size in [1, 2, 7] {
        let cache = SingleLockCache::new(max_size, 3600, 64);
        for i in 0..20 {
            cache.put(key(i), [i as f32]).await.unwrap();
            assert_eq!(cache.size().await, max_size.min(i + 1));
        }
        assert_eq!(cache.stats().evicted_by_entries, 20 - max_size as u64);
        assert_eq!(cache.stats().evictions, 20 - max_size as u64);
    }
}

#[tokio::test]
async fn the_memory_check_counts_the_newcomer() {
    let cache = SingleLockCache::new(100, 3600, 10);
    for i in 0..3 {
        // Two are within the limit and a third is not, though without it the first two are.
        cache.put(key(i), vector(4 * 1024)).await.unwrap();
        let info = cache.info().await;
        assert!(info.memory_bytes <= info.memory_limit_bytes, "{info:?}");
    }
    assert_eq!((cache.size().await, cache.stats().evicted_by_weight), (2, 1));
    assert!(cache.get(&key(2)).await.is_some());
}

#[tokio::test]
async fn the_memory_limit_counts_bytes_not_whole_megabytes() {
    let cache = SingleLockCache::new(10_000, 3600, 1);
    cache.put(key(0), vector(3)).await.unwrap();
    let weight = cache.info().await.memory_bytes;
    let fit = MIB / weight;
    for i in 1..2 * fit {
        cache.put(key(i as usize), vector(3)).await.unwrap();
        let info = cache.info().await;
        assert_eq!(info.memory_bytes, (i + 1).min(fit) * weight);
        assert!(info.memory_bytes <= info.memory_limit_bytes, "{info:?}");
    }
}

#[tokio::test]
async fn the_overhead_is_the_documented_one() {
    let cache = SingleLockCache::new(10, 3600, 1);
    cache.put(CacheKey::new("12345", "123").with_chunk("12"), [0.0; 100]).await.unwrap();
    let overhead = cache.info().await.memory_bytes - 5 - 3 - 2 - 400;
    if cfg!(target_pointer_width = "64") {
        assert_eq!(overhead, 240);
    }
}

#[tokio::test]
async fn an_update_evicts_nobody_unless_it_grew() {
    // (max_size, entries, KiB each, KiB of the update of entry 0, who is left)
    let cases: [(usize, usize, usize, usize, &[usize]); 6] = [
        (3, 3, 100, 100, &[0, 1, 2]),  // at the entry limit
        (3, 3, 100, 200, &[0, 1, 2]),  // there, and it grows within the memory limit
        (99, 3, 340, 340, &[0, 1, 2]), // at the memory limit
        (99, 3, 340, 100, &[0, 1, 2]), // there, and it shrinks
        (3, 3, 340, 340, &[0, 1, 2]),  // at both
        (99, 2, 500, 1000, &[0]),      // it grew: the other one leaves, never itself
    ];
    for (max_size, entries, kib, update, left) in cases {
        let cache = SingleLockCache::new(max_size, 3600, 1);
        for i in 0..entries {
            cache.put(key(i), vector(kib)).await.unwrap();
        }
        cache.put(key(0), vector(update)).await.unwrap();
        let (info, case) = (cache.info().await, (max_size, entries, kib, update));
        assert_eq!(present(&cache, entries).await, left, "{case:?}");
        assert_eq!(cache.get(&key(0)).await.unwrap(), vector(update), "{case:?}");
        assert_eq!(info.stats.evictions, (entries - left.len()) as u64, "{case:?}");
        assert_eq!((info.stats.insertions, info.stats.updates), (entries as u64, 1), "{case:?}");
        assert!(info.memory_bytes <= info.memory_limit_bytes, "{case:?}");
    }
}

#[tokio::test]
async fn over_the_entry_limit_the_one_put_longest_ago_leaves_even_if_it_was_just_read() {
    let cache = SingleLockCache::new(3, 3600, 1);
    for i in [1, 0, 2] {
        cache.put(key(i), [1.0]).await.unwrap();
    }
    cache.get(&key(1)).await.unwrap();
    cache.put(key(3), [1.0]).await.unwrap();
    assert_eq!(present(&cache, 4).await, [0, 2, 3]);
    cache.put(key(0), [2.0]).await.unwrap(); // a put does make it younger
    cache.put(key(4), [1.0]).await.unwrap();
    assert_eq!(present(&cache, 5).await, [0, 3, 4]);
}

#[tokio::test]
async fn over_the_memory_limit_the_largest_leave() {
    let cache = SingleLockCache::new(99, 3600, 1);
    for (i, kib) in [100, 300, 200, 150, 250].into_iter().enumerate() {
        cache.put(key(i), vector(kib)).await.unwrap();
    }
    cache.put(key(5), vector(500)).await.unwrap();
    assert_eq!(present(&cache, 6).await, [0, 2, 3, 5]);
    assert_eq!(cache.stats().evicted_by_weight, 2);
}

#[tokio::test]
async fn expired_entries_are_not_served_and_leave_before_live_ones() {
    let cache = SingleLockCache::new(3, 0, 1);
    cache.put(key(0), [1.0]).await.unwrap();
    cache.put(key(1), [1.0]).await.unwrap();
    assert_eq!(present(&cache, 2).await, [0, 1], "within the first second the age is 0");
    tokio::time::sleep(Duration::from_millis(1050)).await;
    assert_eq!(cache.get(&key(0)).await, None);
    cache.put(key(0), [2.0]).await.unwrap();
    cache.put(key(2), [2.0]).await.unwrap();
    // Full, and 1 alone has expired. An update needs no room, so nobody leaves.
    cache.put(key(2), [3.0]).await.unwrap();
    assert_eq!(cache.size().await, 3);
    cache.put(key(3), [2.0]).await.unwrap();
    assert_eq!(present(&cache, 4).await, [0, 2, 3]);
    let stats = cache.stats();
    assert_eq!((stats.expired_entries, stats.evictions), (2, 0));
    assert_eq!(cache.cleanup_expired_safe().await, 0);
    tokio::time::sleep(Duration::from_millis(1050)).await;
    assert_eq!(cache.cleanup_expired_safe().await, 3);
    assert_eq!((cache.size().await, cache.info().await.memory_bytes), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_is_not_needed_changes_nothing() {
    let cache = SingleLockCache::new(usize::MAX, u64::MAX, usize::MAX);
    for timeout_ms in [0, 50, u64::MAX] {
        cache.put_with_timeout(key(0), [1.0], timeout_ms).await.unwrap();
        let found = cache.get_with_timeout(&key(0), timeout_ms).await.unwrap();
        assert_eq!(found.unwrap(), [1.0]);
        assert_eq!(cache.get_with_timeout(&key(1), timeout_ms).await.unwrap(), None);
    }
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses, stats.timeouts), (3, 3, 0));
}

#[tokio::test]
async fn remove_and_clear_count_as_removals() {
    let cache = SingleLockCache::new(10, 3600, 1);
    for i in 0..3 {
        cache.put(key(i), [i as f32]).await.unwrap();
    }
    assert_eq!(cache.remove(&key(1)).await.unwrap(), [1.0]);
    assert_eq!(cache.remove(&key(1)).await, None);
    assert_eq!(present(&cache, 3).await, [0, 2]);
    cache.clear().await;
    let info = cache.info().await;
    assert_eq!((info.size, info.memory_bytes, info.stats.removals), (0, 0, 3));
}

#[tokio::test]
async fn a_put_takes_every_form_of_vector() {
    let cache = SingleLockCache::new(10, 3600, 1);
    cache.put(key(0), vec![0.1, 0.2]).await.unwrap();
    cache.put(key(1), [0.1, 0.2]).await.unwrap();
    cache.put(key(2), &[0.1, 0.2][..]).await.unwrap();
    cache.put(key(3), EmbeddingVector::from([0.1, 0.2])).await.unwrap();
    let clone = cache.clone();
    for i in 0..4 {
        assert_eq!(clone.get(&key(i)).await.unwrap(), [0.1, 0.2]);
    }
    assert_eq!((clone.stats().hits, cache.stats()), (4, clone.stats()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn limits_hold_at_every_instant_and_the_counts_add_up() {
    const TASKS: u64 = 8;
    const ROUNDS: u64 = 1500;
    let cache = SingleLockCache::new(40, 3600, 1);
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let cache = cache.clone();
            tokio::spawn(async move {
                for round in 0..ROUNDS {
                    let i = ((task * 7919 + round * 31) % 97) as usize;
                    if cache.get(&key(i)).await.is_none() {
                        cache.put(key(i), vector(1 + i)).await.unwrap();
                    }
                    if round % 10 == task {
                        cache.remove(&key(i)).await;
                    }
                    let info = cache.info().await;
                    assert!(info.size <= info.max_size, "{info:?}");
                    assert!(info.memory_bytes <= info.memory_limit_bytes, "{info:?}");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let stats = cache.stats();
    assert_eq!(stats.total_requests(), TASKS * ROUNDS);
    assert_eq!(stats.insertions + stats.updates, stats.misses);
    let left = stats.evictions + stats.expired_entries + stats.removals;
    assert_eq!(cache.size().await as u64, stats.insertions - left);
    assert!(stats.evicted_by_entries > 0 && stats.evicted_by_weight > 0, "{stats:?}");
}

#[test]
fn the_cache_and_its_futures_can_move_between_threads() {
    fn check<T: Send>(value: T) -> T {
        value
    }
    fn shared<T: Send + Sync + Clone + 'static>(_: &T) {}
    let (cache, key) = (SingleLockCache::new(10, 3600, 1), key(0));
    shared(&cache);
    drop(check(cache.get(&key)));
    drop(check(cache.put(key.clone(), [1.0])));
    drop(check(cache.get_with_timeout(&key, 1)));
    drop(check(cache.put_with_timeout(key.clone(), [1.0], 1)));
    drop(check(cache.cleanup_expired_safe()));
    drop(check(cache.remove(&key)));
    drop(check(cache.clear()));
    drop(check(cache.size()));
    drop(check(cache.info()));
}
