//! Micro-batching: what many requests ask of a model at nearly the same time becomes one call.

mod driven;
mod worker;

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::error::{CacheError, ErrorKind};
use crate::timer::Instant;
use crate::vector::EmbeddingVector;

use super::load::ancestry::Ancestry;
use super::load::{Answer, IntoEmbeddings};
use driven::Crew;
use worker::{Waiting, Worker};

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
/// It gathers, and makes its calls, in tasks of the runtime it was built in. If that is alive but not
/// driven any more (its one thread has left `block_on`), those that wait notice within some seconds,
/// and their runtime, or their own futures outside one, drive it from then on; what a call itself
/// waits for in the old runtime may still never come. So set a deadline: a call for which no caller
/// waits any more is dropped, and the next begins. When the runtime that drives it shuts down, all
/// that wait, and all that come later, have [`CacheError::is_abandoned`].
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
    crew: Arc<Crew>,
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
    /// runtime that drives the batcher is shutting down.
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, the input is left out if its call has not begun. A call that has begun
    /// goes on while anyone waits for an answer of it, and is dropped then.
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
        let answer = async {
            let answer = self.enqueue(input).await?;
            answer.await.unwrap_or_else(|_| Err(abandoned()))
        };
        self.crew.attend(pin!(answer)).await
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
        let answers = async {
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
        };
        self.crew.attend(pin!(answers)).await
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
        let ancestry = Ancestry::current();
        ancestry.give_turns_back();
        let waiting = Waiting { input, since: Instant::now(), ancestry, answer };
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
        Self { queue: self.queue.clone(), crew: Arc::clone(&self.crew) }
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

    /// The most inputs that wait; a caller that comes then waits for room. The default is 4,096.
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
    /// A call that itself waits for a load of a cache, or for a batcher, is not counted from then on:
    /// what it waits for may need its turn.
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
        if Handle::try_current().is_err() {
            return Err(ErrorKind::NoRuntime { what: "a batcher" }.into());
        }
        let (sender, queue) = mpsc::channel(self.max_queue.min(Semaphore::MAX_PERMITS));
        let calls = Arc::new(Semaphore::new(self.max_concurrent.min(Semaphore::MAX_PERMITS)));
        let crew = Arc::new(Crew::default());
        let worker = Worker { queue, settings: self, calls, embed, crew: Arc::downgrade(&crew) };
        crew.start(worker.run());
        Ok(Batcher { queue: sender, crew })
    }
}
