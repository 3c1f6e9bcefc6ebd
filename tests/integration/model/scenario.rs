//! What a case of the model test is: a configuration, and operations one after the other.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use embedding_cache::{EvictionPolicy, MemoryPressure};
use proptest::collection::vec;
use proptest::prelude::*;

/// How the cache is built.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Config {
    pub(crate) policy: EvictionPolicy,
    pub(crate) pressure: MemoryPressure,
    pub(crate) shards: usize,
    /// At least one limit is there.
    pub(crate) max_entries: Option<usize>,
    pub(crate) max_weight: Option<u64>,
    /// Always there with a limit on weight; without it every entry weighs 0.
    pub(crate) weigher: bool,
    pub(crate) time_to_live: Option<Duration>,
    pub(crate) extras: Extras,
    /// Whether all keys share four hashes.
    pub(crate) collisions: bool,
}

/// What else there is to an entry's life. Jitter and a time-to-idle do not come together: what is
/// left of a life would not tell which it is.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Extras {
    pub(crate) grace: Duration,
    pub(crate) jitter: f64,
    pub(crate) time_to_idle: Option<Duration>,
}

/// One call of the cache, or of the clock. A weight that is not asked for by a weigher is ignored.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    Get(u16),
    /// One `get` after the other.
    Gets(Vec<u16>),
    GetMany(Vec<u16>),
    TryGetFor(u16, Duration),
    Insert {
        key: u16,
        weight: u64,
    },
    InsertWithTtl {
        key: u16,
        weight: u64,
        ttl: Duration,
    },
    TryInsertFor {
        key: u16,
        weight: u64,
        wait: Duration,
    },
    InsertMany {
        keys: Vec<u16>,
        weight: u64,
    },
    Remove(u16),
    /// Keeps the entries whose key and value, added, are no multiple of this.
    Retain(u64),
    Clear,
    InvalidateAll,
    /// Invalidates the entries whose key and value, added, are a multiple of this.
    InvalidateIf(u64),
    CleanupExpired,
    SetMaxEntries(usize),
    SetMaxWeight(u64),
    Advance(Duration),
    SetBack(Duration),
}

#[derive(Clone)]
pub(crate) struct Scenario {
    pub(crate) config: Config,
    /// The operations use the keys below this one.
    pub(crate) keys: u16,
    pub(crate) ops: Vec<Op>,
}

/// One operation a line, so that a failing case can be read and written down as a test.
impl fmt::Debug for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}", self.config)?;
        for (step, op) in self.ops.iter().enumerate() {
            writeln!(f, "  step {step}: {op:?}")?;
        }
        Ok(())
    }
}

/// How large the scenarios are.
pub(crate) struct World {
    keys: u16,
    /// The limit on entries, at first and when it is changed.
    entries: Range<usize>,
    /// The limit on weight, likewise.
    weight: Range<u64>,
    /// Keys in a batch.
    batch: Range<usize>,
    steps: Range<usize>,
    /// How often an operation is a batch; 16 is as often as a `get`.
    batches: u32,
    /// How often it is one that goes through all entries, on the same scale.
    sweeps: u32,
    /// How many small cases one of this size is worth.
    pub(crate) cost: u32,
}

/// Few keys and tiny limits: every corner is turned often.
pub(crate) const SMALL: World = World {
    keys: 24,
    entries: 0..20,
    weight: 0..60,
    batch: 0..100,
    steps: 1..80,
    batches: 4,
    sweeps: 3,
    cost: 1,
};

/// Hundreds of entries: one operation takes several bites of 64, slots fill several chunks, the
/// index grows.
pub(crate) const LARGE: World = World {
    keys: 700,
    entries: 250..600,
    weight: 400..1200,
    batch: 100..400,
    steps: 1..24,
    batches: 40,
    sweeps: 12,
    cost: 8,
};

impl World {
    /// Any scenario of this size with one of `shards` under `policy`.
    pub(crate) fn scenarios(
        &'static self,
        policy: EvictionPolicy,
        shards: &'static [usize],
    ) -> impl Strategy<Value = Scenario> {
        (self.configs(policy, shards), vec(self.ops(), self.steps.clone()))
            .prop_map(|(config, ops)| Scenario { config, keys: self.keys, ops })
    }

