//! How keys are asked for.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use embedding_cache::EmbeddingCache;
use embedding_cache::tier::SecondTier;

use super::fake::{Fake, Mode};
use super::{Model, flush, key, keys, process, process_with, vector};

#[tokio::test]
async fn what_one_process_has_embedded_the_next_finds() {
    let fake = Fake::default();
    let model = Model::default();
    let first = process(&fake);
    model.embed(&first, 0..100).await;
    flush(&first).await;
    let second = process(&fake);
    model.embed(&second, 0..100).await;
    assert_eq!(model.asked(), 100, "each once");
    let stats = second.stats();
    assert_eq!((stats.tier.hits, stats.tier.misses, stats.loads), (100, 0, 0));
    // In the first tier by now.
    model.embed(&second, 0..100).await;
    assert_eq!(second.stats().tier.hits, 100);
    // What came from the tier is not written to it.
    flush(&second).await;
    assert_eq!(second.stats().tier.writes, 0);
}

#[tokio::test]
async fn get_stays_in_the_first_tier_and_get_through_does_not() {
    let fake = Fake::default();
    let first = process(&fake);
    first.put(key(1), vector(1)).await.unwrap();
    flush(&first).await;
    let second = process(&fake);
    assert!(second.get(&key(1)).await.is_none());
    assert!(second.get_many(&keys(0..3)).await.iter().all(Option::is_none));
    assert_eq!(fake.0.reads.load(Relaxed), 0);
    assert_eq!(second.get_through(&key(1)).await.unwrap(), vector(1));
    assert_eq!(second.get(&key(1)).await.unwrap(), vector(1));
    assert!(second.get_through(&key(2)).await.is_none());

    let third = process(&fake);
    let mut asked = keys(0..3);
    asked.push(key(1));
    let found = third.get_through_many(&asked).await;
    let places: Vec<bool> = found.iter().map(Option::is_some).collect();
    assert_eq!(places, [false, true, false, true]);
    assert_eq!(third.stats().tier.hits + third.stats().tier.misses, 3, "each distinct key once");
}

#[tokio::test]
async fn without_a_tier_the_same_calls_are_those_of_one() {
    let cache = EmbeddingCache::new(100, 3600, 10);
    cache.put(key(1), vector(1)).await.unwrap();
    assert_eq!(cache.get_through(&key(1)).await.unwrap(), vector(1));
    assert!(cache.get_through(&key(2)).await.is_none());
    assert_eq!(cache.tier_flush(Duration::ZERO).await, 0);
    assert_eq!(cache.invalidate_model_through("e5-base").await.unwrap(), 1);
    assert_eq!(cache.stats().tier, Default::default());
}

