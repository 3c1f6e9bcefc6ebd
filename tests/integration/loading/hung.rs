//! Calls that never end, and runtimes that nobody drives: their keys and permits come back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use embedding_cache::EmbeddingCache;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use super::model::{Model, get, key, keys, until, vector};

fn narrow(loads: usize) -> EmbeddingCache {
    EmbeddingCache::builder().max_entries(100).max_concurrent_loads(loads).build().unwrap()
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().build().unwrap()
}

/// Begins loads of `texts` that never end, in a runtime that is not driven from then on.
fn left_behind(cache: &EmbeddingCache, texts: std::ops::Range<u32>) -> Runtime {
    let runtime = runtime();
    runtime.block_on(async {
        let expected = cache.info().keys_in_flight + texts.len();
        for text in texts {
            let cache = cache.clone();
            tokio::spawn(async move {
                let never = || std::future::pending::<Vec<f32>>();
                cache.get_or_embed(key(text), never).await
            });
        }
        until(|| cache.info().keys_in_flight == expected).await;
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    });
    runtime
}

/// One end of a scale for "at once", far from the other.
const LONG: Duration = Duration::from_secs(30);

#[test]
fn an_owned_call_in_a_runtime_that_nobody_drives_is_taken_over() {
    let cache = narrow(256);
    let asleep = left_behind(&cache, 1..2);
    let (started, model) = (Instant::now(), Model::new());
    runtime().block_on(get(&cache, &model, &[1]));
    assert!(started.elapsed() < LONG);
    assert_eq!(model.items(), 1);
    drop(asleep);
    assert_eq!(runtime().block_on(cache.get(&key(1))).unwrap(), vector(1));
    assert_eq!(cache.info().keys_in_flight, 0);
}

/// They are asked together whether they are alive, not one after the other.
#[test]
fn a_batch_takes_many_calls_over_in_the_time_of_one() {
    let cache = narrow(256);
    let asleep = left_behind(&cache, 1..21);
    let texts: Vec<u32> = (1..41).collect();
    asleep.block_on(async {
        let (loading, batch) = (cache.clone(), keys(&texts[20..]));
        let never = |_| std::future::pending::<Vec<Vec<f32>>>();
        tokio::spawn(async move { loading.get_or_embed_many(&batch, never).await });
        until(|| cache.info().keys_in_flight == texts.len()).await;
    });
    let (started, model) = (Instant::now(), Model::new());
    runtime().block_on(get(&cache, &model, &texts));
    assert!(started.elapsed() < LONG, "{:?}", started.elapsed());
    assert_eq!(model.items(), texts.len());
    drop(asleep);
    assert_eq!(cache.info().keys_in_flight, 0);
}

/// All permits are held where nobody polls, and some that wait in the queue are there as well.
#[test]
fn permits_that_nobody_drives_come_back() {
    for held in [2, 5] {
        let cache = narrow(2);
        let asleep = left_behind(&cache, 10..10 + held);
        let (started, model) = (Instant::now(), Model::new());
        runtime().block_on(get(&cache, &model, &[1, 2, 3]));
        assert!(started.elapsed() < LONG);
        // Whoever asks for those keys has them too.
        runtime().block_on(get(&cache, &model, &[10, 11]));
        drop(asleep);
    }
}

/// It goes on when the runtime is driven again, and overwrites nothing that is newer.
#[test]
fn a_call_that_was_taken_over_and_goes_on_after_all_overwrites_nothing() {
    let (cache, model) = (narrow(4), Model::gated());
    let asleep = runtime();
    let (loading, seen) = (cache.clone(), model.clone());
    let waits = asleep.spawn(async move { get(&loading, &seen, &[1]).await });
    asleep.block_on(until(|| model.calls() == 1));
    let taken_over =
        runtime().block_on(cache.get_or_embed(key(1), || async { [9.0, 9.5] })).unwrap();
    assert_eq!(taken_over, [9.0, 9.5]);
    model.answer(1);
    // Its own caller still has the answer of its own model.
    asleep.block_on(waits).unwrap();
    assert_eq!(runtime().block_on(cache.get(&key(1))).unwrap(), [9.0, 9.5]);
    // Nor does it undo a removal that came after.
    runtime().block_on(cache.remove(&key(1)));
    asleep.block_on(tokio::task::yield_now());
    assert_eq!(runtime().block_on(cache.get(&key(1))), None);
    assert_eq!(cache.info().keys_in_flight, 0);
}

/// A model that computes inside its poll, for longer than a ping is waited for, is alive.
#[test]
fn a_call_that_blocks_its_thread_is_not_taken_over() {
    let cache = narrow(4);
    let (calls, elsewhere) = (Arc::new(AtomicUsize::new(0)), runtime());
    let busy = std::thread::spawn({
        let (cache, calls) = (cache.clone(), Arc::clone(&calls));
        move || {
            runtime().block_on(cache.get_or_embed(key(1), || async move {
                calls.fetch_add(1, SeqCst);
                std::thread::sleep(Duration::from_millis(2500));
                vector(1)
            }))
        }
    });
    while calls.load(SeqCst) == 0 {
        std::thread::yield_now();
    }
    let again = Arc::clone(&calls);
    let joined = elsewhere.block_on(cache.get_or_embed(key(1), || async move {
        again.fetch_add(1, SeqCst);
        vector(1)
    }));
    assert_eq!(joined.unwrap(), vector(1));
    busy.join().unwrap().unwrap();
    assert_eq!(calls.load(SeqCst), 1);
}

