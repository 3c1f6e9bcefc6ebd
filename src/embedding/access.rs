//! Access to one key: get, put, remove, with and without a deadline.

use std::hash::BuildHasher;
use std::time::Duration;

use crate::error::{CacheError, ErrorKind, InsertError};
use crate::sharded::Terms;
use crate::vector::EmbeddingVector;

use super::{Components, EmbeddingCache, EmbeddingKey, Inner, Stored};

/// How often a put that finds all room taken by other writers yields and tries again.
const CONTENDED: u32 = 64;

impl<K: EmbeddingKey, S: BuildHasher> EmbeddingCache<K, S> {
    /// The embedding of `key`, which counts as a use of the entry and as a hit or a miss.
    ///
    /// The read lock of one shard; `O(1)`; allocates nothing.
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it has changed nothing.
    pub async fn get(&self, key: &K) -> Option<EmbeddingVector> {
        let inner = &*self.inner;
        let probe = key.probe();
        // Nearly always the lock is free: then no second future need be set up.
        let found = match inner.core.get_slice(&probe, Duration::ZERO) {
            Some(found) => found,
            None => {
                let attempt = |slice| inner.core.get_slice(&probe, slice);
                inner.waiters.until(None, attempt).await.flatten()
            }
        };
        found.map(|components| inner.vector(components))
    }

    /// Stores the embedding of `key`, replacing one that is there.
    ///
    /// The write lock of one shard; `O(1)` amortized. Allocates the stored key; a `Vec<f32>` is
    /// copied into a shared allocation, an [`EmbeddingVector`] or an `Arc<[f32]>` is not. Entries
    /// that leave to make room are dropped after unlocking.
    ///
    /// # Errors
    ///
    /// Each gives the vector back and leaves what is stored, an old vector of `key` included:
    /// - [`CacheError::is_invalid_vector`] if it is empty or has a NaN or infinite component (see
    ///   [`allow_non_finite`](super::EmbeddingCacheBuilder::allow_non_finite));
    /// - [`CacheError::is_too_large`] if the entry alone is over a limit;
    /// - [`CacheError::is_invalid_key`] if the texts of the key are over 1 MiB together;
    /// - [`CacheError::is_contended`] if other writers held all the room, try after try.
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it has stored nothing; the vector is dropped with it.
    ///
    /// ```
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// let key = CacheKey::new("9f86d081", "e5-base@1");
    /// cache.put(key.clone(), vec![0.6, 0.8]).await?;
    /// let refused = cache.put(key, [f32::NAN]).await.unwrap_err();
    /// assert!(refused.is_invalid_vector());
    /// assert_eq!(refused.to_string(), "component 0 of 1 is NaN; the cache takes finite vectors only");
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub async fn put(
        &self,
        key: K,
        embedding: impl Into<EmbeddingVector>,
    ) -> Result<(), CacheError> {
        self.put_until(&key, embedding.into(), Terms::default(), None).await
    }

