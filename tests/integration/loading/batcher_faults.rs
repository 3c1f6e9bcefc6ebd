//! The batcher where something goes wrong around it: its runtime is not driven any more, or what is
//! a caller's panics. Others are served all the same.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use embedding_cache::Batcher;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use super::model::{Model, cache, key, until, vector};

/// Far longer than it takes to notice that a runtime is not driven.
const LONG: Duration = Duration::from_secs(60);

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().build().unwrap()
}

fn before(model: &Model) -> Batcher<u32> {
    let model = model.clone();
    let settings = Batcher::builder().max_batch(8).max_delay(Duration::from_millis(5));
    settings.build(move |texts| model.clone().embed(texts)).unwrap()
}

#[test]
fn a_batcher_is_served_when_its_runtime_is_driven_no_more() {
    let idle = runtime();
    let model = Model::new();
    let batcher = idle.block_on(async {
        let batcher = before(&model);
        assert_eq!(batcher.embed(1).await.unwrap(), vector(1));
        batcher
    });
    let driven = runtime();
    driven.block_on(async {
        for round in 0..20 {
            let texts: Vec<u32> = (100 * round..100 * round + 30).collect();
            let answers = timeout(LONG, batcher.embed_many(texts.clone())).await.unwrap();
            for (text, answer) in texts.into_iter().zip(answers) {
                assert_eq!(answer.unwrap(), vector(text));
            }
        }
    });
    assert_eq!(model.items(), 1 + 20 * 30, "each once");
    // The other way round.
    idle.block_on(async {
        let answer = timeout(LONG, batcher.embed(7)).await.unwrap();
        assert_eq!(answer.unwrap(), vector(7));
    });
    drop(driven);
    idle.block_on(async { assert_eq!(batcher.embed(8).await.unwrap(), vector(8)) });
    // The last one that drove it.
    drop(idle);
    runtime().block_on(async { assert!(batcher.embed(9).await.unwrap_err().is_abandoned()) });
}

#[test]
fn a_call_goes_on_when_its_runtime_is_driven_no_more() {
    let idle = runtime();
    let model = Model::gated();
    let batcher = idle.block_on(async {
        let batcher = before(&model);
        let (asked, first) = (batcher.clone(), batcher.clone());
        // Its caller is idle from then on as well, and so its answer goes nowhere.
        tokio::spawn(async move { first.embed(0).await });
        until(|| model.calls() == 1).await;
        drop(asked);
        batcher
    });
    runtime().block_on(async {
        let mut callers = tokio::task::JoinSet::new();
        for text in 1..20 {
            let batcher = batcher.clone();
            callers.spawn(async move { (text, batcher.embed(text).await) });
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        model.answer(100);
        timeout(LONG, async {
            while let Some(done) = callers.join_next().await {
                let (text, answer) = done.unwrap();
                assert_eq!(answer.unwrap(), vector(text));
            }
        })
        .await
        .unwrap();
    });
}

#[test]
fn callers_without_a_runtime_drive_it_themselves() {
    let idle = runtime();
    let model = Model::new();
    let batcher = idle.block_on(async { before(&model) });
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let batcher = &batcher;
            scope.spawn(move || {
                for text in 0..10 {
                    let answer = pollster::block_on(batcher.embed(10 * thread + text));
                    assert_eq!(answer.unwrap(), vector(10 * thread + text));
                }
            });
        }
    });
    assert_eq!(model.items(), 30);
}

/// A model that computes in its future and so blocks the runtime is no idle runtime.
#[test]
fn a_runtime_that_is_busy_for_long_is_not_replaced_in_mid_call() {
    let busy = Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&calls);
    let batcher = busy.block_on(async move {
        let settings = Batcher::builder().max_batch(2).max_delay(Duration::ZERO);
        settings.build(move |texts: Vec<u32>| {
            counter.fetch_add(texts.len(), SeqCst);
            async move {
                std::thread::sleep(Duration::from_millis(2500));
                texts.into_iter().map(vector).collect::<Vec<_>>()
            }
        })
    });
    let batcher = batcher.unwrap();
    runtime().block_on(async {
        for (text, answer) in (0..).zip(batcher.embed_many(0..4).await) {
            assert_eq!(answer.unwrap(), vector(text));
        }
    });
    assert_eq!(calls.load(SeqCst), 4, "each once");
}

