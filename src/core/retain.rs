//! Removal of what a predicate names: shard after shard, at most 64 entries a lock hold.

use std::time::Duration;

use smallvec::SmallVec;

use super::budget::Usage;
use super::clock::Stamp;
use super::removal::Notifier;
use super::shard::BITE;
use super::shard::{Fair, Forever, Try, Until, Wait};
use super::sweep::Step;
use super::table::State;
use super::{RemovalCause, ShardedCache};

impl<K, V, S> ShardedCache<K, V, S> {
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
        let mut retain = self.start_retain(keep);
        let mut removed = 0;
        while let Step::Removed(bite) = retain.step(Forever) {
            removed += bite;
        }
        retain.end();
        removed
    }

    /// Starts a [`retain`](Self::retain) that the caller takes step by step.
    pub(crate) fn start_retain<F: FnMut(&K, &V) -> bool>(&self, keep: F) -> Retain<'_, K, V, S, F> {
        let (now, notifier) = (self.now_for_reading(), self.notifier().in_bites());
        Retain { cache: self, keep, now, notifier, shard: 0, from: 0, slots: None }
    }
}

/// A [`ShardedCache::retain`] under way, from [`ShardedCache::start_retain`]. Between two steps
/// nothing is locked.
pub(crate) struct Retain<'a, K, V, S, F> {
    cache: &'a ShardedCache<K, V, S>,
    keep: F,
    now: Stamp,
    notifier: Notifier<'a, K, V>,
    shard: usize,
    /// The next slot of that shard.
    from: usize,
    /// The slots there are when the shard is come to: were it to grow as fast as this goes through
    /// it, that would never end.
    slots: Option<usize>,
}

impl<K, V, S, F: FnMut(&K, &V) -> bool> Retain<'_, K, V, S, F> {
    /// Goes through up to 64 slots; waits at most `wait` for the lock, zero tries once.
    pub(crate) fn step_slice(&mut self, wait: Duration) -> Step {
        match wait {
            Duration::ZERO => self.step(Try),
            wait => self.step(Until::after(wait)),
        }
    }

    fn step<P: Wait>(&mut self, wait: P) -> Step {
        let Self { cache, keep, now, notifier, slots, .. } = self;
        let (from, now) = (self.from, *now);
        let Some(shard) = cache.shards.get(self.shard) else { return Step::Done };
        let outcome = cache.change(shard, Fair(wait), notifier, |table, gone| {
            let slots = *slots.get_or_insert(table.slots());
            let until = (from + BITE).min(slots);
            // All decisions before the first removal: a panic then leaves nothing half done.
            let mut unwanted = SmallVec::<[_; BITE]>::new();
            for (id, entry) in (from..until).filter_map(|place| table.entry_at(place)) {
                // What is merely stale may still be served to who asks for it.
                let alive = table.state(id, entry, now) != State::Dead;
                if !alive || !keep(&entry.key, &entry.value) {
                    unwanted.push((id, alive));
                }
            }
            let mut freed = Usage::default();
            for (id, alive) in unwanted {
                let Some(entry) = table.take(id) else { continue };
                freed += Usage::one(entry.weight);
                let cause = if alive {
                    shard.counters.removals.count();
                    RemovalCause::Removed
                } else {
                    shard.counters.expired.count();
                    RemovalCause::Expired
                };
                gone.push((entry.key, entry.value, cause));
            }
            cache.budget.release(freed);
            (gone.len(), until < slots)
        });
        let Some((removed, more)) = outcome else { return Step::Locked };
        if more {
            self.from += BITE;
        } else {
            (self.shard, self.from, self.slots) = (self.shard + 1, 0, None);
        }
        Step::Removed(removed)
    }

    /// When all is done: goes on with the panic of the listener, if there was one.
    pub(crate) fn end(self) {
        self.notifier.end();
    }
}
