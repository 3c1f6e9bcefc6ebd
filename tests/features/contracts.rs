//! Contracts that the compiler checks, and a few that it does not: auto traits, sizes, what `Debug`
//! shows, the form of serialized data.

use std::cell::Cell;
use std::error::Error;
use std::fmt::{Debug, Display};
use std::future::Future;
use std::hash::{BuildHasher, Hash};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::rc::Rc;
use std::sync::Arc;

use crate::support::{Removals, ShardIsKey, key};
use embedding_cache::{
    CacheError, CacheInfo, CacheKey, CacheStats, Clock, ContentKey, DefaultHashBuilder,
    DefaultHasher, EmbeddingCache, EmbeddingCacheBuilder, EmbeddingKey, EmbeddingVector, EntryInfo,
    EvictionPolicy, InsertError, Iter, MemoryPressure, RemovalCause, ShardStats, ShardedCache,
    ShardedCacheBuilder,
};
use static_assertions::{assert_impl_all, assert_not_impl_any, assert_obj_safe};

type Core = ShardedCache<String, Arc<[f32]>>;

// What is shared between threads and moved into tasks.
assert_impl_all!(EmbeddingCache: Send, Sync, Unpin, Clone, Debug);
assert_impl_all!(EmbeddingCache<ContentKey>: Send, Sync, Unpin, Clone, Debug);
assert_impl_all!(EmbeddingCache<embedding_cache::CacheKey, std::hash::RandomState>: Send, Sync, Unpin, Clone, Debug);
assert_impl_all!(Core: Send, Sync, Unpin, Debug);
assert_impl_all!(EmbeddingCacheBuilder: Send, Unpin, Debug);
assert_impl_all!(EmbeddingCacheBuilder<ContentKey>: Send, Unpin, Debug);
assert_impl_all!(ShardedCacheBuilder<String, u64>: Send, Unpin, Debug);
assert_impl_all!(Iter<'static, String, u64, DefaultHashBuilder>: Send, Sync, Unpin, Debug, Iterator);
// Only for keys and values that may be.
assert_not_impl_any!(ShardedCache<Rc<u64>, u64>: Send, Sync);
assert_not_impl_any!(ShardedCache<u64, Rc<u64>>: Send, Sync);
assert_not_impl_any!(ShardedCache<u64, Cell<u64>>: Sync);

// Values, keys, numbers, errors: plain data.
assert_impl_all!(EmbeddingVector: Send, Sync, Unpin, UnwindSafe, RefUnwindSafe, Clone, Debug);
assert_impl_all!(CacheKey: Send, Sync, Unpin, UnwindSafe, Clone, Debug, Display, Hash, Ord);
assert_impl_all!(CacheStats: Send, Sync, Unpin, UnwindSafe, Copy, Debug, Eq, Default);
assert_impl_all!(CacheInfo: Send, Sync, Unpin, UnwindSafe, Copy, Debug, PartialEq);
assert_impl_all!(ShardStats: Send, Sync, Unpin, UnwindSafe, Copy, Debug, Eq);
assert_impl_all!(EntryInfo: Send, Sync, Unpin, UnwindSafe, Copy, Debug, Eq);
assert_impl_all!(RemovalCause: Send, Sync, Unpin, UnwindSafe, Copy, Debug, Eq, Hash);
assert_impl_all!(EvictionPolicy: Send, Sync, Unpin, UnwindSafe, Copy, Debug, Eq, Hash, Default);
assert_impl_all!(MemoryPressure: Send, Sync, Unpin, UnwindSafe, Copy, Debug, Eq, Hash, Default);
assert_impl_all!(CacheError: Error, Send, Sync, Unpin, UnwindSafe, RefUnwindSafe);
assert_impl_all!(InsertError<u64, u64>: Error, Send, Sync, Unpin, UnwindSafe);
// Neither key nor value need anything for their error to be one.
assert_impl_all!(InsertError<Cell<u8>, Rc<u8>>: Error);
assert_impl_all!(DefaultHashBuilder: BuildHasher, Send, Sync, Unpin, Clone, Default, Debug);
assert_impl_all!(DefaultHasher: std::hash::Hasher, Send, Sync, Unpin, Clone, Debug);
assert_obj_safe!(Clock);

/// Never called: that it compiles is the test.
fn _everything_may_outlive_its_maker() {
    fn is_static<T: 'static>() {}
    is_static::<EmbeddingCache>();
    is_static::<Core>();
    is_static::<CacheError>();
    is_static::<InsertError<String, u64>>();
    is_static::<EmbeddingVector>();
    is_static::<Arc<dyn Clock>>();
}

/// Never called: that it compiles is the test.
fn _the_futures_may_be_spawned_on_any_runtime<K: EmbeddingKey, S: BuildHasher + Send + Sync>(
    cache: &EmbeddingCache<K, S>,
    key: &K,
) {
    fn is_send<F: Future + Send>(_: F) {}
    is_send(cache.get(key));
    is_send(cache.put(key.clone(), vec![0.5]));
    is_send(cache.put(key.clone(), EmbeddingVector::from([0.5])));
    is_send(cache.get_with_timeout(key, 1));
    is_send(cache.put_with_timeout(key.clone(), vec![0.5], 1));
    is_send(cache.remove(key));
    is_send(cache.size());
    is_send(cache.clear());
    is_send(cache.cleanup_expired_safe());
}

#[test]
fn small_things_are_small() {
    // The shared components, and whether they are known to be finite. A cache stores the first.
    assert_eq!(size_of::<EmbeddingVector>(), 3 * size_of::<usize>());
    assert_eq!(size_of::<Option<EmbeddingVector>>(), 3 * size_of::<usize>());
    assert_eq!(size_of::<EmbeddingCache>(), size_of::<usize>(), "a handle");
    assert!(size_of::<CacheError>() <= 72, "{}", size_of::<CacheError>());
    assert_eq!(size_of::<RemovalCause>(), 1);
    // Futures are moved to where they are awaited, each time: what an operation needs only to wait
    // is not part of them.
    let (cache, key) = (EmbeddingCache::new(1, 1, 1), CacheKey::new("a", "m"));
    let vector = EmbeddingVector::from([0.5]);
    let get = size_of_val(&cache.get(&key));
    let put = size_of_val(&cache.put(key.clone(), vector.clone()));
    assert!(get <= 6 * size_of::<usize>(), "{get}");
    let given = size_of_val(&key) + size_of_val(&vector);
    assert!(put <= 2 * given + 6 * size_of::<usize>(), "{put}");
}

/// A load holds the caller's future by a pointer: by value each async function on the way to where it
/// is polled would hold it twice.
#[test]
fn a_load_does_not_multiply_the_future_it_is_given() {
    async fn model<const SIZE: usize>() -> [f32; 1] {
        let held = std::hint::black_box([1_u8; SIZE]);
        tokio::task::yield_now().await;
        [f32::from(held[SIZE - 1])]
    }
    let (cache, key) = (EmbeddingCache::new(1, 1, 1), CacheKey::new("a", "m"));
    let small = size_of_val(&cache.load().get_or_embed_borrowed(&key, model::<1>));
    let large = size_of_val(&cache.load().get_or_embed_borrowed(&key, model::<4096>));
    assert!(large <= small + 3 * 4096, "borrowed: {small}, {large}");
    let small = size_of_val(&cache.get_or_embed(&key, model::<1>));
    let large = size_of_val(&cache.get_or_embed(&key, model::<4096>));
    assert!(large <= small + 3 * 4096, "owned: {small}, {large}");
}

#[test]
fn debug_is_short_and_shows_no_contents() {
    const COMPONENT: f32 = 0.123_456;
    let cache = EmbeddingCache::new(100_000, 3600, 100);
    let core =
        ShardedCache::<String, EmbeddingVector>::builder().max_entries(1000).build().unwrap();
    for i in 0..200 {
        cache.put_blocking(key(i), vec![COMPONENT; 768]).unwrap();
        core.insert(format!("secret {i}"), vec![COMPONENT; 768].into()).unwrap();
    }
    let refused = EmbeddingCache::new(0, 0, 0).put_blocking(key(0), vec![COMPONENT; 768]);
    let insert_refused = ShardedCache::<String, EmbeddingVector>::builder()
        .max_entries(0)
        .build()
        .unwrap()
        .insert("secret".to_string(), vec![COMPONENT; 768].into());
    let mut iter = core.iter();
    iter.next();
    let log = Removals::<CacheKey, EmbeddingVector>::new();
    let shown = [
        (format!("{cache:?}"), 200, "200"),
        (format!("{core:?}"), 200, "1000"),
        (format!("{iter:?}"), 100, "Iter"),
        (format!("{:?}", EmbeddingCache::builder().max_bytes(77)), 200, "77"),
        (format!("{:?}", EmbeddingCache::builder().eviction_listener(log.listener())), 200, "None"),
        (format!("{:?}", ShardedCache::<u64, u64>::builder().max_entries(78)), 300, "78"),
        (format!("{:?}", insert_refused.unwrap_err()), 200, "InsertError"),
        (format!("{:?}", cache.info()), 600, "memory_limit_bytes: 104857600"),
        (format!("{:?}", key(7)), 150, "e5-base@1"),
    ];
    for (shown, longest, part) in shown {
        assert!(shown.len() <= longest, "{} bytes: {shown}", shown.len());
        assert!(shown.contains(part), "{part:?} is not in {shown}");
        assert!(!shown.contains("0.123") && !shown.contains("secret"), "{shown}");
    }
    // A vector shows its dimensions and its beginning, also inside an error and over many lines.
    let long = EmbeddingVector::from(vec![COMPONENT; 4096]);
    assert_eq!(format!("{long:?}").matches("0.123").count(), 4);
    assert!(format!("{long:?}").contains("4096"));
    assert!(format!("{long:#?}").len() < 100);
    assert!(format!("{:?}", refused.unwrap_err()).len() < 200);
    assert_eq!(
        format!("{:?}", EmbeddingVector::from([1.0, 2.5])),
        "EmbeddingVector(2-d, [1.0, 2.5])"
    );
    assert_eq!(format!("{:?}", EmbeddingVector::from([])), "EmbeddingVector(0-d, [])");
}

#[test]
fn a_key_shows_as_model_hash_and_chunk_and_sorts_by_its_fields() {
    let key = CacheKey::new("9f86", "e5@1");
    assert_eq!(key.to_string(), "e5@1/9f86");
    assert_eq!(key.clone().with_chunk("7").to_string(), "e5@1/9f86#7");
    let mut keys = [
        CacheKey::new("b", "a"),
        CacheKey::new("a", "b").with_chunk("1"),
        CacheKey::new("a", "b"),
        CacheKey::new("a", "a"),
    ];
    keys.sort();
    let sorted = ["a/a", "b/a", "b/a#1", "a/b"];
    assert_eq!(keys.map(|key| key.to_string()), sorted);
}

/// Clones share; conversions that can avoid a copy do.
#[test]
fn a_vector_is_one_shared_allocation() {
    let shared: Arc<[f32]> = vec![1.0, 2.0, 3.0].into();
    let vector = EmbeddingVector::from(shared.clone());
    assert!(Arc::ptr_eq(&vector.clone().into_shared(), &shared));
    assert!(vector.ptr_eq(&vector.clone()));
    assert!(!vector.ptr_eq(&EmbeddingVector::from(&*vector)));
    assert_eq!(vector.as_slice().as_ptr(), shared.as_ptr());
    assert_eq!((vector.dimensions(), vector.len()), (3, 3));
    assert_eq!(vector.clone().into_vec(), [1.0, 2.0, 3.0]);
    assert_eq!(Vec::from(vector), [1.0, 2.0, 3.0]);
}

#[test]
fn a_vector_compares_with_everything_like_a_vector_both_ways_round() {
    #[track_caller]
    fn compare<B>(with: &B)
    where
        EmbeddingVector: PartialEq<B>,
        B: PartialEq<EmbeddingVector> + ?Sized,
    {
        let equal = EmbeddingVector::from([1.0, 2.0]);
        assert!(&equal == with);
        assert!(with == &equal);
        for other in [vec![1.0, 2.5], vec![1.0], vec![1.0, 2.0, 3.0], vec![]] {
            let other = EmbeddingVector::from(other);
            assert!(&other != with);
            assert!(with != &other);
        }
    }
    compare(&EmbeddingVector::from([1.0, 2.0]));
    compare(&vec![1.0, 2.0]);
    compare(&[1.0, 2.0]);
    compare(&[1.0, 2.0][..]);
    compare(&&[1.0, 2.0][..]);
    let nan = EmbeddingVector::from([f32::NAN]);
    assert_ne!(nan, nan.clone(), "as of f32");
}

#[tokio::test]
async fn the_handle_outlives_the_first_owner_and_works_with_any_hasher() {
    let cache = EmbeddingCache::builder()
        .max_entries(10)
        .hasher(std::hash::RandomState::new())
        .build()
        .unwrap();
    let clone = cache.clone();
    cache.put(key(1), [1.0]).await.unwrap();
    drop(cache);
    let task = tokio::spawn(async move { clone.get(&key(1)).await });
    assert_eq!(task.await.unwrap().unwrap(), [1.0]);
    let core = ShardedCache::<u64, u64>::builder().max_entries(4).hasher(ShardIsKey);
    let core = core.shards(4).build().unwrap();
    (0..4).for_each(|key| core.insert(key, key).unwrap());
    assert!(core.shard_stats().iter().all(|shard| shard.entries == 1), "it chooses the shard");
}

#[cfg(feature = "serde")]
mod serialized {
    use super::*;
    use serde_json::{from_str, json, to_string, to_value};

    #[test]
    fn keys_and_vectors_come_back_as_they_were() {
        for key in [key(1), key(2).with_chunk("7"), key(3).with_chunk(""), CacheKey::new("é\"", "")]
        {
            let back: CacheKey = from_str(&to_string(&key).unwrap()).unwrap();
            assert_eq!(back, key);
        }
        let key = CacheKey::new("a", "b").with_chunk("c");
        let fields = json!({ "content_hash": "a", "model_version": "b", "chunk_id": "c" });
        assert_eq!(to_value(&key).unwrap(), fields, "the names are part of the format");

        for vector in [vec![], vec![0.1, -0.2, 1e-45, f32::MAX], vec![0.5; 768]] {
            let vector = EmbeddingVector::from(vector);
            let back: EmbeddingVector = from_str(&to_string(&vector).unwrap()).unwrap();
            assert_eq!(back, vector);
        }
        let vector = EmbeddingVector::from([0.5, 1.0]);
        assert_eq!(to_string(&vector).unwrap(), "[0.5,1.0]", "a plain list");
        assert!(from_str::<EmbeddingVector>("{}").is_err());
    }

    #[test]
    fn numbers_come_back_as_they_were() {
        let cache = EmbeddingCache::new(1, 3600, 1);
        for i in 0..3 {
            cache.put_blocking(key(i), [1.0]).unwrap();
            let _ = (cache.get_blocking(&key(i)), cache.get_blocking(&key(9)));
        }
        let (stats, info) = (cache.stats(), cache.info());
        assert_eq!(from_str::<CacheStats>(&to_string(&stats).unwrap()).unwrap(), stats);
        assert_eq!(from_str::<CacheInfo>(&to_string(&info).unwrap()).unwrap(), info);
        let shown = to_value(info).unwrap();
        assert_eq!(shown["stats"]["hits"], 3);
        assert_eq!(shown["stats"]["evicted_by_entries"], 2);
        assert_eq!((&shown["size"], &shown["max_size"]), (&json!(1), &json!(1)));

        let core = ShardedCache::<u64, u64>::builder().max_entries(4).build().unwrap();
        let minute = std::time::Duration::from_secs(60);
        core.insert_with_ttl(1, 1, minute).unwrap();
        let shard = core.shard_stats()[0];
        assert_eq!(from_str::<ShardStats>(&to_string(&shard).unwrap()).unwrap(), shard);
        let entry = core.entry_info(&1).unwrap();
        assert_eq!(from_str::<EntryInfo>(&to_string(&entry).unwrap()).unwrap(), entry);
    }
}
