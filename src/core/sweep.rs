//! Operations on many entries: shard after shard, in bites of at most 64 entries a lock hold.
//!
//! Cleanup, `retain` and the sweep behind an invalidation are one [`Sweep`], which differ by what they
//! do in a bite. A sweep is [`Stepwise`], as a batch of inserts is: a blocking caller drives it by
//! [`drive`], an async one yields between two steps.

use std::fmt;
use std::ops::Range;

use smallvec::SmallVec;

use crate::error::{CacheError, ErrorKind};

use super::budget::{Limit, Usage};
use super::builder::entries_for;
use super::clock::Stamp;
use super::make_room::WAITS;
use super::removal::{Gone, Notifier};
use super::shard::{BITE, Shard, Unlock};
use super::table::{State, Table};
use super::wait::{Forever, Wait};
use super::{RemovalCause, ShardedCache};

/// Work in bounded steps, between which nothing is locked.
pub(crate) trait Stepwise {
    type Output;

    /// Does a bounded part of the work. Waits at most `wait` for a lock.
    fn step<W: Wait>(&mut self, wait: W) -> Step;

    /// The outcome of all steps. Resumes the panic of the listener, if there was one.
    fn end(self) -> Self::Output;
}

/// The outcome of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// There may be more to do.
    More,
    /// Another thread held the lock all the time, or all the room for an entry.
    Locked,
    /// All is done.
    Done,
}

/// Takes all steps, waiting for each lock as long as it takes.
pub(super) fn drive<T: Stepwise>(mut work: T) -> T::Output {
    while work.step(Forever) != Step::Done {}
    work.end()
}

