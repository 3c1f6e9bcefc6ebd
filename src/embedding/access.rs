//! Access to one key: get, put, remove, with and without a deadline.

use std::borrow::Borrow;
use std::hash::BuildHasher;
use std::ops::ControlFlow::{self, Break, Continue};
use std::pin::Pin;
use std::time::Duration;

use crate::core::{CONTENDED, Forever, InsertOptions, Try, Wait};
use crate::error::{CacheError, ErrorKind};
use crate::vector::EmbeddingVector;

use super::key::names::ModelName;
use super::{Components, EmbeddingCache, EmbeddingKey, Inner, Stored};

impl<K: EmbeddingKey, S: BuildHasher> EmbeddingCache<K, S> {
    /// The embedding of `key`, which counts as a use of the entry and as a hit or a miss.
    ///
    /// The read lock of one shard; `O(1)`; allocates nothing, unless another thread has the lock:
    /// waiting for it does.
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it has changed nothing.
    pub async fn get(&self, key: &K) -> Option<EmbeddingVector> {
        // Not a `match`: what it looks at would be part of the future.
        if let Some(found) = self.inner.lookup(key, Try) {
            return found;
        }
        // Hardly ever: in a box, so that not every call has room for it to move.
        Box::pin(self.get_until(key, None)).await.flatten()
    }

