//! Exact least-recently-used order, whose hits need only the read lock.
//!
//! A list in order of use would have to be relinked by each hit, under the write lock. Instead a
//! hit notes its slot in a log of [`LOG`] places; the next holder of the write lock, for any reason,
//! plays the log back first ([`Policy::drain_hits`]), so every decision is made on the exact order. The
//! hit that finds the log full takes the write lock itself: one hit in 64, and none at all while
//! one and the same entry is read.
//!
//! The idea of buffering reads is that of Caffeine and its descendants; they may drop notes under
//! load, which this log does not.

use crate::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::super::index::SlotHash;
use super::super::list::{Links, List, validate_lists};
use super::super::slots::{SlotId, Slots};
use super::contract::{HitNote, Policy};

/// Hits noted before one of them must take the write lock: 64 make that rare, and playing them
/// back stays in the order of a microsecond.
const LOG: usize = 64;

#[derive(Debug)]
struct Log {
    /// How many hits have claimed a place since the log was last played back, those that found
    /// none included. A claim is a read-modify-write, so the places follow one order.
    claimed: AtomicU32,
    /// The slots that were hit. `NONE` where a hit has claimed its place but not written yet, which
    /// only other readers can see: the write lock waits for all of them.
    slots: [AtomicU32; LOG],
}

impl Default for Log {
    fn default() -> Self {
        Self {
            claimed: AtomicU32::new(0),
            slots: std::array::from_fn(|_| AtomicU32::new(SlotId::NONE.bits())),
        }
    }
}

#[derive(Debug, Default)]
pub(in super::super) struct Lru {
    links: Slots<Links>,
    /// The most recently used in front.
    order: List,
    log: Log,
}

impl Policy for Lru {
    fn insert(&mut self, slot: SlotId, _: SlotHash, _: u64) {
        self.order.push_front(&mut self.links, slot);
    }

    /// Notes the hit, unless `slot` is the most recently used already.
    ///
    /// That skip loses nothing. Take a hit A that skips because the last claimed place, `p`, holds
    /// its slot. 1. Hits that came before A claimed places up to `p`: a claim is visible to
    /// whatever happens after it. So none of them is later in the order than `p`. 2. Hits at the
    /// same time as A may claim places after `p`; they may as well be ordered after A. 3. If the
    /// place `p` was claimed but not yet written, A reads `NONE` and does not skip. 4. A place
    /// cannot hold a note of an earlier filling of the log, as playback resets it.
    #[inline]
    fn hit(&self, slot: SlotId) -> HitNote {
        let claimed = self.log.claimed.load(Relaxed) as usize;
        let latest = match claimed.checked_sub(1) {
            None => self.order.front(),
            Some(last) => {
                self.log.slots.get(last).map(|noted| SlotId::from_bits(noted.load(Relaxed)))
            }
        };
        if latest == Some(slot) {
            return HitNote::Taken;
        }
        // Not claimed at all when it is known to be full: the count could wrap around while a
        // stream of readers keeps a writer waiting.
        if claimed >= LOG {
            return HitNote::Full;
        }
        let place = self.log.claimed.fetch_add(1, Relaxed) as usize;
        match self.log.slots.get(place) {
            Some(free) => {
                free.store(slot.bits(), Relaxed);
                HitNote::Taken
            }
            None => HitNote::Full,
        }
    }

    fn touch(&mut self, slot: SlotId) -> HitNote {
        self.order.move_to_front(&mut self.links, slot);
        HitNote::Taken
    }

    fn drain_hits(&mut self, mut also: impl FnMut(SlotId)) {
        let claimed = std::mem::take(&mut *self.log.claimed.get_mut()) as usize;
        for noted in &mut self.log.slots[..claimed.min(LOG)] {
            let slot = SlotId::from_bits(std::mem::replace(noted.get_mut(), SlotId::NONE.bits()));
            // No slot can have been emptied since the note: that takes the write lock, under which
            // the log is played back first.
            self.order.move_to_front(&mut self.links, slot);
            also(slot);
        }
    }

    fn remove(&mut self, slot: SlotId) {
        self.order.remove(&mut self.links, slot);
    }

    fn victim(&mut self, keep: Option<SlotId>) -> Option<SlotId> {
        let oldest = self.order.back()?;
        if keep == Some(oldest) {
            return self.order.ahead_of(&self.links, oldest);
        }
        Some(oldest)
    }

    fn after_in_use(&self, after: Option<SlotId>) -> Option<SlotId> {
        match after.filter(|&slot| List::holds(&self.links, slot)) {
            Some(slot) => self.order.behind(&self.links, slot),
            None => self.order.front(),
        }
    }

    fn validate(&self, occupied: &mut dyn Iterator<Item = SlotId>) {
        validate_lists(&[&self.order], &self.links, occupied);
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    const HASH: SlotHash = SlotHash(0);

    fn slot(bits: u32) -> SlotId {
        SlotId::from_bits(bits)
    }

    fn order(lru: &Lru) -> Vec<u32> {
        lru.order.iter(&lru.links).map(SlotId::bits).collect()
    }

    #[test]
    fn hits_are_played_back_in_order() {
        let mut lru = Lru::default();
        (0..4).for_each(|i| lru.insert(slot(i), HASH, 1));
        for hit in [1, 0, 0, 1, 2, 1] {
            assert_eq!(lru.hit(slot(hit)), HitNote::Taken);
        }
        let mut seen = Vec::new();
        lru.drain_hits(|slot| seen.push(slot.bits()));
        assert_eq!(order(&lru), [3, 0, 2, 1], "oldest first");
        assert_eq!(seen, [1, 0, 1, 2, 1], "a repeated hit needs no note");
        assert_eq!(lru.victim(None), Some(slot(3)));
        assert_eq!(lru.victim(Some(slot(3))), Some(slot(0)));
    }

    #[test]
    fn a_full_log_asks_for_the_write_lock_and_one_hot_entry_never_fills_it() {
        let mut lru = Lru::default();
        (0..2).for_each(|i| lru.insert(slot(i), HASH, 1));
        for _ in 0..10 * LOG {
            assert_eq!(lru.hit(slot(1)), HitNote::Taken);
        }
        for i in 0..LOG as u32 {
            assert_eq!(lru.hit(slot(i % 2)), HitNote::Taken);
        }
        assert_eq!(lru.hit(slot(0)), HitNote::Full);
        lru.drain_hits(|_| {});
        lru.touch(slot(0));
        assert_eq!(order(&lru), [1, 0]);
        assert_eq!(lru.hit(slot(1)), HitNote::Taken);
    }

    #[test]
    fn nothing_to_evict_but_what_is_kept() {
        let mut lru = Lru::default();
        assert_eq!(lru.victim(None), None);
        lru.insert(slot(0), HASH, 1);
        assert_eq!(lru.victim(Some(slot(0))), None);
    }
}
