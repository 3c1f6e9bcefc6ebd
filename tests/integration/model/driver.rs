//! Takes the cache and the oracle through a scenario side by side and compares them at each step.

use std::any::Any;
use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use embedding_cache::{CacheError, CacheStats, Clock, InsertError, RemovalCause, ShardedCache};

use crate::support::{FakeClock, Removals};

use super::oracle::{Event, Held, Oracle, Refusal, Value, Verdict, require};
use super::scenario::{Config, Op, Scenario};

type Cache = ShardedCache<u16, Value, TestHasher>;

/// The same in every run, so that a failing case fails again; with `collisions` four hashes in all.
#[derive(Debug, Clone, Copy)]
struct TestHasher {
    state: u64,
    collisions: bool,
}

impl TestHasher {
    fn new(config: Config) -> Self {
        Self { state: 0, collisions: config.collisions }
    }
}

impl BuildHasher for TestHasher {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        *self
    }
}

impl Hasher for TestHasher {
    fn finish(&self) -> u64 {
        let number = if self.collisions { self.state % 4 } else { self.state };
        // The finalizer of SplitMix64, which spreads small numbers over all 64 bits.
        let mixed = (number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u16(byte.into());
        }
    }

    fn write_u16(&mut self, number: u16) {
        self.state = self.state << 16 | u64::from(number);
    }
}

/// Runs a scenario; the error names the step that went wrong.
pub(crate) fn run(scenario: &Scenario) -> Verdict {
    run_against(scenario, scenario.config)
}

/// Runs a scenario with a cache of one configuration against an oracle of another.
pub(crate) fn run_against(scenario: &Scenario, cache: Config) -> Verdict {
    let mut run = Run::new(scenario, cache);
    for (step, op) in scenario.ops.iter().enumerate() {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            run.step(op)?;
            run.compare()
        }));
        let wrong = match outcome {
            Ok(Ok(())) => continue,
            Ok(Err(wrong)) => wrong,
            Err(panic) => format!("panicked: {}", message(&*panic)),
        };
        return Err(format!("step {step}, {op:?}: {wrong}"));
    }
    Ok(())
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("with no message")
}

struct Run {
    cache: Cache,
    oracle: Oracle,
    clock: Arc<FakeClock>,
    /// What the listener was told and the oracle has not yet judged.
    told: Removals<u16, Value>,
    keys: u16,
    weigher: bool,
    /// How many have been made.
    values: u64,
}

impl Run {
    fn new(scenario: &Scenario, cache: Config) -> Self {
        let (clock, told) = (FakeClock::new(), Removals::new());
        let shard_of = shards_of(scenario.keys, scenario.config);
        Self {
            cache: build(cache, &clock, &told),
            oracle: Oracle::new(scenario.config, shard_of, clock.monotonic()),
            clock,
            told,
            keys: scenario.keys,
            weigher: scenario.config.weigher,
            values: 0,
        }
    }

    fn value(&mut self, weight: u64) -> Value {
        self.values += 1;
        Value { id: self.values, weight }
    }

    fn events(&self) -> VecDeque<Event> {
        self.told.take().into()
    }

