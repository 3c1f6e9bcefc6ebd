//! Operations on many entries: shard after shard, in bites of at most 64 entries a lock hold.

use std::fmt;
use std::time::Duration;

use crate::error::{CacheError, ErrorKind};

use super::budget::{Limit, Usage, WAITS};
use super::builder::entries_for;
use super::clock::Stamp;
use super::removal::Notifier;
use super::shard::{BITE, Fair, Forever, Shard, Try, Until, Wait};
use super::table::State;
use super::{RemovalCause, ShardedCache};

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
        let mut cleanup = self.start_cleanup();
        let mut removed = 0;
        while let Step::Removed(bite) = cleanup.step(Forever) {
            removed += bite;
        }
        cleanup.end();
        removed
    }

    /// Starts a [`cleanup_expired`](Self::cleanup_expired) that the caller takes step by step.
    pub(crate) fn start_cleanup(&self) -> Cleanup<'_, K, V, S> {
        let (now, notifier) = (self.config.time.now(), self.notifier().in_bites());
        Cleanup { cache: self, now, notifier, shard: 0, bites: None }
    }

    /// Removes at most [`BITE`] expired entries under one lock hold, and says how many, and whether
    /// there may be more; `None` if `wait` ran out. The caller has the cleanup guard.
    fn remove_expired<P: Wait>(
        &self,
        shard: &Shard<K, V>,
        now: Stamp,
        notifier: &mut Notifier<'_, K, V>,
        wait: P,
    ) -> Option<(usize, bool)> {
        self.change(shard, Fair(wait), notifier, |table, gone| {
            let mut freed = Usage::default();
            while gone.len() < BITE {
                let expired = table.expired(now).and_then(|id| table.take(id));
                let Some(entry) = expired else { break };
                shard.counters.expired.count();
                freed += Usage::one(entry.weight);
                gone.push((entry.key, entry.value, RemovalCause::Expired));
            }
            self.budget.release(freed);
            (gone.len(), gone.len() == BITE || table.may_have_more())
        })
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

    /// The keys of the live entries, cloned; as [`iter`](Self::iter), which see, but clones no
    /// value.
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
            self.change(shard, Forever, &mut notifier, |_, _| ());
        }
        let mut evicted = 0;
        let mut waits = 0;
        while let Some(limit) = self.budget.excess() {
            let before = evicted;
            for shard in &self.shards {
                let bite = self.bite_for(limit);
                let left = self.change(shard, Fair(Forever), &mut notifier, |table, gone| {
                    let mut freed = Usage::default();
                    for _ in 0..bite {
                        let Some((entry, reason)) = table.evict_one(limit, now, None, true) else {
                            break;
                        };
                        freed += Usage::one(entry.weight);
                        let cause = self.count_departure(shard, reason, limit);
                        gone.push((entry.key, entry.value, cause));
                    }
                    self.budget.release(freed);
                    gone.len()
                });
                evicted += left.unwrap_or(0);
                if self.budget.excess() != Some(limit) {
                    break;
                }
            }
            if evicted == before {
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
                *at = Cursor { shard: at.shard + 1, ..Cursor::default() };
                continue;
            }
            let slots = *at.slots.get_or_insert(table.slots());
            let until = (at.slot + BITE).min(slots);
            let entries = (at.slot..until)
                .filter_map(|place| table.entry_at(place))
                .filter(|&(id, entry)| table.state(id, entry, now) == State::Fresh);
            bite.extend(entries.map(|(_, entry)| what(&entry.key, &entry.value)));
            *at = if until < slots {
                Cursor { slot: until, ..*at }
            } else {
                Cursor { shard: at.shard + 1, ..Cursor::default() }
            };
            if !bite.is_empty() {
                return Some(bite);
            }
        }
    }
}

/// A cleanup under way, from [`ShardedCache::start_cleanup`]. Between two steps nothing is locked.
pub(crate) struct Cleanup<'a, K, V, S> {
    cache: &'a ShardedCache<K, V, S>,
    now: Stamp,
    notifier: Notifier<'a, K, V>,
    shard: usize,
    /// Steps left for this shard: as many as it could need when it was come to, should others keep
    /// adding expired entries. `None` before that.
    bites: Option<usize>,
}

/// What a step of a sweep came to: of a [`Cleanup`], a [`Retain`](super::retain::Retain), an
/// [`Invalidation`](super::invalidate::Invalidation).
pub(crate) enum Step {
    /// So many entries are gone, under one lock hold.
    Removed(usize),
    /// Another thread held the lock all the time.
    Locked,
    /// All shards are done.
    Done,
}

impl<K, V, S> Cleanup<'_, K, V, S> {
    /// A step that waits at most `wait` for a lock; zero tries once. At most [`BITE`] entries are
    /// removed, or dropped that an invalidation left behind.
    pub(crate) fn step_slice(&mut self, wait: Duration) -> Step {
        match wait {
            Duration::ZERO => self.step(Try),
            wait => self.step(Until::after(wait)),
        }
    }

    fn step<P: Wait>(&mut self, wait: P) -> Step {
        while let Some(shard) = self.cache.shards.get(self.shard) {
            if let Some(_guard) = shard.cleanup.try_lock() {
                let most = shard.counters.held().entries as usize / BITE + 1;
                let left = self.bites.unwrap_or(most) - 1;
                let notifier = &mut self.notifier;
                let bite = self.cache.remove_expired(shard, self.now, notifier, wait);
                let Some((removed, more)) = bite else { return Step::Locked };
                self.bites = Some(left);
                if !more || left == 0 {
                    self.next_shard();
                }
                return Step::Removed(removed);
            }
            // Someone else is cleaning it up.
            self.next_shard();
        }
        // What a cancelled invalidation left behind.
        if self.notifier.reclaim_bite() { Step::Removed(0) } else { Step::Done }
    }

    /// When all is done: goes on with the panic of the listener, if there was one.
    pub(crate) fn end(self) {
        self.notifier.end();
    }

    fn next_shard(&mut self) {
        self.shard += 1;
        self.bites = None;
    }
}

/// Where an iteration stands.
#[derive(Debug, Clone, Copy, Default)]
struct Cursor {
    shard: usize,
    /// The next slot of that shard.
    slot: usize,
    /// The slots it had when it was come to; those that come later are not gone through.
    slots: Option<usize>,
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
