//! An entry in its slot, and what the table must know of one that comes in.

use equivalent::Equivalent;

use crate::sync::atomic::AtomicU64;

use super::expiry::Life;
use super::index::SlotHash;
use super::slots::SlotId;
use super::stamp::{Span, Stamp};

/// An entry in its slot. In this order, so that what a hit looks at stands together.
#[derive(Debug)]
#[repr(C)]
pub(in crate::core) struct Entry<K, V> {
    pub(in crate::core) expiry: Stamp,
    pub(in crate::core) key: K,
    pub(in crate::core) value: V,
    /// With a policy that keeps an order of use, the tick of the last use; see [`ticks`](super::ticks).
    /// With another, the [`policy_epoch`](super::policy::Policy::policy_epoch) in which the policy had
    /// nothing more to learn from hits of this entry, or 0, which is no epoch. Here, so that a hit touches no memory but the
    /// slot's.
    pub(super) seen: AtomicU64,
    pub(super) hash: SlotHash,
    /// When the value was written, in seconds since the cache was made; for people.
    pub(in crate::core) written: u32,
    pub(in crate::core) weight: u64,
}

#[derive(Debug)]
pub(in crate::core) enum Slot<K, V> {
    Occupied(Entry<K, V>),
    /// The next vacant one, or `NONE`.
    Vacant(SlotId),
}

impl<K, V> Default for Slot<K, V> {
    fn default() -> Self {
        Self::Vacant(SlotId::NONE)
    }
}

impl<K, V> Slot<K, V> {
    #[inline]
    pub(super) fn entry(&self) -> Option<&Entry<K, V>> {
        match self {
            Self::Occupied(entry) => Some(entry),
            Self::Vacant(_) => None,
        }
    }

    /// Reads something of both ends of the slot, so that the processor has it. What is returned must
    /// be used.
    #[inline]
    pub(in crate::core) fn touch(&self) -> u64 {
        self.entry().map_or(0, |entry| entry.expiry.nanos() ^ entry.weight)
    }

    /// The entry, if it is that of `key`.
    #[inline]
    pub(in crate::core) fn entry_of<Q>(&self, key: &Q) -> Option<&Entry<K, V>>
    where
        Q: Equivalent<K> + ?Sized,
    {
        self.entry().filter(|entry| key.equivalent(&entry.key))
    }
}

/// What the table has to know of an entry that comes in, beside its key and value.
#[derive(Debug, Clone, Copy)]
pub(in crate::core) struct NewEntry {
    pub(in crate::core) hash: SlotHash,
    pub(in crate::core) weight: u64,
    /// What [`MemoryPressure::LargestFirst`](super::policy::MemoryPressure) goes by.
    pub(in crate::core) size: u64,
    /// How long it is kept: its time-to-live and the grace.
    pub(in crate::core) span: Span,
    pub(in crate::core) life: Life,
    pub(in crate::core) now: Stamp,
    /// The same moment in seconds since the cache was made.
    pub(in crate::core) written: u32,
}
