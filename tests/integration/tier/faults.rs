//! The faults that caches with two tiers are known for, each by its name.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use embedding_cache::EmbeddingCache;
use embedding_cache::tier::SecondTier;

use super::fake::{Fake, Mode};
use super::{Model, flush, key, process, process_with, vector};

/// Requests, one after the other, each verified; the slowest.
async fn slowest(
    cache: &EmbeddingCache,
    model: &Model,
    requests: std::ops::Range<usize>,
) -> Duration {
    let mut slowest = Duration::ZERO;
    for number in requests {
        let started = Instant::now();
        model.embed(cache, 10 * number..10 * number + 10).await;
        slowest = slowest.max(started.elapsed());
    }
    slowest
}

/// Far more than the soft deadline of 10 ms, as the machine has other things to do; far less than the
/// hard time-out, and than what stores and clients are known to take.
const SOON: Duration = Duration::from_millis(150);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_outs_are_kept() {
    let fake = Fake::default();
    fake.set(Mode::Slow(Duration::from_secs(9)));
    let (cache, model) = (process(&fake), Model::default());
    assert!(slowest(&cache, &model, 0..40).await < SOON);
    assert_eq!(model.asked(), 400, "no request failed");
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(cache.stats().tier.failures_timeout > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_down_stalls_nobody() {
    let fake = Fake::default();
    fake.set(Mode::Down);
    let (cache, model) = (process(&fake), Model::default());
    assert!(slowest(&cache, &model, 0..100).await < SOON);
    let stats = cache.stats().tier;
    assert!(stats.failures_connection >= 3 && stats.skipped_open > 0, "{stats:?}");
}

#[tokio::test]
async fn a_breaker_opens_though_errors_come_key_by_key() {
    let fake = Fake::default();
    let (cache, model) = (process(&fake), Model::default());
    model.embed(&cache, 0..10).await;
    fake.set(Mode::FailsKeyByKey);
    for number in 1..20 {
        model.embed(&cache, 10 * number..10 * number + 10).await;
    }
    let stats = cache.stats().tier;
    assert_eq!((stats.opened, stats.failures_other), (1, 3), "{stats:?}");
    let reads = fake.0.reads.load(Relaxed);
    model.embed(&cache, 1000..1010).await;
    assert_eq!(fake.0.reads.load(Relaxed), reads, "it is left alone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_hangs_nobody_and_its_connections_are_made_anew() {
    let fake = Fake::default();
    let (cache, model) = (process(&fake), Model::default());
    model.embed(&cache, 0..10).await;
    fake.set(Mode::Frozen);
    let tasks: Vec<_> = (1..50)
        .map(|task| {
            let (cache, model) = (cache.clone(), model.clone());
            tokio::spawn(async move { slowest(&cache, &model, task * 10..task * 10 + 10).await })
        })
        .collect();
    for task in tasks {
        let slowest = task.await.unwrap();
        // Fifty tasks share two threads, which may be slow. Clients are known to hang for 16 s.
        assert!(slowest < 10 * SOON, "{slowest:?}");
    }
    let stats = cache.stats().tier;
    assert!(stats.opened >= 1 && fake.0.resets.load(Relaxed) >= 1, "{stats:?}");
}

/// After the breaker has opened, the tier costs a load and a look at the clock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_breaker_costs_next_to_nothing() {
    let fake = Fake::default();
    fake.set(Mode::Down);
    let cache = process(&fake);
    while cache.stats().tier.opened == 0 {
        cache.get_through(&key(0)).await;
    }
    let mut times: Vec<Duration> = (0..200)
        .map(|_| {
            let started = Instant::now();
            let found = cache.get_blocking(&key(1));
            assert!(found.is_none());
            started.elapsed()
        })
        .collect();
    let mut through = Vec::new();
    for _ in 0..200 {
        let started = Instant::now();
        assert!(cache.get_through(&key(1)).await.is_none());
        through.push(started.elapsed());
    }
    times.sort_unstable();
    through.sort_unstable();
    let more = through[100].saturating_sub(times[100]);
    // Unoptimised, a key's SHA-256 alone takes some microseconds.
    let limit = if cfg!(debug_assertions) { 200 } else { 10 };
    assert!(more < Duration::from_micros(limit), "{more:?}");
}

/// The rest of a life goes into the first tier, not a whole life anew: so that it is not lived twice.
#[tokio::test]
async fn a_life_is_not_lived_twice() {
    let fake = Fake::default();
    let hour = Duration::from_secs(3600);
    let first = process(&fake);
    first.put_with_ttl(key(1), vector(1), 2 * hour).await.unwrap();
    first.put_with_ttl(key(2), vector(2), Duration::from_millis(40)).await.unwrap();
    first.put(key(3), vector(3)).await.unwrap();
    flush(&first).await;
    let lives: Vec<Option<Duration>> =
        fake.0.values.lock().unwrap().values().map(|(_, life)| *life).collect();
    assert_eq!(lives.iter().filter(|life| life.is_none()).count(), 1);
    assert!(lives.iter().flatten().all(|life| *life <= 2 * hour));

    let second = EmbeddingCache::builder()
        .max_entries(100)
        .time_to_live(3 * hour)
        .tier(fake.clone())
        .build()
        .unwrap();
    let third =
        EmbeddingCache::builder().max_entries(100).time_to_live(hour).tier(fake).build().unwrap();
    for cache in [&second, &third] {
        assert_eq!(cache.get_through(&key(1)).await.unwrap(), vector(1));
        assert_eq!(cache.get_through(&key(3)).await.unwrap(), vector(3));
    }
    let life = |cache: &EmbeddingCache, number| {
        cache.export().find(|(found, ..)| *found == key(number)).unwrap().2.unwrap()
    };
    assert!(life(&second, 1) <= 2 * hour && life(&third, 1) <= hour, "the smaller of both");
    assert!(
        life(&second, 3) > 2 * hour,
        "what lives for ever there has the life of the cache here"
    );

    tokio::time::sleep(Duration::from_millis(60)).await;
    assert!(second.get_through(&key(2)).await.is_none());
    assert_eq!(second.stats().tier.rejected_expired, 1);
}

/// A store that counted its generations would begin at 0 again, and show what was invalidated.
#[tokio::test]
async fn nothing_invalidated_comes_back_when_the_store_loses_its_nonces() {
    let fake = Fake::default();
    let first = process(&fake);
    for number in 0..5 {
        first.put(key(number), vector(number)).await.unwrap();
    }
    flush(&first).await;
    first.invalidate_model_through("e5-base").await.unwrap();
    for _ in 0..4 {
        fake.lose_nonces();
        let late = process(&fake);
        for number in 0..5 {
            assert!(late.get_through(&key(number)).await.is_none(), "resurrected");
        }
    }
    assert_eq!(fake.len(), 5, "the old values are still there");
}

#[tokio::test]
async fn writes_do_not_vanish_at_the_end_of_a_process() {
    let fake = Fake::default();
    fake.set(Mode::Slow(Duration::from_millis(20)));
    let cache = process(&fake);
    for number in 0..500 {
        cache.put(key(number), vector(number)).await.unwrap();
    }
    assert!(cache.tier_flush(Duration::from_millis(1)).await > 0, "what is left is told");
    assert_eq!(cache.tier_flush(Duration::from_secs(20)).await, 0);
    assert_eq!((fake.len(), cache.stats().tier.writes), (500, 500));
}

/// Also those that nobody waited for before the cache was dropped.
#[tokio::test]
async fn writes_go_on_when_the_cache_is_dropped() {
    let fake = Fake::default();
    let cache = process(&fake);
    cache.get_through(&key(0)).await;
    fake.set(Mode::Slow(Duration::from_millis(5)));
    for number in 0..300 {
        cache.put(key(number), vector(number)).await.unwrap();
    }
    drop(cache);
    for _ in 0..2000 {
        if fake.len() == 300 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{} of 300 are written", fake.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recovery_takes_no_half_minute() {
    let fake = Fake::default();
    let (cache, model) = (process(&fake), Model::default());
    model.embed(&cache, 0..10).await;
    flush(&cache).await;
    fake.set(Mode::Frozen);
    let mut number = 100;
    while cache.stats().tier.opened == 0 {
        number += 1;
        cache.get_through(&key(number)).await;
    }
    fake.set(Mode::Well);
    let recovered = Instant::now();
    let other = process(&fake);
    other.put(key(5000), vector(5000)).await.unwrap();
    flush(&other).await;
    while cache.get_through(&key(5000)).await.is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(recovered.elapsed() < Duration::from_secs(7), "the first pause is 1.25 s at most");
    }
    assert_eq!(cache.stats().tier.closed, 1);
}

/// One part of a store that is frozen is left alone; the others go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_that_fails_fails_alone() {
    let fake = Fake::default();
    fake.divide(4);
    let first = process(&fake);
    for number in 0..400 {
        first.put(key(number), vector(number)).await.unwrap();
    }
    flush(&first).await;
    fake.set_bucket(2, Mode::Frozen);
    let second = SecondTier::new(fake.clone()).soft_deadline(Duration::from_millis(100));
    let cache = process_with(second);
    let mut found = 0;
    for number in 0..400 {
        if let Some(vector_found) = cache.get_through(&key(number)).await {
            assert_eq!(vector_found, vector(number));
            found += 1;
        }
    }
    assert!((270..=330).contains(&found), "three of four parts answer: {found} of 400");
    assert_eq!(cache.stats().tier.opened, 1);
}

#[tokio::test]
async fn a_tier_that_panics_or_answers_for_other_keys_is_one_that_fails() {
    for mode in [Mode::Panics, Mode::Short] {
        let fake = Fake::default();
        let (cache, model) = (process(&fake), Model::default());
        model.embed(&cache, 0..5).await;
        fake.set(mode);
        for number in 1..10 {
            model.embed(&cache, 5 * number..5 * number + 5).await;
        }
        let stats = cache.stats().tier;
        assert!(stats.failures_other >= 3 && stats.opened == 1, "{mode:?} {stats:?}");
        assert_eq!(model.asked(), 50);
    }
}

#[cfg(feature = "tracing")]
mod lines {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;

    /// Counts what is said about the second tier.
    struct Counting(Arc<AtomicUsize>);

    impl tracing::Subscriber for Counting {
        fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
            *metadata.level() <= tracing::Level::INFO
                && metadata.target().starts_with("embedding_cache::embedding::tier")
        }
        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }
        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
        fn event(&self, _: &tracing::Event<'_>) {
            self.0.fetch_add(1, Relaxed);
        }
        fn enter(&self, _: &tracing::span::Id) {}
        fn exit(&self, _: &tracing::span::Id) {}
    }

    #[tokio::test]
    async fn failed_calls_are_counted_and_changes_of_state_are_logged() {
        let lines = Arc::new(AtomicUsize::new(0));
        let _here = tracing::subscriber::set_default(Counting(Arc::clone(&lines)));
        let fake = Fake::default();
        let (cache, model) = (process(&fake), Model::default());
        model.embed(&cache, 0..10).await;
        fake.set(Mode::Down);
        for number in 1..100 {
            model.embed(&cache, 10 * number..10 * number + 10).await;
        }
        assert_eq!(lines.load(Relaxed), 1, "one line for a hundred failed calls");
        fake.set(Mode::Well);
        while cache.stats().tier.closed == 0 {
            cache.get_through(&key(9999)).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(lines.load(Relaxed), 2);
    }
}