impl<K, V, S> ShardedCache<K, V, S> {
    /// Removes expired entries and returns how many. A shard whose cleanup guard another thread
    /// holds is skipped: it is being cleaned up.
    ///
    /// Removes up to 64 entries a lock hold and hands the lock to waiting threads in between;
    /// `O(expired + shards)`, nothing is scanned. Entries that expire while it runs may stay.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use embedding_cache::ShardedCache;
    /// let cache = ShardedCache::<String, u64>::builder().max_entries(10).build()?;
    /// cache.insert_with_ttl("a".to_string(), 1, Duration::ZERO)?;
    /// assert_eq!(cache.cleanup_expired(), 1);
    /// assert!(cache.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn cleanup_expired(&self) -> usize {
        drive(self.start_cleanup())
    }

    /// Starts a [`cleanup_expired`](Self::cleanup_expired) that the caller takes step by step.
    pub(crate) fn start_cleanup(&self) -> impl Stepwise<Output = usize> + use<'_, K, V, S> {
        let now = self.config.time.now();
        let bite = move |shard: &Shard<K, V>, table: &mut Table<K, V>, gone: &mut Gone<K, V>, _| {
            while gone.len() < BITE
                && let Some(id) = table.expired(now)
            {
                gone.take_out(&shard.counters, table, id, RemovalCause::Expired);
            }
            (gone.len(), gone.len() == BITE || table.may_have_more())
        };
        Sweep { skips_guarded: true, ..self.sweep(self.notifier(), bite).reclaiming() }
    }

    /// Keeps the live entries for which `keep` holds, removes the others, and returns how many it
    /// removed (expired ones among them).
    ///
    /// **`keep` runs under the write lock of a shard**, for up to 64 entries a lock hold: while it
    /// is slow, everyone else on that shard waits, and if it uses this cache it deadlocks. If it
    /// panics, what it had decided of these 64 is not carried out. Entries that others insert while
    /// this runs may or may not be seen.
    ///
    /// ```
    /// # use embedding_cache::ShardedCache;
    /// let cache = ShardedCache::<String, u64>::builder().max_entries(10).build()?;
    /// cache.insert_many([("a".to_string(), 1), ("b".to_string(), 2)]);
    /// assert_eq!(cache.retain(|_, &value| value > 1), 1);
    /// assert_eq!(cache.get("b"), Some(2));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn retain(&self, keep: impl FnMut(&K, &V) -> bool) -> usize {
        drive(self.start_retain(keep))
    }

    /// Starts a [`retain`](Self::retain) that the caller takes step by step.
    pub(crate) fn start_retain<F: FnMut(&K, &V) -> bool>(
        &self,
        mut keep: F,
    ) -> impl Stepwise<Output = usize> + use<'_, K, V, S, F> {
        let now = self.now_for_reading();
        let bite = move |shard: &Shard<K, V>,
                         table: &mut Table<K, V>,
                         gone: &mut Gone<K, V>,
                         slots: Range<usize>| {
            // All decisions before the first removal: a panic then leaves nothing half done.
            let mut unwanted = SmallVec::<[_; BITE]>::new();
            for (id, entry) in slots.filter_map(|place| table.entry_at(place)) {
                // An entry that is merely stale may still be served to a load.
                if table.state(id, entry, now) == State::Dead {
                    unwanted.push((id, RemovalCause::Expired));
                } else if !keep(&entry.key, &entry.value) {
                    unwanted.push((id, RemovalCause::Removed));
                }
            }
            for (id, cause) in unwanted {
                gone.take_out(&shard.counters, table, id, cause);
            }
            (gone.len(), true)
        };
        self.sweep(self.notifier(), bite)
    }

    /// A sweep over all shards that does `bite` under each lock hold.
    pub(super) fn sweep<'a, F>(
        &'a self,
        notifier: Notifier<'a, K, V>,
        bite: F,
    ) -> Sweep<'a, K, V, S, F>
    where
        F: FnMut(&Shard<K, V>, &mut Table<K, V>, &mut Gone<K, V>, Range<usize>) -> (usize, bool),
    {
        Sweep {
            cache: self,
            notifier: notifier.in_bites(),
            cursor: Cursor::default(),
            skips_guarded: false,
            reclaims: false,
            bite,
            removed: 0,
        }
    }

    /// The live entries, cloned, shard by shard.
    ///
    /// The iterator clones up to 64 entries under the read lock of one shard, unlocks, and yields
    /// them: **`Clone` of the key and of the value run under that lock**, what you do with them
    /// does not. No snapshot: entries inserted or removed while it runs may or may not appear, but
    /// one that is there all the time appears exactly once, unless its value is replaced by way of
    /// a removal.
    ///
    /// ```
    /// # use embedding_cache::ShardedCache;
    /// let cache = ShardedCache::<u64, u64>::builder().max_entries(1000).build()?;
    /// cache.insert_many((0..500).map(|key| (key, key * key)));
    /// let mut entries: Vec<_> = cache.iter().collect();
    /// entries.sort_unstable();
    /// assert_eq!(entries[20], (20, 400));
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// ```
    pub fn iter(&self) -> Iter<'_, K, V, S> {
        Iter { cache: self, at: Cursor::default(), bite: Vec::new().into_iter() }
    }

    /// The keys of the live entries, cloned; as by [`iter`](Self::iter), without a clone of
    /// any value.
    ///
    /// ```
    /// # use embedding_cache::ShardedCache;
    /// let cache = ShardedCache::<String, u64>::builder().max_entries(10).build()?;
    /// cache.insert("a".to_string(), 1)?;
    /// assert_eq!(cache.keys().collect::<Vec<_>>(), ["a"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn keys(&self) -> impl Iterator<Item = K>
    where
        K: Clone,
    {
        let mut at = Cursor::default();
        std::iter::from_fn(move || self.next_bite(&mut at, |key, _| key.clone())).flatten()
    }

    /// Changes the limit on entries, evicting until it holds, and returns how many it evicted.
    ///
    /// Shard after shard in bites of at most 64 entries a lock hold. When this returns the new
    /// limit holds, and does from then on; if other writers hold more than the limit in
    /// reservations for longer than some 20 ms, it returns early and the excess leaves as they
    /// finish or give up.
    ///
    /// ```
    /// # use embedding_cache::ShardedCache;
    /// let cache = ShardedCache::<u64, u64>::builder().max_entries(100).build()?;
    /// cache.insert_many((0..100).map(|key| (key, key)));
    /// assert_eq!(cache.set_max_entries(10), 90);
    /// assert_eq!(cache.len(), 10);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// ```
    pub fn set_max_entries(&self, max: usize) -> usize {
        // First: should the caller's clock panic, nothing has changed.
        let now = self.config.time.now();
        self.budget.set_max_entries(max as u64);
        self.shrink(now)
    }

    /// Changes the limit on weight; otherwise as [`set_max_entries`](Self::set_max_entries).
    ///
    /// # Errors
    ///
    /// [`CacheError::is_configuration`] if the cache has no weigher.
    ///
    /// ```
    /// # use embedding_cache::ShardedCache;
    /// let cache = ShardedCache::<u64, String>::builder()
    ///     .max_weight(100)
    ///     .weigher(|_: &u64, text: &String| text.len() as u64)
    ///     .build()?;
    /// cache.insert(1, "x".repeat(60))?;
    /// assert_eq!(cache.set_max_weight(50)?, 1);
    /// assert_eq!(cache.weight(), 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_max_weight(&self, max: u64) -> Result<usize, CacheError> {
        if self.config.weigher.is_none() {
            return Err(ErrorKind::NoWeigher { limit: max }.into());
        }
        let now = self.config.time.now();
        // Whether a limit on entries was set since: then it stays.
        let before = self.budget.max();
        let follows = self.config.entries_by_weight && before.entries == entries_for(before.weight);
        self.budget.set_max_weight(max);
        if follows {
            self.budget.set_max_entries(entries_for(max));
        }
        Ok(self.shrink(now))
    }

    /// Evicts until no limit is exceeded.
    fn shrink(&self, now: Stamp) -> usize {
        // Every put that may still go by the old limit is under the lock of its shard: once that
        // lock was had here, it has either reserved its room, which is counted, or will see the new
        // limit.
        let mut notifier = self.notifier().in_bites();
        for shard in &self.shards {
            self.change(shard, Forever, Unlock::Plain, &mut notifier, |_, _| ());
        }
        let mut evicted = 0;
        let mut waits = 0;
        while let Some(limit) = self.budget.excess() {
            let before = evicted;
            // Whether a search for what is to leave ended for this lock hold only.
            let mut goes_on = false;
            for shard in &self.shards {
                let bite = self.bite_for(limit);
                let left =
                    self.change(shard, Forever, Unlock::Fair, &mut notifier, |table, gone| {
                        let mut freed = Usage::default();
                        for _ in 0..bite {
                            let Some((entry, reason)) = table.evict_one(limit, now, None, true)
                            else {
                                break;
                            };
                            freed += Usage::one(entry.weight);
                            let cause = shard.counters.count_eviction(reason, limit);
                            gone.push((entry.key, entry.value, cause));
                        }
                        self.budget.release(freed);
                        (gone.len(), table.is_tired())
                    });
                let (left, is_tired) = left.unwrap_or_default();
                evicted += left;
                goes_on |= is_tired;
                if self.budget.excess() != Some(limit) {
                    break;
                }
            }
            if evicted == before && !goes_on {
                waits += 1;
                if waits > WAITS {
                    break;
                }
                crate::sync::back_off(waits);
            }
        }
        notifier.end();
        evicted
    }

    /// How many entries a shard gives at once while a limit is being lowered: its part of the
    /// excess in entries, so that no shard gives everything; one by one for weight.
    fn bite_for(&self, limit: Limit) -> usize {
        let excess = self.budget.used().saturating_sub(self.budget.max());
        match limit {
            Limit::Entries => {
                let part = excess.entries.div_ceil(self.shards.len() as u64);
                usize::try_from(part).unwrap_or(BITE).clamp(1, BITE)
            }
            Limit::Weight => 1,
        }
    }

    /// What `what` makes of the next live entries after the place `at`, which moves on; at most
    /// [`BITE`] under one read lock. `None` at the end.
    fn next_bite<T>(&self, at: &mut Cursor, what: impl Fn(&K, &V) -> T) -> Option<Vec<T>> {
        let now = self.now_for_reading();
        // Before the lock: the allocator takes its time at times.
        let mut bite = Vec::with_capacity(BITE);
        loop {
            let shard: &Shard<K, V> = self.shards.get(at.shard)?;
            let table = shard.read(Forever)?;
            if !self.is_current(&table) {
                *at = at.next_shard();
                continue;
            }
            let (slots, next) = at.next(table.slots());
            let entries = slots
                .filter_map(|place| table.entry_at(place))
                .filter(|&(id, entry)| table.state(id, entry, now) == State::Fresh);
            bite.extend(entries.map(|(_, entry)| what(&entry.key, &entry.value)));
            *at = next;
            if !bite.is_empty() {
                return Some(bite);
            }
        }
    }
}

