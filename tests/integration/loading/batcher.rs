//! The batcher: what many ask for one by one reaches the model in few calls, and nothing is lost,
//! doubled or shifted on the way.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use embedding_cache::{Batcher, BatcherBuilder};
use rand::seq::SliceRandom;
use rand::{SeedableRng, rngs::SmallRng};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep};

use super::model::{Model, cache, key, keys, until, vector};

const HOUR: Duration = Duration::from_secs(3600);

/// The inputs of each call, in the order of the calls.
type Calls = Arc<Mutex<Vec<Vec<u32>>>>;

/// A batcher before `model`, and what it asks of it.
fn before(model: &Model, settings: BatcherBuilder) -> (Batcher<u32>, Calls) {
    let (model, calls) = (model.clone(), Calls::default());
    let log = Arc::clone(&calls);
    let embed = move |texts: Vec<u32>| {
        log.lock().unwrap().push(texts.clone());
        model.clone().embed(texts)
    };
    (settings.build(embed).unwrap(), calls)
}

/// A caller of its own for one text, which must get the right vector.
fn ask(batcher: &Batcher<u32>, text: u32) -> JoinHandle<()> {
    let batcher = batcher.clone();
    tokio::spawn(async move { assert_eq!(batcher.embed(text).await.unwrap(), vector(text)) })
}

async fn all(callers: impl IntoIterator<Item = JoinHandle<()>>) {
    // All of them begin before the first is waited for.
    let callers: Vec<_> = callers.into_iter().collect();
    for caller in callers {
        caller.await.unwrap();
    }
}

fn sizes(calls: &Calls) -> Vec<usize> {
    calls.lock().unwrap().iter().map(Vec::len).collect()
}

/// Lets every other task go on as far as it can.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_many_ask_at_the_same_time_is_one_call() {
    let (batcher, calls) = before(&Model::new(), Batcher::builder());
    all((0..10).map(|text| ask(&batcher, text))).await;
    assert_eq!(*calls.lock().unwrap(), [(0..10).collect::<Vec<_>>()]);
}

#[tokio::test(start_paused = true)]
async fn concurrent_misses_of_different_requests_are_one_call() {
    let cache = cache();
    let (batcher, calls) = before(&Model::new(), Batcher::builder());
    let mut requests = JoinSet::new();
    for text in 0..10 {
        let (cache, batcher) = (cache.clone(), batcher.clone());
        requests.spawn(async move {
            let load = cache.get_or_embed(key(text), || async move { batcher.embed(text).await });
            assert_eq!(load.await.unwrap(), vector(text));
        });
    }
    while let Some(done) = requests.join_next().await {
        done.unwrap();
    }
    assert_eq!(sizes(&calls), [10]);
    assert_eq!(cache.stats().loads, 10, "each is a load of its own");
}

#[tokio::test(start_paused = true)]
async fn a_full_batch_is_not_held_back() {
    let settings = Batcher::builder().max_batch(4).max_delay(HOUR);
    let (batcher, calls) = before(&Model::new(), settings);
    let start = Instant::now();
    all((0..8).map(|text| ask(&batcher, text))).await;
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(sizes(&calls), [4, 4]);
}

#[tokio::test(start_paused = true)]
async fn the_oldest_waits_no_longer_than_the_delay_whoever_comes_after() {
    let settings = Batcher::builder().max_delay(Duration::from_millis(100));
    let (batcher, calls) = before(&Model::new(), settings);
    let start = Instant::now();
    let first = ask(&batcher, 0);
    let later = (1..4).map(|text| {
        let batcher = batcher.clone();
        tokio::spawn(async move {
            sleep(Duration::from_millis(40) * text).await;
            assert_eq!(batcher.embed(text).await.unwrap(), vector(text));
        })
    });
    let later: Vec<_> = later.collect();
    first.await.unwrap();
    let waited = start.elapsed().as_millis();
    assert!((100..=102).contains(&waited), "{waited} ms of the timers' time");
    all(later).await;
    assert_eq!(*calls.lock().unwrap(), [vec![0, 1, 2], vec![3]]);
}

