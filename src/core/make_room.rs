//! How an entry gets in, and how room is made for it.
//!
//! # The way of a put
//!
//! Nearly always one lock hold is enough, and [`insert_fast`](ShardedCache::insert_fast) does it
//! with little ado. The whole way is this. Weigh, refuse what can never fit, hash. Then, under the
//! write lock of the key's own shard: find the old entry; reserve what the new one needs beyond it;
//! while the budget has no room, let entries of this shard leave and take over their room; insert.
//! Unlock; tell the listener of those that left, drop them.
//!
//! A shard that holds clearly less than its share is not made to give more: then room is taken from
//! other shards, one at a time and with no other lock held, into the same
//! reservation; and the put starts over with it. What a put has freed stays reserved for it, so
//! each round has more than the one before. Where nothing is left to evict because other writers
//! hold all the room in their reservations, it gives its own back and waits a little, a bounded
//! number of times.
//!
//! No thread ever waits for a lock while it holds one, so writers cannot deadlock.

use std::hash::{BuildHasher, Hash};
use std::time::Duration;

use crate::error::ErrorKind;
use crate::sync::atomic::Ordering::{Acquire, Relaxed};

use super::budget::{Limit, Reservation, Usage, WAITS};
use super::clock::{Span, Stamp};
use super::insert::Condition;
use super::removal::{Gone, Notifier};
use super::shard::{BITE, Shard, Try, Wait};
use super::table::expiry::Life;
use super::table::index::SlotHash;
use super::table::{Entry, EvictReason, State, Table, Ticket};
use super::{Place, RemovalCause, ShardedCache};

/// A put on its way.
pub(super) struct Put<'a, K, V> {
    pub(super) at: Place<'a, K, V>,
    /// The moment of the entry that was last tried.
    now: Stamp,
    /// See [`InsertOptions::condition`](super::insert::InsertOptions::condition).
    condition: Option<Condition<'a>>,
    pub(super) reservation: Reservation<'a>,
    /// Whether shards that hold less than their share must give as well.
    desperate: bool,
    /// Whether nobody may leave for it; see `insert_free.rs`.
    pub(super) only_free_room: bool,
}

/// An entry on its way in.
pub(super) struct NewEntry<K, V> {
    pub(super) key: K,
    pub(super) value: V,
    pub(super) ticket: Ticket,
}

/// What [`insert_fast`](ShardedCache::insert_fast) came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AtOnce {
    Inserted,
    /// In place of the entry there is now the old value, under the new entry's own key.
    Replaced,
    /// Not done.
    Left,
}

/// What stands in the way of a put under the lock of its shard.
pub(super) enum NeedsRoom {
    /// It needs this much beyond what could be freed there.
    NoRoom(Usage),
    /// Something newer came since its value was loaded.
    Superseded,
}

