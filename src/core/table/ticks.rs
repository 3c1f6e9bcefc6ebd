//! The order of use, where a policy keeps one: every use of an entry has a tick, later uses higher ones.
//!
//! The newest tick stands beside the lock of the shard, on the line of memory that taking the lock has
//! made this processor's own; that of an entry's last use stands in its slot, which the lookup has read
//! already. So a hit needs the read lock only, has always a place to note itself, and what is evicted is
//! chosen by the last use of each entry, exactly.
//!
//! Why nothing is lost, though all of it is relaxed. A hit adds to the newest tick and raises that of
//! its entry to what it got, both by a read-modify-write, while it holds the read lock. Take two hits,
//! A and B, of which A had ended when B began, and what holds the write lock afterwards.
//! 1. A's addition comes before B's in the order of all changes to the newest tick, as whatever let B
//!    know that A had ended came between them. So B's tick is higher.
//! 2. If both are of one entry, its tick is raised and never lowered: a slow thread cannot undo a later
//!    use. If not, each entry has at least the tick of its hit.
//! 3. The writer has the lock after both gave it back, so it sees both ticks.
//! 4. B may find that its entry has the newest tick, and then changes nothing. A's addition is seen by
//!    B, so A's tick is not higher than that: either A was of the same entry or its tick is lower. A hit
//!    that B does not see is at the same time as B, and may as well be ordered before it.
//!
//! Hits at the same time get ticks in some order, as if one had come after the other. A tick has 64
//! bits, of which no number of hits uses up as many.

use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::slots::SlotId;
use super::store::Store;

/// From one tick to the next. Even where the entry was used since it came, odd where not: what was not
/// used since still stands where it was put then.
const STEP: u64 = 2;

/// The same where each hit must be noted, the newest entry's as well: then the newest tick is ahead of
/// that of every entry.
const STEP_AHEAD: u64 = 4;

/// Entries whose ticks are found changed, and which are put in their new places, under one lock hold at
/// most. Few where a scheduler tries what happens between two of them.
const LOOKS: usize = if cfg!(shuttle) { 2 } else { 64 };

/// How ticks are given in a table, if they are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticks {
    /// From one to the next; 0 where the policy keeps no order of use.
    step: u64,
    notes_every_hit: bool,
}

impl Ticks {
    /// The newest tick of a table before the first entry comes: no tick is 0.
    pub(super) const FIRST: u64 = 4;
    /// In place of a tick: as if there was no use.
    pub(super) const NO_USE: u64 = 1;

    pub(super) fn new(are_kept: bool, notes_every_hit: bool) -> Self {
        let step = if notes_every_hit { STEP_AHEAD } else { STEP };
        Self { step: if are_kept { step } else { 0 }, notes_every_hit }
    }

    /// Whether no hit may be passed over, as entries may be idle.
    #[inline]
    pub(super) fn notes_every_hit(self) -> bool {
        self.notes_every_hit
    }

    pub(super) fn are_kept(self) -> bool {
        self.step != 0
    }

    /// The ticks of the entries in `store`, as they are now, if they are kept.
    #[inline]
    pub(super) fn of<K, V>(store: &Store<K, V>) -> impl LastUse {
        |id| store.entry(id).map_or(Self::NO_USE, |entry| entry.seen.load(Relaxed))
    }

    /// The tick of an entry that comes in; 0 if none are kept.
    #[inline]
    pub(super) fn insert(self, newest: &mut AtomicU64) -> u64 {
        if !self.are_kept() {
            return 0;
        }
        let newest = newest.get_mut();
        *newest += self.step;
        *newest - 1
    }

    /// Notes a hit under the read lock.
    #[inline]
    pub(super) fn hit(self, newest: &AtomicU64, last_use: &AtomicU64) {
        let now = newest.load(Relaxed);
        // The entry used last, or inserted last: its place in the order would be the same.
        if now.wrapping_sub(last_use.load(Relaxed)) < self.step {
            return;
        }
        let before = newest.fetch_add(self.step, Relaxed);
        last_use.fetch_max(before + STEP, Relaxed);
    }

    /// The tick of a use under the write lock.
    #[inline]
    pub(super) fn touch(self, newest: &mut AtomicU64) -> u64 {
        let newest = newest.get_mut();
        let before = *newest;
        *newest += self.step;
        before + STEP
    }
}

/// Whether the entry with this tick was used since it came.
#[inline]
pub(super) const fn is_of_a_use(tick: u64) -> bool {
    tick.is_multiple_of(2)
}

/// The ticks of the entries, as they are now.
pub(super) trait LastUse: Fn(SlotId) -> u64 {}
impl<F: Fn(SlotId) -> u64> LastUse for F {}

/// How many entries a search for the one to evict may still put in their places.
///
/// An order finds out that an entry was used only when its turn to leave comes. After a million hits
/// without a write all of a shard may have to be gone through, so a search that has looked enough under
/// one lock hold ends without an answer, and its caller goes on under the next. While readers use all
/// that is put right, it ends after two looks at each entry with the best it knows.
#[derive(Debug)]
pub(super) struct Looks {
    left: usize,
    /// Since an entry to evict was found last.
    in_vain: usize,
}

impl Default for Looks {
    fn default() -> Self {
        Self { left: LOOKS, in_vain: 0 }
    }
}

impl Looks {
    /// At the beginning of each lock hold.
    #[inline]
    pub(super) fn reset(&mut self) {
        self.left = LOOKS;
    }

    /// Takes one, if any is left.
    pub(super) fn take(&mut self) -> bool {
        let has = self.left > 0;
        if has {
            (self.left, self.in_vain) = (self.left - 1, self.in_vain + 1);
        }
        has
    }

    pub(super) fn are_used_up(&self) -> bool {
        self.left == 0
    }

    /// Whether a search among so many entries has looked at each twice.
    pub(super) fn suffice(&self, entries: usize) -> bool {
        self.in_vain > 2 * entries
    }

    /// A search has an answer.
    #[inline]
    pub(super) fn found(&mut self) {
        self.in_vain = 0;
    }
}
