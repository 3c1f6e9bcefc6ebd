//! What a cache with a second tier can do.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use crate::embedding::key::names::TenantName;
use crate::embedding::{EmbeddingCache, EmbeddingKey};
use crate::error::{CacheError, ErrorKind};
use crate::vector::EmbeddingVector;

use super::guard::{clear, refresh};
use super::namespace::Scope;
use super::{reader, writer};

impl<K, S> EmbeddingCache<K, S>
where
    K: EmbeddingKey,
    S: BuildHasher + Send + Sync + 'static,
{
    /// [`get`](Self::get), and where that finds nothing the second tier is asked. What it has is
    /// stored in the first. Without a second tier this is `get`.
    ///
    /// Waits at most the [soft deadline](super::SecondTier::soft_deadline); a tier that fails is a
    /// miss. Allocates where the first tier has nothing.
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it has counted, and what the tier answers is stored all the same.
    pub async fn get_through(&self, key: &K) -> Option<EmbeddingVector> {
        let found = self.get(key).await;
        match &self.inner.tier {
            Some(tier) if found.is_none() => {
                Box::pin(reader::ask(self, tier, &[key])).await.into_iter().next().flatten()
            }
            _ => found,
        }
    }

    /// [`get_many`](Self::get_many), and where that finds nothing the second tier is asked, for all of
    /// it at once; as [`get_through`](Self::get_through).
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it has counted, and what the tier answers is stored all the same.
    pub async fn get_through_many(&self, keys: impl AsRef<[K]>) -> Vec<Option<EmbeddingVector>> {
        let keys = keys.as_ref();
        let mut found = self.get_many(keys).await;
        let Some(tier) = &self.inner.tier else { return found };
        // Each distinct key once.
        let mut places = std::collections::HashMap::<&K, Vec<usize>>::new();
        for (place, key) in keys.iter().enumerate().filter(|&(place, _)| found[place].is_none()) {
            places.entry(key).or_default().push(place);
        }
        if places.is_empty() {
            return found;
        }
        let (missing, places): (Vec<&K>, Vec<_>) = places.into_iter().unzip();
        let answers = Box::pin(reader::ask(self, tier, &missing)).await;
        for (answer, places) in answers.into_iter().zip(places) {
            places.into_iter().for_each(|place| found[place].clone_from(&answer));
        }
        found
    }

    /// Waits until what was stored before is written to the second tier, for `deadline` at most, and
    /// returns how many entries are not: for the end of a process. What could not be written is
    /// counted in the [statistics](super::TierStats), not here.
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it has changed nothing: writing goes on.
    pub async fn tier_flush(&self, deadline: Duration) -> usize {
        match &self.inner.tier {
            Some(tier) => writer::flush(self, &tier.guard, deadline).await,
            None => 0,
        }
    }

    /// [`invalidate_all`](Self::invalidate_all) in both tiers, and so in every process that shares the
    /// second. The number is that of the first tier.
    ///
    /// The first tier is cleared at once. On `Ok` this process never serves what was stored before;
    /// others that are connected stop within the [poll interval](super::SecondTier::poll_interval) and
    /// the hard time-out. One that is cut off serves its own until its life ends.
    ///
    /// # Errors
    ///
    /// [`CacheError::is_tier_failed`]: the first tier was cleared, but not the second, from which the
    /// old vectors come back. To be tried again.
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it has cleared some of the first tier, and perhaps the second.
    pub async fn invalidate_all_through(&self) -> Result<usize, CacheError> {
        let removed = self.invalidate_all().await;
        self.invalidate_in_tier(Scope::All).await?;
        Ok(removed)
    }

    /// [`invalidate_model`](Self::invalidate_model) in both tiers, as
    /// [`invalidate_all_through`](Self::invalidate_all_through). In the second tier all revisions
    /// of the model go: what stands before the first `@` of a [`CacheKey`](crate::CacheKey)'s
    /// `model_version`.
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Cancel safety
    ///
    /// As there.
    pub async fn invalidate_model_through(&self, model: &str) -> Result<usize, CacheError> {
        let removed = self.invalidate_model(model).await;
        self.invalidate_in_tier(Scope::Model(K::model_scope(model))).await?;
        Ok(removed)
    }

    /// [`invalidate_tenant`](Self::invalidate_tenant) in both tiers, as
    /// [`invalidate_all_through`](Self::invalidate_all_through).
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Cancel safety
    ///
    /// As there.
    pub async fn invalidate_tenant_through(&self, tenant: &str) -> Result<usize, CacheError> {
        let removed = self.invalidate_tenant(tenant).await;
        self.invalidate_in_tier(Scope::Tenant(TenantName::new(tenant).tag())).await?;
        Ok(removed)
    }

    /// See the head of `guard.rs`.
    async fn invalidate_in_tier(&self, scope: Scope) -> Result<(), CacheError> {
        let Some(tier) = &self.inner.tier else { return Ok(()) };
        let guard = &*tier.guard;
        let failed = |error| CacheError::from(ErrorKind::TierFailed { cause: Arc::new(error) });
        guard.in_time(guard.tier.0.invalidate(scope)).await.map_err(failed)?;
        refresh(&self.inner, guard).await.map_err(failed)?;
        clear(&self.inner, scope).await;
        Ok(())
    }
}
