//! Operations that read: one shard's read lock, and the write lock only for an entry seen expired
//! or a hit whose note found no place.

use std::hash::{BuildHasher, Hash};
use std::time::Duration;

use equivalent::Equivalent;
use smallvec::SmallVec;

use crate::error::{CacheError, ErrorKind};

use super::clock::Stamp;
use super::policy::{HitNote, Leave};
use super::shard::{Once, Patience, Unlimited, Until};
use super::table::Entry;
use super::tally::Outcome;
use super::{EntryInfo, Place, RemovalCause, ShardedCache};

/// Keys of a batch that are looked up together; see [`ShardedCache::get_many`].
const GROUP: usize = 16;

/// What the read lock showed.
enum Seen<V> {
    Live(V, HitNote),
    Expired,
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
    #[inline]
    pub fn get<Q>(&self, key: &Q) -> Option<V>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        self.get_within(key, Unlimited).flatten()
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

    /// A `get` that does not count a timeout, for waits in several slices; zero tries once.
    #[inline]
    pub(crate) fn get_slice<Q>(&self, key: &Q, wait: Duration) -> Option<Option<V>>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        match wait {
            Duration::ZERO => self.get_within(key, Once),
            wait => self.get_within(key, Until::after(wait)),
        }
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
        self.look(key, self.now_for_reading(), |entry| entry.value.clone())
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
        self.look(key, self.now_for_reading(), |_| ()).is_some()
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
        let now = self.config.time.now();
        self.look(key, now, |entry| EntryInfo {
            weight: entry.weight,
            written_at: self.written_at(entry),
            expires_in: entry.expiry.life_left(now),
        })
    }

    /// The values of many keys, in their order, each counted as by [`get`](Self::get).
    ///
    /// Faster than a loop: keys are taken in groups of 16, hashed together, and the needed shards
    /// read together, each locked once a group, so that the memory accesses of one key overlap with
    /// those of the next. Up to 16 read locks are held at the same time, taken in ascending order;
    /// no other operation waits for one lock while it holds another, so that cannot deadlock.
    /// Allocates the result only.
    ///
    /// ```
    /// # use embedding_cache::ShardedCache;
    /// let cache = ShardedCache::<String, u64>::builder().max_entries(10).build()?;
    /// cache.insert("b".to_string(), 2)?;
    /// assert_eq!(cache.get_many(["a", "b", "b"]), [None, Some(2), Some(2)]);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// ```
    pub fn get_many<'q, Q>(&self, keys: impl IntoIterator<Item = &'q Q>) -> Vec<Option<V>>
    where
        Q: Hash + Equivalent<K> + ?Sized + 'q,
    {
        let mut keys = keys.into_iter();
        let mut values = Vec::with_capacity(keys.size_hint().0);
        loop {
            let group: SmallVec<[&Q; GROUP]> = keys.by_ref().take(GROUP).collect();
            if group.is_empty() {
                return values;
            }
            self.get_group(&group, &mut values);
        }
    }

    fn get_group<Q>(&self, keys: &[&Q], values: &mut Vec<Option<V>>)
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        let now = self.now_for_reading();
        let places: SmallVec<[Place<'_, K, V>; GROUP]> =
            keys.iter().map(|key| self.place(*key)).collect();
        let mut numbers: SmallVec<[usize; GROUP]> = places.iter().map(|at| at.number).collect();
        numbers.sort_unstable();
        numbers.dedup();

        // Ascending and each shard once: a second read lock of the same shard would wait for a
        // writer that waits for the first.
        let tables: SmallVec<[_; GROUP]> =
            numbers.iter().filter_map(|&number| self.shards[number].read(Unlimited)).collect();
        let table_of = |number: usize| {
            let at = numbers.binary_search(&number).expect("every shard of the group is listed");
            &tables[at]
        };
        // Find all slots before the first value is touched: each step's cache misses then overlap.
        let slots: SmallVec<[_; GROUP]> = places
            .iter()
            .zip(keys)
            .map(|(at, key)| table_of(at.number).find(at.hash, *key))
            .collect();
        let mut note = HitNote::Taken;
        let seen: SmallVec<[_; GROUP]> = places
            .iter()
            .zip(&slots)
            .map(|(at, slot)| match *slot {
                None => Seen::Absent,
                Some((_, entry)) if !entry.expiry.is_alive_at(now) => Seen::Expired,
                Some((id, entry)) => {
                    // After a note that found no place, none of this group may be taken before it.
                    if note == HitNote::Taken {
                        note = table_of(at.number).hit(id);
                    }
                    Seen::Live(entry.value.clone(), note)
                }
            })
            .collect();
        drop(slots);
        drop(tables);

        for ((key, at), seen) in keys.iter().zip(places).zip(seen) {
            // Waiting without limit always comes to an answer.
            values.push(self.conclude(*key, at, now, seen, Unlimited).flatten());
        }
    }

    /// `None` if `patience` ran out before an answer was there.
    #[inline]
    fn get_within<Q, P>(&self, key: &Q, patience: P) -> Option<Option<V>>
    where
        Q: Hash + Equivalent<K> + ?Sized,
        P: Patience,
    {
        let now = self.now_for_reading();
        let at = self.place(key);
        let seen = {
            let table = at.shard.read(patience)?;
            match table.find(at.hash, key) {
                None => Seen::Absent,
                Some((_, entry)) if !entry.expiry.is_alive_at(now) => Seen::Expired,
                Some((id, entry)) => Seen::Live(entry.value.clone(), table.hit(id)),
            }
        };
        self.conclude(key, at, now, seen, patience)
    }

    /// Counts what was seen, and does what needs the write lock.
    #[inline]
    fn conclude<Q, P>(
        &self,
        key: &Q,
        at: Place<'_, K, V>,
        now: Stamp,
        seen: Seen<V>,
        patience: P,
    ) -> Option<Option<V>>
    where
        Q: Hash + Equivalent<K> + ?Sized,
        P: Patience,
    {
        match seen {
            Seen::Live(value, note) => {
                self.tally.count(at.number, Outcome::Hit);
                if note == HitNote::Full {
                    self.note_hit(key, at, patience);
                }
                Some(Some(value))
            }
            Seen::Absent => {
                self.tally.count(at.number, Outcome::Miss);
                Some(None)
            }
            Seen::Expired => Some(self.get_expired(key, at, now, patience)),
        }
    }

    /// Notes a hit under the write lock. With a deadline that runs out the note is lost: the value
    /// is worth more than its place in the order.
    #[cold]
    #[inline(never)]
    fn note_hit<Q, P>(&self, key: &Q, at: Place<'_, K, V>, patience: P)
    where
        Q: Hash + Equivalent<K> + ?Sized,
        P: Patience,
    {
        at.shard.write(patience, |table| {
            if let Some((id, _)) = table.find(at.hash, key) {
                table.touch(id);
            }
        });
    }

    /// An entry was seen expired: looks again under the write lock. If the deadline runs out before
    /// that lock is had, the entry was still expired when it was seen, so the answer is a miss and
    /// removing it is left to others.
    #[cold]
    #[inline(never)]
    fn get_expired<Q, P>(&self, key: &Q, at: Place<'_, K, V>, now: Stamp, patience: P) -> Option<V>
    where
        Q: Hash + Equivalent<K> + ?Sized,
        P: Patience,
    {
        let mut expired = None;
        let refreshed = at.shard.write(patience, |table| {
            let (id, entry) = table.find(at.hash, key)?;
            if entry.expiry.is_alive_at(now) {
                let value = entry.value.clone();
                table.touch(id);
                return Some(value);
            }
            expired = table.take(id, Leave::Other);
            expired.iter().for_each(|entry| self.release(entry));
            at.shard.counters.expired.count();
            None
        });
        let value = refreshed.flatten();
        let outcome = if value.is_some() { Outcome::Hit } else { Outcome::Miss };
        self.tally.count(at.number, outcome);
        if let Some(entry) = expired {
            let mut farewell = self.farewell();
            farewell.tell(&entry.key, &entry.value, RemovalCause::Expired);
            farewell.end();
        }
        value
    }

    /// Looks at a live entry under the read lock without counting anything.
    fn look<Q, R>(&self, key: &Q, now: Stamp, at_it: impl FnOnce(&Entry<K, V>) -> R) -> Option<R>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        let at = self.place(key);
        let table = at.shard.read(Unlimited)?;
        let (_, entry) = table.find(at.hash, key)?;
        entry.expiry.is_alive_at(now).then(|| at_it(entry))
    }
}
