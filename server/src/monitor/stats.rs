//! The form of `/stats`.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use embedding_cache::tier::TierStats;
use serde::Serialize;

use crate::service::{Service, SnapshotState};

use super::Monitor;
use super::recent::Quantiles;

/// What requests hold now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InUse {
    pub(crate) requests: usize,
    pub(crate) connections: usize,
    pub(crate) buffer_bytes: usize,
}

#[derive(Debug, Serialize)]
pub(crate) struct Stats {
    uptime_seconds: f64,
    requests: Requests,
    /// From a request's first byte to its answer's last.
    latency_ms: Quantiles,
    model: Model,
    cache: Option<Cache>,
    /// The second tier.
    tier: Option<Tier>,
    snapshot: Option<Snapshot>,
}

#[derive(Debug, Serialize)]
struct Requests {
    answered: u64,
    refused: u64,
    failed: u64,
    abandoned: u64,
    unread: u64,
    in_flight: usize,
    connections: usize,
    buffer_bytes: usize,
    inputs: u64,
}

#[derive(Debug, Serialize)]
struct Model {
    calls: u64,
    inputs: u64,
    failed: u64,
    retries: u64,
    searches: u64,
    probes: u64,
    calls_in_flight: usize,
    inputs_waiting: usize,
    call_ms: Quantiles,
    /// Models whose upstream is left alone, with the reason.
    breakers_open: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
struct Cache {
    hits: u64,
    misses: u64,
    hit_ratio: Option<f64>,
    joins: u64,
    entries: usize,
    bytes: u64,
    bytes_limit: u64,
    evictions: u64,
    expired: u64,
    keys_in_flight: usize,
}

/// The second tier: what was not in memory, and came from it or did not.
#[derive(Debug, Serialize)]
struct Tier {
    hits: u64,
    misses: u64,
    hit_ratio: Option<f64>,
    /// Answers that a request did not wait for; they are kept all the same.
    late: u64,
    /// Inputs that it was not asked for.
    skipped: u64,
    failures: u64,
    /// Values that were not believed.
    rejected: u64,
    writes: u64,
    write_failures: u64,
    dropped: u64,
    /// Parts that are left alone now: of a single server, 0 or 1.
    breakers_open: u64,
    /// How often one was found to have failed.
    breaker_openings: u64,
}

#[derive(Debug, Serialize)]
struct Snapshot {
    loading: bool,
    loaded_entries: u64,
    damaged_blocks: u64,
    saves: u64,
    failures: u64,
    saved_entries: Option<u64>,
    saved_bytes: Option<u64>,
    saved_seconds_ago: Option<f64>,
}

impl From<TierStats> for Tier {
    fn from(stats: TierStats) -> Self {
        let asked = stats.hits + stats.misses;
        let rejected = [
            stats.rejected_foreign,
            stats.rejected_length,
            stats.rejected_type,
            stats.rejected_dimensions,
            stats.rejected_checksum,
            stats.rejected_signature,
            stats.rejected_expired,
            stats.rejected_admission,
        ];
        let failures = [
            stats.failures_timeout,
            stats.failures_connection,
            stats.failures_refused,
            stats.failures_other,
        ];
        Self {
            hits: stats.hits,
            misses: stats.misses,
            hit_ratio: (asked > 0).then(|| stats.hits as f64 / asked as f64),
            late: stats.late,
            skipped: stats.skipped_open + stats.skipped_full + stats.skipped_no_runtime,
            failures: failures.iter().sum(),
            rejected: rejected.iter().sum(),
            writes: stats.writes,
            write_failures: stats.write_failures,
            dropped: stats.dropped,
            breakers_open: stats.opened.saturating_sub(stats.closed),
            breaker_openings: stats.opened,
        }
    }
}

impl From<SnapshotState> for Snapshot {
    fn from(state: SnapshotState) -> Self {
        Self {
            loading: state.is_loading,
            loaded_entries: state.loaded.entries,
            damaged_blocks: state.loaded.damaged_blocks,
            saves: state.saves,
            failures: state.failures,
            saved_entries: state.last.map(|(_, report)| report.entries),
            saved_bytes: state.last.map(|(_, report)| report.bytes),
            saved_seconds_ago: state.last.map(|(ago, _)| ago.as_secs_f64()),
        }
    }
}

impl Monitor {
    pub(crate) fn stats(&self, service: &Service, in_use: InUse) -> Stats {
        let backend = service.backend();
        let info = service.info();
        let calls = backend.stats();
        let open = backend.open_breakers().into_iter();
        let open = open.map(|(model, reason)| (model.to_string(), reason.to_string()));
        Stats {
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            requests: Requests {
                answered: self.answered.load(Relaxed),
                refused: self.refused.load(Relaxed),
                failed: self.failed.load(Relaxed),
                abandoned: self.abandoned.load(Relaxed),
                unread: self.unread.load(Relaxed),
                in_flight: in_use.requests,
                connections: in_use.connections,
                buffer_bytes: in_use.buffer_bytes,
                inputs: self.inputs.load(Relaxed),
            },
            latency_ms: self.recent.quantiles(),
            model: Model {
                calls: calls.calls(),
                inputs: calls.inputs(),
                failed: calls.failed(),
                retries: calls.retries(),
                searches: calls.searches(),
                probes: calls.probes(),
                calls_in_flight: backend.calls_in_flight(),
                inputs_waiting: service.queued(),
                call_ms: calls.recent().quantiles(),
                breakers_open: open.collect(),
            },
            tier: info.as_ref().filter(|_| service.has_tier()).map(|info| info.stats.tier.into()),
            snapshot: service.snapshot().map(Snapshot::from),
            cache: info.map(|info| Cache {
                hits: info.stats.hits,
                misses: info.stats.misses,
                hit_ratio: (info.stats.total_requests() > 0).then(|| info.stats.hit_ratio()),
                joins: info.stats.joins,
                entries: info.size,
                bytes: info.memory_bytes,
                bytes_limit: info.memory_limit_bytes,
                evictions: info.stats.evictions,
                expired: info.stats.expired_entries,
                keys_in_flight: info.keys_in_flight,
            }),
        }
    }
}
