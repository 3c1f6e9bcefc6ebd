//! Leaves an upstream alone that fails: a circuit breaker (Nygard, "Release It!", 2007) for each
//! model, with one addition. A failure may be an input's fault, not the upstream's, and one client
//! must not shut the others out. So where failures in a row could be that, a call with an input
//! that is known to work decides.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Failures in a row after which the upstream is thought to be down.
pub(super) const FAILURES: u32 = 5;

/// How long it is left alone first; doubled each time that it is found down again.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Breaker(Mutex<State>);

#[derive(Debug)]
struct State {
    failures: u32,
    /// Whether a probe is under way.
    probing: bool,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    until: Instant,
    pause: Duration,
    reason: Arc<str>,
}

/// What the breaker says to a call.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Go,
    /// First a probe; the caller makes it, and tells how it went.
    Probe,
    Refused {
        seconds: u64,
        reason: Arc<str>,
    },
}

impl Breaker {
    pub(super) fn new() -> Self {
        Self(Mutex::new(State { failures: 0, probing: false, open: None }))
    }

    /// Whether a call may be made now.
    pub(super) fn admit(&self, now: Instant) -> Admission {
        let mut state = self.0.lock();
        let Some(open) = &state.open else { return Admission::Go };
        let left = open.until.saturating_duration_since(now);
        if left.is_zero() && !state.probing {
            state.probing = true;
            return Admission::Probe;
        }
        // Whole seconds, and at least one: that is what the header can say.
        let seconds = left.as_secs_f64().ceil().max(1.0) as u64;
        Admission::Refused { seconds, reason: Arc::clone(&open.reason) }
    }

    /// The upstream answered, whatever it said: it is there.
    pub(super) fn succeeded(&self) {
        let mut state = self.0.lock();
        if state.open.is_none() {
            state.failures = 0;
        }
    }

    /// A call failed as it does if the upstream is down. Says whether a probe should find out if it
    /// is; the caller makes it then.
    pub(super) fn failed(&self) -> bool {
        let mut state = self.0.lock();
        state.failures = state.failures.saturating_add(1);
        if state.failures < FAILURES || state.probing || state.open.is_some() {
            return false;
        }
        state.probing = true;
        true
    }

    /// What a probe found: nothing wrong, or why not.
    pub(super) fn probed(&self, found: Result<(), Arc<str>>, now: Instant) {
        let mut state = self.0.lock();
        state.probing = false;
        match found {
            Ok(()) => {
                state.failures = 0;
                state.open = None;
            }
            Err(reason) => {
                let pause = match &state.open {
                    Some(open) => (open.pause * 2).min(LONGEST_PAUSE),
                    None => FIRST_PAUSE,
                };
                state.open = Some(Open { until: now + pause, pause, reason });
            }
        }
    }

    /// The reason, if calls are refused now.
    pub(super) fn is_open(&self) -> Option<Arc<str>> {
        self.0.lock().open.as_ref().map(|open| Arc::clone(&open.reason))
    }

    /// Whether there is nothing to remember.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.0.lock();
        state.open.is_none() && state.failures == 0 && !state.probing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_in_a_row_lead_to_one_probe_and_its_result_decides() {
        let (breaker, now) = (Breaker::new(), Instant::now());
        for _ in 1..FAILURES {
            assert!(!breaker.failed());
        }
        breaker.succeeded();
        for _ in 1..FAILURES {
            assert!(!breaker.failed());
        }
        assert!(breaker.failed());
        // One at a time; calls go on meanwhile.
        assert!(!breaker.failed());
        assert_eq!(breaker.admit(now), Admission::Go);
        breaker.probed(Ok(()), now);
        assert!(breaker.is_idle());

        for _ in 0..FAILURES {
            breaker.failed();
        }
        breaker.probed(Err("down".into()), now);
        // A call from before that succeeds late closes nothing: the probe does.
        breaker.succeeded();
        let refused = Admission::Refused { seconds: 1, reason: "down".into() };
        assert_eq!(breaker.admit(now), refused);
        let later = now + FIRST_PAUSE;
        assert_eq!(breaker.admit(later), Admission::Probe);
        assert_eq!(breaker.admit(later), refused);
        breaker.probed(Err("still down".into()), later);
        let refused = Admission::Refused { seconds: 2, reason: "still down".into() };
        assert_eq!(breaker.admit(later), refused);
        assert_eq!(breaker.admit(later + 2 * FIRST_PAUSE), Admission::Probe);
        breaker.probed(Ok(()), later);
        assert_eq!(breaker.admit(later), Admission::Go);
        assert!(breaker.is_open().is_none());
    }

    #[test]
    fn the_pause_has_an_end() {
        let (breaker, mut now) = (Breaker::new(), Instant::now());
        for _ in 0..10 {
            breaker.probed(Err("down".into()), now);
            now += LONGEST_PAUSE;
            assert_eq!(breaker.admit(now), Admission::Probe);
        }
    }
}
