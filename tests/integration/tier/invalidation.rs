//! Invalidation between processes.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use embedding_cache::tier::SecondTier;
use embedding_cache::{CacheKey, EmbeddingCache};

use super::fake::{Fake, Mode};
use super::{Model, flush, key, process, process_with, vector};

const POLL: Duration = Duration::from_millis(50);

fn polling(fake: &Fake) -> EmbeddingCache {
    process_with(SecondTier::new(fake.clone()).poll_interval(POLL))
}

fn of_tenant(tenant: &str) -> CacheKey {
    CacheKey::for_model("e5-base").tenant(tenant).text("a text")
}

/// How long until `cache` has let go of `key`.
async fn gone(cache: &EmbeddingCache, key: &CacheKey) -> Duration {
    let started = Instant::now();
    while cache.get(key).await.is_some() {
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(started.elapsed() < Duration::from_secs(10), "it never leaves");
    }
    started.elapsed()
}

#[tokio::test]
async fn other_processes_first_tiers_hear_of_it_by_polling() {
    let fake = Fake::default();
    let (first, second) = (polling(&fake), polling(&fake));
    let other = CacheKey::for_model("other").text("a text");
    for key in [key(1), of_tenant("acme"), of_tenant("b"), other.clone()] {
        first.put(key.clone(), vector(1)).await.unwrap();
        flush(&first).await;
        assert!(second.get_through(&key).await.is_some());
    }
    first.invalidate_tenant_through("acme").await.unwrap();
    gone(&second, &of_tenant("acme")).await;
    assert!(second.get(&of_tenant("b")).await.is_some() && second.get(&key(1)).await.is_some());
    assert!(second.get_through(&of_tenant("acme")).await.is_none());

    // A revision takes the others of its model along in the second tier.
    first.invalidate_model_through("e5-base").await.unwrap();
    gone(&second, &key(1)).await;
    assert!(second.get(&of_tenant("b")).await.is_none() && second.get(&other).await.is_some());

    first.invalidate_all_through().await.unwrap();
    gone(&second, &other).await;
    for key in [key(1), of_tenant("acme"), of_tenant("b"), other] {
        assert!(first.get_through(&key).await.is_none());
        assert!(second.get_through(&key).await.is_none());
    }
}

#[tokio::test]
async fn a_tier_that_tells_need_not_be_polled() {
    let fake = Fake::default();
    fake.0.tells.store(true, Relaxed);
    // Polled every two seconds.
    let (first, second) = (process(&fake), process(&fake));
    first.put(key(1), vector(1)).await.unwrap();
    flush(&first).await;
    assert!(second.get_through(&key(1)).await.is_some());
    tokio::time::sleep(Duration::from_millis(20)).await;
    first.invalidate_all_through().await.unwrap();
    assert!(gone(&second, &key(1)).await < Duration::from_millis(1500));
}

#[tokio::test]
async fn a_lost_base_clears_the_first_tiers_too() {
    let fake = Fake::default();
    let (first, second) = (polling(&fake), polling(&fake));
    first.put(key(1), vector(1)).await.unwrap();
    flush(&first).await;
    assert!(second.get_through(&key(1)).await.is_some());
    fake.lose_nonces();
    gone(&second, &key(1)).await;
    assert!(second.get_through(&key(1)).await.is_none());
    // And it is of use again.
    second.put(key(2), vector(2)).await.unwrap();
    flush(&second).await;
    assert!(process(&fake).get_through(&key(2)).await.is_some());
}

#[tokio::test]
async fn it_is_not_fail_open() {
    let fake = Fake::default();
    let cache = process(&fake);
    cache.put(key(1), vector(1)).await.unwrap();
    flush(&cache).await;
    for mode in [Mode::Down, Mode::Frozen, Mode::Panics] {
        fake.set(mode);
        let failed = cache.invalidate_model_through("e5-base").await.unwrap_err();
        assert!(failed.is_tier_failed(), "{failed}");
        assert!(cache.get(&key(1)).await.is_none(), "the first tier was cleared");
        assert!(std::error::Error::source(&failed).is_some());
        fake.set(Mode::Well);
        cache.put(key(1), vector(1)).await.unwrap();
    }
}

/// On `Ok` this process never serves older: neither what was read while the invalidation was under way
/// nor what was joined to such a read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_read_before_is_served_after() {
    let fake = Fake::default();
    let writer = process(&fake);
    let second = SecondTier::new(fake.clone()).soft_deadline(Duration::from_secs(2));
    let reader = process_with(second);
    for round in 0..30 {
        writer.put(key(1), vector(round)).await.unwrap();
        flush(&writer).await;
        fake.set(Mode::Slow(Duration::from_millis(2)));
        let readers: Vec<_> = (0..4)
            .map(|_| {
                let reader = reader.clone();
                tokio::spawn(async move {
                    for _ in 0..4 {
                        reader.get_through(&key(1)).await;
                    }
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_micros(300 * round as u64)).await;
        reader.invalidate_model_through("e5-base").await.unwrap();
        assert!(reader.get_through(&key(1)).await.is_none(), "round {round}");
        for reader in readers {
            reader.await.unwrap();
        }
        assert!(reader.get_through(&key(1)).await.is_none(), "round {round}, later");
        fake.set(Mode::Well);
        // So that it writes where the reader looks.
        writer.invalidate_all_through().await.unwrap();
        reader.invalidate_all_through().await.unwrap();
        writer.invalidate_all_through().await.unwrap();
    }
}

/// A load that began before is delivered, and reaches neither tier.
#[tokio::test]
async fn what_was_being_loaded_does_not_reach_the_tier() {
    let fake = Fake::default();
    let cache = process(&fake);
    cache.get_through(&key(0)).await;
    let (begun, begins) = tokio::sync::oneshot::channel();
    let (release, released) = tokio::sync::oneshot::channel::<()>();
    let load = tokio::spawn({
        let cache = cache.clone();
        async move {
            cache
                .get_or_embed(key(1), || async move {
                    begun.send(()).unwrap();
                    released.await.unwrap();
                    vector(1)
                })
                .await
        }
    });
    begins.await.unwrap();
    cache.invalidate_model_through("e5-base").await.unwrap();
    release.send(()).unwrap();
    assert_eq!(load.await.unwrap().unwrap(), vector(1));
    flush(&cache).await;
    assert_eq!(fake.len(), 0);
    assert!(cache.get_through(&key(1)).await.is_none());
}

/// Of many processes that invalidate and embed at once, none sees another's vector of before for
/// longer than a poll.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_agree_in_the_end() {
    let fake = Fake::default();
    let processes = [polling(&fake), polling(&fake), polling(&fake)];
    let model = Model::default();
    for round in 0..5 {
        for cache in &processes {
            model.embed(cache, 0..50).await;
        }
        processes[round % 3].invalidate_model_through("e5-base").await.unwrap();
    }
    tokio::time::sleep(2 * POLL + Duration::from_millis(300)).await;
    for cache in &processes {
        for number in 0..50 {
            assert!(cache.get(&key(number)).await.is_none());
            assert!(cache.get_through(&key(number)).await.is_none());
        }
    }
}