#[tokio::test(start_paused = true)]
async fn a_delay_that_no_clock_can_name_is_no_end() {
    let settings = Batcher::builder().max_batch(2).max_delay(Duration::MAX);
    let (batcher, calls) = before(&Model::new(), settings);
    let first = ask(&batcher, 1);
    sleep(HOUR).await;
    assert!(!first.is_finished());
    all([first, ask(&batcher, 2)]).await;
    assert_eq!(sizes(&calls), [2]);
}

#[tokio::test]
async fn who_comes_to_a_full_queue_waits_until_the_model_answers() {
    let model = Model::gated();
    let settings = Batcher::builder().max_batch(1).max_queue(2).max_delay(Duration::ZERO);
    let (batcher, calls) = before(&model, settings);
    // One is being embedded, one is next, two are queued.
    let mut callers = vec![ask(&batcher, 0)];
    until(|| model.calls() == 1).await;
    callers.push(ask(&batcher, 1));
    settle().await;
    callers.extend([ask(&batcher, 2), ask(&batcher, 3)]);
    until(|| batcher.queued() == 2).await;
    let mut late = std::pin::pin!(batcher.embed(4));
    for _ in 0..20 {
        settle().await;
        assert!(futures_poll(late.as_mut()).await.is_none());
        assert_eq!((batcher.queued(), model.calls()), (2, 1));
    }
    model.answer(1);
    until(|| model.calls() == 2).await;
    assert!(futures_poll(late.as_mut()).await.is_none());
    assert_eq!(batcher.queued(), 2, "the one that waited has its place");
    model.answer(10);
    assert_eq!(late.await.unwrap(), vector(4));
    all(callers).await;
    assert_eq!(*calls.lock().unwrap(), [[0], [1], [2], [3], [4]], "first come, first served");
}

/// Polls a future once.
async fn futures_poll<F: Future>(mut future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    use std::task::Poll;
    std::future::poll_fn(|cx| {
        Poll::Ready(match future.as_mut().poll(cx) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        })
    })
    .await
}

#[tokio::test]
async fn a_batch_goes_on_to_fill_while_a_call_is_under_way() {
    let model = Model::gated();
    let settings = Batcher::builder().max_batch(6).max_delay(Duration::ZERO);
    let (batcher, calls) = before(&model, settings);
    let mut callers = vec![ask(&batcher, 0)];
    until(|| model.calls() == 1).await;
    for text in 1..9 {
        callers.push(ask(&batcher, text));
        settle().await;
    }
    model.answer(9);
    all(callers).await;
    assert_eq!(sizes(&calls), [1, 6, 2]);
}

