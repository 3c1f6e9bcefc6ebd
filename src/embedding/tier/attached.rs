//! A tier as it is attached to a cache: what a put or a load hands on to it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::embedding::era::Era;
use crate::embedding::{Components, EmbeddingCache, EmbeddingKey, Inner};
use crate::error::CacheError;
use crate::vector::EmbeddingVector;

use super::guard::Guard;
use super::options::SecondTier;
use super::{saved, writer};

type Start<C, K> = fn(&C, &Arc<Guard<K>>);

/// Starts tasks. Pointers, made where it is known that the hasher of the cache may go to another
/// thread: puts and snapshots do not ask for that.
pub(crate) struct Starters<K: EmbeddingKey, S> {
    /// The task that writes.
    pub(super) write: Start<EmbeddingCache<K, S>, K>,
    /// One that asks for the nonces.
    pub(super) refresh: Start<Arc<Inner<K, S>>, K>,
}

/// A tier for a cache that is being made.
pub(crate) struct ToAttach<K: EmbeddingKey, S> {
    pub(crate) second: SecondTier,
    /// `None` once the hasher was exchanged.
    pub(crate) starters: Option<Starters<K, S>>,
}

impl<K: EmbeddingKey, S: Send + Sync + 'static> ToAttach<K, S> {
    pub(crate) fn new(second: SecondTier) -> Self {
        let starters = Starters { write: writer::start, refresh: saved::start_refresh };
        Self { second, starters: Some(starters) }
    }
}

pub(crate) struct Attached<K: EmbeddingKey, S> {
    pub(crate) guard: Arc<Guard<K>>,
    pub(super) starters: Starters<K, S>,
}

impl<K: EmbeddingKey, S> Attached<K, S> {
    pub(crate) fn new(second: SecondTier, starters: Starters<K, S>, name: &str) -> Self {
        Self { guard: Arc::new(Guard::new(second, name)), starters }
    }

    /// What of a vector is kept: itself, unless the tier has less precision.
    pub(crate) fn rounded(&self, vector: EmbeddingVector) -> EmbeddingVector {
        match self.guard.format.rounded(&vector) {
            Some(components) => components.into(),
            None => vector,
        }
    }
}

impl<K: EmbeddingKey, S> Drop for Attached<K, S> {
    fn drop(&mut self) {
        self.guard.ended.notify_one();
    }
}

impl<K: EmbeddingKey, S> fmt::Debug for Attached<K, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attached").finish_non_exhaustive()
    }
}

/// Vectors on their way to both tiers: the second gets what the first has taken.
pub(crate) struct Both<'a, K: EmbeddingKey, S> {
    cache: &'a EmbeddingCache<K, S>,
    attached: &'a Attached<K, S>,
    era: Era,
    /// With the place of its result.
    entries: Vec<(usize, K, Components, Option<Duration>)>,
}

impl<K: EmbeddingKey, S> EmbeddingCache<K, S> {
    /// Begins to store in both tiers, if there is a second: before anything is stored in the first.
    pub(crate) fn both(&self) -> Option<Both<'_, K, S>> {
        let attached = self.inner.tier.as_ref()?;
        let era = self.inner.eras.current();
        Some(Both { cache: self, attached, era, entries: Vec::new() })
    }
}

impl<K: EmbeddingKey, S> Both<'_, K, S> {
    /// As [`Attached::rounded`].
    pub(crate) fn rounded(&self, vector: EmbeddingVector) -> EmbeddingVector {
        self.attached.rounded(vector)
    }

    /// Notes a vector, with its own time-to-live, whose result will be at `place`.
    pub(crate) fn note(
        &mut self,
        place: usize,
        key: &K,
        vector: &EmbeddingVector,
        life: Option<Duration>,
    ) {
        self.entries.push((place, key.clone(), vector.clone().into_shared(), life));
    }
}

impl<K: EmbeddingKey, S: std::hash::BuildHasher> Both<'_, K, S> {
    /// Hands on what the first tier has taken.
    pub(crate) fn end(self, results: &[Result<(), CacheError>]) {
        for (place, key, components, life) in self.entries {
            if results[place].is_ok() {
                self.attached.write(self.cache, &key, &components, life, &self.era);
            }
        }
    }
}

impl<K: EmbeddingKey, S: std::hash::BuildHasher> Attached<K, S> {
    /// Queues a vector that the first tier has; `era` is from before it was loaded or handed in.
    pub(crate) fn write(
        &self,
        cache: &EmbeddingCache<K, S>,
        key: &K,
        components: &Components,
        life: Option<Duration>,
        era: &Era,
    ) {
        writer::enqueue(cache, self, key, components, life, era);
    }
}