/// On a machine that is too busy, the task of a call may have its turn only after seconds, while the
/// timers of the request that waits for it are in time.
#[test]
fn a_request_waits_for_its_own_call_however_late_the_executor_is() {
    let (cache, busy) = (narrow(4), runtime());
    let (tasks, (release, released)) = (busy.handle().clone(), std::sync::mpsc::channel());
    let working = std::thread::spawn(move || {
        busy.block_on(async {
            // Far longer than the pings of two silences.
            std::thread::sleep(Duration::from_secs(4));
            while released.try_recv().is_err() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
    });
    let calls = AtomicUsize::new(0);
    let answer = runtime().block_on(async {
        // What is spawned here runs there.
        let _elsewhere = tasks.enter();
        let embed = || {
            calls.fetch_add(1, SeqCst);
            async { vector(1) }
        };
        cache.get_or_embed(key(1), embed).await
    });
    release.send(()).unwrap();
    working.join().unwrap();
    assert_eq!((answer.unwrap(), calls.load(SeqCst)), (vector(1).into(), 1));
    assert_eq!(cache.stats().loads, 1);
}

/// Four hung calls at a limit of four, nobody waits for them any more, and everything is invalidated.
#[tokio::test(start_paused = true)]
async fn superseded_calls_for_which_nobody_waits_give_their_permits_back() {
    let invalidate: [fn(EmbeddingCache) -> Unit; 5] = [
        |cache| Box::pin(async move { cache.clear().await }),
        |cache| {
            Box::pin(async move {
                cache.invalidate_model("model").await;
            })
        },
        |cache| {
            Box::pin(async move {
                cache.invalidate_if(|_, _| true).await;
            })
        },
        |cache| {
            Box::pin(async move {
                for text in 0..4 {
                    assert_eq!(cache.remove(&key(text)).await, None);
                }
            })
        },
        |cache| {
            Box::pin(async move {
                let newer = (0..4).map(|text| (key(text), vector(text)));
                assert!(cache.put_many(newer).await.iter().all(Result::is_ok));
            })
        },
    ];
    for (way, invalidate) in invalidate.into_iter().enumerate() {
        for leave_first in [true, false] {
            let cache = narrow(4);
            let dropped = Arc::new(AtomicUsize::new(0));
            let mut callers = JoinSet::new();
            for text in 0..4 {
                let (cache, dropped) = (cache.clone(), Dropped(Arc::clone(&dropped)));
                callers.spawn(async move {
                    let hang = || async move {
                        let _dropped = dropped;
                        std::future::pending::<Vec<f32>>().await
                    };
                    cache.get_or_embed(key(text), hang).await
                });
            }
            until(|| cache.info().keys_in_flight == 4).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
            if leave_first {
                callers.shutdown().await;
                invalidate(cache.clone()).await;
            } else {
                invalidate(cache.clone()).await;
                callers.shutdown().await;
            }
            get(&cache, &Model::new(), &[10, 11]).await;
            until(|| dropped.load(SeqCst) == 4).await;
            assert_eq!(cache.info().keys_in_flight, 0, "way {way}");
        }
    }
}

type Unit = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

struct Dropped(Arc<AtomicUsize>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// As long as somebody waits it may still be answered.
#[tokio::test]
async fn a_superseded_call_that_somebody_waits_for_goes_on() {
    let (cache, model) = (narrow(4), Model::gated());
    let waits = tokio::spawn({
        let (cache, model) = (cache.clone(), model.clone());
        async move { get(&cache, &model, &[1]).await }
    });
    until(|| model.calls() == 1).await;
    cache.invalidate_all().await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    model.answer(1);
    waits.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_load_timeout_ends_calls_and_gives_back_what_they_held() {
    let cache = EmbeddingCache::builder()
        .max_entries(100)
        .max_concurrent_loads(4)
        .load_timeout(Duration::from_secs(5))
        .build()
        .unwrap();
    let dropped = Arc::new(AtomicUsize::new(0));
    let mut callers = JoinSet::new();
    // Four of them run, four wait for their turn, and each has one that joins it.
    for text in 0..16 {
        let (cache, dropped) = (cache.clone(), Dropped(Arc::clone(&dropped)));
        callers.spawn(async move {
            let hang = || async move {
                let _dropped = dropped;
                std::future::pending::<Vec<f32>>().await
            };
            cache.get_or_embed(key(text % 8), hang).await
        });
    }
    let started = tokio::time::Instant::now();
    while let Some(answer) = callers.join_next().await {
        let error = answer.unwrap().unwrap_err();
        assert!(error.is_load_timeout() && !error.is_timeout(), "{error}");
        assert!(error.to_string().contains("5s"), "{error}");
    }
    let waited = started.elapsed();
    assert!(waited >= Duration::from_secs(5) && waited < Duration::from_secs(6), "{waited:?}");
    assert_eq!(dropped.load(SeqCst), 16);
    assert_eq!(cache.info().keys_in_flight, 0);
    get(&cache, &Model::new(), &[0, 1, 2, 3, 4, 5]).await;
    // A borrowed call has the same limit.
    let never = || std::future::pending::<Vec<f32>>();
    let error = cache.load().get_or_embed_borrowed(key(9), never).await.unwrap_err();
    assert!(error.is_load_timeout());
    assert_eq!(cache.info().keys_in_flight, 0);
}

/// Where the call cannot keep its own time, those that wait keep it: its runtime is not driven, or its
/// poll does not return.
#[test]
fn who_waits_for_a_call_that_cannot_end_itself_has_the_load_timeout_all_the_same() {
    let builder = EmbeddingCache::builder().max_entries(100).max_concurrent_loads(1);
    let cache = builder.load_timeout(Duration::from_millis(200)).build().unwrap();
    let blocked = Arc::new(std::sync::Barrier::new(2));
    let busy = std::thread::spawn({
        let (cache, blocked) = (cache.clone(), Arc::clone(&blocked));
        move || {
            runtime().block_on(cache.get_or_embed(key(1), || async move {
                blocked.wait();
                blocked.wait();
                vector(1)
            }))
        }
    });
    blocked.wait();
    let (elsewhere, started) = (runtime(), Instant::now());
    let joined = elsewhere.block_on(cache.get_or_embed(key(1), || async { vector(1) }));
    assert!(joined.unwrap_err().is_load_timeout());
    assert!(started.elapsed() < LONG);
    // Its key and its permit are free, though its thread still sits in it.
    let again = elsewhere.block_on(cache.get_or_embed(key(1), || async { [5.0, 6.0] }));
    assert_eq!(again.unwrap(), [5.0, 6.0]);
    blocked.wait();
    let late = busy.join().unwrap();
    assert!(late.unwrap_err().is_load_timeout());
    assert_eq!(elsewhere.block_on(cache.get(&key(1))).unwrap(), [5.0, 6.0]);
}

#[test]
fn a_load_timeout_of_zero_is_refused() {
    let builder = EmbeddingCache::builder().max_entries(100).load_timeout(Duration::ZERO);
    let error = builder.build().unwrap_err();
    assert!(error.is_configuration());
    assert!(error.to_string().contains("is 0"), "{error}");
}

#[tokio::test]
async fn the_longest_load_timeouts_are_no_limit() {
    let builder = EmbeddingCache::builder().max_entries(100).load_timeout(Duration::MAX);
    get(&builder.build().unwrap(), &Model::new(), &[1, 2]).await;
}

/// In a runtime without timers, and outside any: joining a borrowed load needs neither.
#[test]
fn a_load_is_joined_where_there_are_no_timers() {
    let cache = narrow(4);
    let both = async {
        let slow = || async {
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            vector(1)
        };
        let first = cache.load().get_or_embed_borrowed(key(1), slow);
        let second = cache.load().get_or_embed_borrowed(key(1), || async { vector(1) });
        let (first, second) = tokio::join!(first, second);
        assert_eq!((first.unwrap(), second.unwrap()), (vector(1).into(), vector(1).into()));
    };
    Builder::new_current_thread().build().unwrap().block_on(both);
    Builder::new_current_thread().build().unwrap().block_on(async {
        let first = cache.load().get_or_embed_borrowed(key(2), || async {
            tokio::task::yield_now().await;
            vector(2)
        });
        let owned = cache.get_or_embed(key(2), || async { vector(2) });
        let (first, owned) = tokio::join!(first, owned);
        assert_eq!(first.unwrap(), owned.unwrap());
    });
}

/// A call that waits for its turn for long asks whether those that have one live. It takes its turn all
/// the same as soon as that is free.
#[tokio::test(start_paused = true)]
async fn a_turn_that_is_free_is_taken_at_once_however_long_it_was_waited_for() {
    // Ends of calls that fall into every phase of the asking.
    for length in [300, 750, 900, 1050, 1700] {
        let (cache, length) = (narrow(1), Duration::from_millis(length));
        let mut callers = JoinSet::new();
        let started = tokio::time::Instant::now();
        for text in 0..6 {
            let cache = cache.clone();
            let slow = move || async move {
                tokio::time::sleep(length).await;
                vector(text)
            };
            callers.spawn(async move { cache.get_or_embed(key(text), slow).await });
        }
        while let Some(answer) = callers.join_next().await {
            answer.unwrap().unwrap();
        }
        // The clock is paused: what is over six calls is time in which the permit lay idle.
        let idle = started.elapsed() - 6 * length;
        assert!(idle < Duration::from_millis(50), "{idle:?} idle with calls of {length:?}");
    }
}