/// A cleanup, a `retain` or the sweep behind an invalidation, under way. Dropped before its end it has
/// gone through some of the shards.
pub(crate) struct Sweep<'a, K, V, S, F> {
    cache: &'a ShardedCache<K, V, S>,
    notifier: Notifier<'a, K, V>,
    cursor: Cursor,
    /// Takes the cleanup guard of a shard for each bite, and skips the shard where another thread has
    /// it.
    skips_guarded: bool,
    /// Drops, after the last shard, all that invalidations left behind.
    reclaims: bool,
    /// What is done to the next slots, under the write lock: how many entries that removed, and whether
    /// there may be more to do in this shard.
    bite: F,
    removed: usize,
}

impl<K, V, S, F> Sweep<'_, K, V, S, F> {
    /// The same, which drops in the end all that invalidations left behind.
    pub(super) fn reclaiming(self) -> Self {
        Self { reclaims: true, ..self }
    }
}

impl<K, V, S, F> Stepwise for Sweep<'_, K, V, S, F>
where
    F: FnMut(&Shard<K, V>, &mut Table<K, V>, &mut Gone<K, V>, Range<usize>) -> (usize, bool),
{
    type Output = usize;

    fn step<W: Wait>(&mut self, wait: W) -> Step {
        let Self { cache, notifier, cursor, bite, .. } = self;
        let Some(shard) = cache.shards.get(cursor.shard) else {
            let more = self.reclaims && notifier.reclaim_bite();
            return if more { Step::More } else { Step::Done };
        };
        let guard = if self.skips_guarded { shard.cleanup.try_lock() } else { None };
        if self.skips_guarded && guard.is_none() {
            *cursor = cursor.next_shard();
            return Step::More;
        }
        let outcome = cache.change(shard, wait, Unlock::Fair, notifier, |table, gone| {
            let (slots, next) = cursor.next(table.slots());
            let before = table.held();
            let (removed, more) = bite(shard, table, gone, slots);
            // Under the lock still, as all room is given back.
            cache.budget.release(before.saturating_sub(table.held()));
            (removed, if more { next } else { cursor.next_shard() })
        });
        let Some((removed, next)) = outcome else { return Step::Locked };
        self.removed += removed;
        *cursor = next;
        Step::More
    }

    fn end(self) -> usize {
        self.notifier.end();
        self.removed
    }
}

