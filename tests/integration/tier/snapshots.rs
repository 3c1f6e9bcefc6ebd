//! Snapshots of a cache with a second tier: only what was not invalidated since.

use embedding_cache::{CacheKey, EmbeddingCache};

use super::fake::{Fake, Mode};
use super::{flush, key, process, vector};

fn saved(cache: &EmbeddingCache) -> Vec<u8> {
    let mut file = Vec::new();
    assert!(cache.snapshot().save_to(&mut file).unwrap().complete);
    file
}

async fn load(cache: &EmbeddingCache, file: &[u8]) -> (u64, u64) {
    let (cache, file) = (cache.clone(), file.to_vec());
    let load = move || cache.snapshot().load_from(&file[..]).unwrap();
    let report = tokio::task::spawn_blocking(load).await.unwrap();
    (report.entries, report.invalidated)
}

#[tokio::test]
async fn what_was_invalidated_since_it_was_saved_does_not_come_back() {
    let fake = Fake::default();
    let first = process(&fake);
    let other = CacheKey::for_model("other").text("a text");
    first.put(key(1), vector(1)).await.unwrap();
    first.put(other.clone(), vector(2)).await.unwrap();
    flush(&first).await;
    let file = saved(&first);
    assert_eq!(load(&process(&fake), &file).await, (2, 0));
    first.invalidate_model_through("e5-base").await.unwrap();
    let restarted = process(&fake);
    assert_eq!(load(&restarted, &file).await, (1, 1));
    assert!(restarted.get(&key(1)).await.is_none() && restarted.get(&other).await.is_some());
    fake.lose_nonces();
    assert_eq!(load(&process(&fake), &file).await, (0, 2), "nobody knows what was invalidated");
}

#[tokio::test]
async fn a_snapshot_without_nonces_or_a_tier_that_cannot_be_asked_loads_nothing() {
    let fake = Fake::default();
    let alone = EmbeddingCache::new(100, 3600, 10);
    alone.put(key(1), vector(1)).await.unwrap();
    assert_eq!(load(&process(&fake), &saved(&alone)).await, (0, 1));

    let first = process(&fake);
    first.put(key(1), vector(1)).await.unwrap();
    flush(&first).await;
    let file = saved(&first);
    assert_eq!(load(&alone, &file).await.1, 0, "without a tier it does not matter");
    fake.set(Mode::Down);
    assert_eq!(load(&process(&fake), &file).await, (0, 1));
}
