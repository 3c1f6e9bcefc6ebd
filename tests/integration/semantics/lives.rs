//! Time-to-idle, and a time-to-live that is spread.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::{FakeClock, POLICIES, Removals, everywhere};
use embedding_cache::{
    EmbeddingCache, EvictionPolicy, RemovalCause, ShardedCache, ShardedCacheBuilder,
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_nanos(1);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

fn builder() -> ShardedCacheBuilder<u64, u64> {
    ShardedCache::builder().max_entries(10_000)
}

#[test]
fn an_entry_is_served_until_the_time_since_its_last_hit_or_write_exceeds_the_time_to_idle() {
    everywhere(&[1, 4], |policy, pressure, shards| {
        let clock = FakeClock::new();
        let builder = builder().eviction(policy).memory_pressure(pressure).shards(shards);
        let cache = builder.time_to_idle(MINUTE).clock(clock.clone()).build().unwrap();
        for key in 0..4 {
            cache.insert(key, key).unwrap();
        }
        assert_eq!(cache.entry_info(&0).unwrap().expires_in, Some(MINUTE));
        clock.advance(MINUTE);
        // A get, a batch, a write; and what is no use.
        assert_eq!(cache.get(&0), Some(0));
        assert_eq!(cache.get_many(&[1]), [Some(1)]);
        cache.insert(2, 22).unwrap();
        assert!(cache.peek(&3).is_some() && cache.contains_key(&3));
        assert_eq!(cache.entry_info(&3).unwrap().expires_in, Some(Duration::ZERO));
        assert_eq!((cache.iter().count(), cache.keys().count()), (4, 4));
        assert_eq!(cache.retain(|_, _| true), 0);
        clock.advance(TICK);
        assert!(cache.peek(&3).is_none() && !cache.contains_key(&3));
        assert_eq!((cache.entry_info(&3), cache.iter().count(), cache.len()), (None, 3, 4));
        // Never served; a get removes it.
        assert_eq!((cache.get(&3), cache.len()), (None, 3));
        assert_eq!(cache.stats().expired_entries, 1);
        clock.advance(MINUTE - TICK);
        assert_eq!(cache.get_many(&[0, 1, 2]), [Some(0), Some(1), Some(22)]);
        clock.advance(MINUTE + TICK);
        assert_eq!(cache.get_many(&[0, 1, 2]), [None, None, None]);
        assert!(cache.is_empty());
        cache.validate();
    });
}

#[test]
fn a_hit_for_which_the_log_has_no_place_is_a_use_all_the_same() {
    let clock = FakeClock::new();
    let builder = builder().eviction(EvictionPolicy::Lru).shards(1);
    let cache = builder.time_to_idle(MINUTE).clock(clock.clone()).build().unwrap();
    cache.insert_many((0..200).map(|key| (key, key)));
    clock.advance(MINUTE);
    let keys: Vec<u64> = (0..200).collect();
    assert!(cache.get_many(&keys).iter().all(Option::is_some));
    clock.advance(MINUTE);
    for key in keys {
        assert_eq!(cache.get(&key), Some(key));
    }
    clock.advance(MINUTE);
    assert_eq!(cache.iter().count(), 200);
}

#[test]
fn a_time_to_idle_and_a_time_to_live_end_a_life_by_whichever_comes_first() {
    let clock = FakeClock::new();
    let builder = builder().time_to_idle(10 * SECOND).time_to_live(MINUTE);
    let builder = builder.time_to_live_jitter(0.5).grace(MINUTE);
    let cache = builder.clock(clock.clone()).build().unwrap();
    cache.insert_many((0..100).map(|key| (key, key)));
    let mut served = Vec::new();
    for _ in 0..7 {
        served.push((0..50).filter(|key| cache.get(key).is_some()).count());
        clock.advance(10 * SECOND);
    }
    // Used all the time, they live from half a minute to a whole one; idle ones ten seconds.
    assert_eq!(served[..4], [50; 4]);
    assert!(served[4] < 50 && served[6] < served[4], "{served:?}");
    assert_eq!(cache.iter().count(), 0);
    // The grace is nothing to idle entries.
    assert!(cache.cleanup_expired() >= 50);
    cache.insert_with_ttl(1, 1, SECOND).unwrap();
    assert_eq!(cache.entry_info(&1).unwrap().expires_in, Some(SECOND));
    cache.insert_with_ttl(1, 1, MINUTE).unwrap();
    assert_eq!(cache.entry_info(&1).unwrap().expires_in, Some(10 * SECOND));
    cache.validate();
}

/// However many have been used in between, and without a look at those that need none.
#[test]
fn a_cleanup_finds_what_has_been_idle_for_twice_the_time() {
    for policy in POLICIES {
        let (clock, told) = (FakeClock::new(), Removals::new());
        let builder = builder().eviction(policy).shards(4).time_to_idle(MINUTE);
        let builder = builder.eviction_listener(told.listener()).clock(clock.clone());
        let cache = builder.build().unwrap();
        cache.insert_many((0..2000).map(|key| (key, key)));
        clock.advance(SECOND);
        // All used a second after they were written: a cleanup after a minute finds none idle, and
        // puts them in front again.
        (0..2000).for_each(|key| assert!(cache.get(&key).is_some()));
        clock.advance(MINUTE);
        assert_eq!(cache.cleanup_expired(), 0);
        clock.advance(SECOND);
        (0..1000).for_each(|key| assert!(cache.get(&key).is_none()));
        assert_eq!((cache.len(), told.take().len()), (1000, 1000));
        clock.advance(MINUTE - SECOND);
        assert!(cache.cleanup_expired() <= 1000);
        clock.advance(TICK);
        cache.cleanup_expired();
        assert!(cache.is_empty());
        assert!(told.take().iter().all(|&(.., cause)| cause == RemovalCause::Expired));
        cache.validate();
    }
}

#[test]
fn idle_entries_make_room_before_those_in_use() {
    everywhere(&[1], |policy, pressure, shards| {
        let clock = FakeClock::new();
        let builder = ShardedCache::<u64, u64>::builder().max_entries(100).shards(shards);
        let builder = builder.eviction(policy).memory_pressure(pressure).time_to_idle(MINUTE);
        let cache = builder.clock(clock.clone()).build().unwrap();
        cache.insert_many((0..100).map(|key| (key, key)));
        clock.advance(MINUTE);
        (0..50).for_each(|key| assert!(cache.get(&key).is_some()));
        clock.advance(TICK);
        cache.insert_many((100..150).map(|key| (key, key)));
        let stats = cache.stats();
        assert_eq!((stats.evictions, stats.expired_entries), (0, 50));
        assert!((0..50).chain(100..150).all(|key| cache.contains_key(&key)));
    });
}

#[test]
fn a_time_to_idle_of_zero_or_of_more_than_292_years_is_refused() {
    let refused = |tti| builder().time_to_idle(tti).build().unwrap_err();
    let none = refused(Duration::ZERO);
    assert!(none.is_configuration(), "{none}");
    let endless = refused(300 * YEAR);
    assert!(endless.is_invalid_ttl(), "{endless}");
    assert!(endless.to_string().contains("time-to-idle of 9460800000s"), "{endless}");
    let cache = builder().time_to_idle(292 * YEAR).build().unwrap();
    cache.insert(1, 1).unwrap();
    assert_eq!(cache.get(&1), Some(1));
}

#[test]
fn jitter_spreads_lives_evenly_between_its_bounds() {
    for fraction in [0.1, 0.5, 1.0] {
        let clock = FakeClock::new();
        let builder = builder().time_to_live(1000 * SECOND).time_to_live_jitter(fraction);
        let cache = builder.clock(clock.clone()).build().unwrap();
        let life = |key| cache.entry_info(&key).unwrap().expires_in.unwrap();
        cache.insert_many((0..4000).map(|key| (key, key)));
        let lives: Vec<Duration> = (0..4000).map(life).collect();
        let shortest = 1000.0 * (1.0 - fraction);
        let part = |life: &Duration| (life.as_secs_f64() - shortest) / (1000.0 * fraction);
        assert!(lives.iter().all(|life| (0.0..=1.0).contains(&part(life))));
        assert_eq!(lives.iter().collect::<BTreeSet<_>>().len(), 16);
        for quarter in 0..4 {
            let here = |part: f64| {
                part * 4.0 - 1e-6 > quarter.into() && part * 4.0 - 1e-6 <= f64::from(quarter) + 1.0
            };
            let count = lives.iter().filter(|life| here(part(life))).count();
            assert!((800..1200).contains(&count), "{count} in quarter {quarter} of {fraction}");
        }
        // The same for a key at every insert; its own time-to-live is exact.
        clock.advance(SECOND);
        cache.insert_many((0..100).map(|key| (key, key)));
        assert!((0..100).map(life).eq(lives[..100].iter().copied()));
        cache.insert_with_ttl(1, 1, MINUTE).unwrap();
        assert_eq!(life(1), MINUTE);
        // Served through its life, found by a cleanup after it, and by no one before.
        cache.validate();
        let mut expired = cache.stats().expired_entries;
        for at in (0..1000).step_by(50) {
            clock.set(Duration::from_secs(2000 - 1 + at) - 999 * SECOND);
            cache.cleanup_expired();
            let alive = cache.iter().count();
            assert_eq!(alive, cache.len(), "a cleanup leaves nothing expired");
            assert!(cache.stats().expired_entries >= expired);
            expired = cache.stats().expired_entries;
        }
        clock.set(Duration::from_secs(2002));
        cache.cleanup_expired();
        assert!(cache.is_empty());
    }
}

#[test]
fn a_jitter_that_is_no_fraction_is_refused_by_name() {
    for fraction in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
        let builder = builder().time_to_live(MINUTE).time_to_live_jitter(fraction);
        let refused = builder.build().unwrap_err();
        assert!(refused.is_configuration());
        assert!(refused.to_string().contains(&format!("jitter of {fraction} ")), "{refused}");
    }
}

