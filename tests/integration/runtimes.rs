//! No public function panics for the runtime it is called in: each works there, or says what it
//! needs.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use embedding_cache::{Batcher, CacheError, CacheKey, EmbeddingCache};
use tokio::runtime::{Builder, Runtime};

const SHORT: Duration = Duration::from_millis(20);
/// Far longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// What tasks do that are spawned.
#[derive(Clone, Copy, PartialEq)]
enum Tasks {
    /// They run.
    Run,
    /// There is no runtime for them.
    NoRuntime,
    /// The runtime is shut down, and drops them.
    Dropped,
    /// Nobody drives the runtime.
    Idle,
}

impl Tasks {
    /// Whether an owned load, or a batcher, has done what it can do here.
    fn suit<T>(self, answer: &Result<T, CacheError>) -> bool {
        match answer {
            Ok(_) => matches!(self, Tasks::Run | Tasks::Idle),
            Err(error) => match self {
                Tasks::Run => false,
                Tasks::NoRuntime => error.is_configuration(),
                Tasks::Dropped => error.is_abandoned(),
                Tasks::Idle => error.is_timeout() || error.is_abandoned(),
            },
        }
    }
}

fn key(text: &str) -> CacheKey {
    CacheKey::new(text, "model@1")
}

/// Calls everything that is async or spawns.
async fn call_everything(tasks: Tasks) {
    let cache = EmbeddingCache::builder()
        .max_entries(1000)
        .time_to_live(LONG)
        .stale_if_error(LONG)
        .build()
        .unwrap();
    call_entries(&cache).await;
    call_borrowed_loads(&cache).await;
    call_borrowed_loads_that_wait(&cache).await;
    call_owned_loads(&cache, tasks).await;
    call_sweeps(&cache).await;
    call_cleanup(tasks).await;
    call_batcher(&cache, tasks).await;
    #[cfg(feature = "tier")]
    call_tier().await;
}

/// What waits for the second tier does so on the caller's task, in whatever runtime that runs.
#[cfg(feature = "tier")]
async fn call_tier() {
    use embedding_cache::tier::SecondTier;

    let tier = SecondTier::new(crate::tier::fake::Fake::default());
    let cache = EmbeddingCache::builder().max_entries(10).tier(tier).build().unwrap();
    cache.put(key("here"), [1.0]).await.unwrap();
    assert_eq!(cache.get_through(&key("here")).await.unwrap(), [1.0]);
    assert!(cache.get_through(&key("nowhere")).await.is_none());
    let both = cache.get_through_many([key("here"), key("nowhere")]).await;
    assert!(both[0].is_some() && both[1].is_none());
    // Where no task runs nothing is written, and the deadline ends this.
    cache.tier_flush(SHORT).await;
    cache.invalidate_model_through("another").await.unwrap();
    cache.invalidate_tenant_through("tenant").await.unwrap();
    assert_eq!(cache.invalidate_all_through().await.unwrap(), 1);
}

async fn call_entries(cache: &EmbeddingCache) {
    let red = key("red");
    cache.put(red.clone(), [1.0]).await.unwrap();
    assert_eq!(cache.get(&red).await.unwrap(), [1.0]);
    cache.put_with_ttl(key("green"), [2.0], LONG).await.unwrap();
    cache.put_with_timeout(key("blue"), [3.0], 60_000).await.unwrap();
    cache.put_with_timeout(key("blue"), [3.0], 0).await.unwrap();
    assert_eq!(cache.get_with_timeout(&key("blue"), 60_000).await.unwrap().unwrap(), [3.0]);
    assert_eq!(cache.get_with_timeout(&key("blue"), 0).await.unwrap().unwrap(), [3.0]);
    let many: Vec<CacheKey> = (0..500).map(|text| key(&format!("{text}"))).collect();
    let put = cache.put_many(many.iter().map(|key| (key.clone(), [4.0]))).await;
    assert!(put.iter().all(Result::is_ok), "{put:?}");
    assert_eq!(cache.get_many(&many).await.iter().flatten().count(), 500);
    let put = cache.put_many_with_ttl([(key("blue"), [3.0], Some(LONG))]).await;
    assert!(put[0].is_ok(), "{put:?}");
    assert_eq!(cache.size().await, 503);
    cache.try_put_for(key("blue"), [3.0], SHORT).await.unwrap();
    assert_eq!(cache.try_get_for(&key("blue"), SHORT).await.unwrap().unwrap(), [3.0]);
    assert_eq!(cache.peek(&key("blue")).await.unwrap(), [3.0]);
    assert!(cache.contains_key(&key("blue")).await);
    assert!(cache.entry_info(&key("blue")).await.is_some());
    assert!(cache.set_ttl(&key("blue"), LONG).await.unwrap());
    assert_eq!((cache.iter().count(), cache.keys().count(), cache.len()), (503, 503, 503));
    assert_eq!(cache.remove(&red).await.unwrap(), [1.0]);
}

