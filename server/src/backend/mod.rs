//! What computes vectors: the built-in embedder, or another server. Knows nothing of the cache.

mod error;
mod hashing;
mod stats;
mod upstream;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use tokio::sync::Semaphore;

use crate::limits::Shares;
use crate::options::Options;

pub(crate) use error::{EmbedError, Failed};
pub(crate) use hashing::{DIMENSIONS, MODEL};
pub(crate) use stats::CallStats;

use hashing::Hashing;
use upstream::Upstream;

/// Calls that a request may cost beyond those for its inputs, to find out which of them is at fault.
pub(crate) const SEARCH_CALLS: u32 = 32;

/// Calls of one request that are under way at a time while it searches.
const SEARCHES_AT_A_TIME: usize = 2;

/// All that the inputs of one call have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct BatchKind {
    /// As the upstream calls it.
    pub(crate) model: Arc<str>,
    /// The dimensions that were asked for, if they are not those that the model has anyway.
    pub(crate) asked: Option<usize>,
    /// The dimensions that a vector must have, if that is known.
    pub(crate) expected: Option<usize>,
    /// Whether the inputs are token ids, not texts.
    pub(crate) tokens: bool,
    pub(crate) extra: Option<Extra>,
    pub(crate) authorization: Option<Secret>,
}

impl BatchKind {
    /// Texts for `model`, with nothing else asked.
    fn plain(model: Arc<str>) -> Self {
        Self { model, asked: None, expected: None, tokens: false, extra: None, authorization: None }
    }
}

/// Parameters that are passed on as they came, the names in order.
#[derive(Debug, Clone)]
pub(crate) struct Extra {
    pub(crate) parameters: Arc<serde_json::Map<String, serde_json::Value>>,
    /// The same as text, by which they are compared.
    pub(crate) text: Arc<str>,
}

impl PartialEq for Extra {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Extra {}

impl Hash for Extra {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

/// A header that debug output does not show.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Secret(pub(crate) Arc<str>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The request that inputs came with.
#[derive(Debug)]
pub(crate) struct Origin {
    search_calls: AtomicU32,
    /// Its calls at a time, so that a large request does not fill the queue before the others.
    gate: Semaphore,
    search_gate: Semaphore,
}

impl Origin {
    pub(crate) fn new(calls_at_a_time: usize) -> Arc<Self> {
        Arc::new(Self {
            search_calls: AtomicU32::new(SEARCH_CALLS),
            gate: Semaphore::new(calls_at_a_time),
            search_gate: Semaphore::new(SEARCHES_AT_A_TIME.min(calls_at_a_time)),
        })
    }

    /// Takes one of the calls for the search. Relaxed: a count that publishes nothing.
    fn take_search_call(&self) -> bool {
        let less = |left: u32| left.checked_sub(1);
        self.search_calls.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }

    pub(crate) fn may_search(&self) -> bool {
        self.search_calls.load(Ordering::Relaxed) > 0
    }

    pub(crate) fn gate(&self, search: bool) -> &Semaphore {
        if search { &self.search_gate } else { &self.gate }
    }
}

/// What the upstream said that an input has of tokens; filled when its call has answered.
#[derive(Debug, Default)]
pub(crate) struct TokenCount(AtomicU64);

/// A number of tokens, and whether a model counted exactly that input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tokens {
    pub(crate) count: u32,
    pub(crate) exact: bool,
}

impl TokenCount {
    const KNOWN: u64 = 1 << 33;
    const EXACT: u64 = 1 << 32;

    /// Relaxed: who reads it has awaited the call that wrote it.
    fn set(&self, tokens: Tokens) {
        let exact = if tokens.exact { Self::EXACT } else { 0 };
        self.0.store(Self::KNOWN | exact | u64::from(tokens.count), Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> Option<Tokens> {
        let word = self.0.load(Ordering::Relaxed);
        let tokens = Tokens { count: word as u32, exact: word & Self::EXACT != 0 };
        (word & Self::KNOWN != 0).then_some(tokens)
    }
}

/// One input on its way to the model, with all that decides its vector.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) kind: Arc<BatchKind>,
    pub(crate) origin: Arc<Origin>,
    pub(crate) content: Content,
    pub(crate) tokens: Arc<TokenCount>,
}

/// The input itself; shared, because a batch that fails is sent again in parts.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    Text(Arc<str>),
    Tokens(Arc<[u32]>),
}

impl Content {
    fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Tokens(tokens) => 4 * tokens.len(),
        }
    }
}

