//! From inputs to vectors.
//!
//! A request is answered in passes. In the first its misses go to the model in calls that other
//! requests may share. If such a call fails in a way that one input may be the cause of, each of its
//! requests asks again for itself; if that fails too, in halves, until the input at fault stands
//! alone or [`SEARCH_CALLS`](crate::backend::SEARCH_CALLS) are spent. So nobody fails for another's
//! input, and no request costs calls without a bound.

mod cached;
mod catalog;
mod lanes;
mod refusals;
mod second;
mod snapshots;
mod suspect;
mod usage;

use std::sync::Arc;
use std::time::{Duration, Instant};

use embedding_cache::{CacheError, CacheInfo, ContentKey, EmbeddingVector};
use futures_util::stream::{self, StreamExt as _};

use crate::backend::{
    Backend, BatchKind, EmbedError, Extra, Failed, Job, Origin, Secret, TokenCount, Vectors,
};
use crate::error::ApiError;
use crate::limits::Shares;
use crate::options::Options;
use crate::request::{Input, Request};
use crate::server::StartError;

use cached::{Cached, Loaded};
use catalog::Catalog;
use refusals::Refusals;

pub(crate) use snapshots::{SnapshotState, Unsaved};
pub(crate) use suspect::Suspect;
pub(crate) use usage::Usage;

/// How many times what is free a model may have of the requests and of the inputs that wait: alone
/// eight ninths, so that there is room for the next.
const FACTOR: usize = 8;

/// Answers inputs with vectors.
#[derive(Debug)]
pub(crate) struct Service {
    backend: Arc<Backend>,
    cached: Option<Cached>,
    catalog: Catalog,
    refusals: Refusals,
    /// Requests that wait for vectors, shared among models.
    waiting: Arc<Shares>,
    built_in: bool,
    timeout: Duration,
    batch: usize,
}

/// A request that can be answered: what its inputs have in common.
#[derive(Debug)]
pub(crate) struct Plan {
    kind: Arc<BatchKind>,
    dimensions: Option<usize>,
}

impl Plan {
    /// The dimensions that the vectors will have, if that is known.
    pub(crate) fn dimensions(&self) -> Option<usize> {
        self.dimensions
    }
}

/// The answer to a request.
#[derive(Debug)]
pub(crate) struct Embedded {
    pub(crate) vectors: Vec<EmbeddingVector>,
    pub(crate) usage: Usage,
    /// Inputs that this request asked the model for; `None` without a cache.
    pub(crate) misses: Option<usize>,
}

/// How the model is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// In calls that other requests may share.
    Shared,
    /// In calls of this request alone.
    Alone,
    /// The same, of at most so many inputs, to find the one at fault.
    Search { width: usize },
}

impl Pass {
    fn width(self, batch: usize) -> usize {
        match self {
            Self::Shared | Self::Alone => batch,
            Self::Search { width } => width,
        }
    }

    fn is_search(self) -> bool {
        matches!(self, Self::Search { .. })
    }
}

/// What the passes of a request have in common.
struct Task<'a> {
    inputs: &'a [Input<'a>],
    keys: &'a [ContentKey],
    kind: &'a Arc<BatchKind>,
    origin: Arc<Origin>,
    batch: usize,
}

impl Task<'_> {
    fn job(&self, input: &Input<'_>) -> Job {
        Job {
            kind: Arc::clone(self.kind),
            origin: Arc::clone(&self.origin),
            content: input.to_content(),
            tokens: Arc::<TokenCount>::default(),
        }
    }
}

/// What came of one input.
type Answer = Result<EmbeddingVector, Failure>;

#[derive(Debug, Clone)]
enum Failure {
    Model(Failed),
    Timeout,
    Overloaded,
    Cache(CacheError),
}

impl Service {
    /// Must be called in the runtime: the cleanup is a task. Waits a few seconds for Redis.
    ///
    /// # Errors
    ///
    /// The options contradict each other, or a part cannot be made.
    pub(crate) async fn new(options: &Options) -> Result<Self, StartError> {
        let catalog = Catalog::new(options)?;
        let single = catalog.is_single();
        let factor = (!single).then_some(FACTOR);
        let backend = Arc::new(Backend::new(options, single).map_err(StartError::Client)?);
        let cached = match options.no_cache {
            true => None,
            false => {
                let tier = second::open(options).await?;
                Some(Cached::new(options, &backend, factor, tier)?)
            }
        };
        Ok(Self {
            backend,
            cached,
            catalog,
            refusals: Refusals::new()?,
            waiting: Shares::new(options.max_concurrency as usize, factor),
            built_in: options.upstream.is_none(),
            timeout: options.request_timeout,
            batch: options.model_batch as usize,
        })
    }

    pub(crate) fn backend(&self) -> &Backend {
        &self.backend
    }

    pub(crate) fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The state of the cache, if there is one.
    pub(crate) fn info(&self) -> Option<CacheInfo> {
        self.cached.as_ref().map(Cached::info)
    }

    /// Inputs that wait for the model.
    pub(crate) fn queued(&self) -> usize {
        self.cached.as_ref().map_or(0, Cached::queued)
    }

