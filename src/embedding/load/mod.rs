//! Loads: what is missing is embedded by the caller's closure, once, however many callers ask for it.
//!
//! A [`request`] looks its keys up, claims the missing ones among those [`inflight`] or joins the calls
//! that have them, and waits. Each [`call`] has a [`leader`], which is asked for [`Missing`] keys and
//! may answer in any of the forms of [`output`]; [`permits`] bound how many are under way. A
//! [`heartbeat`] tells a call that is slow from one that is not polled, an [`ancestry`] a load inside
//! another load from one by itself.

pub(super) mod ancestry;
pub(super) mod call;
mod heartbeat;
mod inflight;
mod leader;
mod output;
mod permits;
mod request;

use std::borrow::Borrow;
use std::fmt;
use std::future::Future;
use std::hash::BuildHasher;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use crate::error::{CacheError, ErrorKind};
use crate::sync::task;
use crate::timer::within;
use crate::vector::EmbeddingVector;

use super::{EmbeddingCache, EmbeddingKey};

pub(super) use inflight::Inflight;
pub(super) use output::Answer;
pub use output::{IntoEmbedding, IntoEmbeddings, Missing};
pub(super) use permits::Permits;

use call::message;
use heartbeat::Heartbeat;
use leader::Leader;
use request::{CallToMake, Request};

/// How a load is to go, beside its keys and its closure.
#[derive(Debug, Clone, Copy)]
struct Options {
    timeout: Option<Duration>,
    max_batch: usize,
    time_to_live: Option<Duration>,
}