/// Expired at once is not a life to be spread; the shortest life is one.
#[test]
fn jitter_makes_no_life_zero_and_zero_no_life() {
    let clock = FakeClock::new();
    let build = |ttl| {
        let builder = builder().time_to_live(ttl).time_to_live_jitter(1.0);
        builder.clock(clock.clone()).build().unwrap()
    };
    let (none, shortest) = (build(Duration::ZERO), build(TICK));
    for key in 0..100 {
        none.insert(key, key).unwrap();
        shortest.insert(key, key).unwrap();
        assert_eq!((none.get(&key), shortest.get(&key)), (None, Some(key)));
    }
}

#[test]
fn a_changed_life_begins_when_it_is_changed_and_is_no_use() {
    everywhere(&[1, 4], |policy, pressure, shards| {
        for jitter in [0.0, 0.5] {
            let clock = FakeClock::new();
            let cache = ShardedCache::<u64, u64>::builder()
                .max_entries(100)
                .max_weight(1000)
                .weigher(|_: &u64, _: &u64| 1)
                .time_to_live(100 * SECOND)
                .time_to_live_jitter(jitter)
                .eviction(policy)
                .memory_pressure(pressure)
                .shards(shards)
                .clock(clock.clone())
                .build()
                .unwrap();
            for key in 0..10 {
                cache.insert(key, key).unwrap();
            }
            cache.insert_with_ttl(10, 10, 5 * SECOND).unwrap();
            let written = cache.entry_info(&0).unwrap().written_at;
            clock.advance(4 * SECOND);
            let before = cache.stats();
            assert!(cache.set_ttl(&0, 200 * SECOND).unwrap());
            assert!(cache.set_ttl(&1, SECOND).unwrap());
            assert!(cache.set_ttl(&10, 20 * SECOND).unwrap());
            assert!(cache.set_ttl(&2, Duration::ZERO).unwrap());
            assert!(!cache.set_ttl(&2, SECOND).unwrap(), "it is over");
            assert!(!cache.set_ttl(&11, SECOND).unwrap(), "there is none");
            assert!(cache.set_ttl(&3, Duration::MAX).unwrap_err().is_invalid_ttl());
            assert_eq!((cache.stats(), cache.len()), (before, 11));
            let info = cache.entry_info(&0).unwrap();
            assert_eq!((info.written_at, info.expires_in), (written, Some(200 * SECOND)));
            cache.validate();
            // An age as large as the life is served still.
            clock.advance(SECOND);
            assert_eq!(
                (cache.peek(&1), cache.peek(&2), cache.peek(&10)),
                (Some(1), None, Some(10))
            );
            clock.advance(Duration::from_nanos(1));
            assert_eq!((cache.peek(&1), cache.cleanup_expired()), (None, 2));
            clock.advance(19 * SECOND);
            assert_eq!((cache.get(&10), cache.cleanup_expired()), (None, 0));
            clock.advance(100 * SECOND);
            assert_eq!(cache.cleanup_expired(), 7);
            assert_eq!((cache.get(&0), cache.len()), (Some(0), 1));
            // A write brings the life of the cache back.
            cache.insert(0, 1).unwrap();
            clock.advance(101 * SECOND);
            assert_eq!((cache.get(&0), cache.len()), (None, 0));
            cache.validate();
        }
    });
}