    /// Stores the embedding of `key`, replacing one that is there. The key itself is not stored, but
    /// its compact form: it may be given by value or by reference, and a clone is never needed.
    ///
    /// The write lock of one shard; `O(1)` amortized. A key that has no compact form is copied; a
    /// `Vec<f32>` is copied into a shared allocation, an [`EmbeddingVector`] or an `Arc<[f32]>` is not. Entries
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
        key: impl Borrow<K>,
        embedding: impl Into<EmbeddingVector>,
    ) -> Result<(), CacheError> {
        #[cfg(feature = "tier")]
        if self.inner.tier.is_some() {
            return Box::pin(self.put_in_both(key.borrow(), embedding.into(), None, None)).await;
        }
        let waiting = match self.put_at_once(
            key.borrow(),
            embedding.into(),
            InsertOptions::default(),
            None,
        ) {
            Break(done) => return done,
            Continue(waiting) => waiting,
        };
        waiting.await
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
        key: impl Borrow<K>,
        embedding: impl Into<EmbeddingVector>,
        time_to_live: Duration,
    ) -> Result<(), CacheError> {
        #[cfg(feature = "tier")]
        if self.inner.tier.is_some() {
            let own = Some(time_to_live);
            return Box::pin(self.put_in_both(key.borrow(), embedding.into(), own, None)).await;
        }
        let options =
            InsertOptions { time_to_live: Some(time_to_live), ..InsertOptions::default() };
        let waiting = match self.put_at_once(key.borrow(), embedding.into(), options, None) {
            Break(done) => return done,
            Continue(waiting) => waiting,
        };
        waiting.await
    }

    /// [`get`](Self::get) that gives up after `wait`; zero tries once.
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
    /// # use std::time::Duration;
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// let key = CacheKey::new("9f86d081", "e5-base@1");
    /// assert_eq!(cache.try_get_for(&key, Duration::from_millis(5)).await?, None);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub async fn try_get_for(
        &self,
        key: &K,
        wait: Duration,
    ) -> Result<Option<EmbeddingVector>, CacheError> {
        if let Some(found) = self.inner.lookup(key, Try) {
            return Ok(found);
        }
        Box::pin(self.get_until(key, Some(wait))).await.ok_or_else(|| {
            let error = ErrorKind::Timeout { operation: "get", waited: wait }.into();
            self.inner.core.count_refusal(&key.probe(), &error);
            error
        })
    }

    /// [`put`](Self::put) that gives up after `wait`; zero tries once.
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
    /// # use std::time::Duration;
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// let key = CacheKey::new("9f86d081", "e5-base@1");
    /// match cache.try_put_for(key, [0.6, 0.8], Duration::from_millis(5)).await {
    ///     Ok(()) => {}
    ///     Err(error) if error.is_timeout() => drop(error.into_vector()), // not stored; here it is
    ///     Err(error) => return Err(error),
    /// }
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub async fn try_put_for(
        &self,
        key: impl Borrow<K>,
        embedding: impl Into<EmbeddingVector>,
        wait: Duration,
    ) -> Result<(), CacheError> {
        #[cfg(feature = "tier")]
        if self.inner.tier.is_some() {
            return Box::pin(self.put_in_both(key.borrow(), embedding.into(), None, Some(wait)))
                .await;
        }
        let waiting = match self.put_at_once(
            key.borrow(),
            embedding.into(),
            InsertOptions::default(),
            Some(wait),
        ) {
            Break(done) => return done,
            Continue(waiting) => waiting,
        };
        waiting.await
    }

    /// [`try_get_for`](Self::try_get_for) in milliseconds.
    ///
    /// # Errors
    ///
    /// As [`try_get_for`](Self::try_get_for).
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
        self.try_get_for(key, Duration::from_millis(timeout_ms)).await
    }

    /// [`try_put_for`](Self::try_put_for) in milliseconds.
    ///
    /// # Errors
    ///
    /// As [`try_put_for`](Self::try_put_for).
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it has stored nothing; the vector is dropped with it.
    ///
    /// ```
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// cache.put_with_timeout(CacheKey::new("9f86d081", "e5-base@1"), [0.6, 0.8], 5).await?;
    /// assert_eq!(cache.len(), 1);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub async fn put_with_timeout(
        &self,
        key: impl Borrow<K>,
        embedding: impl Into<EmbeddingVector>,
        timeout_ms: u64,
    ) -> Result<(), CacheError> {
        self.try_put_for(key, embedding, Duration::from_millis(timeout_ms)).await
    }

    /// Gives the embedding of `key`, if it is alive, another time to live, which begins now, and says
    /// whether there was one; zero means expired at once. That is no use of it: the order of eviction
    /// stays as it is. The write lock of one shard; `O(log n)` in the entries with a time-to-live of
    /// their own.
    ///
    /// # Errors
    ///
    /// [`CacheError::is_invalid_ttl`] if `ttl` is over 292 years, less what stale vectors are kept
    /// beyond it: nothing has changed.
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it has changed nothing.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// let key = CacheKey::new("9f86d081", "e5-base@1");
    /// cache.put(key.clone(), [0.6, 0.8]).await?;
    /// assert!(cache.set_ttl(&key, Duration::ZERO).await?);
    /// assert_eq!(cache.get(&key).await, None);
    /// assert!(!cache.set_ttl(&key, Duration::from_secs(60)).await?);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub async fn set_ttl(&self, key: &K, ttl: Duration) -> Result<bool, CacheError> {
        let Inner { core, waiters, .. } = &*self.inner;
        let probe = key.probe();
        waiters.wait(|wait| core.set_ttl_with(&probe, ttl, wait).transpose()).await
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
        self.inner.supersede(key);
        let removed = waiters.wait(|wait| core.remove_with(&probe, wait, |_| true)).await;
        removed.map(|components| self.inner.vector(components))
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
    // Always: a call would return the vector through memory, where the core's is in two registers.
    #[inline(always)]
    pub fn get_blocking(&self, key: &K) -> Option<EmbeddingVector> {
        self.inner.lookup(key, Forever).flatten()
    }

    /// [`put`](Self::put) for threads outside an async runtime: waits for the lock.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    pub fn put_blocking(
        &self,
        key: impl Borrow<K>,
        embedding: impl Into<EmbeddingVector>,
    ) -> Result<(), CacheError> {
        let (key, vector) = (key.borrow(), embedding.into());
        #[cfg(feature = "tier")]
        if let Some(mut both) = self.both() {
            let vector = both.rounded(vector);
            both.note(0, key, &vector, None);
            let result = [self.put_in_first_blocking(key, vector)];
            both.end(&result);
            let [result] = result;
            return result;
        }
        self.put_in_first_blocking(key, vector)
    }

    #[inline]
    fn put_in_first_blocking(&self, key: &K, vector: EmbeddingVector) -> Put {
        let mut entry = self.entry(key, vector)?;
        // No closure: it would be given the entry where all goes well, too.
        match self.inner.core.insert_with(&mut entry, InsertOptions::default(), Forever) {
            Ok(()) => Ok(()),
            Err(error) => Err(self.inner.refused(error, entry)),
        }
    }

    /// A put that the second tier is told of, once the first has taken it.
    #[cfg(feature = "tier")]
    async fn put_in_both(
        &self,
        key: &K,
        vector: EmbeddingVector,
        time_to_live: Option<Duration>,
        limit: Option<Duration>,
    ) -> Put {
        let Some(mut both) = self.both() else { return Ok(()) };
        let vector = both.rounded(vector);
        both.note(0, key, &vector, time_to_live);
        let options = InsertOptions { time_to_live, ..InsertOptions::default() };
        let result = [match self.put_at_once(key, vector, options, limit) {
            Break(done) => done,
            Continue(waiting) => waiting.await,
        }];
        both.end(&result);
        let [result] = result;
        result
    }

    /// The tries of a get after the first; `None` if the lock was not had within `limit`.
    async fn get_until(&self, key: &K, limit: Option<Duration>) -> Option<Option<EmbeddingVector>> {
        let Inner { core, waiters, .. } = &*self.inner;
        let probe = key.probe();
        let attempt = |wait| core.lookup(&probe, wait);
        let found = waiters.wait_in_slices(limit, attempt).await?;
        Some(found.map(|components| self.inner.vector(components)))
    }

    /// The first try of a put, which nearly always is the last; then those that it takes to go on, in
    /// a box, so that not every call has room for them to move.
    #[inline]
    fn put_at_once(
        &self,
        key: &K,
        vector: EmbeddingVector,
        options: InsertOptions<'static>,
        limit: Option<Duration>,
    ) -> ControlFlow<Put, Pin<Box<impl Future<Output = Put>>>> {
        let mut entry = match self.entry(key, vector) {
            Ok(entry) => entry,
            Err(error) => return Break(Err(error)),
        };
        match self.inner.core.insert_with(&mut entry, options, Try) {
            Ok(()) => Break(Ok(())),
            Err(error) if error.is_timeout() || error.is_contended() => {
                Continue(Box::pin(self.inner.insert_until(entry, options, limit)))
            }
            Err(error) => Break(Err(self.inner.refused(error, entry))),
        }
    }

    /// An entry that is about to be stored, if it may be; its key is superseded then.
    // Always: a call returns the entry through memory, and the key would be moved once more.
    #[inline(always)]
    fn entry(&self, key: &K, vector: EmbeddingVector) -> Result<Entry<K>, CacheError> {
        let of_model = |model: &ModelName| {
            key.to_stored().is_ok_and(|stored| K::belongs_to_model(&stored, model))
        };
        if let Err(kind) = self.inner.admission.check(&vector, of_model) {
            return Err(self.not_admitted(key, kind.into()).giving_back(vector));
        }
        let entry = match key.usual() {
            Some(usual) => Some((K::stored_usual(usual), vector.into_shared())),
            None => self.unusual_entry(key, vector)?,
        };
        self.inner.supersede(key);
        Ok(entry)
    }

    #[cold]
    #[inline(never)]
    fn unusual_entry(&self, key: &K, vector: EmbeddingVector) -> Result<Entry<K>, CacheError> {
        match key.to_stored() {
            Ok(stored) => Ok(Some((stored, vector.into_shared()))),
            Err(error) => Err(self.not_admitted(key, error).giving_back(vector)),
        }
    }

    /// The stored form of a key, if that and `vector` may be stored.
    pub(super) fn admit(&self, key: &K, vector: &EmbeddingVector) -> Result<Stored<K>, CacheError> {
        let stored = match key.to_stored() {
            Ok(stored) => stored,
            Err(error) => return Err(self.not_admitted(key, error)),
        };
        let of_model = |model: &ModelName| K::belongs_to_model(&stored, model);
        match self.inner.admission.check(vector, of_model) {
            Ok(()) => Ok(stored),
            Err(kind) => Err(self.not_admitted(key, kind.into())),
        }
    }

    #[cold]
    fn not_admitted(&self, key: &K, error: CacheError) -> CacheError {
        self.inner.core.count_refusal(&key.probe(), &error);
        error
    }
}

