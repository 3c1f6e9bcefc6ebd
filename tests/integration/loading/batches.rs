//! Batches: what is asked for, in which order, and that each text has its own vector.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use embedding_cache::{CacheKey, EmbeddingCache, EmbeddingVector};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::model::{Model, cache, get, key, keys, vector};

#[tokio::test]
async fn a_mixed_batch_has_the_length_and_the_order_of_the_request() {
    // Seen in the field: hits and misses of a batch merged with the indices [0, 1, 1].
    let (cache, model) = (cache(), Model::new());
    get(&cache, &model, &[7]).await;
    for texts in [
        vec![7, 1, 2],
        vec![3, 7, 3, 4, 7, 3],
        vec![],
        vec![5],
        vec![6, 6, 6],
        (0..200).collect(),
        (0..200).rev().chain(100..300).collect(),
    ] {
        get(&cache, &model, &texts).await;
        get(&cache, &model, &texts).await;
    }
    assert_eq!(model.items(), 300, "each text once");
}

#[tokio::test]
async fn random_batches_never_shift_a_vector_onto_another_text() {
    let cache = EmbeddingCache::builder().max_entries(50).build().unwrap(); // evicts all the time
    let model = Model::new();
    let mut random = SmallRng::seed_from_u64(1);
    let all: Vec<u32> = (0..200).collect();
    for _ in 0..500 {
        let size = random.random_range(0..100);
        let texts: Vec<u32> = (0..size).map(|_| *all.choose(&mut random).unwrap()).collect();
        get(&cache, &model, &texts).await;
    }
}

#[tokio::test]
async fn the_closure_gets_unique_misses_in_first_seen_order() {
    let (cache, model) = (cache(), Model::new());
    get(&cache, &model, &[4]).await;
    let texts = [9, 4, 2, 9, 8, 2];
    let mut seen = Vec::new();
    let answers = cache
        .get_or_embed_many(keys(&texts), |missing| {
            seen.push((missing.positions().to_vec(), missing.keys().to_vec()));
            assert_eq!(missing.len(), missing.into_keys().len());
            async { vec![vector(9), vector(2), vector(8)] }
        })
        .await;
    assert_eq!(seen, [(vec![0, 2, 4], keys(&[9, 2, 8]))]);
    let answers: Vec<EmbeddingVector> = answers.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers, texts.map(|text| EmbeddingVector::from(vector(text))));
}

#[tokio::test]
async fn batches_over_the_limit_are_divided() {
    let (cache, texts) = (cache(), (0..10).collect::<Vec<u32>>());
    let mut sizes = Vec::new();
    let answers = cache
        .load()
        .max_batch(4)
        .get_or_embed_many(keys(&texts), |missing| {
            sizes.push(missing.len());
            let texts: Vec<u32> = missing.select(&texts).copied().collect();
            async move { texts.into_iter().map(vector).collect::<Vec<_>>() }
        })
        .await;
    assert_eq!(sizes, [4, 4, 2]);
    for (text, answer) in texts.into_iter().zip(answers) {
        assert_eq!(answer.unwrap(), vector(text));
    }
}

#[tokio::test]
async fn sub_batches_are_stored_as_they_land() {
    let (cache, model) = (cache(), Model::gated());
    let texts = [1, 2, 3, 4];
    let asked = keys(&texts);
    let load = cache.load().max_batch(2).get_or_embed_many(&asked, |missing| {
        model.clone().embed(missing.select(&texts).copied().collect())
    });
    let watch = async {
        super::model::until(|| model.calls() == 2).await;
        model.answer(1);
        super::model::until(|| cache.stats().insertions == 2).await;
        assert_eq!(cache.stats().loads, 1, "the second call is still under way");
        model.answer(1);
    };
    let (answers, ()) = tokio::join!(load, watch);
    assert!(answers.into_iter().all(|answer| answer.is_ok()));
}

