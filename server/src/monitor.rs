//! What the server tells of itself: `/stats` for its page, `/metrics` for Prometheus.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use hdrhistogram::Histogram;
use metrics::{counter, gauge, histogram};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use parking_lot::Mutex;
use serde::Serialize;

use crate::service::Service;

/// Latencies are shown over the last one to two of these.
const WINDOW: Duration = Duration::from_secs(15);

/// The longest latency that is told apart from longer ones, in microseconds.
const LONGEST: u64 = 600_000_000;

const LATENCY: &str = "embedding_cache_server_request_seconds";

/// Counts of `POST /v1/embeddings`. Orderings: relaxed, a count speaks of nothing but itself.
#[derive(Debug)]
pub(crate) struct Monitor {
    started: Instant,
    answered: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    abandoned: AtomicU64,
    inputs: AtomicU64,
    recent: Mutex<Recent>,
}

/// Latencies of the current window and of the one before.
#[derive(Debug)]
struct Recent {
    since: Instant,
    current: Histogram<u64>,
    previous: Histogram<u64>,
}

impl Recent {
    fn turn(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.since);
        if age < WINDOW {
            return;
        }
        std::mem::swap(&mut self.current, &mut self.previous);
        self.current.reset();
        if age >= 2 * WINDOW {
            self.previous.reset();
        }
        self.since = now;
    }
}

/// A request under way; counted as abandoned if it is dropped, as it is when the client leaves.
#[derive(Debug)]
pub(crate) struct Watch<'a> {
    monitor: &'a Monitor,
    began: Instant,
    finished: bool,
}

impl Watch<'_> {
    pub(crate) fn finish(mut self, status: StatusCode, inputs: usize) {
        self.finished = true;
        let took = self.began.elapsed();
        let monitor = self.monitor;
        let count = if status.is_success() {
            monitor.inputs.fetch_add(inputs as u64, Relaxed);
            monitor.record(took);
            histogram!(LATENCY).record(took);
            &monitor.answered
        } else if status.is_server_error() {
            &monitor.failed
        } else {
            &monitor.refused
        };
        count.fetch_add(1, Relaxed);
        counter!("embedding_cache_server_requests_total", "status" => status_label(status))
            .increment(1);
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.monitor.abandoned.fetch_add(1, Relaxed);
            counter!("embedding_cache_server_requests_total", "status" => "abandoned").increment(1);
        }
    }
}

/// Statuses as labels without an allocation; the answers of this server have few.
fn status_label(status: StatusCode) -> &'static str {
    match status.as_u16() {
        200 => "200",
        400 => "400",
        404 => "404",
        408 => "408",
        413 => "413",
        415 => "415",
        429 => "429",
        500 => "500",
        502 => "502",
        504 => "504",
        _ => "other",
    }
}

impl Monitor {
    /// # Errors
    ///
    /// Never for these bounds; the histogram wants to be asked.
    pub(crate) fn new() -> Result<Self, hdrhistogram::CreationError> {
        let empty = Histogram::new_with_bounds(1, LONGEST, 3)?;
        let recent = Recent { since: Instant::now(), current: empty.clone(), previous: empty };
        Ok(Self {
            started: Instant::now(),
            answered: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            abandoned: AtomicU64::new(0),
            inputs: AtomicU64::new(0),
            recent: Mutex::new(recent),
        })
    }

    pub(crate) fn start(&self) -> Watch<'_> {
        Watch { monitor: self, began: Instant::now(), finished: false }
    }

    fn record(&self, took: Duration) {
        let microseconds = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let mut recent = self.recent.lock();
        recent.turn(Instant::now());
        recent.current.saturating_record(microseconds);
    }

    fn latency(&self) -> Latency {
        let both = {
            let mut recent = self.recent.lock();
            recent.turn(Instant::now());
            let mut both = recent.current.clone();
            // Of the same bounds, so they add up.
            let _ = both.add(&recent.previous);
            both
        };
        let quantile = |q| (!both.is_empty()).then(|| both.value_at_quantile(q) as f64 / 1e3);
        Latency { p50: quantile(0.5), p99: quantile(0.99) }
    }

    pub(crate) fn stats(&self, service: &Service, in_flight: usize) -> Stats {
        let backend = service.backend();
        Stats {
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            requests: Requests {
                answered: self.answered.load(Relaxed),
                refused: self.refused.load(Relaxed),
                failed: self.failed.load(Relaxed),
                abandoned: self.abandoned.load(Relaxed),
                in_flight,
                inputs: self.inputs.load(Relaxed),
            },
            latency_ms: self.latency(),
            model: Model { calls: backend.calls(), inputs: backend.inputs() },
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

    /// The metrics as text, as Prometheus reads them.
    pub(crate) fn metrics(&self, service: &Service, in_flight: usize) -> String {
        let prometheus = prometheus();
        service.publish_metrics();
        let backend = service.backend();
        counter!("embedding_cache_server_model_calls_total").absolute(backend.calls());
        counter!("embedding_cache_server_model_inputs_total").absolute(backend.inputs());
        counter!("embedding_cache_server_inputs_total").absolute(self.inputs.load(Relaxed));
        gauge!("embedding_cache_server_requests_in_flight").set(in_flight as f64);
        gauge!("embedding_cache_server_uptime_seconds").set(self.started.elapsed().as_secs_f64());
        prometheus.as_ref().map(PrometheusHandle::render).unwrap_or_default()
    }
}

/// The recorder is that of the process. Made before the first request, so that none is missed.
pub(crate) fn prometheus() -> &'static Option<PrometheusHandle> {
    static RECORDER: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    RECORDER.get_or_init(|| {
        let buckets = [1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5];
        let buckets: Vec<f64> = buckets.into_iter().chain([1.0, 2.5, 5.0, 10.0, 30.0]).collect();
        let recorder = PrometheusBuilder::new().set_buckets(&buckets).ok()?.build_recorder();
        let handle = recorder.handle();
        // A program that embeds this server and has a recorder already keeps its own.
        metrics::set_global_recorder(recorder).ok()?;
        Some(handle)
    })
}

/// Samples of histograms wait in memory until this is called, by a scrape or by a clock.
pub(crate) async fn keep_up() {
    let mut ticks = tokio::time::interval(Duration::from_secs(5));
    loop {
        ticks.tick().await;
        if let Some(handle) = prometheus() {
            handle.run_upkeep();
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Stats {
    uptime_seconds: f64,
    requests: Requests,
    latency_ms: Latency,
    model: Model,
    cache: Option<Cache>,
}

#[derive(Debug, Serialize)]
struct Requests {
    answered: u64,
    refused: u64,
    failed: u64,
    abandoned: u64,
    in_flight: usize,
    inputs: u64,
}

#[derive(Debug, Serialize)]
struct Latency {
    p50: Option<f64>,
    p99: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Model {
    calls: u64,
    inputs: u64,
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
