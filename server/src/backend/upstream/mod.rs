//! Another OpenAI-compatible server that computes the vectors.
//!
//! `client.rs` makes one HTTP call, `answer.rs` reads what came, `breaker.rs` decides whether to call
//! at all; here is what one call of the cache becomes: tries, places, and what is remembered of a
//! model.

mod answer;
mod breaker;
mod client;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use crate::limits::Shares;
use crate::options::Options;

use super::stats::{CallStats, Purpose};
use super::{BatchKind, Content, EmbedError, Failed, Job, Vectors};

use breaker::{Admission, Breaker};
use client::Client;

/// The first pause before a call is tried again; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause. An upstream that asks for a longer one is left alone, and so is told the client.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Models of which something is remembered at a time. More are only possible where clients may name
/// any; then those with nothing to remember are forgotten first.
const MODELS: usize = 1024;

/// What a probe asks for until an input is known that works.
const FIRST_PROBE: &str = "ping";

/// The longest input that is kept to probe with.
const LONGEST_PROBE: usize = 200;

/// One upstream, and what is known of its models.
#[derive(Debug)]
pub(crate) struct Upstream {
    shared: Arc<Shared>,
    retries: u32,
}

#[derive(Debug)]
struct Shared {
    client: Client,
    calls: Arc<Shares>,
    stats: Arc<CallStats>,
    models: Mutex<HashMap<Arc<str>, Arc<ModelState>>>,
}

#[derive(Debug)]
struct ModelState {
    breaker: Breaker,
    /// An input that the model has embedded.
    works: Mutex<Option<Works>>,
    /// Dimensions of its vectors where none were asked for; 0 while they are not known.
    dimensions: AtomicUsize,
}

/// What a probe asks for: an input, and all that was asked with it.
#[derive(Debug, Clone)]
struct Works {
    kind: Arc<BatchKind>,
    content: Content,
}

impl ModelState {
    fn new() -> Self {
        let (works, dimensions) = (Mutex::new(None), AtomicUsize::new(0));
        Self { breaker: Breaker::new(), works, dimensions }
    }
}

impl Upstream {
    /// # Errors
    ///
    /// The client cannot be made.
    pub(crate) fn new(
        options: &Options,
        url: reqwest::Url,
        calls: Arc<Shares>,
        stats: Arc<CallStats>,
    ) -> Result<Self, reqwest::Error> {
        let client = Client::new(options, url)?;
        let shared = Shared { client, calls, stats, models: Mutex::default() };
        Ok(Self { shared: Arc::new(shared), retries: options.upstream_retries })
    }

    pub(crate) fn open_breakers(&self) -> Vec<(Arc<str>, Arc<str>)> {
        let models = self.shared.models.lock();
        let open = models.iter().filter_map(|(name, state)| {
            state.breaker.is_open().map(|reason| (Arc::clone(name), reason))
        });
        open.collect()
    }

    /// Whether every model of which something is known is left alone.
    pub(crate) fn is_down(&self) -> bool {
        let models: Vec<_> = self.shared.models.lock().clone().into_iter().collect();
        let mut down = !models.is_empty();
        for (name, state) in models {
            if state.breaker.is_open().is_none() {
                down = false;
            } else if state.breaker.admit(Instant::now()) == Admission::Probe {
                drop(self.shared.spawn_probe(&state, &Arc::new(BatchKind::plain(name))));
            }
        }
        down
    }

    pub(crate) async fn list_models(&self) -> Result<serde_json::Value, EmbedError> {
        self.shared.client.list_models().await
    }

    pub(crate) fn seen_dimensions(&self, model: &str) -> Option<usize> {
        let models = self.shared.models.lock();
        let seen = models.get(model)?.dimensions.load(Relaxed);
        (seen > 0).then_some(seen)
    }

    /// The vectors of jobs of one kind, by one call and its retries.
    pub(crate) async fn embed(&self, jobs: &[Job], search: bool) -> Vectors {
        let Some(first) = jobs.first() else { return Vec::new() };
        let shared = jobs.iter().any(|job| !Arc::ptr_eq(&job.origin, &first.origin));
        match self.call_with_retries(first, jobs, shared, search).await {
            Ok(vectors) => {
                vectors.into_iter().map(|vector| vector.map_err(Failed::alone)).collect()
            }
            Err(error) => {
                let failed = Failed { error: Arc::new(error), inputs: jobs.len(), shared };
                vec![Err(failed); jobs.len()]
            }
        }
    }

    async fn call_with_retries(
        &self,
        first: &Job,
        jobs: &[Job],
        shared: bool,
        search: bool,
    ) -> Result<answer::Vectors, EmbedError> {
        let mut pause = FIRST_PAUSE;
        let mut purpose = if search { Purpose::Search } else { Purpose::Inputs };
        for attempt in 0.. {
            if search && !first.origin.take_search_call() {
                return Err(EmbedError::OutOfCalls);
            }
            let error = match self.shared.call(&first.kind, jobs, purpose).await {
                Ok(vectors) => return Ok(vectors),
                Err(error) => error,
            };
            // Of several requests: each tries again for itself, without the one at fault.
            let hopeless = !error.is_transient() || (shared && error.may_be_an_input());
            if hopeless || attempt >= self.retries {
                return Err(error);
            }
            let wait = match &error {
                EmbedError::Status { retry_after: Some(seconds), .. } => {
                    pause.max(Duration::from_secs(*seconds))
                }
                _ => pause,
            };
            if wait > LONGEST_PAUSE {
                return Err(error);
            }
            tracing::warn!(%error, ?wait, "the call of the upstream is tried again");
            tokio::time::sleep(wait.mul_f64(jitter())).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            purpose = if search { Purpose::Search } else { Purpose::Retry };
        }
        Err(EmbedError::Panicked)
    }
}