async fn call_sweeps(cache: &EmbeddingCache) {
    cache.put_with_ttl(key("gone"), [1.0], Duration::ZERO).await.unwrap();
    cache.cleanup_expired_safe().await;
    cache.invalidate_model("another").await;
    cache.retain(|_, _| true).await;
    cache.invalidate_tenant("tenant").await;
    cache.invalidate_if(|key, _| key.content_hash == "blue").await;
    assert!(cache.get(&key("blue")).await.is_none());
    assert!(cache.invalidate_all().await > 0);
    cache.clear().await;
    assert_eq!(cache.size().await, 0);
}

async fn call_borrowed_loads(cache: &EmbeddingCache) {
    let load = cache.load().get_or_embed_borrowed(key("borrowed"), || async { [5.0] });
    assert_eq!(load.await.unwrap(), [5.0]);
    let keys = [key("borrowed"), key("two")];
    let load = cache.load().get_or_embed_many_borrowed(&keys, |_| async { vec![[6.0]] });
    assert_eq!(load.await[1].as_ref().unwrap(), &[6.0]);
}

async fn call_borrowed_loads_that_wait(cache: &EmbeddingCache) {
    // Out of time.
    let load = cache.load().timeout(SHORT);
    let never = || std::future::pending::<[f32; 1]>();
    assert!(load.get_or_embed_borrowed(key("never"), never).await.unwrap_err().is_timeout());
    let load = cache.load().timeout(SHORT);
    let never = |_| std::future::pending::<Vec<[f32; 1]>>();
    let answers = load.get_or_embed_many_borrowed(&[key("never")], never).await;
    assert!(answers[0].as_ref().unwrap_err().is_timeout());

    // One that joins another, is not polled by it, and takes it over.
    let mut first = Box::pin(cache.load().get_or_embed_borrowed(key("joined"), || async {
        tokio::task::yield_now().await;
        [7.0]
    }));
    assert!(poll_once(first.as_mut()).is_pending());
    let second = cache.load().get_or_embed_borrowed(key("joined"), || async { [8.0] });
    assert_eq!(second.await.unwrap(), [8.0], "the first is not polled");
    drop(first);
}

async fn call_owned_loads(cache: &EmbeddingCache, tasks: Tasks) {
    // Where nobody drives the runtime, a deadline is what ends a load.
    let within = if tasks == Tasks::Idle { 10 * SHORT } else { LONG };
    if tasks != Tasks::Idle {
        let answer = cache.get_or_embed(key("owned"), || async { [9.0] }).await;
        assert!(tasks.suit(&answer), "{answer:?}");
        let answers = cache.get_or_embed_many([key("owned 2")], |_| async { vec![[9.0]] }).await;
        assert!(tasks.suit(&answers[0]), "{answers:?}");
    }
    let load = cache.load().timeout(within);
    let answer = load.get_or_embed(key("owned 3"), || async { [9.0] }).await;
    assert!(tasks.suit(&answer), "{answer:?}");
    let load = cache.load().timeout(within).time_to_live(LONG).max_batch(1);
    let answers = load.get_or_embed_many([key("owned 4")], |_| async { vec![[9.0]] }).await;
    assert!(tasks.suit(&answers[0]), "{answers:?}");
    if tasks == Tasks::Run {
        let load = cache.load().timeout(SHORT);
        let never = || std::future::pending::<[f32; 1]>();
        assert!(load.get_or_embed(key("never"), never).await.unwrap_err().is_timeout());
    }

    // A hit asks for no runtime.
    cache.put(key("hit"), [1.0]).await.unwrap();
    let hit = cache.get_or_embed(key("hit"), || async { [0.0] }).await;
    assert_eq!(hit.unwrap(), [1.0]);
    let hits = cache.get_or_embed_many([key("hit")], |_| async { vec![[0.0]] }).await;
    assert_eq!(hits[0].as_ref().unwrap(), &[1.0]);
}

async fn call_cleanup(tasks: Tasks) {
    let cache = EmbeddingCache::builder().max_entries(10).time_to_live(Duration::ZERO).build();
    let cache = cache.unwrap();
    cache.put(key("expired"), [1.0]).await.unwrap();
    for interval in [SHORT, Duration::MAX] {
        match cache.spawn_cleanup(interval) {
            Err(error) => assert!(tasks == Tasks::NoRuntime && error.is_configuration(), "{error}"),
            Ok(cleanup) if interval == SHORT && tasks == Tasks::Run => {
                while cache.size().await > 0 {
                    tokio::task::yield_now().await;
                }
                assert!(!cleanup.is_finished());
            }
            Ok(cleanup) => {
                assert_eq!(cleanup.is_finished(), tasks == Tasks::Dropped);
            }
        }
    }
}

async fn call_batcher(cache: &EmbeddingCache, tasks: Tasks) {
    for delay in [Duration::ZERO, SHORT, Duration::MAX] {
        let settings = Batcher::builder().max_delay(delay).max_batch(2);
        let batcher = settings.build(|texts: Vec<f32>| async move {
            tokio::task::yield_now().await;
            texts.into_iter().map(|text| [text]).collect::<Vec<_>>()
        });
        let batcher = match batcher {
            Ok(batcher) => batcher,
            Err(error) => {
                assert!(tasks.suit(&Err::<(), _>(error)));
                continue;
            }
        };
        for answer in batcher.embed_many([1.0, 2.0]).await {
            assert!(tasks.suit(&answer), "{answer:?}");
        }
        if delay == Duration::MAX {
            continue;
        }
        let answer = batcher.embed(3.0).await;
        assert!(tasks.suit(&answer), "{answer:?}");
        let text = key(&format!("batched {delay:?}"));
        let load = cache.load().get_or_embed_borrowed(text, || batcher.embed(4.0)).await;
        assert_eq!(load.is_ok(), answer.is_ok(), "{load:?}");
    }
}