impl<K, V, S> ShardedCache<K, V, S>
where
    K: Hash + Eq,
    S: BuildHasher,
{
    /// Weighs an entry that belongs at `at`, and takes the time.
    #[inline(always)]
    pub(super) fn ticket(
        &self,
        at: Place<'_, K, V>,
        key: &K,
        value: &V,
        time_to_live: Option<Duration>,
    ) -> Ticket {
        let life = if time_to_live.is_some() { Life::Own } else { Life::Default };
        if life == Life::Own {
            self.may_expire.store(true, Relaxed);
        }
        let weight = self.config.weigher.as_ref().map_or(0, |weigh| weigh(key, value));
        let size = self.config.size.as_ref().map_or(weight, |size| size(key, value));
        let (now, written) = self.now_for_writing();
        let span = self.span(time_to_live, at.hash);
        Ticket { hash: at.hash, weight, size, span, life, now, written }
    }

    /// Refuses what can never be stored.
    #[inline(always)]
    pub(super) fn admit(
        &self,
        ticket: &Ticket,
        time_to_live: Option<Duration>,
    ) -> Result<(), ErrorKind> {
        if let Some(ttl) = time_to_live {
            self.check_ttl(ttl)?;
        }
        self.can_ever_fit(ticket.weight)
    }

    /// Refuses a time-to-live that no sum of moments can hold together with the grace.
    pub(super) fn check_ttl(&self, ttl: Duration) -> Result<(), ErrorKind> {
        let limit = Stamp::LONGEST.saturating_sub(self.config.table_config.grace.length());
        if ttl > limit { Err(ErrorKind::TtlTooLong { ttl, limit }) } else { Ok(()) }
    }

    /// How long an entry is kept: its own time-to-live, or the cache's as the jitter has it, and the
    /// grace; but one that is expired at once is not kept.
    #[inline]
    pub(super) fn span(&self, own_ttl: Option<Duration>, hash: SlotHash) -> Span {
        let table_config = &self.config.table_config;
        let common = || self.config.time_to_live.map(|ttl| table_config.jitter.apply(ttl, hash));
        match own_ttl.or_else(common) {
            None => Span::ENDLESS,
            Some(Duration::ZERO) => Span::NONE,
            Some(ttl) => Span::of(ttl.saturating_add(table_config.grace.length())),
        }
    }

    /// The moment for a write, and the same in seconds since the cache was made.
    pub(super) fn now_for_writing(&self) -> (Stamp, u32) {
        let time = &self.config.time;
        // Ages are counted from here, so exactly; without a time-to-live only people will read it.
        let now = if self.may_expire.load(Relaxed) { time.now() } else { time.coarse() };
        (now, now.seconds_since(self.created.0))
    }

    /// Stores an entry in one lock hold, if that is as simple as it nearly always is: the old value
    /// weighs no less, or there is room, or one entry that leaves makes enough of it. That one is
    /// left in `gone`. Otherwise nothing is done that [`insert_retrying`](Self::insert_retrying) cannot go on
    /// with, which can do all the rest and takes twice as long.
    #[inline]
    pub(super) fn insert_fast<P: Wait>(
        &self,
        at: Place<'_, K, V>,
        new: &mut Option<(K, V)>,
        ticket: Ticket,
        condition: Option<Condition<'_>>,
        gone: &mut Option<(K, V, RemovalCause)>,
        wait: P,
    ) -> AtOnce {
        let Ticket { weight, now, .. } = ticket;
        let put = at.shard.write(wait, |table| {
            let Some((key, value)) = new else { return AtOnce::Left };
            // Acquire: see the head of `invalidate.rs`, case 4.
            let is_outdated = table.generation() != self.generation.load(Acquire);
            if is_outdated || condition.is_some() {
                return AtOnce::Left;
            }
            let counters = &at.shard.counters;
            let mut freed = None;
            if let Some((id, entry)) = table.find(ticket.hash, key) {
                if !table.is_dead(id, entry, now) {
                    if weight > entry.weight {
                        return AtOnce::Left;
                    }
                    let old = table.replace(id, value, ticket);
                    if weight != old {
                        self.budget.release(Usage { entries: 0, weight: old - weight });
                    }
                    counters.updates.count();
                    return AtOnce::Replaced;
                }
                // An expired entry of the same key is no update: it leaves, and gives its room.
                if let Some(entry) = table.take(id) {
                    freed = Some(Usage::one(entry.weight));
                    counters.expired.count();
                    *gone = Some((entry.key, entry.value, RemovalCause::Expired));
                }
            }
            let (mut reservation, need) = (Reservation::new(&self.budget), Usage::one(weight));
            if let Some(freed) = freed {
                reservation.take_over(freed);
            }
            if let Err(limit) = reservation.cover(need) {
                if gone.is_some() || !self.has_its_share(table.held(), limit) {
                    return AtOnce::Left;
                }
                let Some((entry, reason)) = table.evict_one(limit, now, None, true) else {
                    return AtOnce::Left;
                };
                reservation.take_over(Usage::one(entry.weight));
                let cause = self.count_departure(at.shard, reason, limit);
                *gone = Some((entry.key, entry.value, cause));
                // What has left stays gone: it made way for this new entry all the same.
                if reservation.cover(need).is_err() {
                    return AtOnce::Left;
                }
            }
            if table.is_full() {
                return AtOnce::Left;
            }
            if let Some((key, value)) = new.take() {
                // A copy, so that only an insertion puts the ticket into memory.
                table.insert(key, value, Ticket { ..ticket });
                counters.insertions.count();
                reservation.spend(need);
            }
            AtOnce::Inserted
        });
        put.unwrap_or(AtOnce::Left)
    }

    /// A put to the shard of `at`.
    pub(super) fn begin_insert<'a>(
        &'a self,
        at: Place<'a, K, V>,
        condition: Option<Condition<'a>>,
    ) -> Put<'a, K, V> {
        Put {
            at,
            now: Stamp::ZERO,
            condition,
            reservation: Reservation::new(&self.budget),
            desperate: false,
            only_free_room: false,
        }
    }

    /// Takes `new_entry` into its shard, round after round until there is room.
    pub(super) fn insert_retrying<P: Wait>(
        &self,
        put: &mut Put<'_, K, V>,
        new_entry: &mut Option<NewEntry<K, V>>,
        notifier: &mut Notifier<'_, K, V>,
        wait: P,
    ) -> Result<(), ErrorKind> {
        let weight = new_entry.as_ref().map_or(0, |new_entry| new_entry.ticket.weight);
        // Every round but the waiting ones frees something, most of them a whole bite.
        let most = WAITS + 64 + u32::try_from(self.len() / (BITE / 2)).unwrap_or(u32::MAX / 2);
        let mut waits = 0;
        for rounds in 1..=most {
            let attempt = self.change(put.at.shard, wait, notifier, |table, gone| {
                (self.insert_locked(put, table, new_entry, gone), !gone.is_empty())
            });
            let Some((attempt, mut freed)) = attempt else {
                let waited = wait.given();
                return Err(ErrorKind::Timeout { operation: "insert", waited });
            };
            let need = match attempt {
                Ok(()) => return Ok(()),
                Err(NeedsRoom::Superseded) => return Err(ErrorKind::Superseded),
                Err(NeedsRoom::NoRoom(need)) => need,
            };
            if put.only_free_room {
                return Err(ErrorKind::Contended { weight, limit: self.max_weight(), rounds });
            }
            // The limits may have been lowered since the put began.
            self.can_ever_fit(weight)?;
            freed |= self.take_elsewhere(put, need, notifier, wait);
            if freed {
                continue;
            }
            if !put.desperate {
                put.desperate = true;
                continue;
            }
            if waits == WAITS || wait.is_over() {
                return Err(ErrorKind::Contended { weight, limit: self.max_weight(), rounds });
            }
            waits += 1;
            put.reservation.release();
            wait.back_off(waits);
        }
        Err(ErrorKind::Contended { weight, limit: self.max_weight(), rounds: most })
    }

    /// Under the write lock of the key's own shard: makes room and inserts, or says what stands in
    /// the way.
    pub(super) fn insert_locked(
        &self,
        put: &mut Put<'_, K, V>,
        table: &mut Table<K, V>,
        new_entry: &mut Option<NewEntry<K, V>>,
        gone: &mut Gone<K, V>,
    ) -> Result<(), NeedsRoom> {
        let Some(new) = new_entry else { return Ok(()) };
        // Before room is made: an entry that is not to be stored evicts nobody. An invalidation
        // that begins after this has its sweep come to this shard after this lock hold.
        if put.condition.is_some_and(|condition| self.is_past(condition)) {
            return Err(NeedsRoom::Superseded);
        }
        let counters = &put.at.shard.counters;
        let ticket = new.ticket;
        put.now = ticket.now;
        let found = table.find(ticket.hash, &new.key);
        if put.condition.is_some_and(|condition| condition.superseded.is_some())
            && found.is_some_and(|(id, entry)| table.state(id, entry, put.now) == State::Fresh)
        {
            return Err(NeedsRoom::Superseded);
        }
        let found = found.map(|(id, entry)| (id, !table.is_dead(id, entry, put.now), entry.weight));
        let old = found.filter(|&(_, alive, _)| alive);
        // An expired entry of the same key is no update: it leaves, and its room is the first taken.
        let expired = found.filter(|&(_, alive, _)| !alive);
        if let Some(entry) = expired.and_then(|(id, ..)| table.take(id)) {
            put.reservation.take_over(Usage::one(entry.weight));
            counters.expired.count();
            gone.push((entry.key, entry.value, RemovalCause::Expired));
        }
        let need = match old {
            None => Usage::one(ticket.weight),
            Some((.., old)) => Usage { entries: 0, weight: ticket.weight.saturating_sub(old) },
        };
        let old = old.map(|(id, ..)| id);
        if !self.evict_until(put, put.at.shard, table, need, old, gone) {
            return Err(NeedsRoom::NoRoom(need));
        }
        if old.is_none() && table.is_full() {
            // Four billion entries in one shard: one of them gives its slot.
            let Some((entry, reason)) = table.evict_one(Limit::Entries, put.now, None, true) else {
                return Err(NeedsRoom::NoRoom(need));
            };
            self.take_victim(put, put.at.shard, entry, reason, Limit::Entries, gone);
        }
        let Some(mut new) = new_entry.take() else { return Ok(()) };
        let weight = ticket.weight;
        match old {
            None => {
                table.insert(new.key, new.value, ticket);
                counters.insertions.count();
                put.reservation.spend(Usage::one(weight));
            }
            Some(id) => {
                let old = table.replace(id, &mut new.value, ticket);
                put.reservation.take_over(Usage { entries: 0, weight: old });
                gone.push((new.key, new.value, RemovalCause::Replaced));
                counters.updates.count();
                put.reservation.spend(Usage { entries: 0, weight });
            }
        }
        // Under the lock still, and before the listener is called: what is left belongs to whoever
        // comes next.
        put.reservation.release();
        Ok(())
    }

    /// Under the write lock of `shard`: lets entries leave, at most [`BITE`] in one lock hold, until
    /// the reservation covers `need`. Says whether it does.
    fn evict_until(
        &self,
        put: &mut Put<'_, K, V>,
        shard: &Shard<K, V>,
        table: &mut Table<K, V>,
        need: Usage,
        keep: Option<super::table::slots::SlotId>,
        gone: &mut Gone<K, V>,
    ) -> bool {
        if put.only_free_room {
            return put.reservation.cover(need).is_ok();
        }
        while gone.len() < BITE {
            let Err(limit) = put.reservation.cover(need) else { return true };
            let may_evict = put.desperate || self.has_its_share(table.held(), limit);
            let Some((entry, reason)) = table.evict_one(limit, put.now, keep, may_evict) else {
                return false;
            };
            self.take_victim(put, shard, entry, reason, limit, gone);
        }
        put.reservation.cover(need).is_ok()
    }

    /// Counts an entry that has left for this put, and takes over its room.
    fn take_victim(
        &self,
        put: &mut Put<'_, K, V>,
        shard: &Shard<K, V>,
        entry: Entry<K, V>,
        reason: EvictReason,
        limit: Limit,
        gone: &mut Gone<K, V>,
    ) {
        put.reservation.take_over(Usage::one(entry.weight));
        let cause = self.count_departure(shard, reason, limit);
        gone.push((entry.key, entry.value, cause));
    }

    /// With no lock held: takes room from other shards for `need`, and says whether anything was
    /// freed. Each shard's lock is tried once; if `desperate` it is waited for briefly, as readers
    /// that follow one another would keep a mere try out for ever.
    fn take_elsewhere<P: Wait>(
        &self,
        put: &mut Put<'_, K, V>,
        need: Usage,
        notifier: &mut Notifier<'_, K, V>,
        wait: P,
    ) -> bool {
        let all = self.shards.len();
        let mut freed = false;
        // Starting behind the own shard spreads the load: keys are spread evenly over shards.
        for step in 1..all {
            let shard = &self.shards[(put.at.number + step) & (all - 1)];
            // A look from outside first: most shards need not be locked at all.
            let held = shard.counters.held();
            if held.entries == 0 {
                continue;
            }
            let wait = if put.desperate { wait.brief() } else { None };
            let take = |table: &mut Table<K, V>, gone: &mut Gone<K, V>| {
                (self.evict_until(put, shard, table, need, None, gone), !gone.is_empty())
            };
            let taken = match wait {
                Some(brief) => self.change(shard, brief, notifier, take),
                None => self.change(shard, Try, notifier, take),
            };
            let Some((covered, some)) = taken else { continue };
            if covered {
                return true;
            }
            freed |= some;
        }
        freed
    }
}

