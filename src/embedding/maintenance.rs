//! What is done to many entries: cleanup, invalidation, going through them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use crate::core::Step;
use crate::error::{CacheError, ErrorKind};
use crate::timer::Interval;
use crate::vector::EmbeddingVector;

use super::key::names::{ModelName, TenantName};
use super::load::call::catching;
use super::wait::Pace;
use super::{Components, EmbeddingCache, EmbeddingKey, Inner, Stored};

impl<K: EmbeddingKey, S> EmbeddingCache<K, S> {
    /// Removes expired entries and returns how many. A shard whose cleanup guard is taken is
    /// skipped: it is being cleaned up.
    ///
    /// Takes the write lock of one shard at a time for at most 64 entries, hands it to waiting
    /// threads in between, and yields to other tasks every few hundred microseconds.
    /// `O(expired + shards)`. Drops as well what a cancelled [`clear`](Self::clear) left behind.
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it has removed some of the expired entries.
    ///
    /// ```
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::new(100, 0, 10); // expired at once
    /// let key = CacheKey::new("9f86d081", "e5-base@1");
    /// cache.put(key, [0.6, 0.8]).await?;
    /// assert_eq!(cache.cleanup_expired_safe().await, 1);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub async fn cleanup_expired_safe(&self) -> usize {
        let mut cleanup = self.inner.core.start_cleanup();
        let removed = self.inner.sweep(|slice| cleanup.step_slice(slice)).await;
        cleanup.end();
        removed
    }

    /// Removes everything; [`invalidate_all`](Self::invalidate_all) without the count.
    ///
    /// # Cancel safety
    ///
    /// As [`invalidate_all`](Self::invalidate_all).
    ///
    /// ```
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// let key = CacheKey::new("9f86d081", "e5-base@1");
    /// cache.put(key, [0.6, 0.8]).await?;
    /// cache.clear().await;
    /// assert_eq!(cache.size().await, 0);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub async fn clear(&self) {
        self.invalidate_all().await;
    }

    /// Removes everything and returns how many entries that were.
    ///
    /// It takes effect at one instant, whatever the cache holds: from then on no caller is served what
    /// was stored before, and what is being loaded is delivered to its callers but not stored.
    /// Readers pay one comparison for this. Then memory is given back: each shard hands over what it
    /// held, in constant time under its lock, and the entries are dropped 64 at a time; yields to
    /// other tasks every few hundred microseconds.
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it has invalidated everything. Later writes give the memory back, up to
    /// 64 entries each, and a [`cleanup_expired_safe`](Self::cleanup_expired_safe) all of it; until
    /// then [`info`](Self::info) says how many bytes that are.
    ///
    /// ```
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// let key = CacheKey::new("9f86d081", "e5-base@1");
    /// cache.put(key.clone(), [0.6, 0.8]).await?;
    /// assert_eq!(cache.invalidate_all().await, 1);
    /// assert_eq!(cache.get(&key).await, None);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub async fn invalidate_all(&self) -> usize {
        self.inner.invalidate_all().await
    }

    /// Removes the embeddings of a model, whatever its revision, and returns how many those were:
    /// keys whose `model_version` is `model`, or `model`, `@` and a revision, and a
    /// [`ContentKey`](crate::ContentKey) that was made for it.
    ///
    /// Goes through everything, under the write lock of one shard at a time for at most 64 entries;
    /// yields to other tasks in between. What was being loaded of this model when it began is
    /// delivered to those that asked before, but not stored; loads of other models are not touched.
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it has removed some of them.
    ///
    /// ```
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// cache.put(CacheKey::new("9f86d081", "e5-base@1"), [0.6, 0.8]).await?;
    /// cache.put(CacheKey::new("9f86d081", "e5-large@1"), [0.6, 0.8]).await?;
    /// assert_eq!(cache.invalidate_model("e5-base").await, 1);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub async fn invalidate_model(&self, model: &str) -> usize {
        let model = ModelName::new(model);
        self.inner.remove_named(|key| K::belongs_to_model(key, &model)).await
    }

    /// Removes the embeddings of a tenant and returns how many those were: of keys that a
    /// [`KeySpec`](crate::KeySpec) with that tenant made. A key that merely looks so, by a chance
    /// of one in four billion, is removed as well.
    ///
    /// Otherwise as [`invalidate_model`](Self::invalidate_model).
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it has removed some of them.
    ///
    /// ```
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// let acme = CacheKey::for_model("e5-base").tenant("acme");
    /// cache.put(acme.text("red"), [0.6, 0.8]).await?;
    /// assert_eq!(cache.invalidate_tenant("acme").await, 1);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub async fn invalidate_tenant(&self, tenant: &str) -> usize {
        let tenant = TenantName::new(tenant);
        self.inner.remove_named(|key| K::belongs_to_tenant(key, &tenant)).await
    }

    /// Removes the live entries for which `predicate` holds and returns how many it removed
    /// (expired ones that it came by among them).
    ///
    /// **`predicate` runs under the write lock of a shard**, for up to 64 entries a lock hold; it
    /// must not use this cache. Allocates a key for each entry that it is shown.
    ///
    /// It is asked about each key that is being loaded as well, before anything else and with no lock
    /// held. There is no vector of it yet, so it is shown an empty one: where the predicate looks at
    /// the vector, let it hold for one of 0 dimensions if no load under way may be stored. Otherwise as
    /// [`invalidate_model`](Self::invalidate_model).
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it has removed some of them.
    ///
    /// ```
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// cache.put(CacheKey::new("9f86d081", "e5-base@1"), [0.6, 0.8]).await?;
    /// cache.put(CacheKey::new("9f86d081", "e5-base@2"), [0.6, 0.8, 0.0]).await?;
    /// assert_eq!(cache.invalidate_if(|_, vector| vector.dimensions() == 2).await, 1);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub async fn invalidate_if(
        &self,
        mut predicate: impl FnMut(&K, &EmbeddingVector) -> bool,
    ) -> usize {
        self.inner.eras.end();
        self.supersede_if(&mut predicate);
        let predicate = |key: &Stored<K>, components: &Components| {
            predicate(&K::from_stored(key), &self.inner.vector(components.clone()))
        };
        self.inner.remove_if(predicate).await
    }

    /// Supersedes the loads of the keys that `predicate` holds for. There is no vector to show it yet.
    fn supersede_if(&self, mut predicate: impl FnMut(&K, &EmbeddingVector) -> bool) {
        let none = EmbeddingVector::empty();
        self.inner.inflight.supersede_if(|key| predicate(&K::from_stored(key), &none));
    }

    /// Keeps the live entries for which `keep` holds, removes the others, and returns how many it
    /// removed.
    ///
    /// The reverse of [`invalidate_if`](Self::invalidate_if), and otherwise the same: **`keep` runs
    /// under the write lock of a shard**, for up to 64 entries a lock hold, and must not use this cache.
    /// It is asked about each key that is being loaded as well, first and with no lock held, with an
    /// empty vector, as there is none yet: what it does not keep is delivered but not stored.
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it has removed some of them.
    ///
    /// ```
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// cache.put(CacheKey::new("9f86d081", "old-model"), [0.6, 0.8]).await?;
    /// cache.put(CacheKey::new("9f86d081", "new-model"), [1.0, 0.0]).await?;
    /// assert_eq!(cache.retain(|key, _| key.model_version != "old-model").await, 1);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub async fn retain(&self, mut keep: impl FnMut(&K, &EmbeddingVector) -> bool) -> usize {
        self.invalidate_if(|key, vector| !keep(key, vector)).await
    }
}

