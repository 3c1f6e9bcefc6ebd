//! Inserting what may not push anything out.

use std::hash::{BuildHasher, Hash};
use std::time::Duration;

use crate::error::CacheError;

use super::ShardedCache;
use super::insert::InsertOptions;
use super::make_room::NewEntry;
use super::shard::{Try, Until, Wait};

impl<K, V, S> ShardedCache<K, V, S>
where
    K: Hash + Eq,
    S: BuildHasher,
{
    /// Stores what is in `entry` in room that is free. Waits for the lock at most `wait`; zero tries
    /// once. Counts an insertion, and no refusal. Afterwards `entry` holds what was not stored.
    ///
    /// # Errors
    ///
    /// As an insert; contended where there is no free room.
    pub(crate) fn insert_into_free_room(
        &self,
        entry: &mut Option<(K, V)>,
        options: InsertOptions<'_>,
        wait: Duration,
    ) -> Result<(), CacheError> {
        match wait {
            Duration::ZERO => self.insert_free(entry, options, Try),
            wait => self.insert_free(entry, options, Until::after(wait)),
        }
    }

    fn insert_free<P: Wait>(
        &self,
        entry: &mut Option<(K, V)>,
        options: InsertOptions<'_>,
        wait: P,
    ) -> Result<(), CacheError> {
        let Some((key, value)) = &*entry else { return Ok(()) };
        let at = self.place(key);
        let ticket = self.ticket(at, key, value, options.time_to_live);
        self.admit(&ticket, options.time_to_live)?;
        let mut new_entry = entry.take().map(|(key, value)| NewEntry { key, value, ticket });
        let mut notifier = self.notifier();
        let mut put = self.begin_insert(at, options.condition);
        put.only_free_room = true;
        let outcome = self.insert_retrying(&mut put, &mut new_entry, &mut notifier, wait);
        drop(put);
        notifier.end();
        *entry = new_entry.map(|NewEntry { key, value, .. }| (key, value));
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
        Some(self.config.table_config.jitter.apply(ttl, self.place(key).hash))
    }

    /// The time-to-live of the cache, without jitter.
    pub(crate) fn time_to_live(&self) -> Option<Duration> {
        self.config.time_to_live
    }
}
