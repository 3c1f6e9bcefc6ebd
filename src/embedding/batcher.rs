//! Micro-batching: what many requests ask of a model at nearly the same time becomes one call.

use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::error::{CacheError, ErrorKind};
use crate::timer::{Instant, within};
use crate::vector::EmbeddingVector;

use super::load::call::{catching, message};
use super::load::{Answer, IntoEmbeddings};

/// Gathers inputs of different callers into calls of a model.
///
/// A call is made with up to [`max_batch`](BatcherBuilder::max_batch) inputs, as soon as there are
/// so many or the oldest has waited for [`max_delay`](BatcherBuilder::max_delay). While
/// [`max_concurrent`](BatcherBuilder::max_concurrent) calls are under way inputs wait, and a batch
/// goes on to fill; when [`max_queue`](BatcherBuilder::max_queue) inputs wait, callers wait to add
/// theirs. So a model that falls behind is given larger batches first and slows its callers down
/// next, and nothing grows without a bound.
///
/// It is not a cache: it embeds what it is given. Behind
/// [`get_or_embed_many`](super::EmbeddingCache::get_or_embed_many) it gathers the misses of many
/// requests. A clone is another handle; the last one dropped ends it, after what waits is done.
///
/// # Examples
///
/// ```
/// use embedding_cache::{Batcher, CacheKey, EmbeddingCache};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// let cache = EmbeddingCache::new(100, 3600, 10);
/// let batcher = Batcher::builder().max_batch(32).build(|texts: Vec<String>| async move {
///     texts.iter().map(|text| vec![text.len() as f32]).collect::<Vec<_>>() // your model
/// })?;
///
/// let texts = ["red".to_string(), "green".to_string()];
/// let keys: Vec<_> = texts.iter().map(|text| CacheKey::new(text.as_str(), "toy")).collect();
/// let answers = cache.get_or_embed_many(&keys, |missing| {
///     let texts: Vec<String> = missing.select(&texts).cloned().collect();
///     let batcher = batcher.clone();
///     async move { batcher.embed_many(texts).await }
/// });
/// assert_eq!(answers.await[1].as_ref().unwrap(), &[5.0]);
/// # Ok::<(), embedding_cache::CacheError>(())
/// # }).unwrap();
/// ```
pub struct Batcher<T> {
    queue: mpsc::Sender<Waiting<T>>,
}

/// An input on its way.
struct Waiting<T> {
    input: T,
    since: Instant,
    answer: oneshot::Sender<Answer>,
}

impl Batcher<()> {
    /// Starts to configure a batcher.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use embedding_cache::Batcher;
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let batcher = Batcher::builder()
    ///     .max_batch(16)
    ///     .max_delay(Duration::from_millis(1))
    ///     .build(|numbers: Vec<f32>| async move { numbers.iter().map(|&x| [x]).collect::<Vec<_>>() })?;
    /// assert_eq!(batcher.embed(0.5).await?, [0.5]);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub fn builder() -> BatcherBuilder {
        BatcherBuilder::default()
    }
}

impl<T> Batcher<T> {
    /// The embedding of one input.
    ///
    /// Waits for room in the queue, then for the call that the input becomes a part of.
    ///
    /// # Errors
    ///
    /// [`CacheError::is_load_failed`], [`CacheError::is_load_panicked`] or
    /// [`CacheError::is_wrong_count`] if the call failed; [`CacheError::is_abandoned`] if the
    /// runtime of the batcher is shutting down.
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, the input is left out if its call has not begun, and embedded for
    /// nothing otherwise.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use embedding_cache::{Batcher};
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let embed = |texts: Vec<&'static str>| async move {
    ///     texts.iter().map(|text| [text.len() as f32]).collect::<Vec<_>>()
    /// };
    /// let batcher = Batcher::builder().build(embed)?;
    /// assert_eq!(batcher.embed("red").await?, [3.0]);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub async fn embed(&self, input: T) -> Result<EmbeddingVector, CacheError> {
        let answer = self.enqueue(input).await?;
        answer.await.unwrap_or_else(|_| Err(abandoned()))
    }

    /// The embeddings of many inputs, in their order, each with a result of its own. They may become
    /// parts of different calls.
    ///
    /// # Errors
    ///
    /// For each input as by [`embed`](Self::embed).
    ///
    /// # Cancel safety
    ///
    /// As [`embed`](Self::embed).
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use embedding_cache::{Batcher};
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let embed = |texts: Vec<&'static str>| async move {
    ///     texts.iter().map(|text| [text.len() as f32]).collect::<Vec<_>>()
    /// };
    /// let batcher = Batcher::builder().build(embed)?;
    /// let answers = batcher.embed_many(["red", "green"]).await;
    /// assert_eq!(answers[1].as_ref().unwrap(), &[5.0]);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub async fn embed_many(
        &self,
        inputs: impl IntoIterator<Item = T>,
    ) -> Vec<Result<EmbeddingVector, CacheError>> {
        // Collected, so that the caller's iterator is not held across an await.
        let inputs: Vec<T> = inputs.into_iter().collect();
        let mut waiting = Vec::with_capacity(inputs.len());
        for input in inputs {
            waiting.push(self.enqueue(input).await);
        }
        let mut answers = Vec::with_capacity(waiting.len());
        for answer in waiting {
            answers.push(match answer {
                Ok(answer) => answer.await.unwrap_or_else(|_| Err(abandoned())),
                Err(error) => Err(error),
            });
        }
        answers
    }

    /// Inputs that wait in the queue. `O(1)`; a moment later it is another number.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use embedding_cache::{Batcher};
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let embed = |texts: Vec<&'static str>| async move {
    ///     texts.iter().map(|text| [text.len() as f32]).collect::<Vec<_>>()
    /// };
    /// let batcher = Batcher::builder().build(embed)?;
    /// assert_eq!(batcher.queued(), 0);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }

    async fn enqueue(&self, input: T) -> Result<oneshot::Receiver<Answer>, CacheError> {
        let (answer, receiver) = oneshot::channel();
        let waiting = Waiting { input, since: Instant::now(), answer };
        match self.queue.send(waiting).await {
            Ok(()) => Ok(receiver),
            Err(_) => Err(abandoned()),
        }
    }
}

