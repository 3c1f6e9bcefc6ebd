//! A single server that is stopped, frozen, black-holed, killed, restarted.

use std::time::{Duration, Instant};

use embedding_cache::EmbeddingCache;
use embedding_cache_redis::RedisTier;

use crate::support::{
    BlackHole, Dropping, ENGINES, Engine, Model, Server, flush, key, process, vector,
};

/// Far over the soft deadline, as the machine has other things to do; far under what clients are
/// known to take for each command: 9.5 s on a closed port, 16.5 s on a server that never answers.
const SOON: Duration = Duration::from_millis(1500);

async fn tier(server: &Server) -> RedisTier {
    RedisTier::builder(server.address()).connect().await.unwrap()
}

/// Requests from several tasks; the slowest. Every vector is verified.
async fn load(cache: &EmbeddingCache, model: &Model, numbers: std::ops::Range<usize>) -> Duration {
    let each = numbers.len() / 4;
    let tasks: Vec<_> = (0..4)
        .map(|task| {
            let (cache, model) = (cache.clone(), model.clone());
            let from = numbers.start + task * each;
            tokio::spawn(async move {
                let mut slowest = Duration::ZERO;
                for from in (from..from + each).step_by(10) {
                    slowest = slowest.max(model.embed(&cache, from..from + 10).await);
                }
                slowest
            })
        })
        .collect();
    let mut slowest = Duration::ZERO;
    for task in tasks {
        slowest = slowest.max(task.await.unwrap());
    }
    slowest
}

/// Waits until what is stored now is found by another process.
async fn recovered(cache: &EmbeddingCache, server: &Server, from: usize) -> Duration {
    let started = Instant::now();
    let other = process(tier(server).await);
    for number in from.. {
        other.put(key(number), vector(number)).await.unwrap();
        flush(&other).await;
        if cache.get_through(&key(number)).await.is_some() {
            return started.elapsed();
        }
        assert!(started.elapsed() < Duration::from_secs(40), "{:?}", cache.stats().tier);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    unreachable!()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_fails_no_request_and_is_used_again_when_it_is_thawed() {
    for engine in ENGINES {
        let server = Server::start(engine);
        let (cache, model) = (process(tier(&server).await), Model::default());
        load(&cache, &model, 0..400).await;
        server.freeze();
        let slowest = load(&cache, &model, 10_000..14_000).await;
        assert!(slowest < SOON, "{engine:?}: {slowest:?}");
        // It may be done before the hard time-outs are over.
        tokio::time::sleep(Duration::from_millis(600)).await;
        let stats = cache.stats().tier;
        assert!(stats.opened == 1 && stats.failures_timeout > 0, "{engine:?}: {stats:?}");
        server.thaw();
        // The first pause, and perhaps the second.
        let took = recovered(&cache, &server, 50_000).await;
        assert!(took < Duration::from_secs(9), "{engine:?}: {took:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_stopped_or_killed_fails_no_request_and_is_used_again_when_it_is_back() {
    for (engine, kill) in [(Engine::Redis, true), (Engine::Valkey, false)] {
        let mut server = Server::start(engine);
        let (cache, model) = (process(tier(&server).await), Model::default());
        load(&cache, &model, 0..400).await;
        flush(&cache).await;
        if kill {
            server.kill();
        } else {
            server.stop();
        }
        let slowest = load(&cache, &model, 10_000..14_000).await;
        assert!(slowest < SOON, "{engine:?}: {slowest:?}");
        let stats = cache.stats().tier;
        assert!(stats.opened >= 1 && stats.failures_connection > 0, "{engine:?}: {stats:?}");
        // Without its data, the nonces among them: a cold tier, and nothing from before.
        server.restart();
        let took = recovered(&cache, &server, 50_000).await;
        assert!(took < Duration::from_secs(9), "{engine:?}: {took:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_not_there_costs_the_soft_deadline_at_most() {
    let (hole, dropping) = (BlackHole::start(), Dropping::start());
    for address in ["redis://127.0.0.1:1", &hole.address, &dropping.address] {
        let cache = process(RedisTier::builder(address).lazy().unwrap());
        let model = Model::default();
        let slowest = load(&cache, &model, 0..4000).await;
        assert!(slowest < SOON, "{address}: {slowest:?}");
        assert_eq!(model.asked(), 4000);
    }
}

/// A server without memory left refuses what is written; reads go on.
#[tokio::test]
async fn a_full_server_refuses_writes_and_answers_reads() {
    let server = Server::start_with(Engine::Redis, &["--maxmemory", "4mb"]);
    let cache = process(tier(&server).await);
    cache.put(key(0), vector(0)).await.unwrap();
    flush(&cache).await;
    for number in 1..2000 {
        cache.put(key(number), vec![1.0; 1000]).await.unwrap();
    }
    flush(&cache).await;
    let stats = cache.stats().tier;
    assert!(stats.write_failures + stats.dropped > 0, "{stats:?}");
    assert!(process(tier(&server).await).get_through(&key(0)).await.is_some());
}

#[tokio::test]
async fn an_invalidation_that_cannot_reach_the_server_is_an_error() {
    let mut server = Server::start(Engine::Valkey);
    let cache = process(tier(&server).await);
    cache.put(key(1), vector(1)).await.unwrap();
    flush(&cache).await;
    server.kill();
    let failed = cache.invalidate_model_through("e5-base").await.unwrap_err();
    assert!(failed.is_tier_failed(), "{failed}");
    assert!(cache.get(&key(1)).await.is_none());
}
