//! Invalidation: everything at once, or what a predicate names, and never again what was loaded
//! before.
//!
//! # Everything, in an instant
//!
//! The cache counts generations, and each table has the number of the one in which it was made. A
//! reader compares the two under the read lock and takes an outdated table for an empty one, so one
//! addition empties the cache for all readers, whatever it holds. A writer takes the lock by
//! [`ShardedCache::change`], which first replaces an outdated table by an empty one of the current
//! generation. That takes constant time; the listener is told of the old entries, and they are dropped,
//! after unlocking. (The first try of a put compares as well, and leaves an outdated table to
//! `change`.) The sweep behind an invalidation does the same for every shard, so that memory and room
//! come back without any writer. A shard that a writer has locked before the sweep has a current table,
//! which the sweep leaves as it is.
//!
//! Orderings. The generation only rises, and all accesses to one atomic agree on its order: a thread
//! that has seen a generation, or that synchronizes with one that has, reads no earlier one. Under a
//! lock the generation is at least that of the table, as the thread that made the table had read it
//! before unlocking. For readers a relaxed load is therefore enough. Writers load with acquire, see
//! below.
//!
//! # Nothing that was loaded before
//!
//! A loader that asks the source before an invalidation and inserts after it would bring back what
//! was just invalidated. So it notes the epoch before it asks, and gives it to its insert
//! ([`Condition::epoch`](super::Condition)), which is refused if the epoch has changed. Every invalidation
//! adds one to the epoch *before* it touches any shard, and the insert compares under the write lock
//! of its shard. By cases, for an insert whose epoch was read before the addition:
//!
//! 1. It has the lock before the sweep of [`invalidate_if`](ShardedCache::invalidate_if) first has
//!    it. If it reads the old epoch and stores, the sweep finds the entry: it goes through all slots
//!    that there are when it first has the lock.
//! 2. It has the lock after the sweep first had it. The addition came before the sweep's unlocking,
//!    which came before this locking: it reads the new epoch and is refused.
//! 3. [`invalidate_all`](ShardedCache::invalidate_all), and it stores into a table of an earlier
//!    generation: no read finds the entry, and the table is thrown away.
//! 4. `invalidate_all`, and the table is of the new generation. Then this insert, or a writer before
//!    it under this lock, has read the new generation with acquire. It was stored with release after
//!    the addition to the epoch, which is therefore visible here: refused.
//!
//! An epoch that is read after the addition (acquire) belongs to a loader that sees everything that
//! the invalidating thread had done before (release), so the source as it is now.

use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use super::ShardedCache;
use super::make_room::Condition;
use super::removal::{Gone, Leaving, Notifier};
use super::shard::{Shard, Unlock};
use super::sweep::{Stepwise, drive};
use super::table::Table;
use super::wait::Wait;