impl<K, S> EmbeddingCache<K, S>
where
    K: EmbeddingKey,
    S: BuildHasher + Send + Sync + 'static,
{
    /// The embedding of `key`: from the cache, or else from `embed`, which is then called once and
    /// its answer stored, however many ask for the key at the same time.
    ///
    /// `embed` makes a future that answers a vector in any form ([`IntoEmbedding`]) or a `Result`
    /// of one. It runs in a task of its own: it goes on, and its answer is stored, when this caller
    /// no longer waits. So it may not borrow from its surroundings. Where the compiler says that
    /// something *does not live long enough*, that *borrowed data escapes* or that a future *cannot be
    /// sent between threads*, either move clones into it (of an `Arc`, of a client) or call
    /// [`get_or_embed_borrowed`](Load::get_or_embed_borrowed) of a [`load`](Self::load) instead.
    ///
    /// A hit costs what [`get`](Self::get) costs. A miss takes the lock of a part of what is in flight
    /// for a lookup, spawns a task, and allocates some 1 KB until it is answered.
    ///
    /// # Errors
    ///
    /// A failure reaches every caller that waits for the key, is not cached, and the next call tries
    /// again:
    /// - [`CacheError::is_load_failed`]: `embed` answered an error;
    /// - [`CacheError::is_load_panicked`]: it panicked;
    /// - [`CacheError::is_invalid_vector`]: its vector may not be stored;
    /// - [`CacheError::is_load_timeout`]: it took longer than
    ///   [`load_timeout`](super::EmbeddingCacheBuilder::load_timeout);
    /// - [`CacheError::is_recursive`]: asked for inside a load, and the key waits for that;
    /// - [`CacheError::is_overloaded`]: as many keys as are allowed are being loaded
    ///   ([`max_in_flight`](super::EmbeddingCacheBuilder::max_in_flight));
    /// - [`CacheError::is_abandoned`]: the runtime that should have loaded it is shutting down;
    /// - [`CacheError::is_configuration`]: called outside a tokio runtime;
    /// - [`CacheError::is_invalid_key`]: the key is longer than a cache stores.
    ///
    /// A good vector that finds no room in the cache is returned all the same.
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it cancels no other caller: a load that has begun goes on.
    ///
    /// # Examples
    ///
    /// ```
    /// use embedding_cache::{CacheKey, EmbeddingCache};
    ///
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// let key = CacheKey::new("9f86d081", "e5-base@1");
    ///
    /// let vector = cache.get_or_embed(&key, || async { vec![0.6, 0.8] }).await?;
    /// let again = cache.get_or_embed(&key, || async { Err::<Vec<f32>, _>("not called") }).await?;
    /// assert_eq!(vector, again);
    /// assert_eq!(cache.stats().loads, 1);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub async fn get_or_embed<F, Fut>(
        &self,
        key: impl Borrow<K>,
        embed: F,
    ) -> Result<EmbeddingVector, CacheError>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output: IntoEmbedding> + Send + 'static,
    {
        self.load().get_or_embed(key, embed).await
    }

    /// The embeddings of many keys, in their order: from the cache, or else from `embed`, which is
    /// asked for every missing key once.
    ///
    /// Hits are not asked for. A key that stands in the batch twice is asked for once. A key that
    /// another call, anywhere in the process, is loading already is waited for. The rest comes to
    /// `embed` in the order in which the batch first names it, in calls of at most
    /// [`max_batch`](super::EmbeddingCacheBuilder::max_batch) keys, which run at the same time and
    /// are stored as they land. Each makes a future that answers a vector, or a `Result` of one,
    /// for each key ([`IntoEmbeddings`]); it runs in a task of its own and goes on when this caller
    /// no longer waits. A future that has to borrow goes to
    /// [`Load::get_or_embed_many_borrowed`]; see [`get_or_embed`](Self::get_or_embed).
    ///
    /// A batch of hits costs what [`get_many`](Self::get_many) costs and allocates the result only.
    /// Otherwise `O(keys)`, and as [`get_or_embed`](Self::get_or_embed) for each missing key.
    ///
    /// # Errors
    ///
    /// One for each key that failed, as by [`get_or_embed`](Self::get_or_embed); the others of the
    /// batch are not touched by it. Where `embed` answers more or fewer vectors than it was asked
    /// for, that call's keys fail ([`CacheError::is_wrong_count`]): nothing says which vector
    /// belongs to which.
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it cancels no other caller: calls that have begun go on.
    ///
    /// # Examples
    ///
    /// ```
    /// use embedding_cache::{CacheKey, EmbeddingCache};
    ///
    /// async fn embed(texts: Vec<String>) -> Result<Vec<Vec<f32>>, std::io::Error> {
    ///     Ok(texts.iter().map(|text| vec![text.len() as f32]).collect()) // your model
    /// }
    ///
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::builder().max_bytes(256 << 20).build()?;
    /// let e5 = CacheKey::for_model("e5-base");
    /// let texts = ["red".to_string(), "green".to_string()];
    /// let keys: Vec<CacheKey> = texts.iter().map(|text| e5.text(text)).collect();
    ///
    /// let answers = cache
    ///     .get_or_embed_many(&keys, |missing| embed(missing.select(&texts).cloned().collect()))
    ///     .await;
    /// for (text, answer) in texts.iter().zip(answers) {
    ///     assert_eq!(answer?, [text.len() as f32]);
    /// }
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub async fn get_or_embed_many<F, Fut>(
        &self,
        keys: impl AsRef<[K]>,
        embed: F,
    ) -> Vec<Result<EmbeddingVector, CacheError>>
    where
        F: FnMut(Missing<K>) -> Fut,
        Fut: Future<Output: IntoEmbeddings> + Send + 'static,
    {
        self.load().get_or_embed_many(keys, embed).await
    }

    /// A load with options of its own: a deadline, another size of batch, another time-to-live, or
    /// a closure that borrows.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// let key = CacheKey::new("9f86d081", "e5-base@1");
    /// let load = cache.load().timeout(Duration::from_millis(50));
    /// let vector = load.get_or_embed(&key, || async { [0.6, 0.8] }).await?;
    /// assert_eq!(vector, [0.6, 0.8]);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub fn load(&self) -> Load<'_, K, S> {
        let options =
            Options { timeout: None, max_batch: self.inner.max_batch, time_to_live: None };
        Load { cache: self, options }
    }
}

