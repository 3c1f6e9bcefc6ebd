//! Errors: each has its own predicate, names the value and the limit, gives back what the operation
//! had taken, and leaves the cache as it was.

use std::error::Error;
use std::thread;
use std::time::Duration;

use crate::support::{Gate, OpenOnDrop, POLICIES, PRESSURES, ShardIsKey, everywhere, key};
use embedding_cache::{
    CacheError, CacheKey, ENTRY_OVERHEAD, EmbeddingCache, InsertError, ShardedCache,
};

/// The longest time-to-live, 292 years.
const LONGEST: Duration = Duration::from_nanos(u64::MAX / 2);
const TOO_LONG: Duration = Duration::from_nanos(u64::MAX / 2 + 1);

/// Which predicates hold.
fn kind(error: &CacheError) -> Vec<&'static str> {
    let predicates = [
        (error.is_timeout(), "timeout"),
        (error.is_too_large(), "too large"),
        (error.is_contended(), "contended"),
        (error.is_invalid_vector(), "invalid vector"),
        (error.is_invalid_key(), "invalid key"),
        (error.is_invalid_ttl(), "invalid ttl"),
        (error.is_configuration(), "configuration"),
    ];
    predicates.into_iter().filter(|(holds, _)| *holds).map(|(_, name)| name).collect()
}

/// That the error is of this one kind, and that its message has all of `parts`.
#[track_caller]
fn assert_error(error: &CacheError, expected: &'static str, parts: &[&str]) {
    assert_eq!(kind(error), [expected]);
    let message = error.to_string();
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
    assert!(message.len() < 200 && !message.contains('\n'), "a line for a log: {message}");
}

/// `u64` whose values are their own weights, with the entry (1, 10).
fn core() -> ShardedCache<u64, u64> {
    let cache = ShardedCache::builder()
        .max_weight(100)
        .weigher(|_: &u64, value: &u64| *value)
        .shards(1)
        .build()
        .unwrap();
    cache.insert(1, 10).unwrap();
    cache
}

/// An embedding cache in which key 0 has `[1.0, 2.0]`.
fn embeddings(memory_limit_mb: usize) -> EmbeddingCache {
    let cache = EmbeddingCache::new(10, 3600, memory_limit_mb);
    cache.put_blocking(key(0), [1.0, 2.0]).unwrap();
    cache
}

/// Puts through each of the three doors must be refused in the same way and change nothing.
async fn refused(
    cache: &EmbeddingCache,
    key: &CacheKey,
    vector: &[f32],
    expected: &'static str,
    parts: &[&str],
) {
    let before = (cache.get(key).await, cache.info());
    let errors = [
        cache.put(key.clone(), vector).await,
        cache.put_with_timeout(key.clone(), vector, 60_000).await,
        cache.put_blocking(key.clone(), vector),
    ];
    for error in errors {
        let error = error.unwrap_err();
        assert_error(&error, expected, parts);
        let bits = |vector: &[f32]| vector.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(error.vector().unwrap()), bits(vector));
        assert_eq!(bits(&error.into_vector().unwrap()), bits(vector), "comes back intact");
    }
    let after = (cache.get(key).await, cache.info());
    assert_eq!(after.0, before.0, "what was there is there still");
    assert_eq!((after.1.size, after.1.memory_bytes), (before.1.size, before.1.memory_bytes));
    let mut stats = before.1.stats;
    stats.rejected += 3;
    *(if before.0.is_some() { &mut stats.hits } else { &mut stats.misses }) += 1;
    assert_eq!(after.1.stats, stats);
}

#[tokio::test]
async fn a_vector_over_the_memory_limit_is_refused_and_given_back() {
    let cache = embeddings(1);
    let vector = vec![0.5; 1 << 18];
    let weight = 4 * (1 << 18) + 16 + ENTRY_OVERHEAD;
    for key in [key(0), key(1)] {
        refused(&cache, &key, &vector, "too large", &[&weight.to_string(), "1048576"]).await;
    }
    assert_eq!(cache.get(&key(0)).await.unwrap(), [1.0, 2.0]);
    for cache in [EmbeddingCache::new(0, 3600, 1), EmbeddingCache::new(0, 3600, 0)] {
        refused(&cache, &key(1), &[0.5], "too large", &["0 entries"]).await;
    }
    refused(&EmbeddingCache::new(1, 3600, 0), &key(1), &[0.5], "too large", &["limit of 0"]).await;
}

