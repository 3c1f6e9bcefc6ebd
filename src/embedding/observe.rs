//! What a cache tells of its loads: counts always, metrics and spans where a feature asks for them.
//!
//! Nothing here is on the way of a hit. Hits and misses are counted by the core; a scrape copies
//! them over, see `EmbeddingCache::publish_metrics`.

use std::future::Future;
use std::time::Duration;

use crate::stats::CacheStats;
use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::load::Answer;

/// The span in which a load was asked for: its call may run in a task that knows of none.
#[derive(Debug, Clone)]
#[cfg(feature = "tracing")]
pub(super) struct Parent(tracing::Span);

#[derive(Debug, Clone)]
#[cfg(not(feature = "tracing"))]
pub(super) struct Parent;

impl Parent {
    /// That of the code which calls this.
    pub(super) fn current() -> Self {
        #[cfg(feature = "tracing")]
        return Self(tracing::Span::current());
        #[cfg(not(feature = "tracing"))]
        Self
    }
}

/// Counts of loads. Orderings: relaxed, a count speaks of nothing but itself.
#[derive(Debug, Default)]
pub(super) struct Observer {
    /// The label under which metrics and spans appear.
    #[cfg_attr(not(any(feature = "metrics", feature = "tracing")), allow(dead_code))]
    name: Box<str>,
    calls: AtomicU64,
    loaded: AtomicU64,
    failed: AtomicU64,
    joins: AtomicU64,
    stale: AtomicU64,
}

impl Observer {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// A key was not loaded, as another call was loading it.
    pub(super) fn joined(&self) {
        self.joins.fetch_add(1, Relaxed);
    }

    /// A vector past its time-to-live was served.
    pub(super) fn served_stale(&self) {
        self.stale.fetch_add(1, Relaxed);
    }

    /// A model call came to an end.
    pub(super) fn loaded(&self, answers: &[Answer], took: Duration) {
        let failed = answers.iter().filter(|answer| answer.is_err()).count() as u64;
        self.calls.fetch_add(1, Relaxed);
        self.loaded.fetch_add(answers.len() as u64 - failed, Relaxed);
        self.failed.fetch_add(failed, Relaxed);
        #[cfg(feature = "metrics")]
        self.record(took);
        #[cfg(feature = "tracing")]
        tracing::debug!(cache = &*self.name, items = answers.len(), failed, ?took, "loaded");
        #[cfg(not(any(feature = "metrics", feature = "tracing")))]
        let _ = took;
    }

    /// The span around a model call for `items` keys, inside `parent`.
    #[cfg(feature = "tracing")]
    pub(super) fn span<F: Future>(
        &self,
        items: usize,
        parent: Parent,
        load: F,
    ) -> impl Future<Output = F::Output> + use<F> {
        use tracing::Instrument;
        let span = tracing::info_span!(parent: parent.0.id(), "embed", cache = &*self.name, items);
        load.instrument(span)
    }

    #[cfg(not(feature = "tracing"))]
    #[allow(clippy::unused_self)]
    pub(super) fn span<F: Future>(&self, _items: usize, _parent: Parent, load: F) -> F {
        load
    }

    /// Adds what is counted here to what the core has counted.
    pub(super) fn add_to(&self, stats: CacheStats) -> CacheStats {
        CacheStats {
            loads: self.calls.load(Relaxed),
            loaded: self.loaded.load(Relaxed),
            load_failures: self.failed.load(Relaxed),
            joins: self.joins.load(Relaxed),
            stale_served: self.stale.load(Relaxed),
            ..stats
        }
    }
}

#[cfg(feature = "metrics")]
mod published {
    use std::time::Duration;

    use metrics::{counter, gauge, histogram};

    use super::Observer;
    use crate::stats::CacheInfo;

    impl Observer {
        pub(super) fn record(&self, took: Duration) {
            histogram!("embedding_cache_load_seconds", "cache" => self.label()).record(took);
        }

        fn label(&self) -> String {
            self.name.to_string()
        }

        /// Copies `info` into the metrics of the recorder that is installed.
        pub(in super::super) fn publish(&self, info: &CacheInfo) {
            let stats = &info.stats;
            let count = |name: &'static str, value: u64| {
                counter!(name, "cache" => self.label()).absolute(value);
            };
            count("embedding_cache_hits_total", stats.hits);
            count("embedding_cache_misses_total", stats.misses);
            count("embedding_cache_joins_total", stats.joins);
            count("embedding_cache_loads_total", stats.loads);
            count("embedding_cache_loaded_total", stats.loaded);
            count("embedding_cache_load_failures_total", stats.load_failures);
            count("embedding_cache_stale_served_total", stats.stale_served);
            count("embedding_cache_insertions_total", stats.insertions);
            count("embedding_cache_updates_total", stats.updates);
            count("embedding_cache_rejected_total", stats.rejected);
            count("embedding_cache_timeouts_total", stats.timeouts);
            for (cause, value) in [
                ("size", stats.evicted_by_entries),
                ("weight", stats.evicted_by_weight),
                ("expired", stats.expired_entries),
                ("removed", stats.removals),
            ] {
                let name = "embedding_cache_evictions_total";
                counter!(name, "cache" => self.label(), "cause" => cause).absolute(value);
            }
            let show = |name: &'static str, value: f64| {
                gauge!(name, "cache" => self.label()).set(value);
            };
            show("embedding_cache_entries", info.size as f64);
            show("embedding_cache_bytes", info.memory_bytes as f64);
            show("embedding_cache_keys_in_flight", info.keys_in_flight as f64);
        }
    }
}
