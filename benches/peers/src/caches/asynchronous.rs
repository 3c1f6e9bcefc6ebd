//! The caches as tasks use them.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use baseline::SingleLockCache;
use embedding_cache::{CacheKey, EmbeddingVector, EvictionPolicy};

use super::plain::{Components, Plainly};
use super::references::SINGLE_LOCK;
use super::{
    Cache, DOOR, Door, Hasher, LONG, Limits, Ours, TIME_TO_LIVE, Visitor, named, peers, references,
};
use crate::keys::{Key, TextKey};

/// A cache of vectors as tasks use it.
pub(crate) trait AsyncCache<K: Key>: Send + Sync + 'static {
    type Found: Send;

    const EVICTS: bool = true;

    fn get(&self, key: &K) -> impl Future<Output = Option<Self::Found>> + Send;

    /// The components of a hit, read through what the cache returned for it.
    fn components(found: &Self::Found) -> &[f32];

    fn put(&self, key: K, value: EmbeddingVector) -> impl Future<Output = ()> + Send;

    fn get_many(&self, keys: &[K]) -> impl Future<Output = Vec<Option<Self::Found>>> + Send;
}

pub(crate) trait AsyncVisitor<K: Key> {
    fn visit<C: AsyncCache<K>>(
        &mut self,
        name: String,
        make: impl Fn(&Limits) -> C + Send + Sync + 'static,
    );
}

/// Shows the door of this crate, moka's `future` cache, and the synchronous caches of others, called
/// from within tasks as their users call them.
pub(crate) fn visit_async<K: TextKey + Baseline>(ours: Ours, visitor: &mut impl AsyncVisitor<K>) {
    for policy in ours.policies() {
        visitor.visit(named(DOOR, policy), move |limits| Door::<K>::new(limits, policy));
    }
    visitor.visit("moka future".to_owned(), Future_::<K>::new);
    peers::visit(&mut Plainly(&mut Wrap(&mut *visitor)));
    references::visit(&mut Plainly(&mut Wrap(&mut *visitor)));
    K::baseline(visitor);
    peers::visit_with_own_hash(&mut Plainly(&mut Wrap(&mut *visitor)));
    let policy = EvictionPolicy::default();
    let make = move |limits: &Limits| {
        Door::<K>::new(&Limits { time_to_live: Some(LONG), ..*limits }, policy)
    };
    visitor.visit(format!("{DOOR} ({TIME_TO_LIVE})"), make);
}

/// A key that the single-lock baseline may have.
pub(crate) trait Baseline: TextKey {
    /// Shows the baseline, if it can have this key.
    fn baseline(_: &mut impl AsyncVisitor<Self>) {}
}

impl Baseline for embedding_cache::ContentKey {}

impl Baseline for CacheKey {
    fn baseline(visitor: &mut impl AsyncVisitor<Self>) {
        const LONG: u64 = 24 * 60 * 60;
        const MEBIBYTES: usize = 8 * 1024;
        let make = |limits: &Limits| SingleLockCache::new(limits.entries, LONG, MEBIBYTES);
        visitor.visit(SINGLE_LOCK.to_owned(), make);
    }
}

/// Shows a synchronous cache to a visitor of asynchronous ones.
struct Wrap<'a, T>(&'a mut T);

impl<K: Key, T: AsyncVisitor<K>> Visitor<K, EmbeddingVector> for Wrap<'_, T> {
    fn visit<C: Cache<K, EmbeddingVector>>(
        &mut self,
        name: String,
        make: impl Fn(&Limits) -> C + Send + Sync + 'static,
    ) {
        self.0.visit(name, move |limits| Called(make(limits)));
    }
}

/// A synchronous cache, called from within a task.
struct Called<C>(C);

impl<K: Key, C: Cache<K, EmbeddingVector>> AsyncCache<K> for Called<C> {
    type Found = C::Found;

    const EVICTS: bool = C::EVICTS;

    async fn get(&self, key: &K) -> Option<C::Found> {
        self.0.get(key)
    }

    #[inline(always)]
    fn components(found: &C::Found) -> &[f32] {
        C::components(found)
    }

    async fn put(&self, key: K, value: EmbeddingVector) {
        self.0.put(key, value);
    }

    async fn get_many(&self, keys: &[K]) -> Vec<Option<C::Found>> {
        self.0.get_many(keys)
    }
}

struct Future_<K>(moka::future::Cache<K, Components, Hasher>);

impl<K: Key> Future_<K> {
    fn new(limits: &Limits) -> Self {
        let builder = moka::future::Cache::builder().max_capacity(limits.entries as u64);
        Self(builder.build_with_hasher(Hasher::default()))
    }
}

impl<K: Key> AsyncCache<K> for Future_<K> {
    type Found = Components;

    async fn get(&self, key: &K) -> Option<Components> {
        self.0.get(key).await
    }

    #[inline(always)]
    fn components(found: &Components) -> &[f32] {
        found
    }

    async fn put(&self, key: K, value: EmbeddingVector) {
        self.0.insert(key, value.into_shared()).await;
    }

    async fn get_many(&self, keys: &[K]) -> Vec<Option<Components>> {
        one_by_one(self, keys).await
    }
}

impl AsyncCache<CacheKey> for SingleLockCache {
    type Found = Vec<f32>;

    async fn get(&self, key: &CacheKey) -> Option<Vec<f32>> {
        self.get(key).await
    }

    #[inline(always)]
    fn components(found: &Vec<f32>) -> &[f32] {
        found
    }

    async fn put(&self, key: CacheKey, value: EmbeddingVector) {
        self.put(key, value.to_vec()).await.expect("a valid entry");
    }

    async fn get_many(&self, keys: &[CacheKey]) -> Vec<Option<Vec<f32>>> {
        one_by_one(self, keys).await
    }
}

async fn one_by_one<K: Key, C: AsyncCache<K>>(cache: &C, keys: &[K]) -> Vec<Option<C::Found>> {
    let mut found = Vec::with_capacity(keys.len());
    for key in keys {
        found.push(AsyncCache::get(cache, key).await);
    }
    found
}

/// Waits for a future on a thread outside any runtime: polls it, and parks until it asks to be
/// polled again. Where it need not wait, that is one poll.
pub(crate) fn wait_for<F: Future>(future: F) -> F::Output {
    thread_local! {
        static WAKER: Waker = Waker::from(Arc::new(Unpark(thread::current())));
    }
    let mut future = pin!(future);
    WAKER.with(|waker| {
        loop {
            match future.as_mut().poll(&mut Context::from_waker(waker)) {
                Poll::Ready(output) => return output,
                // Returns at once if the waker was called since the poll.
                Poll::Pending => thread::park(),
            }
        }
    })
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
