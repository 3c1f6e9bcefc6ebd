//! Entries handed out to the program, and taken back with their lives.

use std::fmt;
use std::hash::BuildHasher;
use std::time::Duration;

use crate::core::{ExportIter, InsertOptions};
use crate::error::CacheError;
use crate::vector::EmbeddingVector;

use super::key::repr::KeyRepr;
use super::{Components, EmbeddingCache, EmbeddingKey, Stored};

impl<K: EmbeddingKey, S> EmbeddingCache<K, S> {
    /// All live entries, the most used first: key, vector, and how long it will still be served
    /// (`None`: for ever). For a program that writes them down in a form of its own;
    /// [`put_many_with_ttl`](Self::put_many_with_ttl) takes them back.
    ///
    /// Counts as no use. Begins with a list of all entries, `O(entries × log(entries))` and 12 bytes
    /// for each; then takes the read lock of one shard at a time for at most 64 entries. It blocks:
    /// on a large cache call it from [`spawn_blocking`](tokio::task::spawn_blocking). Not a snapshot
    /// of one instant: what comes, leaves or is replaced meanwhile may be seen or not, or twice.
    ///
    /// ```
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// cache.put(CacheKey::new("9f86d081", "e5-base@1"), [0.6, 0.8]).await?;
    /// let other = EmbeddingCache::builder().max_entries(100).build()?;
    /// let results = other.put_many_with_ttl(cache.export()).await;
    /// assert!(results.iter().all(Result::is_ok));
    /// assert_eq!(other.len(), 1);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub fn export(&self) -> Entries<'_, K, S> {
        Entries { cache: self, entries: self.inner.core.start_export().into_iter() }
    }
}

impl<K: EmbeddingKey, S: BuildHasher> EmbeddingCache<K, S> {
    /// [`put_many`](Self::put_many) with a time-to-live for each entry, or that of the cache for
    /// `None`. Zero means expired at once.
    ///
    /// Entries that follow one another with the same time-to-live go in together; one with another
    /// than its neighbours costs what a put costs.
    ///
    /// # Errors
    ///
    /// For each entry as by [`put_with_ttl`](Self::put_with_ttl).
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it has stored some of the entries.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::builder().max_entries(100).build()?;
    /// let keys = ["red", "green"].map(|text| CacheKey::new(text, "toy"));
    /// let [red, green] = keys.clone();
    /// let entries = [(red, [0.6, 0.8], Some(Duration::ZERO)), (green, [0.8, 0.6], None)];
    /// assert!(cache.put_many_with_ttl(entries).await.iter().all(Result::is_ok));
    /// let found = cache.get_many(&keys).await;
    /// assert!(found[0].is_none() && found[1].is_some());
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub async fn put_many_with_ttl<V: Into<EmbeddingVector>>(
        &self,
        entries: impl IntoIterator<Item = (K, V, Option<Duration>)>,
    ) -> Vec<Result<(), CacheError>> {
        // Collected first: the caller's iterator is not held across an await, where it would have to be
        // `Send` for this to be.
        let entries: Vec<(K, V, Option<Duration>)> = entries.into_iter().collect();
        let mut results: Vec<Result<(), CacheError>> = Vec::with_capacity(entries.len());
        let mut run = Run { life: None, admitted: Vec::new(), positions: Vec::new() };
        #[cfg(feature = "tier")]
        let mut both = self.both();
        for (key, vector, life) in entries {
            let vector = vector.into();
            #[cfg(feature = "tier")]
            let vector = match &mut both {
                None => vector,
                Some(both) => {
                    let vector = both.rounded(vector);
                    both.note(results.len(), &key, &vector, life);
                    vector
                }
            };
            if life != run.life || run.admitted.len() == LONGEST_RUN {
                self.put_run(&mut run, &mut results).await;
                run.life = life;
            }
            match self.admit(&key, &vector) {
                Ok(stored) => {
                    self.inner.supersede(&key);
                    run.positions.push(results.len());
                    run.admitted.push((stored, vector.into_shared()));
                    results.push(Ok(()));
                }
                Err(error) => results.push(Err(error.giving_back(vector))),
            }
        }
        self.put_run(&mut run, &mut results).await;
        #[cfg(feature = "tier")]
        if let Some(both) = both {
            both.end(&results);
        }
        results
    }

    async fn put_run(&self, run: &mut Run<K>, results: &mut [Result<(), CacheError>]) {
        if run.admitted.is_empty() {
            return;
        }
        let options = InsertOptions { time_to_live: run.life, ..InsertOptions::default() };
        let stored = self.inner.insert_all(std::mem::take(&mut run.admitted), options).await;
        for (position, result) in run.positions.drain(..).zip(stored) {
            results[position] = result;
        }
    }
}

/// Entries that go in together.
const LONGEST_RUN: usize = 1024;

/// Entries that follow one another with the same time-to-live.
struct Run<K: EmbeddingKey> {
    life: Option<Duration>,
    admitted: Vec<(Stored<K>, Components)>,
    /// Where in the results theirs belong.
    positions: Vec<usize>,
}

/// The entries of a cache, from [`EmbeddingCache::export`].
#[must_use = "it does nothing unless it is iterated"]
pub struct Entries<'a, K: EmbeddingKey, S> {
    cache: &'a EmbeddingCache<K, S>,
    entries: ExportIter<'a, Stored<K>, Components, S>,
}

impl<K: EmbeddingKey, S> Iterator for Entries<'_, K, S> {
    type Item = (K, EmbeddingVector, Option<Duration>);

    fn next(&mut self) -> Option<Self::Item> {
        let (key, components, life) = self.entries.next()?;
        Some((<K as KeyRepr>::from_stored(&key), self.cache.inner.vector(components), life))
    }
}

impl<K: EmbeddingKey, S> fmt::Debug for Entries<'_, K, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entries").finish_non_exhaustive()
    }
}