#[tokio::test]
async fn no_more_calls_run_at_the_same_time_than_allowed() {
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counters = (Arc::clone(&running), Arc::clone(&most));
    let settings = Batcher::builder().max_batch(1).max_delay(Duration::ZERO).max_concurrent(3);
    let batcher = settings.build(move |texts: Vec<u32>| {
        let (running, most) = counters.clone();
        async move {
            most.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
            settle().await;
            running.fetch_sub(1, SeqCst);
            texts.into_iter().map(vector).collect::<Vec<_>>()
        }
    });
    let batcher = batcher.unwrap();
    all((0..20).map(|text| ask(&batcher, text))).await;
    assert_eq!((most.load(SeqCst), running.load(SeqCst)), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn an_input_that_fails_fails_alone() {
    let batcher = Batcher::builder().build(|texts: Vec<u32>| async move {
        let embed = |text| if text % 2 == 0 { Ok(vector(text)) } else { Err("odd") };
        texts.into_iter().map(embed).collect::<Vec<_>>()
    });
    let answers = batcher.unwrap().embed_many(0..10).await;
    for (text, answer) in (0..).zip(answers) {
        match answer {
            Ok(answer) => assert_eq!(answer, vector(text)),
            Err(error) => assert!(text % 2 == 1 && error.is_load_failed(), "{text}: {error}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_wrong_number_of_answers_fails_the_call_and_not_the_next() {
    let mut calls = 0;
    let batcher = Batcher::builder().max_batch(3).build(move |texts: Vec<u32>| {
        calls += 1;
        let answered = [2, 4, 0, 3][calls - 1];
        async move { texts.into_iter().cycle().map(vector).take(answered).collect::<Vec<_>>() }
    });
    let answers = batcher.unwrap().embed_many(0..12).await;
    for answer in &answers[..9] {
        assert!(answer.as_ref().unwrap_err().is_wrong_count());
    }
    for (text, answer) in (9..).zip(&answers[9..]) {
        assert_eq!(answer.as_ref().unwrap(), &vector(text));
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_fails_the_call_and_not_the_next() {
    let batcher = Batcher::builder().max_batch(2).build(|texts: Vec<u32>| {
        assert!(!texts.contains(&1), "in the closure");
        async move {
            assert!(!texts.contains(&3), "in the future");
            texts.into_iter().map(vector).collect::<Vec<_>>()
        }
    });
    let answers = batcher.unwrap().embed_many(0..6).await;
    for (place, told) in ["in the closure", "in the future"].into_iter().enumerate() {
        for answer in &answers[2 * place..2 * place + 2] {
            let error = answer.as_ref().unwrap_err();
            assert!(error.is_load_panicked() && error.to_string().ends_with(told), "{error}");
        }
    }
    for (text, answer) in (4..).zip(&answers[4..]) {
        assert_eq!(answer.as_ref().unwrap(), &vector(text));
    }
}

#[tokio::test]
async fn who_gives_up_before_the_call_begins_is_left_out() {
    let model = Model::gated();
    let settings = Batcher::builder().max_batch(8).max_delay(Duration::ZERO);
    let (batcher, calls) = before(&model, settings);
    let first = ask(&batcher, 0);
    until(|| model.calls() == 1).await;
    let callers: Vec<_> = (1..5).map(|text| ask(&batcher, text)).collect();
    settle().await;
    callers[1].abort();
    callers[3].abort();
    settle().await;
    model.answer(1);
    first.await.unwrap();
    until(|| model.calls() == 2).await;
    let gone = ask(&batcher, 9);
    settle().await;
    gone.abort();
    settle().await;
    model.answer(9);
    for (place, caller) in callers.into_iter().enumerate() {
        assert_eq!(caller.await.is_ok(), place % 2 == 0);
    }
    settle().await;
    assert_eq!(*calls.lock().unwrap(), [vec![0], vec![1, 3]], "for nobody there is no call");
}

#[tokio::test(start_paused = true)]
async fn the_last_handle_ends_it_after_what_has_begun() {
    let model = Model::gated();
    let probe = Arc::new(());
    let (held, asked) = (Arc::clone(&probe), model.clone());
    let batcher = Batcher::builder().build(move |texts: Vec<u32>| {
        let _ = &held;
        asked.clone().embed(texts)
    });
    let batcher = batcher.unwrap();
    let other = batcher.clone();
    let caller = ask(&batcher, 1);
    until(|| batcher.queued() == 0).await;
    drop(batcher);
    sleep(HOUR).await;
    assert_eq!((model.calls(), Arc::strong_count(&probe)), (1, 2));
    model.answer(2);
    caller.await.unwrap();
    all([ask(&other, 2)]).await;
    drop(other);
    until(|| Arc::strong_count(&probe) == 1).await;
}

#[test]
fn a_limit_of_zero_and_no_runtime_are_errors() {
    let build = |settings: BatcherBuilder| {
        let embed = |_: Vec<u32>| async { Vec::<Vec<f32>>::new() };
        let error = settings.build(embed).unwrap_err();
        assert!(error.is_configuration());
        error.to_string()
    };
    let told = build(Batcher::builder());
    assert_eq!(told, "a batcher needs a tokio runtime, and there is none here");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _inside = runtime.enter();
    for (settings, what) in [
        (Batcher::builder().max_batch(0), "inputs of a call"),
        (Batcher::builder().max_queue(0), "inputs that wait"),
        (Batcher::builder().max_concurrent(0), "calls at the same time"),
    ] {
        let told = build(settings);
        assert_eq!(told, format!("a batcher's limit on {what} is 0; it must be at least 1"));
    }
    let huge =
        Batcher::builder().max_batch(usize::MAX).max_queue(usize::MAX).max_concurrent(usize::MAX);
    assert!(huge.build(|_: Vec<u32>| async { Vec::<Vec<f32>>::new() }).is_ok());
}

#[test]
fn without_a_delay_no_timers_are_needed() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let settings = Batcher::builder().max_delay(Duration::ZERO).max_batch(4);
        let (batcher, calls) = before(&Model::new(), settings);
        let answers = batcher.embed_many(0..10).await;
        for (text, answer) in (0..).zip(answers) {
            assert_eq!(answer.unwrap(), vector(text));
        }
        assert_eq!(calls.lock().unwrap().concat(), (0..10).collect::<Vec<_>>());
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_hundred_requests_for_a_thousand_texts_are_few_calls_and_each_text_is_embedded_once() {
    let cache = cache();
    let settings = Batcher::builder().max_batch(64).max_delay(Duration::from_millis(5));
    let model = Model::new();
    let (batcher, calls) = before(&model, settings);
    let mut requests = JoinSet::new();
    for seed in 0..100 {
        let (cache, batcher) = (cache.clone(), batcher.clone());
        requests.spawn(async move {
            let mut texts: Vec<u32> = (0..1000).collect();
            texts.shuffle(&mut SmallRng::seed_from_u64(seed));
            for batch in texts.chunks(25) {
                let answers = cache.get_or_embed_many(keys(batch), |missing| {
                    let texts: Vec<u32> = missing.select(batch).copied().collect();
                    let batcher = batcher.clone();
                    async move { batcher.embed_many(texts).await }
                });
                for (&text, answer) in batch.iter().zip(answers.await) {
                    assert_eq!(answer.unwrap(), vector(text));
                }
            }
        });
    }
    while let Some(done) = requests.join_next().await {
        done.unwrap();
    }
    assert_eq!(model.items(), 1000, "each text once");
    let calls = sizes(&calls);
    assert!(calls.len() <= 250 && calls.iter().all(|&size| size <= 64), "{calls:?}");
}

#[test]
fn a_runtime_that_shuts_down_abandons_who_waits() {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let dying = builder.worker_threads(1).enable_time().build().unwrap();
    let model = Model::gated();
    let settings = Batcher::builder().max_batch(1);
    let (batcher, _) = dying.block_on(async { before(&model, settings) });
    let living = tokio::runtime::Builder::new_current_thread().build().unwrap();
    living.block_on(async {
        // One under way, one in the task that gathers, one in the queue.
        let callers: Vec<_> = (0..3)
            .map(|text| {
                let batcher = batcher.clone();
                tokio::spawn(async move { batcher.embed(text).await.unwrap_err() })
            })
            .collect();
        until(|| model.calls() == 1 && batcher.queued() <= 1).await;
        dying.shutdown_background();
        for caller in callers {
            assert!(caller.await.unwrap().is_abandoned());
        }
        until(|| batcher.queued() == 0 || model.calls() > 1).await;
        assert!(batcher.embed(4).await.unwrap_err().is_abandoned());
        assert!(batcher.embed_many([5, 6]).await.iter().all(|answer| answer.is_err()));
    });
}