    fn configs(
        &self,
        policy: EvictionPolicy,
        shards: &'static [usize],
    ) -> impl Strategy<Value = Config> + use<> {
        let pressure =
            prop_oneof![Just(MemoryPressure::PolicyOrder), Just(MemoryPressure::LargestFirst)];
        // A limit on entries, on weight, on both; a weigher without a limit.
        let limits = (self.entries.clone(), self.weight.clone(), 0..4u8).prop_map(
            |(entries, weight, which)| match which {
                0 => (Some(entries), None, false),
                1 => (Some(entries), None, true),
                2 => (None, Some(weight), true),
                _ => (Some(entries), Some(weight), true),
            },
        );
        let time_to_live = prop_oneof![
            4 => Just(None),
            4 => milliseconds(1..40).prop_map(Some),
            1 => Just(Some(Duration::ZERO)),
        ];
        let plain = Extras::default();
        let jitter = prop_oneof![Just(0.1), Just(0.5), Just(1.0)];
        let grace = milliseconds(1..30);
        let idle = milliseconds(1..40).prop_map(Some);
        let extras = prop_oneof![
            4 => Just(plain),
            1 => grace.clone().prop_map(move |grace| Extras { grace, ..plain }),
            1 => jitter.clone().prop_map(move |jitter| Extras { jitter, ..plain }),
            1 => (grace.clone(), jitter)
                .prop_map(move |(grace, jitter)| Extras { grace, jitter, ..plain }),
            2 => idle.clone().prop_map(move |time_to_idle| Extras { time_to_idle, ..plain }),
            1 => (grace, idle)
                .prop_map(move |(grace, time_to_idle)| Extras { grace, time_to_idle, ..plain }),
        ];
        (
            pressure,
            proptest::sample::select(shards),
            limits,
            time_to_live,
            extras,
            proptest::bool::weighted(0.1),
        )
            .prop_map(
                move |(
                    pressure,
                    shards,
                    (max_entries, max_weight, weigher),
                    time_to_live,
                    extras,
                    collisions,
                )| Config {
                    policy,
                    pressure,
                    shards,
                    max_entries,
                    max_weight,
                    weigher,
                    time_to_live,
                    extras,
                    collisions,
                },
            )
    }

    fn ops(&self) -> impl Strategy<Value = Op> + use<> {
        let key = 0..self.keys;
        // Mostly a tenth of the limit or less; now and then one that most of the others make way
        // for, or over the limit.
        let weight = prop_oneof![
            8 => 0..self.weight.start / 200 + 9,
            1 => 0..self.weight.end + 2,
        ];
        let ttl = prop_oneof![
            6 => milliseconds(1..40),
            1 => Just(Duration::ZERO),
            1 => Just(Duration::from_secs(292 * 365 * 24 * 3600)),
            1 => Just(Duration::MAX),
        ];
        let wait = prop_oneof![Just(Duration::ZERO), Just(Duration::from_millis(5))];
        let advance = prop_oneof![9 => milliseconds(0..25), 1 => milliseconds(900..5_000)];
        // Any keys, or the same few again and again.
        let (last, batch) = (self.keys - 1, self.batch.clone());
        let few = (key.clone(), vec(0..4u16, batch.clone())).prop_map(move |(first, offsets)| {
            offsets.into_iter().map(|offset| (first + offset).min(last)).collect()
        });
        let keys = prop_oneof![vec(key.clone(), batch), few];
        let entry = (key.clone(), weight.clone());
        prop_oneof![
            16 => key.clone().prop_map(Op::Get),
            self.batches => keys.clone().prop_map(Op::Gets),
            self.batches => keys.clone().prop_map(Op::GetMany),
            2 => (key.clone(), wait.clone()).prop_map(|(key, wait)| Op::TryGetFor(key, wait)),
            20 => entry.clone().prop_map(|(key, weight)| Op::Insert { key, weight }),
            8 => (entry.clone(), ttl)
                .prop_map(|((key, weight), ttl)| Op::InsertWithTtl { key, weight, ttl }),
            4 => (entry, wait)
                .prop_map(|((key, weight), wait)| Op::TryInsertFor { key, weight, wait }),
            self.batches => (keys, weight).prop_map(|(keys, weight)| Op::InsertMany { keys, weight }),
            4 => key.prop_map(Op::Remove),
            self.sweeps => (2..6u64).prop_map(Op::Retain),
            1 => Just(Op::Clear),
            1 => Just(Op::InvalidateAll),
            self.sweeps => (2..6u64).prop_map(Op::InvalidateIf),
            self.sweeps => Just(Op::CleanupExpired),
            2 => self.entries.clone().prop_map(Op::SetMaxEntries),
            2 => self.weight.clone().prop_map(Op::SetMaxWeight),
            8 => advance.prop_map(Op::Advance),
            1 => milliseconds(1..60).prop_map(Op::SetBack),
        ]
    }
}

fn milliseconds(range: Range<u64>) -> impl Strategy<Value = Duration> + Clone {
    range.prop_map(Duration::from_millis)
}
