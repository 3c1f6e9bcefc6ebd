//! The form of `/stats`.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use serde::Serialize;

use crate::service::Service;

use super::Monitor;
use super::recent::Quantiles;

/// What requests hold now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InUse {
    pub(crate) requests: usize,
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
}

#[derive(Debug, Serialize)]
struct Requests {
    answered: u64,
    refused: u64,
    failed: u64,
    abandoned: u64,
    unread: u64,
    in_flight: usize,
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

impl Monitor {
    pub(crate) fn stats(&self, service: &Service, in_use: InUse) -> Stats {
        let backend = service.backend();
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
            cache: service.info().map(|info| Cache {
                hits: info.stats.hits,
                misses: info.stats.misses,
                hit_ratio: (info.stats.total_requests() > 0).then(|| info.stats.hit_rate()),
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
