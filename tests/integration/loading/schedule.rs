//! Loads under thousands of schedules: futures that are polled in a random order, dropped at random,
//! given models that fail, panic, hang and load themselves, beside writers, invalidations and a runtime
//! that stops. Whatever happens, who still waits gets the right vector or an
//! error that the model gave, and nothing is left in flight.
//!
//! The seed of a schedule that fails is in the message; it can be replayed, but for the parts of the
//! table in flight that keys fall into.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use embedding_cache::{CacheError, EmbeddingCache, EmbeddingVector};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::runtime::Runtime;

use super::model::{key, keys, vector};

/// More than any schedule needs: a caller that is not done by then never will be.
const STEPS: usize = 3000;

type Answers = Vec<(u32, Result<EmbeddingVector, CacheError>)>;

/// A caller: what it does, and whether it was woken since it was last polled.
struct Caller {
    work: Pin<Box<dyn Future<Output = Answers>>>,
    woken: Arc<Woken>,
    /// After so many polls it is dropped.
    patience: Option<usize>,
    /// Kept after that, but never polled again.
    kept: bool,
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

/// What models have done: which kinds of failure callers may be told of.
#[derive(Debug, Default)]
struct Faults {
    failed: bool,
    panicked: bool,
    miscounted: bool,
    recursive: bool,
    hung: bool,
}

type Embedded = Result<Vec<Vec<f32>>, Box<dyn std::error::Error + Send + Sync>>;

/// A model call: yields some times, then does what chance says.
fn embed(
    cache: EmbeddingCache,
    texts: Vec<u32>,
    seed: u64,
    mix: Mix,
    faults: Arc<Mutex<Faults>>,
) -> Pin<Box<dyn Future<Output = Embedded> + Send>> {
    Box::pin(async move {
        let mut random = SmallRng::seed_from_u64(seed);
        let faulty = mix.faulty;
        for _ in 0..random.random_range(0..4) {
            pause().await;
        }
        if mix.hung && random.random_range(0..8) == 0 {
            faults.lock().unwrap().hung = true;
            std::future::pending::<()>().await;
        }
        // Loads inside this one, in chains and circles as chance has it.
        if mix.nested > 0.0 && random.random_bool(mix.nested) {
            let inside: Vec<u32> =
                (0..random.random_range(1..3)).map(|_| random.random_range(0..6)).collect();
            let again = Mix { nested: mix.nested / 2.0, ..mix };
            let (asked, seed) = (keys(&inside), random.random());
            let model = |missing: embedding_cache::Missing<_>| {
                let texts = missing.select(&inside).copied().collect();
                let (cache, faults) = (cache.clone(), Arc::clone(&faults));
                embed(cache, texts, seed, again, faults)
            };
            for (text, answer) in inside.iter().zip(cache.get_or_embed_many(&asked, model).await) {
                match answer {
                    Ok(answer) => assert_eq!(answer, vector(*text)),
                    Err(error) => {
                        faults.lock().unwrap().recursive |= error.is_recursive();
                        return Err(error.into());
                    }
                }
            }
        }
        let fault = if faulty { random.random_range(0..8) } else { 7 };
        let mut vectors: Vec<_> = texts.into_iter().map(vector).collect();
        match fault {
            0 => {
                faults.lock().unwrap().failed = true;
                return Err("model is down".into());
            }
            1 => {
                faults.lock().unwrap().panicked = true;
                std::panic::resume_unwind(Box::new("out of memory"));
            }
            2 => {
                faults.lock().unwrap().miscounted = true;
                vectors.pop();
            }
            _ => {}
        }
        Ok(vectors)
    })
}

/// Pending once.
async fn pause() {
    let mut polled = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut polled, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn caller(
    cache: &EmbeddingCache,
    random: &mut SmallRng,
    borrowed: bool,
    mix: Mix,
    faults: &Arc<Mutex<Faults>>,
) -> Pin<Box<dyn Future<Output = Answers>>> {
    let all: u32 = random.random_range(3..=6);
    let texts: Vec<u32> =
        (0..random.random_range(1..=all)).map(|_| random.random_range(0..all)).collect();
    let (max_batch, seed) = (random.random_range(1..=4), random.random());
    let (cache, faults) = (cache.clone(), Arc::clone(faults));
    Box::pin(async move {
        let asked = keys(&texts);
        let mut seeds = SmallRng::seed_from_u64(seed);
        let model = |missing: embedding_cache::Missing<_>| {
            let texts: Vec<u32> = missing.select(&texts).copied().collect();
            if mix.faulty && seeds.random_range(0..12) == 0 {
                faults.lock().unwrap().panicked = true;
                std::panic::resume_unwind(Box::new("in the closure"));
            }
            embed(cache.clone(), texts, seeds.random(), mix, Arc::clone(&faults))
        };
        let load = cache.load().max_batch(max_batch);
        let answers = if borrowed {
            load.get_or_embed_many_borrowed(&asked, model).await
        } else {
            load.get_or_embed_many(&asked, model).await
        };
        assert_eq!(answers.len(), texts.len());
        texts.iter().copied().zip(answers).collect()
    })
}

/// Which modes a schedule mixes, and what goes wrong in it.
#[derive(Debug, Clone, Copy)]
struct Mix {
    borrowed: f64,
    faulty: bool,
    dropped: f64,
    kept: f64,
    invalidate: bool,
    /// Puts, removals and invalidations of some keys.
    newer: bool,
    nested: f64,
    hung: bool,
    /// Some loads are made in a runtime that is driven now and then.
    stops: bool,
}

async fn schedule(seed: u64, mix: Mix) {
    let random = &mut SmallRng::seed_from_u64(seed);
    let entries = if random.random() { 2 } else { 100 };
    let builder = EmbeddingCache::builder().max_entries(entries).shards(1);
    let builder = builder.max_concurrent_loads(random.random_range(1..4));
    let builder = if mix.hung { builder.load_timeout(Duration::from_secs(5)) } else { builder };
    let cache = builder.build().unwrap();
    let faults = Arc::new(Mutex::new(Faults::default()));
    let mut callers: Vec<Caller> = (0..random.random_range(2..6))
        .map(|_| {
            let borrowed = random.random_bool(mix.borrowed);
            let work = caller(&cache, random, borrowed, mix, &faults);
            let patience = random.random_bool(mix.dropped).then(|| random.random_range(0..8));
            let kept = borrowed && random.random_bool(mix.kept);
            Caller { work, woken: Arc::new(Woken(AtomicBool::new(true))), patience, kept }
        })
        .collect();
    let mut forgotten = Vec::new();
    let elsewhere = mix.stops.then(|| elsewhere(&cache, random, mix, &faults));
    let mut steps = 0;
    while !callers.is_empty() {
        steps += 1;
        assert!(steps < STEPS, "seed {seed}, {mix:?}: {} callers hang", callers.len());
        // The spawned tasks have their turns as well.
        if random.random_range(0..3) == 0 {
            tokio::task::yield_now().await;
        }
        if mix.invalidate && random.random_range(0..20) == 0 {
            cache.invalidate_all().await;
        }
        if mix.newer && random.random_range(0..6) == 0 {
            newer(&cache, random).await;
        }
        if let Some(elsewhere) = &elsewhere
            && random.random_range(0..6) == 0
        {
            drive(elsewhere, random.random_range(0..6));
        }
        let woken: Vec<usize> =
            (0..callers.len()).filter(|&at| callers[at].woken.0.load(SeqCst)).collect();
        if woken.is_empty() {
            // Nobody can go on but by a task or a timer.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        }
        let at = woken[random.random_range(0..woken.len())];
        let chosen = &mut callers[at];
        if chosen.patience == Some(0) {
            let gone = callers.swap_remove(at);
            if gone.kept {
                forgotten.push(gone);
            }
            continue;
        }
        chosen.patience = chosen.patience.map(|polls| polls - 1);
        chosen.woken.0.store(false, SeqCst);
        let waker = Waker::from(Arc::clone(&chosen.woken));
        let Poll::Ready(answers) = chosen.work.as_mut().poll(&mut Context::from_waker(&waker))
        else {
            continue;
        };
        callers.swap_remove(at);
        let faults = faults.lock().unwrap();
        for (text, answer) in answers {
            match answer {
                Ok(answer) => assert_eq!(answer, vector(text), "seed {seed}, {mix:?}"),
                Err(error) => {
                    let given = error.is_load_failed() && faults.failed
                        || error.is_load_panicked() && faults.panicked
                        || error.is_wrong_count() && faults.miscounted
                        || error.is_recursive() && faults.recursive
                        || error.is_load_timeout() && faults.hung;
                    assert!(given, "seed {seed}, {mix:?}: {error}, but {faults:?}");
                }
            }
        }
    }
    drop(forgotten);
    if let Some(elsewhere) = elsewhere {
        elsewhere.shutdown_background();
    }
    if mix.hung {
        // Those that hang and that nobody waits for.
        tokio::time::sleep(Duration::from_secs(6)).await;
    }
    for _ in 0..1000 {
        if cache.info().keys_in_flight == 0 {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(cache.info().keys_in_flight, 0, "seed {seed}, {mix:?}");
    // And whoever comes next is served.
    for text in 0..6 {
        let next = cache.get_or_embed(key(text), || async move { vector(text) }).await;
        assert_eq!(next.unwrap(), vector(text), "seed {seed}, {mix:?}");
    }
}

fn explore(schedules: u64, mix: Mix) {
    for seed in 0..schedules {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().start_paused(true).build().unwrap();
        runtime.block_on(schedule(seed, mix));
    }
}

/// One write or invalidation of some of the keys. What is put is right, as everything is.
async fn newer(cache: &EmbeddingCache, random: &mut SmallRng) {
    let text = random.random_range(0..6);
    match random.random_range(0..5) {
        0 => drop(cache.remove(&key(text)).await),
        1 => cache.put(key(text), vector(text)).await.unwrap(),
        2 => {
            let entries = (0..text).map(|text| (key(text), vector(text)));
            assert!(cache.put_many(entries).await.iter().all(Result::is_ok));
        }
        3 => {
            let named = key(text);
            cache.invalidate_if(|key, _| *key == named).await;
        }
        _ => {
            cache.invalidate_tenant("another").await;
        }
    }
}

/// A runtime with some loads that nobody waits for but themselves.
fn elsewhere(
    cache: &EmbeddingCache,
    random: &mut SmallRng,
    mix: Mix,
    faults: &Arc<Mutex<Faults>>,
) -> Runtime {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    for _ in 0..random.random_range(1..4) {
        let texts: Vec<u32> = (0..3).map(|_| random.random_range(0..6)).collect();
        let (cache, faults, seed) = (cache.clone(), Arc::clone(faults), random.random());
        runtime.spawn(async move {
            let model = |missing: embedding_cache::Missing<_>| {
                let texts = missing.select(&texts).copied().collect();
                embed(cache.clone(), texts, seed, mix, Arc::clone(&faults))
            };
            drop(cache.get_or_embed_many(keys(&texts), model).await);
        });
    }
    runtime
}

/// Drives a runtime for some turns of its tasks.
fn drive(runtime: &Runtime, turns: usize) {
    let some = async {
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
    };
    // In a thread, as this one drives another.
    std::thread::scope(|threads| {
        threads.spawn(|| runtime.block_on(some));
    });
}

const CALM: Mix = Mix {
    borrowed: 0.5,
    faulty: false,
    dropped: 0.0,
    kept: 0.0,
    invalidate: false,
    newer: false,
    nested: 0.0,
    hung: false,
    stops: false,
};

#[test]
fn every_caller_gets_the_right_vectors_in_any_order_of_polls() {
    for borrowed in [0.0, 0.5, 1.0] {
        explore(1000, Mix { borrowed, ..CALM });
    }
}

#[test]
fn callers_that_leave_at_any_moment_cost_the_others_nothing() {
    for borrowed in [0.0, 0.5, 1.0] {
        explore(1500, Mix { borrowed, dropped: 0.5, ..CALM });
    }
}

#[test]
fn callers_that_stop_polling_cost_the_others_time_only() {
    for borrowed in [0.5, 1.0] {
        explore(1500, Mix { borrowed, dropped: 0.5, kept: 0.7, ..CALM });
    }
}

#[test]
fn errors_are_those_that_a_model_gave_and_nobody_hangs() {
    for borrowed in [0.0, 0.5, 1.0] {
        explore(1500, Mix { borrowed, faulty: true, dropped: 0.3, kept: 0.3, ..CALM });
    }
}

#[test]
fn invalidations_in_between_change_no_answer() {
    for borrowed in [0.0, 0.5, 1.0] {
        explore(1000, Mix { borrowed, dropped: 0.3, invalidate: true, ..CALM });
    }
}

#[test]
fn loads_inside_loads_end_or_say_that_they_are_a_circle() {
    for borrowed in [0.0, 0.5, 1.0] {
        explore(1000, Mix { borrowed, nested: 0.7, ..CALM });
        explore(1000, Mix { borrowed, nested: 0.7, faulty: true, dropped: 0.3, kept: 0.3, ..CALM });
    }
}

#[test]
fn writes_and_invalidations_of_some_keys_change_no_answer() {
    for borrowed in [0.0, 0.5, 1.0] {
        explore(1000, Mix { borrowed, dropped: 0.3, newer: true, invalidate: true, ..CALM });
    }
}

#[test]
fn calls_that_hang_end_with_the_load_timeout() {
    for borrowed in [0.0, 0.5, 1.0] {
        explore(700, Mix { borrowed, hung: true, dropped: 0.3, kept: 0.3, newer: true, ..CALM });
    }
}

#[test]
fn a_runtime_that_stops_costs_the_others_time_only() {
    for borrowed in [0.0, 0.5, 1.0] {
        explore(200, Mix { borrowed, stops: true, dropped: 0.2, newer: true, ..CALM });
        explore(200, Mix { borrowed, stops: true, nested: 0.5, hung: true, faulty: true, ..CALM });
    }
}
