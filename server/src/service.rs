//! From inputs to vectors: the one place that knows the cache.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use embedding_cache::{
    Batcher, CacheError, CacheInfo, CleanupHandle, ContentKey, EmbeddingCache, EmbeddingVector,
    KeySpec,
};
use futures_util::stream::{self, StreamExt as _};

use crate::backend::{Backend, DIMENSIONS, Embed as _, EmbedError, Job, MODEL, Vectors};
use crate::error::ApiError;
use crate::options::Options;
use crate::request::{Input, Request};
use crate::server::StartError;

/// How often expired entries are removed, if entries expire.
const CLEANUP: Duration = Duration::from_secs(30);

/// The longest name of a model that is passed on to an upstream.
const LONGEST_NAME: usize = 256;

/// Answers inputs with vectors.
#[derive(Debug)]
pub(crate) struct Service {
    backend: Arc<Backend>,
    cached: Option<Cached>,
    models: Vec<Known>,
    /// Whether models that are not listed are the upstream's to know.
    any_model: bool,
    built_in: bool,
    timeout: Duration,
    model_batch: usize,
    model_concurrency: usize,
}

#[derive(Debug)]
struct Cached {
    cache: EmbeddingCache<ContentKey>,
    /// Gathers what different requests miss into calls of the model.
    batcher: Batcher<Job>,
    _cleanup: Option<CleanupHandle>,
}

/// A model that requests may name.
#[derive(Debug, Clone)]
struct Known {
    name: Arc<str>,
    dimensions: Option<usize>,
}

impl Service {
    /// Must be called in the runtime: the batcher and the cleanup are tasks.
    ///
    /// # Errors
    ///
    /// The options contradict each other, or a part cannot be made.
    pub(crate) fn new(options: &Options) -> Result<Self, StartError> {
        let built_in = options.upstream.is_none();
        let mut models: Vec<Known> = Vec::new();
        for model in &options.models {
            if models.iter().any(|known| *known.name == model.name) {
                return Err(StartError::ModelTwice(model.name.clone()));
            }
            let dimensions = match model.dimensions {
                Some(asked) if built_in && asked > DIMENSIONS => {
                    return Err(StartError::Dimensions { asked, limit: DIMENSIONS });
                }
                None if built_in => Some(DIMENSIONS),
                dimensions => dimensions,
            };
            models.push(Known { name: model.name.as_str().into(), dimensions });
        }
        if built_in && models.is_empty() {
            models.push(Known { name: MODEL.into(), dimensions: Some(DIMENSIONS) });
        }
        let backend = Arc::new(Backend::new(options).map_err(StartError::Client)?);
        let cached = if options.no_cache { None } else { Some(Cached::new(options, &backend)?) };
        Ok(Self {
            backend,
            cached,
            any_model: models.is_empty(),
            models,
            built_in,
            timeout: options.request_timeout,
            model_batch: options.model_batch as usize,
            model_concurrency: options.model_concurrency as usize,
        })
    }

    pub(crate) fn backend(&self) -> &Backend {
        &self.backend
    }

    /// The state of the cache, if there is one.
    pub(crate) fn info(&self) -> Option<CacheInfo> {
        self.cached.as_ref().map(|cached| cached.cache.info())
    }

    /// Copies the cache's counts into the metrics.
    pub(crate) fn publish_metrics(&self) {
        if let Some(cached) = &self.cached {
            cached.cache.publish_metrics();
        }
    }

    /// Removes the vectors of a model and says how many those were.
    ///
    /// # Errors
    ///
    /// There is no cache.
    pub(crate) async fn forget(&self, model: &str) -> Result<usize, ApiError> {
        let cached = self.cached.as_ref().ok_or(ApiError::NoCache)?;
        Ok(cached.cache.invalidate_model(model).await)
    }

