//! Eras: what was read elsewhere before an invalidation is not stored after it.
//!
//! A load of a snapshot, or a read of a second tier, notes the era in which it begins, and its inserts
//! are conditional on that: the flag of the era is looked at under the write lock of the shard. Every
//! invalidation ends the era *before* it sweeps what is stored, whatever it names: nobody can say what
//! of it is still on its way. By cases, for an insert of an era that an invalidation ends:
//!
//! 1. The insert has the lock of the shard before the sweep: the sweep finds the entry.
//! 2. After the sweep: the flag was set before the sweep locked, so it is seen, and the insert is
//!    refused.

use std::sync::Arc;

use crate::sync::Mutex;
use crate::sync::atomic::{
    AtomicBool,
    Ordering::{Acquire, Release},
};

/// The time between two invalidations.
#[derive(Debug, Clone, Default)]
pub(crate) struct Era(Arc<AtomicBool>);

impl Era {
    /// Whether something was invalidated since it was noted.
    pub(super) fn is_over(&self) -> bool {
        // With the release of `end`: whoever sees it over sees what was before the invalidation.
        self.0.load(Acquire)
    }

    /// The flag, for the condition of an insert, which reads it under the lock of a shard.
    pub(super) fn flag(&self) -> &AtomicBool {
        &self.0
    }

    #[cfg(feature = "tier")]
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// The era of a cache.
#[derive(Debug, Default)]
pub(crate) struct Eras(Mutex<Era>);

impl Eras {
    pub(super) fn current(&self) -> Era {
        self.0.lock().clone()
    }

    /// Ends the era, and begins another.
    pub(super) fn end(&self) {
        let mut era = self.0.lock();
        era.0.store(true, Release);
        *era = Era::default();
    }
}
