//! What was invalidated is not found again, while writers store singly and in batches.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use embedding_cache::{EvictionPolicy, InsertError, ShardedCache};
use rand::Rng;

use super::{each, numbers, sampled};
use crate::support::{POLICIES, SetOnDrop, in_time};

/// Keys of the writers; those from here on are written by the invalidator alone.
const KEYS: u64 = 200;

fn is_done(result: &Result<(), InsertError<u64, u64>>) -> bool {
    match result {
        Ok(()) => true,
        Err(refused) => {
            assert!(refused.error().is_contended(), "{refused}");
            false
        }
    }
}

/// Its keys have the number of the round as their value; the invalidation at its end makes an end of
/// it.
fn rounds_end(policy: EvictionPolicy, shards: usize, max_entries: usize, by_predicate: bool) {
    let cache = ShardedCache::<u64, u64>::builder()
        .max_entries(max_entries)
        .shards(shards)
        .eviction(policy)
        .time_to_idle(Duration::from_secs(60))
        .build()
        .unwrap();
    // The last round that is over.
    let (over, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let invalidate = |()| {
        let _done = SetOnDrop(&done);
        for round in 1..60 {
            let results = cache.insert_many((KEYS..2 * KEYS).map(|key| (key, round)));
            let all = results.iter().filter(|result| is_done(result)).count();
            if by_predicate {
                cache.invalidate_if(|&key, _| key >= KEYS);
            } else {
                cache.invalidate_all();
            }
            over.store(round, SeqCst);
            // What is stored from now on is there.
            let kept = is_done(&cache.insert(2 * KEYS, round));
            if max_entries > 3 * KEYS as usize {
                assert!(all == KEYS as usize && kept, "not for want of room");
                assert_eq!(cache.get(&(2 * KEYS)), Some(round));
            }
        }
    };
    let write = |seed: u64| {
        let mut rng = numbers(seed);
        while !done.load(SeqCst) {
            let keys = (0..rng.random_range(1..100)).map(|_| rng.random_range(0..KEYS));
            let entries: Vec<(u64, u64)> = keys.map(|key| (key, 0)).collect();
            if seed.is_multiple_of(2) {
                let results = cache.insert_many(entries);
                for result in &results {
                    is_done(result);
                }
            } else {
                entries.into_iter().for_each(|(key, value)| {
                    is_done(&cache.insert(key, value));
                });
            }
        }
    };
    let read = |seed: u64| {
        let mut rng = numbers(seed);
        while !done.load(SeqCst) {
            let keys: Vec<u64> = (0..64).map(|_| rng.random_range(KEYS..2 * KEYS)).collect();
            let before = over.load(SeqCst);
            let mut seen = cache.get_many(&keys);
            seen.extend(keys.iter().map(|key| cache.peek(key)));
            seen.extend(
                cache.iter().filter(|&(key, _)| (KEYS..2 * KEYS).contains(&key)).map(|e| Some(e.1)),
            );
            let late = seen.into_iter().flatten().find(|&value| value <= before);
            assert_eq!(late, None, "round {before} was over");
        }
    };
    let mut workers = each([()], &invalidate);
    workers.extend(each(0..4, &write));
    workers.extend(each(10..12, &read));
    sampled(workers, || assert!(cache.len() <= max_entries));
    cache.validate();
    cache.invalidate_all();
    assert_eq!((cache.len(), cache.iter().count()), (0, 0));
    cache.validate();
    let stats = cache.stats();
    assert_eq!(stats.insertions, stats.removals + stats.evictions + stats.expired_entries);
}

#[test]
fn what_is_over_is_not_found_and_limits_and_counts_hold() {
    for policy in POLICIES {
        for (shards, max_entries) in [(1, 1000), (8, 1000), (8, 50)] {
            for by_predicate in [false, true] {
                in_time(move || rounds_end(policy, shards, max_entries, by_predicate));
            }
        }
    }
}
