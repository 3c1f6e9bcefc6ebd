//! Operations per second while several threads, or tasks, use a cache at once.
//!
//! | workload | operations |
//! |---|---|
//! | hits 8 hot | gets of eight keys, of 20,000 that are there |
//! | hits Zipf | gets over 20,000 keys that are all there, Zipf 0.99 |
//! | hits uniform | gets over 200,000 keys that are all there |
//! | hits Zipf + read | the same, and the dot product of each vector with another |
//! | misses | gets of 200,000 other keys, in a cache of 20,000 |
//! | 95/5, 50/50 | hits Zipf with 5 % or 50 % puts that replace the value of a key |
//! | evict | get, else put, over 200,000 keys, Zipf 0.9, with room for 20,000 |
//! | batch 64 | hits uniform in batches of 64: `get_many`, or a loop where there is no such thing |
//!
//! Values are vectors of 768 components, one for each key, shared and never copied (but by
//! `SingleLockCache`, whose API copies). Each operation has a key of its own that lies where the next
//! one's is expected, as cheap to read as one that a server has just made. Driven by *threads*, a
//! cache is used outside any runtime; by *tasks*, in a tokio runtime with two workers, each task
//! yielding after 64 operations.
//!
//! *time-to-live*: with one of an hour, so that each get compares times and nothing expires. Those of the
//! others whose own hash function is not aHash take part with it, too: `SipHash`, `xxHash`.
//!
//! `EmbeddingCache` also refuses vectors with NaN, and so reads every vector that is put: 3 KiB that
//! no other cache looks at.

mod cells;
mod crew;
mod script;

use std::sync::Arc;

use embedding_cache::{CacheKey, ContentKey};

use crate::caches::{Baseline, Ours, visit_async, visit_with_variants};
use crate::options::Options;
use crate::sample::{Cell, Samples};
use crate::turns;
use cells::{Gathered, Runner, Tasked, Threaded};
use crew::{By, Crew};
use script::{Material, Script, Workload};

pub(crate) fn measure(options: &Options) -> Samples {
    let mut samples = Samples::default();
    let crew = Crew::new(&options.threads());
    of_key::<CacheKey>(options, &crew, &mut samples);
    of_key::<ContentKey>(options, &crew, &mut samples);
    samples
}

fn of_key<K: Baseline>(options: &Options, crew: &Crew, samples: &mut Samples) {
    let material = Material::<K>::new(options);
    for by in By::BOTH {
        let group = format!("{}; {}", by.name(), K::NAME);
        for workload in Workload::ALL {
            let name = format!("throughput: {group}; {}", workload.name());
            if !options.wants(&name) {
                continue;
            }
            eprintln!("{name}");
            let script = Arc::new(Script::new(workload, &material));
            let ours = if options.every_policy { Ours::EveryPolicy } else { Ours::Default };
            let caches = match by {
                By::Threads => {
                    let mut gathered = Gathered::<K, Threaded>::new(&script);
                    visit_with_variants(ours, &mut gathered);
                    gathered.caches
                }
                By::Tasks => {
                    let mut gathered = Gathered::<K, Tasked>::new(&script);
                    visit_async(ours, &mut gathered);
                    gathered.caches
                }
            };
            in_turns(options, crew, by, &group, workload, &caches, samples);
        }
    }
}

fn in_turns(
    options: &Options,
    crew: &Crew,
    by: By,
    group: &str,
    workload: Workload,
    caches: &[(String, Arc<dyn Runner>)],
    samples: &mut Samples,
) {
    let threads = options.threads();
    let enough: Vec<Vec<u64>> = threads
        .iter()
        .map(|&count| {
            let calibrate = |(_, cache): &_| crew.calibrate(by, count, cache, options.turn());
            caches.iter().map(calibrate).collect()
        })
        .collect();
    for round in 0..options.rounds() {
        for (&count, enough) in threads.iter().zip(&enough) {
            let (group, scene) = (group.to_owned(), workload.name().to_owned());
            let cell = Cell { group, scene, at: count as f64 };
            for at in turns(caches.len(), round) {
                let (name, cache) = &caches[at];
                crew.run(by, count, cache, enough[at] / 10);
                let turn = crew.run(by, count, cache, enough[at]);
                samples.push(&cell, name, "per second", round, turn.per_second());
                let missed = 100.0 * turn.misses as f64 / turn.operations as f64;
                if workload == Workload::Evict {
                    samples.push(&cell, name, "hits %", round, 100.0 - missed);
                } else if workload.is_of_hits() && turn.misses > 0 {
                    // Told in the report: it lost entries that there was room for.
                    samples.push(&cell, name, "lost %", round, missed);
                }
            }
        }
    }
}
