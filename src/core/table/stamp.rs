//! Moments, and how long something lasts, in nanoseconds: what an entry is stamped with.

use std::time::Duration;

/// The last moment that a clock comes to, after 584 years; it stands still there.
const END: u64 = u64::MAX - 2;

/// A moment of the monotonic clock in nanoseconds, and the moment at which an entry expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(in crate::core) struct Stamp(u64);

impl Stamp {
    /// Before every other moment: what never expires is alive then, all else may not be.
    pub(in crate::core) const ZERO: Self = Self(0);
    /// After every other moment: the expiry of an entry without a time-to-live.
    pub(in crate::core) const NEVER: Self = Self(u64::MAX);
    /// The longest time-to-live, 292 years: half of what the nanoseconds can count, so that now
    /// plus a time-to-live is a moment too.
    pub(in crate::core) const LONGEST: Duration = Duration::from_nanos(u64::MAX / 2);

    pub(in crate::core) const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    pub(in crate::core) const fn nanos(self) -> u64 {
        self.0
    }

    #[inline]
    pub(in crate::core) fn from_duration(since: Duration) -> Self {
        // 544 years: until then no product or sum overflows, and nothing else is to be asked.
        const USUAL: u64 = 1 << 34;
        if since.as_secs() < USUAL {
            return Self(since.as_secs() * 1_000_000_000 + u64::from(since.subsec_nanos()));
        }
        Self::from_long(since)
    }

    #[cold]
    #[inline(never)]
    fn from_long(since: Duration) -> Self {
        // Never `NEVER`: at every moment an entry without a time-to-live is alive.
        Self(u64::try_from(since.as_nanos()).unwrap_or(END).min(END))
    }

    /// The first moment at which an entry written now is expired: its age exceeds how long it is
    /// `kept`. One of no life at all is expired at once.
    #[inline]
    pub(in crate::core) fn expiry(self, kept: Span) -> Self {
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
    pub(in crate::core) fn is_alive_at(self, now: Self) -> bool {
        self.0 > now.0
    }

    /// The moment `by` later; before `NEVER` as every moment is.
    #[inline]
    pub(in crate::core) fn plus(self, by: Grace) -> Self {
        Self(self.0.saturating_add(by.0).min(END))
    }

    /// The moment `by` earlier: undoes [`plus`](Self::plus), but where that came to the end of time.
    #[inline]
    pub(in crate::core) fn minus(self, by: Grace) -> Self {
        Self(self.0.saturating_sub(by.0))
    }

    /// How long an entry with this expiry will still be served; `None` for one that never expires.
    pub(in crate::core) fn life_left(self, now: Self) -> Option<Duration> {
        // The expiry is the first nanosecond after its life.
        (self != Self::NEVER).then(|| Self(self.0.saturating_sub(1)).since(now))
    }

    /// How long ago, at `now`, an entry with this expiry was served for the last time.
    pub(in crate::core) fn over(self, now: Self) -> Duration {
        now.since(Self(self.0.saturating_sub(1)))
    }

    /// Whole seconds, as many as can be counted.
    #[inline]
    pub(in crate::core) fn seconds_since(self, earlier: Self) -> u32 {
        u32::try_from(self.0.saturating_sub(earlier.0) / 1_000_000_000).unwrap_or(u32::MAX)
    }

    pub(in crate::core) fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// How long an entry is kept, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::core) struct Span(u64);

impl Span {
    /// Expired at once.
    pub(in crate::core) const NONE: Self = Self(0);
    pub(in crate::core) const ENDLESS: Self = Self(u64::MAX);

    /// That of an entry with this time-to-live.
    pub(in crate::core) fn of(time_to_live: Duration) -> Self {
        Self(u64::try_from(time_to_live.as_nanos()).unwrap_or(u64::MAX - 1))
    }
}

/// How much longer than its time-to-live an entry is kept, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::core) struct Grace(u64);

impl Grace {
    pub(in crate::core) fn new(grace: Duration) -> Self {
        Self(u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX))
    }

    #[inline]
    pub(in crate::core) const fn is_zero(self) -> bool {
        self.0 == 0
    }

    pub(in crate::core) const fn length(self) -> Duration {
        Duration::from_nanos(self.0)
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
    fn a_duration_is_as_many_nanoseconds_as_it_has() {
        let (seconds, nanos) =
            ([0, 1, (1 << 34) - 1, 1 << 34, 18_446_744_073, u64::MAX], 999_999_999);
        for seconds in seconds {
            for nanos in [0, 1, nanos] {
                let since = Duration::new(seconds, nanos);
                let exact = since.as_nanos().min(u128::from(END));
                assert_eq!(u128::from(Stamp::from_duration(since).nanos()), exact, "{since:?}");
            }
        }
    }

    #[test]
    fn huge_times_saturate() {
        let late = Stamp::from_duration(Duration::MAX);
        assert_ne!(late, Stamp::NEVER);
        assert!(late.expiry(Span::of(Duration::MAX)) < Stamp::NEVER, "no sum means never");
    }
}