impl<K: EmbeddingKey, S> EmbeddingCache<K, S>
where
    S: Send + Sync + 'static,
{
    /// Spawns a task that removes expired entries every `interval`, until the handle or the cache is
    /// dropped. With the feature `metrics` it publishes them as well.
    ///
    /// Without it, expired entries leave when they are looked up, and first when room is needed: it
    /// is memory that it gives back sooner. It holds no strong reference to the cache between two
    /// cleanups, and survives an eviction listener that panics. A cleanup that takes longer than
    /// the interval delays the next.
    ///
    /// # Errors
    ///
    /// [`CacheError::is_configuration`] outside a tokio runtime, or if `interval` is zero.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use embedding_cache::EmbeddingCache;
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// let _cleanup = cache.spawn_cleanup(Duration::from_secs(30))?;
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub fn spawn_cleanup(&self, interval: Duration) -> Result<CleanupHandle, CacheError> {
        if interval.is_zero() {
            return Err(ErrorKind::Zero { what: "the interval of a cleanup" }.into());
        }
        let runtime =
            Handle::try_current().map_err(|_| ErrorKind::NoRuntime { what: "a cleanup" })?;
        let mut ticks = Interval::new(interval);
        let cache = Arc::downgrade(&self.inner);
        let task = runtime.spawn(async move {
            loop {
                ticks.tick().await;
                let Some(inner) = cache.upgrade() else { break };
                let cache = Self { inner };
                // A panic of the listener: the cleanup has done its work all the same.
                drop(catching(cache.cleanup_expired_safe()).await);
                #[cfg(feature = "metrics")]
                cache.publish_metrics();
            }
        });
        Ok(CleanupHandle { task: task.abort_handle() })
    }
}