#[test]
fn a_changed_life_moves_nothing_in_the_order_of_eviction_and_no_idle_time() {
    let clock = FakeClock::new();
    let cache = ShardedCache::<u64, u64>::builder()
        .max_entries(3)
        .eviction(EvictionPolicy::Lru)
        .time_to_idle(10 * SECOND)
        .clock(clock.clone())
        .build()
        .unwrap();
    (0..3).for_each(|key| cache.insert(key, key).unwrap());
    assert!(cache.set_ttl(&0, 100 * SECOND).unwrap());
    cache.insert(3, 3).unwrap();
    assert_eq!((cache.peek(&0), cache.peek(&1)), (None, Some(1)), "the least recently used left");
    clock.advance(6 * SECOND);
    assert!(cache.set_ttl(&1, 100 * SECOND).unwrap());
    clock.advance(6 * SECOND);
    assert_eq!((cache.get(&1), cache.set_ttl(&1, SECOND).unwrap()), (None, false), "idle");
    cache.validate();

    // Without any life before, reads look at the clock from then on.
    let cache = ShardedCache::<u64, u64>::builder().max_entries(3).clock(clock.clone());
    let cache = cache.build().unwrap();
    cache.insert(1, 1).unwrap();
    assert_eq!(cache.get(&1), Some(1));
    assert!(cache.set_ttl(&1, SECOND).unwrap());
    clock.advance(2 * SECOND);
    assert_eq!(cache.get(&1), None);
    cache.validate();
}