#[tokio::test]
async fn keys_asked_for_at_once_are_joined_and_gathered_into_few_batches() {
    let fake = Fake::default();
    fake.set(Mode::Slow(Duration::from_millis(30)));
    let cache = process_with(SecondTier::new(fake.clone()).soft_deadline(Duration::from_secs(5)));
    let tasks: Vec<_> = (0..40)
        .map(|task| {
            let cache = cache.clone();
            // Each key is asked for by two tasks.
            let from = task % 20 * 100;
            tokio::spawn(async move { cache.get_through_many(&keys(from..from + 100)).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(cache.stats().tier.misses, 2000, "each key was asked for once");
    assert!(fake.0.largest_read.load(Relaxed) <= 256);
    assert!(fake.0.most_reads_under_way.load(Relaxed) <= 4);
    let reads = fake.0.reads.load(Relaxed);
    assert!((8..=20).contains(&reads), "{reads} batches for 20 requests' keys");
}

#[tokio::test]
async fn a_late_answer_is_stored_all_the_same() {
    let fake = Fake::default();
    let first = process(&fake);
    first.put(key(1), vector(1)).await.unwrap();
    flush(&first).await;
    fake.set(Mode::Slow(Duration::from_millis(60)));
    let cache = process_with(SecondTier::new(fake.clone()).soft_deadline(Duration::from_millis(5)));
    assert!(cache.get_through(&key(1)).await.is_none());
    assert_eq!(cache.stats().tier.late, 1);
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert_eq!(cache.get(&key(1)).await.unwrap(), vector(1));
}

/// What was put while the tier was asked is newer than what that answers.
#[tokio::test]
async fn an_answer_never_replaces_what_was_put_meanwhile() {
    let fake = Fake::default();
    let first = process(&fake);
    first.put(key(1), vector(1)).await.unwrap();
    flush(&first).await;
    fake.set(Mode::Slow(Duration::from_millis(40)));
    let cache = process_with(SecondTier::new(fake.clone()).soft_deadline(Duration::from_secs(5)));
    let asked = tokio::spawn({
        let cache = cache.clone();
        async move { cache.get_through(&key(1)).await }
    });
    tokio::time::sleep(Duration::from_millis(10)).await;
    cache.put(key(1), vector(7)).await.unwrap();
    assert_eq!(asked.await.unwrap().unwrap(), vector(7));
    assert_eq!(cache.get(&key(1)).await.unwrap(), vector(7));
}

#[tokio::test]
async fn two_processes_that_begin_together_embed_each_text_at_most_twice() {
    let fake = Fake::default();
    let models = [Model::default(), Model::default()];
    let processes = [process(&fake), process(&fake)];
    let mut tasks = Vec::new();
    for (cache, model) in processes.iter().zip(&models) {
        for task in 0..100 {
            let (cache, model) = (cache.clone(), model.clone());
            tasks.push(tokio::spawn(async move {
                for step in 0..20 {
                    let from = (task * 7 + step * 50) % 1000;
                    model.embed(&cache, from..(from + 50).min(1000)).await;
                }
            }));
        }
    }
    for task in tasks {
        task.await.unwrap();
    }
    for model in &models {
        assert!(model.asked() <= 1000, "a process embedded a text twice: {}", model.asked());
    }
    for cache in &processes {
        flush(cache).await;
    }
    let third = Model::default();
    third.embed(&process(&fake), 0..1000).await;
    assert_eq!(third.asked(), 0);
}

#[tokio::test]
async fn values_that_are_not_good_are_misses_each_under_its_reason() {
    let fake = Fake::default();
    let first = process_with(SecondTier::new(fake.clone()).authenticate(b"secret"));
    let model = Model::default();
    model.embed(&first, 0..6).await;
    flush(&first).await;
    {
        let mut values = fake.0.values.lock().unwrap();
        let mut all: Vec<_> = values.keys().copied().collect();
        all.sort_unstable();
        values.get_mut(&all[0]).unwrap().0.truncate(50);
        values.get_mut(&all[1]).unwrap().0[49] ^= 1;
        values.get_mut(&all[2]).unwrap().0[..4].copy_from_slice(b"ECV2");
        values.get_mut(&all[3]).unwrap().0[4] = 7;
        // One under the key of another.
        let other = values[&all[5]].clone();
        values.insert(all[4], other);
    }
    let second = process_with(SecondTier::new(fake.clone()).authenticate(b"secret"));
    model.embed(&second, 0..6).await;
    let stats = second.stats().tier;
    assert_eq!((stats.hits, stats.misses), (1, 5));
    assert_eq!((stats.rejected_length, stats.rejected_checksum, stats.rejected_foreign), (1, 2, 1));
    assert_eq!((stats.rejected_type, model.asked()), (1, 11));

    let stranger = process_with(SecondTier::new(fake.clone()).authenticate(b"another"));
    flush(&second).await;
    model.embed(&stranger, 0..6).await;
    assert_eq!(stranger.stats().tier.rejected_signature, 6);

    flush(&stranger).await;
    let narrow =
        EmbeddingCache::builder().max_entries(100).dimensions(2).tier(fake).build().unwrap();
    assert!(narrow.get_through(&key(1)).await.is_none());
    assert_eq!(narrow.stats().tier.rejected_admission, 1);
}

#[tokio::test]
async fn more_keys_than_may_wait_go_on_without_the_tier() {
    let fake = Fake::default();
    fake.set(Mode::Frozen);
    let second = SecondTier::new(fake.clone())
        .soft_deadline(Duration::from_millis(1))
        .hard_timeout(Duration::from_secs(60));
    let cache = EmbeddingCache::builder().max_bytes(1 << 30).tier(second).build().unwrap();
    for from in 0..10 {
        cache.get_through_many(&keys(from * 2000..(from + 1) * 2000)).await;
    }
    let stats = cache.stats().tier;
    assert!(stats.skipped_full > 0, "{stats:?}");
    assert!(stats.late + stats.skipped_full + stats.skipped_open == 20_000, "{stats:?}");
}

#[test]
fn a_hasher_that_is_set_after_the_tier_is_an_error_and_before_it_is_not() {
    use std::hash::RandomState;
    let builder = || EmbeddingCache::builder().max_entries(10);
    let refused = builder().tier(Fake::default()).hasher(RandomState::new()).build().unwrap_err();
    assert!(refused.is_configuration(), "{refused}");
    assert!(builder().hasher(RandomState::new()).tier(Fake::default()).build().is_ok());
}

#[test]
fn the_tier_outlives_the_runtime_that_it_was_used_in_first() {
    let fake = Fake::default();
    let cache = process(&fake);
    for number in 0..3 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            assert!(cache.get_through(&key(100 + number)).await.is_none());
            cache.put(key(number), vector(number)).await.unwrap();
            flush(&cache).await;
        });
    }
    assert_eq!((fake.len(), cache.stats().tier.misses), (3, 3));
}
