//! Operations that read: one shard's read lock, and the write lock only for an entry seen expired
//! or a hit whose note found no place.

use std::hash::{BuildHasher, Hash};
use std::time::Duration;

use equivalent::Equivalent;

use crate::error::{CacheError, ErrorKind};
use crate::sync::atomic::Ordering::Relaxed;

use super::clock::Stamp;
use super::hit_counters::Outcome;
use super::shard::{Forever, Shard, Try, Until, Wait};
use super::table::index::SlotHash;
use super::table::policy::HitNote;
use super::table::slots::SlotId;
use super::table::{Entry, State, Table};
use super::{EntryInfo, RemovalCause, ShardedCache};

/// What a look at a key shows, from [`ShardedCache::look_slice`].
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
        self.get_here(key, Forever).flatten()
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
        self.get_within(key, Until::after(wait)).ok_or_else(|| {
            self.place(key).shard.counters.timeouts.count();
            ErrorKind::Timeout { operation: "get", waited: wait }.into()
        })
    }

    /// [`get`](Self::get) for callers that put more around it: not always in line, as with that it is
    /// no faster.
    #[inline]
    pub(crate) fn get_called<Q>(&self, key: &Q) -> Option<V>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        self.get_within(key, Forever).flatten()
    }

    /// A `get` that does not wait and does not count that as a timeout: `None` if another thread has
    /// the lock.
    #[inline]
    pub(crate) fn get_at_once<Q>(&self, key: &Q) -> Option<Option<V>>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        self.get_within(key, Try)
    }

    /// A `get` that does not count a timeout, for waits in several slices.
    pub(crate) fn get_slice<Q>(&self, key: &Q, wait: Duration) -> Option<Option<V>>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        self.get_within(key, Until::after(wait))
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
        self.look(key, self.now_for_reading(), |_, _, entry| entry.value.clone())
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
        self.look(key, self.now_for_reading(), |_, _, _| ()).is_some()
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
        self.entry_info_within(key, Forever).flatten()
    }

    /// As [`entry_info`](Self::entry_info), waiting at most `wait` for the lock, zero tries once;
    /// `None` if it was not had.
    pub(crate) fn entry_info_slice<Q>(&self, key: &Q, wait: Duration) -> Option<Option<EntryInfo>>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        self.entry_info_within(key, Until::after(wait))
    }

    fn entry_info_within<Q, P>(&self, key: &Q, patience: P) -> Option<Option<EntryInfo>>
    where
        Q: Hash + Equivalent<K> + ?Sized,
        P: Wait,
    {
        let now = self.config.time.now();
        self.look_at(key, now, patience, |table, id, entry| EntryInfo {
            weight: entry.weight,
            written_at: self.wall_time_after(table.written(id)),
            expires_in: table.life_left(id, entry, now),
        })
    }

    /// [`get_here`](Self::get_here), or a call of it, as the compiler likes.
    #[inline]
    fn get_within<Q, P>(&self, key: &Q, wait: P) -> Option<Option<V>>
    where
        Q: Hash + Equivalent<K> + ?Sized,
        P: Wait,
    {
        self.get_here(key, wait)
    }

    /// `None` if `wait` ran out before an answer was there.
    #[inline(always)]
    fn get_here<Q, P>(&self, key: &Q, wait: P) -> Option<Option<V>>
    where
        Q: Hash + Equivalent<K> + ?Sized,
        P: Wait,
    {
        // Twice, so that where nothing can expire a hit asks for no time and has none to keep at hand.
        if self.may_expire.load(Relaxed) {
            self.get_at(key, wait, self.fresh_beyond_for_reading())
        } else {
            self.get_at(key, wait, Stamp::ZERO)
        }
    }

    #[inline(always)]
    fn get_at<Q, P>(&self, key: &Q, wait: P, fresh_beyond: Stamp) -> Option<Option<V>>
    where
        Q: Hash + Equivalent<K> + ?Sized,
        P: Wait,
    {
        let at = self.place(key);
        let table = at.shard.read(wait)?;
        let Some((id, entry)) = self.find(&table, at.hash, key) else {
            drop(table);
            self.hit_counters.count(at.number, Outcome::Miss);
            return Some(None);
        };
        // In a straight line: a hit is what this cache is for. Two of them are under way at once in
        // a large cache, or three, by how many instructions one takes: the processor runs ahead by
        // some three hundred, and what it waits for is memory.
        if entry.expiry > fresh_beyond && table.is_settled(entry) {
            let value = entry.value.clone();
            drop(table);
            self.hit_counters.count(at.number, Outcome::Hit);
            return Some(Some(value));
        }
        let now = fresh_beyond.minus(self.config.table_config.grace);
        match table.state(id, entry, now) {
            State::Fresh => {
                let value = entry.value.clone();
                table.note_use(id, now);
                let note = table.hit(id, entry);
                drop(table);
                self.hit_counters.count(at.number, Outcome::Hit);
                if note == HitNote::Full {
                    self.note_hit(key, wait);
                }
                Some(Some(value))
            }
            State::Stale => {
                drop(table);
                self.hit_counters.count(at.number, Outcome::Miss);
                Some(None)
            }
            State::Dead => {
                drop(table);
                Some(self.get_expired(key, now, wait))
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

    /// Notes a hit that found no place.
    // Finds its place once more, so that a hit need not keep it.
    #[cold]
    #[inline(never)]
    fn note_hit<Q, P>(&self, key: &Q, wait: P)
    where
        Q: Hash + Equivalent<K> + ?Sized,
        P: Wait,
    {
        let at = self.place(key);
        self.note_hits(at.shard, std::iter::once((key, at.hash)), wait);
    }

    /// Notes hits in one shard, no more than a group, under its write lock. With a deadline that
    /// runs out the notes are lost: the value is worth more than its place in the order.
    #[cold]
    #[inline(never)]
    pub(super) fn note_hits<'q, Q, P>(
        &self,
        shard: &Shard<K, V>,
        hits: impl Iterator<Item = (&'q Q, SlotHash)>,
        wait: P,
    ) where
        Q: Equivalent<K> + ?Sized + 'q,
        P: Wait,
    {
        let mut notifier = self.notifier();
        self.change(shard, wait, &mut notifier, |table, _| {
            for (key, hash) in hits {
                if let Some((id, _)) = table.find(hash, key) {
                    table.touch(id);
                }
            }
        });
        notifier.end();
    }

    /// An entry was seen expired: looks again under the write lock. If the deadline runs out before
    /// that lock is had, the entry was still expired when it was seen, so the answer is a miss and
    /// removing it is left to others.
    #[cold]
    #[inline(never)]
    pub(super) fn get_expired<Q, P>(&self, key: &Q, now: Stamp, wait: P) -> Option<V>
    where
        Q: Hash + Equivalent<K> + ?Sized,
        P: Wait,
    {
        let at = self.place(key);
        let mut notifier = self.notifier();
        let refreshed = self.change(at.shard, wait, &mut notifier, |table, gone| {
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
            if let Some(entry) = table.take(id) {
                self.release(&entry);
                at.shard.counters.expired.count();
                gone.push((entry.key, entry.value, RemovalCause::Expired));
            }
            None
        });
        let value = refreshed.flatten();
        let outcome = if value.is_some() { Outcome::Hit } else { Outcome::Miss };
        self.hit_counters.count(at.number, outcome);
        notifier.end();
        value
    }

    /// Looks at `key` without counting anything, waiting at most `wait` for the lock, zero tries
    /// once; `None` if it was not had.
    pub(crate) fn look_slice<Q>(&self, key: &Q, wait: Duration) -> Option<Lookup<V>>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        match wait {
            Duration::ZERO => self.look_within(key, Try),
            wait => self.look_within(key, Until::after(wait)),
        }
    }

    fn look_within<Q, P>(&self, key: &Q, wait: P) -> Option<Lookup<V>>
    where
        Q: Hash + Equivalent<K> + ?Sized,
        P: Wait,
    {
        let now = self.now_for_reading();
        let at = self.place(key);
        let table = at.shard.read(wait)?;
        let Some((id, entry)) = self.find(&table, at.hash, key) else {
            return Some(Lookup::Absent);
        };
        Some(match table.state(id, entry, now) {
            State::Fresh => Lookup::Fresh(entry.value.clone()),
            State::Stale => {
                Lookup::Stale { value: entry.value.clone(), past: table.past_life(entry, now) }
            }
            State::Dead => Lookup::Absent,
        })
    }

    /// Looks at a live entry under the read lock without counting anything.
    fn look<Q, R>(
        &self,
        key: &Q,
        now: Stamp,
        at_it: impl FnOnce(&Table<K, V>, SlotId, &Entry<K, V>) -> R,
    ) -> Option<R>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        self.look_at(key, now, Forever, at_it).flatten()
    }

    /// As [`look`](Self::look); `None` if `patience` ran out.
    fn look_at<Q, P, R>(
        &self,
        key: &Q,
        now: Stamp,
        patience: P,
        at_it: impl FnOnce(&Table<K, V>, SlotId, &Entry<K, V>) -> R,
    ) -> Option<Option<R>>
    where
        Q: Hash + Equivalent<K> + ?Sized,
        P: Wait,
    {
        let at = self.place(key);
        let table = at.shard.read(patience)?;
        let Some((id, entry)) = self.find(&table, at.hash, key) else { return Some(None) };
        Some((table.state(id, entry, now) == State::Fresh).then(|| at_it(&table, id, entry)))
    }
}
