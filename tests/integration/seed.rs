//! The test that came with the sketch this crate grew from, with only its `use` line changed, and
//! the same calls with literals that have no type of their own.

// Kept as it came: its style is part of what must compile.
#[allow(clippy::uninlined_format_args)]
mod tests {
    use embedding_cache::{CacheKey, EmbeddingCache};
    use std::sync::Arc;

    #[tokio::test]
    async fn test_concurrent_access() {
        let cache = Arc::new(EmbeddingCache::new(100, 3600, 100));
        let mut handles = vec![];

        // Spawn multiple concurrent operations
        for i in 0..10 {
            let cache_clone = Arc::clone(&cache);
            let handle = tokio::spawn(async move {
                let key = CacheKey {
                    content_hash: format!("test_{}", i),
                    model_version: "v1".to_string(),
                    chunk_id: None,
                };

                let embedding = vec![i as f32; 768];

                // Concurrent put and get operations
                cache_clone.put(key.clone(), embedding).await.unwrap();
                let result = cache_clone.get(&key).await;
                assert!(result.is_some());
            });

            handles.push(handle);
        }

        // Wait for all operations to complete
        for handle in handles {
            handle.await.unwrap();
        }

        assert_eq!(cache.size().await, 10);
    }
}

use embedding_cache::{CacheError, CacheKey, EmbeddingCache, EmbeddingVector};

fn key(text: &str) -> CacheKey {
    CacheKey {
        content_hash: text.to_string(),
        model_version: "v1".to_string(),
        chunk_id: Some("0".to_string()),
    }
}

#[tokio::test]
async fn untyped_literals_go_in_and_compare_both_ways_round() {
    let cache = EmbeddingCache::new(100, 3600, 100);
    cache.put(key("a"), vec![0.1, 0.2]).await.unwrap();

    let got = cache.get(&key("a")).await.unwrap();
    assert_eq!(got, vec![0.1, 0.2]);
    assert_eq!(vec![0.1, 0.2], got);
    assert_eq!(got, [0.1, 0.2]);
    assert_eq!([0.1, 0.2], got);
    assert_ne!(got, vec![0.1, 0.25]);
    assert_ne!(vec![0.1], got);
    assert_eq!(got[1], 0.2);
    assert_eq!(got.len(), 2);
    assert_eq!(got.iter().sum::<f32>(), 0.1 + 0.2);
}

#[tokio::test]
async fn every_documented_operation_has_the_documented_shape() -> Result<(), CacheError> {
    let cache = EmbeddingCache::new(100, 3600, 100);
    let handle = cache.clone();

    cache.put_with_timeout(key("a"), vec![0.1, 0.2], 100).await?;
    let got: Option<EmbeddingVector> = handle.get_with_timeout(&key("a"), 100).await?;
    assert_eq!(got.unwrap(), vec![0.1, 0.2], "a clone is another handle to the same cache");
    assert_eq!(handle.get_with_timeout(&key("b"), 100).await?, None);
    let removed: usize = handle.cleanup_expired_safe().await;
    assert_eq!(removed, 0);

    let embedding: Vec<f32> = vec![3.0; 4];
    cache.put(key("b"), embedding).await?;
    assert_eq!(cache.remove(&key("b")).await.unwrap(), vec![3.0; 4]);
    assert_eq!(cache.remove(&key("b")).await, None);
    assert_eq!(cache.size().await, 1);

    let stats = cache.stats();
    let counts: [u64; 4] = [stats.hits, stats.misses, stats.evictions, stats.expired_entries];
    assert_eq!(counts, [1, 1, 0, 0]);
    assert_eq!(stats.total_requests(), 2);
    assert_eq!(stats.hit_rate(), 0.5);
    let info = cache.info();
    assert_eq!((info.size, info.max_size), (1, 100));
    assert_eq!(info.memory_limit_bytes, 100 << 20);

    cache.clear().await;
    assert_eq!(cache.size().await, 0);
    assert_eq!(cache.info().memory_bytes, 0);
    Ok(())
}

/// What callers have at hand: a vector of any origin is taken, and one that was got goes back in
/// without a copy.
#[tokio::test]
async fn vectors_of_every_origin_are_taken() {
    let cache = EmbeddingCache::new(100, 3600, 100);
    let shared: std::sync::Arc<[f32]> = vec![0.5, 0.25].into();
    cache.put(key("vec"), vec![0.5, 0.25]).await.unwrap();
    cache.put(key("slice"), &[0.5, 0.25][..]).await.unwrap();
    cache.put(key("array"), [0.5, 0.25]).await.unwrap();
    cache.put(key("shared"), shared).await.unwrap();
    cache.put(key("boxed"), vec![0.5, 0.25].into_boxed_slice()).await.unwrap();
    let collected: EmbeddingVector = [0.5, 0.25].into_iter().collect();
    cache.put(key("collected"), collected).await.unwrap();
    for origin in ["vec", "slice", "array", "shared", "boxed", "collected"] {
        assert_eq!(cache.get(&key(origin)).await.unwrap(), [0.5, 0.25], "{origin}");
    }

    let got = cache.get(&key("vec")).await.unwrap();
    cache.put(key("again"), got.clone()).await.unwrap();
    assert!(cache.get(&key("again")).await.unwrap().ptr_eq(&got));
}
