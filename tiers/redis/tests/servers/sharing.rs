//! What processes share.

use std::time::{Duration, Instant};

use embedding_cache_redis::RedisTier;

use crate::support::{
    ENGINES, Engine, Model, Server, flush, key, keys, patient, process_with, vector, waiting,
};

async fn tier(server: &Server) -> RedisTier {
    let timeout = Duration::from_secs(5);
    RedisTier::builder(server.address()).timeout(timeout).connect().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_embeds_nothing_that_the_first_has() {
    for engine in ENGINES {
        let server = Server::start(engine);
        let model = Model::default();
        let first = patient(tier(&server).await);
        for from in (0..1000).step_by(50) {
            model.embed(&first, from..from + 50).await;
        }
        flush(&first).await;
        let second = patient(tier(&server).await);
        for from in (0..1000).step_by(50) {
            model.embed(&second, from..from + 50).await;
        }
        assert_eq!(model.asked(), 1000, "{engine:?}: {:?}", second.stats().tier);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_begin_together_embed_each_text_at_most_twice() {
    let server = Server::start(Engine::Valkey);
    let processes = [patient(tier(&server).await), patient(tier(&server).await)];
    let models = [Model::default(), Model::default()];
    let mut tasks = Vec::new();
    for (cache, model) in processes.iter().zip(&models) {
        for task in 0..100 {
            let (cache, model) = (cache.clone(), model.clone());
            tasks.push(tokio::spawn(async move {
                for step in 0..20 {
                    let from = (task * 13 + step) % 20 * 50;
                    model.embed(&cache, from..from + 50).await;
                }
            }));
        }
    }
    for task in tasks {
        task.await.unwrap();
    }
    // Each process embeds a text once at most, so each text is embedded twice at most.
    let asked: usize = models.iter().map(Model::asked).sum();
    assert!(models.iter().all(|model| model.asked() <= 1000) && asked >= 1000, "{asked}");
    // One that begins after them embeds none.
    for cache in &processes {
        flush(cache).await;
    }
    let (late, model) = (patient(tier(&server).await), Model::default());
    for from in (0..1000).step_by(50) {
        model.embed(&late, from..from + 50).await;
    }
    assert_eq!(model.asked(), 0, "{:?}", late.stats().tier);
}

#[tokio::test]
async fn lives_prefixes_and_databases_are_kept() {
    let server = Server::start(Engine::Redis);
    let cache = patient(tier(&server).await);
    cache.put_with_ttl(key(1), vector(1), Duration::from_secs(100)).await.unwrap();
    flush(&cache).await;
    let found =
        server.command(&["EVAL", "return redis.call('PTTL', redis.call('RANDOMKEY'))", "0"]);
    // Of two keys one is the hash of nonces, which lives for ever.
    let lives: Vec<i64> = (0..50)
        .filter_map(|_| {
            let answer = server.command(&[
                "EVAL",
                "return redis.call('PTTL', redis.call('RANDOMKEY'))",
                "0",
            ])?;
            answer.trim().strip_prefix(':')?.parse().ok()
        })
        .collect();
    assert!(lives.contains(&-1) && lives.iter().any(|&life| life > 90_000 && life <= 100_000));
    assert!(found.is_some());

    let other = RedisTier::builder(server.address()).prefix("other").connect().await.unwrap();
    assert!(patient(other).get_through(&key(1)).await.is_none());
    let database = RedisTier::builder(format!("{}/3", server.address())).connect().await.unwrap();
    assert!(patient(database).get_through(&key(1)).await.is_none());
    assert_eq!(patient(tier(&server).await).get_through(&key(1)).await.unwrap(), vector(1));
}

#[tokio::test]
async fn values_of_others_are_misses() {
    let server = Server::start(Engine::Redis);
    let signed = |secret: &[u8]| {
        let secret = secret.to_vec();
        let server = &server;
        async move { process_with(waiting(tier(server).await).authenticate(&secret)) }
    };
    let first = signed(b"one").await;
    first.put(key(1), vector(1)).await.unwrap();
    flush(&first).await;
    assert!(signed(b"one").await.get_through(&key(1)).await.is_some());
    let stranger = signed(b"two").await;
    assert!(stranger.get_through(&key(1)).await.is_none());
    assert_eq!(stranger.stats().tier.rejected_signature, 1);
    // Bytes of another program under every key.
    server.command(&[
        "EVAL",
        "for _, k in ipairs(redis.call('KEYS', '*')) do if not string.find(k, 'gen') then redis.call('SET', k, 'x') end end",
        "0",
    ]);
    let third = signed(b"one").await;
    assert!(third.get_through(&key(1)).await.is_none());
    assert_eq!(third.stats().tier.rejected_length, 1);
}

/// How long until `cache` has let go of a key.
async fn gone(cache: &embedding_cache::EmbeddingCache, number: usize) -> Duration {
    let started = Instant::now();
    while cache.get(&key(number)).await.is_some() {
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert!(started.elapsed() < Duration::from_secs(10), "it never leaves");
    }
    started.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalidation_reaches_other_processes_by_message_and_by_polling() {
    for engine in ENGINES {
        let server = Server::start(engine);
        let first = patient(tier(&server).await);
        first.put(key(1), vector(1)).await.unwrap();
        flush(&first).await;
        // By message: it would poll only after a minute.
        let told = waiting(tier(&server).await).poll_interval(Duration::from_secs(60));
        let second = process_with(told);
        assert!(second.get_through(&key(1)).await.is_some());
        while !server.command(&["PUBSUB", "CHANNELS"]).unwrap().contains("emb:ec1:inv") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        first.invalidate_model_through("e5-base").await.unwrap();
        assert!(gone(&second, 1).await < Duration::from_secs(2), "{engine:?}");
        assert!(second.get_through(&key(1)).await.is_none());
        assert!(first.get_through(&key(1)).await.is_none());

        // By polling: the message is not for it, as the nonce was exchanged by hand.
        first.put(key(2), vector(2)).await.unwrap();
        flush(&first).await;
        let third = patient(tier(&server).await);
        assert!(third.get_through(&key(2)).await.is_some());
        server.command(&["HSET", "emb:ec1:gen", "all", "0123456789abcdef"]);
        assert!(gone(&third, 2).await < Duration::from_secs(4), "{engine:?}");
    }
}

#[tokio::test]
async fn a_lost_hash_gives_misses_and_never_old_vectors() {
    let server = Server::start(Engine::Redis);
    let first = patient(tier(&server).await);
    for number in 0..20 {
        first.put(key(number), vector(number)).await.unwrap();
    }
    flush(&first).await;
    first.invalidate_model_through("e5-base").await.unwrap();
    for _ in 0..5 {
        assert_eq!(server.command(&["DEL", "emb:ec1:gen"]).unwrap(), ":1\r\n");
        let late = patient(tier(&server).await);
        assert!(late.get_through_many(keys(0..20)).await.iter().all(Option::is_none));
    }
}

#[cfg(feature = "f16")]
#[tokio::test]
async fn half_precision_is_the_same_everywhere() {
    let server = Server::start(Engine::Valkey);
    let half = || async { process_with(waiting(tier(&server).await).half_precision()) };
    let first = half().await;
    let answer = first.get_or_embed(key(1), || async { vec![0.1_f32, 0.2] }).await.unwrap();
    flush(&first).await;
    assert_eq!(half().await.get_through(&key(1)).await.unwrap(), answer);
}
