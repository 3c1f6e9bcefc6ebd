//! What a cache is put through where it is watched: every kind of event, once at least.

use std::time::Duration;

use embedding_cache::{CacheKey, EmbeddingCache};

pub(crate) fn key(i: usize) -> CacheKey {
    CacheKey::new(format!("{i:064x}"), "e5-base@1")
}

/// With a paused clock: what sleeps costs no time.
pub(crate) fn run<T>(work: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true).build().unwrap().block_on(work)
}

/// Three calls, one of them failing, of 2, 1 and 1 keys; hits, joins, puts of every outcome,
/// evictions of every cause.
pub(crate) async fn scripted(cache: &EmbeddingCache) {
    let keys = [key(1), key(2)];
    let answers = cache.get_or_embed_many(&keys, |missing| async move {
        missing.keys().iter().map(|_| [1.0, 2.0]).collect::<Vec<_>>()
    });
    assert!(answers.await.iter().all(Result::is_ok));
    assert!(cache.get_or_embed(key(3), async || Err::<Vec<f32>, _>("down")).await.is_err());
    let slow = || async {
        tokio::task::yield_now().await;
        [3.0, 4.0]
    };
    let (led, joined) =
        tokio::join!(cache.get_or_embed(key(3), slow), cache.get_or_embed(key(3), slow));
    assert_eq!(led.unwrap(), joined.unwrap());
    for _ in 0..5 {
        assert!(cache.get(&key(1)).await.is_some());
    }
    assert!(cache.get_or_embed_many(&keys, |_| async { Vec::<[f32; 1]>::new() }).await[1].is_ok());
    cache.put(key(1), [5.0, 6.0]).await.unwrap();
    assert!(cache.put(key(1), [f32::NAN]).await.is_err());
    assert!(cache.remove(&key(1)).await.is_some());
    cache.put_with_ttl(key(4), [1.0, 1.0], Duration::ZERO).await.unwrap();
    assert!(cache.get(&key(4)).await.is_none());
    for i in 5..10 {
        cache.put(key(i), [1.0, 1.0]).await.unwrap();
    }
}
