//! What a get and a put cost as the number of entries grows, and by the number of shards.
//!
//! Keys and values are 8 bytes each, so that it is the caches that do not fit into the processor's
//! caches. *fill*: puts of new keys until the cache is full; *get*: hits, evenly over all keys; *put*:
//! new keys into the full cache, each of which evicts another. One thread; a cache is made anew in
//! each round. By shards: gets that hit and puts that replace, in a cache of many entries.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

use crate::caches::{Cache, Limits, Ours, Visitor, visit, visit_shards};
use crate::keys::{Key, mix};
use crate::options::Options;
use crate::sample::{Cell, Samples};
use crate::turns;

const SHARDS: [usize; 5] = [1, 4, 16, 64, 256];

pub(crate) fn measure(options: &Options) -> Samples {
    let mut samples = Samples::default();
    let sizes: Vec<usize> = (3..=9).map(|exponent| 10_usize.pow(exponent)).collect();
    for entries in sizes.into_iter().take_while(|&entries| entries <= options.largest()) {
        let name = format!("growth: {entries} entries");
        if !options.wants(&name) {
            continue;
        }
        eprintln!("{name}");
        let mut makers = Makers(Vec::new());
        let ours = if options.every_policy { Ours::EveryPolicy } else { Ours::Default };
        visit(ours, &mut makers);
        let least = options.size(200_000, 2_000);
        let operations = entries.clamp(least, 1_000_000);
        let rounds = if entries < 1_000_000 { options.rounds() } else { options.few_rounds() };
        for round in 0..rounds {
            for at in turns(makers.0.len(), round) {
                let (cache, measure) = &makers.0[at];
                for (metric, nanoseconds) in measure(entries, operations) {
                    let (group, scene) = ("entries".to_owned(), "one thread".to_owned());
                    let cell = Cell { group, scene, at: entries as f64 };
                    samples.push(&cell, cache, metric, round, nanoseconds);
                }
            }
        }
    }
    if options.wants("growth: shards") {
        eprintln!("growth: shards");
        by_shards(options, &mut samples);
    }
    samples
}

type Costs = Vec<(&'static str, f64)>;
type Measure = Box<dyn Fn(usize, usize) -> Costs>;

/// A way to measure each cache, newly made.
struct Makers(Vec<(String, Measure)>);

impl Visitor<u64, u64> for Makers {
    fn visit<C: Cache<u64, u64>>(
        &mut self,
        name: String,
        make: impl Fn(&Limits) -> C + Send + Sync + 'static,
    ) {
        let measure =
            move |entries, operations| costs(&make(&Limits::entries(entries)), entries, operations);
        self.0.push((name, Box::new(measure)));
    }
}

fn costs<C: Cache<u64, u64>>(cache: &C, entries: usize, operations: usize) -> Costs {
    let many = entries as u64;
    let put = |number| cache.put(u64::nth(number), number);
    let mut costs = Vec::new();
    let mut note = |metric, began: Instant, operations: usize| {
        costs.push((metric, began.elapsed().as_nanos() as f64 / operations as f64));
    };
    let began = Instant::now();
    (0..many).for_each(put);
    note("fill", began, entries);
    cache.settle();

    let began = Instant::now();
    for operation in 0..operations as u64 {
        black_box(cache.get(&u64::nth(mix(operation) % many)));
    }
    note("get", began, operations);

    if C::EVICTS {
        let began = Instant::now();
        (many..many + operations as u64).for_each(put);
        note("put", began, operations);
    }
    costs
}

/// Nanoseconds of wall time for each operation of all threads together.
trait Loaded {
    fn run(&self, metric: &str, threads: usize, operations: usize) -> f64;
}

struct Shards {
    entries: usize,
    caches: Vec<(String, Box<dyn Loaded>)>,
}

struct Filled<C> {
    cache: C,
    entries: usize,
}

impl Visitor<u64, u64> for Shards {
    fn visit<C: Cache<u64, u64>>(
        &mut self,
        name: String,
        make: impl Fn(&Limits) -> C + Send + Sync + 'static,
    ) {
        let entries = self.entries;
        let cache = make(&Limits::entries(entries));
        (0..entries as u64).for_each(|number| cache.put(u64::nth(number), number));
        self.caches.push((name, Box::new(Filled { cache, entries })));
    }
}

impl<C: Cache<u64, u64>> Loaded for Filled<C> {
    fn run(&self, metric: &str, threads: usize, operations: usize) -> f64 {
        let all_here = Barrier::new(threads);
        let work = |thread: usize| {
            let first = (thread * operations) as u64;
            all_here.wait();
            let began = Instant::now();
            for operation in first..first + operations as u64 {
                let number = mix(operation) % self.entries as u64;
                match metric {
                    "get" => drop(black_box(self.cache.get(&u64::nth(number)))),
                    _ => self.cache.put(u64::nth(number), operation),
                }
            }
            (began, Instant::now())
        };
        let times: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..threads).map(|thread| scope.spawn(move || work(thread))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        let began = times.iter().map(|&(began, _)| began).min().expect("at least one");
        let ended = times.iter().map(|&(_, ended)| ended).max().expect("at least one");
        (ended - began).as_nanos() as f64 / (threads * operations) as f64
    }
}

/// Here the numbers of shards take the place along the axis that entries have above.
fn by_shards(options: &Options, samples: &mut Samples) {
    let entries = options.size(1_000_000, 10_000).min(options.largest());
    let mut shards = Shards { entries, caches: Vec::new() };
    visit_shards(&SHARDS, &mut shards);
    let operations = options.size(200_000, 1_000);
    for round in 0..options.rounds() {
        for threads in options.threads() {
            for metric in ["get", "put"] {
                for at in turns(shards.caches.len(), round) {
                    let (name, cache) = &shards.caches[at];
                    let nanoseconds = cache.run(metric, threads, operations);
                    let (group, scene) = ("shards".to_owned(), format!("{threads} threads"));
                    let at = name.parse().expect("a number of shards");
                    let cell = Cell { group, scene, at };
                    samples.push(&cell, "ShardedCache", metric, round, nanoseconds);
                }
            }
        }
    }
}
