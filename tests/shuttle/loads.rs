//! Loads: every key embedded once, whoever asks, leaves or invalidates in between.
//!
//! The tokio primitives inside (a `Notify` in each call, a `Semaphore` for the calls of a cache) do
//! not block a thread and hold their own locks across no point at which the scheduler switches, so it
//! sees them as a waker that is called, and needs no others in their place.

use std::collections::HashMap;
use std::future::poll_fn;
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::Poll;

use embedding_cache::{CacheError, CacheKey, EmbeddingCache, EmbeddingVector, Missing};
use shuttle::future::{self, JoinHandle, block_on, yield_now};
use shuttle::rand::{Rng, thread_rng};

use super::{Fake, explore};

type Loads = EmbeddingCache<CacheKey, BuildHasherDefault<DefaultHasher>>;

fn cache() -> Loads {
    EmbeddingCache::builder()
        .max_entries(100)
        .shards(2)
        .clock(Arc::new(Fake::default()))
        .hasher(BuildHasherDefault::default())
        .build()
        .unwrap()
}

fn key(text: u32) -> CacheKey {
    CacheKey::new(text.to_string(), "model")
}

fn vector(text: u32) -> Vec<f32> {
    vec![text as f32, 0.5]
}

/// How often each text was embedded.
#[derive(Debug, Clone, Default)]
struct Model(Arc<Mutex<HashMap<u32, usize>>>);

impl Model {
    fn asked(&self) -> HashMap<u32, usize> {
        self.0.lock().unwrap().clone()
    }

    async fn embed(self, texts: Vec<u32>) -> Vec<Vec<f32>> {
        for &text in &texts {
            *self.0.lock().unwrap().entry(text).or_default() += 1;
        }
        yield_now().await;
        texts.into_iter().map(vector).collect()
    }
}

/// Asks for `texts`, in either mode, and checks the answers.
async fn get(cache: Loads, model: Model, texts: Vec<u32>, borrowed: bool) {
    let keys: Vec<CacheKey> = texts.iter().map(|&text| key(text)).collect();
    let embed =
        |missing: Missing<CacheKey>| model.clone().embed(missing.select(&texts).copied().collect());
    let load = cache.load();
    let answers: Vec<Result<EmbeddingVector, CacheError>> = if borrowed {
        load.get_or_embed_many_borrowed(&keys, embed).await
    } else {
        load.get_or_embed_many(&keys, embed).await
    };
    assert_eq!(answers.len(), texts.len());
    for (text, answer) in texts.into_iter().zip(answers) {
        assert_eq!(answer.unwrap(), vector(text), "text {text}");
    }
}

fn spawn(cache: &Loads, model: &Model, texts: &[u32], borrowed: bool) -> JoinHandle<()> {
    future::spawn(get(cache.clone(), model.clone(), texts.to_vec(), borrowed))
}

/// Polls `future` at most so many times, then drops it.
async fn polled(future: impl Future<Output = ()>, times: usize) {
    let mut future = pin!(future);
    for _ in 0..times {
        if poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_ready())).await {
            return;
        }
        yield_now().await;
    }
}

/// Waits until the calls that nobody waits for any more have landed.
async fn nothing_in_flight(cache: &Loads) {
    while cache.info().keys_in_flight > 0 {
        yield_now().await;
    }
}

#[test]
fn overlapping_batches_embed_every_key_once() {
    explore(|| {
        block_on(async {
            let (cache, model) = (cache(), Model::default());
            let tasks = [&[0, 1][..], &[1, 2], &[2, 0, 2]];
            for task in tasks.map(|texts| spawn(&cache, &model, texts, false)) {
                task.await.unwrap();
            }
            assert_eq!(model.asked(), HashMap::from([(0, 1), (1, 1), (2, 1)]));
            nothing_in_flight(&cache).await;
            assert_eq!(cache.stats().loaded, 3);
        });
    });
}

/// A borrowed call that is taken over by mistake is embedded twice, and that alone: shuttle has no
/// clock, so a slow caller is often taken for a dead one here.
#[test]
fn overlapping_batches_of_both_modes_all_get_their_vectors() {
    explore(|| {
        block_on(async {
            let (cache, model) = (cache(), Model::default());
            let tasks = [(&[0, 1][..], true), (&[1, 0], true), (&[1], false)];
            for task in tasks.map(|(texts, borrowed)| spawn(&cache, &model, texts, borrowed)) {
                task.await.unwrap();
            }
            nothing_in_flight(&cache).await;
        });
    });
}