/// A load with options of its own, from [`EmbeddingCache::load`].
#[must_use]
pub struct Load<'a, K: EmbeddingKey, S> {
    cache: &'a EmbeddingCache<K, S>,
    options: Options,
}

impl<K: EmbeddingKey, S> Load<'_, K, S> {
    /// How long to wait for what is missing. Then hits, and what has come by then, are returned,
    /// and the rest is an error ([`CacheError::is_timeout`]); the calls go on, and what they answer
    /// is stored when it comes. What ends a call is
    /// [`load_timeout`](super::EmbeddingCacheBuilder::load_timeout). Works in any runtime; where it
    /// has no timers, a thread of the process keeps the time.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// let key = CacheKey::new("9f86d081", "e5-base@1");
    /// let stalls = || std::future::pending::<Vec<f32>>();
    /// let load = cache.load().timeout(Duration::from_millis(1));
    /// assert!(load.get_or_embed(&key, stalls).await.unwrap_err().is_timeout());
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = Some(timeout);
        self
    }

    /// The most keys that one call of the closure is asked for, at least 1; with 0 each missing key is
    /// an error ([`CacheError::is_configuration`]). The default is that of the
    /// [builder](super::EmbeddingCacheBuilder::max_batch).
    ///
    /// ```
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// let keys = ["red", "green"].map(|text| CacheKey::new(text, "toy"));
    /// let one_by_one = cache.load().max_batch(1);
    /// one_by_one.get_or_embed_many(&keys, |_| async { vec![[0.6, 0.8]] }).await;
    /// assert_eq!(cache.stats().loads, 2);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub fn max_batch(mut self, keys: usize) -> Self {
        self.options.max_batch = keys;
        self
    }

    /// How long what is loaded is served; the default is the cache's. Over 292 years it is
    /// returned, but not stored.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::builder().max_entries(100).build()?;
    /// let key = CacheKey::new("9f86d081", "e5-base@1");
    /// let load = cache.load().time_to_live(Duration::ZERO); // not to be used again
    /// load.get_or_embed(&key, || async { [0.6, 0.8] }).await?;
    /// assert_eq!(cache.get(&key).await, None);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub fn time_to_live(mut self, time_to_live: Duration) -> Self {
        self.options.time_to_live = Some(time_to_live);
        self
    }
}