#[cfg(feature = "metrics")]
impl<K: EmbeddingKey, S> EmbeddingCache<K, S> {
    /// Copies the counts and gauges of the cache to the recorder of the `metrics` facade, under the
    /// cache's [name](super::EmbeddingCacheBuilder::name). Call it before a scrape;
    /// [`spawn_cleanup`](Self::spawn_cleanup) does at its interval. `O(shards)`, no lock.
    ///
    /// Only `embedding_cache_load_seconds`, a histogram with one sample for each model call, is
    /// recorded as it happens. Gets and puts never touch a metric: the cache has counted them.
    ///
    /// | metric | kind | |
    /// |---|---|---|
    /// | `embedding_cache_hits_total`, `_misses_total` | counter | gets |
    /// | `embedding_cache_joins_total` | counter | keys that another call was loading |
    /// | `embedding_cache_loads_total`, `_loaded_total`, `_load_failures_total` | counter | model calls; embeddings they answered; keys they failed |
    /// | `embedding_cache_load_seconds` | histogram | time of a model call |
    /// | `embedding_cache_stale_served_total` | counter | vectors served past their time-to-live |
    /// | `embedding_cache_insertions_total`, `_updates_total`, `_rejected_total`, `_timeouts_total` | counter | puts |
    /// | `embedding_cache_evictions_total` | counter | entries that left; label `cause`: `size`, `weight`, `expired`, `removed` |
    /// | `embedding_cache_entries`, `_bytes`, `_keys_in_flight` | gauge | what is held |
    ///
    /// With a second tier also `embedding_cache_tier_hits_total`, `_misses_total`, `_late_total`,
    /// `_writes_total`, `_write_failures_total`, `_dropped_total`, `_skipped_total` (label `why`),
    /// `_failures_total` (label `kind`) and `_rejected_total` (label `reason`), the gauges
    /// `_queue_bytes`, `_breaker_open` and `_namespace_age_seconds`, and the histogram
    /// `_read_seconds`, as it happens.
    ///
    /// Each has the label `cache`.
    ///
    /// ```
    /// # use embedding_cache::EmbeddingCache;
    /// let cache = EmbeddingCache::builder().max_entries(100).name("documents").build()?;
    /// cache.publish_metrics();
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// ```
    pub fn publish_metrics(&self) {
        self.inner.observer.publish(&self.info());
        #[cfg(feature = "tier")]
        if let Some(tier) = &self.inner.tier {
            tier.guard.publish();
        }
    }
}

impl<K: EmbeddingKey, S> Inner<K, S> {
    pub(super) async fn invalidate_all(&self) -> usize {
        self.eras.end();
        let mut invalidation = self.core.start_invalidation();
        // What is being loaded is not stored from this instant on; now its calls are told, so that
        // those end for which no caller waits.
        self.inflight.supersede_if(|_| true);
        let removed = self.sweep(|slice| invalidation.step_slice(slice)).await;
        invalidation.end();
        removed
    }

    /// Removes the entries whose keys `names` holds for, and supersedes the loads of such keys.
    pub(super) async fn remove_named(&self, names: impl Fn(&Stored<K>) -> bool) -> usize {
        self.eras.end();
        self.inflight.supersede_if(&names);
        self.remove_if(|key, _| names(key)).await
    }

    async fn remove_if(&self, mut predicate: impl FnMut(&Stored<K>, &Components) -> bool) -> usize {
        let mut retain = self.core.start_retain(|key, components| !predicate(key, components));
        let removed = self.sweep(|slice| retain.step_slice(slice)).await;
        retain.end();
        removed
    }

    /// Takes a sweep step by step to its end, and returns how many entries it removed.
    async fn sweep(&self, mut step: impl FnMut(Duration) -> Step) -> usize {
        let mut removed = 0;
        let mut pace = Pace::default();
        loop {
            let attempt = |slice| match step(slice) {
                Step::Locked => None,
                step => Some(step),
            };
            match self.waiters.until(None, attempt).await {
                Some(Step::Removed(bite)) => removed += bite,
                _ => break,
            }
            pace.step().await;
        }
        removed
    }
}

/// A background cleanup, from [`EmbeddingCache::spawn_cleanup`]. Dropping it stops the cleanup.
#[must_use = "dropping it stops the cleanup"]
pub struct CleanupHandle {
    task: AbortHandle,
}

impl CleanupHandle {
    /// Whether the cleanup has ended: its cache was dropped, or its runtime shut down.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.task.is_finished()
    }
}

impl Drop for CleanupHandle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for CleanupHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CleanupHandle").field("is_finished", &self.is_finished()).finish()
    }
}
