//! Why an operation failed.

use std::fmt;
use std::time::Duration;

/// A put that was refused, with its vector, or an operation that ran out of time.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// # use embedding_cache::CacheKey;
/// let cache = baseline::SingleLockCache::new(1000, 3600, 1); // at most 1 MiB
/// let refusal = cache.put(CacheKey::new("00ff", "e5-base"), vec![0.5; 1_000_000]).await.unwrap_err();
/// assert!(refusal.is_too_large() && !refusal.is_timeout());
/// assert_eq!(refusal.into_vector().unwrap().len(), 1_000_000);
/// # });
/// ```
#[derive(thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    reason: Reason,
    vector: Option<Vec<f32>>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Reason {
    #[error("the cache is limited to 0 entries and stores nothing")]
    NoCapacity,
    #[error("an entry of weight {weight} is over the cache's limit of {limit}")]
    TooLarge { weight: u64, limit: u64 },
    #[error("{operation} timed out after {waited:?}: another task held a lock")]
    Timeout { operation: &'static str, waited: Duration },
}

impl Refusal {
    pub(crate) fn new(reason: Reason, vector: Option<Vec<f32>>) -> Self {
        Self { reason, vector }
    }

    /// The entry alone is over the memory limit, or the cache is limited to 0 entries.
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        matches!(self.reason, Reason::TooLarge { .. } | Reason::NoCapacity)
    }

    /// The deadline passed while another task held a lock.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self.reason, Reason::Timeout { .. })
    }

    /// Takes back the vector that the operation had taken, if it had taken one.
    #[must_use]
    pub fn into_vector(self) -> Option<Vec<f32>> {
        self.vector
    }
}

/// Without the components.
impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dimensions = self.vector.as_ref().map(Vec::len);
        f.debug_struct("Refusal")
            .field("reason", &self.reason)
            .field("dimensions", &dimensions)
            .finish()
    }
}
