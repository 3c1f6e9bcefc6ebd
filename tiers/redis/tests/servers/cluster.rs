//! A cluster of three primaries and three replicas.

use std::time::{Duration, Instant};

use embedding_cache::EmbeddingCache;
use embedding_cache_redis::RedisTier;

use crate::support::{Cluster, ENGINES, Engine, Model, flush, key, keys, patient, process, vector};

async fn tier(cluster: &Cluster) -> RedisTier {
    RedisTier::cluster(cluster.addresses()).connect().await.unwrap()
}

/// Keys in all slots: a batch that were one command would be refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_across_slots_is_no_crossslot_error() {
    for engine in ENGINES {
        let cluster = Cluster::start(engine);
        let first = process(tier(&cluster).await);
        let model = Model::default();
        for from in (0..1000).step_by(100) {
            model.embed(&first, from..from + 100).await;
        }
        flush(&first).await;
        let stats = first.stats().tier;
        assert_eq!((stats.writes, stats.write_failures), (1000, 0), "{engine:?} {stats:?}");
        let second = patient(tier(&cluster).await);
        let found = found_in(&second, 0..1000).await;
        assert_eq!(found, 1000, "{engine:?}: {:?}", second.stats().tier);
        first.invalidate_all_through().await.unwrap();
        assert_eq!(found_in(&process(tier(&cluster).await), 0..1000).await, 0);
    }
}

/// How many of the keys are found, in batches; each verified.
async fn found_in(cache: &EmbeddingCache, numbers: std::ops::Range<usize>) -> usize {
    let mut found = 0;
    for from in numbers.step_by(50) {
        for (number, answer) in (from..).zip(cache.get_through_many(keys(from..from + 50)).await) {
            if let Some(answer) = answer {
                assert_eq!(answer, vector(number));
                found += 1;
            }
        }
    }
    found
}

/// A primary is lost under load, frozen or killed; its replica takes over. No request fails, and then
/// there are hits on all shards again.
async fn loses_a_primary(engine: Engine, freeze: bool) {
    let mut cluster = Cluster::start(engine);
    let cache = process(tier(&cluster).await);
    let model = Model::default();
    model.embed(&cache, 0..200).await;
    flush(&cache).await;
    let victim = cluster.primaries()[1];
    if freeze {
        cluster.servers[victim].freeze();
    } else {
        cluster.servers[victim].kill();
    }
    let mut slowest = Duration::ZERO;
    let started = Instant::now();
    let mut number = 1000;
    // A replica takes over after about two seconds.
    while started.elapsed() < Duration::from_secs(4) {
        slowest = slowest.max(model.embed(&cache, number..number + 20).await);
        number += 20;
    }
    assert!(slowest < Duration::from_millis(1500), "{engine:?}: {slowest:?}");
    let started = Instant::now();
    let mut from = 100_000;
    loop {
        // Written by another process, which has only seen the cluster as it is now.
        let other = process(tier(&cluster).await);
        for number in from..from + 200 {
            other.put(key(number), vector(number)).await.unwrap();
        }
        flush(&other).await;
        let written = other.stats().tier.writes as usize;
        let found = found_in(&cache, from..from + 200).await;
        if written == 200 && found == 200 {
            println!("{engine:?}: hits on all shards after another {:?}", started.elapsed());
            break;
        }
        from += 200;
        let stats = cache.stats().tier;
        assert!(
            started.elapsed() < Duration::from_secs(30),
            "{engine:?}: {written} written, {found} found: {stats:?}"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    if freeze {
        // The old primary comes back and finds that it is one no more.
        cluster.servers[victim].thaw();
        for from in (200_000..204_000).step_by(20) {
            model.embed(&cache, from..from + 20).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_is_frozen_under_load_and_thawed() {
    loses_a_primary(Engine::Redis, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_is_killed_under_load() {
    loses_a_primary(Engine::Valkey, false).await;
}
