//! Looking into an embedding cache without using it: what is there, without a count, a use, or a long
//! hold of a lock.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use crate::support::{FakeClock, Gate, key};
use embedding_cache::{
    CacheKey, CacheStats, ContentKey, EmbeddingCache, EmbeddingCacheBuilder, EmbeddingKey,
    EvictionPolicy, KeySpec,
};

fn held<K: EmbeddingKey>(spec: &KeySpec<K>, cache: &EmbeddingCache<K>, entries: usize) {
    for i in 0..entries {
        cache.put_blocking(spec.text(&i.to_string()), [i as f32]).unwrap();
    }
}

#[tokio::test]
async fn to_look_is_no_use_and_no_count() {
    let builder = EmbeddingCache::builder().max_entries(3).eviction(EvictionPolicy::Lru);
    let cache = builder.build().unwrap();
    assert!(cache.is_empty());
    for i in 0..3 {
        cache.put(key(i), [i as f32 + 1.0]).await.unwrap();
    }
    let before = cache.stats();
    for _ in 0..5 {
        assert_eq!(cache.peek(&key(0)).await.unwrap(), [1.0]);
        assert!(cache.contains_key(&key(0)).await);
        assert_eq!(cache.entry_info(&key(0)).await.unwrap().expires_in, None);
        assert_eq!(cache.keys().count(), 3);
        assert_eq!(cache.iter().count(), 3);
        assert!(cache.peek(&key(9)).await.is_none() && !cache.contains_key(&key(9)).await);
        assert!(cache.entry_info(&key(9)).await.is_none());
    }
    assert_eq!(cache.stats(), before);
    // Still the one that was used the longest ago.
    cache.put(key(3), [4.0]).await.unwrap();
    assert!(!cache.contains_key(&key(0)).await);
    assert_eq!((cache.len(), cache.size().await, cache.is_empty()), (3, 3, false));
}

#[tokio::test]
async fn what_has_expired_is_not_there_to_look_at() {
    let clock = FakeClock::new();
    let cache = EmbeddingCache::builder()
        .max_entries(10)
        .time_to_live(Duration::from_secs(60))
        .stale_if_error(Duration::from_secs(60))
        .clock(clock.clone())
        .build()
        .unwrap();
    cache.put(key(0), [1.0]).await.unwrap();
    clock.advance(Duration::from_secs(20));
    let info = cache.entry_info(&key(0)).await.unwrap();
    assert_eq!(info.expires_in, Some(Duration::from_secs(40)));
    assert_eq!(info.weight, cache.info().memory_bytes);
    clock.advance(Duration::from_secs(50));
    assert!(cache.peek(&key(0)).await.is_none(), "stale, and kept for loads only");
    assert!(!cache.contains_key(&key(0)).await && cache.entry_info(&key(0)).await.is_none());
    assert_eq!((cache.keys().count(), cache.iter().count(), cache.len()), (0, 0, 1));
}

/// Both kinds of key come back as they were put, from all shards, each once.
#[test]
fn everything_is_gone_through_once() {
    fn check<K: EmbeddingKey + Ord>(spec: KeySpec<K>, cache: EmbeddingCache<K>) {
        held(&spec, &cache, 5000);
        let expected: BTreeMap<K, f32> =
            (0..5000).map(|i| (spec.text(&i.to_string()), i as f32)).collect();
        let mut found = BTreeMap::new();
        for (key, vector) in cache.iter() {
            assert!(found.insert(key, vector[0]).is_none(), "twice");
        }
        assert_eq!(found, expected);
        let mut keys: Vec<K> = cache.keys().collect();
        keys.sort_unstable();
        assert!(keys.iter().eq(expected.keys()));
    }
    let spec: KeySpec = CacheKey::for_model("m");
    check(spec, EmbeddingCache::builder().max_entries(10_000).shards(8).build().unwrap());
    let builder = EmbeddingCacheBuilder::new().max_entries(10_000).shards(8);
    check(ContentKey::for_model("m"), builder.build().unwrap());
}

