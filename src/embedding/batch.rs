//! Access to many keys at once: each shard visited once for a batch of up to 64.

use std::hash::BuildHasher;

use smallvec::SmallVec;

use crate::core::{GROUP, InsertOptions};
use crate::error::{CacheError, InsertError};
use crate::vector::EmbeddingVector;

use super::key::repr::KeyRepr;
use super::wait::Pace;
use super::{Components, EmbeddingCache, EmbeddingKey, Inner, Stored};

impl<K: EmbeddingKey, S: BuildHasher> EmbeddingCache<K, S> {
    /// The embeddings of many keys, in their order, each counted as by [`get`](Self::get).
    ///
    /// Faster than a loop: for each 64 keys, every shard that they need is locked once, and the
    /// memory accesses of one key overlap with those of the next. Yields to other tasks every few
    /// hundred microseconds. `O(keys)`; allocates the result only.
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it has counted some of the keys and changed nothing.
    ///
    /// ```
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// let keys = ["red", "green"].map(|text| CacheKey::new(text, "toy"));
    /// cache.put(keys[1].clone(), [0.6, 0.8]).await?;
    /// let found = cache.get_many(&keys).await;
    /// assert!(found[0].is_none());
    /// assert_eq!(found[1].as_ref().unwrap(), &[0.6, 0.8]);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub async fn get_many(&self, keys: impl AsRef<[K]>) -> Vec<Option<EmbeddingVector>> {
        let keys = keys.as_ref();
        let mut found = Vec::with_capacity(keys.len());
        self.get_each(keys, |vector| found.push(vector)).await;
        found
    }

    /// Calls `push` with the embedding of each key, in their order, with no lock held.
    pub(super) async fn get_each(&self, keys: &[K], mut push: impl FnMut(Option<EmbeddingVector>)) {
        let inner = &*self.inner;
        let mut push = |found: Option<Components>| push(found.map(|found| inner.vector(found)));
        let mut pace = Pace::default();
        for (number, group) in keys.chunks(GROUP).enumerate() {
            if number > 0 {
                pace.step().await;
            }
            let probes: SmallVec<[K::Probe<'_>; GROUP]> =
                group.iter().map(KeyRepr::probe).collect();
            let attempt = |wait| inner.core.get_group(probes.iter(), wait, &mut push).then_some(());
            inner.waiters.wait(attempt).await;
        }
    }

    /// Stores many embeddings, each as by [`put`](Self::put), and returns a result for each in
    /// their order: one that is refused fails alone, and its error gives the vector back. Of two
    /// with the same key the later one stays.
    ///
    /// Faster than a loop: for each 64 entries, every shard that they need is locked once, as long
    /// as few entries must leave to make room. Yields to other tasks every few hundred microseconds.
    /// `O(entries)` amortized.
    ///
    /// # Errors
    ///
    /// For each entry as by [`put`](Self::put).
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it has stored some of the entries.
    ///
    /// ```
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// let results = cache
    ///     .put_many([
    ///         (CacheKey::new("red", "toy"), vec![0.6, 0.8]),
    ///         (CacheKey::new("green", "toy"), vec![f32::NAN, 1.0]),
    ///     ])
    ///     .await;
    /// assert!(results[0].is_ok());
    /// assert!(results[1].as_ref().unwrap_err().is_invalid_vector());
    /// # });
    /// ```
    pub async fn put_many<V: Into<EmbeddingVector>>(
        &self,
        entries: impl IntoIterator<Item = (K, V)>,
    ) -> Vec<Result<(), CacheError>> {
        // Collected first: the caller's iterator is not held across an await, where it would have to be
        // `Send` for this to be.
        let entries: Vec<(K, V)> = entries.into_iter().collect();
        let mut results = Vec::with_capacity(entries.len());
        let mut admitted = Vec::with_capacity(entries.len());
        let mut positions = Vec::with_capacity(entries.len());
        let mut pace = Pace::default();
        #[cfg(feature = "tier")]
        let mut both = self.both();
        for (position, (key, vector)) in entries.into_iter().enumerate() {
            if position % GROUP == GROUP - 1 {
                pace.step().await;
            }
            let vector = vector.into();
            #[cfg(feature = "tier")]
            let vector = match &mut both {
                None => vector,
                Some(both) => {
                    let vector = both.rounded(vector);
                    both.note(results.len(), &key, &vector, None);
                    vector
                }
            };
            match self.admit(&key, &vector) {
                Ok(stored) => {
                    self.inner.supersede(&key);
                    positions.push(results.len());
                    admitted.push((stored, vector.into_shared()));
                    results.push(Ok(()));
                }
                Err(error) => results.push(Err(error.giving_back(vector))),
            }
        }
        let stored = self.inner.insert_all(admitted, InsertOptions::default()).await;
        for (position, result) in positions.into_iter().zip(stored) {
            if position % GROUP == GROUP - 1 {
                pace.step().await;
            }
            results[position] = result;
        }
        #[cfg(feature = "tier")]
        if let Some(both) = both {
            both.end(&results);
        }
        results
    }
}

impl<K: EmbeddingKey, S: BuildHasher> Inner<K, S> {
    /// Stores entries that were admitted; a result for each, in their order.
    pub(super) async fn insert_all(
        &self,
        entries: Vec<(Stored<K>, Components)>,
        options: InsertOptions<'static>,
    ) -> Vec<Result<(), CacheError>> {
        let stored = self.waiters.drive(self.core.start_insert_many(entries, options)).await;
        let mut pace = Pace::default();
        let mut results = Vec::with_capacity(stored.len());
        for result in stored {
            if results.len() % GROUP == GROUP - 1 {
                pace.step().await;
            }
            results.push(result.map_err(give_back));
        }
        results
    }
}

fn give_back<K>(refused: InsertError<K, Components>) -> CacheError {
    let (error, _, components) = refused.into_parts();
    error.giving_back(components.into())
}
