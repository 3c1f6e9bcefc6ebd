//! How long a single get takes while a writer evicts and a cleanup runs.
//!
//! One thread has a get to make every 50 µs, of 10,000 keys, Zipf 0.99; a get is timed from when it
//! was *to begin*, so that one that waits makes those behind it late as well (no coordinated
//! omission). What it misses it puts, untimed but on the same schedule. A second thread puts new keys
//! as fast as it can into a cache of 20,000 entries, each of which evicts another; every 100 ms it
//! calls the cleanup, where there is such a thing.
//!
//! In *evict* nothing expires. In *evict and expire* entries live for 20 ms in the caches that can
//! do that, so that the cleanup has work; the others do as before. *no cache* is the same without a
//! cache: what the machine adds to every figure.

use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use embedding_cache::{CacheKey, ContentKey, EmbeddingVector};
use hdrhistogram::Histogram;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand_distr::{Distribution, Zipf};

use crate::caches::{Cache, Limits, NOTHING, Ours, Visitor, visit_with_door};
use crate::keys::{self, DIMENSIONS, TextKey};
use crate::options::Options;
use crate::sample::{Cell, Samples};
use crate::turns;

const INTERVAL: Duration = Duration::from_micros(50);
const CLEANUP: Duration = Duration::from_millis(100);
const TIME_TO_LIVE: Duration = Duration::from_millis(20);
const SCENES: [(&str, Option<Duration>); 2] =
    [("evict", None), ("evict and expire", Some(TIME_TO_LIVE))];

pub(crate) fn measure(options: &Options) -> Samples {
    let mut samples = Samples::default();
    of_key::<CacheKey>(options, &mut samples);
    of_key::<ContentKey>(options, &mut samples);
    samples
}

fn of_key<K: TextKey>(options: &Options, samples: &mut Samples) {
    let work = Work::<K>::new(options);
    for (scene, time_to_live) in SCENES {
        let name = format!("latency: {}; {scene}", K::NAME);
        if !options.wants(&name) {
            continue;
        }
        eprintln!("{name}");
        let cell = Cell { group: K::NAME.to_owned(), scene: scene.to_owned(), at: 0.0 };
        let limits = Limits { time_to_live, ..Limits::entries(work.capacity) };
        let mut contenders = Contenders { limits, caches: Vec::new() };
        contenders.visit(NOTHING.to_owned(), |_| Nothing);
        let ours = if options.every_policy { Ours::EveryPolicy } else { Ours::Default };
        visit_with_door(ours, &mut contenders);
        for round in 0..options.rounds() {
            for at in turns(contenders.caches.len(), round) {
                let (cache, contender) = &contenders.caches[at];
                let Turn { histogram, written, hits } =
                    contender.run(&work, options.latency_turn());
                let mut push =
                    |metric: &str, value| samples.push(&cell, cache, metric, round, value);
                for (metric, quantile) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
                    push(metric, histogram.value_at_quantile(quantile) as f64);
                }
                push("max", histogram.max() as f64);
                push("puts per second", written);
                push("hits %", hits);
            }
        }
    }
}

/// What all caches are asked for.
struct Work<K> {
    capacity: usize,
    read: Vec<K>,
    written: Vec<K>,
    vectors: Vec<EmbeddingVector>,
}

impl<K: TextKey> Work<K> {
    fn new(options: &Options) -> Self {
        let capacity = options.size(20_000, 500);
        let popularity = Zipf::new(capacity as f64 / 2.0, 0.99).expect("a valid distribution");
        let mut random = SmallRng::seed_from_u64(0x1a7e);
        let popular = |_| K::nth(popularity.sample(&mut random) as u64);
        let vector = |number| keys::vector(number, options.size(DIMENSIONS, 16));
        Self {
            capacity,
            read: (0..options.size(1 << 16, 1 << 10)).map(popular).collect(),
            // When they come round again, they have long been evicted.
            written: (0..8 * capacity as u64).map(|number| K::nth((1 << 32) + number)).collect(),
            vectors: (0..capacity as u64).map(vector).collect(),
        }
    }
}

