//! What readers find was really written, and the counts add up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use embedding_cache::{EvictionPolicy, ShardedCache};
use rand::Rng;

use super::{each, numbers, sampled};
use crate::support::{POLICIES, eventually, in_time};

const KEYS: u64 = 24;
const WRITERS: usize = 4;

/// The `sequence`-th write of `key` by `writer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Written {
    key: u64,
    writer: usize,
    sequence: u64,
}

type Cache = ShardedCache<u64, Written>;

/// How far one writer is with one key.
#[derive(Debug, Default)]
struct Progress {
    begun: AtomicU64,
    done: AtomicU64,
}

/// The progress of every writer with every key.
#[derive(Debug)]
struct Ledger(Vec<[Progress; WRITERS]>);

impl Ledger {
    fn new() -> Self {
        Self((0..KEYS).map(|_| Default::default()).collect())
    }

    fn write(&self, cache: &Cache, key: u64, writer: usize) {
        let progress = &self.0[key as usize][writer];
        let sequence = progress.begun.fetch_add(1, SeqCst) + 1;
        match cache.insert(key, Written { key, writer, sequence }) {
            Ok(()) => progress.done.store(sequence, SeqCst),
            Err(refused) => assert!(refused.error().is_contended(), "{refused}"),
        }
    }

    /// What each writer has finished with `key`.
    fn done(&self, key: u64) -> [u64; WRITERS] {
        std::array::from_fn(|writer| self.0[key as usize][writer].done.load(SeqCst))
    }

    /// Fails unless `found` is a write that could still be seen by a read that began when `before`
    /// was done.
    fn check(&self, key: u64, before: [u64; WRITERS], found: Option<Written>) {
        let Some(found) = found else { return };
        assert_eq!(found.key, key, "the value of another key");
        let begun = self.0[key as usize][found.writer].begun.load(SeqCst);
        assert!(found.sequence <= begun, "{found:?} of {begun} writes");
        let replaced = before[found.writer];
        assert!(found.sequence >= replaced, "{found:?}, which write {replaced} had replaced");
    }
}

/// One of the ways to read keys, each checked against the ledger. Returns how many gets it was.
fn read(cache: &Cache, ledger: &Ledger, rng: &mut impl Rng) -> u64 {
    let key = rng.random_range(0..KEYS);
    let before = ledger.done(key);
    match rng.random_range(0..5) {
        0 => {
            let keys: Vec<u64> = (0..40).map(|_| rng.random_range(0..KEYS)).collect();
            let before: Vec<_> = keys.iter().map(|&key| ledger.done(key)).collect();
            let found = cache.get_many(&keys);
            for ((key, before), found) in keys.iter().zip(before).zip(found) {
                ledger.check(*key, before, found);
            }
            40
        }
        1 => {
            ledger.check(key, before, cache.peek(&key));
            0
        }
        2 => match cache.try_get_for(&key, Duration::from_secs(10)) {
            Ok(found) => {
                ledger.check(key, before, found);
                1
            }
            Err(error) => panic!("{error}"),
        },
        _ => {
            ledger.check(key, before, cache.get(&key));
            1
        }
    }
}

fn hits_are_real(policy: EvictionPolicy, shards: usize, time_to_live: Option<Duration>) {
    let builder = ShardedCache::builder().max_entries(16).shards(shards).eviction(policy);
    let cache: Cache = match time_to_live {
        Some(ttl) => builder.time_to_live(ttl).build().unwrap(),
        None => builder.build().unwrap(),
    };
    let ledger = Ledger::new();
    let (gets, puts) = (AtomicU64::new(0), AtomicU64::new(0));
    let write = |writer: usize| {
        let mut rng = numbers(writer as u64);
        for _ in 0..1500 {
            let key = rng.random_range(0..KEYS);
            if rng.random_range(0..20) == 0 {
                let before = ledger.done(key);
                ledger.check(key, before, cache.remove(&key));
            } else {
                ledger.write(&cache, key, writer);
                puts.fetch_add(1, SeqCst);
            }
        }
    };
    let read = |reader: u64| {
        let mut rng = numbers(100 + reader);
        for _ in 0..800 {
            gets.fetch_add(read(&cache, &ledger, &mut rng), SeqCst);
        }
    };
    let mut workers = each(0..WRITERS, &write);
    workers.extend(each(0..3, &read));
    sampled(workers, || {
        if time_to_live.is_some() {
            cache.cleanup_expired();
        }
        for (key, found) in cache.iter() {
            assert_eq!(found.key, key);
        }
    });
    cache.validate();

    let stats = cache.stats();
    assert_eq!(stats.hits + stats.misses, gets.into_inner(), "{stats:?}");
    assert_eq!(stats.insertions + stats.updates + stats.rejected, puts.into_inner(), "{stats:?}");
    let left = stats.evictions + stats.expired_entries + stats.removals;
    assert_eq!(stats.insertions - left, cache.len() as u64, "{stats:?}");
    assert_eq!(stats.timeouts, 0);
    let by_shard = cache.shard_stats();
    assert_eq!(by_shard.iter().map(|shard| shard.stats.hits).sum::<u64>(), stats.hits);
}

