//! Loading while the cache serves.

use std::time::{Duration, Instant};

use super::{empty, filled, key, vector};

const ENTRIES: usize = 3000;
const DIMENSIONS: usize = 512;

#[test]
fn it_serves_from_the_first_block_on_and_keeps_to_its_pace() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("warm");
    let bytes = filled(ENTRIES, DIMENSIONS).save_snapshot(&path).unwrap().bytes;
    let cache = empty();
    let started = Instant::now();
    // Two seconds for all of it.
    let load = cache.snapshot().bytes_per_second(bytes / 2).load_in_background(&path).unwrap();
    let mut seen = None;
    while !load.is_finished() {
        let report = load.report();
        if seen.is_none() && report.entries > 0 {
            assert!(report.entries < ENTRIES as u64, "all at once");
            let found = (0..ENTRIES).filter(|&number| cache.get_blocking(&key(number)).is_some());
            seen = Some(found.count());
            // A put while it loads stays.
            cache.put_blocking(key(0), [1.0]).unwrap();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(seen.is_some_and(|seen| seen > 0), "nothing was served before the end");
    let report = load.wait().unwrap();
    assert!(report.complete && report.bytes == bytes, "{report:?}");
    assert!(started.elapsed() > Duration::from_millis(1500), "{:?}", started.elapsed());
    assert_eq!(cache.get_blocking(&key(0)).unwrap(), [1.0]);
    for number in 1..ENTRIES {
        assert_eq!(cache.get_blocking(&key(number)).unwrap(), vector(number, DIMENSIONS));
    }
}

#[test]
fn it_can_be_cancelled_and_ends_with_its_cache() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("warm");
    let bytes = filled(ENTRIES, DIMENSIONS).save_snapshot(&path).unwrap().bytes;
    for cancel in [true, false] {
        let cache = empty();
        let load = cache.snapshot().bytes_per_second(bytes).load_in_background(&path).unwrap();
        if cancel {
            load.cancel();
        } else {
            drop(cache);
        }
        let report = load.wait().unwrap();
        assert!(!report.complete && report.entries < ENTRIES as u64, "{report:?}");
    }
}

/// A wrong file is an error at once, not in the background.
#[test]
fn what_is_no_snapshot_is_refused_before_a_thread_is_started() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other");
    std::fs::write(&path, [7; 100]).unwrap();
    let refused = empty().snapshot().load_in_background(&path).unwrap_err();
    assert!(refused.is_invalid_snapshot());
    assert_eq!(
        refused.to_string(),
        format!("this is no snapshot of an embedding cache {}", path.display())
    );
}

/// Writers and invalidations at the same time: the limits hold and nothing wrong is found.
#[test]
fn loading_beside_writers_keeps_the_limits() {
    let mut file = Vec::new();
    filled(2000, 16).snapshot().save_to(&mut file).unwrap();
    let cache =
        embedding_cache::EmbeddingCache::builder().max_entries(1000).shards(4).build().unwrap();
    std::thread::scope(|scope| {
        let (cache, file) = (&cache, &file);
        for _ in 0..2 {
            scope.spawn(move || cache.snapshot().load_from(&file[..]).unwrap());
        }
        scope.spawn(move || {
            for number in 0..4000 {
                cache.put_blocking(key(number), vector(number, 16)).unwrap();
                assert!(cache.info().size <= 1000);
            }
        });
    });
    cache.export().for_each(|(_, vector, _)| assert_eq!(vector.dimensions(), 16));
    for number in 0..4000 {
        if let Some(found) = cache.get_blocking(&key(number)) {
            assert_eq!(found, vector(number, 16));
        }
    }
}
