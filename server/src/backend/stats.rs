//! Counts and times of the model's calls, every one of them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use metrics::histogram;

use crate::monitor::{MODEL_CALL, Recent};

/// Orderings: relaxed, a count speaks of nothing but itself.
#[derive(Debug, Default)]
pub(crate) struct CallStats {
    calls: AtomicU64,
    inputs: AtomicU64,
    failed: AtomicU64,
    retries: AtomicU64,
    searches: AtomicU64,
    probes: AtomicU64,
    recent: Recent,
}

/// Why a call is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// For inputs that were asked for.
    Inputs,
    /// The same once more.
    Retry,
    /// To find out which input is at fault.
    Search,
    /// To find out whether the upstream is up.
    Probe,
}

/// A call under way.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    stats: &'a CallStats,
    began: Instant,
}

impl CallStats {
    pub(crate) fn begin(&self, inputs: usize, purpose: Purpose) -> Call<'_> {
        self.calls.fetch_add(1, Relaxed);
        self.inputs.fetch_add(inputs as u64, Relaxed);
        match purpose {
            Purpose::Inputs => {}
            Purpose::Retry => drop(self.retries.fetch_add(1, Relaxed)),
            Purpose::Search => drop(self.searches.fetch_add(1, Relaxed)),
            Purpose::Probe => drop(self.probes.fetch_add(1, Relaxed)),
        }
        Call { stats: self, began: Instant::now() }
    }

    /// Every call that was made, whatever for and whatever came of it.
    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Relaxed)
    }

    /// Inputs in those calls.
    pub(crate) fn inputs(&self) -> u64 {
        self.inputs.load(Relaxed)
    }

    pub(crate) fn failed(&self) -> u64 {
        self.failed.load(Relaxed)
    }

    pub(crate) fn retries(&self) -> u64 {
        self.retries.load(Relaxed)
    }

    pub(crate) fn searches(&self) -> u64 {
        self.searches.load(Relaxed)
    }

    pub(crate) fn probes(&self) -> u64 {
        self.probes.load(Relaxed)
    }

    /// How long calls took of late.
    pub(crate) fn recent(&self) -> &Recent {
        &self.recent
    }
}

impl Call<'_> {
    pub(crate) fn finish(self, succeeded: bool) {
        let took = self.began.elapsed();
        self.stats.recent.record(took);
        histogram!(MODEL_CALL).record(took);
        if !succeeded {
            self.stats.failed.fetch_add(1, Relaxed);
        }
    }
}
