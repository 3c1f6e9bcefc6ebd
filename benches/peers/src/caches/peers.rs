//! The caches of others that evict.

use std::hash::{BuildHasher, BuildHasherDefault, RandomState};
use std::marker::PhantomData;

use foyer_memory::{CacheEntry, CacheProperties, EvictionConfig, LruConfig, S3FifoConfig};
use mini_moka::sync::ConcurrentCacheExt;
use quick_cache::sync::DefaultLifecycle;
use quick_cache::{UnitWeighter, Weighter};
use twox_hash::XxHash64;

use super::{Cache, Hasher, Limits, Visitor};
use crate::keys::{Key, Value};

/// A hash function that a cache can be made with.
pub(crate) trait Hashing: BuildHasher + Clone + Default + Send + Sync + 'static {}

impl<H: BuildHasher + Clone + Default + Send + Sync + 'static> Hashing for H {}

/// What foyer hashes with unless it is told otherwise.
type FoyerHasher = BuildHasherDefault<XxHash64>;

pub(super) fn visit<K: Key, V: Value>(visitor: &mut impl Visitor<K, V>) {
    visitor.visit("quick_cache".to_owned(), Quick::<K, V, Unit>::new);
    visitor.visit("moka".to_owned(), Moka::<K, V, Hasher>::new);
    visitor.visit("foyer S3-FIFO".to_owned(), foyer::<K, V, Hasher>(s3_fifo));
    visitor.visit("foyer LRU".to_owned(), foyer::<K, V, Hasher>(|| LruConfig::default().into()));
    visitor.visit("mini-moka".to_owned(), MiniMoka::<K, V, Hasher>::new);
    visitor.visit("scc".to_owned(), Scc::<K, V, Hasher>::new);
}

/// Shows those whose own hash function is another one, with it. That of `quick_cache` is aHash, too.
pub(super) fn visit_with_own_hash<K: Key, V: Value>(visitor: &mut impl Visitor<K, V>) {
    visitor.visit("moka (SipHash)".to_owned(), Moka::<K, V, RandomState>::new);
    visitor.visit("foyer S3-FIFO (xxHash)".to_owned(), foyer::<K, V, FoyerHasher>(s3_fifo));
    visitor.visit("mini-moka (SipHash)".to_owned(), MiniMoka::<K, V, RandomState>::new);
    visitor.visit("scc (SipHash)".to_owned(), Scc::<K, V, RandomState>::new);
}

/// Shows those that know a time-to-live.
pub(super) fn visit_that_expire<K: Key, V: Value>(visitor: &mut impl Visitor<K, V>) {
    visitor.visit("moka".to_owned(), Moka::<K, V, Hasher>::new);
    visitor.visit("mini-moka".to_owned(), MiniMoka::<K, V, Hasher>::new);
}

fn s3_fifo() -> EvictionConfig {
    S3FifoConfig::default().into()
}

fn foyer<K: Key, V: Value, H: Hashing>(
    policy: fn() -> EvictionConfig,
) -> impl Fn(&Limits) -> Foyer<K, V, H> + Send + Sync + 'static {
    move |limits| Foyer::new(limits, policy())
}

/// What an entry weighs where bytes are limited.
fn weight<K: Key, V: Value>(value: &V) -> u64 {
    K::HEAP + value.heap()
}

/// How `quick_cache` weighs, known when it is compiled, so that nobody weighs for nothing.
pub(crate) trait Weighing<K, V>:
    Weighter<K, V> + Clone + Default + Send + Sync + 'static
{
    const BYTES: bool;
}

pub(crate) type Unit = UnitWeighter;

impl<K, V> Weighing<K, V> for Unit {
    const BYTES: bool = false;
}

#[derive(Clone, Default)]
pub(crate) struct Bytes;

impl<K: Key, V: Value> Weighter<K, V> for Bytes {
    fn weight(&self, _: &K, value: &V) -> u64 {
        weight::<K, V>(value)
    }
}

impl<K: Key, V: Value> Weighing<K, V> for Bytes {
    const BYTES: bool = true;
}

pub(crate) struct Quick<K, V, W> {
    cache: quick_cache::sync::Cache<K, V, W, Hasher>,
    weighs: PhantomData<W>,
}

impl<K: Key, V: Value, W: Weighing<K, V>> Quick<K, V, W> {
    pub(crate) fn new(limits: &Limits) -> Self {
        let capacity = if W::BYTES { limits.bytes.expect("bytes") } else { limits.entries as u64 };
        let (weighter, hasher) = (W::default(), Hasher::default());
        let lifecycle = DefaultLifecycle::default();
        let cache =
            quick_cache::sync::Cache::with(limits.entries, capacity, weighter, hasher, lifecycle);
        Self { cache, weighs: PhantomData }
    }
}

impl<K: Key, V: Value, W: Weighing<K, V>> Cache<K, V> for Quick<K, V, W> {
    type Found = V;

    const WEIGHS: bool = W::BYTES;

    #[inline(always)]
    fn get(&self, key: &K) -> Option<V> {
        self.cache.get(key)
    }

    #[inline(always)]
    fn components(found: &V) -> &[f32] {
        found.components()
    }

    #[inline(always)]
    fn put(&self, key: K, value: V) {
        self.cache.insert(key, value);
    }

    fn len(&self) -> usize {
        self.cache.len()
    }
}