impl Shared {
    /// One call, if the breaker lets it through and once there is a place for it.
    async fn call(
        self: &Arc<Self>,
        kind: &Arc<BatchKind>,
        jobs: &[Job],
        purpose: Purpose,
    ) -> Result<answer::Vectors, EmbedError> {
        let state = self.state(&kind.model);
        self.admit(&state, kind).await?;
        let share = self.calls.take(&kind.model).await;
        // It may have waited for its place while others found the upstream down.
        self.admit(&state, kind).await?;
        let call = self.stats.begin(jobs.len(), purpose);
        let contents: Vec<&Content> = jobs.iter().map(|job| &job.content).collect();
        let answered = self.client.embed(kind, &contents).await;
        call.finish(answered.is_ok());
        drop(share);
        match answered {
            Ok(answer) => {
                state.breaker.succeeded();
                state.learn(kind, jobs, &answer.vectors);
                answer.share_tokens(jobs);
                Ok(answer.vectors)
            }
            Err(error) if error.is_outage() => {
                if state.breaker.failed() {
                    self.spawn_probe(&state, kind);
                }
                Err(error)
            }
            Err(error) => {
                state.breaker.succeeded();
                Err(error)
            }
        }
    }

    async fn admit(
        self: &Arc<Self>,
        state: &Arc<ModelState>,
        kind: &Arc<BatchKind>,
    ) -> Result<(), EmbedError> {
        let mut admission = state.breaker.admit(Instant::now());
        if admission == Admission::Probe {
            // In a task of its own: if this caller is gone, the breaker still hears of it.
            let _ = self.spawn_probe(state, kind).await;
            admission = state.breaker.admit(Instant::now());
        }
        match admission {
            Admission::Go => Ok(()),
            Admission::Refused { seconds, reason } => Err(EmbedError::Down { seconds, reason }),
            // The probe took longer than the next pause; the next call probes.
            Admission::Probe => {
                let reason = Arc::from("the probe took too long");
                state.breaker.probed(Err(Arc::clone(&reason)), Instant::now());
                Err(EmbedError::Down { seconds: 1, reason })
            }
        }
    }

    /// Asks for an input that is known to work, to tell an input's fault from the upstream's.
    fn spawn_probe(
        self: &Arc<Self>,
        state: &Arc<ModelState>,
        kind: &Arc<BatchKind>,
    ) -> tokio::task::JoinHandle<()> {
        let (shared, state, kind) = (Arc::clone(self), Arc::clone(state), Arc::clone(kind));
        tokio::spawn(async move {
            let known = state.works.lock().clone();
            let unknown = || Works { kind, content: Content::Text(FIRST_PROBE.into()) };
            let Works { kind, content } = known.unwrap_or_else(unknown);
            let _share = shared.calls.take(&kind.model).await;
            let call = shared.stats.begin(1, Purpose::Probe);
            let answered = shared.client.embed(&kind, &[&content]).await;
            call.finish(answered.is_ok());
            let found = match answered {
                // A refusal, or nonsense: it is there all the same.
                Err(error) if error.is_outage() => Err(Arc::from(error.to_string())),
                _ => Ok(()),
            };
            match &found {
                Ok(()) => tracing::info!(model = &*kind.model, "the upstream answers"),
                Err(reason) => {
                    tracing::warn!(
                        model = &*kind.model,
                        reason = &**reason,
                        "the upstream is left alone"
                    );
                }
            }
            state.breaker.probed(found, Instant::now());
        })
    }

    fn state(&self, model: &Arc<str>) -> Arc<ModelState> {
        let mut models = self.models.lock();
        if let Some(state) = models.get(model) {
            return Arc::clone(state);
        }
        if models.len() >= MODELS {
            models.retain(|_, state| Arc::strong_count(state) > 1 || !state.breaker.is_idle());
        }
        let state = Arc::new(ModelState::new());
        models.insert(Arc::clone(model), Arc::clone(&state));
        state
    }
}

impl ModelState {
    fn learn(&self, kind: &BatchKind, jobs: &[Job], vectors: &answer::Vectors) {
        let Some((job, Ok(vector))) = jobs.iter().zip(vectors).find(|(_, vector)| vector.is_ok())
        else {
            return;
        };
        if kind.asked.is_none() && kind.extra.is_none() {
            self.dimensions.store(vector.len(), Relaxed);
        }
        if job.content.bytes() <= LONGEST_PROBE {
            let mut works = self.works.lock();
            if works.is_none() {
                *works = Some(Works { kind: Arc::clone(&job.kind), content: job.content.clone() });
            }
        }
    }
}

/// Between a half and one, so that those who failed together do not come back together.
fn jitter() -> f64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    0.5 + f64::from(now.subsec_nanos() % 1000) / 2000.0
}