impl<K, S> Load<'_, K, S>
where
    K: EmbeddingKey,
    S: BuildHasher + Send + Sync + 'static,
{
    /// As [`EmbeddingCache::get_or_embed`].
    ///
    /// # Errors
    ///
    /// As there, and [`CacheError::is_timeout`] if there is a deadline and it passed.
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it cancels no other caller: a load that has begun goes on.
    pub async fn get_or_embed<F, Fut>(
        self,
        key: impl Borrow<K>,
        embed: F,
    ) -> Result<EmbeddingVector, CacheError>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output: IntoEmbedding> + Send + 'static,
    {
        let key = key.borrow();
        if let Some(vector) = self.cache.get(key).await {
            return Ok(vector);
        }
        let mut embed = Some(embed);
        let request = Request::missing(self.cache, std::array::from_ref(key), self.options).await;
        one(self.owned(request, |_| batch_of_one(embed.take().map(|embed| embed()))).await)
    }

    /// As [`EmbeddingCache::get_or_embed_many`].
    ///
    /// # Errors
    ///
    /// For each key as there, and [`CacheError::is_timeout`] if there is a deadline and it passed.
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it cancels no other caller: calls that have begun go on.
    pub async fn get_or_embed_many<F, Fut>(
        self,
        keys: impl AsRef<[K]>,
        embed: F,
    ) -> Vec<Result<EmbeddingVector, CacheError>>
    where
        F: FnMut(Missing<K>) -> Fut,
        Fut: Future<Output: IntoEmbeddings> + Send + 'static,
    {
        let keys = keys.as_ref();
        let request = Request::look_up(self.cache, keys, self.options).await;
        self.owned(request, embed).await
    }

    /// [`get_or_embed`](Self::get_or_embed) for a future that borrows, or that cannot be sent to
    /// another thread: it runs inside this one, and not at all once this one is dropped.
    ///
    /// Others join it all the same. When it is dropped, one of them loads the key with a closure of
    /// their own; when it is kept but never polled again, they notice within some seconds and do
    /// the same. It is not counted among the
    /// [calls under way](super::EmbeddingCacheBuilder::max_concurrent_loads); a vector past its
    /// time-to-live is never served by it while another is loaded, as no call would load it.
    ///
    /// # Errors
    ///
    /// As [`get_or_embed`](Self::get_or_embed).
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it drops its model call; other callers that wait for the key go on.
    ///
    /// # Examples
    ///
    /// ```
    /// use embedding_cache::{CacheKey, EmbeddingCache};
    ///
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// let text = String::from("red");
    /// let model = |text: &str| vec![text.len() as f32];
    /// let key = CacheKey::new(text.as_str(), "toy");
    /// let load = cache.load().get_or_embed_borrowed(&key, || async { model(&text) });
    /// assert_eq!(load.await?, [3.0]);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub async fn get_or_embed_borrowed<F, Fut>(
        self,
        key: impl Borrow<K>,
        embed: F,
    ) -> Result<EmbeddingVector, CacheError>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output: IntoEmbedding>,
    {
        let key = key.borrow();
        if let Some(vector) = self.cache.get(key).await {
            return Ok(vector);
        }
        let mut embed = Some(embed);
        let request = Request::missing(self.cache, std::array::from_ref(key), self.options).await;
        one(self.borrowed(request, |_| batch_of_one(embed.take().map(|embed| embed()))).await)
    }

    /// [`get_or_embed_many`](Self::get_or_embed_many) for futures that borrow; as
    /// [`get_or_embed_borrowed`](Self::get_or_embed_borrowed). Its calls run one after the other.
    ///
    /// # Errors
    ///
    /// For each key as by [`get_or_embed_many`](Self::get_or_embed_many).
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it drops the calls that have not landed; what has landed is stored,
    /// and other callers that wait for the rest go on.
    pub async fn get_or_embed_many_borrowed<F, Fut>(
        self,
        keys: impl AsRef<[K]>,
        embed: F,
    ) -> Vec<Result<EmbeddingVector, CacheError>>
    where
        F: FnMut(Missing<K>) -> Fut,
        Fut: Future<Output: IntoEmbeddings>,
    {
        let keys = keys.as_ref();
        let request = Request::look_up(self.cache, keys, self.options).await;
        self.borrowed(request, embed).await
    }

    /// Each call in a task of its own.
    async fn owned<F, Fut>(self, mut request: Request<'_, K, S>, mut embed: F) -> Vec<Answer>
    where
        F: FnMut(Missing<K>) -> Fut,
        Fut: Future<Output: IntoEmbeddings> + Send + 'static,
    {
        if !request.is_open() {
            return request.finish().await;
        }
        if self.options.max_batch == 0 {
            return request
                .fail(&ErrorKind::Zero { what: "a load's limit on keys of a call" }.into())
                .await;
        }
        let Some(tasks) = task::Spawner::current() else {
            return request.fail(&ErrorKind::NoRuntime { what: "an owned load" }.into()).await;
        };
        // In a box, as is each call: a future that is handed on is part of what takes it twice over.
        let work = Box::pin(async {
            #[cfg(feature = "tier")]
            request.ask_tier().await;
            while request.is_open() {
                for (leader, future) in begin(request.claim(None).await, &mut embed) {
                    tasks.spawn(leader.run_owned(future));
                }
                if request.is_unclaimed() {
                    tokio::task::yield_now().await;
                    continue;
                }
                request.wait().await;
            }
        });
        self.in_time(work).await.unwrap_or_else(|waited| request.time_out(waited));
        request.finish().await
    }

    /// Each call inside this future, one after the other. The own ones come before the waiting for
    /// others': two callers that wait for each other's keys would otherwise wait for ever.
    async fn borrowed<F, Fut>(self, mut request: Request<'_, K, S>, mut embed: F) -> Vec<Answer>
    where
        F: FnMut(Missing<K>) -> Fut,
        Fut: Future<Output: IntoEmbeddings>,
    {
        if !request.is_open() {
            return request.finish().await;
        }
        if self.options.max_batch == 0 {
            return request
                .fail(&ErrorKind::Zero { what: "a load's limit on keys of a call" }.into())
                .await;
        }
        let heartbeat = Arc::new(Heartbeat::default());
        let work = heartbeat.around(Box::pin(async {
            #[cfg(feature = "tier")]
            request.ask_tier().await;
            while request.is_open() {
                let calls = begin(request.claim(Some(&heartbeat)).await, &mut embed);
                // Loads inside one may ask for the keys of those after it.
                let _noted: Vec<_> =
                    calls.windows(2).map(|pair| pair[1].0.comes_after(&pair[0].0)).collect();
                for (leader, future) in calls {
                    leader.run(future, false).await;
                }
                if request.is_unclaimed() {
                    continue;
                }
                request.wait().await;
            }
        }));
        self.in_time(work).await.unwrap_or_else(|waited| request.time_out(waited));
        request.finish().await
    }

    /// `work`, or how long was waited for it.
    async fn in_time(&self, work: impl Future<Output = ()>) -> Result<(), Duration> {
        match self.options.timeout {
            None => {
                work.await;
                Ok(())
            }
            Some(timeout) if within(timeout, pin!(work)).await.is_some() => Ok(()),
            Some(timeout) => Err(timeout),
        }
    }
}

/// A call, and the caller's future for it. Boxed: each async function between here and where it is polled
/// has room for its argument twice.
type Begun<K, S, Fut> = (Leader<K, S>, Pin<Box<Fut>>);

/// Makes the futures of claimed calls. A closure that panics fails the keys it was asked for.
fn begin<K, S, F, Fut>(calls: Vec<CallToMake<K, S>>, embed: &mut F) -> Vec<Begun<K, S, Fut>>
where
    K: EmbeddingKey,
    F: FnMut(Missing<K>) -> Fut,
{
    let mut begun = Vec::with_capacity(calls.len());
    for (leader, missing) in calls {
        // Unwind safe: what the closure has left half done is its own.
        match catch_unwind(AssertUnwindSafe(|| embed(missing))) {
            Ok(future) => begun.push((leader, Box::pin(future))),
            Err(panic) => {
                leader.fail(&ErrorKind::LoadPanicked { message: message(&*panic) }.into());
            }
        }
    }
    begun
}

/// The answer of a closure for one key, as that of a call for a batch of one. A closure is asked
/// for a key once, so there is a future.
async fn batch_of_one<Fut: Future<Output: IntoEmbedding>>(future: Option<Fut>) -> Vec<Answer> {
    match future {
        Some(future) => vec![future.await.into_embedding()],
        None => vec![Err(ErrorKind::Abandoned { rounds: 1 }.into())],
    }
}

/// The one answer of a batch of one.
fn one(answers: Vec<Answer>) -> Answer {
    let abandoned = || Err(ErrorKind::Abandoned { rounds: 0 }.into());
    answers.into_iter().next().unwrap_or_else(abandoned)
}

impl<K: EmbeddingKey, S> fmt::Debug for Load<'_, K, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Options { timeout, max_batch, time_to_live } = self.options;
        f.debug_struct("Load")
            .field("timeout", &timeout)
            .field("max_batch", &max_batch)
            .field("time_to_live", &time_to_live)
            .finish_non_exhaustive()
    }
}
