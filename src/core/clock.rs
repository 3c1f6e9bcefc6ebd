//! Time, as the cache needs it: monotonic for expiry, wall time only for what people read.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

pub(super) use super::table::stamp::{Grace, Span, Stamp};

/// A source of time, for tests and simulations; the default reads the operating system's clocks.
///
/// The cache calls it outside its locks. Where a monotonic reading goes back, entries written then
/// count as written at the latest moment that their shard had seen; setting the wall clock changes
/// nothing about expiry.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use std::time::Duration;
/// use embedding_cache::{Clock, ShardedCache};
///
/// #[derive(Default)]
/// struct Fake(AtomicU64);
/// impl Clock for Fake {
///     fn monotonic(&self) -> Duration {
///         Duration::from_secs(self.0.load(Ordering::Relaxed))
///     }
/// }
///
/// let clock = Arc::new(Fake::default());
/// let cache = ShardedCache::<u64, u64>::builder()
///     .max_entries(10)
///     .time_to_live(Duration::from_secs(60))
///     .clock(clock.clone())
///     .build()?;
/// cache.insert(1, 10)?;
/// clock.0.store(60, Ordering::Relaxed); // as old as the time-to-live: still served
/// assert_eq!(cache.get(&1), Some(10));
/// clock.0.store(61, Ordering::Relaxed);
/// assert_eq!(cache.get(&1), None);
/// # Ok::<(), embedding_cache::CacheError>(())
/// ```
pub trait Clock: Send + Sync {
    /// Time since some fixed moment; never set, never going back.
    fn monotonic(&self) -> Duration;

    /// The time of day. Read when a cache is made and when its state is shown.
    fn wall(&self) -> DateTime<Utc> {
        Utc::now()
    }
}

/// How far a clock may go back behind where it was when a cache was made.
const SET_BACK: Duration = Duration::from_secs(365 * 24 * 3600);

/// The clock of a cache. The system's is a variant of its own so that reading it is not a virtual
/// call.
#[derive(Clone, Default)]
pub(super) enum Time {
    #[default]
    System,
    Custom(Arc<dyn Clock>),
}

/// A clock whose readings count from [`SET_BACK`] before the cache was made, or from its own beginning
/// if that is later. So a sum of a moment and a time-to-live does not depend on where the clock begins.
struct Since {
    clock: Arc<dyn Clock>,
    origin: Duration,
}

impl Clock for Since {
    fn monotonic(&self) -> Duration {
        self.clock.monotonic().saturating_sub(self.origin)
    }

    fn wall(&self) -> DateTime<Utc> {
        self.clock.wall()
    }
}

impl Time {
    pub(super) fn custom(clock: Arc<dyn Clock>) -> Self {
        Self::Custom(clock)
    }

    /// The same for a cache that is made now.
    pub(super) fn started(self) -> Self {
        match self {
            Self::System => Self::System,
            Self::Custom(clock) => {
                let origin = clock.monotonic().saturating_sub(SET_BACK);
                // One that begins early is asked itself: a hit pays for every call in between.
                if origin.is_zero() {
                    return Self::Custom(clock);
                }
                Self::Custom(Arc::new(Since { clock, origin }))
            }
        }
    }

    /// Now, exactly: for writes, from which ages are counted.
    pub(super) fn now(&self) -> Stamp {
        match self {
            Self::System => system::precise(),
            Self::Custom(clock) => Stamp::from_duration(clock.monotonic()),
        }
    }

    /// Now, or up to one tick of the operating system ago (1 to 10 ms): for reads, where the exact
    /// time would cost half as much as the whole hit. As it never runs ahead, no entry is taken
    /// for expired before it is.
    #[inline]
    pub(super) fn coarse(&self) -> Stamp {
        match self {
            Self::System => system::coarse(),
            Self::Custom(clock) => read(clock),
        }
    }

    pub(super) fn wall(&self) -> DateTime<Utc> {
        match self {
            Self::System => Utc::now(),
            Self::Custom(clock) => clock.wall(),
        }
    }
}

// A call: with it in line, a hit in a cache whose clock is not read at all takes two instructions more.
#[cold]
#[inline(never)]
fn read(clock: &Arc<dyn Clock>) -> Stamp {
    Stamp::from_duration(clock.monotonic())
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::System => "System",
            Self::Custom(_) => "Custom",
        })
    }
}

/// Linux has a coarse reading of the same monotonic clock, answered without a system call.
#[cfg(all(target_os = "linux", not(miri)))]
mod system {
    use rustix::time::{ClockId, clock_gettime};

    use super::Stamp;

    #[inline]
    fn read(clock: ClockId) -> Stamp {
        let time = clock_gettime(clock);
        // Both parts of a monotonic reading are counts from zero, and 292 years fit.
        Stamp::from_nanos(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
    }

    pub(super) fn precise() -> Stamp {
        read(ClockId::Monotonic)
    }

    #[inline]
    pub(super) fn coarse() -> Stamp {
        read(ClockId::MonotonicCoarse)
    }
}

#[cfg(not(all(target_os = "linux", not(miri))))]
mod system {
    use std::sync::OnceLock;
    use std::time::Instant;

    use super::Stamp;

    pub(super) fn precise() -> Stamp {
        static START: OnceLock<Instant> = OnceLock::new();
        Stamp::from_duration(START.get_or_init(Instant::now).elapsed())
    }

    pub(super) fn coarse() -> Stamp {
        precise()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_coarse_reading_never_runs_ahead() {
        let time = Time::System;
        for _ in 0..if cfg!(miri) { 10 } else { 10_000 } {
            let coarse = time.coarse();
            assert!(coarse <= time.now());
        }
    }
}