impl<K: EmbeddingKey, S> Inner<K, S> {
    /// Supersedes the load of a key that is about to be written, if there is one. One relaxed load
    /// while nothing is being loaded.
    #[inline]
    pub(super) fn supersede(&self, key: &K) {
        if self.inflight.len() > 0 {
            self.inflight.supersede(&key.probe());
        }
    }
}

impl<K: EmbeddingKey, S: BuildHasher> Inner<K, S> {
    /// The vector of `key`; `None` if the lock was not had.
    // Always: as the lookup of the core, which this is.
    #[inline(always)]
    fn lookup<W: Wait>(&self, key: &K, wait: W) -> Option<Option<EmbeddingVector>> {
        let Some(probe) = key.usual() else { return self.lookup_unusual(key, wait) };
        let found = self.core.lookup(&probe, wait)?;
        Some(found.map(|components| self.vector(components)))
    }

    #[cold]
    #[inline(never)]
    fn lookup_unusual<W: Wait>(&self, key: &K, wait: W) -> Option<Option<EmbeddingVector>> {
        let found = self.core.lookup(&key.probe(), wait)?;
        Some(found.map(|components| self.vector(components)))
    }

    /// Stores an entry that was admitted; waits for locks at most `limit`.
    pub(super) async fn insert(
        &self,
        mut entry: Entry<K>,
        options: InsertOptions<'_>,
        limit: Option<Duration>,
    ) -> Put {
        match self.core.insert_with(&mut entry, options, Try) {
            Ok(()) => Ok(()),
            Err(error) if error.is_timeout() || error.is_contended() => {
                self.insert_until(entry, options, limit).await
            }
            Err(error) => Err(self.refused(error, entry)),
        }
    }

