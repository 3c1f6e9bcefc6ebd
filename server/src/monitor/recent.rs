//! Durations of the last seconds, for the page.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::Serialize;

/// Durations are shown over the last one to two of these.
const WINDOW: Duration = Duration::from_secs(15);

/// The longest duration that is told apart from longer ones, in microseconds.
const LONGEST: u64 = 600_000_000;

/// Durations of the current window and of the one before.
#[derive(Debug)]
pub(crate) struct Recent(Mutex<Option<Windows>>);

#[derive(Debug)]
struct Windows {
    since: Instant,
    current: Histogram<u64>,
    previous: Histogram<u64>,
}

/// Quantiles in milliseconds; nothing where there was nothing.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Quantiles {
    p50: Option<f64>,
    p99: Option<f64>,
}

impl Windows {
    fn new() -> Option<Self> {
        // Never fails for these bounds; the histogram wants to be asked.
        let empty = Histogram::new_with_bounds(1, LONGEST, 3).ok()?;
        Some(Self { since: Instant::now(), current: empty.clone(), previous: empty })
    }

    fn turn(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.since);
        if age < WINDOW {
            return;
        }
        std::mem::swap(&mut self.current, &mut self.previous);
        self.current.reset();
        if age >= 2 * WINDOW {
            self.previous.reset();
        }
        self.since = now;
    }
}

impl Default for Recent {
    fn default() -> Self {
        Self(Mutex::new(Windows::new()))
    }
}

impl Recent {
    pub(crate) fn record(&self, took: Duration) {
        let microseconds = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if let Some(windows) = &mut *self.0.lock() {
            windows.turn(Instant::now());
            windows.current.saturating_record(microseconds);
        }
    }

    pub(crate) fn quantiles(&self) -> Quantiles {
        let both = {
            let mut windows = self.0.lock();
            let Some(windows) = &mut *windows else { return Quantiles::default() };
            windows.turn(Instant::now());
            let mut both = windows.current.clone();
            // Of the same bounds, so they add up.
            let _ = both.add(&windows.previous);
            both
        };
        let quantile = |q| (!both.is_empty()).then(|| both.value_at_quantile(q) as f64 / 1e3);
        Quantiles { p50: quantile(0.5), p99: quantile(0.99) }
    }
}