fn poll_once<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// Polls by hand, whenever it is woken, on a thread that knows of no runtime.
fn by_hand(future: impl Future<Output = ()>) {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    while future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
        std::thread::park_timeout(LONG);
    }
}

#[test]
fn without_a_runtime() {
    by_hand(call_everything(Tasks::NoRuntime));
}

#[test]
fn in_another_executor() {
    pollster::block_on(call_everything(Tasks::NoRuntime));
}

#[test]
fn in_runtimes_without_timers() {
    Builder::new_current_thread().build().unwrap().block_on(call_everything(Tasks::Run));
    let threads = Builder::new_multi_thread().worker_threads(2).build().unwrap();
    threads.block_on(async { tokio::spawn(call_everything(Tasks::Run)).await.unwrap() });
}

#[test]
fn in_runtimes_with_timers() {
    let one = Builder::new_current_thread().enable_time().build().unwrap();
    one.block_on(call_everything(Tasks::Run));
    one.block_on(async { tokio::spawn(call_everything(Tasks::Run)).await.unwrap() });
    let threads = Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    threads.block_on(async { tokio::spawn(call_everything(Tasks::Run)).await.unwrap() });
}

#[test]
fn in_a_local_set() {
    let one = Builder::new_current_thread().enable_time().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&one, async {
        tokio::task::spawn_local(call_everything(Tasks::Run)).await.unwrap();
    });
}

/// Entered from outside, and driven by its own threads.
#[test]
fn in_another_executor_beside_a_runtime() {
    let threads = Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
    let _inside = threads.enter();
    pollster::block_on(call_everything(Tasks::Run));
}

#[test]
fn in_a_runtime_that_nobody_drives() {
    let idle = Builder::new_current_thread().enable_time().build().unwrap();
    let _inside = idle.enter();
    pollster::block_on(call_everything(Tasks::Idle));
}

#[test]
fn in_a_runtime_without_timers_that_nobody_drives() {
    let idle = Builder::new_current_thread().build().unwrap();
    let _inside = idle.enter();
    pollster::block_on(call_everything(Tasks::Idle));
}

#[test]
fn in_a_runtime_that_has_shut_down() {
    for enabled in [true, false] {
        let mut builder = Builder::new_multi_thread();
        let builder = builder.worker_threads(1);
        let gone: Runtime =
            if enabled { builder.enable_time().build() } else { builder.build() }.unwrap();
        let handle = gone.handle().clone();
        gone.shutdown_timeout(LONG);
        let _inside = handle.enter();
        pollster::block_on(call_everything(Tasks::Dropped));
    }
}

/// Its tasks are dropped one by one, wherever they are, and what they call then is called in a
/// runtime that is shutting down. Nothing there may wait: the thread is the runtime's only one.
#[test]
fn in_a_runtime_that_is_shutting_down() {
    struct OnDrop(EmbeddingCache);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            pollster::block_on(async {
                call_entries(&self.0).await;
                call_borrowed_loads(&self.0).await;
                call_sweeps(&self.0).await;
                let mut owned = pin!(self.0.get_or_embed(key("owned"), || async { [1.0] }));
                if let Poll::Ready(answer) = poll_once(owned.as_mut()) {
                    assert!(Tasks::Dropped.suit(&answer), "{answer:?}");
                }
            });
            self.0.put_blocking(key("dropped"), [1.0]).unwrap();
        }
    }
    let cache = EmbeddingCache::builder().max_entries(1000).build().unwrap();
    let one = Builder::new_current_thread().enable_time().build().unwrap();
    let held = OnDrop(cache.clone());
    one.block_on(async {
        tokio::spawn(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        tokio::task::yield_now().await;
    });
    drop(one);
    assert!(cache.get_blocking(&key("dropped")).is_some(), "it went through");
}

/// So that nothing is forgotten above.
#[test]
fn every_async_function_is_called_here() {
    let mut sources = vec![concat!(env!("CARGO_MANIFEST_DIR"), "/src/embedding").into()];
    let here = include_str!("runtimes.rs");
    let mut found = 0;
    while let Some(path) = sources.pop() {
        let path: std::path::PathBuf = path;
        if path.is_dir() {
            sources.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let source = std::fs::read_to_string(&path).unwrap();
        for line in source.lines() {
            let Some((_, rest)) = line.split_once("pub async fn ") else { continue };
            let name = rest.split(['(', '<']).next().unwrap();
            assert!(here.contains(&format!(".{name}(")), "{name} of {path:?} is not called");
            found += 1;
        }
    }
    assert!(found >= 20, "{found} found");
}