#[tokio::test]
async fn a_vector_that_is_not_finite_is_refused_wherever_it_is_not() {
    let cache = embeddings(1);
    for dimensions in [1, 2, 3, 7, 8, 9, 768, 1537] {
        for place in [0, dimensions / 2, dimensions - 1] {
            for (value, name) in
                [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")]
            {
                let mut vector = vec![0.5; dimensions];
                vector[place] = value;
                // The first of several is named.
                vector[dimensions - 1] = if place == dimensions - 1 { value } else { f32::NAN };
                let parts = &[&format!("component {place} of {dimensions} is {name}")[..]];
                for key in [key(0), key(1)] {
                    refused(&cache, &key, &vector, "invalid vector", parts).await;
                }
            }
        }
    }
    let fine = [f32::MAX, f32::MIN, f32::MIN_POSITIVE, 1e-45, 0.0, -0.0];
    cache.put(key(1), fine).await.unwrap();
    assert_eq!(cache.get(&key(1)).await.unwrap(), fine, "huge and tiny ones are finite");
}

#[tokio::test]
async fn an_empty_vector_is_refused() {
    let cache = embeddings(1);
    for key in [key(0), key(1)] {
        refused(&cache, &key, &[], "invalid vector", &["0 components", "at least 1"]).await;
    }
    let cache = EmbeddingCache::builder().max_entries(1).allow_non_finite(true).build().unwrap();
    refused(&cache, &key(0), &[], "invalid vector", &["0 components"]).await;
}

#[tokio::test]
async fn allow_non_finite_allows_it() {
    let cache = EmbeddingCache::builder().max_entries(10).allow_non_finite(true).build().unwrap();
    cache.put(key(0), [f32::NAN, f32::INFINITY, 1.0]).await.unwrap();
    let got = cache.get(&key(0)).await.unwrap();
    assert!(got[0].is_nan() && got[1] == f32::INFINITY && got[2] == 1.0);
    let cache = EmbeddingCache::builder().max_entries(10).allow_non_finite(false).build().unwrap();
    assert!(cache.put(key(0), [f32::NAN]).await.unwrap_err().is_invalid_vector());
}

#[tokio::test]
async fn a_vector_of_a_cache_that_takes_all_is_looked_at_by_one_that_does_not() {
    let lax = EmbeddingCache::builder().max_entries(10).allow_non_finite(true).build().unwrap();
    let strict = EmbeddingCache::builder().max_entries(10).build().unwrap();
    lax.put(key(0), [1.0, f32::NAN]).await.unwrap();
    lax.put(key(1), [1.0, 2.0]).await.unwrap();
    for (vector, refused) in [
        (lax.get(&key(0)).await.unwrap(), true),
        (lax.get_blocking(&key(0)).unwrap(), true),
        (lax.get_many([key(0)]).await.remove(0).unwrap(), true),
        (lax.get_or_embed(key(0), async || [0.0]).await.unwrap(), true),
        (lax.remove(&key(0)).await.unwrap(), true),
        (lax.get(&key(1)).await.unwrap(), false),
    ] {
        let outcome = strict.put(key(7), vector.clone()).await;
        assert_eq!(outcome.is_err_and(|error| error.is_invalid_vector()), refused, "{vector:?}");
    }
    let known = strict.get(&key(7)).await.unwrap();
    strict.put(key(8), known).await.unwrap();
}

#[tokio::test]
async fn a_key_over_a_mebibyte_is_refused() {
    const MIB: usize = 1 << 20;
    let cache = embeddings(16);
    let texts = |content: usize, model: usize, chunk: usize| {
        CacheKey::new("c".repeat(content), "m".repeat(model)).with_chunk("#".repeat(chunk))
    };
    for (content, model, chunk) in
        [(MIB + 1, 0, 0), (0, MIB + 1, 0), (0, 0, MIB + 1), (MIB / 2, MIB / 4, MIB / 4 + 1)]
    {
        let key = texts(content, model, chunk);
        refused(&cache, &key, &[0.5], "invalid key", &["1048577", "limit"]).await;
        assert_eq!(cache.get(&key).await, None, "and asking for it is a miss");
        assert_eq!(cache.remove(&key).await, None);
    }
    for (content, model, chunk) in
        [(MIB - 1, 0, 0), (0, MIB - 1, 0), (0, 0, MIB - 1), (MIB / 2, MIB / 4, MIB / 4 - 1)]
    {
        let key = texts(content, model, chunk);
        cache.put(key.clone(), [0.5]).await.unwrap();
        assert_eq!(cache.get(&key).await.unwrap(), [0.5]);
    }
}

type Refused = Result<(), InsertError<u64, u64>>;

/// `insert` must be refused, give the entry back, count one refusal, and change nothing else.
#[track_caller]
fn refused_by(
    cache: &ShardedCache<u64, u64>,
    insert: impl FnOnce(u64, u64) -> Refused,
    entry: (u64, u64),
) -> CacheError {
    let (mut stats, held) = (cache.stats(), (cache.peek(&entry.0), cache.len(), cache.weight()));
    let refused = insert(entry.0, entry.1).unwrap_err();
    assert_eq!(refused.to_string(), refused.error().to_string());
    let (error, key, value) = refused.into_parts();
    assert_eq!((key, value), entry);
    assert!(error.vector().is_none(), "the entry was in the other error");
    assert_eq!((cache.peek(&entry.0), cache.len(), cache.weight()), held);
    stats.rejected += 1;
    assert_eq!(cache.stats(), stats);
    cache.validate();
    error
}

#[test]
fn the_core_gives_key_and_value_back() {
    let cache = core();
    let long = Duration::from_secs(60);
    for key in [1, 2] {
        for weight in [101, u64::MAX] {
            let inserts: [&dyn Fn(u64, u64) -> Refused; 4] = [
                &|key, value| cache.insert(key, value),
                &|key, value| cache.insert_with_ttl(key, value, long),
                &|key, value| cache.try_insert_for(key, value, long),
                &|key, value| cache.insert_many([(key, value)]).remove(0),
            ];
            for insert in inserts {
                let error = refused_by(&cache, insert, (key, weight));
                assert_error(&error, "too large", &[&weight.to_string(), "100"]);
            }
        }
        for ttl in [TOO_LONG, Duration::MAX] {
            let insert = |key, value| cache.insert_with_ttl(key, value, ttl);
            let error = refused_by(&cache, insert, (key, 5));
            assert_error(&error, "invalid ttl", &["time-to-live", "9223372036.85477580"]);
        }
    }
    assert_eq!(cache.peek(&1), Some(10));
    cache.insert_with_ttl(1, 11, LONGEST).unwrap();
    assert_eq!(cache.get(&1), Some(11));
}

#[test]
fn nothing_is_evicted_for_what_is_refused() {
    everywhere(&[1, 8], |policy, pressure, shards| {
        let cache = ShardedCache::builder()
            .max_entries(10)
            .max_weight(100)
            .weigher(|_: &u64, value: &u64| *value)
            .eviction(policy)
            .memory_pressure(pressure)
            .shards(shards)
            .build()
            .unwrap();
        (0..10).for_each(|key| cache.insert(key, 10).unwrap());
        for key in [0, 9, 50] {
            refused_by(&cache, |key, value| cache.insert(key, value), (key, 101));
        }
        assert!((0..10).all(|key| cache.peek(&key) == Some(10)));
    });
}

/// Holds the write lock of the shard of key 0 while `test` runs.
fn while_locked(cache: &ShardedCache<u64, u64, ShardIsKey>, test: impl FnOnce()) {
    let gate = Gate::closed();
    thread::scope(|scope| {
        let _open = OpenOnDrop(&gate);
        scope.spawn(|| {
            cache.retain(|_, _| {
                gate.pass();
                true
            })
        });
        gate.wait_for(1);
        test();
    });
    cache.validate();
}

#[test]
fn a_timeout_names_the_operation_and_the_time_it_was_given() {
    let builder = ShardedCache::<u64, u64>::builder().max_entries(10).shards(1);
    let cache = builder.hasher(ShardIsKey).build().unwrap();
    cache.insert(0, 10).unwrap();
    while_locked(&cache, || {
        let error = cache.try_get_for(&0, Duration::from_millis(7)).unwrap_err();
        assert_error(&error, "timeout", &["get", "7ms"]);
        let refused = cache.try_insert_for(0, 11, Duration::from_millis(8)).unwrap_err();
        assert_error(refused.error(), "timeout", &["insert", "8ms"]);
        assert_eq!(refused.into_entry(), (0, 11));
        assert_eq!((cache.stats().timeouts, cache.stats().rejected), (2, 0));
    });
    assert_eq!(cache.get(&0), Some(10));
}

/// All room is taken, and whoever could be evicted for more stands in a shard that is locked.
#[test]
fn a_put_that_finds_all_room_taken_says_so_and_may_be_tried_again() {
    for (policy, pressure) in POLICIES.into_iter().zip(PRESSURES) {
        let cache = ShardedCache::builder()
            .max_entries(10)
            .max_weight(100)
            .weigher(|_: &u64, value: &u64| *value)
            .eviction(policy)
            .memory_pressure(pressure)
            .shards(2)
            .hasher(ShardIsKey)
            .build()
            .unwrap();
        cache.insert(0, 70).unwrap();
        cache.insert(1, 10).unwrap();
        while_locked(&cache, || {
            let refused = cache.insert(1, 50).unwrap_err();
            assert_error(refused.error(), "contended", &["weight 50", "limit of 100"]);
            assert_eq!(refused.into_entry(), (1, 50));
            assert_eq!(cache.get(&1), Some(10), "an entry is not evicted for its own replacement");
            let refused = cache.insert(3, 50).unwrap_err();
            assert_error(refused.error(), "contended", &["weight 50", "limit of 100"]);
            assert_eq!(refused.into_entry(), (3, 50));
            assert!(cache.weight() <= 100);
            assert_eq!((cache.stats().rejected, cache.stats().timeouts), (2, 0));
        });
        cache.insert(3, 50).unwrap();
        assert_eq!(cache.get(&3), Some(50));
        assert!(cache.weight() <= 100);
        cache.validate();
    }
}

#[tokio::test]
async fn a_contended_put_of_an_embedding_gives_it_back() {
    let cache = EmbeddingCache::builder().max_entries(1).shards(2).build().unwrap();
    cache.put(key(0), [1.0]).await.unwrap();
    let gate = Gate::closed();
    let holder = thread::spawn({
        let (cache, gate) = (cache.clone(), gate.clone());
        move || {
            pollster::block_on(cache.retain(|_, _| {
                gate.pass();
                true
            }))
        }
    });
    let _open = OpenOnDrop(&gate);
    gate.wait_for(1);
    // One in the other shard, whose lock is free.
    let mut other = 1;
    while cache.get_with_timeout(&key(other), 0).await.is_err() {
        other += 1;
    }
    let before = cache.stats().rejected;
    for result in [cache.put(key(other), [2.0]).await, cache.put_blocking(key(other), [2.0])] {
        let error = result.unwrap_err();
        assert_error(&error, "contended", &["limit"]);
        assert_eq!(error.into_vector().unwrap(), [2.0]);
    }
    assert_eq!((cache.stats().rejected - before, cache.size().await), (2, 1));
    gate.open();
    assert_eq!(holder.join().unwrap(), 0);
    cache.put(key(other), [2.0]).await.unwrap();
    assert_eq!(cache.get(&key(0)).await, None);
}

#[test]
fn a_configuration_that_no_cache_can_have_is_refused() {
    let build = ShardedCache::<u64, u64>::builder;
    let limited = || build().max_entries(10);
    let cases = [
        (build().build().err(), "configuration", "no limit"),
        (limited().shards(0).build().err(), "configuration", "0 shards asked for"),
        (limited().shards(65_537).build().err(), "configuration", "65537 shards"),
        (limited().shards(usize::MAX).build().err(), "configuration", "1 to 65536"),
        (build().max_weight(77).build().err(), "configuration", "weight limit of 77"),
        (limited().max_weight(78).build().err(), "configuration", "weight limit of 78"),
        (limited().time_to_live(TOO_LONG).build().err(), "invalid ttl", "9223372036.854775808s"),
        (limited().time_to_live(Duration::MAX).build().err(), "invalid ttl", "limit"),
    ];
    for (error, expected, part) in cases {
        assert_error(&error.unwrap(), expected, &[part]);
    }
    let embeddings = || EmbeddingCache::builder().max_entries(10);
    let cases = [
        (EmbeddingCache::builder().build().err(), "configuration", "no limit"),
        (embeddings().shards(0).build().err(), "configuration", "0 shards"),
        (embeddings().shards(1 << 17).build().err(), "configuration", "131072 shards"),
        (embeddings().time_to_live(TOO_LONG).build().err(), "invalid ttl", "limit"),
    ];
    for (error, expected, part) in cases {
        assert_error(&error.unwrap(), expected, &[part]);
    }
    let error = limited().build().unwrap().set_max_weight(79).unwrap_err();
    assert_error(&error, "configuration", &["79"]);
}

#[test]
fn a_configuration_at_the_edge_is_taken() {
    let limited = || ShardedCache::<u64, u64>::builder().max_entries(10);
    for (asked, shards) in [(1, 1), (2, 2), (3, 4), (5, 8), (1000, 1024), (65_536, 65_536)] {
        let cache = limited().shards(asked).build().unwrap();
        assert_eq!(cache.shards(), shards);
        cache.insert(1, 1).unwrap();
        assert_eq!(cache.get(&1), Some(1));
    }
    limited().time_to_live(LONGEST).build().unwrap();
    limited().time_to_live(Duration::ZERO).build().unwrap();
    let unlimited = |max| ShardedCache::<u64, u64>::builder().max_entries(max).build().unwrap();
    assert_eq!(unlimited(usize::MAX).max_entries(), usize::MAX);
    assert_eq!(unlimited(0).max_entries(), 0);
    let by_weight = ShardedCache::<u64, u64>::builder().weigher(|_, _| 1).max_weight(5);
    let by_weight = by_weight.build().unwrap();
    assert_eq!((by_weight.max_entries(), by_weight.max_weight()), (usize::MAX, 5));
    let by_bytes = EmbeddingCache::builder().max_bytes(1 << 20).build().unwrap();
    assert_eq!(by_bytes.info().max_size, usize::MAX);
}

#[test]
fn errors_pass_through_the_question_mark() {
    struct Opaque; // without Debug
    fn as_cache_error() -> Result<(), CacheError> {
        let cache = ShardedCache::<u64, u64>::builder().max_entries(0).build()?;
        Ok(cache.insert(1, 1)?)
    }
    fn as_any_error() -> Result<(), Box<dyn Error + Send + Sync>> {
        let cache = ShardedCache::<u64, u64>::builder().max_entries(0).build()?;
        Ok(cache.insert(1, 1)?)
    }
    assert!(as_cache_error().unwrap_err().is_too_large());
    let any = as_any_error().unwrap_err();
    assert!(any.downcast_ref::<InsertError<u64, u64>>().unwrap().error().is_too_large());
    assert!(any.to_string().contains("0 entries"));
    let cache = ShardedCache::<u64, Opaque>::builder().max_entries(0).build().unwrap();
    let refused = cache.insert(1, Opaque).unwrap_err();
    assert!(format!("{refused:?}").contains("InsertError"));
    assert!(refused.source().is_none());
}
