//! The oracle: a cache so naive that one can see it is right, and a judge of what leaves the other.
//!
//! Everything but the choice of who leaves is computed here and compared. Who leaves is taken from
//! what the cache told its listener, and judged by what is promised:
//!
//! - room is made only where it is needed, and for the limit that stands in the way: entries first;
//! - a shard with an expired entry gives that (any of them: no order among them is promised);
//! - else, with exact LRU, *the* least recently used one of the shard leaves, and with
//!   `LargestFirst`, for weight, *the* largest; other policies may choose.
//!
//! Which shard gives is not promised. With one shard and LRU all of that leaves no choice but among
//! expired entries.

use std::collections::VecDeque;
use std::time::Duration;

use embedding_cache::{CacheStats, EvictionPolicy, MemoryPressure, RemovalCause};

use super::scenario::Config;

/// A value no other insert of the case writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Value {
    pub(crate) id: u64,
    pub(crate) weight: u64,
}

/// What the listener was told: who left with which value, and why.
pub(crate) type Event = (u16, Value, RemovalCause);

/// What was found wrong.
pub(crate) type Verdict<T = ()> = Result<T, String>;

/// Fails with the message unless the condition holds.
macro_rules! require {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}
pub(crate) use require;

/// Why an insert is to be refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    TooLarge,
    InvalidTtl,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Endless,
    /// Expired from the start.
    None,
    /// Served until this moment, in nanoseconds, and at it.
    Through(u128),
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Held {
    pub(crate) key: u16,
    pub(crate) value: Value,
    pub(crate) weight: u64,
    /// Seconds from when the cache was made to when the value was written.
    pub(crate) written_after: i64,
    life: Life,
    /// How much longer it is kept.
    grace: u128,
    /// When it was last used, and how long it may be idle.
    used: u128,
    time_to_idle: Option<u128>,
    /// Whether its life is only known to within the jitter, and not yet adopted.
    jittered: bool,
    /// The number of the insert that wrote it.
    written: u64,
}

impl Held {
    /// Whether it is to be served.
    fn is_fresh_at(&self, now: Duration) -> bool {
        let lives = match self.life {
            Life::Endless => true,
            Life::None => false,
            Life::Through(last) => now.as_nanos() <= last,
        };
        lives && !self.is_idle_at(now)
    }

    /// Whether it is to be kept.
    fn is_alive_at(&self, now: Duration) -> bool {
        !self.is_over_at(now) && !self.is_idle_at(now)
    }

    /// Whether its time-to-live and the grace are over.
    fn is_over_at(&self, now: Duration) -> bool {
        match self.life {
            Life::Endless => false,
            Life::None => true,
            Life::Through(last) => now.as_nanos() > last + self.grace,
        }
    }

    fn is_idle_at(&self, now: Duration) -> bool {
        self.time_to_idle.is_some_and(|tti| now.as_nanos() > self.used + tti)
    }

    /// Whether it has been idle for so long that it must be found.
    fn is_long_idle_at(&self, now: Duration) -> bool {
        self.time_to_idle.is_some_and(|tti| now.as_nanos() > self.used + 2 * tti)
    }

    pub(crate) fn life_left_at(&self, now: Duration) -> Option<Duration> {
        let until = |last: u128| {
            let left = last.saturating_sub(now.as_nanos());
            Duration::from_nanos(u64::try_from(left).unwrap())
        };
        let own = match self.life {
            Life::Endless => None,
            Life::None => Some(Duration::ZERO),
            Life::Through(last) => Some(until(last)),
        };
        own.into_iter().chain(self.time_to_idle.map(|tti| until(self.used + tti))).min()
    }
}

pub(crate) struct Oracle {
    config: Config,
    /// The shard of each key.
    shard_of: Vec<usize>,
    created: Duration,
    max_entries: u64,
    max_weight: u64,
    /// In the order of use, the least recent first. Expired ones that nobody has noticed included.
    held: Vec<Held>,
    /// The latest moment of a write to each shard: a clock that goes back stands still for writes.
    latest: Vec<Duration>,
    inserts: u64,
    /// Whether the clock has gone back: then nobody promises when an idle entry is found.
    pub(crate) was_set_back: bool,
    pub(crate) stats: CacheStats,
}

impl Oracle {
    pub(crate) fn new(config: Config, shard_of: Vec<usize>, created: Duration) -> Self {
        Self {
            config,
            shard_of,
            created,
            max_entries: config.max_entries.unwrap_or(usize::MAX) as u64,
            max_weight: config.max_weight.unwrap_or(u64::MAX),
            held: Vec::new(),
            latest: vec![Duration::ZERO; config.shards],
            inserts: 0,
            was_set_back: false,
            stats: CacheStats::default(),
        }
    }

