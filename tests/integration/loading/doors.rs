//! The doors for many keys at once, and those that invalidate, for both kinds of key.

use std::hash::{BuildHasherDefault, DefaultHasher};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Waker};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use embedding_cache::{
    CacheKey, ContentKey, EmbeddingCache, EmbeddingCacheBuilder, EmbeddingKey, EmbeddingVector,
    EvictionPolicy, KeySpec,
};
use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::model::{key, keys, vector};
use crate::support::{FakeClock, Gate, POLICIES, in_time};

/// A cache for each kind of key, for a test that is the same for both.
macro_rules! for_both_kinds {
    ($test:ident, $entries:expr) => {{
        let words = EmbeddingCache::builder().max_entries($entries).build().unwrap();
        $test(words, CacheKey::for_model).await;
        let digests = EmbeddingCacheBuilder::<ContentKey>::new().max_entries($entries);
        $test(digests.build().unwrap(), ContentKey::for_model).await;
    }};
}

#[tokio::test]
async fn get_many_answers_in_the_order_of_the_request() {
    async fn test<K: EmbeddingKey>(cache: EmbeddingCache<K>, spec: fn(&'static str) -> KeySpec<K>) {
        let spec = spec("toy");
        let key = |text: u32| spec.text(&text.to_string());
        for text in (0..300).step_by(2) {
            cache.put(key(text), vector(text)).await.unwrap();
        }
        for texts in [vec![], vec![4], vec![7, 2, 2, 7], (0..300).rev().collect()] {
            let asked: Vec<K> = texts.iter().map(|&text| key(text)).collect();
            let expected =
                |&text: &u32| (text % 2 == 0).then(|| EmbeddingVector::from(vector(text)));
            let expected: Vec<_> = texts.iter().map(expected).collect();
            assert_eq!(cache.get_many(&asked).await, expected);
        }
        let stats = cache.stats();
        assert_eq!((stats.hits, stats.misses), (153, 152));
    }
    for_both_kinds!(test, 1000);
}

#[tokio::test]
async fn of_two_entries_with_one_key_the_later_stays_and_each_has_its_own_result() {
    async fn test<K: EmbeddingKey>(cache: EmbeddingCache<K>, spec: fn(&'static str) -> KeySpec<K>) {
        let spec = spec("toy");
        let key = |text: u32| spec.text(&text.to_string());
        let nan = vec![f32::NAN, 1.0];
        let results = cache
            .put_many([
                (key(1), vector(1)),
                (key(2), nan.clone()),
                (key(1), vector(10)),
                (key(3), vec![]),
                (key(2), vector(2)),
                (key(2), nan),
            ])
            .await;
        let ok: Vec<bool> = results.iter().map(Result::is_ok).collect();
        assert_eq!(ok, [true, false, true, false, true, false]);
        let refused: Vec<_> = results.into_iter().filter_map(Result::err).collect();
        assert!(refused.iter().all(|error| error.is_invalid_vector()));
        let given_back: Vec<_> =
            refused.into_iter().map(|error| error.into_vector().unwrap().len()).collect();
        assert_eq!(given_back, [2, 0, 2]);
        assert_eq!(cache.get(&key(1)).await.unwrap(), vector(10));
        assert_eq!(cache.get(&key(2)).await.unwrap(), vector(2));
        assert_eq!((cache.size().await, cache.stats().rejected), (2, 3));
        assert!(cache.put_many::<Vec<f32>>([]).await.is_empty());
    }
    for_both_kinds!(test, 1000);
}

#[tokio::test]
async fn what_is_too_large_fails_alone_and_comes_back() {
    let cache = EmbeddingCache::builder().max_bytes(1000).shards(1).build().unwrap();
    let entries = [(key(1), vec![1.0; 4]), (key(2), vec![2.0; 1000]), (key(3), vec![3.0; 4])];
    let mut results = cache.put_many(entries).await;
    let refused = results.remove(1).unwrap_err();
    assert!(refused.is_too_large());
    assert_eq!(refused.into_vector().unwrap(), vec![2.0; 1000]);
    assert!(results.iter().all(Result::is_ok));
    assert_eq!(cache.size().await, 2);
}

#[tokio::test]
async fn batches_do_to_a_cache_what_single_gets_and_puts_do() {
    for policy in POLICIES {
        for seed in 0..20 {
            let build = || {
                let builder = EmbeddingCache::builder().max_entries(40).shards(1).eviction(policy);
                // The same hash function for both: ghosts are told by their hash.
                let hasher = BuildHasherDefault::<DefaultHasher>::default();
                builder.clock(FakeClock::new()).hasher(hasher).build().unwrap()
            };
            let (batches, singles) = (build(), build());
            let mut random = SmallRng::seed_from_u64(seed);
            for _ in 0..100 {
                let most = if random.random_bool(0.1) { 150 } else { 10 };
                let size = random.random_range(0..most);
                let texts: Vec<u32> = (0..size).map(|_| random.random_range(0..80)).collect();
                if random.random() {
                    let entries = texts.iter().map(|&text| (key(text), vector(text + 1000)));
                    assert!(batches.put_many(entries).await.iter().all(Result::is_ok));
                    for &text in &texts {
                        singles.put(key(text), vector(text + 1000)).await.unwrap();
                    }
                } else {
                    let answers = batches.get_many(keys(&texts)).await;
                    for (&text, answer) in texts.iter().zip(answers) {
                        assert_eq!(answer, singles.get(&key(text)).await, "{policy:?}, {seed}");
                    }
                }
            }
            assert_eq!(batches.stats(), singles.stats(), "{policy:?}, {seed}");
        }
    }
}

#[tokio::test]
async fn a_put_has_the_time_to_live_that_it_asks_for() {
    async fn test<K: EmbeddingKey>(cache: EmbeddingCache<K>, spec: fn(&'static str) -> KeySpec<K>) {
        let spec = spec("toy");
        let second = Duration::from_secs(1);
        cache.put_with_ttl(spec.text("a"), [1.0], Duration::ZERO).await.unwrap();
        assert_eq!(cache.get(&spec.text("a")).await, None);
        cache.put_with_ttl(spec.text("a"), [1.0], 3600 * second).await.unwrap();
        assert_eq!(cache.get(&spec.text("a")).await.unwrap(), [1.0]);
        let refused = cache.put_with_ttl(spec.text("b"), [2.0], Duration::MAX).await.unwrap_err();
        assert!(refused.is_invalid_ttl());
        assert_eq!(refused.into_vector().unwrap(), [2.0]);
    }
    for_both_kinds!(test, 1000);

    let clock = FakeClock::new();
    let second = Duration::from_secs(1);
    let builder = EmbeddingCache::builder().max_entries(10).time_to_live(10 * second);
    let cache = builder.clock(clock.clone()).build().unwrap();
    cache.put_with_ttl(key(1), vector(1), 5 * second).await.unwrap();
    cache.put_with_ttl(key(2), vector(2), 20 * second).await.unwrap();
    cache.put(key(3), vector(3)).await.unwrap();
    let mut alive = Vec::new();
    for _ in 0..4 {
        alive.push(cache.get_many(keys(&[1, 2, 3])).await.iter().flatten().count());
        clock.advance(6 * second);
    }
    assert_eq!(alive, [3, 2, 1, 1]);
}

#[tokio::test]
async fn an_invalidation_removes_what_it_names_and_counts_it() {
    async fn test<K: EmbeddingKey>(cache: EmbeddingCache<K>, spec: fn(&'static str) -> KeySpec<K>) {
        let specs = [
            spec("e5"),
            spec("e5").revision("1"),
            spec("e5").revision("2").tenant("acme"),
            spec("e5-large").tenant("acme"),
            spec("e5-large").tenant(""),
            spec("E5").tenant("acm"),
        ];
        let fill = async || {
            for (spec, dimensions) in specs.iter().zip(1..) {
                for text in 0..100 {
                    let vector = vec![0.5; dimensions];
                    cache.put(spec.text(&text.to_string()), vector).await.unwrap();
                }
            }
        };
        // Which of the specifications have all of their entries; the others must have none.
        let left = async || {
            let mut left = Vec::new();
            for (number, spec) in specs.iter().enumerate() {
                let keys: Vec<K> = (0..100).map(|text| spec.text(&text.to_string())).collect();
                match cache.get_many(keys).await.iter().flatten().count() {
                    0 => {}
                    100 => left.push(number),
                    some => panic!("{some} entries of specification {number}"),
                }
            }
            left
        };
        fill().await;
        assert_eq!(cache.invalidate_model("e5").await, 300);
        assert_eq!(left().await, [3, 4, 5]);
        assert_eq!(cache.invalidate_model("e5").await, 0);
        assert_eq!(cache.invalidate_model("").await, 0);
        fill().await;
        assert_eq!(cache.invalidate_tenant("acme").await, 200);
        assert_eq!(left().await, [0, 1, 4, 5]);
        assert_eq!(cache.invalidate_tenant("").await, 100, "a tenant without a name is one");
        assert_eq!(left().await, [0, 1, 5]);
        assert_eq!(cache.invalidate_tenant("acme").await, 0);
        fill().await;
        let second = specs[1].text("7");
        let removed = cache.invalidate_if(|key, vector| *key == second || vector.len() > 4).await;
        assert_eq!(removed, 201);
        assert_eq!(cache.get(&second).await, None);
        cache.put(second, vec![0.5; 2]).await.unwrap();
        assert_eq!(left().await, [0, 1, 2, 3]);
        assert_eq!(cache.invalidate_all().await, 400);
        assert_eq!((left().await, cache.size().await), (vec![], 0));
        assert_eq!(cache.invalidate_all().await, 0);
    }
    for_both_kinds!(test, 10_000);
}

/// A thread that sits on the only shard of a cache until it is let go.
struct Held(Arc<Gate>, JoinHandle<usize>);

impl Held {
    fn the_shard_of(cache: &EmbeddingCache) -> Self {
        let (gate, cache) = (Gate::closed(), cache.clone());
        let closed = Arc::clone(&gate);
        let thread = thread::spawn(move || {
            pollster::block_on(cache.retain(|_, _| {
                closed.pass();
                true
            }))
        });
        gate.wait_for(1);
        Self(gate, thread)
    }

    fn let_go(self) {
        self.0.open();
        assert_eq!(self.1.join().unwrap(), 0);
    }
}

/// A cache of one shard with the texts 0 to 9.
fn one_shard() -> EmbeddingCache {
    let builder = EmbeddingCache::builder().max_entries(1000).shards(1);
    let cache = builder.eviction(EvictionPolicy::Lru).build().unwrap();
    for text in 0..10 {
        cache.put_blocking(key(text), vector(text)).unwrap();
    }
    cache
}

type Operation = fn(EmbeddingCache) -> std::pin::Pin<Box<dyn Future<Output = ()>>>;

/// Every operation on many keys; each checks what it is told.
const OPERATIONS: [(&str, Operation); 8] = [
    ("get_many", |cache| {
        Box::pin(async move {
            assert!(cache.get_many(keys(&[1, 2])).await.iter().all(Option::is_some));
        })
    }),
    ("put_many", |cache| {
        Box::pin(async move {
            let entries = [11, 12].map(|text| (key(text), vector(text)));
            assert!(cache.put_many(entries).await.iter().all(Result::is_ok));
        })
    }),
    ("put_with_ttl", |cache| {
        Box::pin(async move {
            cache.put_with_ttl(key(11), vector(11), Duration::from_secs(60)).await.unwrap();
        })
    }),
    ("get_or_embed_many", |cache| {
        Box::pin(async move {
            let load = cache.get_or_embed_many(keys(&[1, 13]), |missing| {
                assert_eq!(missing.positions(), [1]);
                async { vec![vector(13)] }
            });
            assert!(load.await.iter().all(Result::is_ok));
        })
    }),
    ("get_or_embed_many_borrowed", |cache| {
        Box::pin(async move {
            let load = cache.load().get_or_embed_many_borrowed(keys(&[1, 14]), |missing| {
                assert_eq!(missing.positions(), [1]);
                async { vec![vector(14)] }
            });
            assert!(load.await.iter().all(Result::is_ok));
        })
    }),
    ("invalidate_model", |cache| {
        Box::pin(async move { assert_eq!(cache.invalidate_model("model").await, 10) })
    }),
    ("invalidate_tenant", |cache| {
        Box::pin(async move { assert_eq!(cache.invalidate_tenant("acme").await, 0) })
    }),
    ("invalidate_all", |cache| {
        Box::pin(async move { assert_eq!(cache.invalidate_all().await, 10) })
    }),
];

/// All tasks share one thread. If an operation blocked it, the ticks would stand still, and the lock
/// would be let go only by the deadline.
#[test]
fn other_tasks_go_on_while_an_operation_on_many_keys_waits_for_a_lock() {
    for (what, operation) in OPERATIONS {
        in_time(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let cache = one_shard();
                let Held(gate, thread) = Held::the_shard_of(&cache);
                let ticks = Arc::new(AtomicUsize::new(0));
                let seen = Arc::clone(&ticks);
                let other = thread::spawn(move || {
                    let start = Instant::now();
                    while seen.load(SeqCst) < 20 && start.elapsed() < Duration::from_secs(5) {
                        thread::yield_now();
                    }
                    gate.open();
                    seen.load(SeqCst)
                });
                let ticking = async {
                    for _ in 0..20 {
                        ticks.fetch_add(1, SeqCst);
                        tokio::task::yield_now().await;
                    }
                };
                tokio::join!(operation(cache.clone()), ticking);
                assert_eq!(other.join().unwrap(), 20, "{what} blocked the thread");
                thread.join().unwrap();
            });
        });
    }
}

#[test]
fn an_operation_that_is_dropped_half_way_leaves_a_valid_cache() {
    for (what, operation) in OPERATIONS {
        in_time(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _inside = runtime.enter();
            let cache = one_shard();
            let held = Held::the_shard_of(&cache);
            for polls in 0..4 {
                let mut dropped = pin!(operation(cache.clone()));
                for _ in 0..polls {
                    let mut context = Context::from_waker(Waker::noop());
                    assert!(dropped.as_mut().poll(&mut context).is_pending(), "{what}");
                }
            }
            held.let_go();
            runtime.block_on(async {
                assert_eq!(cache.info().keys_in_flight, 0, "{what}");
                for text in 0..20 {
                    if let Some(found) = cache.get(&key(text)).await {
                        assert_eq!(found, vector(text), "{what}");
                    }
                }
                if what == "invalidate_all" {
                    assert!(cache.get_many(keys(&[0, 5, 9])).await.iter().all(Option::is_none));
                }
                cache.put(key(30), vector(30)).await.unwrap();
                assert_eq!(cache.get(&key(30)).await.unwrap(), vector(30));
                let held = cache.get_many(keys(&(0..31).collect::<Vec<_>>())).await;
                assert_eq!(held.iter().flatten().count(), cache.size().await, "{what}");
                assert_eq!(cache.invalidate_all().await, held.iter().flatten().count());
                assert_eq!((cache.size().await, cache.info().memory_bytes), (0, 0));
            });
        });
    }
}

