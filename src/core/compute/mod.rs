//! Values that are computed where they are missing: by one thread for each key, for which the others
//! that ask wait.
//!
//! [`inflight`] knows what is being computed, [`circle`] which thread waits for which. Neither is
//! looked at by a get that hits, and no lock of a shard is held while the caller's closure runs.

mod circle;
mod inflight;

use std::convert::Infallible;
use std::error::Error;
use std::hash::{BuildHasher, Hash};

use equivalent::Equivalent;

use crate::error::{CacheError, ErrorKind};

use super::shard::Forever;
use super::{Condition, InsertOptions, ShardedCache};

pub(super) use inflight::Inflight;
use inflight::Role;

/// Why there is no value.
enum Failure<E> {
    /// The computation waits for itself.
    Circle,
    /// What the caller's closure answered.
    Compute(E),
}

impl<K, V, S> ShardedCache<K, V, S>
where
    K: Hash + Eq,
    V: Clone,
    S: BuildHasher,
{
    /// The value of `key`; if there is none, that which `compute` returns, which is stored with the
    /// time-to-live of the cache.
    ///
    /// Of all threads that ask for a missing key at the same time one calls its closure; the others
    /// wait and get a clone of the same value, also if it could not be stored. If the closure panics,
    /// the panic goes on in the thread that called it, and the next of those that wait calls its own.
    /// `compute` runs with no lock held. It may use the cache, and may take as long as it likes.
    ///
    /// A hit is a [`get`](Self::get) and costs nothing more; `key` is a borrowed form, of which an
    /// owned key is made only to compute. A miss counts as one miss, whoever computes. The value is
    /// handed out but not stored if the cache refuses it (too large, or no room in a bounded number
    /// of tries: counted in [`rejected`](crate::CacheStats::rejected)), or if something newer came
    /// while it was computed: an insert of the key, a removal, an invalidation. A call that
    /// begins after a [`remove`](Self::remove) or an invalidation gets no value whose computation began
    /// before it.
    ///
    /// The thread is blocked while it waits. In async code use
    /// [`EmbeddingCache::get_or_embed`](crate::EmbeddingCache::get_or_embed).
    ///
    /// # Errors
    ///
    /// [`CacheError::is_recursive`] if the thread would wait for itself: `compute` asks for its own
    /// key, or for a key that another thread computes which waits for this one, in this cache or over
    /// several. At least one thread of such a circle gets the error, and nobody waits for ever. Seen
    /// are threads that wait in this method; a closure that waits for a thread in another way (by
    /// `join`, say), which in turn asks for the key of that closure, does wait for ever.
    ///
    /// ```
    /// # use embedding_cache::ShardedCache;
    /// let cache = ShardedCache::<String, u64>::new(10);
    /// assert_eq!(cache.get_or_insert_with("four", || 2 + 2)?, 4);
    /// assert_eq!(cache.get_or_insert_with("four", || unreachable!("it is there"))?, 4);
    ///
    /// // A value may be made of others, but not of itself.
    /// let circle = cache.get_or_insert_with("five", || {
    ///     let five = cache.get_or_insert_with("five", || 5);
    ///     assert!(five.unwrap_err().is_recursive());
    ///     6
    /// });
    /// assert_eq!(circle?, 6);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// ```
    pub fn get_or_insert_with<Q>(
        &self,
        key: &Q,
        compute: impl FnOnce() -> V,
    ) -> Result<V, CacheError>
    where
        Q: Hash + Equivalent<K> + ToOwned<Owned = K> + ?Sized,
    {
        if let Some(value) = self.get(key) {
            return Ok(value);
        }
        self.compute(key, || Ok::<_, Infallible>(compute())).map_err(|failure| match failure {
            Failure::Circle => ErrorKind::Recursive.into(),
            Failure::Compute(never) => match never {},
        })
    }

    /// [`get_or_insert_with`](Self::get_or_insert_with) for a closure that may fail. Its error
    /// is stored nowhere: only the caller whose closure failed gets it, and the next of the threads
    /// that wait calls its own closure.
    ///
    /// # Errors
    ///
    /// [`CacheError::is_load_failed`] if `compute` failed, whose error is then the
    /// [`source`](std::error::Error::source), unless it is a [`CacheError`] itself, which comes as it
    /// is; [`CacheError::is_recursive`] as for [`get_or_insert_with`](Self::get_or_insert_with).
    ///
    /// ```
    /// # use embedding_cache::ShardedCache;
    /// let cache = ShardedCache::<String, u64>::new(10);
    /// let parse = |text: &str| cache.try_get_or_insert_with(text, || text.parse::<u64>());
    /// assert_eq!(parse("12")?, 12);
    /// let error = parse("twelve").unwrap_err();
    /// assert!(error.is_load_failed());
    /// assert_eq!(error.to_string(), "loading failed: invalid digit found in string");
    /// assert!(!cache.contains_key("twelve"));
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// ```
    pub fn try_get_or_insert_with<Q, E>(
        &self,
        key: &Q,
        compute: impl FnOnce() -> Result<V, E>,
    ) -> Result<V, CacheError>
    where
        Q: Hash + Equivalent<K> + ToOwned<Owned = K> + ?Sized,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        if let Some(value) = self.get(key) {
            return Ok(value);
        }
        self.compute(key, compute).map_err(|failure| match failure {
            Failure::Circle => ErrorKind::Recursive.into(),
            Failure::Compute(error) => error.into().into(),
        })
    }

    #[cold]
    #[inline(never)]
    fn compute<Q, E>(
        &self,
        key: &Q,
        compute: impl FnOnce() -> Result<V, E>,
    ) -> Result<V, Failure<E>>
    where
        Q: Hash + Equivalent<K> + ToOwned<Owned = K> + ?Sized,
    {
        let at = self.place(key);
        // Each round ends with the call of another thread that has failed. There are no more of these
        // than callers.
        loop {
            let epoch = self.epoch();
            let leader = match self.inflight.enter(at, key, epoch) {
                Role::Lead(leader) => leader,
                Role::Wait(call) => match call.wait() {
                    Ok(Some(value)) => return Ok(value),
                    Ok(None) => continue,
                    Err(_) => return Err(Failure::Circle),
                },
            };
            // The call before this one may have ended since this thread has looked.
            if let Some(value) = self.peek(key) {
                leader.finish(value.clone());
                return Ok(value);
            }
            let value = compute().map_err(Failure::Compute)?;
            let superseded = Some(leader.superseded());
            let condition = Some(Condition { epoch, superseded });
            let options = InsertOptions { condition, ..InsertOptions::default() };
            let mut entry = Some((key.to_owned(), value.clone()));
            // A refusal is counted; those that asked for the value have it all the same.
            if let Err(error) = self.insert_uncounted(&mut entry, options, Forever) {
                self.count_refusal(key, &error);
            }
            drop(entry);
            leader.finish(value.clone());
            return Ok(value);
        }
    }
}