#[test]
fn a_hit_is_the_last_write_of_its_key_or_one_under_way_and_every_get_is_counted() {
    for policy in POLICIES {
        for shards in [1, 4, 64] {
            for time_to_live in [None, Some(Duration::from_micros(200))] {
                in_time(move || hits_are_real(policy, shards, time_to_live));
            }
        }
    }
}

/// Threads come and go, more of them than processors; what each counted stays counted.
#[test]
fn counts_are_exact_once_threads_are_joined_however_many_there_were() {
    in_time(|| {
        let cache = Arc::new(ShardedCache::<u64, u64>::builder().max_entries(8).build().unwrap());
        for key in 0..4 {
            cache.insert(key, key).unwrap();
        }
        for wave in 1..=20 {
            let threads: Vec<_> = (0..16)
                .map(|_| {
                    let cache = Arc::clone(&cache);
                    std::thread::spawn(move || {
                        for key in 0..100 {
                            cache.get(&(key % 8));
                        }
                    })
                })
                .collect();
            for thread in threads {
                thread.join().unwrap();
            }
            let stats = cache.stats();
            assert_eq!((stats.hits, stats.misses), (wave * 16 * 52, wave * 16 * 48));
        }
    });
}

#[test]
fn batches_over_all_shards_and_writers_of_all_shards_do_not_wait_in_a_circle() {
    in_time(|| {
        let cache = ShardedCache::<u64, u64>::builder().max_entries(64).shards(16).build().unwrap();
        let batches = |step: u64| {
            for round in 0..700 {
                let keys: Vec<u64> = (0..48).map(|i| (round + i * step) % 96).collect();
                for (key, found) in keys.iter().zip(cache.get_many(&keys)) {
                    assert!(found.is_none_or(|found| found % 96 == *key), "{key}: {found:?}");
                }
            }
        };
        let writes = |first: u64| {
            for i in 0..4000 {
                let key = (first + i * 7) % 96;
                cache.insert(key, key + 96 * (i % 5)).unwrap();
            }
        };
        // In both directions through the keys, and so through the shards.
        let mut workers = each([1, 95, 5, 91], &batches);
        workers.extend(each([0, 30, 60], &writes));
        sampled(workers, || {
            cache.retain(|&key, _| key % 31 != 0);
        });
        cache.validate();
    });
}

/// A reader on its way to remove an expired entry finds it refreshed.
#[test]
fn a_get_after_a_refresh_is_never_a_miss() {
    in_time(|| {
        let cache = ShardedCache::<u64, u64>::builder().max_entries(4).build().unwrap();
        let latest = AtomicU64::new(0);
        let write = || {
            for i in 1..=2000 {
                cache.insert_with_ttl(0, 0, Duration::ZERO).unwrap();
                cache.insert(0, i).unwrap();
                latest.store(i, SeqCst);
                // While it is the latest it must be found.
                assert_eq!(cache.get(&0), Some(i));
            }
        };
        let read = || {
            eventually("the first write", || latest.load(SeqCst) > 0);
            while latest.load(SeqCst) < 2000 {
                // A miss is only possible while the expired one is there.
                cache.get(&0);
                cache.cleanup_expired();
            }
        };
        sampled(vec![Box::new(write), Box::new(read), Box::new(read)], || {});
        assert_eq!(cache.get(&0), Some(2000));
        cache.validate();
    });
}
