//! The one place that knows the cache: keys, loads, and what is stored beside the vectors.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use embedding_cache::tier::SecondTier;
use embedding_cache::{
    CacheError, CacheInfo, CleanupHandle, ContentKey, EmbeddingCache, EmbeddingCacheBuilder,
    EmbeddingVector, KeySpec,
};

use crate::backend::{Backend, BatchKind, EmbedError, Failed, Job};
use crate::error::ApiError;
use crate::limits::Shares;
use crate::options::Options;
use crate::request::Input;
use crate::server::StartError;

use super::lanes::Lanes;
use super::snapshots::{SnapshotState, Snapshots};
use super::usage::{Usage, UsageStore};
use super::{Answer, Failure, Pass, Task};

/// The least time that is left for writing to the second tier at the end.
const LEAST_FLUSH: Duration = Duration::from_secs(1);

/// How often expired entries are removed, if entries expire.
const CLEANUP: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Cached {
    cache: EmbeddingCache<ContentKey>,
    loader: Arc<Loader>,
    snapshots: Option<Snapshots>,
    has_tier: bool,
    _cleanup: Option<CleanupHandle>,
}

/// What a load needs that goes on when its request is gone.
#[derive(Debug)]
struct Loader {
    backend: Arc<Backend>,
    lanes: Lanes,
    /// Inputs that wait for the model, shared among models.
    queue: Arc<Shares>,
    usage: UsageStore,
}

/// What came of a pass: the answers, and for how many inputs this request asked the model.
pub(super) struct Loaded {
    pub(super) answers: Vec<Answer>,
    pub(super) asked: usize,
}

/// The key of every input.
pub(super) fn keys(spec: &KeySpec<ContentKey>, inputs: &[Input<'_>]) -> Vec<ContentKey> {
    let key = |input: &Input<'_>| match input {
        Input::Text(text) => spec.text(text),
        Input::Tokens(tokens) => spec.tokens(tokens),
    };
    inputs.iter().map(key).collect()
}

/// All that decides a vector beside the input.
pub(super) fn key_spec(kind: &BatchKind, built_in: bool) -> KeySpec<ContentKey> {
    let mut spec = ContentKey::for_model(Arc::clone(&kind.model));
    if let Some(dimensions) = kind.asked {
        spec = spec.dimensions(dimensions);
    }
    if let Some(extra) = &kind.extra {
        spec = spec.revision(&extra.text);
    }
    if let Some(secret) = &kind.authorization {
        // A digest: the cache need not know the client's key.
        spec = spec.tenant(&ContentKey::for_model("authorization").text(&secret.0).to_hex());
    }
    // What an upstream scales to length 1 is its affair, and the same for all its answers.
    if built_in { spec.normalize(true) } else { spec }
}

impl Cached {
    /// # Errors
    ///
    /// The cache cannot be made as configured, or the snapshot cannot be used.
    pub(super) fn new(
        options: &Options,
        backend: &Arc<Backend>,
        factor: Option<usize>,
        tier: Option<SecondTier>,
    ) -> Result<Self, StartError> {
        let queue = options.model_queue as usize;
        let mut builder = EmbeddingCacheBuilder::<ContentKey>::new()
            .name("default")
            .max_bytes(options.cache_bytes())
            // As many as there can be requests: the backend's places are what bounds its calls.
            .max_concurrent_loads(options.max_concurrency as usize)
            .max_batch(options.model_batch as usize)
            // Twice the queue: what a model may not have is turned away there, not by whoever came
            // first here.
            .max_in_flight(queue.saturating_mul(2))
            .stale_if_error(options.stale_if_error);
        if let Some(ttl) = options.ttl {
            builder = builder.time_to_live(ttl);
        }
        let has_tier = tier.is_some();
        if let Some(tier) = tier {
            builder = builder.tier(tier);
        }
        let cache = builder.build()?;
        let snapshots = Snapshots::begin(options, &cache)?;
        let cleanup = match options.ttl {
            Some(_) => Some(cache.spawn_cleanup(CLEANUP)?),
            None => None,
        };
        let loader = Loader {
            backend: Arc::clone(backend),
            lanes: Lanes::new(options, backend),
            queue: Shares::new(queue, factor),
            usage: UsageStore::new(options.cache_bytes())?,
        };
        Ok(Self { cache, loader: Arc::new(loader), snapshots, has_tier, _cleanup: cleanup })
    }

    pub(super) fn info(&self) -> CacheInfo {
        self.cache.info()
    }

    /// Copies the cache's counts into the metrics.
    pub(super) fn publish_metrics(&self) {
        self.cache.publish_metrics();
    }

    /// Whether there is a second tier.
    pub(super) fn has_tier(&self) -> bool {
        self.has_tier
    }

    pub(super) fn snapshot(&self) -> Option<SnapshotState> {
        self.snapshots.as_ref().map(Snapshots::state)
    }