impl<K, V, S> ShardedCache<K, V, S> {
    /// Removes everything that was stored before, and returns how many entries it removed.
    ///
    /// From one instant on, in which a counter is raised, no operation finds any of it any more. Then
    /// memory and room are given back shard by shard: constant time under the lock of each, whatever
    /// it holds; the entries are dropped, and the listener called, after unlocking. Until then
    /// [`len`](Self::len) and [`weight`](Self::weight) still count them. A writer that locks a
    /// shard first does that work for it, and those entries are not in the number returned. Entries
    /// inserted while this runs are kept, unless their insert began before that instant. Expired
    /// entries count as removed.
    ///
    /// ```
    /// # use embedding_cache::ShardedCache;
    /// let cache = ShardedCache::<String, u64>::builder().max_entries(10).build()?;
    /// cache.insert("a".to_string(), 1)?;
    /// assert_eq!(cache.invalidate_all(), 1);
    /// assert_eq!((cache.get("a"), cache.len()), (None, 0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn invalidate_all(&self) -> usize {
        drive(self.start_invalidation())
    }

    /// Removes everything: [`invalidate_all`](Self::invalidate_all) without the number.
    ///
    /// ```
    /// # use embedding_cache::ShardedCache;
    /// let cache = ShardedCache::<String, u64>::builder().max_entries(10).build()?;
    /// cache.insert("a".to_string(), 1)?;
    /// cache.clear();
    /// assert!(cache.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn clear(&self) {
        self.invalidate_all();
    }

    /// Removes the live entries for which `predicate` holds, and expired ones, and returns how many
    /// it removed. What is being loaded at this time is not stored under any key, as it is not
    /// known whether `predicate` holds for it; otherwise as [`retain`](Self::retain) with the
    /// opposite predicate.
    ///
    /// **`predicate` runs under the write lock of a shard**, for up to 64 entries a lock hold: while
    /// it is slow, everyone else on that shard waits, and if it uses this cache it deadlocks.
    ///
    /// # Panics
    ///
    /// If `predicate` does: what it had decided of these 64 is then not carried out.
    ///
    /// ```
    /// # use embedding_cache::ShardedCache;
    /// let cache = ShardedCache::<String, u64>::builder().max_entries(10).build()?;
    /// cache.insert_many([("a".to_string(), 1), ("b".to_string(), 2)]);
    /// assert_eq!(cache.invalidate_if(|_, &value| value > 1), 1);
    /// assert_eq!((cache.get("a"), cache.get("b")), (Some(1), None));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn invalidate_if(&self, mut predicate: impl FnMut(&K, &V) -> bool) -> usize {
        self.begin_invalidation();
        self.retain(|key, value| !predicate(key, value))
    }

    /// How often anything was invalidated; for [`Condition::epoch`](super::Condition).
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Acquire)
    }

    /// Refuses from now on what was loaded before; a sweep over what is stored follows.
    pub(crate) fn begin_invalidation(&self) {
        // Release for `epoch`, so that what is loaded in this epoch is loaded from what this thread
        // knows of.
        self.epoch.fetch_add(1, AcqRel);
    }

    /// Whether something newer came than what is to be stored. Under the write lock of the shard.
    pub(super) fn is_past(&self, condition: Condition<'_>) -> bool {
        self.epoch.load(Relaxed) != condition.epoch
            || condition.superseded.is_some_and(|superseded| superseded.load(Relaxed))
    }

    /// Invalidates everything in an instant, and returns the sweep that gives memory back, which the
    /// caller takes step by step.
    pub(crate) fn start_invalidation(&self) -> impl Stepwise<Output = usize> + use<'_, K, V, S> {
        self.begin_invalidation();
        // Release: see the head of this file, case 4.
        let generation = self.generation.fetch_add(1, AcqRel) + 1;
        // To have the lock is all there is to do: `change` exchanges the table.
        let renewed =
            |_: &Shard<K, V>, _: &mut Table<K, V>, gone: &mut Gone<K, V>, _| (gone.outdated, false);
        self.sweep(self.notifier().of_generation(generation), renewed).reclaiming()
    }

    /// Whether `table`, whose lock is held, is of the current generation. If not it counts as empty.
    #[inline]
    pub(super) fn is_current(&self, table: &Table<K, V>) -> bool {
        table.generation() == self.generation.load(Relaxed)
    }

    /// Runs `change` under the write lock of `shard`, on a table of the current generation; `None`
    /// if `wait` ran out first. What it says is gone is told to the listener and dropped after
    /// unlocking. The only way in which anything changes a shard, but for the short way of a put.
    ///
    /// No second lock may be taken inside, and nothing may be dropped there whose drop is the
    /// caller's code.
    pub(super) fn change<W: Wait, R>(
        &self,
        shard: &Shard<K, V>,
        wait: W,
        unlock: Unlock,
        notifier: &mut Notifier<'_, K, V>,
        change: impl FnOnce(&mut Table<K, V>, &mut Gone<K, V>) -> R,
    ) -> Option<R> {
        let mut leaving = Leaving::new(notifier);
        shard.write(wait, unlock, |table| {
            // Acquire: see the head of this file, case 4.
            let generation = self.generation.load(Acquire);
            leaving.renew(table, generation, &shard.counters, &self.budget);
            change(table, &mut leaving.gone)
        })
    }
}

/// What loaders do, for the tests that look at every interleaving.
#[cfg(shuttle)]
#[allow(missing_docs)]
impl<K, V, S> ShardedCache<K, V, S>
where
    K: std::hash::Hash + Eq,
    S: std::hash::BuildHasher,
{
    #[doc(hidden)]
    pub fn noted_epoch(&self) -> u64 {
        self.epoch()
    }

    #[doc(hidden)]
    pub fn insert_in_epoch(&self, key: K, value: V, epoch: u64) -> bool {
        let condition = Condition { epoch, superseded: None };
        let options =
            super::InsertOptions { condition: Some(condition), ..super::InsertOptions::default() };
        match self.insert_with(&mut Some((key, value)), options, super::wait::Forever) {
            Ok(()) => true,
            Err(error) if error.is_superseded() => false,
            Err(error) => panic!("{error}"),
        }
    }
}
