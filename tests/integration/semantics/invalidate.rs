//! Invalidation of everything and by a predicate, and batches of inserts.

use std::time::Duration;

use crate::support::{FakeClock, Removals, everywhere};
use embedding_cache::{RemovalCause, ShardedCache};

#[test]
fn invalidate_all_empties_the_cache_tells_the_listener_and_says_how_many() {
    everywhere(&[1, 8], |policy, pressure, shards| {
        let told = Removals::new();
        let cache = ShardedCache::<u64, u64>::builder()
            .max_weight(5000)
            .weigher(|_: &u64, _: &u64| 3)
            .eviction(policy)
            .memory_pressure(pressure)
            .shards(shards)
            .eviction_listener(told.listener())
            .build()
            .unwrap();
        for round in 0..3 {
            cache.insert_many((0..1000).map(|key| (key, round)));
            assert_eq!((cache.len(), cache.weight()), (1000, 3000));
            assert_eq!(cache.invalidate_all(), 1000);
            assert_eq!((cache.len(), cache.weight(), cache.iter().count()), (0, 0, 0));
            assert!((0..1000).all(|key| cache.get(&key).is_none()));
            let mut left = told.take();
            left.sort_unstable_by_key(|&(key, ..)| key);
            assert!(left.into_iter().eq((0..1000).map(|key| (key, round, RemovalCause::Removed))));
            assert_eq!(cache.stats().removals, 1000 * (round + 1));
            cache.validate();
        }
        assert_eq!(cache.invalidate_all(), 0);
    });
}

/// The listener hears of an entry when it has left, so whatever it looks for then is gone.
#[test]
fn everything_is_gone_before_the_first_entry_is_given_back() {
    use std::sync::{Arc, OnceLock};
    type Cache = ShardedCache<u64, u64>;
    let cell: Arc<OnceLock<Arc<Cache>>> = Arc::default();
    let seen = Arc::clone(&cell);
    let cache = Cache::builder()
        .max_entries(1000)
        .shards(16)
        .eviction_listener(move |_: &u64, _: &u64, cause| {
            if cause != RemovalCause::Removed {
                return;
            }
            let cache = seen.get().unwrap();
            assert!((0..100).all(|key| cache.peek(&key).is_none()));
            // What the listener stores is not lost to the sweep that called it.
            cache.insert(1000, 1).unwrap();
        })
        .build()
        .unwrap();
    let cache = Arc::new(cache);
    cell.set(Arc::clone(&cache)).unwrap();
    cache.insert_many((0..100).map(|key| (key, key)));
    cache.invalidate_all();
    assert_eq!((cache.len(), cache.get(&1000)), (1, Some(1)));
    cache.validate();
}

#[test]
fn invalidate_if_removes_what_it_names_and_what_is_expired() {
    let (clock, told) = (FakeClock::new(), Removals::new());
    let builder = ShardedCache::<u64, u64>::builder().max_entries(1000).clock(clock.clone());
    let cache = builder.eviction_listener(told.listener()).build().unwrap();
    cache.insert_many((0..300).map(|key| (key, key)));
    cache.insert_with_ttl(1, 1, Duration::from_secs(1)).unwrap();
    told.take();
    clock.advance(Duration::from_secs(2));
    assert_eq!(
        cache.invalidate_if(|&key, &value| {
            assert_eq!(key, value);
            key % 3 == 0
        }),
        101
    );
    assert_eq!(cache.len(), 199);
    assert!((0..300).all(|key| cache.contains_key(&key) == (key % 3 != 0 && key != 1)));
    let left = told.take();
    let expired: Vec<_> =
        left.iter().filter(|(.., cause)| *cause != RemovalCause::Removed).collect();
    assert_eq!(expired, [&(1, 1, RemovalCause::Expired)]);
    assert_eq!((cache.stats().removals, cache.stats().expired_entries), (100, 1));
}

#[test]
fn of_two_entries_with_the_same_key_the_later_one_stays_also_without_room() {
    everywhere(&[1, 4], |policy, pressure, shards| {
        let cache = ShardedCache::<u64, u64>::builder()
            .max_weight(100)
            .weigher(|_: &u64, &weight: &u64| weight % 1000)
            .eviction(policy)
            .memory_pressure(pressure)
            .shards(shards)
            .build()
            .unwrap();
        for round in 0..50 {
            // Weights so that many entries must leave, and one is refused.
            let entries: Vec<(u64, u64)> = (0..100)
                .map(|i| (i % 7, 1000 * (round * 100 + i) + [1, 90, 40, 101][i as usize % 4]))
                .collect();
            let results = cache.insert_many(entries.iter().copied());
            for (key, found) in (0..7).map(|key| (key, cache.peek(&key))) {
                let taken = entries.iter().zip(&results).rev();
                let last = taken.filter(|((other, _), _)| *other == key).find(|(_, r)| r.is_ok());
                assert!(found.is_none_or(|found| last.is_some_and(|((_, v), _)| *v == found)));
            }
            for (entry, result) in entries.into_iter().zip(results) {
                assert_eq!(result.is_err(), entry.1 % 1000 > 100);
                if let Err(refused) = result {
                    assert!(refused.error().is_too_large());
                    assert_eq!(refused.into_entry(), entry);
                }
            }
            assert!(cache.weight() <= 100);
            cache.validate();
        }
    });
}
