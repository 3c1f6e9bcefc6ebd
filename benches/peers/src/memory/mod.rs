//! Bytes for each entry by a counting allocator, and the resident set under a limit on bytes.
//!
//! *Bytes for each entry*: all that was asked of the allocator since before the cache was made and not
//! given back, when it is full after three times as many evictions, over the entries that it holds,
//! less the key heap (the bytes of a `CacheKey`'s two texts; nothing for the 32-byte key, which lies
//! in the entry and counts) and less the vector's allocation (all share one, made before). So it is
//! the entry with key, vector pointer and order, index, ghosts, counters, locks; what a cache has
//! put off is done before counting.
//!
//! *Resident set*: one process for each cache, limited in bytes of key heap and vector (this crate's
//! weight has its own overhead in it), filled with vectors of its own and churned three times over;
//! the growth of the resident set as a part of the limit.

pub(crate) mod resident;

use embedding_cache::{CacheKey, ContentKey, EmbeddingVector};

use crate::allocator::counted;
use crate::caches::{Cache, Limits, Ours, Visitor, visit_with_door};
use crate::keys::{self, TextKey};
use crate::options::Options;
use crate::sample::{Cell, Samples};

/// Longer than any run.
const TIME_TO_LIVE: std::time::Duration = std::time::Duration::from_secs(24 * 60 * 60);

pub(crate) fn measure(options: &Options) -> Samples {
    let mut samples = Samples::default();
    of_key::<CacheKey>(options, &mut samples);
    of_key::<ContentKey>(options, &mut samples);
    if options.wants("memory: resident set") {
        eprintln!("memory: resident set");
        resident::measure(options, &mut samples);
    }
    samples
}

fn of_key<K: TextKey>(options: &Options, samples: &mut Samples) {
    for (scene, time_to_live) in [("plain", None), ("time-to-live", Some(TIME_TO_LIVE))] {
        let name = format!("memory: {}; {scene}", K::NAME);
        if !options.wants(&name) {
            continue;
        }
        eprintln!("{name}");
        let cell = Cell { group: K::NAME.to_owned(), scene: scene.to_owned(), at: 0.0 };
        let limits = Limits { time_to_live, ..Limits::entries(options.size(50_000, 1_000)) };
        visit_with_door::<K>(Ours::EveryPolicy, &mut Counting { limits, cell, samples });
    }
}

struct Counting<'a> {
    limits: Limits,
    cell: Cell,
    samples: &'a mut Samples,
}

impl<K: TextKey> Visitor<K, EmbeddingVector> for Counting<'_> {
    fn visit<C: Cache<K, EmbeddingVector>>(
        &mut self,
        name: String,
        make: impl Fn(&Limits) -> C + Send + Sync + 'static,
    ) {
        if !C::EVICTS || self.limits.time_to_live.is_some() && !C::EXPIRES {
            return;
        }
        let vector = keys::vector(0, 16);
        let (cache, bytes) = counted(|| {
            let cache = make(&self.limits);
            for number in 0..4 * self.limits.entries as u64 {
                cache.put(K::nth(number), vector.clone());
            }
            cache.settle();
            cache
        });
        let entries = cache.len() as f64;
        let overhead = bytes as f64 / entries - K::HEAP as f64;
        self.samples.push(&self.cell, &name, "bytes beyond key heap and vector", 0, overhead);
        let full = 100.0 * entries / self.limits.entries as f64;
        self.samples.push(&self.cell, &name, "entries % of limit", 0, full);
    }
}