#[tokio::test]
async fn every_form_of_answer_is_taken() {
    let cache = cache();
    let one = |n: u32| key(n);
    assert_eq!(cache.get_or_embed(one(1), || async { vec![1.0] }).await.unwrap(), [1.0]);
    assert_eq!(cache.get_or_embed(&one(2), || async { [2.0] }).await.unwrap(), [2.0]);
    let fallible = || async { Ok::<_, std::io::Error>(vec![3.0]) };
    assert_eq!(cache.get_or_embed(one(3), fallible).await.unwrap(), [3.0]);
    let shared = EmbeddingVector::from([4.0]);
    let same = shared.clone();
    let loaded = cache.get_or_embed(one(4), || async { same }).await.unwrap();
    assert!(loaded.ptr_eq(&shared), "nothing is copied");
    let many = cache
        .get_or_embed_many(keys(&[5, 6]), |_| async {
            Ok::<_, String>(vec![Ok(vec![5.0]), Err("too long")])
        })
        .await;
    assert_eq!(many[0].as_ref().unwrap(), &[5.0]);
    assert!(many[1].as_ref().unwrap_err().is_load_failed());
}

#[tokio::test]
async fn hits_never_call_the_closure_and_count_as_hits() {
    let (cache, model) = (cache(), Model::new());
    get(&cache, &model, &[1, 2, 3]).await;
    let before = cache.stats();
    let answers = cache
        .get_or_embed_many(keys(&[1, 2, 3, 1]), |_| async {
            unreachable!("all are hits");
            #[allow(unreachable_code)]
            Vec::<Vec<f32>>::new()
        })
        .await;
    assert!(answers.iter().all(Result::is_ok));
    let after = cache.stats();
    assert_eq!((after.hits - before.hits, after.misses - before.misses), (4, 0));
    assert_eq!(after.loads, 1);
}

#[tokio::test]
async fn a_key_that_is_too_long_fails_alone() {
    let cache = cache();
    let asked = [key(1), CacheKey::new("x".repeat(2 << 20), "m"), key(2)];
    let answers = cache
        .get_or_embed_many(&asked, |missing| {
            assert_eq!(missing.positions(), [0, 2]);
            async { vec![vector(1), vector(2)] }
        })
        .await;
    assert_eq!(answers[0].as_ref().unwrap(), &vector(1));
    assert!(answers[1].as_ref().unwrap_err().is_invalid_key());
    assert_eq!(answers[2].as_ref().unwrap(), &vector(2));
}

/// A batch of very many keys lets other tasks run in each of its phases: while it is looked up, claimed,
/// waited for and answered.
#[tokio::test]
async fn a_batch_of_very_many_keys_lets_other_tasks_run() {
    let texts: Vec<u32> = (0..60_000).collect();
    let asked = keys(&texts);
    let cache = EmbeddingCache::builder().max_entries(100_000).max_batch(60_000).build().unwrap();
    let turns = Arc::new(AtomicUsize::new(0));
    let other = tokio::spawn({
        let turns = Arc::clone(&turns);
        async move {
            loop {
                turns.fetch_add(1, SeqCst);
                tokio::task::yield_now().await;
            }
        }
    });
    // Few large calls, so that it is not they that let others run.
    let before_call = Arc::new(AtomicUsize::new(0));
    let answers = cache
        .get_or_embed_many(&asked, |missing| {
            before_call.fetch_max(turns.load(SeqCst), SeqCst);
            let texts: Vec<u32> = missing.select(&texts).copied().collect();
            async move { texts.into_iter().map(vector).collect::<Vec<_>>() }
        })
        .await;
    assert!(answers.iter().all(Result::is_ok));
    let (before, after) = (before_call.load(SeqCst), turns.load(SeqCst));
    // The least of what a machine shows that does 10,000 keys in 200 microseconds.
    assert!(before >= 6, "{before} turns while it was looked up and claimed");
    assert!(after - before >= 6, "{} turns while it was stored and answered", after - before);
    let hits = cache.get_or_embed_many(&asked, |_| async { Vec::<Vec<f32>>::new() }).await;
    assert!(hits.iter().all(Result::is_ok));
    assert!(turns.load(SeqCst) - after >= 6);
    other.abort();
}