    pub(crate) fn shard_of(&self, key: u16) -> usize {
        self.shard_of[usize::from(key)]
    }

    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }

    pub(crate) fn weight(&self) -> u64 {
        self.held.iter().map(|held| held.weight).sum()
    }

    /// Entries and weight of a shard.
    pub(crate) fn shard(&self, shard: usize) -> (usize, u64) {
        let weights: Vec<u64> = self.of_shard(shard).map(|held| held.weight).collect();
        (weights.len(), weights.iter().sum())
    }

    pub(crate) fn max_entries(&self) -> u64 {
        self.max_entries
    }

    pub(crate) fn max_weight(&self) -> u64 {
        self.max_weight
    }

    fn of_shard(&self, shard: usize) -> impl Iterator<Item = &Held> {
        self.held.iter().filter(move |held| self.shard_of[usize::from(held.key)] == shard)
    }

    fn place(&self, key: u16) -> Option<usize> {
        self.held.iter().position(|held| held.key == key)
    }

    /// The live entry of `key`.
    pub(crate) fn live(&self, key: u16, now: Duration) -> Option<Held> {
        Some(self.held[self.place(key)?]).filter(|held| held.is_fresh_at(now))
    }

    /// The live entries by key.
    pub(crate) fn all_live(&self, now: Duration) -> Vec<(u16, Value)> {
        self.all(|held| held.is_fresh_at(now))
    }

    /// Those of which nobody has to say yet that they are expired, by key.
    pub(crate) fn all_kept(&self, now: Duration) -> Vec<(u16, Value)> {
        self.all(|held| held.is_alive_at(now))
    }

    fn all(&self, which: impl Fn(&Held) -> bool) -> Vec<(u16, Value)> {
        let those = self.held.iter().filter(|held| which(held));
        let mut all: Vec<_> = those.map(|held| (held.key, held.value)).collect();
        all.sort_unstable();
        all
    }

    pub(crate) fn get(
        &mut self,
        key: u16,
        now: Duration,
        events: &mut VecDeque<Event>,
    ) -> Verdict<Option<Value>> {
        let Some(place) = self.place(key) else {
            self.stats.misses += 1;
            return Ok(None);
        };
        let mut held = self.held.remove(place);
        if held.is_fresh_at(now) {
            held.used = held.used.max(now.as_nanos());
            self.held.push(held);
            self.stats.hits += 1;
            return Ok(Some(held.value));
        }
        self.stats.misses += 1;
        if held.is_alive_at(now) {
            // Stale: no use, and it stays.
            self.held.insert(place, held);
            return Ok(None);
        }
        self.stats.expired_entries += 1;
        expect(events, (key, held.value, RemovalCause::Expired))?;
        Ok(None)
    }

    /// What becomes of an insert. On a refusal nothing changes.
    pub(crate) fn insert(
        &mut self,
        key: u16,
        value: Value,
        ttl: Option<Duration>,
        now: Duration,
        events: &mut VecDeque<Event>,
    ) -> Verdict<Option<Refusal>> {
        const LONGEST: Duration = Duration::from_nanos(u64::MAX / 2);
        let weight = if self.config.weigher { value.weight } else { 0 };
        let refusal = if ttl.is_some_and(|ttl| ttl > LONGEST) {
            Some(Refusal::InvalidTtl)
        } else if self.max_entries == 0 || weight > self.max_weight {
            Some(Refusal::TooLarge)
        } else {
            None
        };
        if refusal.is_some() {
            self.stats.rejected += 1;
            return Ok(refusal);
        }

        // An expired entry of the same key is no update: it leaves.
        let mut old = self.place(key).map(|place| self.held[place]);
        if let Some(expired) = old.filter(|old| !old.is_alive_at(now)) {
            self.held.retain(|held| held.key != key);
            self.stats.expired_entries += 1;
            expect(events, (key, expired.value, RemovalCause::Expired))?;
            old = None;
        }
        let (entries, more) = match old {
            None => (1, weight),
            Some(old) => (0, weight.saturating_sub(old.weight)),
        };
        while let Some(limit) = self.limit_over(entries, more) {
            self.judge_departure(limit, Some(key), now, events)?;
        }
        match old {
            None => self.stats.insertions += 1,
            Some(old) => {
                self.held.retain(|held| held.key != key);
                self.stats.updates += 1;
                expect(events, (key, old.value, RemovalCause::Replaced))?;
            }
        }

        let latest = &mut self.latest[self.shard_of[usize::from(key)]];
        *latest = now.max(*latest);
        let extras = self.config.extras;
        let used = latest.as_nanos();
        let life = match ttl.or(self.config.time_to_live) {
            None => Life::Endless,
            Some(Duration::ZERO) => Life::None,
            Some(ttl) => Life::Through(latest.as_nanos() + ttl.as_nanos()),
        };
        let written_after = now.saturating_sub(self.created).as_secs() as i64;
        let written = self.inserts;
        self.inserts += 1;
        self.held.push(Held {
            key,
            value,
            weight,
            written_after,
            life,
            grace: extras.grace.as_nanos(),
            used,
            time_to_idle: extras.time_to_idle.map(|tti| tti.as_nanos()),
            jittered: extras.jitter > 0.0 && ttl.is_none() && matches!(life, Life::Through(_)),
            written,
        });
        Ok(None)
    }

    /// Learns from the cache how long the new entries live, if that is within the jitter.
    pub(crate) fn adopt_lives(
        &mut self,
        now: Duration,
        left_of: impl Fn(u16) -> Option<Duration>,
    ) -> Verdict {
        let fraction = self.config.extras.jitter;
        let Some(whole) = self.config.time_to_live else { return Ok(()) };
        for held in self.held.iter_mut().filter(|held| held.jittered) {
            let Life::Through(longest) = held.life else { continue };
            let Some(left) = left_of(held.key) else {
                return Err(format!("{} was just written and has no life", held.key));
            };
            let last = now.as_nanos() + left.as_nanos();
            let shortest = longest - (whole.as_nanos() as f64 * fraction) as u128;
            require!(
                (shortest..=longest).contains(&last),
                "{} lives through {last}, not from {shortest} to {longest}",
                held.key
            );
            (held.life, held.jittered) = (Life::Through(last), false);
        }
        Ok(())
    }

    pub(crate) fn remove(
        &mut self,
        key: u16,
        now: Duration,
        events: &mut VecDeque<Event>,
    ) -> Verdict<Option<Value>> {
        let Some(place) = self.place(key) else { return Ok(None) };
        let held = self.held.remove(place);
        let alive = held.is_fresh_at(now);
        let cause = if alive { RemovalCause::Removed } else { RemovalCause::Expired };
        self.count(cause);
        expect(events, (key, held.value, cause))?;
        Ok(alive.then_some(held.value))
    }

    /// Removes every entry for which `cause` names one, in any order; returns how many.
    pub(crate) fn remove_where(
        &mut self,
        cause: impl Fn(&Held) -> Option<RemovalCause>,
        events: &mut VecDeque<Event>,
    ) -> Verdict<usize> {
        let mut leaving = Vec::new();
        self.held.retain(|held| {
            leaving.extend(cause(held).map(|cause| (held.key, held.value, cause)));
            cause(held).is_none()
        });
        for &(.., cause) in &leaving {
            self.count(cause);
        }
        let mut told: Vec<Event> = events.drain(..).collect();
        told.sort_unstable_by_key(|&(key, ..)| key);
        leaving.sort_unstable_by_key(|&(key, ..)| key);
        require!(
            told == leaving,
            "should have left: {leaving:?}\n  the listener was told: {told:?}"
        );
        Ok(leaving.len())
    }

    /// [`remove_where`](Self::remove_where) an entry is expired; one that has not long been idle may
    /// stay.
    pub(crate) fn cleanup(
        &mut self,
        now: Duration,
        events: &mut VecDeque<Event>,
    ) -> Verdict<usize> {
        let left: Vec<u16> = events.iter().map(|&(key, ..)| key).collect();
        let surely = |held: &Held| held.is_over_at(now) || held.is_long_idle_at(now);
        let set_back = self.was_set_back;
        let cause = |held: &Held| {
            let may_stay = set_back && !held.is_over_at(now) || !surely(held);
            let stays = may_stay && !left.contains(&held.key);
            (!held.is_alive_at(now) && !stays).then_some(RemovalCause::Expired)
        };
        self.remove_where(cause, events)
    }

    /// [`remove_where`](Self::remove_where) an entry is expired or not to be kept.
    pub(crate) fn retain(
        &mut self,
        keep: impl Fn(u16, Value) -> bool,
        now: Duration,
        events: &mut VecDeque<Event>,
    ) -> Verdict<usize> {
        let cause = |held: &Held| {
            if !held.is_alive_at(now) {
                return Some(RemovalCause::Expired);
            }
            (!keep(held.key, held.value)).then_some(RemovalCause::Removed)
        };
        self.remove_where(cause, events)
    }

    /// Sets limits; `None` leaves one. Returns how many entries made way.
    pub(crate) fn set_limits(
        &mut self,
        max_entries: Option<usize>,
        max_weight: Option<u64>,
        now: Duration,
        events: &mut VecDeque<Event>,
    ) -> Verdict<usize> {
        self.max_entries = max_entries.map_or(self.max_entries, |max| max as u64);
        self.max_weight = max_weight.unwrap_or(self.max_weight);
        let before = self.len();
        while let Some(limit) = self.limit_over(0, 0) {
            self.judge_departure(limit, None, now, events)?;
        }
        Ok(before - self.len())
    }

    /// The limit that this much more would be over.
    fn limit_over(&self, entries: u64, weight: u64) -> Option<RemovalCause> {
        if self.held.len() as u64 + entries > self.max_entries {
            Some(RemovalCause::Size)
        } else if self.weight() + weight > self.max_weight {
            Some(RemovalCause::Weight)
        } else {
            None
        }
    }

    /// Lets the entry leave of which the listener was told next, if that was right while `limit`
    /// stood in the way of a new value of `keep`.
    fn judge_departure(
        &mut self,
        limit: RemovalCause,
        keep: Option<u16>,
        now: Duration,
        events: &mut VecDeque<Event>,
    ) -> Verdict {
        let Some((key, value, cause)) = events.pop_front() else {
            return Err(format!("nobody left, though room was needed ({limit:?})"));
        };
        let Some(place) = self.place(key) else {
            return Err(format!("{key} left ({cause:?}) and was not there"));
        };
        let held = self.held[place];
        require!(held.value == value, "{key} left with {value:?}, its value was {:?}", held.value);
        require!(keep != Some(key), "{key} left for its own new value");

        let shard = self.shard_of[usize::from(key)];
        // Idle ones are found for certain when they have long been idle, and a lock hold can look at
        // all there are.
        let few = self.of_shard(shard).count() <= 64 && !self.was_set_back;
        let expired: Vec<u16> = self
            .of_shard(shard)
            .filter(|held| held.is_over_at(now) || few && held.is_long_idle_at(now))
            .map(|held| held.key)
            .collect();
        if held.is_alive_at(now) {
            require!(expired.is_empty(), "{key} left ({cause:?}) before the expired {expired:?}");
            require!(
                cause == limit,
                "{key} left for {cause:?}, what stood in the way was {limit:?}"
            );
            if let Some(due) = self.due(shard, limit, keep) {
                require!(due == key, "{key} left ({cause:?}), it was {due}'s turn");
            }
        } else {
            require!(cause == RemovalCause::Expired, "{key} was expired and left for {cause:?}");
        }
        self.held.remove(place);
        self.count(cause);
        Ok(())
    }

    /// Who of a shard without expired entries must leave, if that is promised.
    fn due(&self, shard: usize, limit: RemovalCause, keep: Option<u16>) -> Option<u16> {
        let mut others = self.of_shard(shard).filter(|held| keep != Some(held.key));
        let is_lru = self.config.policy == EvictionPolicy::Lru;
        if limit == RemovalCause::Weight && self.config.pressure == MemoryPressure::LargestFirst {
            // `held` is in the order of use. Of several maxima `min_by_key` finds the first.
            let by_size = |held: &&Held| {
                (std::cmp::Reverse(held.weight), if is_lru { 0 } else { held.written })
            };
            return others.min_by_key(by_size).map(|held| held.key);
        }
        if is_lru { others.next().map(|held| held.key) } else { None }
    }

    fn count(&mut self, cause: RemovalCause) {
        let stats = &mut self.stats;
        match cause {
            RemovalCause::Expired => stats.expired_entries += 1,
            RemovalCause::Removed => stats.removals += 1,
            RemovalCause::Size => {
                stats.evictions += 1;
                stats.evicted_by_entries += 1;
            }
            RemovalCause::Weight => {
                stats.evictions += 1;
                stats.evicted_by_weight += 1;
            }
            other => unreachable!("no entry leaves the oracle for {other:?}"),
        }
    }
}

/// The next event must be this one.
fn expect(events: &mut VecDeque<Event>, expected: Event) -> Verdict {
    let told = events.pop_front();
    require!(
        told == Some(expected),
        "the listener should have been told {expected:?}, and was told {told:?}"
    );
    Ok(())
}
