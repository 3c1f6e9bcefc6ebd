//! The leader of a call: whoever claimed its keys makes it, stores what it loads, and answers.

use std::future::Future;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::embedding::{EmbeddingKey, Inner, Stored};
use crate::error::{CacheError, ErrorKind};
use crate::sharded::Terms;

use super::call::{Call, Landing, Pulse, catching};
use super::flights::Seat;
use super::output::{Answer, IntoEmbeddings, same};

/// The keys of one call, claimed. Dropped before the call has landed, it abandons them: those who
/// wait for them then load them themselves.
pub(super) struct Lead<K: EmbeddingKey, S> {
    inner: Arc<Inner<K, S>>,
    call: Arc<Call>,
    keys: Vec<Stored<K>>,
    /// Of the keys, for [`Flights::end`](super::flights::Flights::end).
    hashes: Vec<u64>,
    terms: Terms,
}

impl<K: EmbeddingKey, S> Lead<K, S> {
    /// A call without keys yet, that stores what it loads for `time_to_live`, unless something is
    /// invalidated from `epoch` on.
    pub(super) fn new(
        inner: &Arc<Inner<K, S>>,
        pulse: Option<&Arc<Pulse>>,
        epoch: u64,
        time_to_live: Option<Duration>,
    ) -> Self {
        Self {
            inner: Arc::clone(inner),
            call: Arc::new(Call::new(pulse.cloned())),
            keys: Vec::new(),
            hashes: Vec::new(),
            terms: Terms { time_to_live, epoch: Some(epoch) },
        }
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The place for the next key.
    pub(super) fn seat(&self) -> Seat {
        Seat { call: Arc::clone(&self.call), place: self.keys.len() }
    }

    /// A key that was claimed for [`seat`](Self::seat).
    pub(super) fn take(&mut self, key: Stored<K>, hash: u64) {
        self.keys.push(key);
        self.hashes.push(hash);
    }

    /// All its keys fail with the same error.
    pub(super) fn fail(mut self, error: &CacheError) {
        let answers = same(self.keys.len(), error);
        self.land(Landing::Answered(answers.into()));
    }

    fn land(&mut self, landing: Landing) {
        if !self.call.land(landing) {
            return;
        }
        // The landing stands first: who joined until now has it, and who comes now joins no more.
        for (place, &hash) in self.hashes.iter().enumerate() {
            self.inner.flights.end(hash, &Seat { call: Arc::clone(&self.call), place });
        }
        self.call.wake();
    }
}

impl<K: EmbeddingKey, S> Drop for Lead<K, S> {
    fn drop(&mut self) {
        self.land(Landing::Abandoned);
    }
}

impl<K: EmbeddingKey, S: BuildHasher> Lead<K, S> {
    /// Makes the call, stores what it answers, and lets everyone know.
    ///
    /// `bounded` waits until fewer than the allowed number of calls are under way.
    pub(super) async fn carry_out<Fut>(mut self, embed: Fut, bounded: bool)
    where
        Fut: Future<Output: IntoEmbeddings>,
    {
        let inner = Arc::clone(&self.inner);
        // Never closed, so never an error.
        let permit = if bounded { inner.calls.acquire().await.ok() } else { None };
        let asked = self.keys.len();
        let started = Instant::now();
        // The conversion may be the caller's code as well: an error type's `Into`.
        let answered =
            catching(inner.observer.span(asked, async move { embed.await.into_embeddings(asked) }));
        let mut answers = match answered.await {
            Ok(answers) => answers,
            Err(message) => same(asked, &ErrorKind::LoadPanicked { message }.into()),
        };
        drop(permit);
        self.store(&mut answers).await;
        inner.observer.loaded(&answers, started.elapsed());
        self.land(Landing::Answered(answers.into()));
    }

    /// Stores the good answers and turns those that may not be stored into errors. An answer that
    /// is good but finds no room is delivered all the same.
    async fn store(&mut self, answers: &mut [Answer]) {
        let keys = std::mem::take(&mut self.keys);
        let mut entries = Vec::with_capacity(keys.len());
        for (key, answer) in keys.into_iter().zip(answers) {
            let Ok(vector) = answer else { continue };
            match self.inner.admission.check::<K>(&key, vector) {
                Ok(()) => entries.push((key, vector.clone().into_shared())),
                Err(kind) => {
                    let refused = CacheError::from(kind);
                    self.inner.core.count_refusal(&key, &refused);
                    *answer = Err(refused);
                }
            }
        }
        // What was refused has been counted; the caller has the vector. A panic of the eviction
        // listener comes after all is stored: it is no reason to lose what the model has answered.
        drop(catching(self.inner.insert_all(entries, self.terms)).await);
    }
}
