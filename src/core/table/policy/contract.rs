//! What the table and the policies agree on.

use super::super::index::SlotHash;
use super::super::slots::SlotId;
use super::super::ticks::{LastUse, Looks};

/// The [`Policy::policy_epoch`] of a policy that settles nothing.
pub(in super::super) const NO_EPOCH: u64 = u64::MAX;

/// The epoch for a number that counts up.
pub(super) const fn epoch_of(count: u32) -> u64 {
    count as u64 + 1
}

/// What a policy makes of a hit that it was told of under the read lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::core) enum HitNote {
    /// Taken.
    Taken,
    /// Taken, and more hits of the slot are not worth a note until [`Policy::policy_epoch`] changes.
    Settled,
    /// The policy keeps an order of use: the caller gives the entry a new tick.
    Ordered,
}

pub(in super::super) trait Policy {
    /// A new entry of this weight stands in `slot`.
    fn insert(&mut self, slot: SlotId, hash: SlotHash, weight: u64);

    /// The entry in `slot` has another weight from now on.
    fn weigh(&mut self, _slot: SlotId, _weight: u64) {}

    /// What changes whenever a slot that was [settled](HitNote::Settled) is so no longer: never 0,
    /// and under the write lock only. A policy that settles nothing leaves the `present` one as it is.
    fn policy_epoch(&self, present: u64) -> u64 {
        present
    }

    /// The entry in `slot` was read. Under the *read* lock: relaxed atomics only.
    fn hit(&self, slot: SlotId) -> HitNote;

    /// The entry in `slot` was read or its value replaced; under the write lock.
    fn touch(&mut self, slot: SlotId) -> HitNote;

    /// The entry in `slot` leaves for another reason than that the policy chose it: that says nothing
    /// of its worth.
    fn remove(&mut self, slot: SlotId);

    /// The entry in `slot` leaves as the policy chose it, which may remember the hash.
    fn evict(&mut self, slot: SlotId, _hash: SlotHash) {
        self.remove(slot);
    }

    /// The entry in `slot` leaves as the policy chose it, and another of this weight takes its place:
    /// as [`evict`](Self::evict) of the hash `old` and [`insert`](Self::insert) of `new`, in one call.
    fn exchange(&mut self, slot: SlotId, old: SlotHash, new: SlotHash, weight: u64) {
        self.evict(slot, old);
        self.insert(slot, new, weight);
    }

    /// The slot to evict next, other than `keep`; it stays until [`evict`](Self::evict). A bounded
    /// amount of work: none where a policy that keeps an order of use has used up its `looks`.
    fn victim(
        &mut self,
        keep: Option<SlotId>,
        last_use: impl LastUse,
        looks: &mut Looks,
    ) -> Option<SlotId>;

    /// The same where it is weight that is needed.
    fn victim_for_weight(
        &mut self,
        keep: Option<SlotId>,
        last_use: impl LastUse,
        looks: &mut Looks,
    ) -> Option<SlotId> {
        self.victim(keep, last_use, looks)
    }

    /// How much the entry in `slot` is worth keeping beside the others of the cache: what is written
    /// down first when all are. Not asked where the policy keeps an order of use, which says it.
    fn heat(&self, slot: SlotId) -> u32;

    /// Panics unless this policy holds exactly `occupied` slots and its parts agree.
    fn validate(&self, occupied: &mut dyn Iterator<Item = SlotId>);
}