fn abandoned() -> CacheError {
    ErrorKind::Abandoned { rounds: 1 }.into()
}

impl<T> Clone for Batcher<T> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone() }
    }
}

impl<T> fmt::Debug for Batcher<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batcher").field("queued", &self.queued()).finish_non_exhaustive()
    }
}

/// Configures and makes a [`Batcher`]; from [`Batcher::builder`].
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct BatcherBuilder {
    max_batch: usize,
    max_delay: Duration,
    max_queue: usize,
    max_concurrent: usize,
}

impl Default for BatcherBuilder {
    fn default() -> Self {
        Self {
            max_batch: 64,
            max_delay: Duration::from_millis(2),
            max_queue: 4096,
            max_concurrent: 1,
        }
    }
}

impl BatcherBuilder {
    /// The most inputs of one call. The default is 64.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use embedding_cache::{Batcher};
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let embed = |texts: Vec<&'static str>| async move {
    ///     texts.iter().map(|text| [text.len() as f32]).collect::<Vec<_>>()
    /// };
    /// let batcher = Batcher::builder().max_batch(2).build(embed)?;
    /// assert_eq!(batcher.embed("red").await?, [3.0]);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub fn max_batch(self, inputs: usize) -> Self {
        Self { max_batch: inputs, ..self }
    }

    /// How long an input waits for others to fill its batch; zero takes only what waits already.
    /// The default is 2 ms.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use embedding_cache::{Batcher};
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let embed = |texts: Vec<&'static str>| async move {
    ///     texts.iter().map(|text| [text.len() as f32]).collect::<Vec<_>>()
    /// };
    /// let batcher = Batcher::builder().max_delay(Duration::ZERO).build(embed)?;
    /// assert_eq!(batcher.embed("red").await?, [3.0]);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub fn max_delay(self, delay: Duration) -> Self {
        Self { max_delay: delay, ..self }
    }

    /// The most inputs that wait; who comes then waits for room. The default is 4,096.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use embedding_cache::{Batcher};
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let embed = |texts: Vec<&'static str>| async move {
    ///     texts.iter().map(|text| [text.len() as f32]).collect::<Vec<_>>()
    /// };
    /// let batcher = Batcher::builder().max_queue(100).build(embed)?;
    /// assert_eq!(batcher.embed("red").await?, [3.0]);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub fn max_queue(self, inputs: usize) -> Self {
        Self { max_queue: inputs, ..self }
    }

    /// The most calls at the same time. The default is 1, as for a model on one GPU; more suits a
    /// model behind a network.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use embedding_cache::{Batcher};
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let embed = |texts: Vec<&'static str>| async move {
    ///     texts.iter().map(|text| [text.len() as f32]).collect::<Vec<_>>()
    /// };
    /// let batcher = Batcher::builder().max_concurrent(8).build(embed)?;
    /// assert_eq!(batcher.embed("red").await?, [3.0]);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub fn max_concurrent(self, calls: usize) -> Self {
        Self { max_concurrent: calls, ..self }
    }

    /// Makes the batcher, and spawns the task that gathers. `embed` is called with up to
    /// `max_batch` inputs and makes a future that answers a vector, or a `Result` of one, for each,
    /// in their order ([`IntoEmbeddings`]); the future runs in a task of its own.
    ///
    /// # Errors
    ///
    /// [`CacheError::is_configuration`] outside a tokio runtime, or if a limit is 0.
    pub fn build<T, F, Fut>(self, embed: F) -> Result<Batcher<T>, CacheError>
    where
        T: Send + 'static,
        F: FnMut(Vec<T>) -> Fut + Send + 'static,
        Fut: Future<Output: IntoEmbeddings> + Send + 'static,
    {
        for (what, limit) in [
            ("a batcher's limit on inputs of a call", self.max_batch),
            ("a batcher's limit on inputs that wait", self.max_queue),
            ("a batcher's limit on calls at the same time", self.max_concurrent),
        ] {
            if limit == 0 {
                return Err(ErrorKind::Zero { what }.into());
            }
        }
        let runtime =
            Handle::try_current().map_err(|_| ErrorKind::NoRuntime { what: "a batcher" })?;
        let (sender, queue) = mpsc::channel(self.max_queue.min(Semaphore::MAX_PERMITS));
        let calls = Arc::new(Semaphore::new(self.max_concurrent.min(Semaphore::MAX_PERMITS)));
        runtime.spawn(Worker { queue, settings: self, calls, embed }.run());
        Ok(Batcher { queue: sender })
    }
}

