//! How a cache uses its second tier.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::contract::Tier;
use super::wire::{Format, Secret};

/// A second tier and how it is used, for
/// [`EmbeddingCacheBuilder::tier`](crate::EmbeddingCacheBuilder::tier).
///
/// ```
/// # use embedding_cache::tier::{SecondTier, Tier};
/// # use std::time::Duration;
/// fn with_secret(tier: impl Tier, secret: &[u8]) -> SecondTier {
///     SecondTier::new(tier).soft_deadline(Duration::from_millis(5)).authenticate(secret)
/// }
/// ```
#[must_use]
pub struct SecondTier {
    pub(super) tier: Arc<dyn Tier>,
    pub(super) limits: Limits,
    pub(super) format: Format,
}

/// What bounds the use of a tier.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) soft_deadline: Duration,
    pub(super) hard_timeout: Duration,
    pub(super) poll_interval: Duration,
    pub(super) queue_bytes: usize,
    pub(super) queue_entries: usize,
    pub(super) waiting_keys: usize,
}

/// Keys of a batch.
pub(super) const BATCH: usize = 256;
/// Batches under way at once.
pub(super) const BATCHES: usize = 4;
/// Entries written at once.
pub(super) const WRITE_BATCH: usize = 64;

impl SecondTier {
    /// `tier` with what is usual: a soft deadline of 10 ms, a hard time-out of 250 ms, a look every
    /// 2 s for what others have invalidated, and at most 64 MiB and 16,384 entries that wait to be
    /// written.
    pub fn new(tier: impl Tier) -> Self {
        let limits = Limits {
            soft_deadline: Duration::from_millis(10),
            hard_timeout: Duration::from_millis(250),
            poll_interval: Duration::from_secs(2),
            queue_bytes: 64 << 20,
            queue_entries: 16_384,
            waiting_keys: 16_384,
        };
        Self { tier: Arc::new(tier), limits, format: Format::default() }
    }

    /// How long a request waits for the tier at most. What comes later is stored all the same.
    pub fn soft_deadline(mut self, deadline: Duration) -> Self {
        self.limits.soft_deadline = deadline;
        self
    }

    /// After how long a batch, or whatever else the tier is asked to do, has failed.
    pub fn hard_timeout(mut self, timeout: Duration) -> Self {
        self.limits.hard_timeout = timeout;
        self
    }

    /// How often it is asked what other processes have invalidated, should the tier not tell by
    /// itself. At least 10 ms.
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.limits.poll_interval = interval.max(SHORTEST_POLL);
        self
    }

    /// The most that waits to be written, in bytes and in entries; then the oldest is dropped.
    pub fn write_queue(mut self, bytes: usize, entries: usize) -> Self {
        self.limits.queue_bytes = bytes;
        self.limits.queue_entries = entries;
        self
    }

    /// Signs every value with `secret` and takes none that is not signed with it. Without this,
    /// whoever may write to the store chooses vectors. Use 16 random bytes or more, the same in all
    /// processes; to exchange the secret makes the store cold.
    pub fn authenticate(mut self, secret: &[u8]) -> Self {
        self.format.secret = Some(Secret::new(secret));
        self
    }

    /// Writes two bytes for each component instead of four. This process keeps what it writes, so
    /// that all processes answer alike: vectors are rounded when they are stored. For vectors of
    /// length 1 the cosine of the angle to the exact vector is within 3e-8 of 1.
    #[cfg(feature = "tier-f16")]
    pub fn half_precision(mut self) -> Self {
        self.format.precision = super::wire::Precision::Half;
        self
    }
}

/// So that a tier that always says it has changed does not keep a processor busy.
pub(super) const SHORTEST_POLL: Duration = Duration::from_millis(10);

impl<T: Tier> From<T> for SecondTier {
    fn from(tier: T) -> Self {
        Self::new(tier)
    }
}

impl fmt::Debug for SecondTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecondTier")
            .field("limits", &self.limits)
            .field("authenticates", &self.format.secret.is_some())
            .finish_non_exhaustive()
    }
}
