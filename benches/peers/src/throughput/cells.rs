//! A cache that is ready for its workload, with the loops that run it.

use std::future::Future;
use std::hint::black_box;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use embedding_cache::EmbeddingVector;

use super::script::{Script, Workload};
use crate::caches::{AsyncCache, AsyncVisitor, Cache, Limits, Visitor, wait_for};
use crate::keys::TextKey;

/// Keys of a batch, and operations after which a task yields.
pub(crate) const BATCH: usize = 64;

/// Behind a trait object: a call covers thousands of operations.
pub(crate) trait Runner: Send + Sync {
    /// Where the next turn begins, in which each thread or task runs `each` operations: where the
    /// last one of this cache ended. A cache must not find just what it put in its last turns.
    fn next(&self, each: usize) -> usize;

    /// After how many operations the script begins anew.
    fn period(&self) -> usize;

    /// Runs `many` operations from number `from` on; returns how many gets missed.
    fn run(&self, from: usize, many: usize) -> u64;

    /// The same as a task; one that is alone need not yield.
    fn task(self: Arc<Self>, from: usize, many: usize, alone: bool) -> Task;
}

pub(crate) type Task = Pin<Box<dyn Future<Output = u64> + Send>>;

/// Which trait a cache is used through.
pub(crate) struct Threaded;
pub(crate) struct Tasked;

/// Makes every cache it is shown ready.
pub(crate) struct Gathered<K, Face> {
    script: Arc<Script<K>>,
    pub(crate) caches: Vec<(String, Arc<dyn Runner>)>,
    face: PhantomData<Face>,
}

impl<K: TextKey, Face> Gathered<K, Face> {
    pub(crate) fn new(script: &Arc<Script<K>>) -> Self {
        Self { script: Arc::clone(script), caches: Vec::new(), face: PhantomData }
    }
}

impl<K: TextKey> Visitor<K, EmbeddingVector> for Gathered<K, Threaded> {
    fn visit<C: Cache<K, EmbeddingVector>>(
        &mut self,
        name: String,
        make: impl Fn(&Limits) -> C + Send + Sync + 'static,
    ) {
        if self.script.workload == Workload::Evict && !C::EVICTS {
            return;
        }
        let (cache, script) = (make(&self.script.limits()), Arc::clone(&self.script));
        for (key, vector) in script.fill() {
            cache.put(key, vector);
        }
        // What left although there is room: some caches divide it unevenly, or grow too late.
        for (key, vector) in script.fill() {
            if cache.get(&key).is_none() {
                cache.put(key, vector);
            }
        }
        for (key, number) in &script.beforehand {
            if cache.get(key).is_none() {
                cache.put(key.clone(), script.vector_of(*number).clone());
            }
        }
        cache.settle();
        let ready = Ready {
            cache,
            script,
            next: AtomicUsize::new(0),
            face: PhantomData::<fn() -> Threaded>,
        };
        self.caches.push((name, Arc::new(ready)));
    }
}

impl<K: TextKey> AsyncVisitor<K> for Gathered<K, Tasked> {
    fn visit<C: AsyncCache<K>>(
        &mut self,
        name: String,
        make: impl Fn(&Limits) -> C + Send + Sync + 'static,
    ) {
        if self.script.workload == Workload::Evict && !C::EVICTS {
            return;
        }
        let (cache, script) = (make(&self.script.limits()), Arc::clone(&self.script));
        wait_for(async {
            for (key, vector) in script.fill() {
                cache.put(key, vector).await;
            }
            for (key, vector) in script.fill() {
                if cache.get(&key).await.is_none() {
                    cache.put(key, vector).await;
                }
            }
            for (key, number) in &script.beforehand {
                if cache.get(key).await.is_none() {
                    cache.put(key.clone(), script.vector_of(*number).clone()).await;
                }
            }
        });
        let ready =
            Ready { cache, script, next: AtomicUsize::new(0), face: PhantomData::<fn() -> Tasked> };
        self.caches.push((name, Arc::new(ready)));
    }
}

struct Ready<K, C, Face> {
    cache: C,
    script: Arc<Script<K>>,
    /// Relaxed: turns come one after the other.
    next: AtomicUsize,
    face: PhantomData<fn() -> Face>,
}

