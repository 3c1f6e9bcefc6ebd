//! The caches, each together with a workload: a [`Cell`].

use std::fmt::Debug;
use std::future::Future;
use std::hint::black_box;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use baseline::{Refusal, SingleLockCache};
use embedding_cache::{CacheError, CacheKey, EmbeddingCache, EmbeddingVector, EvictionPolicy};

use crate::parked::Parked;
use crate::workload::{Key, Kind, Operation, Script};

/// Longer than any run: every cache looks at the age of an entry, and none expires.
const TIME_TO_LIVE: Duration = Duration::from_secs(24 * 60 * 60);
/// More than all vectors together: the limit is on entries.
const MEBIBYTES: usize = 1024;

/// How to make a cache.
#[derive(Clone, Copy)]
pub(crate) enum Make {
    Baseline,
    /// A sharded cache with the default number of shards.
    Sharded(EvictionPolicy),
    /// As [`EmbeddingCache::new`] makes it: least recently used, and also in order by size.
    AsNew,
    /// With the default policy.
    WithShards(usize),
}

impl Make {
    /// The caches of all groups but those by the number of shards; the first is what the others are
    /// compared with.
    pub(crate) const ALL: [Self; 4] = [
        Self::Baseline,
        Self::Sharded(EvictionPolicy::Lru),
        Self::Sharded(EvictionPolicy::HitDensity),
        Self::AsNew,
    ];

    pub(crate) const BY_SHARDS: [Self; 4] =
        [Self::WithShards(1), Self::WithShards(4), Self::WithShards(16), Self::WithShards(64)];

    pub(crate) fn name(self) -> String {
        match self {
            Self::Baseline => "baseline".to_owned(),
            Self::Sharded(EvictionPolicy::Lru) => "LRU".to_owned(),
            Self::Sharded(EvictionPolicy::HitDensity) => "hit density".to_owned(),
            Self::Sharded(other) => format!("{other:?}"),
            Self::AsNew => "new".to_owned(),
            Self::WithShards(1) => "1 shard".to_owned(),
            Self::WithShards(shards) => format!("{shards} shards"),
        }
    }

    /// A cache made, filled and run in as the workload wants it.
    pub(crate) fn cell(self, script: &Arc<Script>) -> Arc<dyn Cell> {
        let max_entries = script.workload.max_entries();
        let seconds = TIME_TO_LIVE.as_secs();
        let sharded = EmbeddingCache::builder()
            .max_entries(max_entries)
            .max_bytes((MEBIBYTES as u64) << 20)
            .time_to_live(TIME_TO_LIVE);
        let sharded = match self {
            Self::Baseline => {
                return Ready::cell(SingleLockCache::new(max_entries, seconds, MEBIBYTES), script);
            }
            Self::AsNew => {
                return Ready::cell(EmbeddingCache::new(max_entries, seconds, MEBIBYTES), script);
            }
            Self::Sharded(policy) => sharded.eviction(policy),
            Self::WithShards(shards) => sharded.shards(shards),
        };
        Ready::cell(sharded.build().expect("a valid configuration"), script)
    }
}

/// A cache that is ready for its workload.
pub(crate) trait Cell: Send + Sync {
    /// Where the next turn begins, in which each thread or task runs `each` operations. One turn
    /// goes on where the last one of this cache ended: a slow cache, which still has what it put
    /// in its last turns, must not find just that again.
    fn next(&self, each: u64) -> usize;

    /// Runs `many` operations of the workload from number `from` on, on a thread of the caller's,
    /// and returns how many gets missed.
    fn run(&self, from: usize, many: u64) -> u64;

    /// The same as a task, which lets other tasks go on after every `request` operations.
    fn task(
        self: Arc<Self>,
        from: usize,
        many: u64,
        request: u64,
    ) -> Pin<Box<dyn Future<Output = u64> + Send>>;

    /// Whether its gets may miss.
    fn may_miss(&self) -> bool;
}

/// What a cell needs of a cache: both its faces, with a key and a vector as a server has them at
/// hand, borrowed.
trait Cache: Send + Sync + 'static {
    type Vector: Send;
    /// Why a put was refused; none is.
    type Refused: Debug;

    fn get(&self, key: &CacheKey) -> impl Future<Output = Option<Self::Vector>> + Send;

    fn put(
        &self,
        key: &CacheKey,
        vector: &EmbeddingVector,
    ) -> impl Future<Output = Result<(), Self::Refused>> + Send;

    fn get_blocking(&self, key: &CacheKey, thread: &Parked) -> Option<Self::Vector>;

    fn put_blocking(
        &self,
        key: &CacheKey,
        vector: &EmbeddingVector,
        thread: &Parked,
    ) -> Result<(), Self::Refused>;
}

