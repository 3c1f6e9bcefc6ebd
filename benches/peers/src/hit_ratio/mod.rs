//! Replays of traces: get, else put, one thread, small values.
//!
//! Each cache is as its users have it: made with a capacity and nothing else, with as many shards as it
//! sees fit. This crate's takes part with every policy. Capacities are 0.5, 1, 5, 10 and 25 % of a
//! trace's unique ids; cells under 64 entries are left out.
//!
//! Beside them run exact LRU and FIFO, policies that no peer offers (LIRS, MQ, `Clock2Q+`, W-TinyLFU with
//! an adaptive window), and Belady's optimum: of what is in the cache and what has
//! just come, that leaves which is used again last. No cache that does not know the future can do
//! better.
//!
//! A cache that holds over a tenth more than its capacity at the end of a replay (scc rounds up to a
//! power of two) is shown, but nobody is measured against it in that cell.

mod bounds;
mod policies;
mod traces;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::caches::{Cache, Limits, Ours, Visitor, visit};
use crate::keys::Key;
use crate::options::Options;
use crate::sample::{Cell, Samples};
use traces::Source;
pub(crate) use traces::write_sample;

/// In percent of the unique ids.
const CAPACITIES: [f64; 5] = [0.5, 1.0, 5.0, 10.0, 25.0];
const FEWEST: usize = 64;
/// Traces that are replayed at the same time.
const AT_ONCE: usize = 2;

pub(crate) fn measure(options: &Options) -> Samples {
    let sources: Vec<_> = traces::all(options)
        .into_iter()
        .filter(|source| options.wants(&format!("hit-ratio: {}", source.name())))
        .collect();
    let next = AtomicUsize::new(0);
    let done = Mutex::new(vec![Samples::default(); sources.len()]);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                // Relaxed: each number is taken once, that is all.
                while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                    eprintln!("hit-ratio: {}", source.name());
                    let samples = replays(source);
                    let at = sources.iter().position(|other| other.name() == source.name());
                    let at = at.expect("it is one of them");
                    done.lock().expect("no thread panics")[at] = samples;
                }
            });
        }
    });
    let done = done.into_inner().expect("no thread panics");
    Samples(done.into_iter().flat_map(|samples| samples.0).collect())
}

fn replays(source: &Source) -> Samples {
    let mut samples = Samples::default();
    let requests = match source.requests() {
        Ok(requests) => requests,
        Err(error) => {
            eprintln!("hit-ratio: {} left out: {error}", source.name());
            return samples;
        }
    };
    let unique = requests.iter().max().map_or(0, |&most| most as usize + 1);
    for percent in CAPACITIES {
        let capacity = (unique as f64 * percent / 100.0).round() as usize;
        if capacity < FEWEST {
            continue;
        }
        let cell =
            Cell { group: source.group().to_owned(), scene: source.name().to_owned(), at: percent };
        let mut replay = Replay { requests: &requests, capacity, cell, samples: &mut samples };
        visit(Ours::EveryPolicy, &mut replay);
        replay.note("exact LRU", bounds::lru(&requests, capacity), capacity);
        replay.note("exact FIFO", bounds::fifo(&requests, capacity), capacity);
        for (name, hits) in policies::ALL {
            replay.note(name, hits(&requests, capacity), capacity);
        }
        replay.note("optimum", bounds::optimum(&requests, capacity), capacity);
    }
    samples
}

struct Replay<'a> {
    requests: &'a [u32],
    capacity: usize,
    cell: Cell,
    samples: &'a mut Samples,
}

impl Replay<'_> {
    fn note(&mut self, cache: &str, hits: usize, entries: usize) {
        let ratio = 100.0 * hits as f64 / self.requests.len() as f64;
        self.samples.push(&self.cell, cache, "hits %", 0, ratio);
        let full = 100.0 * entries as f64 / self.capacity as f64;
        self.samples.push(&self.cell, cache, "entries % of capacity", 0, full);
    }
}

impl Visitor<u64, u64> for Replay<'_> {
    fn visit<C: Cache<u64, u64>>(
        &mut self,
        name: String,
        make: impl Fn(&Limits) -> C + Send + Sync + 'static,
    ) {
        if !C::EVICTS {
            return;
        }
        let cache = make(&Limits::entries(self.capacity));
        let mut hits = 0;
        for &id in self.requests {
            let key = u64::nth(u64::from(id));
            if cache.get(&key).is_some() {
                hits += 1;
            } else {
                cache.put(key, 0);
            }
        }
        cache.settle();
        self.note(&name, hits, cache.len());
    }
}