impl<K, C, Face> Ready<K, C, Face> {
    fn places(&self, from: usize, many: usize) -> impl Iterator<Item = usize> + use<K, C, Face> {
        let mask = self.script.keys.len() - 1;
        (from..from + many).map(move |at| at & mask)
    }

    /// Where the batches that hold so many operations begin.
    fn batches(&self, from: usize, many: usize) -> impl Iterator<Item = usize> + use<K, C, Face> {
        let mask = self.script.keys.len() - 1;
        let first = from - from % BATCH;
        (first..first + many).step_by(BATCH).map(move |at| at & mask)
    }
}

/// The dot product, in eight sums that the compiler can keep in one register.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; 8];
    for (a, b) in a.chunks_exact(8).zip(b.chunks_exact(8)) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum()
}

/// The workloads, once for threads and once for tasks: `$await` is nothing or `.await`, `$after` what
/// comes after each operation and `$after_batch` what comes after each batch.
macro_rules! perform {
    ($ready:expr, $from:expr, $many:expr, $after:block, $after_batch:block, [$($await:tt)*]) => {{
        let Ready { cache, script, .. } = $ready;
        let keys = &script.keys;
        let mut misses = 0;
        match script.workload {
            Workload::HotHits | Workload::ZipfHits | Workload::UniformHits | Workload::Misses => {
                for at in $ready.places($from, $many) {
                    let found = black_box(cache.get(&keys[at])$($await)*);
                    misses += u64::from(found.is_none());
                    $after
                }
            }
            Workload::ReadHits => {
                let query = script.vector_of(0);
                for at in $ready.places($from, $many) {
                    let found = cache.get(&keys[at])$($await)*;
                    misses += u64::from(found.is_none());
                    black_box(found.map(|found| dot(query, C::components(&found))));
                    $after
                }
            }
            Workload::Puts5 | Workload::Puts50 => {
                for at in $ready.places($from, $many) {
                    if script.puts[at] {
                        cache.put(keys[at].clone(), script.vector(at).clone())$($await)*;
                    } else {
                        let found = black_box(cache.get(&keys[at])$($await)*);
                        misses += u64::from(found.is_none());
                    }
                    $after
                }
            }
            Workload::Evict => {
                for at in $ready.places($from, $many) {
                    if black_box(cache.get(&keys[at])$($await)*).is_none() {
                        misses += 1;
                        cache.put(keys[at].clone(), script.vector(at).clone())$($await)*;
                    }
                    $after
                }
            }
            Workload::Batches => {
                for at in $ready.batches($from, $many) {
                    let found = cache.get_many(&keys[at..at + BATCH])$($await)*;
                    misses += found.iter().filter(|found| found.is_none()).count() as u64;
                    black_box(found);
                    $after_batch
                }
            }
        }
        misses
    }};
}

impl<K: TextKey, C: Cache<K, EmbeddingVector>> Runner for Ready<K, C, Threaded> {
    fn next(&self, each: usize) -> usize {
        self.next.fetch_add(each, Ordering::Relaxed)
    }

    fn period(&self) -> usize {
        self.script.keys.len()
    }

    fn run(&self, from: usize, many: usize) -> u64 {
        perform!(self, from, many, {}, {}, [])
    }

    fn task(self: Arc<Self>, _: usize, _: usize, _: bool) -> Task {
        unreachable!("threads drive it")
    }
}

impl<K: TextKey, C: AsyncCache<K>> Runner for Ready<K, C, Tasked> {
    fn next(&self, each: usize) -> usize {
        self.next.fetch_add(each, Ordering::Relaxed)
    }

    fn period(&self) -> usize {
        self.script.keys.len()
    }

    fn run(&self, _: usize, _: usize) -> u64 {
        unreachable!("tasks drive it")
    }

    fn task(self: Arc<Self>, from: usize, many: usize, alone: bool) -> Task {
        Box::pin(async move {
            let ready = &*self;
            // One alone has nobody to let go on; to yield would only wake an idle worker, in vain.
            let request = if alone { usize::MAX } else { BATCH };
            let mut left = request;
            perform!(
                ready,
                from,
                many,
                {
                    left -= 1;
                    if left == 0 {
                        left = request;
                        tokio::task::yield_now().await;
                    }
                },
                {
                    if !alone {
                        tokio::task::yield_now().await;
                    }
                },
                [.await]
            )
        })
    }
}
