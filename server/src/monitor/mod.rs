//! What the server tells of itself: `/stats` for its page, `/metrics` for Prometheus.

mod prometheus;
mod recent;
mod stats;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use axum::http::StatusCode;
use metrics::{counter, gauge, histogram};
use metrics_exporter_prometheus::PrometheusHandle;

use crate::service::Service;

use prometheus::REQUEST;
pub(crate) use prometheus::{MODEL_CALL, keep_up, prometheus};
pub(crate) use recent::Recent;
pub(crate) use stats::InUse;

/// Counts of `POST /v1/embeddings`. Orderings: relaxed, a count speaks of nothing but itself.
#[derive(Debug)]
pub(crate) struct Monitor {
    started: Instant,
    answered: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    abandoned: AtomicU64,
    unread: AtomicU64,
    inputs: AtomicU64,
    recent: Recent,
}

/// A request under way, until its answer is written.
#[derive(Debug)]
pub(crate) struct Watch {
    monitor: Arc<Monitor>,
    began: Instant,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Dropped now, its client has left.
    Working,
    /// Dropped now, its answer was not read.
    Answered(StatusCode),
    Written,
}

impl Watch {
    /// The answer is known.
    pub(crate) fn answered(&mut self, status: StatusCode, inputs: usize) {
        self.stage = Stage::Answered(status);
        let monitor = &*self.monitor;
        let count = if status.is_success() {
            monitor.inputs.fetch_add(inputs as u64, Relaxed);
            &monitor.answered
        } else if status.is_server_error() {
            &monitor.failed
        } else {
            &monitor.refused
        };
        count.fetch_add(1, Relaxed);
        let status = status_label(status);
        counter!("embedding_cache_server_requests_total", "status" => status).increment(1);
    }

    /// The answer's last byte is written.
    pub(crate) fn written(mut self) {
        if let Stage::Answered(status) = self.stage
            && status.is_success()
        {
            let took = self.began.elapsed();
            self.monitor.recent.record(took);
            histogram!(REQUEST).record(took);
        }
        self.stage = Stage::Written;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        match self.stage {
            Stage::Working => {
                self.monitor.abandoned.fetch_add(1, Relaxed);
                let status = "abandoned";
                counter!("embedding_cache_server_requests_total", "status" => status).increment(1);
            }
            Stage::Answered(_) => {
                self.monitor.unread.fetch_add(1, Relaxed);
            }
            Stage::Written => {}
        }
    }
}

/// Statuses as labels without an allocation; the answers of this server have few.
fn status_label(status: StatusCode) -> &'static str {
    match status.as_u16() {
        200 => "200",
        400 => "400",
        401 => "401",
        403 => "403",
        404 => "404",
        408 => "408",
        413 => "413",
        415 => "415",
        422 => "422",
        429 => "429",
        500 => "500",
        502 => "502",
        503 => "503",
        504 => "504",
        _ => "other",
    }
}

impl Monitor {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            started: Instant::now(),
            answered: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            abandoned: AtomicU64::new(0),
            unread: AtomicU64::new(0),
            inputs: AtomicU64::new(0),
            recent: Recent::default(),
        })
    }

    /// A request whose first byte had come at `began`.
    pub(crate) fn start(self: &Arc<Self>, began: Instant) -> Watch {
        Watch { monitor: Arc::clone(self), began, stage: Stage::Working }
    }

    /// The metrics as text, as Prometheus reads them.
    pub(crate) fn metrics(&self, service: &Service, in_use: InUse) -> String {
        let prometheus = prometheus();
        service.publish_metrics();
        let calls = service.backend().stats();
        for (name, value) in [
            ("embedding_cache_server_model_calls_total", calls.calls()),
            ("embedding_cache_server_model_calls_failed_total", calls.failed()),
            ("embedding_cache_server_model_retries_total", calls.retries()),
            ("embedding_cache_server_model_searches_total", calls.searches()),
            ("embedding_cache_server_model_probes_total", calls.probes()),
            ("embedding_cache_server_model_inputs_total", calls.inputs()),
            ("embedding_cache_server_inputs_total", self.inputs.load(Relaxed)),
            ("embedding_cache_server_unread_total", self.unread.load(Relaxed)),
        ] {
            counter!(name).absolute(value);
        }
        let open = service.backend().open_breakers().len();
        for (name, value) in [
            ("embedding_cache_server_requests_in_flight", in_use.requests),
            ("embedding_cache_server_connections", in_use.connections),
            ("embedding_cache_server_buffer_bytes", in_use.buffer_bytes),
            ("embedding_cache_server_model_calls_in_flight", service.backend().calls_in_flight()),
            ("embedding_cache_server_inputs_waiting", service.queued()),
            ("embedding_cache_server_breakers_open", open),
        ] {
            gauge!(name).set(value as f64);
        }
        if let Some(snapshot) = service.snapshot() {
            counter!("embedding_cache_server_snapshot_saves_total").absolute(snapshot.saves);
            counter!("embedding_cache_server_snapshot_failures_total").absolute(snapshot.failures);
            counter!("embedding_cache_server_snapshot_loaded_entries_total")
                .absolute(snapshot.loaded.entries);
            if let Some((ago, _)) = snapshot.last {
                gauge!("embedding_cache_server_snapshot_age_seconds").set(ago.as_secs_f64());
            }
        }
        gauge!("embedding_cache_server_uptime_seconds").set(self.started.elapsed().as_secs_f64());
        prometheus.as_ref().map(PrometheusHandle::render).unwrap_or_default()
    }
}
