//! An expired entry is never served, a refreshed one never lost.

use shuttle::sync::atomic::{AtomicBool, Ordering};

use super::*;

const TTL: Duration = Duration::from_secs(10);

/// A cache whose entries `keys` have expired, and its clock.
fn expired(
    shards: usize,
    max: usize,
    left: &Departures,
    keys: std::ops::Range<u64>,
) -> (Arc<Cache>, Arc<Fake>) {
    let clock = Arc::new(Fake::default());
    let cache = builder(shards)
        .max_entries(max)
        .time_to_live(TTL)
        .clock(Arc::clone(&clock) as Arc<dyn Clock>)
        .eviction_listener(left.listener())
        .build()
        .unwrap();
    for key in keys {
        put(&cache, value(key, 0));
    }
    clock.advance(TTL + Duration::from_nanos(1));
    (Arc::new(cache), clock)
}

fn causes(left: &Departures, wanted: RemovalCause) -> u64 {
    left.all().iter().filter(|(_, cause)| *cause == wanted).count() as u64
}

#[test]
fn a_get_that_begins_after_a_refresh_is_done_hits() {
    for cleaning in [false, true] {
        explore(move || {
            let left = Departures::default();
            let (cache, _clock) = expired(1, 4, &left, 0..1);
            let done = Arc::new(AtomicBool::new(false));
            let flag = Arc::clone(&done);
            let writer = spawn(&cache, move |cache| {
                put(cache, value(0, 1)).unwrap();
                flag.store(true, Ordering::SeqCst);
                assert_eq!(cache.get(&0), Some(value(0, 1)), "its own refresh");
            });
            let readers = [0, 1].map(|_| {
                let done = Arc::clone(&done);
                spawn(&cache, move |cache| {
                    for _ in 0..2 {
                        let must = done.load(Ordering::SeqCst);
                        match cache.get(&0) {
                            Some(found) => assert_eq!(found, value(0, 1), "an expired value"),
                            None => assert!(!must, "the refreshed value is gone"),
                        }
                    }
                })
            });
            let cleaner = cleaning.then(|| spawn(&cache, Cache::cleanup_expired));
            writer.join().unwrap();
            for reader in readers {
                reader.join().unwrap();
            }
            let removed = cleaner.map_or(0, |cleaner| cleaner.join().unwrap());
            assert!(removed <= 1);
            assert_eq!(cache.get(&0), Some(value(0, 1)));
            let stats = cache.stats();
            assert_eq!(stats.total_requests(), 6);
            assert_eq!(stats.expired_entries, 1);
            assert_eq!(causes(&left, RemovalCause::Expired), 1);
            settle_accounts(&cache, &left, vec![value(0, 0), value(0, 1)]);
        });
    }
}

#[test]
fn an_entry_that_expires_while_it_is_read_is_served_or_missed_and_leaves_once() {
    explore(|| {
        let left = Departures::default();
        let (cache, clock) = expired(1, 4, &left, 0..0);
        put(&cache, value(0, 0));
        let readers = [0, 1].map(|_| {
            spawn(&cache, |cache| {
                let mut gone = false;
                for _ in 0..3 {
                    let found = cache.get(&0);
                    assert!(!(gone && found.is_some()), "an expired entry came back");
                    gone |= found.is_none();
                }
            })
        });
        let time = thread::spawn(move || {
            thread::yield_now();
            clock.advance(TTL + Duration::from_nanos(1));
        });
        time.join().unwrap();
        for reader in readers {
            reader.join().unwrap();
        }
        assert_eq!(cache.get(&0), None);
        assert_eq!((cache.len(), cache.stats().expired_entries), (0, 1));
        settle_accounts(&cache, &left, vec![value(0, 0)]);
    });
}

#[test]
fn a_cleanup_leaves_what_is_alive() {
    for shards in [1, 2] {
        explore(move || {
            let left = Departures::default();
            let (cache, _clock) = expired(shards, 3, &left, 0..2);
            let cleaner = spawn(&cache, Cache::cleanup_expired);
            // A refresh, and newcomers for which the expired ones must leave first.
            let writers = [[0, 2], [3, 3]].map(|keys| {
                spawn(&cache, move |cache| keys.map(|key| put(cache, value(key, 1)).unwrap()))
            });
            let reader = spawn(&cache, |cache| {
                for key in 0..4 {
                    assert!(cache.get(&key).is_none_or(|found| found == value(key, 1)));
                }
            });
            let mut stored = vec![value(0, 0), value(1, 0)];
            for writer in writers {
                stored.extend(writer.join().unwrap());
            }
            reader.join().unwrap();
            cleaner.join().unwrap();
            let stats = cache.stats();
            assert_eq!(stats.expired_entries, causes(&left, RemovalCause::Expired));
            assert_eq!(stats.expired_entries, 2, "both old ones have left as expired");
            settle_accounts(&cache, &left, stored);
        });
    }
}

/// In one shard, where the order is exact: the room of an expired entry counts as free as soon as
/// that entry cannot be found any more, whoever is removing it.
#[test]
fn nobody_alive_leaves_while_an_expired_entry_is_on_its_way_out() {
    explore(|| {
        let left = Departures::default();
        let (cache, _clock) = expired(1, 2, &left, 0..1);
        put(&cache, value(1, 1));
        let others = [
            spawn(&cache, |cache| {
                cache.cleanup_expired();
            }),
            spawn(&cache, |cache| assert_eq!(cache.get(&0), None)),
        ];
        put(&cache, value(2, 1));
        for other in others {
            other.join().unwrap();
        }
        assert_eq!(left.evicted(), [], "{:?} was there to make room", left.all());
        settle_accounts(&cache, &left, vec![value(0, 0), value(1, 1), value(2, 1)]);
    });
}

#[test]
fn a_shard_is_cleaned_up_by_one_at_a_time() {
    explore(|| {
        let clock = Arc::new(Fake::default());
        let inside = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&inside);
        let cache = builder(1)
            .max_entries(100)
            .time_to_live(TTL)
            .clock(Arc::clone(&clock) as Arc<dyn Clock>)
            .eviction_listener(move |_, _, _| {
                assert!(!flag.swap(true, Ordering::SeqCst), "two clean up at once");
                thread::yield_now();
                flag.store(false, Ordering::SeqCst);
            })
            .build()
            .unwrap();
        for key in 0..66 {
            put(&cache, value(key, 0));
        }
        clock.advance(TTL * 2);
        let cache = Arc::new(cache);
        let others = [0, 1].map(|_| spawn(&cache, Cache::cleanup_expired));
        let removed: usize = others.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert_eq!(removed, 66);
    });
}

/// More than one bite of expired entries, so that the lock is released in between.
#[test]
fn two_cleanups_at_once_remove_everything_once() {
    for (shards, entries) in [(1, 2), (2, 3), (1, 70)] {
        explore(move || {
            let left = Departures::default();
            let (cache, _clock) = expired(shards, 100, &left, 0..entries);
            let others = [0, 1].map(|_| spawn(&cache, Cache::cleanup_expired));
            let removed: usize = others.into_iter().map(|thread| thread.join().unwrap()).sum();
            assert_eq!(removed as u64, entries);
            assert_eq!(cache.stats().expired_entries, entries);
            assert!(cache.is_empty());
            settle_accounts(&cache, &left, (0..entries).map(|key| value(key, 0)).collect());
        });
    }
}
