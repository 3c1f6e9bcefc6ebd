//! What a second tier has come to.

use std::fmt;
use std::ops::AddAssign;

use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::contract::TierErrorKind;
use super::wire::Rejected;

/// Declares the counts once: as they are shown, and as they are kept.
macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counts of a second tier, part of [`CacheStats`](crate::CacheStats): all 0 without one.
        #[derive(Clone, Copy, PartialEq, Eq, Default)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
        #[non_exhaustive]
        pub struct TierStats {
            $($(#[$doc])* pub $name: u64,)*
        }

        /// What is not 0.
        impl fmt::Debug for TierStats {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut shown = f.debug_struct("TierStats");
                $(if self.$name != 0 {
                    shown.field(stringify!($name), &self.$name);
                })*
                shown.finish_non_exhaustive()
            }
        }

        impl AddAssign for TierStats {
            fn add_assign(&mut self, other: Self) {
                $(self.$name += other.$name;)*
            }
        }

        /// Orderings: relaxed, a count speaks of nothing but itself.
        #[derive(Debug, Default)]
        pub(super) struct Counts {
            $(pub(super) $name: Count,)*
        }

        impl Counts {
            pub(super) fn read(&self) -> TierStats {
                TierStats { $($name: self.$name.0.load(Relaxed),)* }
            }
        }
    };
}

counts! {
    /// Keys that it had a good vector for, before the soft deadline or after it.
    hits,
    /// Keys that it had nothing for, or nothing good.
    misses,
    /// Keys that it was not asked for, as it has failed and is left alone for a while.
    skipped_open,
    /// Keys that it was not asked for, as too many were waiting.
    skipped_full,
    /// Keys that it was not asked for, as there was no runtime to ask it in.
    skipped_no_runtime,
    /// Keys whose answer had not come by the soft deadline.
    late,
    /// Parts of batches that did not come in time.
    failures_timeout,
    /// Parts of batches for which there was no connection.
    failures_connection,
    /// Parts of batches that it refused.
    failures_refused,
    /// Parts of batches that failed otherwise.
    failures_other,
    /// Values that are none of this version.
    rejected_foreign,
    /// Values that are longer or shorter than they say.
    rejected_length,
    /// Values whose components are of a type that is not known here.
    rejected_type,
    /// Values of no component, or too many.
    rejected_dimensions,
    /// Values whose checksum is of other bytes, or of another key.
    rejected_checksum,
    /// Values that are not signed with the secret.
    rejected_signature,
    /// Values whose life was over.
    rejected_expired,
    /// Values that this cache does not take.
    rejected_admission,
    /// Entries written.
    writes,
    /// Entries that could not be written.
    write_failures,
    /// Entries that were not written: the oldest of a queue that was full, or those that came while
    /// the tier was left alone.
    dropped,
    /// How often it was found to have failed, and was left alone.
    opened,
    /// How often it was found to be well again.
    closed,
}

#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self, by: usize) {
        self.0.fetch_add(by as u64, Relaxed);
    }

    pub(super) fn one(&self) {
        self.add(1);
    }
}

impl Counts {
    pub(super) fn failed(&self, kind: TierErrorKind) {
        match kind {
            TierErrorKind::Timeout => &self.failures_timeout,
            TierErrorKind::Connection => &self.failures_connection,
            TierErrorKind::Refused => &self.failures_refused,
            TierErrorKind::Other => &self.failures_other,
        }
        .one();
    }

    pub(super) fn rejected(&self, reason: Rejected) {
        match reason {
            Rejected::Foreign => &self.rejected_foreign,
            Rejected::Length => &self.rejected_length,
            Rejected::Type => &self.rejected_type,
            Rejected::Dimensions => &self.rejected_dimensions,
            Rejected::Checksum => &self.rejected_checksum,
            Rejected::Signature => &self.rejected_signature,
            Rejected::Expired => &self.rejected_expired,
            Rejected::Admission => &self.rejected_admission,
        }
        .one();
    }
}