    /// Copies the cache's counts into the metrics.
    pub(crate) fn publish_metrics(&self) {
        if let Some(cached) = &self.cached {
            cached.publish_metrics();
        }
    }

    /// Whether there is a second tier.
    pub(crate) fn has_tier(&self) -> bool {
        self.cached.as_ref().is_some_and(Cached::has_tier)
    }

    /// What became of the snapshot, if there is one.
    pub(crate) fn snapshot(&self) -> Option<SnapshotState> {
        self.cached.as_ref()?.snapshot()
    }

    /// Saves what outlives the process, once no request is under way: takes `patience` for the second
    /// tier, and what it takes for the snapshot.
    pub(crate) async fn finish(&self, patience: Duration) {
        if let Some(cached) = &self.cached {
            cached.finish(patience).await;
        }
    }

    /// Removes the vectors of a model, in the second tier too, and says how many those were here.
    ///
    /// # Errors
    ///
    /// There is no cache, the second tier could not be told, or the snapshot not be saved.
    pub(crate) async fn forget(&self, model: &str) -> Result<usize, ApiError> {
        let cached = self.cached.as_ref().ok_or(ApiError::NoCache)?;
        cached.forget(self.catalog.resolve(model)).await
    }

    /// What the request asks for, if it can be had.
    ///
    /// # Errors
    ///
    /// The model is not served, or not with these dimensions.
    pub(crate) fn plan(
        &self,
        request: &Request<'_>,
        authorization: Option<Secret>,
    ) -> Result<Plan, ApiError> {
        let model = self.catalog.find(&request.model)?;
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
        let extra = (!request.extra.is_empty()).then(|| {
            let parameters = Arc::new(request.extra.clone());
            let text = serde_json::Value::Object(request.extra.clone()).to_string().into();
            Extra { parameters, text }
        });
        let kind = BatchKind {
            model: model.name,
            asked: if self.built_in { expected } else { asked },
            expected,
            tokens: matches!(request.inputs.first(), Some(Input::Tokens(_))),
            extra,
            authorization,
        };
        let dimensions = expected.or_else(|| self.backend.seen_dimensions(&kind.model));
        Ok(Plan { kind: Arc::new(kind), dimensions })
    }

    /// The vectors of the request's inputs, in their order.
    ///
    /// # Errors
    ///
    /// An input got no vector; then those of the others are still stored, so that the same request
    /// costs less when it comes again.
    pub(crate) async fn embed(
        &self,
        plan: &Plan,
        request: &Request<'_>,
        suspect: &Suspect,
    ) -> Result<Embedded, ApiError> {
        let inputs = &request.inputs;
        let model = &plan.kind.model;
        let _waiting = self
            .waiting
            .try_take(model, 1)
            .ok_or_else(|| ApiError::ModelBusy { model: model.to_string() })?;
        let spec = cached::key_spec(&plan.kind, self.built_in);
        let keys = match &self.cached {
            Some(_) => cached::keys(&spec, inputs),
            None => Vec::new(),
        };
        if let Some((place, failed)) = self.refusals.find(&keys) {
            let error = self.api_error(plan, Failure::Model(failed));
            return Err(match place {
                Some(index) if inputs.len() > 1 => ApiError::item(index, inputs.len(), error),
                _ => error,
            });
        }
        let origin = Origin::new(self.backend.calls_of_a_model());
        let task = Task { inputs, keys: &keys, kind: &plan.kind, origin, batch: self.batch };
        let (answers, misses, usage) = match &self.cached {
            Some(cached) => {
                let (answers, asked) = self.in_passes(cached, &task, suspect).await;
                (answers, Some(asked), cached.usage(&keys, inputs))
            }
            None => {
                let (answers, usage) = self.uncached(&task).await?;
                (answers, None, usage)
            }
        };
        let vectors = self.settle(plan, answers)?;
        Ok(Embedded { vectors, usage, misses })
    }

    async fn in_passes(
        &self,
        cached: &Cached,
        task: &Task<'_>,
        suspect: &Suspect,
    ) -> (Vec<Answer>, usize) {
        let began = Instant::now();
        let mut open: Vec<usize> = (0..task.inputs.len()).collect();
        let mut pass = if suspect.is_suspect() { Pass::Alone } else { Pass::Shared };
        let first = cached.load(task, &open, pass, self.timeout).await;
        let (mut answers, asked) = (first.answers, first.asked);
        loop {
            let mut width = 0;
            open.retain(|place| match &answers[*place] {
                Err(Failure::Model(failed)) => {
                    let narrower = failed.narrower(task.batch);
                    width = width.max(narrower.unwrap_or(0));
                    narrower.is_some()
                }
                _ => false,
            });
            let left = self.timeout.saturating_sub(began.elapsed());
            if open.is_empty() || left.is_zero() || !task.origin.may_search() {
                break;
            }
            pass = Pass::Search { width };
            let Loaded { answers: found, .. } = cached.load(task, &open, pass, left).await;
            for (place, answer) in open.iter().zip(found) {
                // What was known before says more than that there was no call left, or no time.
                let says_less = match &answer {
                    Err(Failure::Model(failed)) => matches!(*failed.error, EmbedError::OutOfCalls),
                    Err(Failure::Timeout) => true,
                    _ => false,
                };
                if !says_less {
                    answers[*place] = answer;
                }
            }
        }
        self.learn_from(&answers, task.keys, suspect);
        (answers, asked)
    }

