//! What is kept, for how long, and what makes room.

use std::time::Duration;

use embedding_cache::tier::{Lookup, Scope, SecondTier, Tier};
use embedding_cache_disk::DiskTier;

use crate::support::{
    Model, entries, flush, found, key, open, process, process_with, store, tier_key, value, vector,
};

#[tokio::test]
async fn the_next_run_embeds_nothing_that_this_one_has() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (Model::default(), Model::default());
    let cache = process(directory.path());
    first.embed(&cache, 0..1000).await;
    flush(&cache).await;
    drop(cache);
    released(directory.path()).await;
    let cache = process(directory.path());
    second.embed(&cache, 0..1000).await;
    assert_eq!((first.asked(), second.asked()), (1000, 0));
    let tier = cache.stats().tier;
    assert_eq!((tier.hits, tier.misses), (1000, 0));
}

/// A cache that is dropped ends its tasks, and the last of them gives the directory up.
pub(crate) async fn released(directory: &std::path::Path) {
    for _ in 0..500 {
        match DiskTier::builder(directory).max_bytes(512 << 20).open() {
            Ok(_) => return,
            Err(error) => assert!(error.is_locked(), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the directory is still locked");
}

#[tokio::test]
async fn lives_are_kept_over_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let tier = open(directory.path());
    let results = tier.set_many(&entries(0..10, 100, Some(Duration::from_millis(400)))).await;
    assert!(results.iter().all(Result::is_ok));
    tier.set_many(&entries(10..20, 100, Some(Duration::from_secs(3600)))).await;
    tier.set_many(&entries(20..30, 100, None)).await;
    drop(tier);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let tier = open(directory.path());
    assert_eq!(found(&tier, 0..10, 100).await, 0);
    assert_eq!(found(&tier, 10..30, 100).await, 20);
}

#[tokio::test]
async fn values_of_any_length_come_back_and_the_last_one_counts() {
    let directory = tempfile::tempdir().unwrap();
    let tier = open(directory.path());
    for round in 0..2 {
        for (number, length) in [0, 1, 8, 255, 256, 257, 4096, 262_192].into_iter().enumerate() {
            let mut entry = entries(number..number + 1, length, None);
            entry[0].value.iter_mut().for_each(|byte| *byte = byte.wrapping_add(round));
            let key = entry[0].key;
            assert!(tier.set_many(&entry).await[0].is_ok());
            match &tier.get_many(&[key]).await[..] {
                [Lookup::Found(bytes)] => assert_eq!(*bytes, entry[0].value),
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(matches!(tier.get_many(&[tier_key(99)]).await[..], [Lookup::Absent]));
}

/// Three generations' worth is written while the first thousand is read again and again: that stays,
/// the rest of the oldest goes.
#[tokio::test]
async fn what_is_used_is_carried_over_and_what_is_not_makes_room() {
    const LENGTH: usize = 3000;
    let directory = tempfile::tempdir().unwrap();
    let builder =
        || DiskTier::builder(directory.path()).max_bytes(512 << 20).generation_bytes(8 << 20);
    let tier = builder().open().unwrap();
    // One generation holds 2,600 of these.
    for from in (0..10_000).step_by(1000) {
        assert_eq!(store(&tier, from..from + 1000, LENGTH).await, 0);
        for _ in 0..2 {
            assert_eq!(found(&tier, 0..256, LENGTH).await, 256, "at {from}");
            // Copied behind the answer.
            tier.sync().await.unwrap();
        }
    }
    assert_eq!(found(&tier, 9000..10_000, LENGTH).await, 1000);
    assert_eq!(found(&tier, 256..4000, LENGTH).await, 0);
    // Generations are known again.
    drop(tier);
    let tier = builder().open().unwrap();
    assert_eq!(found(&tier, 9000..10_000, LENGTH).await, 1000);
    assert_eq!(found(&tier, 0..256, LENGTH).await, 256);
}

/// A copy from the older generation never hides what was written since.
#[tokio::test]
async fn the_newer_value_wins_over_a_copy_of_the_older() {
    let directory = tempfile::tempdir().unwrap();
    let tier = DiskTier::builder(directory.path())
        .max_bytes(512 << 20)
        .generation_bytes(1 << 20)
        .open()
        .unwrap();
    for round in 0..20_usize {
        let mut entry = entries(0..1, 100, None);
        entry[0].value = value(round, 100);
        assert!(tier.set_many(&entry).await[0].is_ok());
        // The generation is over, and its entry is read in the one before.
        assert_eq!(store(&tier, 1000 * (round + 1)..1000 * (round + 1) + 300, 3000).await, 0);
        let key = entry[0].key;
        for _ in 0..2 {
            let [Lookup::Found(bytes)] = &tier.get_many(&[key]).await[..] else {
                panic!("it is gone in round {round}")
            };
            assert_eq!(*bytes, value(round, 100));
            tier.sync().await.unwrap();
        }
    }
}

#[tokio::test]
async fn an_invalidation_holds_over_restarts() {
    let directory = tempfile::tempdir().unwrap();
    let model = Model::default();
    let cache = process(directory.path());
    model.embed(&cache, 0..100).await;
    flush(&cache).await;
    cache.invalidate_model_through("e5-base").await.unwrap();
    drop(cache);
    released(directory.path()).await;
    let cache = process(directory.path());
    assert!(cache.get_through(&key(1)).await.is_none());
    model.embed(&cache, 0..100).await;
    assert_eq!(model.asked(), 200);
    flush(&cache).await;
    drop(cache);
    released(directory.path()).await;
    // What was written after it is kept.
    let cache = process(directory.path());
    assert_eq!(cache.get_through(&key(1)).await.unwrap(), vector(1));
}

#[tokio::test]
async fn lost_nonces_give_misses_and_never_old_vectors() {
    let directory = tempfile::tempdir().unwrap();
    let model = Model::default();
    let cache = process(directory.path());
    model.embed(&cache, 0..100).await;
    flush(&cache).await;
    drop(cache);
    released(directory.path()).await;
    let tier = open(directory.path());
    let before = tier.namespace().await.unwrap();
    drop(tier);
    std::fs::remove_file(directory.path().join("nonces")).unwrap();
    let tier = open(directory.path());
    assert_ne!(tier.namespace().await.unwrap(), before);
    tier.invalidate(Scope::All).await.unwrap();
    let cache = process_with(SecondTier::new(tier));
    assert!(cache.get_through(&key(1)).await.is_none());
}