    /// The vectors of the request's inputs, in their order.
    ///
    /// # Errors
    ///
    /// The model is not served, or an input got no vector; then those of the others are still
    /// stored, so that the same request costs less when it comes again.
    pub(crate) async fn embed(
        &self,
        request: &Request<'_>,
    ) -> Result<Vec<EmbeddingVector>, ApiError> {
        let model = self.model(&request.model)?;
        let expected = request.dimensions.or(model.dimensions);
        // A model's own number of dimensions is not asked for: it is the same vector, and models
        // that have only one number refuse the parameter.
        let asked = request.dimensions.filter(|asked| Some(*asked) != model.dimensions);
        if let (true, Some(asked), Some(limit)) = (self.built_in, asked, model.dimensions)
            && asked > limit
        {
            let message = format!("{asked} is over the {limit} dimensions of this model");
            return Err(ApiError::invalid("dimensions", message));
        }
        let asked = if self.built_in { expected } else { asked };
        let job = |input: &Input<'_>| Job {
            model: Arc::clone(&model.name),
            asked,
            expected,
            content: input.to_content(),
        };
        let answers = match &self.cached {
            Some(cached) => {
                let spec = key_spec(&model.name, asked, self.built_in);
                cached.embed(&spec, &request.inputs, job, self.timeout).await
            }
            None => self.embed_uncached(request.inputs.iter().map(job).collect()).await?,
        };
        settle(answers, self.timeout)
    }

    fn model(&self, name: &str) -> Result<Known, ApiError> {
        if let Some(known) = self.models.iter().find(|known| *known.name == *name) {
            return Ok(known.clone());
        }
        if self.any_model && !name.is_empty() && name.len() <= LONGEST_NAME {
            return Ok(Known { name: name.into(), dimensions: None });
        }
        if self.any_model {
            let message = format!("the name of a model has 1 to {LONGEST_NAME} bytes");
            return Err(ApiError::invalid("model", message));
        }
        let served: Vec<&str> = self.models.iter().map(|known| &*known.name).collect();
        // The name comes from outside and goes into an answer: not more of it than helps.
        let model = name.chars().take(LONGEST_NAME).collect();
        Err(ApiError::ModelNotFound { model, served: served.join(", ") })
    }

    /// Every input by the model. The built-in embedder is given all at once: it computes them on the
    /// spot, so this is as fast as it can be without a cache.
    async fn embed_uncached(&self, jobs: Vec<Job>) -> Result<Vec<Answer>, ApiError> {
        let size = if self.built_in { usize::MAX } else { self.model_batch };
        let mut calls = Vec::new();
        let mut jobs = jobs.into_iter().peekable();
        while jobs.peek().is_some() {
            calls.push(self.backend.embed(jobs.by_ref().take(size).collect()));
        }
        let work = stream::iter(calls).buffered(self.model_concurrency).collect::<Vec<Vectors>>();
        let batches = tokio::time::timeout(self.timeout, work)
            .await
            .map_err(|_| ApiError::Timeout { seconds: self.timeout.as_secs_f64() })?;
        let vectors = batches.into_iter().flatten();
        Ok(vectors
            .map(|vector| vector.map(EmbeddingVector::from).map_err(Failure::Model))
            .collect())
    }
}

/// What came of one input.
type Answer = Result<EmbeddingVector, Failure>;

enum Failure {
    Cache(CacheError),
    Model(EmbedError),
}

