//! What a cache is compared with that is no alternative to it.

use std::collections::HashMap;

use parking_lot::RwLock;

use super::{Cache, Hasher, Limits, Visitor};
use crate::keys::{Key, Value};

const LOCKED: &str = "RwLock<HashMap>";
pub(super) const SINGLE_LOCK: &str = "SingleLockCache";
/// Of a measurement without any cache.
pub(crate) const NOTHING: &str = "no cache";

/// All of them, those of the replays included.
pub(super) const NAMES: [&str; 10] = [
    LOCKED,
    SINGLE_LOCK,
    NOTHING,
    "exact LRU",
    "exact FIFO",
    "W-TinyLFU (adaptive)",
    "LIRS",
    "MQ",
    "Clock2Q+",
    "optimum",
];

pub(super) fn visit<K: Key, V: Value>(visitor: &mut impl Visitor<K, V>) {
    visitor.visit(LOCKED.to_owned(), Locked::new);
}

/// A map behind one lock: never evicts.
struct Locked<K, V>(RwLock<HashMap<K, V, Hasher>>);

impl<K: Key, V: Value> Locked<K, V> {
    fn new(_: &Limits) -> Self {
        Self(RwLock::new(HashMap::with_hasher(Hasher::default())))
    }
}

impl<K: Key, V: Value> Cache<K, V> for Locked<K, V> {
    type Found = V;

    const EVICTS: bool = false;
    const WEIGHS: bool = false;

    #[inline(always)]
    fn get(&self, key: &K) -> Option<V> {
        self.0.read().get(key).cloned()
    }

    #[inline(always)]
    fn components(found: &V) -> &[f32] {
        found.components()
    }

    #[inline(always)]
    fn put(&self, key: K, value: V) {
        self.0.write().insert(key, value);
    }

    fn len(&self) -> usize {
        self.0.read().len()
    }
}
