//! What is newer than a load wins: a put, a removal, an invalidation of its key, and of no other.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use embedding_cache::{CacheKey, ContentKey, EmbeddingCache, EmbeddingCacheBuilder};
use tokio::task::JoinHandle;

use super::model::{Model, cache, get, key, until, vector};

type Done = Pin<Box<dyn Future<Output = ()> + Send>>;
/// What is done while key 1 is being loaded, and what is stored under it afterwards.
type Newer = (&'static str, fn(EmbeddingCache) -> Done, Option<[f32; 2]>);

const NEW: [f32; 2] = [8.0, 9.0];

const NEWER: [Newer; 11] = [
    ("remove", |cache| Box::pin(async move { drop(cache.remove(&key(1)).await) }), None),
    ("put", |cache| Box::pin(async move { cache.put(key(1), NEW).await.unwrap() }), Some(NEW)),
    (
        "put_with_ttl",
        |cache| {
            Box::pin(async move {
                cache.put_with_ttl(key(1), NEW, Duration::from_secs(3600)).await.unwrap();
            })
        },
        Some(NEW),
    ),
    (
        "put_with_timeout",
        |cache| Box::pin(async move { cache.put_with_timeout(key(1), NEW, 1000).await.unwrap() }),
        Some(NEW),
    ),
    (
        "put_blocking",
        |cache| Box::pin(async move { cache.put_blocking(key(1), NEW).unwrap() }),
        Some(NEW),
    ),
    (
        "put_many",
        |cache| {
            Box::pin(async move {
                let entries = [(key(7), vector(7)), (key(1), NEW.to_vec())];
                assert!(cache.put_many(entries).await.iter().all(Result::is_ok));
            })
        },
        Some(NEW),
    ),
    (
        "a put that has expired",
        |cache| {
            Box::pin(async move {
                cache.put_with_ttl(key(1), NEW, Duration::ZERO).await.unwrap();
                cache.cleanup_expired_safe().await;
            })
        },
        None,
    ),
    (
        "a put and a remove",
        |cache| {
            Box::pin(async move {
                cache.put(key(1), NEW).await.unwrap();
                assert_eq!(cache.remove(&key(1)).await.unwrap(), NEW);
            })
        },
        None,
    ),
    (
        "invalidate_model",
        |cache| {
            Box::pin(async move {
                cache.invalidate_model("model").await;
            })
        },
        None,
    ),
    (
        "invalidate_if",
        |cache| {
            Box::pin(async move {
                cache.invalidate_if(|at, _| *at == key(1)).await;
            })
        },
        None,
    ),
    (
        "retain",
        |cache| {
            Box::pin(async move {
                cache.retain(|at, _| *at != key(1)).await;
            })
        },
        None,
    ),
];

fn load(cache: &EmbeddingCache, model: &Model, text: u32) -> JoinHandle<()> {
    let (cache, model) = (cache.clone(), model.clone());
    tokio::spawn(async move { get(&cache, &model, &[text]).await })
}

#[tokio::test]
async fn a_load_undoes_nothing_that_came_after_it_began() {
    for (name, newer, left) in NEWER {
        let (cache, model) = (cache(), Model::gated());
        let before = load(&cache, &model, 1);
        until(|| model.calls() == 1).await;
        newer(cache.clone()).await;
        model.answer(1);
        // Whoever asked before is answered by what was asked.
        before.await.unwrap();
        let stored = cache.get(&key(1)).await;
        assert_eq!(stored.as_deref(), left.as_ref().map(<[f32; 2]>::as_slice), "{name}");
    }
}

#[tokio::test]
async fn who_asks_afterwards_is_not_answered_by_a_load_that_began_before() {
    for (name, newer, left) in NEWER {
        let (cache, model) = (cache(), Model::gated());
        let before = load(&cache, &model, 1);
        until(|| model.calls() == 1).await;
        newer(cache.clone()).await;
        match left {
            // It is there: no load at all.
            Some(new) => {
                let asked = cache.get_or_embed(key(1), || async { vector(0) }).await;
                assert_eq!(asked.unwrap(), new, "{name}");
                model.answer(1);
            }
            None => {
                let after = load(&cache, &model, 1);
                until(|| model.calls() == 2).await;
                assert_eq!(cache.stats().joins, 0, "{name}");
                // The newer one may well be the first to answer.
                model.answer(2);
                after.await.unwrap();
                until(|| cache.info().keys_in_flight == 0).await;
                assert_eq!(cache.get(&key(1)).await.unwrap(), vector(1), "{name}");
            }
        }
        before.await.unwrap();
        assert_eq!(cache.info().keys_in_flight, 0);
    }
}

/// Both kinds of key, and every keyed way to invalidate.
#[tokio::test]
async fn an_invalidation_stops_only_loads_that_it_names() {
    let cache: EmbeddingCache = EmbeddingCache::builder().max_entries(100).build().unwrap();
    let (a, b) = (CacheKey::for_model("m").tenant("a"), CacheKey::for_model("m").tenant("b"));
    let other = CacheKey::for_model("other").tenant("b");
    let model = Model::gated();
    let keys = [a.text("x"), b.text("x"), other.text("x")];
    let answers = tokio::spawn({
        let (cache, model, keys) = (cache.clone(), model.clone(), keys.clone());
        async move {
            let load = cache.load().max_batch(1);
            load.get_or_embed_many(&keys, |missing| {
                model.clone().embed(vec![missing.positions()[0] as u32])
            })
            .await
        }
    });
    until(|| model.calls() == 3).await;
    cache.invalidate_tenant("a").await;
    cache.invalidate_model("other").await;
    cache.invalidate_if(|key, _| *key == a.text("y")).await;
    cache.retain(|key, _| *key != a.text("z")).await;
    model.answer(3);
    assert!(answers.await.unwrap().iter().all(Result::is_ok));
    let stored = cache.get_many(&keys).await;
    assert_eq!(stored.map_some(), [false, true, false]);

    let cache = EmbeddingCacheBuilder::<ContentKey>::new().max_entries(100).build().unwrap();
    let (a, b) = (ContentKey::for_model("m").tenant("a"), ContentKey::for_model("m").tenant("b"));
    let gate = Arc::new(tokio::sync::Notify::new());
    let load = |key: ContentKey| {
        let (cache, gate) = (cache.clone(), Arc::clone(&gate));
        tokio::spawn(async move {
            let embed = || async move {
                gate.notified().await;
                vector(1)
            };
            cache.get_or_embed(key, embed).await
        })
    };
    let (first, second) = (load(a.text("x")), load(b.text("x")));
    until(|| cache.info().keys_in_flight == 2).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    cache.invalidate_tenant("a").await;
    gate.notify_waiters();
    assert!(first.await.unwrap().is_ok() && second.await.unwrap().is_ok());
    assert_eq!(cache.get_many([a.text("x"), b.text("x")]).await.map_some(), [false, true]);
}

trait MapSome {
    fn map_some(self) -> Vec<bool>;
}

impl<T> MapSome for Vec<Option<T>> {
    fn map_some(self) -> Vec<bool> {
        self.into_iter().map(|found| found.is_some()).collect()
    }
}

/// Seen in the field: none of the other tenant's vectors was ever stored.
#[tokio::test(start_paused = true)]
async fn invalidations_of_one_tenant_starve_no_other() {
    let cache = EmbeddingCache::builder().max_entries(1000).build().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let invalidates = tokio::spawn({
        let (cache, stop) = (cache.clone(), Arc::clone(&stop));
        async move {
            while !stop.load(SeqCst) {
                cache.invalidate_tenant("a").await;
                cache.invalidate_if(|key, _| key.model_version == "none").await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
    let b = CacheKey::for_model("m").tenant("b");
    for text in 0..20 {
        let text = text.to_string();
        let slow = || async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            [1.0, 2.0]
        };
        cache.get_or_embed(b.text(&text), slow).await.unwrap();
        assert!(cache.get(&b.text(&text)).await.is_some(), "text {text} is not stored");
    }
    stop.store(true, SeqCst);
    invalidates.await.unwrap();
}

/// An expired entry is loaded anew and replaced, also where it is kept beyond its life.
#[tokio::test]
async fn a_load_replaces_what_had_expired_when_it_began() {
    let cache = EmbeddingCache::builder()
        .max_entries(100)
        .stale_if_error(Duration::from_secs(3600))
        .build()
        .unwrap();
    cache.put_with_ttl(key(1), NEW, Duration::from_millis(1)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    get(&cache, &Model::new(), &[1]).await;
    assert_eq!(cache.get(&key(1)).await.unwrap(), vector(1));
}

/// Writers and loaders of one key, in threads. Every value is the number of the write that made it,
/// and a loader answers with the number of the last finished write from before it was asked: whatever is
/// found must not be older than what was finished before.
#[test]
fn no_reader_finds_what_is_older_than_a_finished_write() {
    let cache = EmbeddingCache::builder().max_entries(4).build().unwrap();
    let finished = Arc::new(AtomicU64::new(1));
    let stop = Arc::new(AtomicBool::new(false));
    let number = |vector: &embedding_cache::EmbeddingVector| vector[0] as u64;
    std::thread::scope(|threads| {
        for _ in 0..2 {
            let (cache, finished, stop) = (&cache, &finished, &stop);
            threads.spawn(move || {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
                runtime.block_on(async {
                    while !stop.load(SeqCst) {
                        let before = finished.load(SeqCst);
                        let source = Arc::clone(finished);
                        let embed = || async move {
                            let read = source.load(SeqCst);
                            tokio::task::yield_now().await;
                            [read as f32]
                        };
                        let answer = cache.get_or_embed(key(1), embed).await.unwrap();
                        assert!(number(&answer) >= before, "asked after {before}: {answer:?}");
                        let before = finished.load(SeqCst);
                        if let Some(found) = cache.get(&key(1)).await {
                            assert!(number(&found) >= before, "found after {before}: {found:?}");
                        }
                    }
                });
            });
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            for write in 2..20_000_u64 {
                if write % 3 == 0 {
                    // The source changes first, then what was made from it goes.
                    finished_after(&finished, write, cache.put(key(1), [write as f32])).await;
                } else {
                    cache.remove(&key(1)).await;
                }
            }
        });
        stop.store(true, SeqCst);
    });
}

async fn finished_after(
    finished: &AtomicU64,
    write: u64,
    put: impl Future<Output = Result<(), embedding_cache::CacheError>>,
) {
    put.await.unwrap();
    finished.store(write, SeqCst);
}

/// More keys than may be in flight: the batch is loaded in parts, and the limit holds.
#[tokio::test]
async fn a_batch_larger_than_the_limit_in_flight_is_loaded_in_parts() {
    for borrowed in [false, true] {
        let builder = EmbeddingCache::builder().max_entries(1000).max_in_flight(10).max_batch(4);
        let cache = builder.build().unwrap();
        let texts: Vec<u32> = (0..95).collect();
        let keys = super::model::keys(&texts);
        let embed = |missing: embedding_cache::Missing<CacheKey>| {
            let (cache, asked): (_, Vec<u32>) =
                (cache.clone(), missing.select(&texts).copied().collect());
            async move {
                tokio::task::yield_now().await;
                assert!(cache.info().keys_in_flight <= 10);
                asked.into_iter().map(vector).collect::<Vec<_>>()
            }
        };
        let answers = if borrowed {
            cache.load().get_or_embed_many_borrowed(&keys, embed).await
        } else {
            cache.get_or_embed_many(&keys, embed).await
        };
        for (&text, answer) in texts.iter().zip(answers) {
            assert_eq!(answer.unwrap(), vector(text));
        }
        assert_eq!(cache.stats().loaded, 95);
        assert_eq!(cache.info().keys_in_flight, 0);
    }
}
