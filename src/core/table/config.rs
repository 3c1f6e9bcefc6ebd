//! How the tables of a cache are made.

use std::sync::Arc;
use std::time::Duration;

use super::expiry::Jitter;
use super::policy::{EvictionPolicy, Learner, MemoryPressure};
use super::stamp::Grace;

/// How the tables of a cache are made.
#[derive(Debug, Clone)]
pub(in crate::core) struct TableConfig {
    pub(in crate::core) policy: EvictionPolicy,
    pub(in crate::core) pressure: MemoryPressure,
    /// How much longer than they are served to ordinary lookups entries are kept.
    pub(in crate::core) grace: Grace,
    pub(in crate::core) jitter: Jitter,
    pub(in crate::core) time_to_idle: Option<Duration>,
    /// What a policy that learns has learned, one for all shards.
    pub(in crate::core) learner: Option<Arc<Learner>>,
}

impl TableConfig {
    /// With nothing but an order of eviction.
    pub(in crate::core) fn new(
        policy: EvictionPolicy,
        pressure: MemoryPressure,
        shards: usize,
    ) -> Self {
        let learns = policy == EvictionPolicy::HitDensity;
        let learner = learns.then(|| Arc::new(Learner::new(shards)));
        let (grace, jitter) = (Grace::default(), Jitter::default());
        Self { policy, pressure, grace, jitter, time_to_idle: None, learner }
    }
}
