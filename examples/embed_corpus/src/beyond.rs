//! What outlives the process: a second tier, or a snapshot.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use embedding_cache::EmbeddingCache;
use embedding_cache::tier::{SecondTier, Tier};

use crate::Failure;
use crate::caches::{Limits, Tiered};
use crate::embedder::embed;
use crate::options::Options;
use crate::workload::Workload;

/// What is behind the sharded cache. Shared by the caches of all rows.
pub(crate) enum Beyond {
    Nothing,
    // Made by the two features only.
    #[cfg_attr(not(any(feature = "disk", feature = "redis")), allow(dead_code))]
    Tier {
        tier: Arc<dyn Tier>,
        name: String,
    },
    Snapshot(PathBuf),
}

/// So that a busy machine is not taken for a store that fails.
const SOFT: Duration = Duration::from_secs(1);
const HARD: Duration = Duration::from_secs(10);
/// For what is still to be written in the end.
const FLUSH: Duration = Duration::from_secs(120);

impl Beyond {
    pub(crate) async fn open(options: &Options) -> Result<Self, Failure> {
        if let Some(path) = &options.snapshot {
            return Ok(Self::Snapshot(path.clone()));
        }
        match (&options.disk, &options.redis[..]) {
            (Some(directory), _) => Self::disk(directory),
            (None, []) => Ok(Self::Nothing),
            (None, urls) => Self::redis(urls).await,
        }
    }

    #[cfg(feature = "disk")]
    fn disk(directory: &Path) -> Result<Self, Failure> {
        let tier = embedding_cache_disk::DiskTier::builder(directory)
            .open()
            .map_err(|error| Failure::Input(format!("--disk: {error}")))?;
        let name = format!("the directory {}", directory.display());
        Ok(Self::Tier { tier: Arc::new(tier), name })
    }

    #[cfg(not(feature = "disk"))]
    fn disk(_: &Path) -> Result<Self, Failure> {
        Err(not_built("disk"))
    }

    #[cfg(not(feature = "redis"))]
    #[allow(clippy::unused_async)]
    async fn redis(_: &[String]) -> Result<Self, Failure> {
        Err(not_built("redis"))
    }

    #[cfg(feature = "redis")]
    async fn redis(urls: &[String]) -> Result<Self, Failure> {
        use embedding_cache_redis::RedisTier;

        let (builder, name) = match urls {
            [url] => (RedisTier::builder(url), "a server of Redis or Valkey"),
            urls => (RedisTier::cluster(urls), "a cluster of Redis or Valkey"),
        };
        let tier = builder
            .prefix("embed-corpus")
            .timeout(SOFT)
            .connect()
            .await
            .map_err(|error| Failure::Input(format!("--redis: {error}")))?;
        Ok(Self::Tier { tier: Arc::new(tier), name: name.into() })
    }

    /// The line of the introduction; nothing if there is nothing.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Nothing => String::new(),
            Self::Tier { name, .. } => format!("behind    {name}\n"),
            Self::Snapshot(path) => format!("behind    the snapshot {}\n", path.display()),
        }
    }

    /// The sharded cache with this tier, its first tier empty.
    pub(crate) fn tiered(tier: &Arc<dyn Tier>, limits: &Limits) -> Result<Tiered, Failure> {
        let tier = SecondTier::new(Arc::clone(tier)).soft_deadline(SOFT).hard_timeout(HARD);
        limits.tiered(tier).map_err(|error| cannot_make(&error))
    }

    /// The sharded cache with what is in the snapshot, if it is there.
    pub(crate) fn loaded(path: &PathBuf, limits: &Limits) -> Result<EmbeddingCache, Failure> {
        let cache = limits.sharded().map_err(|error| cannot_make(&error))?;
        if path.exists() {
            cache
                .load_snapshot(path)
                .map_err(|error| Failure::Input(format!("--snapshot: {error}")))?;
        }
        Ok(cache)
    }

    /// Makes sure that the next run finds every paragraph.
    pub(crate) async fn keep_all(
        &self,
        workload: &Workload,
        limits: &Limits,
    ) -> Result<(), Failure> {
        match self {
            Self::Nothing => Ok(()),
            Self::Tier { tier, .. } => {
                let Tiered(cache) = Self::tiered(tier, limits)?;
                ask_for_all(&cache, workload).await?;
                let left = cache.tier_flush(FLUSH).await as u64;
                let stats = cache.stats().tier;
                match left + stats.dropped + stats.write_failures {
                    0 => Ok(()),
                    lost => Err(Failure::Run(format!("{lost} vectors could not be written"))),
                }
            }
            Self::Snapshot(path) => {
                let cache = Self::loaded(path, limits)?;
                ask_for_all(&cache, workload).await?;
                cache
                    .save_snapshot(path)
                    .map_err(|error| Failure::Run(format!("--snapshot: {error}")))?;
                Ok(())
            }
        }
    }
}

/// Asks for each paragraph once, as a server would, and verifies the answer.
async fn ask_for_all(cache: &EmbeddingCache, workload: &Workload) -> Result<(), Failure> {
    const BATCH: usize = 256;
    // Less than the queue of what is to be written holds.
    const FLUSH_EACH: usize = 16;
    let paragraphs: Vec<usize> = (0..workload.len()).collect();
    for (turn, paragraphs) in paragraphs.chunks(BATCH).enumerate() {
        if turn % FLUSH_EACH == 0 {
            cache.tier_flush(FLUSH).await;
        }
        let keys: Vec<_> = paragraphs.iter().map(|&one| workload.key(one).clone()).collect();
        let answers = cache
            .get_or_embed_many(&keys, |missing| {
                let texts =
                    missing.positions().iter().map(|&place| workload.text(paragraphs[place]));
                let vectors: Vec<Vec<f32>> = texts.map(embed).collect();
                async move { vectors }
            })
            .await;
        for (&paragraph, answer) in paragraphs.iter().zip(answers) {
            let answer = answer.map_err(|error| Failure::Run(error.to_string()))?;
            workload
                .verify(paragraph, &answer)
                .map_err(|wrong| Failure::Run(format!("wrong vector: {wrong}")))?;
        }
    }
    Ok(())
}

#[cfg(not(all(feature = "disk", feature = "redis")))]
fn not_built(feature: &str) -> Failure {
    Failure::Input(format!("--{feature}: not in this build; build it with --features {feature}"))
}

fn cannot_make(error: &embedding_cache::CacheError) -> Failure {
    Failure::Run(format!("cannot make the cache: {error}"))
}
