//! Which entries of a shard have not been used for too long, without a scan.
//!
//! A hit notes when it was, in a stamp beside the slot: one relaxed read-modify-write under the read
//! lock, and only when the clock has moved on since the last. Reads judge by that stamp, so an idle
//! entry is never served.
//!
//! To give its memory back it must also be *found*. The slots stand in a list by when they were last
//! put in front: when written, or when looked at from the back and found to have been used. An entry
//! cannot be idle before it has stood in the list for the limit, so looking from the back may stop
//! at the first one that has not. One used just before it was put in front again is looked at only
//! after the limit has passed once more: it is found at most twice the limit after its last use.
//! The looks are counted, and at most [`LOOKS`] are made under one lock hold.

use std::time::Duration;

use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::list::{Links, List};
use super::slots::{SlotId, Slots};
use super::stamp::{Span, Stamp};

/// Entries found used, and put in front again, under one lock hold at most.
const LOOKS: usize = 64;

#[derive(Debug, Default)]
struct Use {
    /// In nanoseconds of the clock. Relaxed: a reader that finds an entry idle looks again under the
    /// write lock, after all that readers have noted, before it removes the entry.
    last: AtomicU64,
    /// When it was last put in front.
    listed: Stamp,
}

#[derive(Debug)]
pub(in crate::core) struct Idle {
    limit: Span,
    uses: Slots<Use>,
    links: Slots<Links>,
    /// In the order of `listed`, the earliest at the back.
    order: List,
    /// The latest moment at which one was put in front: where the clock goes back, this one stands
    /// still.
    latest: Stamp,
    looks: usize,
}

impl Idle {
    pub(in crate::core) fn new(limit: Duration) -> Self {
        Self {
            limit: Span::of(limit),
            uses: Slots::default(),
            links: Slots::default(),
            order: List::default(),
            latest: Stamp::ZERO,
            looks: LOOKS,
        }
    }

    /// At the beginning of each lock hold.
    pub(in crate::core) fn reset_scan_budget(&mut self) {
        self.looks = LOOKS;
    }

    /// Whether the looks of this lock hold are used up, so that there may be more to find.
    pub(in crate::core) fn is_tired(&self) -> bool {
        self.looks == 0
    }

    /// Notes a use, under the read lock or the write lock.
    #[inline]
    pub(in crate::core) fn note(&self, id: SlotId, now: Stamp) {
        let last = &self.uses[id].last;
        // Mostly the clock has not moved on. Where it has, only forward: a thread that was slow to
        // note an earlier use must not undo a later one.
        if last.load(Relaxed) < now.nanos() {
            last.fetch_max(now.nanos(), Relaxed);
        }
    }

    fn end_of(&self, id: SlotId) -> Stamp {
        Stamp::from_nanos(self.uses[id].last.load(Relaxed)).expiry(self.limit)
    }

    /// Whether the time since the last use of `id` exceeds the limit.
    #[inline]
    pub(in crate::core) fn is_idle(&self, id: SlotId, now: Stamp) -> bool {
        !self.end_of(id).is_alive_at(now)
    }

    /// How long `id` will be served if it is not used.
    pub(in crate::core) fn left(&self, id: SlotId, now: Stamp) -> Option<Duration> {
        self.end_of(id).life_left(now)
    }

    /// A value was written to `id`.
    pub(in crate::core) fn write(&mut self, id: SlotId, now: Stamp) {
        self.remove(id);
        self.put_in_front(id, now);
        *self.uses[id].last.get_mut() = now.nanos();
    }

    pub(in crate::core) fn remove(&mut self, id: SlotId) {
        if List::holds(&self.links, id) {
            self.order.remove(&mut self.links, id);
        }
    }

    fn put_in_front(&mut self, id: SlotId, now: Stamp) {
        self.latest = self.latest.max(now);
        self.order.push_front(&mut self.links, id);
        self.uses.reach(id).listed = self.latest;
    }

    /// A slot that is idle at `now`, if the looks that are left find one.
    pub(in crate::core) fn expired(&mut self, now: Stamp) -> Option<SlotId> {
        while self.looks > 0 {
            let id = self.order.back()?;
            if self.uses[id].listed.expiry(self.limit).is_alive_at(now) {
                return None;
            }
            if self.is_idle(id, now) {
                return Some(id);
            }
            self.looks -= 1;
            self.remove(id);
            self.put_in_front(id, now);
        }
        None
    }

    pub(in crate::core) fn validate(&self, occupied: &mut dyn Iterator<Item = SlotId>) {
        let mut all = 0;
        for id in occupied {
            assert!(List::holds(&self.links, id), "{id:?} is never looked at");
            all += 1;
        }
        assert_eq!(self.order.len(), all, "something empty is looked at");
        let listed: Vec<_> = self.order.iter(&self.links).map(|id| self.uses[id].listed).collect();
        assert_eq!(listed.len(), all, "the list miscounts itself");
        assert!(listed.is_sorted(), "looked at out of order");
    }
}
