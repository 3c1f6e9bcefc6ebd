//! What an export asks of a table.

use std::time::Duration;

use crate::sync::atomic::Ordering::Relaxed;

use super::policy::Policy;
use super::slots::SlotId;
use super::stamp::Stamp;
use super::{Entry, Table};

impl<K, V> Table<K, V> {
    /// How long an entry will be served, however much it is used; `None` if for ever.
    pub(in super::super) fn time_to_live_left(
        &self,
        entry: &Entry<K, V>,
        now: Stamp,
    ) -> Option<Duration> {
        entry.expiry.life_left(now.plus(self.table_config.grace))
    }

    /// How much an entry is worth keeping beside the others of the cache. Where the policy keeps an order
    /// of use that is how long ago it was used, seen from when [`newest`](Self::newest) was asked for.
    pub(in super::super) fn heat(&self, id: SlotId, entry: &Entry<K, V>, newest: u64) -> u64 {
        if !self.ticks.are_kept() {
            return u64::from(self.policy.heat(id));
        }
        // What was used since then is hotter than all that was not.
        (entry.seen.load(Relaxed).wrapping_sub(newest)).wrapping_add(1 << 63)
    }

    /// The newest tick, for [`heat`](Self::heat).
    pub(in super::super) fn newest(&self) -> u64 {
        self.policy_epoch.load(Relaxed)
    }
}
