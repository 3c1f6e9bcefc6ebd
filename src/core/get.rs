//! Operations that read: one shard's read lock, and the write lock only for an entry seen expired.

use std::hash::{BuildHasher, Hash};
use std::time::Duration;

use equivalent::Equivalent;

use crate::error::{CacheError, ErrorKind};

use super::clock::Stamp;
use super::hit_counters::Outcome;
use super::shard::Unlock;
use super::table::index::SlotHash;
use super::table::slots::SlotId;
use super::table::{Entry, State, Table};
use super::wait::{Forever, Try, Until, Wait};
use super::{EntryInfo, RemovalCause, ShardedCache};

/// What is stored under a key, from [`ShardedCache::peek_state`].
pub(crate) enum Lookup<V> {
    /// A value within its time-to-live.
    Fresh(V),
    /// A value past its time-to-live, but within the grace.
    Stale {
        /// The value.
        value: V,
        /// How long past its time-to-live it is.
        past: Duration,
    },
    /// Nothing that may be served.
    Absent,
}

impl<K, V, S> ShardedCache<K, V, S>
where
    K: Hash + Eq,
    V: Clone,
    S: BuildHasher,
{
    /// The value of `key`, which counts as a use of the entry and as a hit or a miss.
    ///
    /// `key` may be any borrowed form of `K` (`&str` for `String`, or a type with its own
    /// [`Equivalent`]) that hashes as `K` does. The read lock of one shard; `O(1)`; allocates
    /// nothing that `V::clone` does not. An entry seen expired is removed under the write lock,
    /// unless another thread has refreshed it in between.
    ///
    /// ```
    /// # use embedding_cache::ShardedCache;
    /// let cache = ShardedCache::<String, u64>::builder().max_entries(10).build()?;
    /// cache.insert("a".to_string(), 1)?;
    /// assert_eq!(cache.get("a"), Some(1));
    /// assert_eq!(cache.get("b"), None);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    // Always: where a program has several of them the compiler would call it, which is a tenth slower.
    #[inline(always)]
    pub fn get<Q>(&self, key: &Q) -> Option<V>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        self.lookup(key, Forever).flatten()
    }

    /// [`get`](Self::get) that waits at most `wait` for the lock of the shard; zero tries once.
    ///
    /// # Errors
    ///
    /// [`CacheError::is_timeout`] if another thread held the lock all the time. Such a call counts
    /// as a timeout, neither as a hit nor as a miss.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use embedding_cache::ShardedCache;
    /// let cache = ShardedCache::<u64, u64>::builder().max_entries(10).build()?;
    /// cache.insert(1, 10)?;
    /// assert_eq!(cache.try_get_for(&1, Duration::from_millis(5))?, Some(10));
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// ```
    pub fn try_get_for<Q>(&self, key: &Q, wait: Duration) -> Result<Option<V>, CacheError>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        self.lookup(key, Until::after(wait)).ok_or_else(|| self.timed_out(key, wait))
    }

    /// [`get`](Self::get) that does not wait.
    ///
    /// # Errors
    ///
    /// [`CacheError::is_timeout`] if another thread holds the lock of the shard: whether the key has
    /// a value is then not known. Such a call counts as a timeout, neither as a hit nor as a miss.
    ///
    /// ```
    /// # use embedding_cache::ShardedCache;
    /// let cache = ShardedCache::<u64, u64>::builder().max_entries(10).build()?;
    /// cache.insert(1, 10)?;
    /// match cache.try_get(&1) {
    ///     Ok(found) => assert_eq!(found, Some(10)), // or `None`: a miss
    ///     Err(busy) => assert!(busy.is_timeout()),  // neither: a thread has the lock
    /// }
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// ```
    pub fn try_get<Q>(&self, key: &Q) -> Result<Option<V>, CacheError>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        self.lookup(key, Try).ok_or_else(|| self.timed_out(key, Duration::ZERO))
    }

    #[cold]
    fn timed_out<Q: Hash + ?Sized>(&self, key: &Q, waited: Duration) -> CacheError {
        self.place(key).shard.counters.timeouts.count();
        ErrorKind::Timeout { operation: "get", waited }.into()
    }

    /// The value of `key` without counting: neither a use nor a hit nor a miss. The read lock of
    /// one shard; `O(1)`.
    ///
    /// ```
    /// # use embedding_cache::ShardedCache;
    /// let cache = ShardedCache::<String, u64>::builder().max_entries(10).build()?;
    /// cache.insert("a".to_string(), 1)?;
    /// assert_eq!(cache.peek("a"), Some(1));
    /// assert_eq!(cache.stats().hits, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn peek<Q>(&self, key: &Q) -> Option<V>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        self.peek_with(key, self.now_for_reading(), Forever, |_, _, entry, state| {
            (state == State::Fresh).then(|| entry.value.clone())
        })
        .flatten()
    }

    /// Whether `key` has a live entry; counts as nothing. The read lock of one shard; `O(1)`.
    ///
    /// ```
    /// # use embedding_cache::ShardedCache;
    /// let cache = ShardedCache::<String, u64>::builder().max_entries(10).build()?;
    /// cache.insert("a".to_string(), 1)?;
    /// assert!(cache.contains_key("a"));
    /// assert_eq!(cache.stats().total_requests(), 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn contains_key<Q>(&self, key: &Q) -> bool
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        let is_fresh = |_: &_, _, _: &_, state| (state == State::Fresh).then_some(());
        self.peek_with(key, self.now_for_reading(), Forever, is_fresh).flatten().is_some()
    }

    /// What the cache knows of the entry of `key`; counts as nothing. The read lock of one shard;
    /// `O(1)`.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use embedding_cache::ShardedCache;
    /// let cache = ShardedCache::<u64, u64>::builder().max_entries(10).build()?;
    /// cache.insert_with_ttl(1, 10, Duration::from_secs(60))?;
    /// let info = cache.entry_info(&1).unwrap();
    /// assert!(info.expires_in.unwrap() <= Duration::from_secs(60));
    /// assert!(info.written_at >= cache.created_at());
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// ```
    pub fn entry_info<Q>(&self, key: &Q) -> Option<EntryInfo>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        self.entry_info_with(key, Forever).flatten()
    }

    /// [`entry_info`](Self::entry_info); `None` if the lock was not had.
    pub(crate) fn entry_info_with<Q, W>(&self, key: &Q, wait: W) -> Option<Option<EntryInfo>>
    where
        Q: Hash + Equivalent<K> + ?Sized,
        W: Wait,
    {
        let now = self.config.time.now();
        self.peek_with(key, now, wait, |table, id, entry, state| {
            (state == State::Fresh).then(|| EntryInfo {
                weight: entry.weight,
                written_at: self.wall_time_after(entry.written),
                expires_in: table.life_left(id, entry, now),
            })
        })
    }

    /// What is stored under `key`, counted as nothing; `None` if the lock was not had.
    pub(crate) fn peek_state<Q, W>(&self, key: &Q, wait: W) -> Option<Lookup<V>>
    where
        Q: Hash + Equivalent<K> + ?Sized,
        W: Wait,
    {
        let now = self.now_for_reading();
        let found = self.peek_with(key, now, wait, |table, _, entry, state| match state {
            State::Fresh => Some(Lookup::Fresh(entry.value.clone())),
            State::Stale => {
                let past = table.past_life(entry, now);
                Some(Lookup::Stale { value: entry.value.clone(), past })
            }
            State::Dead => None,
        });
        Some(found?.unwrap_or(Lookup::Absent))
    }

    /// What `look` makes of the entry of `key` under the read lock; counts nothing. `None` if the
    /// lock was not had, `Some(None)` if there is no entry.
    fn peek_with<Q, W, R>(
        &self,
        key: &Q,
        now: Stamp,
        wait: W,
        look: impl FnOnce(&Table<K, V>, SlotId, &Entry<K, V>, State) -> Option<R>,
    ) -> Option<Option<R>>
    where
        Q: Hash + Equivalent<K> + ?Sized,
        W: Wait,
    {
        let at = self.place(key);
        let table = at.shard.read(wait)?;
        let Some((id, entry)) = self.find(&table, at.hash, key) else { return Some(None) };
        Some(look(&table, id, entry, table.state(id, entry, now)))
    }

    /// [`get`](Self::get) for any wait; `None` if the lock was not had, which counts as nothing.
    // Always: a call would return the value through memory, a tenth of a hit.
    #[inline(always)]
    pub(crate) fn lookup<Q, W>(&self, key: &Q, wait: W) -> Option<Option<V>>
    where
        Q: Hash + Equivalent<K> + ?Sized,
        W: Wait,
    {
        // Before the clock is read: a key that was made in registers would have to outlive that call.
        let at = self.place(key);
        let fresh_beyond = self.fresh_beyond_for_reading();
        let table = at.shard.read(wait)?;
        let Some((id, entry)) = self.find(&table, at.hash, key) else {
            drop(table);
            self.hit_counters.count(at.number, Outcome::Miss);
            return Some(None);
        };
        // In a straight line: a hit is what this cache is for. Two of them are under way at once in
        // a large cache, or three, by how many instructions one takes: the processor runs ahead by
        // some three hundred, and what it waits for is memory.
        let is_in_time = entry.expiry > fresh_beyond;
        if is_in_time && table.is_settled(entry) {
            let value = entry.value.clone();
            drop(table);
            self.hit_counters.count(at.number, Outcome::Hit);
            return Some(Some(value));
        }
        let (now, state) = if is_in_time && !table.notes_moments() {
            // No more to ask.
            (Stamp::ZERO, State::Fresh)
        } else {
            let now = fresh_beyond.minus(self.config.table_config.grace);
            (now, table.state(id, entry, now))
        };
        match state {
            State::Fresh => {
                table.note_use(id, now);
                table.hit(id, entry);
                // Not before: it would be kept in memory meanwhile.
                let value = entry.value.clone();
                drop(table);
                self.hit_counters.count(at.number, Outcome::Hit);
                Some(Some(value))
            }
            State::Stale => {
                drop(table);
                self.hit_counters.count(at.number, Outcome::Miss);
                Some(None)
            }
            State::Dead => {
                drop(table);
                Some(self.lookup_dead(key, now, wait))
            }
        }
    }

    /// The entry of `key`, alive or not, in a table whose lock is held.
    // Always: as `Table::find`.
    #[inline(always)]
    pub(super) fn find<'t, Q>(
        &self,
        table: &'t Table<K, V>,
        hash: SlotHash,
        key: &Q,
    ) -> Option<(SlotId, &'t Entry<K, V>)>
    where
        Q: Equivalent<K> + ?Sized,
    {
        if self.is_current(table) { table.find(hash, key) } else { None }
    }

    /// An entry was seen expired: looks again under the write lock. If the deadline runs out before
    /// that lock is had, the entry was still expired when it was seen, so the answer is a miss and
    /// removing it is left to others.
    #[cold]
    #[inline(never)]
    pub(super) fn lookup_dead<Q, W>(&self, key: &Q, now: Stamp, wait: W) -> Option<V>
    where
        Q: Hash + Equivalent<K> + ?Sized,
        W: Wait,
    {
        let at = self.place(key);
        let mut notifier = self.notifier();
        let refreshed = self.change(at.shard, wait, Unlock::Plain, &mut notifier, |table, gone| {
            let (id, entry) = table.find(at.hash, key)?;
            match table.state(id, entry, now) {
                State::Fresh => {
                    let value = entry.value.clone();
                    table.note_use(id, now);
                    table.touch(id);
                    return Some(value);
                }
                State::Stale => return None,
                State::Dead => {}
            }
            let counters = &at.shard.counters;
            self.budget.release(gone.take_out(counters, table, id, RemovalCause::Expired));
            None
        });
        let value = refreshed.flatten();
        let outcome = if value.is_some() { Outcome::Hit } else { Outcome::Miss };
        self.hit_counters.count(at.number, outcome);
        notifier.end();
        value
    }
}
