//! The caches of this crate.

use std::future::Future;

use embedding_cache::{
    EmbeddingCache, EmbeddingCacheBuilder, EmbeddingVector, EvictionPolicy, ShardedCache,
};

use super::{AsyncCache, Cache, Hasher, Limits, Visitor, wait_for};
use crate::keys::{Key, TextKey, Value};

/// Every put of a benchmark can be stored.
const STORED: &str = "a valid entry, much smaller than the limit";

/// The synchronous core, for any key and value.
pub(crate) struct Core<K, V>(ShardedCache<K, V, Hasher>);

impl<K: Key, V: Value> Core<K, V> {
    pub(crate) fn new(limits: &Limits, policy: EvictionPolicy) -> Self {
        Self::with_shards(limits, policy, None)
    }

    fn with_shards(limits: &Limits, policy: EvictionPolicy, shards: Option<usize>) -> Self {
        let mut builder = ShardedCache::<K, V>::builder().eviction(policy);
        builder = match limits.bytes {
            None => builder.max_entries(limits.entries),
            Some(bytes) => builder.max_weight(bytes).weigher(|_, value: &V| K::HEAP + value.heap()),
        };
        if let Some(time_to_live) = limits.time_to_live {
            builder = builder.time_to_live(time_to_live);
        }
        if let Some(shards) = shards {
            builder = builder.shards(shards);
        }
        Self(builder.build().expect("a valid configuration"))
    }
}

/// Shows the core with each of some numbers of shards.
pub(crate) fn visit_shards<K: Key, V: Value>(shards: &[usize], visitor: &mut impl Visitor<K, V>) {
    for &shards in shards {
        let make = move |limits: &Limits| {
            Core::with_shards(limits, EvictionPolicy::default(), Some(shards))
        };
        visitor.visit(shards.to_string(), make);
    }
}

impl<K: Key, V: Value> Cache<K, V> for Core<K, V> {
    type Found = V;

    const EXPIRES: bool = true;

    #[inline(always)]
    fn get(&self, key: &K) -> Option<V> {
        self.0.get(key)
    }

    #[inline(always)]
    fn components(found: &V) -> &[f32] {
        found.components()
    }

    #[inline(always)]
    fn put(&self, key: K, value: V) {
        self.0.insert(key, value).expect(STORED);
    }

    #[inline(always)]
    fn get_many(&self, keys: &[K]) -> Vec<Option<V>> {
        self.0.get_many(keys)
    }

    fn clean_up(&self) {
        self.0.cleanup_expired();
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

/// What an embedding server uses. Threads call its blocking face, and for batches, which have none,
/// wait for the future; tasks use the `async` methods.
pub(crate) struct Door<K: TextKey>(EmbeddingCache<K>);

impl<K: TextKey> Door<K> {
    pub(crate) fn new(limits: &Limits, policy: EvictionPolicy) -> Self {
        let mut builder = EmbeddingCacheBuilder::<K>::new().eviction(policy);
        builder = match limits.bytes {
            None => builder.max_entries(limits.entries),
            Some(bytes) => builder.max_bytes(bytes),
        };
        if let Some(time_to_live) = limits.time_to_live {
            builder = builder.time_to_live(time_to_live);
        }
        Self(builder.build().expect("a valid configuration"))
    }
}

impl<K: TextKey> Cache<K, EmbeddingVector> for Door<K> {
    type Found = EmbeddingVector;

    const EXPIRES: bool = true;

    #[inline(always)]
    fn get(&self, key: &K) -> Option<EmbeddingVector> {
        self.0.get_blocking(key)
    }

    #[inline(always)]
    fn components(found: &EmbeddingVector) -> &[f32] {
        found
    }

    #[inline(always)]
    fn put(&self, key: K, value: EmbeddingVector) {
        self.0.put_blocking(key, value).expect(STORED);
    }

    #[inline(always)]
    fn get_many(&self, keys: &[K]) -> Vec<Option<EmbeddingVector>> {
        wait_for(self.0.get_many(keys))
    }

    fn clean_up(&self) {
        wait_for(self.0.cleanup_expired_safe());
    }

    fn len(&self) -> usize {
        self.0.info().size
    }
}

impl<K: TextKey> AsyncCache<K> for Door<K> {
    type Found = EmbeddingVector;

    #[inline(always)]
    fn get(&self, key: &K) -> impl Future<Output = Option<EmbeddingVector>> + Send {
        self.0.get(key)
    }

    #[inline(always)]
    fn components(found: &EmbeddingVector) -> &[f32] {
        found
    }

    #[inline(always)]
    async fn put(&self, key: K, value: EmbeddingVector) {
        self.0.put(key, value).await.expect(STORED);
    }

    #[inline(always)]
    fn get_many(&self, keys: &[K]) -> impl Future<Output = Vec<Option<EmbeddingVector>>> + Send {
        self.0.get_many(keys)
    }
}
