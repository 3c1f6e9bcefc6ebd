//! What an export asks of a table.

use std::time::Duration;

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

    /// See [`Policy::heat`].
    pub(in super::super) fn heat(&self, id: SlotId) -> u32 {
        self.policy.heat(id)
    }

    /// See [`Policy::after_in_use`].
    pub(in super::super) fn after_in_use(&self, after: Option<SlotId>) -> Option<SlotId> {
        self.policy.after_in_use(after)
    }
}