#[tokio::test(start_paused = true)]
async fn a_call_for_which_nobody_waits_is_dropped_and_gives_its_turn_back() {
    let held = Arc::new(());
    let counted = Arc::clone(&held);
    let batcher = Batcher::builder().build(move |texts: Vec<u32>| {
        let guard = Arc::clone(&counted);
        async move {
            if texts.contains(&0) {
                std::future::pending::<()>().await;
            }
            drop(guard);
            texts.into_iter().map(vector).collect::<Vec<_>>()
        }
    });
    let batcher = batcher.unwrap();
    // Two callers of a call that hangs; it is dropped when the second gives up, not the first.
    let short = timeout(Duration::from_secs(10), batcher.embed(0));
    let long = timeout(Duration::from_secs(100), batcher.embed(1));
    let (short, long, later) = tokio::join!(short, long, async {
        tokio::time::sleep(Duration::from_secs(50)).await;
        assert_eq!(Arc::strong_count(&held), 3, "the closure, and the call");
        batcher.embed(2).await
    });
    assert!(short.is_err() && long.is_err());
    assert_eq!(later.unwrap(), vector(2));
    assert_eq!(Arc::strong_count(&held), 2);
}

/// An input, or an error, whose drop panics.
struct Brittle(u32);

impl Drop for Brittle {
    fn drop(&mut self) {
        assert!(self.0 % 10 != 7 || std::thread::panicking(), "brittle {}", self.0);
    }
}

impl fmt::Debug for Brittle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "brittle {}", self.0)
    }
}

impl fmt::Display for Brittle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "brittle {}", self.0)
    }
}

impl std::error::Error for Brittle {}

#[tokio::test]
async fn an_input_whose_drop_panics_in_the_queue_costs_nobody_else_an_answer() {
    let model = Model::gated();
    let asked = model.clone();
    let settings = Batcher::builder().max_batch(4).max_delay(Duration::ZERO);
    let batcher = settings.build(move |texts: Vec<Brittle>| {
        let texts = texts.iter().map(|text| text.0).collect();
        asked.clone().embed(texts)
    });
    let batcher = batcher.unwrap();
    let ask = |text| {
        let batcher = batcher.clone();
        tokio::spawn(async move { batcher.embed(Brittle(text)).await })
    };
    let first = ask(0);
    until(|| model.calls() == 1).await;
    // Some leave while they wait: in the batch that fills, and in the queue.
    let leaving: Vec<_> = (1..40).map(|text| (text, ask(text))).collect();
    until(|| batcher.queued() > 20).await;
    let mut staying = Vec::new();
    for (text, caller) in leaving {
        if text % 10 == 7 {
            caller.abort();
        } else {
            staying.push((text, caller));
        }
    }
    model.answer(100);
    assert_eq!(first.await.unwrap().unwrap(), vector(0));
    for (text, caller) in staying {
        assert_eq!(caller.await.unwrap().unwrap(), vector(text));
    }
    // In the closure: its own batch fails, no other.
    let batch = batcher.embed_many([7, 8].map(Brittle)).await;
    assert!(batch.iter().all(|answer| answer.as_ref().unwrap_err().is_load_panicked()));
    assert_eq!(batcher.embed(Brittle(9)).await.unwrap(), vector(9));
}