    /// [`put`](Self::put) with a time-to-live of its own; zero means expired at once.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put), and [`CacheError::is_invalid_ttl`] if `time_to_live` is over 292
    /// years.
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it has stored nothing; the vector is dropped with it.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::builder().max_entries(100).build()?;
    /// let key = CacheKey::new("9f86d081", "e5-base@1");
    /// cache.put_with_ttl(key.clone(), [0.6, 0.8], Duration::ZERO).await?;
    /// assert_eq!(cache.get(&key).await, None);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub async fn put_with_ttl(
        &self,
        key: K,
        embedding: impl Into<EmbeddingVector>,
        time_to_live: Duration,
    ) -> Result<(), CacheError> {
        let terms = Terms { time_to_live: Some(time_to_live), ..Terms::default() };
        self.put_until(&key, embedding.into(), terms, None).await
    }

    /// [`get`](Self::get) that gives up after `timeout_ms` milliseconds; 0 tries once.
    ///
    /// # Errors
    ///
    /// [`CacheError::is_timeout`] if another thread held the lock of the shard all the time. It
    /// comes within the deadline and a fraction of a millisecond, given that the executor polls.
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it has changed nothing.
    ///
    /// ```
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// let key = CacheKey::new("9f86d081", "e5-base@1");
    /// assert_eq!(cache.get_with_timeout(&key, 5).await?, None);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub async fn get_with_timeout(
        &self,
        key: &K,
        timeout_ms: u64,
    ) -> Result<Option<EmbeddingVector>, CacheError> {
        let Inner { core, waiters, .. } = &*self.inner;
        let (probe, limit) = (key.probe(), Duration::from_millis(timeout_ms));
        match waiters.until(Some(limit), |slice| core.get_slice(&probe, slice)).await {
            Some(found) => Ok(found.map(|components| self.inner.vector(components))),
            None => {
                let error = ErrorKind::Timeout { operation: "get", waited: limit }.into();
                core.count_refusal(&probe, &error);
                Err(error)
            }
        }
    }

    /// [`put`](Self::put) that gives up after `timeout_ms` milliseconds; 0 tries once.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put), and [`CacheError::is_timeout`] if another thread held the lock of the
    /// shard all the time: then the vector was *not* stored and will not be; the error gives it
    /// back.
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it has stored nothing; the vector is dropped with it.
    ///
    /// ```
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// let key = CacheKey::new("9f86d081", "e5-base@1");
    /// match cache.put_with_timeout(key, [0.6, 0.8], 5).await {
    ///     Ok(()) => {}
    ///     Err(error) if error.is_timeout() => drop(error.into_vector()), // not stored; here it is
    ///     Err(error) => return Err(error),
    /// }
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub async fn put_with_timeout(
        &self,
        key: K,
        embedding: impl Into<EmbeddingVector>,
        timeout_ms: u64,
    ) -> Result<(), CacheError> {
        let limit = Some(Duration::from_millis(timeout_ms));
        self.put_until(&key, embedding.into(), Terms::default(), limit).await
    }

    /// Removes the embedding of `key` and returns it, if it was alive. The write lock of one shard;
    /// `O(1)`.
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it has removed nothing.
    ///
    /// ```
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// let key = CacheKey::new("9f86d081", "e5-base@1");
    /// cache.put(key.clone(), [0.6, 0.8]).await?;
    /// assert_eq!(cache.remove(&key).await.unwrap(), [0.6, 0.8]);
    /// assert_eq!(cache.get(&key).await, None);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub async fn remove(&self, key: &K) -> Option<EmbeddingVector> {
        let Inner { core, waiters, .. } = &*self.inner;
        let probe = key.probe();
        let removed = waiters.until(None, |slice| core.remove_slice(&probe, slice)).await;
        removed.flatten().map(|components| self.inner.vector(components))
    }

    /// [`get`](Self::get) for threads outside an async runtime: waits for the lock.
    ///
    /// ```
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// let key = CacheKey::new("9f86d081", "e5-base@1");
    /// cache.put_blocking(key.clone(), [0.6, 0.8])?;
    /// assert_eq!(cache.get_blocking(&key).unwrap(), [0.6, 0.8]);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// ```
    #[must_use]
    #[inline]
    pub fn get_blocking(&self, key: &K) -> Option<EmbeddingVector> {
        let found = self.inner.core.get(&key.probe());
        found.map(|components| self.inner.vector(components))
    }

    /// [`put`](Self::put) for threads outside an async runtime: waits for the lock.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    pub fn put_blocking(
        &self,
        key: K,
        embedding: impl Into<EmbeddingVector>,
    ) -> Result<(), CacheError> {
        let core = &self.inner.core;
        let (stored, components) = self.admit(&key, embedding.into())?;
        core.insert(stored, components).map_err(give_back)
    }

    async fn put_until(
        &self,
        key: &K,
        vector: EmbeddingVector,
        terms: Terms,
        limit: Option<Duration>,
    ) -> Result<(), CacheError> {
        let Inner { core, waiters, .. } = &*self.inner;
        let mut entry = Some(self.admit(key, vector)?);
        let mut contended = 0;
        let mut attempt = |slice| {
            let (stored, components) = entry.take()?;
            let refused = match core.insert_slice(stored, components, terms, slice) {
                Ok(()) => return Some(Ok(())),
                Err(refused) => refused,
            };
            let error = refused.error();
            contended += u32::from(error.is_contended());
            if error.is_timeout() || error.is_contended() && contended < CONTENDED {
                entry = Some(refused.into_entry());
                return None;
            }
            Some(Err(refused))
        };
        // Nearly always the lock is free: then no second future need be set up.
        let outcome = match attempt(Duration::ZERO) {
            None => waiters.until(limit, attempt).await,
            done => done,
        };
        let error = match (outcome, entry) {
            (Some(Ok(())), _) => return Ok(()),
            (Some(Err(refused)), _) => give_back(refused),
            (None, entry) => {
                let waited = limit.unwrap_or(Duration::MAX);
                let error = CacheError::new(ErrorKind::Timeout { operation: "put", waited });
                match entry {
                    Some((_, components)) => error.giving_back(components.into()),
                    None => error,
                }
            }
        };
        core.count_refusal(&key.probe(), &error);
        Err(error)
    }

    /// Lets in what may be stored: the stored forms of the key and of the vector.
    pub(super) fn admit(
        &self,
        key: &K,
        vector: EmbeddingVector,
    ) -> Result<(Stored<K>, Components), CacheError> {
        let admitted = key.to_stored().and_then(|stored| {
            self.inner.admission.check::<K>(&stored, &vector)?;
            Ok(stored)
        });
        match admitted {
            Ok(stored) => Ok((stored, vector.into_shared())),
            Err(error) => {
                self.inner.core.count_refusal(&key.probe(), &error);
                Err(error.giving_back(vector))
            }
        }
    }
}

pub(super) fn give_back<K>(refused: InsertError<K, Components>) -> CacheError {
    let (error, _, components) = refused.into_parts();
    error.giving_back(components.into())
}