impl<K, V, S> ShardedCache<K, V, S> {
    /// Whether an entry of this weight could be stored in the empty cache.
    #[inline]
    fn can_ever_fit(&self, weight: u64) -> Result<(), ErrorKind> {
        let max = self.budget.max();
        if max.entries == 0 {
            return Err(ErrorKind::NoCapacity);
        }
        if weight > max.weight {
            return Err(ErrorKind::TooLarge { weight, limit: max.weight });
        }
        Ok(())
    }

    /// Whether a shard that holds this much holds about its share, so that it should give what its
    /// own newcomers need. Three quarters of the mean: keys spread over shards unevenly, and a
    /// shard that is merely below the mean is not to send its writers elsewhere.
    fn has_its_share(&self, held: Usage, limit: Limit) -> bool {
        let used = self.budget.used();
        let (own, all) = match limit {
            Limit::Entries => (held.entries, used.entries),
            Limit::Weight => (held.weight, used.weight),
        };
        // The number of shards is a power of two: to divide would take longer than all else here.
        let mean = all >> self.shards.len().trailing_zeros();
        self.mask == 0 || own > mean - mean / 4
    }

    /// Counts an entry that made way, under the write lock of its shard.
    pub(super) fn count_departure(
        &self,
        shard: &Shard<K, V>,
        reason: EvictReason,
        limit: Limit,
    ) -> RemovalCause {
        let counters = &shard.counters;
        let (counter, cause) = match (reason, limit) {
            (EvictReason::Expired, _) => (&counters.expired, RemovalCause::Expired),
            (EvictReason::Evicted, Limit::Entries) => {
                (&counters.evicted_by_entries, RemovalCause::Size)
            }
            (EvictReason::Evicted, Limit::Weight) => {
                (&counters.evicted_by_weight, RemovalCause::Weight)
            }
        };
        counter.count();
        cause
    }
}