/// The task that gathers.
struct Worker<T, F> {
    queue: mpsc::Receiver<Waiting<T>>,
    settings: BatcherBuilder,
    calls: Arc<Semaphore>,
    embed: F,
}

impl<T, F, Fut> Worker<T, F>
where
    T: Send + 'static,
    F: FnMut(Vec<T>) -> Fut + Send + 'static,
    Fut: Future<Output: IntoEmbeddings> + Send + 'static,
{
    async fn run(mut self) {
        while let Some(first) = self.queue.recv().await {
            let batch = self.gather(first).await;
            let Some((permit, batch)) = self.wait_for_turn(batch).await else { break };
            let (inputs, answers): (Vec<T>, Vec<_>) =
                batch.into_iter().map(|waiting| (waiting.input, waiting.answer)).unzip();
            if inputs.is_empty() {
                continue;
            }
            // Unwind safe: what the closure has left half done is its own.
            match catch_unwind(AssertUnwindSafe(|| (self.embed)(inputs))) {
                Ok(future) => drop(tokio::spawn(async move {
                    let asked = answers.len();
                    let call = catching(async { future.await.into_embeddings(asked) });
                    deliver(call.await, answers);
                    drop(permit);
                })),
                Err(panic) => deliver(Err(message(&*panic)), answers),
            }
        }
    }

    /// `first` and what else comes until the batch is full or `first` has waited long enough.
    async fn gather(&mut self, first: Waiting<T>) -> Vec<Waiting<T>> {
        // No end: a delay so long that the clock cannot name it.
        let end = first.since.checked_add(self.settings.max_delay);
        let mut batch = vec![first];
        while batch.len() < self.settings.max_batch {
            // What waits already needs no timer.
            let next = match self.queue.try_recv() {
                Ok(waiting) => Some(waiting),
                Err(mpsc::error::TryRecvError::Disconnected) => None,
                Err(mpsc::error::TryRecvError::Empty) => {
                    let left = end
                        .map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
                    if left == Duration::ZERO {
                        None
                    } else {
                        within(left, self.queue.recv()).await.flatten()
                    }
                }
            };
            let Some(waiting) = next else { break };
            batch.push(waiting);
        }
        batch
    }

    /// Waits until a call may begin, while the batch goes on to fill. Leaves out whom nobody waits
    /// for any more.
    async fn wait_for_turn(
        &mut self,
        mut batch: Vec<Waiting<T>>,
    ) -> Option<(tokio::sync::OwnedSemaphorePermit, Vec<Waiting<T>>)> {
        let mut turn = std::pin::pin!(Arc::clone(&self.calls).acquire_owned());
        let permit = loop {
            batch.retain(|waiting| !waiting.answer.is_closed());
            let full = batch.len() >= self.settings.max_batch;
            // With the queue closed and empty, only the turn is left to wait for.
            tokio::select! {
                biased;
                permit = &mut turn => break permit.ok()?,
                Some(waiting) = self.queue.recv(), if !full => batch.push(waiting),
            }
        };
        batch.retain(|waiting| !waiting.answer.is_closed());
        Some((permit, batch))
    }
}

/// Hands out what a call came to. Who no longer waits has dropped the receiver.
fn deliver(outcome: Result<Vec<Answer>, Arc<str>>, answers: Vec<oneshot::Sender<Answer>>) {
    match outcome {
        Ok(embeddings) => {
            for (embedding, answer) in embeddings.into_iter().zip(answers) {
                drop(answer.send(embedding));
            }
        }
        Err(message) => {
            let error = CacheError::from(ErrorKind::LoadPanicked { message });
            for answer in answers {
                drop(answer.send(Err(error.clone())));
            }
        }
    }
}
