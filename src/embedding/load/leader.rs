//! The leader of a call: it claimed the keys, makes the call, stores what that loads, and answers.

use std::future::Future;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::core::{Condition, GROUP, InsertOptions};
use crate::embedding::observe::Parent;
use crate::embedding::wait::Pace;
use crate::embedding::{EmbeddingKey, Inner, Stored};
use crate::error::{CacheError, ErrorKind};

use super::ancestry::{Ancestry, Waits};
use super::call::{Call, CallResult, catching};
use super::heartbeat::Heartbeat;
use super::inflight::CallSlot;
use super::output::{Answer, IntoEmbeddings, same};

/// The keys of one call, claimed. Dropped before the call has ended, it abandons them: those that
/// wait for them then load them themselves.
pub(super) struct Leader<K: EmbeddingKey, S> {
    inner: Arc<Inner<K, S>>,
    call: Arc<Call>,
    keys: Vec<Stored<K>>,
    /// Of the keys, with their hashes for [`Inflight::end`](super::inflight::Inflight::end).
    slots: Vec<(u64, CallSlot)>,
    time_to_live: Option<Duration>,
    /// That of the core when the call was made: nothing is stored if all was invalidated since.
    epoch: u64,
    /// When the call was made, for the second tier.
    #[cfg(feature = "tier")]
    era: crate::embedding::era::Era,
    /// The loads inside which this one was asked for.
    ancestry: Ancestry,
    /// The span in which it was asked for.
    parent: Parent,
}

impl<K: EmbeddingKey, S> Leader<K, S> {
    /// A call without keys yet, that runs in the future of `heartbeat` and stores what it loads for
    /// `time_to_live`.
    pub(super) fn new(
        inner: &Arc<Inner<K, S>>,
        heartbeat: Arc<Heartbeat>,
        epoch: u64,
        time_to_live: Option<Duration>,
        ancestry: &Ancestry,
    ) -> Self {
        Self {
            inner: Arc::clone(inner),
            call: Arc::new(Call::new(heartbeat, inner.load_timeout)),
            keys: Vec::new(),
            slots: Vec::new(),
            time_to_live,
            epoch,
            #[cfg(feature = "tier")]
            era: inner.eras.current(),
            ancestry: ancestry.clone(),
            parent: Parent::current(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The place for the next key.
    pub(super) fn slot(&self) -> CallSlot {
        CallSlot::new(&self.call, self.keys.len())
    }

    /// Notes that this call begins after `earlier` has ended, in the same future.
    pub(super) fn comes_after(&self, earlier: &Self) -> Option<Waits> {
        Ancestry::default().within(self.call.id()).wait_for(earlier.call.id())
    }

    /// A key that was claimed for `slot`, which [`slot`](Self::slot) has made.
    pub(super) fn take(&mut self, key: Stored<K>, hash: u64, slot: CallSlot) {
        self.call.want();
        self.keys.push(key);
        self.slots.push((hash, slot));
    }

    /// All its keys fail with the same error.
    pub(super) fn fail(mut self, error: &CacheError) {
        let answers = same(self.keys.len(), error);
        self.end(CallResult::Answered(answers.into()));
    }

    fn end(&mut self, result: CallResult) {
        // The result stands first: those that joined until now have it, and those that come now join
        // no more.
        self.call.record(result);
        for (hash, slot) in self.slots.drain(..) {
            self.inner.inflight.end(hash, &slot);
        }
        self.call.wake();
    }
}

impl<K: EmbeddingKey, S> Drop for Leader<K, S> {
    fn drop(&mut self) {
        self.end(CallResult::Abandoned);
    }
}

impl<K: EmbeddingKey, S: BuildHasher> Leader<K, S> {
    /// Makes the call in a task of its own; it waits for a permit, unless it is part of another load.
    pub(super) async fn run_owned<Fut>(self, embed: Fut)
    where
        Fut: Future<Output: IntoEmbeddings>,
    {
        let call = Arc::clone(&self.call);
        call.heartbeat().around(self.run(embed, true)).await;
    }

    /// Makes the call, stores what it answers, and lets everyone know.
    ///
    /// `limited` waits until fewer than the allowed number of calls are under way.
    pub(super) async fn run<Fut>(mut self, embed: Fut, limited: bool)
    where
        Fut: Future<Output: IntoEmbeddings>,
    {
        let (inner, call) = (Arc::clone(&self.inner), Arc::clone(&self.call));
        // No more keys are claimed.
        call.unwant();
        if !self.ancestry.is_empty() {
            call.hurry();
        }
        let asked = self.keys.len();
        let ancestry = self.ancestry.within(call.id());
        let parent = self.parent.clone();
        let work = async {
            if limited && let Some(permit) = inner.permits.acquire(&call).await {
                call.keep(permit);
            }
            let started = Instant::now();
            // The conversion may be the caller's code as well: an error type's `Into`.
            let embedded = async move { embed.await.into_embeddings(asked) };
            let embedded = inner.observer.span(asked, parent, ancestry.scope(embedded));
            (catching(embedded).await, started.elapsed())
        };
        let Some((answers, took)) = call.run(work).await else { return };
        let mut answers = match answers {
            Ok(answers) => answers,
            Err(message) => same(asked, &ErrorKind::LoadPanicked { message }.into()),
        };
        // What is left is not the model's work.
        call.release_permit();
        self.store(&mut answers).await;
        inner.observer.loaded(&answers, took);
        self.end(CallResult::Answered(answers.into()));
    }

    /// Stores the good answers and turns those that may not be stored into errors. An answer that
    /// is good but finds no room is delivered all the same.
    async fn store(&mut self, answers: &mut [Answer]) {
        let keys = std::mem::take(&mut self.keys);
        let mut pace = Pace::default();
        for (step, ((key, answer), (_, slot))) in
            keys.into_iter().zip(answers).zip(&self.slots).enumerate()
        {
            if step % GROUP == GROUP - 1 {
                pace.step().await;
            }
            let Ok(vector) = answer else { continue };
            #[cfg(feature = "tier")]
            if let Some(tier) = &self.inner.tier {
                *vector = tier.rounded(vector.clone());
            }
            if let Err(kind) =
                self.inner.admission.check(vector, |model| K::belongs_to_model(&key, model))
            {
                let refused = CacheError::from(kind);
                self.inner.core.count_refusal(&key, &refused);
                *answer = Err(refused);
                continue;
            }
            #[cfg(feature = "tier")]
            let of_tier = self.inner.tier.as_ref().map(|_| K::from_stored(&key));
            let entry = Some((key, vector.clone().into_shared()));
            let condition = Condition { epoch: self.epoch, superseded: Some(slot.superseded()) };
            let options = InsertOptions {
                time_to_live: self.time_to_live,
                condition: Some(condition),
                ..InsertOptions::default()
            };
            // What was refused has been counted; the caller has the vector. A panic of the eviction
            // listener comes after it is stored: it is no reason to lose what the model answered.
            let stored = catching(self.inner.insert(entry, options, None)).await;
            #[cfg(feature = "tier")]
            if let (Some(tier), Some(key)) = (&self.inner.tier, of_tier) {
                // What is newer goes there by itself. What found no room here has the more use there.
                if !matches!(&stored, Ok(Err(error)) if error.is_superseded()) {
                    let cache = crate::embedding::EmbeddingCache { inner: Arc::clone(&self.inner) };
                    let components = vector.clone().into_shared();
                    tier.write(&cache, &key, &components, self.time_to_live, &self.era);
                }
            }
            drop(stored);
        }
    }
}