/// With clocks that begin late, too: no sum of what is allowed means for ever, or at once.
#[test]
fn no_sum_of_lives_means_for_ever() {
    for started in [Duration::ZERO, 300 * YEAR, 580 * YEAR, 10_000 * YEAR] {
        for (ttl, grace) in [(60 * SECOND, 0), (60 * SECOND, 291), (290 * YEAR, 1), (YEAR, 290)] {
            let clock = FakeClock::new();
            clock.set(started);
            let grace = grace * YEAR;
            let cache = ShardedCache::<u64, u64>::builder()
                .max_entries(10)
                .time_to_live(ttl)
                .grace(grace)
                .clock(clock.clone())
                .build()
                .unwrap();
            cache.insert(1, 1).unwrap();
            cache.insert_with_ttl(2, 2, ttl).unwrap();
            clock.advance(ttl);
            assert_eq!((cache.get(&1), cache.get(&2)), (Some(1), Some(2)), "{started:?}, {ttl:?}");
            clock.advance(SECOND);
            assert_eq!((cache.get(&1), cache.get(&2)), (None, None), "{started:?}, {ttl:?}");
            clock.advance(grace);
            cache.cleanup_expired();
            assert_eq!(cache.len(), 0, "{started:?}, {ttl:?}");
        }
    }
}

#[test]
fn lives_that_no_clock_can_add_are_refused_when_the_cache_is_built() {
    let builder = || EmbeddingCache::builder().max_entries(10);
    for beyond in [Duration::MAX, 292 * YEAR, 400 * YEAR] {
        for refused in [
            builder().time_to_live(YEAR).stale_if_error(beyond).build(),
            builder().time_to_live(YEAR).stale_while_revalidate(beyond).build(),
            builder().time_to_live(beyond).stale_if_error(YEAR).build(),
        ] {
            let error = refused.unwrap_err();
            assert!(error.is_invalid_ttl(), "{error}");
            assert!(!error.to_string().is_empty());
        }
    }
    assert!(builder().stale_if_error(Duration::MAX).build().unwrap_err().is_invalid_ttl());
    let cache = builder().time_to_live(SECOND).stale_if_error(200 * YEAR).build().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let put = cache.put_with_ttl(crate::support::key(1), [0.5], 100 * YEAR);
    assert!(runtime.block_on(put).unwrap_err().is_invalid_ttl());
}
