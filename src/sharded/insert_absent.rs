//! Inserting what was read elsewhere: only where nothing is stored, and if it must be without
//! evicting anybody.

use std::hash::{BuildHasher, Hash};
use std::time::Duration;

use crate::error::CacheError;

use super::ShardedCache;
use super::put::Newcomer;
use super::shard::{Once, Patience, Until};
use super::write::Terms;

/// What an insert of an absent key may do to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// As a put: others leave where there is no room.
    #[cfg(feature = "tier")]
    Made,
    /// Only room that is free is taken.
    Free,
}

impl<K, V, S> ShardedCache<K, V, S>
where
    K: Hash + Eq,
    S: BuildHasher,
{
    /// Stores what is in `entry` if its key has no fresh value. Waits for the lock at most `wait`;
    /// zero tries once. Counts an insertion, and no refusal. Afterwards `entry` holds what was not
    /// stored.
    ///
    /// The write lock of one shard, under which the key is looked for: a put at the same time either
    /// comes before, and stays, or after, and replaces.
    ///
    /// # Errors
    ///
    /// As an insert; and `ErrorKind::Present` if the key has a fresh value, and
    /// `ErrorKind::Contended` where only free room may be taken and there is none.
    pub(crate) fn insert_absent(
        &self,
        entry: &mut Option<(K, V)>,
        terms: Terms,
        room: Room,
        wait: Duration,
    ) -> Result<(), CacheError> {
        match wait {
            Duration::ZERO => self.insert_absent_within(entry, terms, room, Once),
            wait => self.insert_absent_within(entry, terms, room, Until::after(wait)),
        }
    }

    fn insert_absent_within<P: Patience>(
        &self,
        entry: &mut Option<(K, V)>,
        terms: Terms,
        room: Room,
        patience: P,
    ) -> Result<(), CacheError> {
        let Some((key, value)) = &*entry else { return Ok(()) };
        let at = self.place(key);
        let ticket = self.ticket(at, key, value, terms.time_to_live);
        self.admit(&ticket, terms.time_to_live)?;
        let mut newcomer = entry.take().map(|(key, value)| Newcomer { key, value, ticket });
        let mut farewell = self.farewell();
        let mut put = self.start_put(at, ticket.now, terms.epoch);
        put.only_absent = true;
        put.only_free_room = room == Room::Free;
        let outcome = self.carry_out(&mut put, &mut newcomer, &mut farewell, patience);
        drop(put);
        farewell.end();
        *entry = newcomer.map(|Newcomer { key, value, .. }| (key, value));
        outcome.map_err(CacheError::from)
    }

    /// Whether less than a twentieth of a limit is left.
    pub(crate) fn is_nearly_full(&self) -> bool {
        let (used, max) = (self.budget.used(), self.budget.max());
        let nearly = |used: u64, max: u64| used >= max - max / 20;
        nearly(used.entries, max.entries) || nearly(used.weight, max.weight)
    }

    /// How long an entry of `key` that is written now lives by the time-to-live of the cache; `None`
    /// if for ever.
    #[cfg(feature = "tier")]
    pub(crate) fn life_of<Q: Hash + ?Sized>(&self, key: &Q) -> Option<Duration> {
        let ttl = self.config.time_to_live?;
        Some(self.config.plan.jitter.apply(ttl, self.place(key).hash))
    }

    /// The time-to-live of the cache, without jitter.
    pub(crate) fn time_to_live(&self) -> Option<Duration> {
        self.config.time_to_live
    }
}