/// Where something that goes through all slots of all shards stands.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cursor {
    shard: usize,
    /// The next slot of that shard.
    slot: usize,
    /// How many slots it had at the first bite. Those that come later are not gone through: were the
    /// shard to grow as fast, that would never end.
    slots: Option<usize>,
}

impl Cursor {
    /// The slots of a bite in a shard that has so many now, and where the next bite begins.
    fn next(self, slots: usize) -> (Range<usize>, Self) {
        let slots = self.slots.unwrap_or(slots);
        let until = (self.slot + BITE).min(slots);
        let next = Self { slot: until, slots: Some(slots), ..self };
        (self.slot..until, if until < slots { next } else { self.next_shard() })
    }

    fn next_shard(self) -> Self {
        Self { shard: self.shard + 1, ..Self::default() }
    }
}

/// The entries of a [`ShardedCache`], from [`ShardedCache::iter`].
pub struct Iter<'a, K, V, S> {
    cache: &'a ShardedCache<K, V, S>,
    at: Cursor,
    bite: std::vec::IntoIter<(K, V)>,
}

impl<K: Clone, V: Clone, S> Iterator for Iter<'_, K, V, S> {
    type Item = (K, V);

    fn next(&mut self) -> Option<(K, V)> {
        loop {
            if let Some(entry) = self.bite.next() {
                return Some(entry);
            }
            let both = |key: &K, value: &V| (key.clone(), value.clone());
            let bite = self.cache.next_bite(&mut self.at, both)?;
            self.bite = bite.into_iter();
        }
    }
}

impl<K, V, S> fmt::Debug for Iter<'_, K, V, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Iter").field("shard", &self.at.shard).finish_non_exhaustive()
    }
}
