//! What computes vectors: the built-in embedder, or another server.

mod hashing;
mod upstream;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::options::Options;

pub(crate) use hashing::{DIMENSIONS, MODEL};

use hashing::Hashing;
use upstream::Upstream;

/// One input on its way to the model, with all that decides its vector.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) model: Arc<str>,
    /// The dimensions that were asked for, if they are not those that the model has anyway.
    pub(crate) asked: Option<usize>,
    /// The dimensions that the vector must have, if that is known.
    pub(crate) expected: Option<usize>,
    pub(crate) content: Content,
}

/// The input itself; shared, because a batch that fails is sent again in parts.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    Text(Arc<str>),
    Tokens(Arc<[u32]>),
}

/// Why an input got no vector.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum EmbedError {
    #[error("the upstream cannot be reached: {reason}")]
    Unreachable { reason: String },
    #[error("the upstream did not answer within {limit:?}")]
    Timeout { limit: Duration },
    #[error("the upstream answered with status {status}: {message}")]
    Status { status: u16, message: String, retry_after: Option<u64> },
    #[error("the upstream's answer cannot be understood: {reason}")]
    Answer { reason: String },
    #[error("{expected} vectors were asked for, the upstream answered with {got}")]
    WrongCount { expected: usize, got: usize },
    #[error("a vector of {expected} dimensions was expected, the upstream answered with {got}")]
    WrongDimensions { expected: usize, got: usize },
    #[error("component {component} of the upstream's vector is no finite number")]
    NotFinite { component: usize },
    #[error("the upstream's vector has no components")]
    Empty,
    #[error("the embedder failed unexpectedly")]
    Panicked,
}

/// The vectors of a batch, in its order; one input may fail without the others.
pub(crate) type Vectors = Vec<Result<Vec<f32>, EmbedError>>;

/// Something that computes vectors.
pub(crate) trait Embed {
    /// The vectors of `jobs`, as many and in the same order.
    fn embed(&self, jobs: Vec<Job>) -> impl Future<Output = Vectors> + Send;
}

/// The backend that was chosen, and how often it was called.
#[derive(Debug)]
pub(crate) struct Backend {
    kind: Kind,
    calls: AtomicU64,
    inputs: AtomicU64,
}

#[derive(Debug)]
enum Kind {
    Hashing(Hashing),
    Upstream(Upstream),
}

impl Backend {
    /// # Errors
    ///
    /// The client for the upstream cannot be made.
    pub(crate) fn new(options: &Options) -> Result<Self, reqwest::Error> {
        let kind = match &options.upstream {
            Some(url) => Kind::Upstream(Upstream::new(url, options)?),
            None => Kind::Hashing(Hashing::new()),
        };
        Ok(Self { kind, calls: AtomicU64::new(0), inputs: AtomicU64::new(0) })
    }

    /// Batches that the model was given; a call that was tried again counts once.
    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Inputs in those batches.
    pub(crate) fn inputs(&self) -> u64 {
        self.inputs.load(Ordering::Relaxed)
    }
}

impl Embed for Backend {
    async fn embed(&self, jobs: Vec<Job>) -> Vectors {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.inputs.fetch_add(jobs.len() as u64, Ordering::Relaxed);
        match &self.kind {
            Kind::Hashing(hashing) => hashing.embed(jobs).await,
            Kind::Upstream(upstream) => upstream.embed(jobs).await,
        }
    }
}