/// No lock is held while the caller looks at an entry, and what is there all the time is seen, whatever
/// others put and remove meanwhile.
#[test]
fn an_iteration_lets_others_write_between_any_two_steps() {
    let cache = EmbeddingCache::builder().max_entries(10_000).shards(2).build().unwrap();
    for i in 0..1000 {
        cache.put_blocking(key(i), [1.0]).unwrap();
    }
    let mut stays = 0;
    for (step, (found, _)) in cache.iter().enumerate() {
        // A lock that this thread held would never let it in.
        cache.put_blocking(key(2000 + step), [2.0]).unwrap();
        pollster::block_on(cache.remove(&key(2000 + step / 2)));
        stays += usize::from((0..1000).any(|i| key(i) == found));
        assert!(step < 10_000, "it ends");
    }
    assert_eq!(stays, 1000);
}

#[test]
fn a_look_waits_for_a_lock_without_its_executor() {
    let cache = EmbeddingCache::builder().max_entries(100).shards(1).build().unwrap();
    cache.put_blocking(key(0), [1.0]).unwrap();
    let gate = Gate::closed();
    let others_ran = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            pollster::block_on(cache.retain(|_, _| {
                gate.pass();
                true
            }));
        });
        gate.wait_for(1);
        let here = key(0);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (peeked, there, info, ()) = tokio::join!(
                cache.peek(&here),
                cache.contains_key(&here),
                cache.entry_info(&here),
                async {
                    for _ in 0..10 {
                        tokio::task::yield_now().await;
                    }
                    others_ran.store(true, SeqCst);
                    gate.open();
                }
            );
            assert!(others_ran.load(SeqCst));
            assert!(peeked.is_some() && there && info.is_some());
            let waited = Duration::from_secs(60);
            assert!(cache.try_get_for(&key(0), waited).await.unwrap().is_some());
        });
    });
}

#[test]
fn the_other_names_are_the_same_numbers() {
    let cache = EmbeddingCache::new(10, 60, 1);
    cache.put_blocking(key(0), [1.0]).unwrap();
    let (first, second) = (cache.get_blocking(&key(0)), cache.get_blocking(&key(1)));
    assert!(first.is_some() && second.is_none());
    let stats: CacheStats = cache.stats();
    assert_eq!((stats.hit_ratio(), stats.hit_rate()), (0.5, 0.5));
}

#[test]
fn a_count_of_zero_is_an_error_of_the_builder_that_says_which() {
    let builder = || EmbeddingCache::builder().max_entries(10);
    for (builder, what) in [
        (builder().max_batch(0), "a cache's limit on keys of a call"),
        (builder().max_in_flight(0), "a cache's limit on keys in flight"),
        (builder().max_concurrent_loads(0), "a cache's limit on concurrent loads"),
        (builder().load_timeout(Duration::ZERO), "the longest that a load may take"),
        (builder().dimensions(0), "the dimensions of a vector"),
        (builder().model_dimensions("m", 0), "the dimensions of a vector"),
    ] {
        let error = builder.build().unwrap_err();
        assert!(error.is_configuration());
        assert_eq!(error.to_string(), format!("{what} is 0; it must be at least 1"));
    }
    assert!(builder().shards(0).build().unwrap_err().is_configuration());
    let cache = builder().build().unwrap();
    assert!(cache.spawn_cleanup(Duration::ZERO).unwrap_err().is_configuration());
}

#[tokio::test]
async fn a_load_of_zero_keys_a_call_is_an_error_of_each_missing_key() {
    let cache = EmbeddingCache::builder().max_entries(10).build().unwrap();
    cache.put(key(0), [1.0]).await.unwrap();
    let answers = cache.load().max_batch(0).get_or_embed_many([key(0), key(1)], |_| async {
        panic!("nothing is asked for");
        #[allow(unreachable_code)]
        Vec::<[f32; 1]>::new()
    });
    let answers = answers.await;
    assert_eq!(answers[0].as_ref().unwrap(), &[1.0]);
    assert!(answers[1].as_ref().unwrap_err().is_configuration());
    let load = cache.load().max_batch(0).get_or_embed_borrowed(key(2), || async { [1.0] });
    assert!(load.await.unwrap_err().is_configuration());
    assert_eq!(cache.info().keys_in_flight, 0);
}