    /// Carries out `op` on both; an event that the oracle did not ask for is an error.
    fn step(&mut self, op: &Op) -> Verdict {
        let now = self.clock.monotonic();
        let mut events = VecDeque::new();
        match *op {
            Op::Get(key) => self.gets(&[key], now, &mut events)?,
            Op::Gets(ref keys) => self.gets(keys, now, &mut events)?,
            Op::GetMany(ref keys) => {
                let got = self.cache.get_many(keys);
                events = self.events();
                require!(got.len() == keys.len(), "{} answers", got.len());
                for (&key, got) in keys.iter().zip(got) {
                    same_value(key, got, self.oracle.get(key, now, &mut events)?)?;
                }
            }
            Op::TryGetFor(key, wait) => {
                let got = self.cache.try_get_for(&key, wait);
                let got = got.map_err(|error| error.to_string())?;
                events = self.events();
                same_value(key, got, self.oracle.get(key, now, &mut events)?)?;
            }
            Op::Insert { key, weight } => {
                let value = self.value(weight);
                let outcome = self.cache.insert(key, value);
                events = self.events();
                self.inserted(key, value, None, outcome, &mut events)?;
            }
            Op::InsertWithTtl { key, weight, ttl } => {
                let value = self.value(weight);
                let outcome = self.cache.insert_with_ttl(key, value, ttl);
                events = self.events();
                self.inserted(key, value, Some(ttl), outcome, &mut events)?;
            }
            Op::TryInsertFor { key, weight, wait } => {
                let value = self.value(weight);
                let outcome = self.cache.try_insert_for(key, value, wait);
                events = self.events();
                self.inserted(key, value, None, outcome, &mut events)?;
            }
            Op::InsertMany { ref keys, weight } => {
                let entries: Vec<_> = keys.iter().map(|&key| (key, self.value(weight))).collect();
                let outcomes = self.cache.insert_many(entries.iter().copied());
                events = self.events();
                require!(outcomes.len() == entries.len(), "{} outcomes", outcomes.len());
                // In groups of 64, each ordered by shard and within a shard as given.
                let mut came: Vec<_> = entries.into_iter().zip(outcomes).enumerate().collect();
                came.sort_by_key(|(at, ((key, _), _))| (at / 64, self.oracle.shard_of(*key)));
                for (_, ((key, value), outcome)) in came {
                    self.inserted(key, value, None, outcome, &mut events)?;
                }
            }
            Op::Remove(key) => {
                let removed = self.cache.remove(&key);
                events = self.events();
                same_value(key, removed, self.oracle.remove(key, now, &mut events)?)?;
            }
            Op::Retain(modulus) => {
                let keep = |key, value: Value| !(u64::from(key) + value.id).is_multiple_of(modulus);
                let alive = self.oracle.all_kept(now);
                let mut asked = Vec::new();
                let removed = self.cache.retain(|&key, &value| {
                    asked.push((key, value));
                    keep(key, value)
                });
                events = self.events();
                asked.sort_unstable();
                require!(asked == alive, "asked whether to keep {asked:?}; alive are {alive:?}");
                let expected = self.oracle.retain(keep, now, &mut events)?;
                require!(removed == expected, "says {removed} were removed, and {expected} were");
            }
            Op::Clear => {
                self.cache.clear();
                events = self.events();
                self.oracle.remove_where(|_| Some(RemovalCause::Removed), &mut events)?;
            }
            Op::InvalidateAll => {
                let removed = self.cache.invalidate_all();
                events = self.events();
                let all = |_: &Held| Some(RemovalCause::Removed);
                let expected = self.oracle.remove_where(all, &mut events)?;
                require!(removed == expected, "says {removed} were removed, and {expected} were");
            }
            Op::InvalidateIf(modulus) => {
                let keep = |key, value: Value| !(u64::from(key) + value.id).is_multiple_of(modulus);
                let removed = self.cache.invalidate_if(|&key, &value| !keep(key, value));
                events = self.events();
                let expected = self.oracle.retain(keep, now, &mut events)?;
                require!(removed == expected, "says {removed} were removed, and {expected} were");
            }
            Op::CleanupExpired => {
                let removed = self.cache.cleanup_expired();
                events = self.events();
                let expected = self.oracle.cleanup(now, &mut events)?;
                require!(removed == expected, "says {removed} were removed, and {expected} were");
            }
            Op::SetMaxEntries(max) => {
                let evicted = self.cache.set_max_entries(max);
                events = self.events();
                let expected = self.oracle.set_limits(Some(max), None, now, &mut events)?;
                require!(evicted == expected, "says {evicted} were evicted, and {expected} were");
            }
            Op::SetMaxWeight(max) => {
                let outcome = self.cache.set_max_weight(max);
                events = self.events();
                self.set_max_weight(max, outcome, &mut events)?;
            }
            Op::Advance(by) => self.clock.set(now + by),
            Op::SetBack(by) => {
                self.clock.set(now - by);
                self.oracle.was_set_back = true;
            }
        }
        let left_of = |key| self.cache.entry_info(&key)?.expires_in;
        self.oracle.adopt_lives(now, left_of)?;
        require!(events.is_empty(), "left without need: {events:?}");
        Ok(())
    }

    fn gets(&mut self, keys: &[u16], now: Duration, events: &mut VecDeque<Event>) -> Verdict {
        for &key in keys {
            let got = self.cache.get(&key);
            events.extend(self.events());
            same_value(key, got, self.oracle.get(key, now, events)?)?;
        }
        Ok(())
    }

    fn inserted(
        &mut self,
        key: u16,
        value: Value,
        ttl: Option<Duration>,
        outcome: Result<(), InsertError<u16, Value>>,
        events: &mut VecDeque<Event>,
    ) -> Verdict {
        let expected = self.oracle.insert(key, value, ttl, self.clock.monotonic(), events)?;
        let Err(refused) = outcome else {
            require!(expected.is_none(), "{key} was taken and should be refused: {expected:?}");
            return Ok(());
        };
        let error = refused.error();
        let right = match expected {
            None => false,
            Some(Refusal::TooLarge) => error.is_too_large(),
            Some(Refusal::InvalidTtl) => error.is_invalid_ttl(),
        };
        require!(right, "{key} refused with \"{error}\", expected was {expected:?}");
        let back = refused.into_entry();
        require!(back == (key, value), "{key} with {value:?} came back as {back:?}");
        Ok(())
    }

    fn set_max_weight(
        &mut self,
        max: u64,
        outcome: Result<usize, CacheError>,
        events: &mut VecDeque<Event>,
    ) -> Verdict {
        if !self.weigher {
            let refused = outcome.is_err_and(|error| error.is_configuration());
            require!(refused, "a limit on weight was set without a weigher");
            return Ok(());
        }
        let evicted = outcome.map_err(|error| error.to_string())?;
        let now = self.clock.monotonic();
        let expected = self.oracle.set_limits(None, Some(max), now, events)?;
        require!(evicted == expected, "says {evicted} were evicted, and {expected} were");
        Ok(())
    }

