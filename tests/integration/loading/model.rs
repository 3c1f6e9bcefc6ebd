//! A model that can be looked into: what it was asked for, and what it should do wrong.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use embedding_cache::{CacheKey, EmbeddingCache};
use tokio::sync::Semaphore;

/// Shared by the calls of a test. Embeds the text `n` as `[n, n + 0.5]`.
#[derive(Clone)]
pub(crate) struct Model(Arc<Inner>);

struct Inner {
    calls: AtomicUsize,
    asked: Mutex<HashMap<u32, usize>>,
    /// A permit for each call that may answer; closed: all may.
    gate: Semaphore,
}

impl Model {
    /// One that answers at once.
    pub(crate) fn new() -> Self {
        let model = Self::gated();
        model.0.gate.close();
        model
    }

    /// One that answers as many calls as it is [let](Self::answer).
    pub(crate) fn gated() -> Self {
        Self(Arc::new(Inner {
            calls: AtomicUsize::new(0),
            asked: Mutex::default(),
            gate: Semaphore::new(0),
        }))
    }

    /// Lets so many calls answer.
    pub(crate) fn answer(&self, calls: usize) {
        self.0.gate.add_permits(calls);
    }

    /// Calls so far, those that have not answered yet among them.
    pub(crate) fn calls(&self) -> usize {
        self.0.calls.load(SeqCst)
    }

    /// Inputs so far, each as often as it was asked for.
    pub(crate) fn items(&self) -> usize {
        self.0.asked.lock().unwrap().values().sum()
    }

    pub(crate) async fn embed(self, texts: Vec<u32>) -> Vec<Vec<f32>> {
        self.0.calls.fetch_add(1, SeqCst);
        for &text in &texts {
            *self.0.asked.lock().unwrap().entry(text).or_default() += 1;
        }
        if let Ok(permit) = self.0.gate.acquire().await {
            permit.forget();
        }
        texts.into_iter().map(vector).collect()
    }
}

/// The right embedding of a text.
pub(crate) fn vector(text: u32) -> Vec<f32> {
    vec![text as f32, text as f32 + 0.5]
}

pub(crate) fn key(text: u32) -> CacheKey {
    CacheKey::new(format!("{text:064x}"), "model@1")
}

pub(crate) fn keys(texts: &[u32]) -> Vec<CacheKey> {
    texts.iter().map(|&text| key(text)).collect()
}

pub(crate) fn cache() -> EmbeddingCache {
    EmbeddingCache::builder().max_entries(100_000).build().unwrap()
}

/// Asks for `texts`, and checks that each has its own vector, or an error.
pub(crate) async fn get(cache: &EmbeddingCache, model: &Model, texts: &[u32]) {
    let answers = cache
        .get_or_embed_many(keys(texts), |missing| {
            model.clone().embed(missing.select(texts).copied().collect())
        })
        .await;
    assert_eq!(answers.len(), texts.len());
    for (&text, answer) in texts.iter().zip(answers) {
        assert_eq!(answer.unwrap(), vector(text), "text {text}");
    }
}

/// Lets other tasks run until `reached` holds.
pub(crate) async fn until(reached: impl Fn() -> bool) {
    for _ in 0..1_000_000 {
        if reached() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("what was waited for did not come");
}
