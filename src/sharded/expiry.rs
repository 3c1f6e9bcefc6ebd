//! Which entry of a shard expires next, without a scan.
//!
//! Entries with the cache's own time-to-live expire in the order in which they were written, so a
//! list in that order is enough: 8 bytes an entry, constant time. Entries with a time-to-live of
//! their own stand in a tree by expiry. Entries that never expire stand in neither.

use std::collections::BTreeSet;

use super::chunked::{Chunked, SlotId};
use super::clock::Stamp;
use super::policy::{Links, List};

/// Which time-to-live an entry was written with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// The one of the cache.
    Default,
    /// Its own.
    Own,
}

#[derive(Debug, Default)]
pub(super) struct Expiry {
    links: Chunked<Links>,
    /// In the order of expiry, the next at the back.
    written: List,
    own: BTreeSet<(Stamp, SlotId)>,
}

impl Expiry {
    /// Notes when `slot` expires. With [`Life::Default`] no earlier one may expire later, which the
    /// table sees to: its clock stands still where the given one goes back.
    pub(super) fn schedule(&mut self, slot: SlotId, expiry: Stamp, life: Life) {
        match life {
            _ if expiry == Stamp::NEVER => {}
            Life::Default => self.written.push_front(&mut self.links, slot),
            Life::Own => drop(self.own.insert((expiry, slot))),
        }
    }

    /// Forgets `slot`, which was scheduled with this `expiry`.
    pub(super) fn cancel(&mut self, slot: SlotId, expiry: Stamp) {
        if expiry == Stamp::NEVER {
            return;
        }
        if self.links.get(slot).is_some_and(|links| links.is_linked()) {
            self.written.remove(&mut self.links, slot);
        } else {
            self.own.remove(&(expiry, slot));
        }
    }

    /// A slot that is expired at `now`, if there is one. `O(1)` or `O(log own)`.
    pub(super) fn expired(
        &self,
        now: Stamp,
        expiry_of: impl Fn(SlotId) -> Stamp,
    ) -> Option<SlotId> {
        if let Some(&(expiry, slot)) = self.own.first()
            && !expiry.is_alive_at(now)
        {
            return Some(slot);
        }
        self.written.back().filter(|&oldest| !expiry_of(oldest).is_alive_at(now))
    }

    pub(super) fn validate(&self, occupied: impl Iterator<Item = (SlotId, Stamp)>) {
        let mut listed = 0;
        for (slot, expiry) in occupied {
            let linked = self.links.get(slot).is_some_and(|links| links.is_linked());
            let own = self.own.contains(&(expiry, slot));
            assert!(!(linked && own), "{slot:?} expires twice");
            assert_eq!(linked || own, expiry != Stamp::NEVER, "{slot:?} is not scheduled");
            listed += usize::from(linked || own);
        }
        assert_eq!(listed, self.written.len() + self.own.len(), "something empty expires");
        assert_eq!(self.written.iter(&self.links).count(), self.written.len());
    }
}
