//! Which entry of a shard expires next, without a scan.
//!
//! Entries with the cache's own time-to-live expire in the order in which they were written, so a
//! list in that order is enough: 8 bytes an entry, constant time. Jitter makes of that one
//! time-to-live 16 steps, each with a list of its own, and the key's hash chooses the step. Entries
//! with a time-to-live of their own stand in a heap by expiry: 16 bytes an entry, `O(log n)`. Entries
//! that never expire stand in neither. Nothing is given back to the allocator when an entry leaves.

use std::time::Duration;

use smallvec::SmallVec;

use super::heap::Heap;
use super::index::SlotHash;
use super::list::{Links, List};
use super::slots::{SlotId, Slots};
use super::stamp::Stamp;

/// Which time-to-live an entry was written with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::core) enum Life {
    /// The one of the cache.
    Default,
    /// Its own.
    Own,
}

/// How the cache's time-to-live is spread: by up to this fraction of it, and not at all by 0.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(in crate::core) struct Jitter(f64);

/// Into how many steps it is spread.
const STEPS: usize = 16;

impl Jitter {
    /// `None` unless `fraction` is from 0 to 1.
    pub(in crate::core) fn new(fraction: f64) -> Option<Self> {
        (0.0..=1.0).contains(&fraction).then_some(Self(fraction))
    }

    /// Whether the time-to-live is spread at all.
    pub(in crate::core) fn is_any(self) -> bool {
        self.0 > 0.0
    }

    fn steps(self) -> usize {
        if self.0 > 0.0 { STEPS } else { 1 }
    }

    /// The step of an entry. Its hash is mixed once more, so that a hash function whose lower half
    /// is poor spreads too.
    fn step(self, hash: SlotHash) -> usize {
        if self.0 > 0.0 { (hash.0.wrapping_mul(0x9E37_79B9) >> 28) as usize } else { 0 }
    }

    /// The time-to-live of an entry: the whole of it, or down to 15 sixteenths of the fraction
    /// less. Never 0, which would be another thing: expired at once.
    pub(in crate::core) fn apply(self, time_to_live: Duration, hash: SlotHash) -> Duration {
        match self.step(hash) {
            0 => time_to_live,
            step => {
                let part = 1.0 - self.0 * step as f64 / STEPS as f64;
                time_to_live.mul_f64(part).max(Duration::from_nanos(1)).min(time_to_live)
            }
        }
    }
}

/// Links made in one go.
const LEAP: usize = 64;

#[derive(Debug)]
pub(in crate::core) struct Expiry {
    jitter: Jitter,
    links: Slots<Links>,
    /// For each step, in the order of expiry, the next at the back.
    written: SmallVec<[List; 1]>,
    own: Heap<Stamp>,
}

impl Expiry {
    pub(in crate::core) fn new(jitter: Jitter) -> Self {
        Self {
            jitter,
            links: Slots::default(),
            written: SmallVec::from_elem(List::default(), jitter.steps()),
            own: Heap::default(),
        }
    }

    /// Notes when `slot` expires. With [`Life::Default`] no earlier one may expire later, which the
    /// table sees to: its clock stands still where the given one goes back.
    #[inline]
    pub(in crate::core) fn schedule(
        &mut self,
        slot: SlotId,
        expiry: Stamp,
        life: Life,
        hash: SlotHash,
    ) {
        // Without a time-to-live this is all.
        if expiry != Stamp::NEVER {
            self.enlist(slot, expiry, life, hash);
        }
    }

    fn enlist(&mut self, slot: SlotId, expiry: Stamp, life: Life, hash: SlotHash) {
        if life == Life::Default && self.can_link(slot) {
            self.written[self.jitter.step(hash)].push_front(&mut self.links, slot);
        } else {
            self.own.insert(slot, expiry);
        }
    }

    /// Whether there are links for `slot`, or few enough missing.
    ///
    /// The first entry with the cache's time-to-live may come after a million with their own. The
    /// links up to there are not made in one go, but [`LEAP`] each time; an entry that comes until then
    /// stands in the heap, as the others do.
    fn can_link(&mut self, slot: SlotId) -> bool {
        let reached = self.links.len() + LEAP;
        let can = (slot.bits() as usize) < reached;
        if !can {
            self.links.reach(SlotId::from_bits(reached as u32 - 1));
        }
        can
    }

    /// Forgets `slot`, which was scheduled with this `expiry` and `hash`.
    #[inline]
    pub(in crate::core) fn cancel(&mut self, slot: SlotId, expiry: Stamp, hash: SlotHash) {
        if expiry != Stamp::NEVER {
            self.strike(slot, hash);
        }
    }

