//! How long an operation waits for the lock of a shard: [`Try`] once, [`Until`] a deadline, or
//! [`Forever`].
//!
//! Each operation is written once and takes any of the three. They are types, so that waiting without
//! a deadline compiles to the plain lock.

use std::time::{Duration, Instant};

use crate::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard, back_off};

/// The wait for a lock that an operation can do without.
const BRIEF: Duration = Duration::from_millis(1);

/// How long to wait for locks: all locks of one operation together.
pub(crate) trait Wait: Copy {
    /// How long the whole operation was given, for the message that it was not enough.
    fn given(self) -> Duration;

    /// What is left of that.
    fn remaining(self) -> Duration;

    /// The read lock, or `None` if the time is over.
    fn read<T>(self, lock: &RwLock<T>) -> Option<RwLockReadGuard<'_, T>>;

    /// The write lock, or `None` if the time is over.
    fn write<T>(self, lock: &RwLock<T>) -> Option<RwLockWriteGuard<'_, T>>;

    /// Whether there is an end to it.
    fn is_bounded(self) -> bool {
        self.given() != Duration::MAX
    }

    /// Whether the time is over.
    fn is_over(self) -> bool {
        self.remaining().is_zero()
    }

    /// The wait for a lock that can be done without: at most a millisecond of this one.
    fn brief(self) -> Until {
        Until::after(BRIEF.min(self.remaining()))
    }

    /// Lets other threads go on, for the `times`-th time. With a deadline never for long: it may be
    /// near, and the thread an executor's.
    fn back_off(self, times: u32) {
        back_off(if self.is_bounded() { times.min(4) } else { times });
    }
}

/// One try.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Try;

impl Wait for Try {
    fn given(self) -> Duration {
        Duration::ZERO
    }

    fn remaining(self) -> Duration {
        Duration::ZERO
    }

    #[inline]
    fn read<T>(self, lock: &RwLock<T>) -> Option<RwLockReadGuard<'_, T>> {
        lock.try_read()
    }

    #[inline]
    fn write<T>(self, lock: &RwLock<T>) -> Option<RwLockWriteGuard<'_, T>> {
        lock.try_write()
    }
}

/// Until a moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Until {
    /// `None` is a moment so late that the clock cannot name it, or no wait at all.
    deadline: Option<Instant>,
    given: Duration,
}

impl Until {
    /// Until `given` from now; zero is one try, and does not look at the clock.
    pub(crate) fn after(given: Duration) -> Self {
        let deadline = if given.is_zero() { None } else { Instant::now().checked_add(given) };
        Self { deadline, given }
    }
}

impl Wait for Until {
    fn given(self) -> Duration {
        self.given
    }

    fn remaining(self) -> Duration {
        // Without a deadline it is all or nothing that was given.
        self.deadline.map_or(self.given, |end| end.saturating_duration_since(Instant::now()))
    }

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
}

/// As long as it takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Forever;

impl Wait for Forever {
    fn given(self) -> Duration {
        Duration::MAX
    }

    fn remaining(self) -> Duration {
        Duration::MAX
    }

    #[inline]
    fn read<T>(self, lock: &RwLock<T>) -> Option<RwLockReadGuard<'_, T>> {
        Some(lock.read())
    }

    #[inline]
    fn write<T>(self, lock: &RwLock<T>) -> Option<RwLockWriteGuard<'_, T>> {
        Some(lock.write())
    }
}
