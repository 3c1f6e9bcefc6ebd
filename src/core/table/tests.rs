//! Random events against a map: replacements, and entries that take the slot of another.

use std::collections::BTreeMap;

use super::expiry::{Jitter, Life};
use super::policy::{EvictionPolicy, MemoryPressure};
use super::*;

const ENTRIES: usize = if cfg!(miri) { 6 } else { 40 };
const STEPS: usize = if cfg!(miri) { 30 } else { 1500 };
const MINUTE: Duration = Duration::from_secs(60);

/// Marsaglia's xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// What is known of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    value: u64,
    weight: u64,
    expiry: Stamp,
    written: u32,
}

/// A table, and what it should hold.
struct Checked {
    table: Table<u64, u64>,
    model: BTreeMap<u64, Held>,
    random: Random,
    now: Stamp,
    /// The latest moment of a write: lives are counted from there where the clock was set back.
    latest: Stamp,
    /// Whether entries have a time-to-live.
    expires: bool,
    jitter: Jitter,
    values: u64,
    exchanges: usize,
}

impl Checked {
    fn new(config: &TableConfig, expires: bool) -> Self {
        Self {
            table: Table::new(config, 0),
            model: BTreeMap::new(),
            random: Random(0x9E37_79B9_7F4A_7C15),
            now: Stamp::from_nanos(1),
            latest: Stamp::ZERO,
            expires,
            jitter: config.jitter,
            values: 0,
            exchanges: 0,
        }
    }

    /// Few enough hashes that some keys share one.
    fn hash(key: u64) -> SlotHash {
        SlotHash((key % 97).wrapping_mul(0x9E37_79B9) as u32)
    }

    fn new_entry(&mut self, key: u64) -> (NewEntry, Held) {
        let hash = Self::hash(key);
        let (span, life) = match self.random.below(3) {
            _ if !self.expires => (Span::ENDLESS, Life::Default),
            0 => (Span::of(Duration::from_secs(self.random.below(200))), Life::Own),
            1 => (Span::ENDLESS, Life::Own),
            _ => (Span::of(self.jitter.apply(MINUTE, hash)), Life::Default),
        };
        // Mostly of one weight, as vectors of one model are.
        let weight = if self.random.below(4) == 0 { self.random.below(20) } else { 10 };
        let written = self.now.seconds_since(Stamp::ZERO);
        let (now, size) = (self.now, weight);
        self.values += 1;
        let expiry = now.max(self.latest).expiry(span);
        let new = NewEntry { hash, weight, size, span, life, now, written };
        (new, Held { value: self.values, weight, expiry, written })
    }

    fn held(&self, key: u64) -> Option<Held> {
        let (_, entry) = self.table.find(Self::hash(key), &key)?;
        let Entry { value, weight, expiry, written, .. } = *entry;
        Some(Held { value, weight, expiry, written })
    }

    fn check(&self) {
        self.table.validate();
        assert_eq!(self.table.held().entries, self.model.len() as u64);
        for (&key, &held) in &self.model {
            assert_eq!(self.held(key), Some(held), "{key}");
        }
    }

    fn put(&mut self, key: u64) {
        let (new_entry, held) = self.new_entry(key);
        let fits = self.random.below(8) != 0;
        let mut value = held.value;
        let before = self.model.get(&key).copied();
        let mut asked = None;
        let outcome = self.table.replace(&key, &mut value, &new_entry, |old| {
            asked = Some(old);
            fits
        });
        let Some(before) = before else {
            assert_eq!(outcome, Replace::Absent);
            return self.insert(key, new_entry, held, fits);
        };
        let is_other = before.weight != held.weight;
        let idle = self.table.orders.as_ref().is_some_and(|orders| orders.idle.is_some());
        match outcome {
            Replace::Absent => panic!("{key} is here"),
            Replace::Refused if idle => {}
            Replace::Refused => {
                assert!(!before.expiry.is_alive_at(self.now) || is_other && !fits);
            }
            Replace::Done(surplus) => {
                assert!(before.expiry.is_alive_at(self.now), "it was dead");
                assert_eq!(asked, is_other.then_some(before.weight));
                assert_eq!(surplus, before.weight.saturating_sub(held.weight));
                assert_eq!(value, before.value);
                self.model.insert(key, held);
                self.latest = self.latest.max(self.now);
            }
        }
    }

    /// Inserts a key that is not here; into the slot of another one where the table is full.
    fn insert(&mut self, mut key: u64, new_entry: NewEntry, held: Held, fits: bool) {
        self.latest = self.latest.max(self.now);
        if self.model.len() < ENTRIES {
            self.table.insert(key, held.value, new_entry);
            self.model.insert(key, held);
            return;
        }
        let limit = if self.random.below(2) == 0 { Limit::Entries } else { Limit::Weight };
        let leaver = if self.random.below(2) == 0 {
            self.table.next_to_leave(limit, self.now, None, true)
        } else {
            self.table.leaver_for_another(limit, self.now, true)
        };
        let (id, reason) = leaver.expect("it is full");
        let (old_key, old) = {
            let entry = self.table.entry(id).expect("an entry leaves");
            (entry.key, self.model[&entry.key])
        };
        let any_dead = self.model.values().any(|held| !held.expiry.is_alive_at(self.now));
        if any_dead {
            assert_eq!(reason, EvictReason::Expired, "one that is expired leaves first");
        }
        let (new_key, mut value) = (key, held.value);
        let exchanged =
            self.table.exchange((id, reason), &mut key, &mut value, &new_entry, |weight| {
                assert_eq!(weight, old.weight);
                fits
            });
        match exchanged {
            Some(surplus) => {
                assert_eq!(surplus, old.weight.saturating_sub(held.weight));
                assert_eq!((key, value), (old_key, old.value), "what left is handed over");
                self.exchanges += 1;
            }
            None => {
                assert!(!fits && old.weight != held.weight);
                assert_eq!((key, value), (new_key, held.value), "nothing has changed");
                let left = self.table.evict((id, reason)).expect("it is still here");
                assert_eq!((left.key, left.value), (old_key, old.value));
                self.table.insert(new_key, held.value, new_entry);
            }
        }
        self.model.remove(&old_key);
        self.model.insert(new_key, held);
        assert_eq!(self.held(old_key), None);
    }