impl Cache for EmbeddingCache {
    type Vector = EmbeddingVector;
    type Refused = CacheError;

    async fn get(&self, key: &CacheKey) -> Option<EmbeddingVector> {
        self.get(key).await
    }

    async fn put(&self, key: &CacheKey, vector: &EmbeddingVector) -> Result<(), CacheError> {
        self.put(key.clone(), vector.clone()).await
    }

    fn get_blocking(&self, key: &CacheKey, _: &Parked) -> Option<EmbeddingVector> {
        self.get_blocking(key)
    }

    fn put_blocking(
        &self,
        key: &CacheKey,
        vector: &EmbeddingVector,
        _: &Parked,
    ) -> Result<(), CacheError> {
        self.put_blocking(key.clone(), vector.clone())
    }
}

/// It has no blocking face, so a thread outside a runtime waits for its futures.
impl Cache for SingleLockCache {
    type Vector = Vec<f32>;
    type Refused = Refusal;

    async fn get(&self, key: &CacheKey) -> Option<Vec<f32>> {
        self.get(key).await
    }

    async fn put(&self, key: &CacheKey, vector: &EmbeddingVector) -> Result<(), Refusal> {
        self.put(key.clone(), vector.to_vec()).await
    }

    fn get_blocking(&self, key: &CacheKey, thread: &Parked) -> Option<Vec<f32>> {
        thread.wait_for(self.get(key))
    }

    fn put_blocking(
        &self,
        key: &CacheKey,
        vector: &EmbeddingVector,
        thread: &Parked,
    ) -> Result<(), Refusal> {
        thread.wait_for(self.put(key.clone(), vector.to_vec()))
    }
}

/// The only [`Cell`]. The loops are compiled for each cache; a call through the trait object covers
/// thousands of operations.
struct Ready<C> {
    cache: C,
    script: Arc<Script>,
    /// Where the next turn begins. Relaxed: turns come one after the other.
    next: AtomicUsize,
}

impl<C: Cache> Ready<C> {
    fn cell(cache: C, script: &Arc<Script>) -> Arc<dyn Cell> {
        let ready = Self { cache, script: Arc::clone(script), next: AtomicUsize::new(0) };
        let (workload, thread) = (script.workload, Parked::here());
        for key in Key::first(workload.put_beforehand()) {
            let (key, vector) = (script.material.key(key), script.material.vector(key));
            ready.cache.put_blocking(key, vector, &thread).expect(ROOM);
        }
        ready.perform(script.beforehand());
        Arc::new(ready)
    }

    fn perform<'a>(&self, operations: impl Iterator<Item = &'a Operation>) -> u64 {
        let Self { cache, script, .. } = self;
        let thread = Parked::here();
        let get = |key| black_box(cache.get_blocking(key, &thread)).is_some();
        let put = |operation: &Operation| {
            let vector = script.vector(operation);
            cache.put_blocking(&operation.key, vector, &thread).expect(ROOM);
        };
        let mut misses = 0;
        for operation in operations {
            match operation.kind {
                Kind::Get => misses += u64::from(!get(&operation.key)),
                Kind::Put => put(operation),
                Kind::GetElsePut => {
                    if !get(&operation.key) {
                        misses += 1;
                        put(operation);
                    }
                }
            }
        }
        misses
    }
}

/// Why no put of a cell fails.
const ROOM: &str = "a valid vector, much smaller than the limit";

impl<C: Cache> Cell for Ready<C> {
    fn next(&self, each: u64) -> usize {
        self.next.fetch_add(each as usize, Ordering::Relaxed)
    }

    fn run(&self, from: usize, many: u64) -> u64 {
        self.perform(self.script.operations(from, many))
    }

    fn task(
        self: Arc<Self>,
        from: usize,
        many: u64,
        request: u64,
    ) -> Pin<Box<dyn Future<Output = u64> + Send>> {
        Box::pin(async move {
            let Self { cache, script, .. } = &*self;
            let get = async |key| black_box(cache.get(key).await).is_some();
            let put = async |operation: &Operation| {
                let vector = script.vector(operation);
                cache.put(&operation.key, vector).await.expect(ROOM);
            };
            let (mut misses, mut until_yield) = (0, request);
            for operation in script.operations(from, many) {
                match operation.kind {
                    Kind::Get => misses += u64::from(!get(&operation.key).await),
                    Kind::Put => put(operation).await,
                    Kind::GetElsePut => {
                        if !get(&operation.key).await {
                            misses += 1;
                            put(operation).await;
                        }
                    }
                }
                until_yield -= 1;
                if until_yield == 0 {
                    until_yield = request;
                    tokio::task::yield_now().await;
                }
            }
            misses
        })
    }

    fn may_miss(&self) -> bool {
        self.script.workload.put_beforehand() == 0
    }
}