impl Cached {
    fn new(options: &Options, backend: &Arc<Backend>) -> Result<Self, StartError> {
        let mut builder = EmbeddingCache::builder_for::<ContentKey>()
            .name("default")
            .max_bytes(options.cache_mb << 20)
            // As many as there can be requests: the batcher is what bounds calls of the model.
            .max_concurrent_loads(options.max_concurrency as usize)
            .max_batch(options.model_batch as usize)
            .max_in_flight(options.model_queue as usize)
            .stale_if_error(options.stale_if_error);
        if let Some(ttl) = options.ttl {
            builder = builder.time_to_live(ttl);
        }
        let cache = builder.build()?;
        let backend = Arc::clone(backend);
        let batcher = Batcher::builder()
            .max_batch(options.model_batch as usize)
            .max_delay(options.model_delay)
            .max_queue(options.model_queue as usize)
            .max_concurrent(options.model_concurrency as usize)
            .build(move |jobs: Vec<Job>| {
                let backend = Arc::clone(&backend);
                async move { backend.embed(jobs).await }
            })?;
        let cleanup = match options.ttl {
            Some(_) => Some(cache.spawn_cleanup(CLEANUP)?),
            None => None,
        };
        Ok(Self { cache, batcher, _cleanup: cleanup })
    }

    async fn embed(
        &self,
        spec: &KeySpec<ContentKey>,
        inputs: &[Input<'_>],
        job: impl Fn(&Input<'_>) -> Job,
        timeout: Duration,
    ) -> Vec<Answer> {
        let keys: Vec<ContentKey> = inputs
            .iter()
            .map(|input| match input {
                Input::Text(text) => spec.text(text),
                Input::Tokens(tokens) => spec.tokens(tokens),
            })
            .collect();
        let load = self.cache.load().timeout(timeout);
        let answers = load.get_or_embed_many(&keys, |missing| {
            // Only what is missing is copied out of the request.
            let jobs: Vec<Job> = missing.select(inputs).map(&job).collect();
            let batcher = self.batcher.clone();
            async move { batcher.embed_many(jobs).await }
        });
        answers.await.into_iter().map(|answer| answer.map_err(Failure::Cache)).collect()
    }
}

/// All that decides a vector beside the input.
fn key_spec(model: &str, dimensions: Option<usize>, built_in: bool) -> KeySpec<ContentKey> {
    let mut spec = ContentKey::builder(model);
    if let Some(dimensions) = dimensions {
        spec = spec.dimensions(dimensions);
    }
    // What an upstream scales to length 1 is its affair, and the same for all its answers.
    if built_in { spec.normalize(true) } else { spec }
}

/// All vectors, or the first failure: a request has no answer in parts.
fn settle(answers: Vec<Answer>, timeout: Duration) -> Result<Vec<EmbeddingVector>, ApiError> {
    let of = answers.len();
    let mut vectors = Vec::with_capacity(of);
    let mut first: Option<(usize, ApiError)> = None;
    // Whether every input failed, and for the same reason: then none is to be blamed.
    let mut alike = true;
    for (index, answer) in answers.into_iter().enumerate() {
        match answer {
            Ok(vector) => vectors.push(vector),
            Err(failure) => {
                let error = api_error(failure, timeout);
                match &first {
                    None => first = Some((index, error)),
                    Some((_, known)) => alike &= known.to_string() == error.to_string(),
                }
            }
        }
    }
    match first {
        None => Ok(vectors),
        Some((_, error)) if alike && vectors.is_empty() => Err(error),
        Some((index, error)) => Err(ApiError::Item { index, of, source: Box::new(error) }),
    }
}

fn api_error(failure: Failure, timeout: Duration) -> ApiError {
    let error = match failure {
        Failure::Model(error) => return ApiError::Embed(error),
        Failure::Cache(error) => error,
    };
    // The backend's own error, from behind the cache and the batcher.
    let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
    while let Some(current) = cause {
        if let Some(known) = current.downcast_ref::<EmbedError>() {
            return ApiError::Embed(known.clone());
        }
        cause = current.source();
    }
    if error.is_timeout() {
        ApiError::Timeout { seconds: timeout.as_secs_f64() }
    } else if error.is_overloaded() {
        ApiError::Overloaded
    } else if error.is_wrong_count() || error.is_invalid_vector() {
        ApiError::Embed(EmbedError::Answer { reason: error.to_string() })
    } else if error.is_load_panicked() {
        ApiError::Embed(EmbedError::Panicked)
    } else {
        ApiError::Cache(error)
    }
}
