//! The orders in which entries leave beside that of the policy: by time-to-live, by last use, by size.
//!
//! A cache may need each of them or none. The table tells all of them of an event in one call. It has
//! them from the beginning where every entry needs one, else from the first entry that expires.

use super::config::TableConfig;
use super::entry::NewEntry;
use super::expiry::{Expiry, Life};
use super::idle::Idle;
use super::index::SlotHash;
use super::policy::{EvictionPolicy, MemoryPressure, Sizes};
use super::slots::SlotId;
use super::stamp::Stamp;

#[derive(Debug)]
pub(super) struct Orders {
    expiry: Expiry,
    /// Only where entries may be idle for too long.
    pub(super) idle: Option<Idle>,
    /// Only where the largest is evicted first.
    pub(super) sizes: Option<Sizes>,
}

impl Orders {
    pub(super) fn new(config: &TableConfig) -> Self {
        Self {
            expiry: Expiry::new(config.jitter),
            idle: config.time_to_idle.map(Idle::new),
            sizes: (config.pressure == MemoryPressure::LargestFirst)
                .then(|| Sizes::new(config.policy == EvictionPolicy::Lru)),
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
    pub(super) fn inserted(&mut self, id: SlotId, expiry: Stamp, now: Stamp, new_entry: NewEntry) {
        self.expiry.schedule(id, expiry, new_entry.life, new_entry.hash);
        if let Some(sizes) = &mut self.sizes {
            sizes.insert(id, new_entry.size);
        }
        if let Some(idle) = &mut self.idle {
            idle.write(id, now);
        }
    }

    /// The entry in `id`, or its value, made way for another at `now`; of `old` is when it expired and
    /// its hash.
    pub(super) fn exchanged(
        &mut self,
        id: SlotId,
        old: (Stamp, SlotHash),
        expiry: Stamp,
        now: Stamp,
        new_entry: NewEntry,
    ) {
        self.expiry.exchange(id, old, expiry, new_entry.life, new_entry.hash);
        if let Some(sizes) = &mut self.sizes {
            sizes.exchange(id, new_entry.size);
        }
        if let Some(idle) = &mut self.idle {
            idle.write(id, now);
        }
    }

    /// The entry in `id`, which expired at `old`, was given a time-to-live of its own. No use of it.
    pub(super) fn rescheduled(&mut self, id: SlotId, old: Stamp, expiry: Stamp, hash: SlotHash) {
        self.expiry.cancel(id, old, hash);
        self.expiry.schedule(id, expiry, Life::Own, hash);
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

    /// An entry that is expired or idle at `now`, if one is found; see [`Idle::is_tired`].
    pub(super) fn expired(
        &mut self,
        now: Stamp,
        expiry_of: impl Fn(SlotId) -> Stamp,
    ) -> Option<SlotId> {
        let expired = self.expiry.expired(now, expiry_of);
        expired.or_else(|| self.idle.as_mut()?.expired(now))
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
