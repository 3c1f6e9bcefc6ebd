//! What a cache tells of itself: every documented metric, with its labels and its value, and one
//! span for each model call. Nothing of it on the way of a hit.

#![allow(missing_docs)]

#[cfg(any(feature = "metrics", feature = "tracing"))]
use embedding_cache::{CacheKey, EmbeddingCache};

#[cfg(any(feature = "metrics", feature = "tracing"))]
fn key(i: usize) -> CacheKey {
    CacheKey::new(format!("{i:064x}"), "e5-base@1")
}

/// The same whatever features there are: the counts.
#[test]
fn counts_need_no_feature() {
    let cache = embedding_cache::EmbeddingCache::builder().max_entries(10).name("counted");
    let cache = cache.build().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let key = embedding_cache::CacheKey::new("00", "e5-base@1");
    runtime.block_on(async {
        for _ in 0..3 {
            cache.get_or_embed(&key, async || [1.0]).await.unwrap();
        }
    });
    let stats = cache.stats();
    assert_eq!((stats.loads, stats.loaded, stats.hits, stats.misses), (1, 1, 2, 1));
}

#[cfg(any(feature = "metrics", feature = "tracing"))]
fn run<T>(work: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true).build().unwrap().block_on(work)
}

/// Three calls, one of them failing, of 2, 1 and 1 keys; hits, joins, puts of every outcome,
/// evictions of every cause.
#[cfg(any(feature = "metrics", feature = "tracing"))]
async fn scripted(cache: &EmbeddingCache) {
    use std::time::Duration;
    let keys = [key(1), key(2)];
    let answers = cache.get_or_embed_many(&keys, |missing| async move {
        missing.keys().iter().map(|_| [1.0, 2.0]).collect::<Vec<_>>()
    });
    assert!(answers.await.iter().all(Result::is_ok));
    assert!(cache.get_or_embed(key(3), async || Err::<Vec<f32>, _>("down")).await.is_err());
    let slow = || async {
        tokio::task::yield_now().await;
        [3.0, 4.0]
    };
    let (led, joined) =
        tokio::join!(cache.get_or_embed(key(3), slow), cache.get_or_embed(key(3), slow));
    assert_eq!(led.unwrap(), joined.unwrap());
    for _ in 0..5 {
        assert!(cache.get(&key(1)).await.is_some());
    }
    assert!(cache.get_or_embed_many(&keys, |_| async { Vec::<[f32; 1]>::new() }).await[1].is_ok());
    cache.put(key(1), [5.0, 6.0]).await.unwrap();
    assert!(cache.put(key(1), [f32::NAN]).await.is_err());
    assert!(cache.remove(&key(1)).await.is_some());
    cache.put_with_ttl(key(4), [1.0, 1.0], Duration::ZERO).await.unwrap();
    assert!(cache.get(&key(4)).await.is_none());
    for i in 5..10 {
        cache.put(key(i), [1.0, 1.0]).await.unwrap();
    }
}

#[cfg(feature = "metrics")]
mod metrics_of_a_cache {
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use metrics::{
        Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata,
        Recorder, SharedString, Unit, with_local_recorder,
    };

    use super::*;

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
}

#[cfg(feature = "tracing")]
mod spans_of_a_cache {
    use std::fmt::Debug;
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
    use std::sync::{Arc, Mutex};

    use tracing::field::{Field, Visit};
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Metadata, Subscriber};

    use super::*;

    /// Every span and event, with its fields; and whether a span is entered.
    #[derive(Clone, Default)]
    struct Seen {
        spans: Arc<Mutex<Vec<String>>>,
        events: Arc<Mutex<Vec<String>>>,
        ids: Arc<AtomicU64>,
        entered: Arc<AtomicU64>,
    }

    struct Fields(String);

    impl Visit for Fields {
        fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
            // How long it took is another time each time.
            if field.name() != "took" {
                self.0 += &format!(" {}={value:?}", field.name());
            }
        }
    }

    impl Subscriber for Seen {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            metadata.target().starts_with("embedding_cache")
        }

        fn new_span(&self, span: &Attributes<'_>) -> Id {
            let mut fields = Fields(span.metadata().name().to_string());
            span.record(&mut fields);
            self.spans.lock().unwrap().push(fields.0);
            Id::from_u64(self.ids.fetch_add(1, SeqCst) + 1)
        }

        fn record(&self, _: &Id, _: &Record<'_>) {}

        fn record_follows_from(&self, _: &Id, _: &Id) {}

        fn event(&self, event: &Event<'_>) {
            let mut fields = Fields(String::new());
            event.record(&mut fields);
            self.events.lock().unwrap().push(fields.0);
        }

        fn enter(&self, _: &Id) {
            self.entered.fetch_add(1, SeqCst);
        }

        fn exit(&self, _: &Id) {
            self.entered.fetch_sub(1, SeqCst);
        }
    }

    #[test]
    fn every_model_call_is_one_span_and_one_event_and_a_hit_is_none() {
        let seen = Seen::default();
        let subscribed = tracing::subscriber::set_default(seen.clone());
        let builder = EmbeddingCache::builder().max_entries(5).shards(1).name("documents");
        let cache = builder.build().unwrap();
        run(async {
            cache.put(key(1), [1.0]).await.unwrap();
            cache.get_or_embed(key(1), async || [1.0]).await.unwrap();
            drop(cache.get_many([key(1), key(2)]).await);
            cache.invalidate_all().await;
        });
        assert!(seen.spans.lock().unwrap().is_empty() && seen.events.lock().unwrap().is_empty());
        run(scripted(&cache));
        drop(subscribed);
        let span = |items| format!("embed cache=\"documents\" items={items}");
        assert_eq!(*seen.spans.lock().unwrap(), [span(2), span(1), span(1)]);
        let events = seen.events.lock().unwrap();
        assert_eq!(events.len(), 3, "{events:?}");
        for (event, (items, failed)) in events.iter().zip([(2, 0), (1, 1), (1, 0)]) {
            for field in
                ["cache=\"documents\"".into(), format!("items={items}"), format!("failed={failed}")]
            {
                assert!(event.contains(&field), "{field} in {event}");
            }
        }
    }

    #[test]
    fn a_model_runs_inside_its_span_and_who_waits_does_not() {
        let seen = Seen::default();
        let subscribed = tracing::subscriber::set_default(seen.clone());
        let cache = EmbeddingCache::builder().max_entries(5).build().unwrap();
        run(async {
            let entered = Arc::clone(&seen.entered);
            let inside = || async move {
                let before = entered.load(SeqCst);
                tokio::task::yield_now().await;
                [before as f32, entered.load(SeqCst) as f32]
            };
            assert_eq!(cache.get_or_embed(key(1), inside).await.unwrap(), [1.0, 1.0]);
            assert_eq!(seen.entered.load(SeqCst), 0);
        });
        drop(subscribed);
    }
}
