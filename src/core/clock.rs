//! Time, as the cache needs it: monotonic for expiry, wall time only for what people read.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

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

/// The last moment that a clock comes to, after 584 years; it stands still there.
const END: u64 = u64::MAX - 2;

/// A moment of the monotonic clock in nanoseconds, and the moment at which an entry expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Stamp(u64);

impl Stamp {
    /// Before every other moment: what never expires is alive then, all else may not be.
    pub(super) const ZERO: Self = Self(0);
    /// After every other moment: the expiry of an entry without a time-to-live.
    pub(super) const NEVER: Self = Self(u64::MAX);
    /// The longest time-to-live, 292 years: half of what the nanoseconds can count, so that now
    /// plus a time-to-live is a moment too.
    pub(super) const LONGEST: Duration = Duration::from_nanos(u64::MAX / 2);

    pub(super) const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    pub(super) const fn nanos(self) -> u64 {
        self.0
    }

    fn from_duration(since: Duration) -> Self {
        // Never `NEVER`: at every moment an entry without a time-to-live is alive.
        Self(u64::try_from(since.as_nanos()).unwrap_or(END).min(END))
    }

    /// The first moment at which an entry written now is expired: its age exceeds how long it is
    /// `kept`. One of no life at all is expired at once.
    #[inline]
    pub(super) fn expiry(self, kept: Span) -> Self {
        match kept {
            Span::ENDLESS => Self::NEVER,
            Span::NONE => Self::ZERO,
            // At the end of time everything that was written before is over: no sum means for ever.
            Span(nanos) => {
                let end = END.max(self.0.saturating_add(1));
                Self(self.0.saturating_add(nanos).saturating_add(1).min(end))
            }
        }
    }

    /// Whether an entry with this expiry may still be served at `now`.
    #[inline]
    pub(super) fn is_alive_at(self, now: Self) -> bool {
        self.0 > now.0
    }

    /// The moment `by` later; before `NEVER` as every moment is.
    #[inline]
    pub(super) fn plus(self, by: Grace) -> Self {
        Self(self.0.saturating_add(by.0).min(END))
    }

    /// The moment `by` earlier: undoes [`plus`](Self::plus), but where that came to the end of time.
    #[inline]
    pub(super) fn minus(self, by: Grace) -> Self {
        Self(self.0.saturating_sub(by.0))
    }

    /// How long an entry with this expiry will still be served; `None` for one that never expires.
    pub(super) fn life_left(self, now: Self) -> Option<Duration> {
        // The expiry is the first nanosecond after its life.
        (self != Self::NEVER).then(|| Self(self.0.saturating_sub(1)).since(now))
    }

    /// How long ago, at `now`, an entry with this expiry was served for the last time.
    pub(super) fn over(self, now: Self) -> Duration {
        now.since(Self(self.0.saturating_sub(1)))
    }

    /// Whole seconds, as many as can be counted.
    #[inline]
    pub(super) fn seconds_since(self, earlier: Self) -> u32 {
        u32::try_from(self.0.saturating_sub(earlier.0) / 1_000_000_000).unwrap_or(u32::MAX)
    }

    pub(super) fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// How long an entry is kept, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span(u64);

impl Span {
    /// Expired at once.
    pub(super) const NONE: Self = Self(0);
    pub(super) const ENDLESS: Self = Self(u64::MAX);

    /// That of an entry with this time-to-live.
    pub(super) fn of(time_to_live: Duration) -> Self {
        Self(u64::try_from(time_to_live.as_nanos()).unwrap_or(u64::MAX - 1))
    }
}

/// How much longer than its time-to-live an entry is kept, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Grace(u64);

impl Grace {
    pub(super) fn new(grace: Duration) -> Self {
        Self(u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX))
    }

    pub(super) const fn length(self) -> Duration {
        Duration::from_nanos(self.0)
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

/// A clock whose readings count from [`SET_BACK`] before the cache was made, if it had come so far. A
/// sum of a moment and a time-to-live then does not depend on where the clock begins.
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
            Self::Custom(clock) => Stamp::from_duration(clock.monotonic()),
        }
    }

    pub(super) fn wall(&self) -> DateTime<Utc> {
        match self {
            Self::System => Utc::now(),
            Self::Custom(clock) => clock.wall(),
        }
    }
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
        Stamp(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
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
    fn an_entry_lives_until_its_age_exceeds_the_time_to_live() {
        let written = Stamp(1000);
        let expiry = written.expiry(Span::of(Duration::from_nanos(50)));
        assert!(expiry.is_alive_at(Stamp(1050)));
        assert!(!expiry.is_alive_at(Stamp(1051)));
        assert!(expiry.is_alive_at(Stamp(3)), "a clock set back revives, it does not kill");
        assert!(!written.expiry(Span::of(Duration::ZERO)).is_alive_at(Stamp::ZERO));
        assert!(written.expiry(Span::ENDLESS).is_alive_at(Stamp(u64::MAX - 1)));
        assert_eq!(Stamp(7).since(Stamp(9)), Duration::ZERO);
    }

    #[test]
    fn huge_times_saturate() {
        let late = Stamp::from_duration(Duration::MAX);
        assert_ne!(late, Stamp::NEVER);
        assert!(late.expiry(Span::of(Duration::MAX)) < Stamp::NEVER, "no sum means never");
    }

    #[test]
    fn the_coarse_reading_never_runs_ahead() {
        let time = Time::System;
        for _ in 0..if cfg!(miri) { 10 } else { 10_000 } {
            let coarse = time.coarse();
            assert!(coarse <= time.now());
        }
    }
}
