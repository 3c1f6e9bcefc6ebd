//! Single flight: a key is loaded once, whoever asks for it and whoever gives up.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use embedding_cache::EmbeddingCache;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::task::JoinSet;

use super::model::{Model, cache, get, key, keys, until, vector};

#[tokio::test]
async fn five_identical_requests_cost_one_call() {
    // Seen in the field: they cost five.
    let (cache, model) = (cache(), Model::gated());
    let mut requests = JoinSet::new();
    for _ in 0..5 {
        let (cache, model) = (cache.clone(), model.clone());
        requests.spawn(async move { get(&cache, &model, &[1, 2]).await });
    }
    until(|| cache.stats().joins == 8).await;
    assert_eq!(cache.info().keys_in_flight, 2);
    model.answer(5);
    while let Some(done) = requests.join_next().await {
        done.unwrap();
    }
    assert_eq!((model.calls(), model.items()), (1, 2));
    assert_eq!(cache.info().keys_in_flight, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_hundred_tasks_over_a_thousand_texts_embed_exactly_a_thousand() {
    for seed in 0..4 {
        let (cache, model) = (cache(), Model::new());
        let mut tasks = JoinSet::new();
        for task in 0..100 {
            let (cache, model) = (cache.clone(), model.clone());
            tasks.spawn(async move {
                let mut random = SmallRng::seed_from_u64(seed * 1000 + task);
                let mut texts: Vec<u32> = (0..1000).collect();
                texts.shuffle(&mut random);
                for batch in texts.chunks(37) {
                    get(&cache, &model, batch).await;
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        assert_eq!(model.items(), 1000);
        assert_eq!(cache.stats().loaded, 1000);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn exactly_a_thousand_whatever_is_cancelled() {
    let (cache, model) = (cache(), Model::new());
    let mut tasks = JoinSet::new();
    for task in 0..200 {
        let (cache, model) = (cache.clone(), model.clone());
        tasks.spawn(async move {
            let mut random = SmallRng::seed_from_u64(task);
            let mut texts: Vec<u32> = (0..1000).collect();
            texts.shuffle(&mut random);
            for batch in texts.chunks(29) {
                let load = get(&cache, &model, batch);
                if task % 2 == 0 {
                    // Dropped after a few polls.
                    let polls = random.random_range(0..4);
                    let _: Option<()> = polled(load, polls).await;
                } else {
                    load.await;
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(model.items(), 1000);
    until(|| cache.info().keys_in_flight == 0).await;
}

/// Polls `future` at most so many times, then drops it.
async fn polled<F: Future>(future: F, times: usize) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    for _ in 0..times {
        let poll = std::future::poll_fn(|cx| std::task::Poll::Ready(future.as_mut().poll(cx)));
        if let std::task::Poll::Ready(output) = poll.await {
            return Some(output);
        }
        tokio::task::yield_now().await;
    }
    None
}

#[tokio::test]
async fn an_owned_load_goes_on_when_its_only_caller_leaves() {
    let (cache, model) = (cache(), Model::gated());
    assert!(polled(get(&cache, &model, &[1]), 3).await.is_none());
    until(|| model.calls() == 1).await;
    model.answer(1);
    until(|| cache.stats().loads == 1).await;
    assert_eq!(cache.get(&key(1)).await.unwrap(), vector(1));
}

#[tokio::test]
async fn who_joined_a_borrowed_load_takes_over_when_it_is_dropped() {
    // Seen in the field: a loader that was dropped left its waiters hanging.
    let (cache, model) = (cache(), Model::new());
    let never = || std::future::pending::<Vec<f32>>();
    let mut leader = Box::pin(cache.load().get_or_embed_borrowed(key(1), never));
    assert!(polled(&mut leader, 2).await.is_none());
    assert_eq!(cache.info().keys_in_flight, 1);
    let waiter = tokio::spawn({
        let (cache, model) = (cache.clone(), model.clone());
        async move { get(&cache, &model, &[1, 2]).await }
    });
    until(|| cache.stats().joins == 1).await;
    drop(leader);
    waiter.await.unwrap();
    assert_eq!(model.items(), 2);
    assert_eq!(cache.info().keys_in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn who_joined_a_borrowed_load_takes_over_when_it_is_never_polled_again() {
    let (cache, model) = (cache(), Model::new());
    let never = || std::future::pending::<Vec<f32>>();
    let mut leader = Box::pin(cache.load().get_or_embed_borrowed(key(1), never));
    assert!(polled(&mut leader, 2).await.is_none());
    // In the same task: the leader cannot be polled while this one waits.
    get(&cache, &model, &[1]).await;
    assert_eq!((model.items(), cache.info().keys_in_flight), (1, 0));
    drop(leader);
    assert_eq!(cache.get(&key(1)).await.unwrap(), vector(1));
}

#[tokio::test(start_paused = true)]
async fn a_borrowed_load_that_is_slow_but_polled_is_waited_for() {
    let (cache, model) = (cache(), Model::new());
    let slow = || async {
        tokio::time::sleep(Duration::from_secs(60)).await;
        vector(1)
    };
    let leader = cache.load().get_or_embed_borrowed(key(1), slow);
    let follower = async {
        until(|| cache.info().keys_in_flight == 1).await;
        get(&cache, &model, &[1]).await;
    };
    let (led, ()) = tokio::join!(leader, follower);
    assert_eq!(led.unwrap(), vector(1));
    assert_eq!(model.items(), 0, "nobody else embedded it");
}

#[tokio::test]
async fn two_borrowed_loads_that_wait_for_each_others_keys_both_end() {
    let cache = cache();
    let embed = |texts: Vec<u32>| async move {
        tokio::task::yield_now().await;
        texts.into_iter().map(vector).collect::<Vec<_>>()
    };
    let get = |texts: [u32; 4]| {
        let cache = cache.clone();
        async move {
            let answers =
                cache.load().max_batch(1).get_or_embed_many_borrowed(keys(&texts), |missing| {
                    embed(missing.select(&texts).copied().collect())
                });
            for (text, answer) in texts.into_iter().zip(answers.await) {
                assert_eq!(answer.unwrap(), vector(text));
            }
        }
    };
    tokio::join!(get([1, 2, 3, 4]), get([4, 3, 2, 1]), get([2, 4, 1, 3]));
    assert_eq!(cache.stats().loaded, 4);
}

#[tokio::test]
async fn keys_in_flight_are_bounded() {
    let cache = EmbeddingCache::builder().max_entries(100).max_in_flight(2).build().unwrap();
    let model = Model::gated();
    let first = tokio::spawn({
        let (cache, model) = (cache.clone(), model.clone());
        async move { get(&cache, &model, &[1, 2]).await }
    });
    until(|| model.calls() == 1).await;
    let refused = cache.get_or_embed(key(3), || async { vector(3) }).await.unwrap_err();
    assert!(refused.is_overloaded());
    assert!(refused.to_string().starts_with("2 keys"), "{refused}");
    let joined = tokio::spawn({
        let cache = cache.clone();
        async move { cache.get_or_embed(key(2), || async { vector(9) }).await.unwrap() }
    });
    until(|| cache.stats().joins == 1).await;
    model.answer(1);
    first.await.unwrap();
    assert_eq!(joined.await.unwrap(), vector(2), "joining needs no room");
    assert!(cache.get_or_embed(key(3), || async { vector(3) }).await.is_ok());
}

#[tokio::test]
async fn calls_at_the_same_time_are_bounded() {
    let cache = EmbeddingCache::builder().max_entries(100).max_concurrent_loads(2).build().unwrap();
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let texts: Vec<u32> = (0..20).collect();
    let load = cache.load().max_batch(1).get_or_embed_many(keys(&texts), |missing| {
        let texts: Vec<u32> = missing.select(&texts).copied().collect();
        let (running, most) = (running.clone(), most.clone());
        async move {
            most.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
            tokio::task::yield_now().await;
            running.fetch_sub(1, SeqCst);
            texts.into_iter().map(vector).collect::<Vec<_>>()
        }
    });
    assert!(load.await.iter().all(Result::is_ok));
    assert_eq!(most.load(SeqCst), 2);
}

#[test]
fn a_load_whose_runtime_shuts_down_is_taken_over_by_who_waits_elsewhere() {
    let (cache, model) = (cache(), Model::new());
    let dying = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    dying.spawn({
        let cache = cache.clone();
        async move {
            let never = || std::future::pending::<Vec<f32>>();
            drop(cache.get_or_embed(key(1), never).await);
        }
    });
    let living = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    living.block_on(async {
        until(|| cache.info().keys_in_flight == 1).await;
        let waiter = tokio::spawn({
            let (cache, model) = (cache.clone(), model.clone());
            async move { get(&cache, &model, &[1]).await }
        });
        until(|| cache.stats().joins == 1).await;
        dying.shutdown_background();
        waiter.await.unwrap();
    });
    assert_eq!(model.items(), 1);
}

#[tokio::test]
async fn what_was_loading_at_an_invalidation_is_delivered_but_not_stored() {
    for everything in [true, false] {
        let (cache, model) = (cache(), Model::gated());
        let before = tokio::spawn({
            let (cache, model) = (cache.clone(), model.clone());
            async move { get(&cache, &model, &[1]).await }
        });
        until(|| model.calls() == 1).await;
        if everything {
            cache.invalidate_all().await;
        } else {
            cache.invalidate_model("model").await;
        }
        let after = tokio::spawn({
            let (cache, model) = (cache.clone(), model.clone());
            async move { get(&cache, &model, &[1]).await }
        });
        until(|| model.calls() == 2).await;
        assert_eq!(cache.stats().joins, 0, "nobody joins what began before");
        model.answer(1);
        before.await.unwrap();
        assert_eq!(cache.get(&key(1)).await, None, "it is not stored");
        model.answer(1);
        after.await.unwrap();
        assert_eq!(cache.get(&key(1)).await.unwrap(), vector(1));
        assert_eq!(cache.info().keys_in_flight, 0);
    }
}