    /// # Errors
    ///
    /// The second tier could not be told, or the snapshot not be saved; here the vectors are gone.
    pub(super) async fn forget(&self, model: &str) -> Result<usize, ApiError> {
        let removed = self.cache.invalidate_model_through(model).await.map_err(ApiError::Tier)?;
        if let Some(snapshots) = &self.snapshots {
            snapshots.save_without_what_was_removed().await.map_err(ApiError::Snapshot)?;
        }
        Ok(removed)
    }

    /// Saves what outlives the process, once no request is under way.
    pub(super) async fn finish(&self, patience: Duration) {
        let flush = async {
            let left = self.cache.tier_flush(patience.max(LEAST_FLUSH)).await;
            if left > 0 {
                tracing::warn!(
                    left,
                    "vectors that could not be written to the second tier in time"
                );
            }
        };
        let save = async {
            if let Some(snapshots) = &self.snapshots {
                snapshots.finish().await;
            }
        };
        tokio::join!(flush, save);
    }

    /// Inputs that wait for the model.
    pub(super) fn queued(&self) -> usize {
        self.loader.queue.held()
    }

    /// The vectors of the inputs at `places`, from the cache or by calls as `pass` says.
    pub(super) async fn load(
        &self,
        task: &Task<'_>,
        places: &[usize],
        pass: Pass,
        timeout: Duration,
    ) -> Loaded {
        let keys: Vec<ContentKey> = places.iter().map(|place| task.keys[*place]).collect();
        let inputs: Vec<&Input<'_>> = places.iter().map(|place| &task.inputs[*place]).collect();
        let asked = AtomicUsize::new(0);
        let load = self.cache.load().timeout(timeout).max_batch(pass.width(task.batch));
        let answers = load.get_or_embed_many(&keys, |missing| {
            // Only what is missing is copied out of the request.
            let jobs: Vec<Job> = missing.select(&inputs).map(|input| task.job(input)).collect();
            asked.fetch_add(jobs.len(), Relaxed);
            let loader = Arc::clone(&self.loader);
            async move { loader.run(missing.into_keys(), jobs, pass).await }
        });
        let answers = answers.await.into_iter().map(|answer| answer.map_err(failure)).collect();
        Loaded { answers, asked: asked.into_inner() }
    }

    pub(super) fn usage(&self, keys: &[ContentKey], inputs: &[Input<'_>]) -> Usage {
        let mut usage = Usage::default();
        let nothing = self.loader.usage.is_empty();
        for (key, input) in keys.iter().zip(inputs) {
            let known = if nothing { None } else { self.loader.usage.get(key) };
            usage.add(input, known);
        }
        usage
    }
}

impl Loader {
    async fn run(
        &self,
        keys: Vec<ContentKey>,
        jobs: Vec<Job>,
        pass: Pass,
    ) -> Vec<Result<EmbeddingVector, CacheError>> {
        let count = jobs.len();
        let Some(first) = jobs.first() else { return Vec::new() };
        let (kind, origin) = (Arc::clone(&first.kind), Arc::clone(&first.origin));
        let Some(_waiting) = self.queue.try_take(&kind.model, count) else {
            let full = Failed::alone(EmbedError::QueueFull { model: Arc::clone(&kind.model) });
            return vec![Err(cache_error(full)); count];
        };
        // Never closed.
        let _turn = origin.gate(pass.is_search()).acquire().await;
        let tokens: Vec<_> = jobs.iter().map(|job| Arc::clone(&job.tokens)).collect();
        let answers = match pass {
            Pass::Shared => self.lanes.embed(&kind, jobs).await,
            Pass::Alone | Pass::Search { .. } => {
                let vectors = self.backend.embed(jobs, pass.is_search()).await;
                let own = |vector: Result<Vec<f32>, Failed>| {
                    vector.map(EmbeddingVector::from).map_err(cache_error)
                };
                vectors.into_iter().map(own).collect()
            }
        };
        for ((key, tokens), answer) in keys.iter().zip(tokens).zip(&answers) {
            if let (Ok(_), Some(tokens)) = (answer, tokens.get()) {
                self.usage.put(key, tokens);
            }
        }
        answers
    }
}

fn cache_error(failed: Failed) -> CacheError {
    CacheError::from(Box::<dyn std::error::Error + Send + Sync>::from(failed))
}

fn failure(error: CacheError) -> Failure {
    // The backend's own error, from behind the cache and the batcher.
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(current) = cause {
        if let Some(failed) = current.downcast_ref::<Failed>() {
            return Failure::Model(failed.clone());
        }
        cause = current.source();
    }
    if error.is_timeout() {
        Failure::Timeout
    } else if error.is_overloaded() {
        Failure::Overloaded
    } else if error.is_wrong_count() || error.is_invalid_vector() {
        Failure::Model(Failed::alone(EmbedError::Answer { reason: error.to_string() }))
    } else if error.is_load_panicked() {
        Failure::Model(Failed::alone(EmbedError::Panicked))
    } else {
        Failure::Cache(error)
    }
}