pub(crate) struct Moka<K, V, H>(moka::sync::Cache<K, V, H>);

impl<K: Key, V: Value, H: Hashing> Moka<K, V, H> {
    fn new(limits: &Limits) -> Self {
        let mut builder = moka::sync::Cache::builder();
        builder = match limits.bytes {
            None => builder.max_capacity(limits.entries as u64),
            Some(bytes) => {
                let weigh = |_: &K, value: &V| weight::<K, V>(value) as u32;
                builder.max_capacity(bytes).weigher(weigh)
            }
        };
        if let Some(time_to_live) = limits.time_to_live {
            builder = builder.time_to_live(time_to_live);
        }
        Self(builder.build_with_hasher(H::default()))
    }
}

impl<K: Key, V: Value, H: Hashing> Cache<K, V> for Moka<K, V, H> {
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
        self.0.insert(key, value);
    }

    fn settle(&self) {
        self.0.run_pending_tasks();
    }

    fn clean_up(&self) {
        self.0.run_pending_tasks();
    }

    fn len(&self) -> usize {
        self.0.entry_count() as usize
    }
}

pub(crate) struct Foyer<K: Key, V: Value, H: Hashing>(
    foyer_memory::Cache<K, V, H, CacheProperties>,
);

impl<K: Key, V: Value, H: Hashing> Foyer<K, V, H> {
    fn new(limits: &Limits, policy: EvictionConfig) -> Self {
        let capacity = limits.bytes.map_or(limits.entries, |bytes| bytes as usize);
        let builder = foyer_memory::CacheBuilder::new(capacity)
            .with_eviction_config(policy)
            .with_hash_builder(H::default());
        Self(match limits.bytes {
            None => builder.build(),
            Some(_) => {
                builder.with_weighter(|_: &K, value: &V| weight::<K, V>(value) as usize).build()
            }
        })
    }
}

/// A hit is a handle to its entry: cheaper than to clone the value out of it, and it dereferences
/// to the value just as well.
impl<K: Key, V: Value, H: Hashing> Cache<K, V> for Foyer<K, V, H> {
    type Found = CacheEntry<K, V, H, CacheProperties>;

    #[inline(always)]
    fn get(&self, key: &K) -> Option<Self::Found> {
        self.0.get(key)
    }

    #[inline(always)]
    fn components(found: &Self::Found) -> &[f32] {
        found.value().components()
    }

    #[inline(always)]
    fn put(&self, key: K, value: V) {
        self.0.insert(key, value);
    }

    fn len(&self) -> usize {
        self.0.entries()
    }
}

pub(crate) struct MiniMoka<K, V, H>(mini_moka::sync::Cache<K, V, H>);

impl<K: Key, V: Value, H: Hashing> MiniMoka<K, V, H> {
    fn new(limits: &Limits) -> Self {
        let mut builder = mini_moka::sync::Cache::builder();
        builder = match limits.bytes {
            None => builder.max_capacity(limits.entries as u64),
            Some(bytes) => {
                let weigh = |_: &K, value: &V| weight::<K, V>(value) as u32;
                builder.max_capacity(bytes).weigher(weigh)
            }
        };
        if let Some(time_to_live) = limits.time_to_live {
            builder = builder.time_to_live(time_to_live);
        }
        Self(builder.build_with_hasher(H::default()))
    }
}

impl<K: Key, V: Value, H: Hashing> Cache<K, V> for MiniMoka<K, V, H> {
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
        self.0.insert(key, value);
    }

    fn settle(&self) {
        self.0.sync();
    }

    fn clean_up(&self) {
        self.0.sync();
    }

    fn len(&self) -> usize {
        self.0.entry_count() as usize
    }
}

/// Rounds its capacity up to a power of two, so it may hold up to twice as much as the others.
pub(crate) struct Scc<K, V, H: BuildHasher>(scc::HashCache<K, V, H>);

impl<K: Key, V: Value, H: Hashing> Scc<K, V, H> {
    fn new(limits: &Limits) -> Self {
        // All of it at once: as long as it grows, it evicts although there is room.
        let (least, most) = (limits.entries, limits.entries);
        Self(scc::HashCache::with_capacity_and_hasher(least, most, H::default()))
    }
}

/// `get` and not `read`, which would tell the order of eviction nothing.
impl<K: Key, V: Value, H: Hashing> Cache<K, V> for Scc<K, V, H> {
    type Found = V;

    const WEIGHS: bool = false;

    #[inline(always)]
    fn get(&self, key: &K) -> Option<V> {
        self.0.get_sync(key).map(|entry| entry.get().clone())
    }

    #[inline(always)]
    fn components(found: &V) -> &[f32] {
        found.components()
    }

    #[inline(always)]
    fn put(&self, key: K, value: V) {
        match self.0.entry_sync(key) {
            scc::hash_cache::Entry::Occupied(mut entry) => *entry.get_mut() = value,
            scc::hash_cache::Entry::Vacant(entry) => {
                entry.put_entry(value);
            }
        }
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

/// Shows `quick_cache` limited in bytes, which takes another type.
pub(super) fn visit_by_bytes<K: Key, V: Value>(visitor: &mut impl Visitor<K, V>) {
    visitor.visit("quick_cache".to_owned(), Quick::<K, V, Bytes>::new);
}
