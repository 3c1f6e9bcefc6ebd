//! Operations that write one key; how room is made for it is in [`make_room`](super::make_room).

use std::hash::{BuildHasher, Hash};
use std::time::Duration;

use equivalent::Equivalent;

use crate::error::{CacheError, InsertError};
use crate::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::make_room::{AtOnce, NewEntry};
use super::shard::{Forever, Try, Until, Wait};
use super::table::{State, Ticket};
use super::{Place, RemovalCause, ShardedCache};

/// On what options an entry is stored.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct InsertOptions<'a> {
    /// A time-to-live of its own, in place of the cache's.
    pub(crate) time_to_live: Option<Duration>,
    /// For a value that was loaded: unless something newer came since.
    pub(crate) condition: Option<Condition<'a>>,
}

/// What must hold under the write lock of the shard for a loaded value to be stored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Condition<'a> {
    /// The [`epoch`](ShardedCache::epoch) from before the value was loaded is still that of the cache.
    pub(crate) epoch: u64,
    /// This is not set, and there is no fresh entry of the key: one that was there when the load began
    /// would have been served instead, so it is newer. Relaxed: it is set before the shard is locked.
    pub(crate) superseded: Option<&'a AtomicBool>,
}

impl<K, V, S> ShardedCache<K, V, S>
where
    K: Hash + Eq,
    S: BuildHasher,
{
    /// Stores `value` under `key` with the time-to-live of the cache. A value that is there is
    /// replaced, which evicts nobody unless the entry grows.
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
        self.insert_within(key, value, InsertOptions::default(), Forever)
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
        let options = InsertOptions { time_to_live: Some(time_to_live), condition: None };
        self.insert_within(key, value, options, Forever)
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
        self.insert_within(key, value, InsertOptions::default(), Until::after(wait))
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
        Ok(self.set_ttl_within(key, time_to_live, Forever)?.unwrap_or_default())
    }

    /// A `set_ttl` that waits at most `wait` for the lock, zero tries once; `None` if it was not had.
    pub(crate) fn set_ttl_slice<Q>(
        &self,
        key: &Q,
        time_to_live: Duration,
        wait: Duration,
    ) -> Result<Option<bool>, CacheError>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        match wait {
            Duration::ZERO => self.set_ttl_within(key, time_to_live, Try),
            wait => self.set_ttl_within(key, time_to_live, Until::after(wait)),
        }
    }

    fn set_ttl_within<Q, P>(
        &self,
        key: &Q,
        time_to_live: Duration,
        wait: P,
    ) -> Result<Option<bool>, CacheError>
    where
        Q: Hash + Equivalent<K> + ?Sized,
        P: Wait,
    {
        self.check_ttl(time_to_live)?;
        // Before the entry can expire, as in `ticket`.
        self.may_expire.store(true, Relaxed);
        let (now, _) = self.now_for_writing();
        let at = self.place(key);
        let span = self.span(Some(time_to_live), at.hash);
        let mut notifier = self.notifier();
        let found = self.change(at.shard, wait, &mut notifier, |table, _| {
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
        self.remove_within(key, Forever).flatten()
    }

    /// A `remove` that waits at most `wait` for the lock, zero tries once; `None` if it was not had.
    pub(crate) fn remove_slice<Q>(&self, key: &Q, wait: Duration) -> Option<Option<V>>
    where
        V: Clone,
        Q: Hash + Equivalent<K> + ?Sized,
    {
        match wait {
            Duration::ZERO => self.remove_within(key, Try),
            wait => self.remove_within(key, Until::after(wait)),
        }
    }

    fn remove_within<Q, P>(&self, key: &Q, wait: P) -> Option<Option<V>>
    where
        V: Clone,
        Q: Hash + Equivalent<K> + ?Sized,
        P: Wait,
    {
        let now = self.now_for_reading();
        let at = self.place(key);
        self.inflight.supersede(at, key);
        let mut notifier = self.notifier();
        let entry = self.change(at.shard, wait, &mut notifier, |table, _| {
            let (id, entry) = table.find(at.hash, key)?;
            let alive = table.state(id, entry, now) == State::Fresh;
            let entry = table.take(id)?;
            self.release(&entry);
            let counters = &at.shard.counters;
            if alive { &counters.removals } else { &counters.expired }.count();
            Some((entry, alive))
        });
        let removed = match entry? {
            Some((entry, true)) => {
                notifier.tell(entry.key, &entry.value, RemovalCause::Removed);
                Some(entry.value)
            }
            Some((entry, false)) => {
                notifier.dispose((entry.key, entry.value, RemovalCause::Expired));
                None
            }
            None => None,
        };
        notifier.end();
        Some(removed)
    }

    /// An insert of what is in `entry` that does not wait. Counts neither a timeout nor a refusal.
    /// Afterwards there is in `entry` what it replaced, if anything; where it fails, what was there
    /// before.
    #[inline]
    pub(crate) fn insert_at_once(
        &self,
        entry: &mut Option<(K, V)>,
        options: InsertOptions<'_>,
    ) -> Result<(), CacheError> {
        self.insert_uncounted(entry, options, Try)
    }

    /// As [`insert_at_once`](Self::insert_at_once), for waits in several slices.
    pub(crate) fn insert_slice(
        &self,
        entry: &mut Option<(K, V)>,
        options: InsertOptions<'_>,
        wait: Duration,
    ) -> Result<(), CacheError> {
        self.insert_uncounted(entry, options, Until::after(wait))
    }

    /// [`insert`](Self::insert), with `entry` as [`insert_at_once`](Self::insert_at_once) has it.
    #[inline]
    pub(crate) fn insert_entry(&self, entry: &mut Option<(K, V)>) -> Result<(), CacheError> {
        self.insert_counted(entry, InsertOptions::default(), Forever)
    }

    /// Counts a put that was not carried out; not a load that something newer refused, which is none
    /// of the caller's.
    pub(crate) fn count_refusal<Q: Hash + ?Sized>(&self, key: &Q, error: &CacheError) {
        self.place(key).shard.count_refusal(error);
    }

    #[inline]
    fn insert_within<P: Wait>(
        &self,
        key: K,
        value: V,
        options: InsertOptions<'_>,
        wait: P,
    ) -> Result<(), InsertError<K, V>> {
        let mut entry = Some((key, value));
        // What was replaced is dropped here, with no lock held. No closure: it would be given the
        // entry where all goes well, too.
        match self.insert_counted(&mut entry, options, wait) {
            Ok(()) => Ok(()),
            Err(error) => InsertError::of(error, entry),
        }
    }

    #[inline]
    fn insert_counted<P: Wait>(
        &self,
        entry: &mut Option<(K, V)>,
        options: InsertOptions<'_>,
        wait: P,
    ) -> Result<(), CacheError> {
        self.insert_uncounted(entry, options, wait).inspect_err(|error| {
            if let Some((key, _)) = entry {
                self.count_refusal(key, error);
            }
        })
    }

    /// The entry is handed over in place, and a refusal by one word: each move of a key would be
    /// a store that the next load has to wait for, on the way of every put.
    #[inline]
    pub(super) fn insert_uncounted<P: Wait>(
        &self,
        entry: &mut Option<(K, V)>,
        options: InsertOptions<'_>,
        wait: P,
    ) -> Result<(), CacheError> {
        let Some((key, value)) = &*entry else { return Ok(()) };
        let at = self.place(key);
        let ticket = self.ticket(at, key, value, options.time_to_live);
        self.admit(&ticket, options.time_to_live)?;
        let mut gone = None;
        let put = self.insert_fast(at, entry, ticket, options.condition, &mut gone, wait);
        if put != AtOnce::Left && self.removals.is_idle() {
            // What has left is dropped here, with no lock held.
            return Ok(());
        }
        self.finish_insert(at, put, entry, gone, ticket, options, wait)
    }

    /// What a put has to do beyond [`insert_fast`](Self::insert_fast): to tell the listener, and
    /// what was not that simple.
    #[cold]
    #[inline(never)]
    #[allow(clippy::too_many_arguments)]
    fn finish_insert<P: Wait>(
        &self,
        at: Place<'_, K, V>,
        at_once: AtOnce,
        entry: &mut Option<(K, V)>,
        gone: Option<(K, V, RemovalCause)>,
        ticket: Ticket,
        options: InsertOptions<'_>,
        wait: P,
    ) -> Result<(), CacheError> {
        let mut notifier = self.notifier();
        notifier.dispose_all(gone.into_iter());
        match (at_once, entry.take()) {
            (AtOnce::Replaced, Some((key, value))) => {
                notifier.dispose((key, value, RemovalCause::Replaced));
                notifier.end();
                Ok(())
            }
            (AtOnce::Left, Some((key, value))) => {
                let mut put = self.begin_insert(at, options.condition);
                let mut new_entry = Some(NewEntry { key, value, ticket });
                let outcome = self.insert_retrying(&mut put, &mut new_entry, &mut notifier, wait);
                drop(put);
                notifier.end();
                *entry = new_entry.map(|NewEntry { key, value, .. }| (key, value));
                outcome.map_err(CacheError::from)
            }
            _ => {
                notifier.end();
                Ok(())
            }
        }
    }
}