    fn step(&mut self) {
        self.table.begin_write();
        let key = self.random.below(3 * ENTRIES as u64);
        match self.random.below(10) {
            0 => {
                if let Some((id, _)) = self.table.find(Self::hash(key), &key) {
                    assert!(self.table.take(id).is_some());
                    self.model.remove(&key);
                }
            }
            1 | 2 => {
                if let Some((id, entry)) = self.table.find(Self::hash(key), &key) {
                    self.table.note_use(id, self.now);
                    self.table.hit(id, entry);
                }
            }
            3 if self.random.below(4) == 0 => {
                let by = if self.random.below(4) == 0 { -5_000_000_000 } else { 7_000_000_000 };
                self.now = Stamp::from_nanos(self.now.nanos().saturating_add_signed(by).max(1));
            }
            _ => self.put(key),
        }
        self.check();
    }
}

#[test]
fn an_entry_takes_the_slot_of_another_whatever_the_policy_and_the_orders() {
    use {EvictionPolicy::*, MemoryPressure::*};

    for policy in [Lru, S3Fifo, HitDensity] {
        // It takes Miri ten seconds to make what hit density learns in.
        if cfg!(miri) && policy == HitDensity {
            continue;
        }
        for pressure in [PolicyOrder, LargestFirst] {
            for (expires, jitter, idle) in [
                (false, 0.0, None),
                (true, 0.0, None),
                (true, 0.5, None),
                (true, 0.0, Some(MINUTE)),
            ] {
                let config = TableConfig {
                    jitter: Jitter::new(jitter).unwrap(),
                    time_to_idle: idle,
                    ..TableConfig::new(policy, pressure, 1)
                };
                let mut checked = Checked::new(&config, expires);
                for _ in 0..STEPS {
                    checked.step();
                }
                assert!(checked.exchanges > STEPS / 20, "{}", checked.exchanges);
            }
        }
    }
}

/// While the index is in two tables a key may have to be looked up in both, so writes of any kind
/// have to bring that to an end.
#[test]
fn replacements_bring_the_growth_of_the_index_to_an_end() {
    let config = TableConfig::new(EvictionPolicy::S3Fifo, MemoryPressure::PolicyOrder, 1);
    let mut checked = Checked::new(&config, false);
    let hash = |key: u64| SlotHash((key as u32).wrapping_mul(0x9E37_79B9));
    let mut keys = 0;
    while !checked.table.index.is_draining() {
        let (new_entry, held) = checked.new_entry(keys);
        let new_entry = NewEntry { hash: hash(keys), ..new_entry };
        checked.table.insert(keys, held.value, new_entry);
        keys += 1;
        assert!(keys < 1000, "it never grows");
    }
    for key in (0..keys).cycle().take(20 * keys as usize) {
        let (new_entry, held) = checked.new_entry(key);
        let new_entry = NewEntry { hash: hash(key), ..new_entry };
        let mut value = held.value;
        let outcome = checked.table.replace(&key, &mut value, &new_entry, |_| true);
        assert!(matches!(outcome, Replace::Done(_)), "{key}");
    }
    assert!(!checked.table.index.is_draining());
    checked.table.validate();
}

/// A clock that was set back stands still at the latest write, also where no entry has expired or
/// could until now.
#[test]
fn a_life_begins_no_earlier_than_the_latest_write_even_of_an_entry_without_one() {
    let config = TableConfig::new(EvictionPolicy::Lru, MemoryPressure::PolicyOrder, 1);
    for exchanges in [false, true] {
        let mut table = Table::new(&config, 0);
        let new = |key: u64, now: u64, span| NewEntry {
            hash: SlotHash(key as u32),
            weight: 0,
            size: 0,
            span,
            life: Life::Own,
            now: Stamp::from_nanos(now),
            written: 0,
        };
        table.insert(1, 10, new(1, 10, Span::ENDLESS));
        let latest = new(1, 30, Span::ENDLESS);
        if exchanges {
            let leaver = table.leaver_for_another(Limit::Entries, latest.now, true).unwrap();
            let latest = NewEntry { hash: SlotHash(2), ..latest };
            assert_eq!(table.exchange(leaver, &mut 2, &mut 20, &latest, |_| true), Some(0));
        } else {
            assert_eq!(table.replace(&1, &mut 20, &latest, |_| true), Replace::Done(0));
        }
        let ttl = Span::of(Duration::from_nanos(50));
        table.insert(3, 30, new(3, 20, ttl));
        let (_, entry) = table.find(SlotHash(3), &3).unwrap();
        assert_eq!(entry.expiry, Stamp::from_nanos(30).expiry(ttl));
    }
}
