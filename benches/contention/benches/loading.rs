//! What a load costs when everything is there: 64 hits by `get_or_embed_many` against `get_many` of
//! the same keys, in turns, so that whatever else the machine does falls on both.
//!
//! `cargo bench -p contention --bench loading`; with `-- --test` one small round, to see that it runs.

use std::future::Future;
use std::hint::black_box;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use embedding_cache::{CacheKey, ContentKey, EmbeddingCache, EmbeddingCacheBuilder, EmbeddingKey};

/// Entries of a cache, so many batches of them, each of so many keys.
const ENTRIES: usize = 20_000;
const BATCH: usize = 64;
const DIMENSIONS: usize = 384;

/// How often both are measured, and how many batches at a time.
struct Size {
    rounds: usize,
    batches: usize,
}

fn main() {
    let test = std::env::args().any(|argument| argument == "--test");
    let size =
        if test { Size { rounds: 1, batches: 10 } } else { Size { rounds: 31, batches: 2000 } };
    let words = CacheKey::builder("e5-base").revision("1");
    let keys: Vec<CacheKey> = (0..ENTRIES).map(|i| words.text(&i.to_string())).collect();
    compare("CacheKey", EmbeddingCache::builder(), &keys, &size);
    let digests = ContentKey::builder("e5-base").revision("1");
    let keys: Vec<ContentKey> = (0..ENTRIES).map(|i| digests.text(&i.to_string())).collect();
    compare("ContentKey", EmbeddingCache::builder_for::<ContentKey>(), &keys, &size);
}

fn compare<K: EmbeddingKey>(
    name: &str,
    builder: EmbeddingCacheBuilder<K>,
    keys: &[K],
    size: &Size,
) {
    let cache = builder.max_entries(2 * ENTRIES).build().expect("a cache");
    for (i, key) in keys.iter().enumerate() {
        cache.put_blocking(key.clone(), vec![i as f32; DIMENSIONS]).expect("room");
    }
    let groups: Vec<&[K]> = keys.chunks_exact(BATCH).collect();
    let get_many = |keys: &[K]| {
        for found in ready(cache.get_many(keys)) {
            black_box(found.expect("a hit"));
        }
    };
    let load = |keys: &[K]| {
        let none = async |_| -> Vec<Vec<f32>> { unreachable!("all are hits") };
        for answer in ready(cache.get_or_embed_many(keys, none)) {
            black_box(answer.expect("a hit"));
        }
    };
    let time = |batch: &dyn Fn(&[K])| {
        let start = Instant::now();
        for i in 0..size.batches {
            batch(groups[i % groups.len()]);
        }
        start.elapsed()
    };
    let mut rounds: Vec<(Duration, Duration)> = Vec::with_capacity(size.rounds);
    for round in 0..=size.rounds {
        // Who comes first changes from round to round.
        let (gets, loads) = if round % 2 == 0 {
            (time(&get_many), time(&load))
        } else {
            let loads = time(&load);
            (time(&get_many), loads)
        };
        // The first is for the caches of the processor.
        if round > 0 {
            rounds.push((gets, loads));
        }
    }
    let mut ratios: Vec<f64> =
        rounds.iter().map(|(gets, loads)| loads.as_secs_f64() / gets.as_secs_f64()).collect();
    ratios.sort_unstable_by(f64::total_cmp);
    let nanoseconds = |of: fn(&(Duration, Duration)) -> Duration| {
        let mut times: Vec<Duration> = rounds.iter().map(of).collect();
        times.sort_unstable();
        times[times.len() / 2].as_nanos() as usize / size.batches / BATCH
    };
    println!(
        "{name}: get_or_embed_many / get_many of {BATCH} hits: {:.3} (min {:.3}, max {:.3}); \
         {} ns against {} ns a key",
        ratios[ratios.len() / 2],
        ratios[0],
        ratios[ratios.len() - 1],
        nanoseconds(|round| round.1),
        nanoseconds(|round| round.0),
    );
}

/// The answer of a future that has it at once.
fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer,
        Poll::Pending => unreachable!("nobody else is here"),
    }
}
