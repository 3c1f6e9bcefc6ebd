//! Operations on many entries, with others at work: nothing is lost, nothing leaves twice, and the
//! budget is what the shards hold.

use super::*;

/// Runs `sweep` against two writers, one of which evicts, on a cache that holds keys 0 and 1.
fn against_writers<T: Send + 'static>(
    shards: usize,
    policy: EvictionPolicy,
    sweep: impl Fn(&Cache) -> T + Clone + Send + Sync + 'static,
    check: impl Fn(T, &Departures) + Send + Sync + 'static,
) {
    explore(move || {
        let left = Departures::default();
        let builder = builder(shards).max_entries(3).eviction(policy);
        let cache = Arc::new(builder.eviction_listener(left.listener()).build().unwrap());
        let mut stored: Vec<_> = (0..2).map(|key| value(key, 0)).collect();
        for &value in &stored {
            put(&cache, value);
        }
        let writers = [[0, 2], [3, 4]]
            .map(|keys| spawn(&cache, move |cache| keys.map(|key| put(cache, value(key, 1)))));
        let sweeper = spawn(&cache, sweep.clone());
        let watcher = watch(&cache, 3, u64::MAX);
        for writer in writers {
            stored.extend(writer.join().unwrap().into_iter().flatten());
        }
        let swept = sweeper.join().unwrap();
        watcher.join().unwrap();
        check(swept, &left);
        settle_accounts(&cache, &left, stored);
    });
}

fn removed(left: &Departures) -> Vec<Value> {
    let list = left.all().into_iter();
    list.filter(|(_, cause)| *cause == RemovalCause::Removed).map(|(value, _)| value).collect()
}

#[test]
fn retain_removes_what_it_says_and_no_more() {
    for (shards, policy) in [(1, POLICIES[0]), (2, POLICIES[1])] {
        against_writers(
            shards,
            policy,
            |cache| cache.retain(|&key, _| key % 2 == 1),
            |count, left| {
                let removed = removed(left);
                assert_eq!(removed.len(), count);
                assert!(removed.iter().all(|value| value.key % 2 == 0));
            },
        );
    }
}

#[test]
fn clear_gives_back_exactly_the_room_of_what_it_removed() {
    for (shards, policy) in [(1, POLICIES[1]), (2, POLICIES[0])] {
        against_writers(shards, policy, Cache::clear, |(), _| {});
    }
}

#[test]
fn two_clears_at_once_remove_everything_once() {
    explore(|| {
        let left = Departures::default();
        let builder = builder(2).max_entries(4).eviction_listener(left.listener());
        let cache = Arc::new(builder.build().unwrap());
        let stored: Vec<_> = (0..4).map(|key| value(key, 0)).collect();
        for &value in &stored {
            put(&cache, value);
        }
        let others = [0, 1].map(|_| spawn(&cache, Cache::clear));
        for other in others {
            other.join().unwrap();
        }
        assert!(cache.is_empty());
        assert_eq!(cache.stats().removals, 4);
        settle_accounts(&cache, &left, stored);
    });
}

#[test]
fn an_iterator_shows_every_key_that_is_there_all_the_time_once() {
    for shards in [1, 2] {
        explore(move || {
            let cache = Arc::new(builder(shards).max_entries(8).build().unwrap());
            for key in 0..3 {
                put(&cache, value(key, 0));
            }
            let writer = spawn(&cache, |cache| {
                put(cache, value(1, 1));
                cache.remove(&2);
                put(cache, value(3, 0));
            });
            let mut seen: Vec<_> = cache.iter().map(|(key, value)| (key, value.key)).collect();
            writer.join().unwrap();
            assert!(seen.iter().all(|&(key, value)| key == value));
            seen.retain(|&(key, _)| key < 2);
            seen.sort_unstable();
            assert_eq!(seen, [(0, 0), (1, 1)]);
        });
    }
}

#[test]
fn every_kind_of_departure_at_once_is_counted_once() {
    explore(|| {
        let left = Departures::default();
        let builder = builder(2).max_entries(3).eviction_listener(left.listener());
        let cache = Arc::new(builder.build().unwrap());
        let mut stored: Vec<_> = (0..3).map(|key| value(key, 0)).collect();
        for &value in &stored {
            put(&cache, value);
        }
        let clear = spawn(&cache, Cache::clear);
        let retain = spawn(&cache, |cache| {
            cache.retain(|&key, _| key != 1);
        });
        let remove = spawn(&cache, |cache| {
            cache.remove(&0);
        });
        let lower = spawn(&cache, |cache| {
            cache.set_max_entries(2);
        });
        let writer = spawn(&cache, |cache| [0, 1].map(|key| put(cache, value(key, 1))));
        for thread in [clear, retain, remove, lower] {
            thread.join().unwrap();
        }
        stored.extend(writer.join().unwrap().into_iter().flatten());
        let stats = cache.stats();
        let told = |wanted: &[RemovalCause]| {
            left.all().iter().filter(|(_, cause)| wanted.contains(cause)).count() as u64
        };
        assert_eq!(stats.removals, told(&[RemovalCause::Removed]));
        assert_eq!(stats.evictions, told(&[RemovalCause::Size]));
        assert_eq!(stats.updates, told(&[RemovalCause::Replaced]));
        settle_accounts(&cache, &left, stored);
    });
}