#[tokio::test]
async fn an_answer_whose_drop_panics_costs_nobody_else_theirs() {
    let (open, gate) = tokio::sync::watch::channel(false);
    let settings = Batcher::builder().max_batch(4).max_delay(Duration::ZERO);
    let batcher = settings.build(move |texts: Vec<u32>| {
        let mut gate = gate.clone();
        async move {
            gate.wait_for(|&open| open).await.unwrap();
            texts
                .into_iter()
                .map(|text| if text % 2 == 0 { Ok(vector(text)) } else { Err(Brittle(text)) })
                .collect::<Vec<_>>()
        }
    });
    let batcher = batcher.unwrap();
    let callers: Vec<_> = [6, 7, 8]
        .map(|text| {
            let batcher = batcher.clone();
            tokio::spawn(async move {
                let mut answer = std::pin::pin!(batcher.embed(text));
                let waited = timeout(Duration::from_millis(50), answer.as_mut()).await;
                // The second leaves, so that its error comes back to the batcher.
                if text == 7 { None } else { Some(waited.unwrap_or(answer.await)) }
            })
        })
        .into_iter()
        .collect();
    tokio::time::sleep(Duration::from_millis(200)).await;
    open.send(true).unwrap();
    let mut answers = Vec::new();
    for caller in callers {
        answers.push(caller.await.unwrap());
    }
    assert_eq!(answers[0].as_ref().unwrap().as_ref().unwrap(), &vector(6));
    assert_eq!(answers[2].as_ref().unwrap().as_ref().unwrap(), &vector(8));
    assert_eq!(batcher.embed(2).await.unwrap(), vector(2));
}

#[tokio::test]
async fn a_future_whose_drop_panics_fails_its_call_at_most() {
    struct Guard;
    impl Drop for Guard {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }
    let batcher =
        Batcher::builder().max_delay(Duration::ZERO).build(|texts: Vec<u32>| async move {
            let guard = texts.contains(&0).then(|| Guard);
            if texts.contains(&1) {
                let _guard = Guard;
                std::future::pending::<()>().await;
            }
            let answers = texts.into_iter().map(vector).collect::<Vec<_>>();
            drop(guard);
            answers
        });
    let batcher = batcher.unwrap();
    assert!(batcher.embed(0).await.unwrap_err().is_load_panicked());
    // One that is dropped as nobody waits for it.
    let hangs = timeout(Duration::from_millis(20), batcher.embed(1)).await;
    assert!(hangs.is_err(), "{hangs:?}");
    assert_eq!(timeout(LONG, batcher.embed(2)).await.unwrap().unwrap(), vector(2));
}

#[test]
fn inputs_whose_drop_panics_are_dropped_with_their_runtime() {
    let dying = Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
    let dropped = Arc::new(Mutex::new(0));
    struct Counted(Arc<Mutex<u32>>, Brittle);
    impl Drop for Counted {
        fn drop(&mut self) {
            *self.0.lock().unwrap() += 1;
        }
    }
    let model = Model::gated();
    let asked = model.clone();
    let batcher = dying.block_on(async {
        let settings = Batcher::builder().max_batch(1).max_delay(Duration::ZERO);
        settings.build(move |texts: Vec<Counted>| {
            let texts = texts.iter().map(|text| text.1.0).collect();
            asked.clone().embed(texts)
        })
    });
    let batcher = batcher.unwrap();
    runtime().block_on(async {
        let callers: Vec<_> = [0, 7, 17, 27, 1]
            .into_iter()
            .map(|text| {
                let input = Counted(Arc::clone(&dropped), Brittle(text));
                let batcher = batcher.clone();
                tokio::spawn(async move { batcher.embed(input).await })
            })
            .collect();
        until(|| model.calls() == 1 && batcher.queued() == 3).await;
        dying.shutdown_background();
        for caller in callers {
            assert!(caller.await.unwrap().unwrap_err().is_abandoned());
        }
        until(|| *dropped.lock().unwrap() == 5).await;
    });
}

/// A load through a batcher that hangs ends with its own deadline, and the batcher goes on.
#[tokio::test(start_paused = true)]
async fn a_borrowed_load_that_runs_out_of_time_gives_its_call_back() {
    let cache = cache();
    let batcher = Batcher::builder().build(|texts: Vec<u32>| async move {
        if texts.contains(&0) {
            std::future::pending::<()>().await;
        }
        texts.into_iter().map(vector).collect::<Vec<_>>()
    });
    let batcher = batcher.unwrap();
    let load = cache.load().timeout(Duration::from_secs(10));
    let answer = load.get_or_embed_borrowed(key(0), || batcher.embed(0)).await;
    assert!(answer.unwrap_err().is_timeout());
    let load = cache.load().get_or_embed_borrowed(key(1), || batcher.embed(1));
    assert_eq!(load.await.unwrap(), vector(1));
}
