//! A shard: one lock around one table, its cleanup guard, its counters.

use crate::sync::{Mutex, RwLock, RwLockReadGuard, unlock_fair};

use super::counters::Counters;
use super::table::{Table, TableConfig};
use super::wait::Wait;

/// Entries looked at, or removed, under one lock hold at most.
pub(super) const BITE: usize = 64;

/// How a write lock is given back.
#[derive(Debug, Clone, Copy)]
pub(super) enum Unlock {
    /// The next thread that asks has it; that may be this one again.
    Plain,
    /// It is handed to a thread that waits: for work that takes it bite after bite.
    Fair,
}

/// Aligned to two cache lines, as processors fetch them in pairs: a neighbour's lock is never on
/// the same one.
#[derive(Debug)]
#[repr(C, align(128))]
pub(super) struct Shard<K, V> {
    table: RwLock<Table<K, V>>,
    pub(super) counters: Counters,
    /// Held by the thread that cleans up this shard; only ever tried, never waited for.
    pub(super) cleanup: Mutex<()>,
}

impl<K, V> Shard<K, V> {
    pub(super) fn new(table_config: &TableConfig) -> Self {
        Self {
            table: RwLock::new(Table::new(table_config, 0)),
            counters: Counters::default(),
            cleanup: Mutex::new(()),
        }
    }

    /// The read lock, or `None` if `wait` ran out.
    #[inline]
    pub(super) fn read<W: Wait>(&self, wait: W) -> Option<RwLockReadGuard<'_, Table<K, V>>> {
        wait.read(&self.table)
    }

    /// Runs `change` under the write lock; `None` if `wait` ran out first. This is the only way
    /// to the write lock, so each lock hold has its bounds and the gauges are always shown. The
    /// only ways to here are `ShardedCache::change`, which sees to it that the table is current, and
    /// `ShardedCache::insert_with`, which leaves one that is not as it is.
    ///
    /// No second lock may be taken inside, and nothing may be dropped there whose drop is the
    /// caller's code.
    pub(super) fn write<W: Wait, R>(
        &self,
        wait: W,
        unlock: Unlock,
        change: impl FnOnce(&mut Table<K, V>) -> R,
    ) -> Option<R> {
        let mut table = wait.write(&self.table)?;
        let held = Held { counters: &self.counters, table: &mut table };
        held.table.begin_write();
        let result = change(held.table);
        drop(held);
        match unlock {
            Unlock::Plain => drop(table),
            Unlock::Fair => unlock_fair(table),
        }
        Some(result)
    }
}

/// A table whose write lock is held. Shows what it holds when dropped, also when a panic of the
/// caller's code ends the lock hold: other shards' writers go by it.
struct Held<'t, K, V> {
    counters: &'t Counters,
    table: &'t mut Table<K, V>,
}

impl<K, V> Drop for Held<'_, K, V> {
    #[inline]
    fn drop(&mut self) {
        self.counters.show(self.table.held());
    }
}
