//! One span and one event for each model call, and nothing of it on the way of a hit.
//!
//! A file, so a process, of their own: where a place of the code is passed for the first time by
//! a thread that has no subscriber, `tracing` may note for the whole process that nobody listens
//! there. Every test here subscribes before it touches a cache.

#![cfg(feature = "tracing")]

#[path = "support/scripted.rs"]
mod scripted;

use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use embedding_cache::EmbeddingCache;
use scripted::{key, run, scripted};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Instrument, Metadata, Subscriber};
use tracing_core::span::Current;

/// Every span and event, with its fields; and whether a span is entered.
#[derive(Clone, Default)]
struct Seen {
    spans: Arc<Mutex<Vec<String>>>,
    events: Arc<Mutex<Vec<String>>>,
    ids: Arc<AtomicU64>,
    /// Of each span, the parent that it was given.
    parents: Arc<Mutex<Vec<Option<Id>>>>,
    metadata: Arc<Mutex<Vec<&'static Metadata<'static>>>>,
    /// Those entered, the innermost last.
    current: Arc<Mutex<Vec<Id>>>,
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
        self.parents.lock().unwrap().push(span.parent().cloned());
        self.metadata.lock().unwrap().push(span.metadata());
        Id::from_u64(self.ids.fetch_add(1, SeqCst) + 1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields(String::new());
        event.record(&mut fields);
        self.events.lock().unwrap().push(fields.0);
    }

    fn current_span(&self) -> Current {
        match self.current.lock().unwrap().last() {
            Some(id) => {
                let metadata = self.metadata.lock().unwrap()[id.into_u64() as usize - 1];
                Current::new(id.clone(), metadata)
            }
            None => Current::none(),
        }
    }

    fn enter(&self, id: &Id) {
        self.current.lock().unwrap().push(id.clone());
        self.entered.fetch_add(1, SeqCst);
    }

    fn exit(&self, id: &Id) {
        assert_eq!(self.current.lock().unwrap().pop().as_ref(), Some(id));
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

/// A call runs in a task that knows of no span: it has that of the caller which claimed its keys.
#[test]
fn the_parent_of_an_owned_call_is_the_span_of_its_caller() {
    let seen = Seen::default();
    let subscribed = tracing::subscriber::set_default(seen.clone());
    let cache = EmbeddingCache::builder().max_entries(5).build().unwrap();
    run(async {
        let request = tracing::info_span!(target: "embedding_cache", "request");
        let parent = request.id();
        assert!(parent.is_some());
        cache.get_or_embed(key(1), async || [1.0]).instrument(request).await.unwrap();
        cache.get_or_embed(key(2), async || [1.0]).await.unwrap();
        assert_eq!(*seen.parents.lock().unwrap(), [None, parent, None]);
    });
    drop(subscribed);
}
