//! Every documented metric, with its labels and its value.

#![cfg(feature = "metrics")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::scripted::{key, run, scripted};
use embedding_cache::EmbeddingCache;
use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit, with_local_recorder,
};

/// All that was recorded: name and labels, kind, values in their order.
#[derive(Debug, Clone, Default)]
struct Recorded(Arc<Mutex<BTreeMap<String, Values>>>);

type Values = Vec<(&'static str, f64)>;

struct Cell {
    name: String,
    recorded: Recorded,
}

impl Cell {
    fn note(&self, how: &'static str, value: f64) {
        let mut all = self.recorded.0.lock().unwrap();
        all.entry(self.name.clone()).or_default().push((how, value));
    }
}

impl CounterFn for Cell {
    fn increment(&self, value: u64) {
        self.note("increment", value as f64);
    }

    fn absolute(&self, value: u64) {
        self.note("counter", value as f64);
    }
}

impl GaugeFn for Cell {
    fn increment(&self, value: f64) {
        self.note("increment", value);
    }

    fn decrement(&self, value: f64) {
        self.note("decrement", value);
    }

    fn set(&self, value: f64) {
        self.note("gauge", value);
    }
}

impl HistogramFn for Cell {
    fn record(&self, value: f64) {
        self.note("histogram", value);
    }
}

impl Recorded {
    fn cell(&self, key: &Key) -> Arc<Cell> {
        let labels: Vec<String> =
            key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        let name = format!("{}{{{}}}", key.name(), labels.join(","));
        Arc::new(Cell { name, recorded: self.clone() })
    }

    /// What was recorded last under each name, and how.
    fn last(&self) -> BTreeMap<String, (&'static str, f64)> {
        let all = self.0.lock().unwrap();
        all.iter().map(|(name, values)| (name.clone(), *values.last().unwrap())).collect()
    }

    fn len(&self) -> usize {
        self.0.lock().unwrap().values().map(Vec::len).sum()
    }
}

impl Recorder for Recorded {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.cell(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.cell(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.cell(key))
    }
}

fn cache(name: &str) -> EmbeddingCache {
    let builder = EmbeddingCache::builder().max_entries(5).shards(1).name(name);
    builder.build().unwrap()
}

#[test]
fn every_documented_metric_is_published_with_its_labels_and_its_value() {
    let recorded = Recorded::default();
    let cache = cache("documents");
    with_local_recorder(&recorded, || {
        run(scripted(&cache));
        cache.publish_metrics();
    });
    let mut last = recorded.last();
    let took = last.remove("embedding_cache_load_seconds{cache=documents}").unwrap();
    assert!(took.0 == "histogram" && took.1 >= 0.0);
    let bytes = cache.info().memory_bytes as f64;
    let expected = [
        ("hits_total", "", 7),
        ("misses_total", "", 6),
        ("joins_total", "", 1),
        ("loads_total", "", 3),
        ("loaded_total", "", 3),
        ("load_failures_total", "", 1),
        ("stale_served_total", "", 0),
        ("insertions_total", "", 9),
        ("updates_total", "", 1),
        ("rejected_total", "", 1),
        ("timeouts_total", "", 0),
        ("evictions_total", ",cause=size", 2),
        ("evictions_total", ",cause=weight", 0),
        ("evictions_total", ",cause=expired", 1),
        ("evictions_total", ",cause=removed", 1),
    ];
    let counters = expected.map(|(name, cause, value)| {
        let name = format!("embedding_cache_{name}{{cache=documents{cause}}}");
        (name, ("counter", f64::from(value)))
    });
    let gauges = [("entries", 5.0), ("bytes", bytes), ("keys_in_flight", 0.0)];
    let gauges = gauges.map(|(name, value)| {
        (format!("embedding_cache_{name}{{cache=documents}}"), ("gauge", value))
    });
    assert_eq!(last, counters.into_iter().chain(gauges).collect());
}

#[test]
fn a_load_takes_one_sample_and_nothing_else_is_recorded_as_it_happens() {
    let recorded = Recorded::default();
    let cache = cache("timed");
    with_local_recorder(&recorded, || {
        run(async {
            for i in 0..20 {
                cache.put(key(i), [1.0]).await.unwrap();
                drop(cache.get(&key(i / 2)).await);
            }
            drop(cache.put_many((0..20).map(|i| (key(i), [1.0]))).await);
            drop(cache.get_many([key(1), key(2)]).await);
            cache.put(key(1), [1.0]).await.unwrap();
            cache.get_or_embed(key(1), async || [1.0]).await.unwrap();
            cache.remove(&key(1)).await;
            cache.invalidate_all().await;
        });
        assert_eq!(recorded.len(), 0, "{recorded:?}");
        run(scripted(&cache));
    });
    let all = recorded.0.lock().unwrap();
    let names: Vec<&String> = all.keys().collect();
    assert_eq!(names, ["embedding_cache_load_seconds{cache=timed}"]);
    assert_eq!(all[names[0]].len(), 3, "one for each call, the failed one too");
}

#[test]
fn a_histogram_sample_is_the_time_of_the_call_in_seconds() {
    let recorded = Recorded::default();
    with_local_recorder(&recorded, || {
        run(async {
            let slow = || async {
                std::thread::sleep(Duration::from_millis(30));
                [1.0]
            };
            cache("slow").get_or_embed(key(1), slow).await.unwrap();
        });
    });
    let (_, took) = recorded.last()["embedding_cache_load_seconds{cache=slow}"];
    assert!((0.03..30.0).contains(&took), "{took} s");
}

#[test]
fn caches_of_different_names_are_told_apart_and_a_cleanup_publishes() {
    let recorded = Recorded::default();
    with_local_recorder(&recorded, || {
        run(async {
            let (documents, queries) = (cache("documents"), cache("queries"));
            documents.put(key(1), [1.0]).await.unwrap();
            documents.publish_metrics();
            let _cleanup = queries.spawn_cleanup(Duration::from_secs(1)).unwrap();
            tokio::time::sleep(Duration::from_millis(1500)).await;
        });
    });
    let last = recorded.last();
    assert_eq!(last["embedding_cache_entries{cache=documents}"], ("gauge", 1.0));
    assert_eq!(last["embedding_cache_entries{cache=queries}"], ("gauge", 0.0));
}

#[test]
fn without_a_recorder_publishing_does_nothing() {
    let cache = cache("unheard");
    run(scripted(&cache));
    cache.publish_metrics();
}
