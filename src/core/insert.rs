//! Operations that write one key; how room is made for it is in [`make_room`](super::make_room).

use std::hash::{BuildHasher, Hash};
use std::time::Duration;

use equivalent::Equivalent;

use crate::error::{CacheError, InsertError};
use crate::sync::atomic::Ordering::{Acquire, Relaxed};

use super::budget::{Budget, Reservation, Usage};
use super::make_room::{Attempt, InsertOptions, Put, Stored};
use super::removal::Gone;
use super::shard::Unlock;
use super::table::State;
use super::wait::{Forever, Try, Until, Wait};
use super::{RemovalCause, ShardedCache};

/// What an insert needs where it is not stored at once.
struct Late<'b, K, V> {
    reservation: Reservation<'b>,
    gone: Gone<K, V>,
}

impl<'b, K, V> Late<'b, K, V> {
    fn new(budget: &'b Budget) -> Self {
        Self { reservation: Reservation::new(budget), gone: Gone::default() }
    }
}

impl<K, V, S> ShardedCache<K, V, S>
where
    K: Hash + Eq,
    S: BuildHasher,
{
    /// Stores `value` under `key` with the time-to-live of the cache. A value that is there is
    /// replaced, which evicts no other entry unless this one grows.
    ///
    /// The write lock of one shard; `O(1)` amortized. Where room is needed, expired entries of the
    /// shard leave first, then those that the policies name; at most 64 under one lock hold.
    /// Entries that left are dropped, and the listener called, after unlocking.
    ///
    /// # Errors
    ///
    /// Each gives key and value back:
    /// - [`CacheError::is_too_large`] if the entry alone is over a limit: nothing has changed, an
    ///   old value of the key included.
    /// - [`CacheError::is_contended`] if other writers held all the room for some 20 ms.
    ///
    /// ```
    /// # use embedding_cache::ShardedCache;
    /// let cache = ShardedCache::<String, u64>::builder().max_entries(10).build()?;
    /// cache.insert("a".to_string(), 1)?;
    /// cache.insert("a".to_string(), 2)?;
    /// assert_eq!((cache.len(), cache.get("a")), (1, Some(2)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn insert(&self, key: K, value: V) -> Result<(), InsertError<K, V>> {
        self.insert_entry(key, value, InsertOptions::default(), Forever)
    }

    /// [`insert`](Self::insert) with a time-to-live of its own; zero means expired at once.
    ///
    /// # Errors
    ///
    /// As [`insert`](Self::insert), and [`CacheError::is_invalid_ttl`] if `time_to_live` is over
    /// 292 years.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use embedding_cache::ShardedCache;
    /// let cache = ShardedCache::<String, u64>::builder().max_entries(10).build()?;
    /// cache.insert_with_ttl("a".to_string(), 1, Duration::from_secs(60))?;
    /// cache.insert_with_ttl("b".to_string(), 2, Duration::ZERO)?;
    /// assert_eq!((cache.get("a"), cache.get("b")), (Some(1), None));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn insert_with_ttl(
        &self,
        key: K,
        value: V,
        time_to_live: Duration,
    ) -> Result<(), InsertError<K, V>> {
        let options =
            InsertOptions { time_to_live: Some(time_to_live), ..InsertOptions::default() };
        self.insert_entry(key, value, options, Forever)
    }

    /// [`insert`](Self::insert) that waits at most `wait` for locks; zero tries once.
    ///
    /// # Errors
    ///
    /// As [`insert`](Self::insert), and [`CacheError::is_timeout`] if another thread held the lock
    /// all the time: then the value was *not* stored, and will not be. Entries that had already
    /// made room for it stay evicted.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use embedding_cache::ShardedCache;
    /// let cache = ShardedCache::<String, u64>::builder().max_entries(10).build()?;
    /// match cache.try_insert_for("a".to_string(), 1, Duration::from_millis(5)) {
    ///     Ok(()) => assert_eq!(cache.get("a"), Some(1)),
    ///     Err(refused) => {
    ///         let (error, key, value) = refused.into_parts();
    ///         println!("{error}; {key} and {value} are not stored");
    ///     }
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn try_insert_for(
        &self,
        key: K,
        value: V,
        wait: Duration,
    ) -> Result<(), InsertError<K, V>> {
        self.insert_entry(key, value, InsertOptions::default(), Until::after(wait))
    }

    /// [`insert`](Self::insert) that does not wait.
    ///
    /// # Errors
    ///
    /// As [`insert`](Self::insert), but [`CacheError::is_contended`] already where other writers hold
    /// all the room at this moment; and [`CacheError::is_timeout`] if another thread holds the lock of
    /// the shard. Key and value are given back and are not stored.
    ///
    /// ```
    /// # use embedding_cache::ShardedCache;
    /// let cache = ShardedCache::<u64, u64>::builder().max_entries(10).build()?;
    /// if let Err(busy) = cache.try_insert(1, 10) {
    ///     assert!(busy.error().is_timeout() || busy.error().is_contended());
    ///     let (key, value) = busy.into_entry(); // for another try
    ///     cache.insert(key, value)?;
    /// }
    /// assert_eq!(cache.get(&1), Some(10));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn try_insert(&self, key: K, value: V) -> Result<(), InsertError<K, V>> {
        self.insert_entry(key, value, InsertOptions::default(), Try)
    }

    /// Gives the live entry of `key` another time to live, which begins now, and says whether there
    /// was one. The time-to-live of the cache, or the one it was inserted with, holds no longer; zero
    /// means expired at once. That is no use of the entry and no write of its value: it changes
    /// nothing in the order of eviction, a [time-to-idle](super::ShardedCacheBuilder::time_to_idle)
    /// goes on, and [`entry_info`](Self::entry_info) tells of the last write as before.
    ///
    /// The write lock of one shard; `O(log n)` in the entries with a time-to-live of their own.
    ///
    /// # Errors
    ///
    /// [`CacheError::is_invalid_ttl`] if `time_to_live` is over 292 years: nothing has changed.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use embedding_cache::ShardedCache;
    /// let cache = ShardedCache::<String, u64>::builder().max_entries(10).build()?;
    /// cache.insert("a".to_string(), 1)?;
    /// assert!(cache.set_ttl("a", Duration::from_secs(60))?);
    /// assert!(cache.entry_info("a").unwrap().expires_in.is_some());
    /// assert!(!cache.set_ttl("b", Duration::from_secs(60))?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_ttl<Q>(&self, key: &Q, time_to_live: Duration) -> Result<bool, CacheError>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        Ok(self.set_ttl_with(key, time_to_live, Forever)?.unwrap_or_default())
    }

    /// [`set_ttl`](Self::set_ttl) for any wait; `None` if the lock was not had.
    pub(crate) fn set_ttl_with<Q, W>(
        &self,
        key: &Q,
        time_to_live: Duration,
        wait: W,
    ) -> Result<Option<bool>, CacheError>
    where
        Q: Hash + Equivalent<K> + ?Sized,
        W: Wait,
    {
        self.check_ttl(time_to_live)?;
        // Before the entry can expire, as in `begin_insert`.
        self.may_expire.store(true, Relaxed);
        let (now, _) = self.now_for_writing();
        let at = self.place(key);
        let span = self.span(Some(time_to_live), at.hash);
        let mut notifier = self.notifier();
        let found = self.change(at.shard, wait, Unlock::Plain, &mut notifier, |table, _| {
            let fresh = |(id, entry)| table.state(id, entry, now) == State::Fresh;
            let Some(id) = table.find(at.hash, key).filter(|&it| fresh(it)).map(|it| it.0) else {
                return false;
            };
            table.set_span(id, span, now);
            true
        });
        notifier.end();
        Ok(found)
    }

    /// Removes the entry of `key` and returns its value, if it was alive. The write lock of one
    /// shard; `O(1)`. The listener is told.
    ///
    /// ```
    /// # use embedding_cache::ShardedCache;
    /// let cache = ShardedCache::<String, u64>::builder().max_entries(10).build()?;
    /// cache.insert("a".to_string(), 1)?;
    /// assert_eq!(cache.remove("a"), Some(1));
    /// assert_eq!(cache.remove("a"), None);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn remove<Q>(&self, key: &Q) -> Option<V>
    where
        V: Clone,
        Q: Hash + Equivalent<K> + ?Sized,
    {
        self.remove_with(key, Forever, |_| true).flatten()
    }

    /// Removes the entry of `key` if it is alive and `predicate` holds for its value, and returns that
    /// value. The write lock of one shard; `O(1)`. The listener is told.
    ///
    /// **`predicate` runs under the write lock of the shard**, so that no write comes between its
    /// answer and the removal: while it is slow, everyone else on that shard waits, and if it uses
    /// this cache it deadlocks. It is asked at most once. If it panics, nothing has changed.
    ///
    /// ```
    /// # use embedding_cache::ShardedCache;
    /// let cache = ShardedCache::<String, u64>::builder().max_entries(10).build()?;
    /// cache.insert("a".to_string(), 1)?;
    /// assert_eq!(cache.remove_if("a", |&value| value > 1), None);
    /// assert_eq!(cache.remove_if("a", |&value| value == 1), Some(1));
    /// assert!(cache.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn remove_if<Q>(&self, key: &Q, predicate: impl FnOnce(&V) -> bool) -> Option<V>
    where
        V: Clone,
        Q: Hash + Equivalent<K> + ?Sized,
    {
        self.remove_with(key, Forever, predicate).flatten()
    }

    /// [`remove_if`](Self::remove_if) for any wait; `None` if the lock was not had.
    pub(crate) fn remove_with<Q, W>(
        &self,
        key: &Q,
        wait: W,
        predicate: impl FnOnce(&V) -> bool,
    ) -> Option<Option<V>>
    where
        V: Clone,
        Q: Hash + Equivalent<K> + ?Sized,
        W: Wait,
    {
        let now = self.now_for_reading();
        let at = self.place(key);
        self.inflight.supersede(at, key);
        let mut notifier = self.notifier();
        let removed = self.change(at.shard, wait, Unlock::Plain, &mut notifier, |table, gone| {
            let (id, entry) = table.find(at.hash, key)?;
            if table.state(id, entry, now) != State::Fresh {
                let counters = &at.shard.counters;
                self.budget.release(gone.take_out(counters, table, id, RemovalCause::Expired));
                return None;
            }
            if !predicate(&entry.value) {
                return None;
            }
            let entry = table.take(id)?;
            self.budget.release(Usage::one(entry.weight));
            at.shard.counters.count_removal(RemovalCause::Removed);
            Some((entry.key, entry.value))
        });
        let value = removed?.map(|(key, value)| {
            notifier.tell(key, &value, RemovalCause::Removed);
            value
        });
        notifier.end();
        Some(value)
    }

    /// [`insert_with`](Self::insert_with), where a refusal is counted and gives the entry back.
    #[inline]
    fn insert_entry<W: Wait>(
        &self,
        key: K,
        value: V,
        options: InsertOptions<'_>,
        wait: W,
    ) -> Result<(), InsertError<K, V>> {
        let mut entry = Some((key, value));
        // What was replaced is dropped here, with no lock held. No closure: it would be given the
        // entry where all goes well, too.
        match self.insert_with(&mut entry, options, wait) {
            Ok(()) => Ok(()),
            Err(error) => Err(self.refused(error, entry)),
        }
    }

    #[cold]
    fn refused(&self, error: CacheError, entry: Option<(K, V)>) -> InsertError<K, V> {
        let Some((key, value)) = entry else { unreachable!("a refused insert leaves its entry") };
        self.count_refusal(&key, &error);
        InsertError::new(error, key, value)
    }

    /// Counts a put that was not carried out; not a load that something newer refused, which is none
    /// of the caller's.
    pub(crate) fn count_refusal<Q: Hash + ?Sized>(&self, key: &Q, error: &CacheError) {
        self.place(key).shard.counters.count_refusal(error);
    }

    /// Stores what is in `entry`. Counts neither a timeout nor a refusal. Afterwards there may be
    /// in `entry` what left for it; where it fails, there is what was there before.
    ///
    /// The entry is handed over in place, and a refusal by one word: each move of a key would be
    /// a store that the next load has to wait for, on the way of every put.
    #[inline]
    pub(crate) fn insert_with<W: Wait>(
        &self,
        entry: &mut Option<(K, V)>,
        options: InsertOptions<'_>,
        wait: W,
    ) -> Result<(), CacheError> {
        let Some((key, value)) = &*entry else { unreachable!("an insert has an entry") };
        let put = self.begin_insert(key, value, options, || self.now_for_writing());
        self.admit(&put)?;
        let mut late = None;
        // Not by `change`: nearly always nothing is left to do after this lock hold but to drop what
        // is gone, and that needs no notifier.
        let first = put.at.shard.write(wait, Unlock::Plain, |table| {
            // Acquire: see the head of `invalidate.rs`, case 4. `change` renews an outdated table.
            let is_current = table.generation() == self.generation.load(Acquire);
            is_current.then(|| {
                self.insert_at_once(&put, table, entry).unwrap_or_else(|leaver| {
                    let Late { reservation, gone } = late.insert(Late::new(&self.budget));
                    self.insert_with_room(put, leaver, reservation, table, entry, gone)
                })
            })
        });
        match first.flatten() {
            Some(Ok(_)) if self.removals.is_idle() => Ok(()),
            first => self.finish_insert(put, late, first, entry, wait),
        }
    }

    /// What an insert has to do after its first lock hold: to tell the listener, and to try again
    /// where it is not stored.
    #[cold]
    #[inline(never)]
    fn finish_insert<'b, W: Wait>(
        &'b self,
        mut put: Put<'_, K, V>,
        late: Option<Late<'b, K, V>>,
        first: Option<Attempt>,
        entry: &mut Option<(K, V)>,
        wait: W,
    ) -> Result<(), CacheError> {
        let mut notifier = self.notifier();
        let (reservation, mut gone) =
            late.map(|Late { reservation, gone }| (reservation, gone)).unzip();
        let first = first.map(|attempt| (attempt, gone.as_ref().is_some_and(|it| !it.is_empty())));
        notifier.dispose_all(gone.iter_mut().flat_map(Gone::drain));
        let stored = self.insert_retrying(&mut put, reservation, first, entry, &mut notifier, wait);
        if let Ok(Stored::InPlaceOf(cause)) = stored
            && let Some((key, value)) = entry.take()
        {
            notifier.dispose((key, value, cause));
        }
        notifier.end();
        stored.map(drop).map_err(CacheError::from)
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