/// The vectors of a call, in the order of its jobs; one input may fail without the others.
pub(crate) type Vectors = Vec<Result<Vec<f32>, Failed>>;

/// The backend that was chosen.
#[derive(Debug)]
pub(crate) struct Backend {
    kind: Kind,
    stats: Arc<CallStats>,
    calls: Arc<Shares>,
}

#[derive(Debug)]
enum Kind {
    Hashing(Hashing),
    Upstream(Box<Upstream>),
}

impl Backend {
    /// `single` says that only one model is served, which then need not leave anything to others.
    ///
    /// # Errors
    ///
    /// The client for the upstream cannot be made.
    pub(crate) fn new(options: &Options, single: bool) -> Result<Self, reqwest::Error> {
        let stats = Arc::new(CallStats::default());
        let factor = (!single).then_some(1);
        let calls = Shares::new(options.model_concurrency as usize, factor);
        let kind = match options.upstream_url("embeddings") {
            Some(url) => {
                let (calls, stats) = (Arc::clone(&calls), Arc::clone(&stats));
                Kind::Upstream(Box::new(Upstream::new(options, url, calls, stats)?))
            }
            None => Kind::Hashing(Hashing::new()),
        };
        Ok(Self { kind, stats, calls })
    }

    pub(crate) fn stats(&self) -> &CallStats {
        &self.stats
    }

    /// Calls that one model can have under way.
    pub(crate) fn calls_of_a_model(&self) -> usize {
        self.calls.alone()
    }

    /// Calls that are under way.
    pub(crate) fn calls_in_flight(&self) -> usize {
        self.calls.held()
    }

    /// Models whose upstream is left alone, with the reason; empty if all is well.
    pub(crate) fn open_breakers(&self) -> Vec<(Arc<str>, Arc<str>)> {
        match &self.kind {
            Kind::Hashing(_) => Vec::new(),
            Kind::Upstream(upstream) => upstream.open_breakers(),
        }
    }

    /// Whether every model that was asked for lately is left alone. Has those probed whose time has
    /// come: who waits for this server to be ready sends it nothing meanwhile.
    pub(crate) fn is_down(&self) -> bool {
        match &self.kind {
            Kind::Hashing(_) => false,
            Kind::Upstream(upstream) => upstream.is_down(),
        }
    }

    /// What the upstream lists as its models.
    ///
    /// # Errors
    ///
    /// It has no such list, or did not answer.
    pub(crate) async fn list_models(&self) -> Result<serde_json::Value, EmbedError> {
        match &self.kind {
            Kind::Hashing(_) => Ok(serde_json::Value::Null),
            Kind::Upstream(upstream) => upstream.list_models().await,
        }
    }

    /// The dimensions that vectors of this kind had so far.
    pub(crate) fn seen_dimensions(&self, model: &str) -> Option<usize> {
        match &self.kind {
            Kind::Hashing(_) => None,
            Kind::Upstream(upstream) => upstream.seen_dimensions(model),
        }
    }

    /// The vectors of jobs of one kind, in one call. `search` says that it is one of the further
    /// calls by which a request looks for the input at fault.
    pub(crate) async fn embed(&self, jobs: Vec<Job>, search: bool) -> Vectors {
        match &self.kind {
            Kind::Hashing(hashing) => {
                let Some(first) = jobs.first() else { return Vec::new() };
                let _share = self.calls.take(&first.kind.model).await;
                let call = self.stats.begin(jobs.len(), stats::Purpose::Inputs);
                let vectors = hashing.embed(jobs).await;
                call.finish(true);
                vectors
            }
            Kind::Upstream(upstream) => upstream.embed(&jobs, search).await,
        }
    }
}