    fn strike(&mut self, slot: SlotId, hash: SlotHash) {
        if List::holds(&self.links, slot) {
            self.written[self.jitter.step(hash)].remove(&mut self.links, slot);
        } else {
            self.own.remove(slot);
        }
    }

    /// Notes that the entry in `slot`, which expired at the first `old` and had the other, made way for
    /// another one: [`cancel`](Self::cancel) and [`schedule`](Self::schedule) in one step.
    pub(in crate::core) fn exchange(
        &mut self,
        slot: SlotId,
        old: (Stamp, SlotHash),
        expiry: Stamp,
        life: Life,
        hash: SlotHash,
    ) {
        let step = self.jitter.step(hash);
        let stays = life == Life::Default && expiry != Stamp::NEVER && old.0 != Stamp::NEVER;
        if stays && step == self.jitter.step(old.1) && List::holds(&self.links, slot) {
            self.written[step].move_to_front(&mut self.links, slot);
        } else {
            self.cancel(slot, old.0, old.1);
            self.schedule(slot, expiry, life, hash);
        }
    }

    /// A slot that is expired at `now`, if there is one. `O(1)`; with jitter a look at 16 lists.
    pub(in crate::core) fn expired(
        &self,
        now: Stamp,
        expiry_of: impl Fn(SlotId) -> Stamp,
    ) -> Option<SlotId> {
        if let Some((expiry, slot)) = self.own.first()
            && !expiry.is_alive_at(now)
        {
            return Some(slot);
        }
        let mut oldest = self.written.iter().filter_map(List::back);
        oldest.find(|&oldest| !expiry_of(oldest).is_alive_at(now))
    }

    pub(in crate::core) fn validate(
        &self,
        occupied: impl Iterator<Item = (SlotId, Stamp, SlotHash)>,
    ) {
        self.own.validate();
        let mut listed = 0;
        let mut stamps = std::collections::BTreeMap::new();
        for (slot, expiry, hash) in occupied {
            stamps.insert(slot, (expiry, self.jitter.step(hash)));
            let linked = List::holds(&self.links, slot);
            let own = self.own.moment_of(slot) == Some(expiry);
            assert!(!(linked && own), "{slot:?} expires twice");
            assert_eq!(linked || own, expiry != Stamp::NEVER, "{slot:?} is not scheduled");
            listed += usize::from(linked || own);
        }
        let written: usize = self.written.iter().map(List::len).sum();
        assert_eq!(listed, written + self.own.len(), "something empty expires");
        for (step, list) in self.written.iter().enumerate() {
            let mut earlier = Stamp::ZERO;
            let mut count = 0;
            for slot in list.iter(&self.links) {
                let (expiry, its) = stamps[&slot];
                assert_eq!(its, step, "{slot:?} is in the list of another step");
                assert!(expiry >= earlier, "{slot:?} expires before its turn");
                (earlier, count) = (expiry, count + 1);
            }
            assert_eq!(count, list.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_with_the_common_time_to_live_may_come_late() {
        let mut expiry = Expiry::new(Jitter::default());
        let own = if cfg!(miri) { 200 } else { 10_000 };
        let slot = SlotId::from_bits;
        let stamp = |slot: SlotId| Stamp::from_nanos(1_000_000 - u64::from(slot.bits()));
        for id in (0..own).map(slot) {
            expiry.schedule(id, stamp(id), Life::Own, SlotHash(0));
        }
        assert_eq!(expiry.links.len(), 0);
        // In the order in which they expire.
        let all = (own..2 * own).map(slot);
        for id in all.clone() {
            let before = expiry.links.len();
            let end = Stamp::from_nanos(2_000_000 + u64::from(id.bits()));
            expiry.schedule(id, end, Life::Default, SlotHash(0));
            assert!(expiry.links.len() <= before + LEAP, "more than a leap");
        }
        let listed = expiry.written[0].len();
        assert!(listed > own as usize / 2, "{listed} in the list");
        assert_eq!(listed + expiry.own.len(), 2 * own as usize);
        let first = expiry.expired(Stamp::from_nanos(1_000_000), stamp);
        assert_eq!(first, Some(slot(own - 1)));
        for id in (0..own).map(slot).chain(all) {
            expiry.cancel(id, Stamp::ZERO, SlotHash(0));
        }
        assert_eq!((expiry.written[0].len(), expiry.own.len()), (0, 0));
    }
}
