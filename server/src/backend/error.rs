//! Why an input got no vector, and whether asking in another way may help.

use std::sync::Arc;
use std::time::Duration;

/// What went wrong with a call of the model, or with one vector of its answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum EmbedError {
    #[error("the upstream cannot be reached: {reason}")]
    Unreachable { reason: String },
    #[error("the upstream broke the connection off: {reason}")]
    Broken { reason: String },
    #[error("the upstream did not answer within {limit:?}")]
    Timeout { limit: Duration },
    #[error("the upstream answered with status {status}: {message}")]
    Status { status: u16, message: String, retry_after: Option<u64> },
    #[error("the upstream's answer cannot be understood: {reason}")]
    Answer { reason: String },
    #[error("the upstream answered with an error: {message}")]
    ErrorObject { message: String },
    #[error("{expected} vectors were asked for, the upstream answered with {got}")]
    WrongCount { expected: usize, got: usize },
    #[error(
        "a vector of {expected} dimensions was expected, the upstream answered with {got}: \
         correct the request's \"dimensions\", or the server's --model"
    )]
    WrongDimensions { expected: usize, got: usize },
    #[error("component {component} of the upstream's vector is no finite number")]
    NotFinite { component: usize },
    #[error("the upstream's vector has no components")]
    Empty,
    #[error(
        "the upstream failed several times in a row and is left alone for {seconds} s: {reason}"
    )]
    Down { seconds: u64, reason: Arc<str> },
    #[error("too many inputs wait for the model {model:?}")]
    QueueFull { model: Arc<str> },
    /// What may be spent on finding out which input is at fault is spent.
    #[error("the calls for finding the input at fault are used up")]
    OutOfCalls,
    #[error("the embedder failed unexpectedly")]
    Panicked,
}

impl EmbedError {
    /// Whether one of the inputs may be what the upstream fails at, so that the others may fare
    /// better in a call of their own.
    pub(crate) fn may_be_an_input(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 400 | 413 | 422 | 500 | 502 | 504),
            Self::Broken { .. }
            | Self::Timeout { .. }
            | Self::Answer { .. }
            | Self::ErrorObject { .. }
            | Self::WrongCount { .. } => true,
            _ => false,
        }
    }

    /// Whether the same call may fare better a little later.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Broken { .. } | Self::Timeout { .. } => true,
            Self::Status { status, .. } => *status == 429 || (500..=599).contains(status),
            _ => false,
        }
    }

    /// Whether it is a sign that the upstream is down; one input can be the cause of some.
    pub(super) fn is_outage(&self) -> bool {
        self.is_transient() && !matches!(self, Self::Status { status: 429, .. })
    }

    /// Whether the upstream took the input, looked at it and said no. It will say so again.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 400 | 413 | 422),
            Self::NotFinite { .. } | Self::Empty | Self::WrongDimensions { .. } => true,
            _ => false,
        }
    }
}

/// Why an input got no vector, as it comes out of the cache.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{error}")]
pub(crate) struct Failed {
    pub(crate) error: Arc<EmbedError>,
    /// The inputs of the call that failed; 1 where it is known to be this one.
    pub(crate) inputs: usize,
    /// Whether they came from several requests.
    pub(crate) shared: bool,
}

impl Failed {
    /// The failure of one input alone.
    pub(crate) fn alone(error: EmbedError) -> Self {
        Self { error: Arc::new(error), inputs: 1, shared: false }
    }

    /// The most inputs of the next call, if a smaller one may fare better; `batch` is the most that
    /// a call has.
    pub(crate) fn narrower(&self, batch: usize) -> Option<usize> {
        if !self.error.may_be_an_input() {
            return None;
        }
        match (self.shared, self.inputs) {
            // First each request for itself, and all of it; then in halves.
            (true, _) => Some(batch),
            (false, 0 | 1) => None,
            (false, inputs) => Some(inputs.div_ceil(2)),
        }
    }
}
