//! The orders in which entries leave beside that of the policy: by time-to-live, by last use, by size.
//!
//! A cache may need each of them or none. The table tells all of them of an event in one call. It has
//! them from the beginning where every entry needs one, else from the first entry that expires.

use std::time::Duration;

use super::config::TableConfig;
use super::entry::Ticket;
use super::expiry::{Expiry, Life};
use super::idle::Idle;
use super::index::SlotHash;
use super::policy::{MemoryPressure, Sizes};
use super::slots::SlotId;
use super::stamp::Stamp;

#[derive(Debug)]
pub(super) struct Orders {
    expiry: Expiry,
    /// Only where entries may be idle for too long.
    idle: Option<Idle>,
    /// Only where the largest is evicted first.
    sizes: Option<Sizes>,
}

impl Orders {
    pub(super) fn new(config: &TableConfig) -> Self {
        Self {
            expiry: Expiry::new(config.jitter),
            idle: config.time_to_idle.map(Idle::new),
            sizes: (config.pressure == MemoryPressure::LargestFirst).then(Sizes::default),
        }
    }

    /// Whether every entry needs them; else only one that expires does.
    pub(super) fn are_needed_by_all(config: &TableConfig) -> bool {
        config.time_to_idle.is_some() || config.pressure == MemoryPressure::LargestFirst
    }

    /// First of all under every write lock.
    pub(super) fn begin_write(&mut self) {
        if let Some(idle) = &mut self.idle {
            idle.reset_scan_budget();
        }
    }

    /// An entry stands in `id`, written at `now`.
    pub(super) fn inserted(&mut self, id: SlotId, expiry: Stamp, now: Stamp, ticket: Ticket) {
        self.expiry.schedule(id, expiry, ticket.life, ticket.hash);
        if let Some(sizes) = &mut self.sizes {
            sizes.insert(id, ticket.size);
        }
        if let Some(idle) = &mut self.idle {
            idle.write(id, now);
        }
    }

    /// The value in `id`, which expired at `old`, was replaced at `now`.
    pub(super) fn replaced(
        &mut self,
        id: SlotId,
        old: Stamp,
        expiry: Stamp,
        now: Stamp,
        ticket: Ticket,
    ) {
        self.expiry.cancel(id, old, ticket.hash);
        if let Some(sizes) = &mut self.sizes {
            sizes.remove(id);
        }
        self.inserted(id, expiry, now, ticket);
    }

    /// The entry in `id`, which expired at `old`, was given a time-to-live of its own. No use of it.
    pub(super) fn rescheduled(&mut self, id: SlotId, old: Stamp, expiry: Stamp, hash: SlotHash) {
        self.expiry.cancel(id, old, hash);
        self.expiry.schedule(id, expiry, Life::Own, hash);
    }

    /// The entry in `id` was used. Under the write lock; when that was is [noted](Self::note_use)
    /// under either.
    pub(super) fn touched(&mut self, id: SlotId) {
        if let Some(sizes) = &mut self.sizes {
            sizes.touch(id);
        }
    }

    /// The entry in `id`, which expired at `expiry`, has left.
    pub(super) fn removed(&mut self, id: SlotId, expiry: Stamp, hash: SlotHash) {
        self.expiry.cancel(id, expiry, hash);
        if let Some(sizes) = &mut self.sizes {
            sizes.remove(id);
        }
        if let Some(idle) = &mut self.idle {
            idle.remove(id);
        }
    }

    /// Notes when an entry was used, under either lock.
    #[inline]
    pub(super) fn note_use(&self, id: SlotId, now: Stamp) {
        if let Some(idle) = &self.idle {
            idle.note(id, now);
        }
    }

    #[inline]
    pub(super) fn is_idle(&self, id: SlotId, now: Stamp) -> bool {
        self.idle.as_ref().is_some_and(|idle| idle.is_idle(id, now))
    }

    /// How long an entry will be served if it is not used; `None` if for ever.
    pub(super) fn idle_left(&self, id: SlotId, now: Stamp) -> Option<Duration> {
        self.idle.as_ref()?.left(id, now)
    }

    /// An entry that is expired or idle at `now`, if one is found; see [`is_tired`](Self::is_tired).
    pub(super) fn expired(
        &mut self,
        now: Stamp,
        expiry_of: impl Fn(SlotId) -> Stamp,
    ) -> Option<SlotId> {
        let expired = self.expiry.expired(now, expiry_of);
        expired.or_else(|| self.idle.as_mut()?.expired(now))
    }

    /// Whether [`expired`](Self::expired) finds nothing more only because it has looked enough under
    /// one lock hold.
    pub(super) fn is_tired(&self) -> bool {
        self.idle.as_ref().is_some_and(Idle::is_tired)
    }

    /// The order by size, if it is needed.
    pub(super) fn sizes(&self) -> Option<&Sizes> {
        self.sizes.as_ref()
    }

    /// Panics unless each order holds exactly what it should of `occupied`.
    pub(super) fn validate(
        &self,
        occupied: impl Iterator<Item = (SlotId, Stamp, SlotHash)> + Clone,
    ) {
        let mut ids = occupied.clone().map(|(id, ..)| id);
        if let Some(sizes) = &self.sizes {
            sizes.validate(&mut ids.clone());
        }
        if let Some(idle) = &self.idle {
            idle.validate(&mut ids);
        }
        self.expiry.validate(occupied);
    }
}