    /// Remembers what was refused, and that this caller's inputs make calls fail.
    fn learn_from(&self, answers: &[Answer], keys: &[ContentKey], suspect: &Suspect) {
        let some_succeeded = answers.iter().any(Result::is_ok);
        let mut together = None;
        for (answer, key) in answers.iter().zip(keys) {
            let Err(Failure::Model(failed)) = answer else { continue };
            if failed.error.may_be_an_input() {
                suspect.accuse();
            }
            if failed.inputs == 1 {
                // Of an error that is no clear refusal: where others fared well, it was the input.
                let proven = some_succeeded
                    && failed.error.may_be_an_input()
                    && !matches!(*failed.error, EmbedError::Timeout { .. });
                if failed.error.is_refusal() || proven {
                    self.refusals.remember(*key, failed.clone());
                }
            } else if failed.error.is_refusal() {
                together = Some(failed);
            }
        }
        if let Some(failed) = together {
            self.refusals.remember_together(keys, failed.clone());
        }
    }

    /// Every input by the model. The built-in embedder is given all at once: it computes them on the
    /// spot, so this is as fast as it can be without a cache.
    async fn uncached(&self, task: &Task<'_>) -> Result<(Vec<Answer>, Usage), ApiError> {
        let size = if self.built_in { usize::MAX } else { self.batch };
        let jobs: Vec<Job> = task.inputs.iter().map(|input| task.job(input)).collect();
        let tokens: Vec<Arc<TokenCount>> = jobs.iter().map(|job| Arc::clone(&job.tokens)).collect();
        let calls = jobs.chunks(size.min(jobs.len()).max(1));
        let calls: Vec<_> = calls.map(|part| self.backend.embed(part.to_vec(), false)).collect();
        let at_a_time = self.backend.calls_of_a_model();
        let work = stream::iter(calls).buffered(at_a_time).collect::<Vec<Vectors>>();
        let batches = tokio::time::timeout(self.timeout, work)
            .await
            .map_err(|_| ApiError::Timeout { seconds: self.timeout.as_secs_f64() })?;
        let answer = |vector: Result<Vec<f32>, Failed>| {
            vector.map(EmbeddingVector::from).map_err(Failure::Model)
        };
        let answers = batches.into_iter().flatten().map(answer).collect();
        let mut usage = Usage::default();
        for (input, tokens) in task.inputs.iter().zip(tokens) {
            usage.add(input, tokens.get());
        }
        Ok((answers, usage))
    }

    /// All vectors, or the first failure: a request has no answer in parts.
    fn settle(&self, plan: &Plan, answers: Vec<Answer>) -> Result<Vec<EmbeddingVector>, ApiError> {
        let of = answers.len();
        let mut vectors = Vec::with_capacity(of);
        let mut first: Option<(usize, Failure)> = None;
        // Whether every input failed, and for the same reason: then none is to be blamed.
        let mut alike = true;
        for (index, answer) in answers.into_iter().enumerate() {
            match answer {
                Ok(vector) => vectors.push(vector),
                Err(failure) => match &first {
                    None => first = Some((index, failure)),
                    Some((_, known)) => alike &= known.says_the_same_as(&failure),
                },
            }
        }
        let Some((index, failure)) = first else { return Ok(vectors) };
        let together = match &failure {
            Failure::Model(failed) => failed.inputs,
            _ => 1,
        };
        let error = self.api_error(plan, failure);
        if alike && vectors.is_empty() {
            return Err(error);
        }
        Err(match together {
            0 | 1 => ApiError::item(index, of, error),
            // It was not found out which of them it is.
            inputs => ApiError::OneOf { inputs, first: index, of, source: Box::new(error) },
        })
    }

    fn api_error(&self, plan: &Plan, failure: Failure) -> ApiError {
        match failure {
            Failure::Model(failed) => ApiError::Embed {
                error: (*failed.error).clone(),
                own_key: plan.kind.authorization.is_some(),
            },
            Failure::Timeout => ApiError::Timeout { seconds: self.timeout.as_secs_f64() },
            Failure::Overloaded => ApiError::Overloaded,
            Failure::Cache(error) => ApiError::Cache(error),
        }
    }
}

impl Failure {
    fn says_the_same_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Model(one), Self::Model(other)) => {
                Arc::ptr_eq(&one.error, &other.error)
                    || one.error.to_string() == other.error.to_string()
            }
            (Self::Timeout, Self::Timeout) | (Self::Overloaded, Self::Overloaded) => true,
            (Self::Cache(one), Self::Cache(other)) => one.to_string() == other.to_string(),
            _ => false,
        }
    }
}
