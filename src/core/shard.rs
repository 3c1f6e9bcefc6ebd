//! A shard: one lock around one table, its cleanup guard, its counters; and how to wait for a lock.

use std::time::{Duration, Instant};

use crate::error::CacheError;
use crate::sync::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard, back_off, unlock_fair};

use super::counters::Counters;
use super::table::{Table, TableConfig};

/// Entries looked at, or removed, under one lock hold at most.
pub(super) const BITE: usize = 64;

/// Aligned to two cache lines, as processors fetch them in pairs: a neighbour's lock is never on
/// the same one.
#[derive(Debug)]
#[repr(C, align(128))]
pub(super) struct Shard<K, V> {
    table: RwLock<Table<K, V>>,
    pub(super) counters: Counters,
    /// Held by whoever cleans up this shard; only ever tried, never waited for.
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

    /// Counts a put that was not carried out; not one that an invalidation refused, which is none of
    /// the caller's.
    pub(super) fn count_refusal(&self, error: &CacheError) {
        if error.is_timeout() {
            self.counters.timeouts.count();
        } else if !error.is_superseded() {
            self.counters.rejected.count();
        }
    }

    /// The read lock, or `None` if `wait` ran out.
    #[inline]
    pub(super) fn read<P: Wait>(&self, wait: P) -> Option<RwLockReadGuard<'_, Table<K, V>>> {
        wait.read(&self.table)
    }

    /// Runs `change` under the write lock; `None` if `wait` ran out first. This is the only way
    /// to the write lock, so the hits noted before are always played back and the gauges shown. The
    /// only ways to here are `ShardedCache::change`, which sees to it that the table is current, and
    /// `ShardedCache::insert_fast`, which leaves one that is not as it is.
    ///
    /// No second lock may be taken inside, and nothing may be dropped there whose drop is the
    /// caller's code.
    pub(super) fn write<P: Wait, R>(
        &self,
        wait: P,
        change: impl FnOnce(&mut Table<K, V>) -> R,
    ) -> Option<R> {
        let mut table = wait.write(&self.table)?;
        let held = Held { counters: &self.counters, table: &mut table };
        held.table.begin_write();
        let result = change(held.table);
        drop(held);
        P::unlock(table);
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

/// How long to wait for the lock of a shard. A parameter by type, so that waiting without a
/// deadline compiles to the plain lock.
pub(super) trait Wait: Copy {
    fn read<T>(self, lock: &RwLock<T>) -> Option<RwLockReadGuard<'_, T>>;
    fn write<T>(self, lock: &RwLock<T>) -> Option<RwLockWriteGuard<'_, T>>;

    fn unlock<T>(guard: RwLockWriteGuard<'_, T>) {
        drop(guard);
    }

    /// Whether the time for the whole operation is over.
    fn is_over(self) -> bool {
        false
    }

    /// Whether there is an end to it.
    fn is_bounded(self) -> bool {
        self.given() != Duration::MAX
    }

    /// How long the whole operation was given, for the message that it was not enough.
    fn given(self) -> Duration {
        Duration::MAX
    }

    /// For a lock that can be done without: at most a millisecond of this wait; `None` is one
    /// try.
    fn brief(self) -> Option<Until> {
        Some(Until::after(BRIEF))
    }

    /// Lets other threads go on, for the `times`-th time.
    fn back_off(self, times: u32) {
        back_off(times);
    }
}

const BRIEF: Duration = Duration::from_millis(1);

/// As long as it takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Forever;

impl Wait for Forever {
    #[inline]
    fn read<T>(self, lock: &RwLock<T>) -> Option<RwLockReadGuard<'_, T>> {
        Some(lock.read())
    }

    #[inline]
    fn write<T>(self, lock: &RwLock<T>) -> Option<RwLockWriteGuard<'_, T>> {
        Some(lock.write())
    }
}

/// Waits as `P`, and hands the lock over afterwards: for work that takes it bite after bite.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fair<P>(pub(super) P);

impl<P: Wait> Wait for Fair<P> {
    fn read<T>(self, lock: &RwLock<T>) -> Option<RwLockReadGuard<'_, T>> {
        self.0.read(lock)
    }

    fn write<T>(self, lock: &RwLock<T>) -> Option<RwLockWriteGuard<'_, T>> {
        self.0.write(lock)
    }

    fn unlock<T>(guard: RwLockWriteGuard<'_, T>) {
        unlock_fair(guard);
    }

    fn is_over(self) -> bool {
        self.0.is_over()
    }

    fn given(self) -> Duration {
        self.0.given()
    }

    fn brief(self) -> Option<Until> {
        self.0.brief()
    }
}

/// Not at all.
#[derive(Debug, Clone, Copy)]
pub(super) struct Try;

impl Wait for Try {
    fn read<T>(self, lock: &RwLock<T>) -> Option<RwLockReadGuard<'_, T>> {
        lock.try_read()
    }

    fn write<T>(self, lock: &RwLock<T>) -> Option<RwLockWriteGuard<'_, T>> {
        lock.try_write()
    }

    fn is_over(self) -> bool {
        true
    }

    fn given(self) -> Duration {
        Duration::ZERO
    }

    fn brief(self) -> Option<Until> {
        None
    }
}

/// Until a moment, for all locks of an operation together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Until {
    /// `None` is a moment so late that the clock cannot name it.
    deadline: Option<Instant>,
    given: Duration,
}

impl Until {
    pub(super) fn after(given: Duration) -> Self {
        Self { deadline: Instant::now().checked_add(given), given }
    }

    fn remaining(self) -> Duration {
        match self.deadline {
            Some(deadline) => deadline.saturating_duration_since(Instant::now()),
            None => Duration::MAX,
        }
    }
}

impl Wait for Until {
    fn read<T>(self, lock: &RwLock<T>) -> Option<RwLockReadGuard<'_, T>> {
        // The free lock first: it needs no look at the clock, and a deadline that has passed still
        // means one try.
        lock.try_read().or_else(|| match self.remaining() {
            Duration::ZERO => None,
            wait => lock.try_read_for(wait),
        })
    }

    fn write<T>(self, lock: &RwLock<T>) -> Option<RwLockWriteGuard<'_, T>> {
        lock.try_write().or_else(|| match self.remaining() {
            Duration::ZERO => None,
            wait => lock.try_write_for(wait),
        })
    }

    fn is_over(self) -> bool {
        self.remaining() == Duration::ZERO
    }

    fn given(self) -> Duration {
        self.given
    }

    fn brief(self) -> Option<Until> {
        Some(Until::after(BRIEF.min(self.remaining())))
    }

    /// Never for long: the deadline may be near, and the thread an executor's.
    fn back_off(self, times: u32) {
        back_off(times.min(4));
    }
}
