//! What the caches are asked for: keys, vectors, and sequences of operations made beforehand.

use std::iter;
use std::sync::Arc;

use embedding_cache::{CacheKey, EmbeddingVector};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, Zipf};

const DIMENSIONS: usize = 768;
const MODEL: &str = "intfloat/multilingual-e5-base";
/// Keys of all workloads but put-at-capacity.
const KEYS: usize = 20_000;
/// Keys of put-at-capacity.
const MANY_KEYS: usize = 100_000;
/// What the cache of put-at-capacity holds.
const CAPACITY: usize = 10_000;
const SEED: u64 = 0x5eed;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Workload {
    /// Gets only, all of them hits.
    HitOnly,
    /// A put in twenty operations.
    Puts5,
    /// As many puts as gets.
    Puts50,
    /// Get, else put, in a cache that is full.
    AtCapacity,
    OneHotKey,
    EightHotKeys,
}

impl Workload {
    pub(crate) const ALL: [Self; 6] = [
        Self::HitOnly,
        Self::Puts5,
        Self::Puts50,
        Self::AtCapacity,
        Self::OneHotKey,
        Self::EightHotKeys,
    ];

    /// Those that are also run by the number of shards.
    pub(crate) const BY_SHARDS: [Self; 2] = [Self::HitOnly, Self::Puts50];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::HitOnly => "hit-only",
            Self::Puts5 => "95-5",
            Self::Puts50 => "50-50",
            Self::AtCapacity => "put-at-capacity",
            Self::OneHotKey => "one-hot-key",
            Self::EightHotKeys => "8-hot-keys",
        }
    }

    /// The most entries that its cache may hold.
    pub(crate) fn max_entries(self) -> usize {
        if self == Self::AtCapacity { CAPACITY } else { 2 * KEYS }
    }

    /// How many keys are put, each once, before the operations begin; none where the operations
    /// fill the cache themselves.
    pub(crate) fn put_beforehand(self) -> usize {
        if self == Self::AtCapacity { 0 } else { KEYS }
    }

    /// How many operations are run before the first that counts: enough for put-at-capacity to fill
    /// its cache and to turn a good part of it over. A debug build, which only shows that all this
    /// runs, is too slow for that.
    fn run_beforehand(self) -> usize {
        let run_in = if cfg!(debug_assertions) { CAPACITY / 2 } else { 4 * CAPACITY };
        if self == Self::AtCapacity { run_in } else { 0 }
    }
}

/// The keys and vectors of all workloads.
pub(crate) struct Material {
    keys: Vec<CacheKey>,
    /// One for each of the first [`KEYS`] keys; the other keys have those again.
    vectors: Vec<EmbeddingVector>,
}

impl Material {
    pub(crate) fn new() -> Arc<Self> {
        let mut random = SmallRng::seed_from_u64(SEED);
        let mut digits = || {
            let words: [u64; 4] = random.random();
            words.iter().map(|word| format!("{word:016x}")).collect::<String>()
        };
        let keys = (0..MANY_KEYS).map(|_| CacheKey::new(digits(), MODEL)).collect();
        let mut vector = || (0..DIMENSIONS).map(|_| random.random_range(-1.0..1.0)).collect();
        let vectors = (0..KEYS).map(|_| vector()).collect();
        Arc::new(Self { keys, vectors })
    }

    pub(crate) fn key(&self, key: Key) -> &CacheKey {
        &self.keys[key.0 as usize]
    }

    pub(crate) fn vector(&self, key: Key) -> &EmbeddingVector {
        &self.vectors[key.0 as usize % self.vectors.len()]
    }
}

/// A number for a key of the [`Material`].
#[derive(Clone, Copy)]
pub(crate) struct Key(u32);

impl Key {
    pub(crate) fn first(many: usize) -> impl Iterator<Item = Self> {
        (0..many as u32).map(Self)
    }
}

#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Get,
    Put,
    GetElsePut,
}

/// What to do with which key.
///
/// Each has a key of its own, made in the order of the operations: the key that a server looks up
/// was made a moment ago and is in the processor's cache. Were it fetched from among thousands, that
/// would take as long as the lookup itself.
pub(crate) struct Operation {
    pub(crate) kind: Kind,
    pub(crate) key: CacheKey,
    number: Key,
}

/// A workload and the operations that make it up. They are run round and round, from a different
/// place by each thread or task.
pub(crate) struct Script {
    pub(crate) workload: Workload,
    pub(crate) material: Arc<Material>,
    /// [`Self::LEN`] that go round, then those that are run beforehand. A slow cache still has what
    /// it was filled with when it is measured: it must not find just that again.
    operations: Vec<Operation>,
}

impl Script {
    pub(crate) const LEN: usize = 1 << 17;

    pub(crate) fn new(workload: Workload, material: &Arc<Material>) -> Self {
        let random = &mut SmallRng::seed_from_u64(SEED + 1);
        let many = Self::LEN + workload.run_beforehand();
        let numbers = match workload {
            Workload::HitOnly | Workload::Puts5 | Workload::Puts50 => {
                zipf(many, KEYS, 0.99, random)
            }
            Workload::AtCapacity => zipf(many, MANY_KEYS, 0.9, random),
            Workload::OneHotKey => evenly(many, 1, random),
            Workload::EightHotKeys => evenly(many, 8, random),
        };
        let mut put = |share| if random.random_bool(share) { Kind::Put } else { Kind::Get };
        let mut kind = || match workload {
            Workload::HitOnly | Workload::OneHotKey | Workload::EightHotKeys => Kind::Get,
            Workload::Puts5 => put(0.05),
            Workload::Puts50 => put(0.5),
            Workload::AtCapacity => Kind::GetElsePut,
        };
        let with_key = |number| {
            let key = material.key(number).clone();
            Operation { kind: kind(), key, number }
        };
        let operations = numbers.into_iter().map(with_key).collect();
        Self { workload, material: Arc::clone(material), operations }
    }

    /// `many` operations, from number `from` on.
    pub(crate) fn operations(&self, from: usize, many: u64) -> impl Iterator<Item = &Operation> {
        (from..from + many as usize).map(|number| &self.operations[number % Self::LEN])
    }

    pub(crate) fn beforehand(&self) -> impl Iterator<Item = &Operation> {
        self.operations[Self::LEN..].iter()
    }

    pub(crate) fn vector(&self, operation: &Operation) -> &EmbeddingVector {
        self.material.vector(operation.number)
    }
}

/// `many` keys by popularity, which has nothing to do with their order: they are put in that order,
/// and popular ones should not be neighbours in memory.
fn zipf(many: usize, keys: usize, exponent: f64, random: &mut SmallRng) -> Vec<Key> {
    let popularity = Zipf::new(keys as f64, exponent).expect("a positive number and exponent");
    let mut by_rank: Vec<_> = Key::first(keys).collect();
    by_rank.shuffle(random);
    // Ranks begin at 1.
    let draw = || by_rank[popularity.sample(random) as usize - 1];
    iter::repeat_with(draw).take(many).collect()
}

/// `many` times one of `hot` keys, evenly and at random.
fn evenly(many: usize, hot: u32, random: &mut SmallRng) -> Vec<Key> {
    let draw = || Key(random.random_range(0..hot) * (KEYS as u32 / hot));
    iter::repeat_with(draw).take(many).collect()
}