#[test]
fn who_stays_gets_the_vector_of_an_owned_load_and_it_is_embedded_once() {
    explore(|| {
        block_on(async {
            let (cache, model) = (cache(), Model::default());
            let leaving = [0, 1].map(|_| {
                let polls = thread_rng().gen_range(0..4);
                let load = get(cache.clone(), model.clone(), vec![0, 1], false);
                future::spawn(polled(load, polls))
            });
            get(cache.clone(), model.clone(), vec![1, 0], false).await;
            for task in leaving {
                task.await.unwrap();
            }
            nothing_in_flight(&cache).await;
            assert_eq!(model.asked(), HashMap::from([(0, 1), (1, 1)]));
        });
    });
}

#[test]
fn who_stays_gets_the_vector_of_a_borrowed_load_that_is_dropped() {
    explore(|| {
        block_on(async {
            let (cache, model) = (cache(), Model::default());
            let leaving = [0, 1].map(|_| {
                let polls = thread_rng().gen_range(0..4);
                let load = get(cache.clone(), model.clone(), vec![0, 1], true);
                future::spawn(polled(load, polls))
            });
            let owned = thread_rng().r#gen();
            get(cache.clone(), model.clone(), vec![1, 0], owned).await;
            for task in leaving {
                task.await.unwrap();
            }
            nothing_in_flight(&cache).await;
            assert_eq!(cache.get(&key(0)).await.unwrap(), vector(0));
        });
    });
}

/// What is embedded says which edition of the source it was made from.
#[test]
fn nothing_that_began_to_load_before_an_invalidation_is_there_after_it() {
    for everything in [true, false] {
        explore(move || {
            block_on(async {
                let (cache, edition) = (cache(), Arc::new(AtomicU32::new(1)));
                let loads = [0, 1].map(|_| {
                    let (cache, edition) = (cache.clone(), Arc::clone(&edition));
                    future::spawn(async move {
                        let embed = || async move {
                            let read = edition.load(SeqCst);
                            yield_now().await;
                            vector(read)
                        };
                        cache.get_or_embed(key(0), embed).await.unwrap()
                    })
                });
                let invalidation = {
                    let (cache, edition) = (cache.clone(), Arc::clone(&edition));
                    future::spawn(async move {
                        edition.store(2, SeqCst);
                        if everything {
                            cache.invalidate_all().await;
                        } else {
                            cache.invalidate_if(|_, _| true).await;
                        }
                        // Who comes now does not join what began before.
                        let embed = || async move { vector(edition.load(SeqCst)) };
                        let after = cache.get_or_embed(key(0), embed).await.unwrap();
                        assert_eq!(after, vector(2));
                    })
                };
                invalidation.await.unwrap();
                for load in loads {
                    let loaded = load.await.unwrap();
                    assert!(loaded == vector(1) || loaded == vector(2));
                }
                nothing_in_flight(&cache).await;
                if let Some(found) = cache.get(&key(0)).await {
                    assert_eq!(found, vector(2), "from before the invalidation");
                }
            });
        });
    }
}

#[test]
fn a_load_beside_a_put_of_its_key_ends_with_one_of_the_two_vectors() {
    explore(|| {
        block_on(async {
            let (cache, model) = (cache(), Model::default());
            let loads = [true, false].map(|borrowed| {
                let (cache, model) = (cache.clone(), model.clone());
                future::spawn(async move {
                    let embed = || async move { model.embed(vec![0]).await.remove(0) };
                    if borrowed {
                        cache.load().get_or_embed_borrowed(key(0), embed).await.unwrap()
                    } else {
                        cache.get_or_embed(key(0), embed).await.unwrap()
                    }
                })
            });
            cache.put(key(0), vector(7)).await.unwrap();
            let right = |found: &EmbeddingVector| *found == vector(0) || *found == vector(7);
            for load in loads {
                assert!(right(&load.await.unwrap()));
            }
            assert!(right(&cache.get(&key(0)).await.unwrap()));
            nothing_in_flight(&cache).await;
            assert_eq!(cache.size().await, 1);
        });
    });
}

/// Each call fails with its number.
#[test]
fn who_was_told_of_a_failure_and_asks_again_is_not_told_of_it_twice() {
    explore(|| {
        block_on(async {
            let (cache, calls) = (cache(), Arc::new(AtomicU32::new(0)));
            let tasks = [0, 1].map(|_| {
                let (cache, calls) = (cache.clone(), Arc::clone(&calls));
                future::spawn(async move {
                    let ask = async || {
                        let calls = Arc::clone(&calls);
                        let embed = || async move {
                            let call = calls.fetch_add(1, SeqCst);
                            yield_now().await;
                            Err::<Vec<f32>, _>(call.to_string())
                        };
                        cache.get_or_embed(key(0), embed).await.unwrap_err().to_string()
                    };
                    let first = ask().await;
                    assert_ne!(ask().await, first);
                })
            });
            for task in tasks {
                task.await.unwrap();
            }
        });
    });
}