    /// The tries after the first.
    async fn insert_until(
        &self,
        mut entry: Entry<K>,
        options: InsertOptions<'_>,
        limit: Option<Duration>,
    ) -> Put {
        let mut contended = 0;
        let attempt = |wait| match self.core.insert_with(&mut entry, options, wait) {
            Ok(()) => Some(Ok(())),
            Err(error) => {
                contended += u32::from(error.is_contended());
                let again = error.is_timeout() || error.is_contended() && contended < CONTENDED;
                (!again).then_some(Err(error))
            }
        };
        match self.waiters.wait_in_slices(limit, attempt).await {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(self.refused(error, entry)),
            None => {
                let waited = limit.unwrap_or(Duration::MAX);
                let error = ErrorKind::Timeout { operation: "put", waited }.into();
                Err(self.refused(error, entry))
            }
        }
    }

    /// Counts an insert that failed, and gives the vector back.
    #[cold]
    fn refused(&self, error: CacheError, entry: Entry<K>) -> CacheError {
        let Some((stored, components)) = entry else {
            unreachable!("a refused insert leaves its entry")
        };
        self.core.count_refusal(&stored, &error);
        error.giving_back(components.into())
    }
}

/// The outcome of a put.
type Put = Result<(), CacheError>;

/// An entry on its way into the core, which takes it and leaves there what it replaced.
type Entry<K> = Option<(Stored<K>, Components)>;