    /// Compares everything that can be seen without changing it.
    fn compare(&self) -> Verdict {
        let (cache, oracle, now) = (&self.cache, &self.oracle, self.clock.monotonic());
        cache.validate();
        let (len, weight) = (cache.len(), cache.weight());
        require!(len == oracle.len(), "len {len}, expected {}", oracle.len());
        require!(weight == oracle.weight(), "weight {weight}, expected {}", oracle.weight());
        require!(cache.is_empty() == (len == 0), "is_empty with {len} entries");
        let limits = (cache.max_entries() as u64, cache.max_weight());
        require!(limits == (oracle.max_entries(), oracle.max_weight()), "limits {limits:?}");
        require!(
            len as u64 <= limits.0 && weight <= limits.1,
            "{len} and {weight} over {limits:?}"
        );

        let alive = oracle.all_live(now);
        let mut iterated: Vec<_> = cache.iter().collect();
        iterated.sort_unstable();
        require!(iterated == alive, "iterated {iterated:?}\n  expected {alive:?}");
        let mut keys: Vec<_> = cache.keys().collect();
        keys.sort_unstable();
        require!(keys.iter().eq(alive.iter().map(|(key, _)| key)), "keys {keys:?}");
        (0..self.keys).try_for_each(|key| self.compare_key(key, now))?;
        self.compare_stats()
    }

    fn compare_key(&self, key: u16, now: Duration) -> Verdict {
        let expected = self.oracle.live(key, now);
        let peeked = self.cache.peek(&key);
        let value = expected.map(|held| held.value);
        require!(peeked == value, "peek of {key} gives {peeked:?}, expected {value:?}");
        require!(self.cache.contains_key(&key) == value.is_some(), "contains_key of {key}");
        let info = self.cache.entry_info(&key);
        let seen = info.map(|info| (info.weight, info.expires_in, info.written_at));
        let expected = expected.map(|held| {
            let written_at = self.cache.created_at() + TimeDelta::seconds(held.written_after);
            (held.weight, held.life_left_at(now), written_at)
        });
        require!(seen == expected, "entry_info of {key} is {seen:?}, expected {expected:?}");
        Ok(())
    }

    fn compare_stats(&self) -> Verdict {
        let (stats, expected) = (self.cache.stats(), self.oracle.stats);
        require!(stats == expected, "{stats:#?}\n  expected {expected:#?}");
        let departed = stats.evictions + stats.expired_entries + stats.removals;
        let len = self.cache.len() as u64;
        require!(stats.insertions - departed == len, "came minus left is not {len}: {stats:#?}");
        let by_limit = stats.evicted_by_entries + stats.evicted_by_weight;
        require!(stats.evictions == by_limit, "evictions by cause do not add up: {stats:#?}");

        let mut sum = CacheStats::default();
        for (number, shard) in self.cache.shard_stats().into_iter().enumerate() {
            sum += shard.stats;
            let seen = (shard.entries, shard.weight);
            let expected = self.oracle.shard(number);
            require!(seen == expected, "shard {number} holds {seen:?}, expected {expected:?}");
        }
        require!(sum == stats, "the shards' counts do not add up");
        Ok(())
    }
}

fn build(config: Config, clock: &Arc<FakeClock>, told: &Removals<u16, Value>) -> Cache {
    let mut builder = ShardedCache::builder()
        .shards(config.shards)
        .eviction(config.policy)
        .memory_pressure(config.pressure)
        .clock(Arc::clone(clock) as Arc<dyn Clock>)
        .eviction_listener(told.listener());
    if let Some(max) = config.max_entries {
        builder = builder.max_entries(max);
    }
    if let Some(max) = config.max_weight {
        builder = builder.max_weight(max);
    }
    if config.weigher {
        builder = builder.weigher(|_, value: &Value| value.weight);
    }
    if let Some(ttl) = config.time_to_live {
        builder = builder.time_to_live(ttl);
    }
    if let Some(tti) = config.extras.time_to_idle {
        builder = builder.time_to_idle(tti);
    }
    builder = builder.grace(config.extras.grace).time_to_live_jitter(config.extras.jitter);
    builder.hasher(TestHasher::new(config)).build().unwrap()
}

/// Finds out in which shard each key stands, by inserting it into a cache of its own.
fn shards_of(keys: u16, config: Config) -> Vec<usize> {
    let cache = ShardedCache::builder()
        .shards(config.shards)
        .max_entries(usize::MAX)
        .hasher(TestHasher::new(config))
        .build()
        .unwrap();
    let entries = || cache.shard_stats().into_iter().map(|shard| shard.entries);
    let shard_of = |key| {
        let before: Vec<usize> = entries().collect();
        cache.insert(key, ()).unwrap();
        entries().zip(before).position(|(now, before)| now > before).unwrap()
    };
    (0..keys).map(shard_of).collect()
}

fn same_value(key: u16, got: Option<Value>, expected: Option<Value>) -> Verdict {
    require!(got == expected, "{key} gave {got:?}, expected {expected:?}");
    Ok(())
}
