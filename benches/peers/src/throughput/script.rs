//! What the caches are asked for: keys, vectors, and sequences of operations made beforehand.

use std::sync::Arc;

use embedding_cache::EmbeddingVector;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, Zipf};

use crate::caches::Limits;
use crate::keys::{self, DIMENSIONS, TextKey};
use crate::options::Options;

const SEED: u64 = 0x5eed;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Workload {
    HotHits,
    ZipfHits,
    UniformHits,
    ReadHits,
    Misses,
    Puts5,
    Puts50,
    Evict,
    Batches,
}

impl Workload {
    pub(crate) const ALL: [Self; 9] = [
        Self::HotHits,
        Self::ZipfHits,
        Self::UniformHits,
        Self::ReadHits,
        Self::Misses,
        Self::Puts5,
        Self::Puts50,
        Self::Evict,
        Self::Batches,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::HotHits => "hits 8 hot",
            Self::ZipfHits => "hits Zipf",
            Self::UniformHits => "hits uniform",
            Self::ReadHits => "hits Zipf + read",
            Self::Misses => "misses",
            Self::Puts5 => "95/5",
            Self::Puts50 => "50/50",
            Self::Evict => "evict",
            Self::Batches => "batch 64",
        }
    }

    /// Whether all gets should hit.
    pub(crate) fn is_of_hits(self) -> bool {
        !matches!(self, Self::Misses | Self::Evict)
    }

    fn over_many(self) -> bool {
        matches!(self, Self::UniformHits | Self::Batches)
    }
}

/// The keys and vectors of all workloads.
pub(crate) struct Material<K> {
    keys: Vec<K>,
    vectors: Vec<EmbeddingVector>,
    /// Keys of the workloads over few.
    few: usize,
    /// Operations of a script.
    operations: usize,
}

impl<K: TextKey> Material<K> {
    pub(crate) fn new(options: &Options) -> Arc<Self> {
        let (many, few) = (options.size(200_000, 2_000), options.size(20_000, 400));
        let vector = |number| keys::vector(number, options.size(DIMENSIONS, 16));
        Arc::new(Self {
            // The second half are the keys that miss.
            keys: (0..2 * many as u64).map(K::nth).collect(),
            vectors: (0..many as u64).map(vector).collect(),
            few,
            operations: options.size(1 << 17, 1 << 12),
        })
    }

    fn many(&self) -> usize {
        self.vectors.len()
    }
}

/// A workload and the operations that make it up. They are run round and round, from a different
/// place by each thread or task.
pub(crate) struct Script<K> {
    pub(crate) workload: Workload,
    material: Arc<Material<K>>,
    /// A power of two.
    pub(crate) keys: Vec<K>,
    numbers: Vec<u32>,
    pub(crate) puts: Vec<bool>,
    /// Run before anything is measured: enough to fill the cache that evicts and to turn a good
    /// part of it over.
    pub(crate) beforehand: Vec<(K, u32)>,
}

impl<K: TextKey> Script<K> {
    pub(crate) fn new(workload: Workload, material: &Arc<Material<K>>) -> Self {
        let random = &mut SmallRng::seed_from_u64(SEED);
        let (many, few, operations) = (material.many(), material.few, material.operations);
        let zipf = |keys: usize, exponent: f64, random: &mut SmallRng| {
            let popularity = Zipf::new(keys as f64, exponent).expect("a valid distribution");
            // Popularity has nothing to do with the order in which keys were put.
            let mut by_rank: Vec<_> = (0..keys as u32).collect();
            by_rank.shuffle(random);
            move |random: &mut SmallRng| by_rank[popularity.sample(random) as usize - 1]
        };
        type Draw = Box<dyn Fn(&mut SmallRng) -> u32>;
        let draw: Draw = match workload {
            Workload::HotHits => {
                let apart = (few / 8) as u32;
                Box::new(move |random| random.random_range(0..8) * apart)
            }
            Workload::ZipfHits | Workload::ReadHits | Workload::Puts5 | Workload::Puts50 => {
                Box::new(zipf(few, 0.99, random))
            }
            Workload::UniformHits | Workload::Batches => {
                Box::new(move |random| random.random_range(0..many as u32))
            }
            Workload::Misses => {
                Box::new(move |random| random.random_range(many as u32..2 * many as u32))
            }
            Workload::Evict => Box::new(zipf(many, 0.9, random)),
        };
        let share = match workload {
            Workload::Puts5 => 0.05,
            Workload::Puts50 => 0.5,
            _ => 0.0,
        };
        let numbers: Vec<_> = (0..operations).map(|_| draw(random)).collect();
        let puts = (0..operations).map(|_| random.random_bool(share)).collect();
        let run_in = if workload == Workload::Evict { 4 * few } else { 0 };
        let mut more = |_| draw(random);
        let beforehand: Vec<_> = (0..run_in).map(&mut more).collect();
        let key = |number: &u32| material.keys[*number as usize].clone();
        Self {
            workload,
            keys: numbers.iter().map(key).collect(),
            beforehand: beforehand.into_iter().map(|number| (key(&number), number)).collect(),
            numbers,
            puts,
            material: Arc::clone(material),
        }
    }

    /// Room for all keys with some to spare, as a cache divided into shards does not fill evenly; or
    /// too little.
    pub(crate) fn limits(&self) -> Limits {
        let Material { few, .. } = *self.material;
        Limits::entries(match self.workload {
            Workload::Evict => few,
            workload if workload.over_many() => 2 * self.material.many(),
            _ => 2 * few,
        })
    }

    /// What is put before anything else.
    pub(crate) fn fill(&self) -> impl Iterator<Item = (K, EmbeddingVector)> {
        let many = match self.workload {
            Workload::Evict => 0,
            workload if workload.over_many() => self.material.many(),
            _ => self.material.few,
        };
        let keys = self.material.keys[..many].iter().cloned();
        keys.zip(self.material.vectors.iter().cloned())
    }

    pub(crate) fn vector(&self, operation: usize) -> &EmbeddingVector {
        self.vector_of(self.numbers[operation])
    }

    pub(crate) fn vector_of(&self, number: u32) -> &EmbeddingVector {
        &self.material.vectors[number as usize]
    }
}