/// Large enough that it comes to several steps, and is dropped after each number of them.
#[test]
fn a_large_batch_dropped_between_two_steps_has_stored_each_entry_or_not() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut counts = Vec::new();
        // Where it yields is a matter of time, so it is dropped as soon as so many are stored.
        for dropped_from in [0, 1, 500, 2000, 3000, usize::MAX] {
            let cache = EmbeddingCache::builder().max_entries(100_000).shards(1).build().unwrap();
            let texts: Vec<u32> = (0..4000).collect();
            let entries: Vec<_> = texts.iter().map(|&text| (key(text), vector(text))).collect();
            {
                let mut put = pin!(cache.put_many(entries));
                while cache.info().size < dropped_from {
                    let mut context = Context::from_waker(Waker::noop());
                    if put.as_mut().poll(&mut context).is_ready() {
                        break;
                    }
                }
            }
            let found = cache.get_many(keys(&texts)).await;
            for (&text, found) in texts.iter().zip(&found) {
                assert!(found.as_ref().is_none_or(|found| *found == vector(text)));
            }
            let stored = found.iter().flatten().count();
            assert_eq!(stored, cache.size().await);
            {
                let mut invalidation = pin!(cache.invalidate_model("model"));
                let mut context = Context::from_waker(Waker::noop());
                let _ = invalidation.as_mut().poll(&mut context);
            }
            let left = cache.get_many(keys(&texts)).await.iter().flatten().count();
            assert!(left == cache.size().await && (left < stored || stored == 0));
            assert_eq!(cache.invalidate_model("model").await, left);
            counts.push(stored);
        }
        assert_eq!((counts[0], counts.last()), (0, Some(&4000)));
        assert!(counts.iter().any(|count| (1..4000).contains(count)), "{counts:?}");
    });
}
