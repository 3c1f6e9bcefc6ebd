//! The caches, all behind one trait, and the list of them.
//!
//! Each is made with nothing but its limits, as its users make it, apart from the hash function:
//! all have that of this crate (aHash), which is faster than the defaults of moka, mini-moka and scc
//! (`SipHash`) and foyer (xxHash). The calls are monomorphic, and what stands between the loop and a
//! cache's own function is inlined for all of them, or a compiler that inlines by size would add a
//! call to some; what goes through a trait object covers thousands of operations.

mod asynchronous;
mod ours;
mod peers;
mod plain;
mod references;

use std::time::Duration;

use embedding_cache::{DefaultHashBuilder, EmbeddingVector, EvictionPolicy};

use crate::keys::{Key, TextKey, Value};

pub(crate) use asynchronous::{AsyncCache, AsyncVisitor, Baseline, visit_async, wait_for};
pub(crate) use ours::visit_shards;
use ours::{Core, Door};
use plain::Plainly;
pub(crate) use references::NOTHING;

/// The hash function of every cache.
pub(crate) type Hasher = DefaultHashBuilder;

/// The policies of this crate: a new one is to be added here and nowhere else.
pub(crate) const POLICIES: [EvictionPolicy; 3] =
    [EvictionPolicy::S3Fifo, EvictionPolicy::HitDensity, EvictionPolicy::Lru];

/// How large a cache may grow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Or as many as the bytes allow, which is then about this number.
    pub(crate) entries: usize,
    /// For caches that can: instead of the limit on entries. Counted are the heaps of key and value.
    pub(crate) bytes: Option<u64>,
    /// For caches that can.
    pub(crate) time_to_live: Option<Duration>,
}

impl Limits {
    pub(crate) const fn entries(entries: usize) -> Self {
        Self { entries, bytes: None, time_to_live: None }
    }
}

/// A cache as threads use it.
pub(crate) trait Cache<K: Key, V: Value>: Send + Sync + 'static {
    /// What a hit returns: something that keeps the value alive and dereferences to it.
    type Found: Send;

    /// Whether there is a limit at all.
    const EVICTS: bool = true;
    /// Whether it can limit bytes.
    const WEIGHS: bool = true;
    /// Whether entries can expire.
    const EXPIRES: bool = false;

    fn get(&self, key: &K) -> Option<Self::Found>;

    /// The components of a hit, read through what the cache returned for it.
    fn components(found: &Self::Found) -> &[f32];

    /// Stores or replaces.
    fn put(&self, key: K, value: V);

    /// What a server does for a batch: a loop, for want of anything better.
    fn get_many(&self, keys: &[K]) -> Vec<Option<Self::Found>> {
        keys.iter().map(|key| self.get(key)).collect()
    }

    /// Work put off by earlier operations, which a count of entries or bytes must not miss.
    fn settle(&self) {}

    /// What its users call now and then.
    fn clean_up(&self) {}

    fn len(&self) -> usize;
}

/// Is shown each cache with its name and the way to make it.
pub(crate) trait Visitor<K: Key, V: Value> {
    fn visit<C: Cache<K, V>>(
        &mut self,
        name: String,
        make: impl Fn(&Limits) -> C + Send + Sync + 'static,
    );
}

/// Which caches to show.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ours {
    /// The default policy.
    Default,
    EveryPolicy,
}

impl Ours {
    fn policies(self) -> Vec<EvictionPolicy> {
        match self {
            Self::Default => vec![EvictionPolicy::default()],
            Self::EveryPolicy => POLICIES.to_vec(),
        }
    }
}

/// Shows the sharded core and all caches of others.
pub(crate) fn visit<K: Key, V: Value>(ours: Ours, visitor: &mut impl Visitor<K, V>) {
    for policy in ours.policies() {
        visitor.visit(named(CORE, policy), move |limits| Core::new(limits, policy));
    }
    peers::visit(visitor);
    references::visit(visitor);
}

/// The same, and the door to the core that embedding servers use.
pub(crate) fn visit_with_door<K: TextKey>(
    ours: Ours,
    visitor: &mut impl Visitor<K, EmbeddingVector>,
) {
    for policy in ours.policies() {
        visitor.visit(named(DOOR, policy), move |limits| Door::<K>::new(limits, policy));
    }
    visit(ours, &mut Plainly(visitor));
}

/// Shows, beside those, the others with the hash functions that their users get, and what knows a
/// time-to-live with a long one.
pub(crate) fn visit_with_variants<K: TextKey>(
    ours: Ours,
    visitor: &mut impl Visitor<K, EmbeddingVector>,
) {
    visit_with_door(ours, visitor);
    peers::visit_with_own_hash(&mut Plainly(&mut *visitor));
    let policy = EvictionPolicy::default();
    let visitor = &mut Expiring(visitor);
    visitor.visit(DOOR.to_owned(), move |limits| Door::<K>::new(limits, policy));
    let visitor = &mut Plainly(visitor);
    visitor.visit(CORE.to_owned(), move |limits| Core::new(limits, policy));
    peers::visit_that_expire(visitor);
}

/// Shows caches with a time-to-live that no entry reaches.
struct Expiring<'a, T>(&'a mut T);

impl<K: Key, V: Value, T: Visitor<K, V>> Visitor<K, V> for Expiring<'_, T> {
    fn visit<C: Cache<K, V>>(
        &mut self,
        name: String,
        make: impl Fn(&Limits) -> C + Send + Sync + 'static,
    ) {
        self.0.visit(format!("{name} ({TIME_TO_LIVE})"), move |limits| {
            make(&Limits { time_to_live: Some(LONG), ..*limits })
        });
    }
}

/// How a cache whose entries expire is told from the same without.
const TIME_TO_LIVE: &str = "time-to-live";
const LONG: Duration = Duration::from_secs(60 * 60);

/// Shows every cache that can limit bytes, and some that cannot.
pub(crate) fn visit_weighing<K: TextKey>(
    ours: Ours,
    visitor: &mut impl Visitor<K, EmbeddingVector>,
) {
    visit_with_door(ours, visitor);
    peers::visit_by_bytes(&mut Plainly(visitor));
}

const CORE: &str = "ShardedCache";
const DOOR: &str = "EmbeddingCache";

/// The default policy goes without saying.
fn named(cache: &str, policy: EvictionPolicy) -> String {
    if policy == EvictionPolicy::default() {
        cache.to_owned()
    } else {
        format!("{cache} {policy:?}")
    }
}

/// Whose a cache is, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Ours,
    /// Of others, and it evicts.
    Peer,
    /// To compare with, but no alternative.
    Reference,
}

impl Side {
    pub(crate) fn of(name: &str) -> Self {
        if name.starts_with(CORE) || name.starts_with(DOOR) {
            Self::Ours
        } else if references::NAMES.contains(&name) {
            Self::Reference
        } else {
            Self::Peer
        }
    }
}