struct Turn {
    histogram: Histogram<u64>,
    /// A second.
    written: f64,
    /// Percent of the gets.
    hits: f64,
}

trait Contender<K> {
    fn run(&self, work: &Work<K>, time: Duration) -> Turn;
}

struct Contenders<K> {
    limits: Limits,
    caches: Vec<(String, Box<dyn Contender<K>>)>,
}

impl<K: TextKey> Visitor<K, EmbeddingVector> for Contenders<K> {
    fn visit<C: Cache<K, EmbeddingVector>>(
        &mut self,
        name: String,
        make: impl Fn(&Limits) -> C + Send + Sync + 'static,
    ) {
        if C::EVICTS {
            self.caches.push((name, Box::new(Of(make(&self.limits)))));
        }
    }
}

struct Of<C>(C);

impl<K: TextKey, C: Cache<K, EmbeddingVector>> Contender<K> for Of<C> {
    fn run(&self, work: &Work<K>, time: Duration) -> Turn {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| write(&self.0, work, &stop));
            // Until the cache is full.
            std::thread::sleep((time / 10).min(CLEANUP));
            let (histogram, hits) = read(&self.0, work, time);
            // Relaxed: nothing is handed over with it.
            stop.store(true, Ordering::Relaxed);
            Turn { histogram, hits, written: writer.join().expect("no panic") }
        })
    }
}

fn read<K, C>(cache: &C, work: &Work<K>, time: Duration) -> (Histogram<u64>, f64)
where
    K: TextKey,
    C: Cache<K, EmbeddingVector>,
{
    // Ten minutes at most, to three digits.
    let mut histogram = Histogram::new_with_bounds(1, 600_000_000_000, 3).expect("valid bounds");
    let gets = (time.as_nanos() / INTERVAL.as_nanos()).max(1) as u32;
    let mut hits = 0;
    let began = Instant::now();
    for number in 0..gets {
        let at = number as usize % work.read.len();
        let due = began + INTERVAL * number;
        while Instant::now() < due {
            spin_loop();
        }
        let found = black_box(cache.get(&work.read[at]));
        let late = due.elapsed();
        histogram.saturating_record(late.as_nanos() as u64);
        if found.is_some() {
            hits += 1;
        } else {
            let vector = &work.vectors[at % work.vectors.len()];
            cache.put(work.read[at].clone(), vector.clone());
        }
    }
    (histogram, 100.0 * f64::from(hits) / f64::from(gets))
}

/// Returns how many it put a second.
fn write<K, C>(cache: &C, work: &Work<K>, stop: &AtomicBool) -> f64
where
    K: TextKey,
    C: Cache<K, EmbeddingVector>,
{
    let began = Instant::now();
    let (mut cleaned, mut written) = (began, 0_usize);
    while !stop.load(Ordering::Relaxed) {
        // The clock is read once in a while only.
        for _ in 0..64 {
            let at = written % work.written.len();
            let vector = &work.vectors[at % work.vectors.len()];
            cache.put(work.written[at].clone(), vector.clone());
            written += 1;
        }
        if cleaned.elapsed() >= CLEANUP {
            cache.clean_up();
            cleaned = Instant::now();
        }
    }
    written as f64 / began.elapsed().as_secs_f64()
}

/// Finds nothing and keeps nothing.
struct Nothing;

impl<K: TextKey> Cache<K, EmbeddingVector> for Nothing {
    type Found = EmbeddingVector;

    fn get(&self, _: &K) -> Option<EmbeddingVector> {
        None
    }

    fn components(found: &EmbeddingVector) -> &[f32] {
        found
    }

    fn put(&self, _: K, _: EmbeddingVector) {}

    fn len(&self) -> usize {
        0
    }
}
