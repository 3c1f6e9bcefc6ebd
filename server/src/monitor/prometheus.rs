//! The recorder behind `/metrics`, and what each metric means.

use std::sync::OnceLock;
use std::time::Duration;

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

pub(crate) const REQUEST: &str = "embedding_cache_server_request_seconds";
pub(crate) const MODEL_CALL: &str = "embedding_cache_server_model_call_seconds";

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
        describe();
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

fn describe() {
    for (name, text) in [
        (
            "embedding_cache_server_requests_total",
            "Requests for embeddings by status; \"abandoned\" are those whose client left.",
        ),
        (
            "embedding_cache_server_unread_total",
            "Answers that were cut off before the client had read them.",
        ),
        ("embedding_cache_server_inputs_total", "Inputs of answered requests."),
        ("embedding_cache_server_model_calls_total", "Calls of the model, each that was made."),
        ("embedding_cache_server_model_calls_failed_total", "Calls of the model that failed."),
        (
            "embedding_cache_server_model_retries_total",
            "Calls that were made once more after a failure.",
        ),
        (
            "embedding_cache_server_model_searches_total",
            "Calls to find the input that a call failed at.",
        ),
        (
            "embedding_cache_server_model_probes_total",
            "Calls to find out whether the upstream is up.",
        ),
        ("embedding_cache_server_model_inputs_total", "Inputs in calls of the model."),
        ("embedding_cache_hits_total", "Lookups that found a vector."),
        ("embedding_cache_misses_total", "Lookups that found none."),
        (
            "embedding_cache_joins_total",
            "Keys not loaded because another request was loading them.",
        ),
        ("embedding_cache_loads_total", "Loads by the cache: calls of its closure."),
        ("embedding_cache_loaded_total", "Keys that were loaded."),
        ("embedding_cache_load_failures_total", "Keys whose load failed."),
        (
            "embedding_cache_stale_served_total",
            "Vectors served past their time because the model failed.",
        ),
        ("embedding_cache_insertions_total", "Entries stored under a new key."),
        ("embedding_cache_updates_total", "Entries replaced."),
        ("embedding_cache_rejected_total", "Entries refused."),
        ("embedding_cache_timeouts_total", "Operations that ran out of time."),
        ("embedding_cache_evictions_total", "Entries that left, by cause."),
        ("embedding_cache_tier_hits_total", "Inputs that the second tier had a vector for."),
        ("embedding_cache_tier_misses_total", "Inputs that it had none for."),
        ("embedding_cache_tier_late_total", "Inputs whose answer a request did not wait for."),
        ("embedding_cache_tier_skipped_total", "Inputs that it was not asked for, by reason."),
        ("embedding_cache_tier_failures_total", "Batches of it that failed, by kind."),
        ("embedding_cache_tier_rejected_total", "Values of it that were not believed, by reason."),
        ("embedding_cache_tier_writes_total", "Vectors written to it."),
        ("embedding_cache_tier_write_failures_total", "Vectors that could not be written to it."),
        ("embedding_cache_tier_dropped_total", "Vectors that were not written to it in time."),
        ("embedding_cache_server_snapshot_saves_total", "Snapshots saved."),
        ("embedding_cache_server_snapshot_failures_total", "Snapshots not saved or not read on."),
        ("embedding_cache_server_snapshot_loaded_entries_total", "Entries from the snapshot."),
    ] {
        describe_counter!(name, text);
    }
    for (name, text) in [
        ("embedding_cache_server_requests_in_flight", "Requests being worked on."),
        ("embedding_cache_server_model_calls_in_flight", "Calls of the model under way."),
        ("embedding_cache_server_inputs_waiting", "Inputs that wait for the model."),
        ("embedding_cache_server_breakers_open", "Models whose upstream is left alone."),
        ("embedding_cache_server_connections", "Connections that are open."),
        ("embedding_cache_server_buffer_bytes", "Bytes of bodies and answers held."),
        ("embedding_cache_server_uptime_seconds", "Seconds since the start."),
        ("embedding_cache_entries", "Entries held."),
        ("embedding_cache_bytes", "Bytes held, with keys and overhead."),
        ("embedding_cache_keys_in_flight", "Keys being loaded."),
        ("embedding_cache_tier_queue_bytes", "Bytes that wait to be written to the second tier."),
        ("embedding_cache_tier_breaker_open", "Parts of it that fail and are left alone."),
        ("embedding_cache_tier_namespace_age_seconds", "How long since it was last heard of."),
        ("embedding_cache_server_snapshot_age_seconds", "How long since the last was saved."),
    ] {
        describe_gauge!(name, text);
    }
    let text = "From the first byte of an answered request to the last of its answer.";
    describe_histogram!(REQUEST, Unit::Seconds, text);
    describe_histogram!(MODEL_CALL, Unit::Seconds, "A call of the model.");
    describe_histogram!("embedding_cache_load_seconds", Unit::Seconds, "A load by the cache.");
    let text = "A question to the second tier.";
    describe_histogram!("embedding_cache_tier_read_seconds", Unit::Seconds, text);
}
