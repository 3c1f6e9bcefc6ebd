//! How an entry gets in, and how room is made for it.
//!
//! # The way of a put
//!
//! Nearly always one lock hold is enough, and [`put_at_once`](ShardedCache::put_at_once) does it
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

use super::budget::{Amount, Reservation, Shortage};
use super::clock::{Span, Stamp};
use super::expiry::Life;
use super::index::SlotHash;
use super::policy::Leave;
use super::removal::{Gone, Notifier};
use super::shard::{Once, Patience, Shard};
use super::table::{Entry, State, Table, Ticket, Verdict};
use super::write::Condition;
use super::{Place, RemovalCause, ShardedCache};

/// Entries that leave under one lock hold at most.
pub(super) const BITE: usize = 64;

/// How often a put that found nothing to evict waits for other writers: some 20 ms in all.
const WAITS: u32 = 24;

/// A put on its way.
pub(super) struct Put<'a, K, V> {
    pub(super) at: Place<'a, K, V>,
    /// The moment of the entry that was last tried.
    now: Stamp,
    /// See [`Terms::condition`](super::write::Terms::condition).
    condition: Option<Condition<'a>>,
    pub(super) reservation: Reservation<'a>,
    /// Whether shards that hold less than their share must give as well.
    desperate: bool,
    /// Whether nobody may leave for it; see `insert_free.rs`.
    pub(super) only_free_room: bool,
}

/// An entry on its way in.
pub(super) struct Newcomer<K, V> {
    pub(super) key: K,
    pub(super) value: V,
    pub(super) ticket: Ticket,
}

/// What [`put_at_once`](ShardedCache::put_at_once) came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AtOnce {
    Inserted,
    /// In place of the entry there is now the old value, under the newcomer's own key.
    Replaced,
    /// Not done.
    Left,
}

/// What stands in the way of a put under the lock of its shard.
pub(super) enum Hurdle {
    /// It needs this much beyond what could be freed there.
    NoRoom(Amount),
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
        let limit = Stamp::LONGEST.saturating_sub(self.config.plan.grace.length());
        if ttl > limit { Err(ErrorKind::TtlTooLong { ttl, limit }) } else { Ok(()) }
    }

    /// How long an entry is kept: its own time-to-live, or the cache's as the jitter has it, and the
    /// grace; but one that is expired at once is not kept.
    #[inline]
    pub(super) fn span(&self, own_ttl: Option<Duration>, hash: SlotHash) -> Span {
        let plan = &self.config.plan;
        let common = || self.config.time_to_live.map(|ttl| plan.jitter.apply(ttl, hash));
        match own_ttl.or_else(common) {
            None => Span::ENDLESS,
            Some(Duration::ZERO) => Span::NONE,
            Some(ttl) => Span::of(ttl.saturating_add(plan.grace.length())),
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
    /// left in `gone`. Otherwise nothing is done that [`carry_out`](Self::carry_out) cannot go on
    /// with, which can do all the rest and takes twice as long.
    #[inline]
    pub(super) fn put_at_once<P: Patience>(
        &self,
        at: Place<'_, K, V>,
        new: &mut Option<(K, V)>,
        ticket: Ticket,
        condition: Option<Condition<'_>>,
        gone: &mut Option<(K, V, RemovalCause)>,
        patience: P,
    ) -> AtOnce {
        let Ticket { weight, now, .. } = ticket;
        let put = at.shard.write(patience, |table| {
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
                        self.budget.release(Amount { entries: 0, weight: old - weight });
                    }
                    counters.updates.count();
                    return AtOnce::Replaced;
                }
                // An expired entry of the same key is no update: it leaves, and gives its room.
                if let Some(entry) = table.take(id, Leave::Other) {
                    freed = Some(Amount::one(entry.weight));
                    counters.expired.count();
                    *gone = Some((entry.key, entry.value, RemovalCause::Expired));
                }
            }
            let (mut reservation, need) = (Reservation::new(&self.budget), Amount::one(weight));
            if let Some(freed) = freed {
                reservation.take_over(freed);
            }
            if let Err(shortage) = reservation.cover(need) {
                if gone.is_some() || !self.has_its_share(table.held(), shortage) {
                    return AtOnce::Left;
                }
                let Some((entry, verdict)) = table.make_way(shortage, now, None, true) else {
                    return AtOnce::Left;
                };
                reservation.take_over(Amount::one(entry.weight));
                let cause = self.count_departure(at.shard, verdict, shortage);
                *gone = Some((entry.key, entry.value, cause));
                // What has left stays gone: it made way for this newcomer all the same.
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
    pub(super) fn start_put<'a>(
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

    /// Takes `newcomer` into its shard, round after round until there is room.
    pub(super) fn carry_out<P: Patience>(
        &self,
        put: &mut Put<'_, K, V>,
        newcomer: &mut Option<Newcomer<K, V>>,
        notifier: &mut Notifier<'_, K, V>,
        patience: P,
    ) -> Result<(), ErrorKind> {
        let weight = newcomer.as_ref().map_or(0, |newcomer| newcomer.ticket.weight);
        // Every round but the waiting ones frees something, most of them a whole bite.
        let most = WAITS + 64 + u32::try_from(self.len() / (BITE / 2)).unwrap_or(u32::MAX / 2);
        let mut waits = 0;
        for rounds in 1..=most {
            let attempt = self.change(put.at.shard, patience, notifier, |table, gone| {
                (self.try_here(put, table, newcomer, gone), !gone.is_empty())
            });
            let Some((attempt, mut freed)) = attempt else {
                let waited = patience.given();
                return Err(ErrorKind::Timeout { operation: "insert", waited });
            };
            let need = match attempt {
                Ok(()) => return Ok(()),
                Err(Hurdle::Superseded) => return Err(ErrorKind::Superseded),
                Err(Hurdle::NoRoom(need)) => need,
            };
            if put.only_free_room {
                return Err(ErrorKind::Contended { weight, limit: self.max_weight(), rounds });
            }
            // The limits may have been lowered since the put began.
            self.can_ever_fit(weight)?;
            freed |= self.take_elsewhere(put, need, notifier, patience);
            if freed {
                continue;
            }
            if !put.desperate {
                put.desperate = true;
                continue;
            }
            if waits == WAITS || patience.is_over() {
                return Err(ErrorKind::Contended { weight, limit: self.max_weight(), rounds });
            }
            waits += 1;
            put.reservation.release();
            patience.back_off(waits);
        }
        Err(ErrorKind::Contended { weight, limit: self.max_weight(), rounds: most })
    }

    /// Under the write lock of the key's own shard: makes room and inserts, or says what stands in
    /// the way.
    pub(super) fn try_here(
        &self,
        put: &mut Put<'_, K, V>,
        table: &mut Table<K, V>,
        newcomer: &mut Option<Newcomer<K, V>>,
        gone: &mut Gone<K, V>,
    ) -> Result<(), Hurdle> {
        let Some(new) = newcomer else { return Ok(()) };
        // Before room is made: an entry that is not to be stored evicts nobody. An invalidation
        // that begins after this has its sweep come to this shard after this lock hold.
        if put.condition.is_some_and(|condition| self.is_past(condition)) {
            return Err(Hurdle::Superseded);
        }
        let counters = &put.at.shard.counters;
        let ticket = new.ticket;
        put.now = ticket.now;
        let found = table.find(ticket.hash, &new.key);
        if put.condition.is_some_and(|condition| condition.superseded.is_some())
            && found.is_some_and(|(id, entry)| table.state(id, entry, put.now) == State::Fresh)
        {
            return Err(Hurdle::Superseded);
        }
        let found = found.map(|(id, entry)| (id, !table.is_dead(id, entry, put.now), entry.weight));
        let old = found.filter(|&(_, alive, _)| alive);
        // An expired entry of the same key is no update: it leaves, and its room is the first taken.
        let expired = found.filter(|&(_, alive, _)| !alive);
        if let Some(entry) = expired.and_then(|(id, ..)| table.take(id, Leave::Other)) {
            put.reservation.take_over(Amount::one(entry.weight));
            counters.expired.count();
            gone.push((entry.key, entry.value, RemovalCause::Expired));
        }
        let need = match old {
            None => Amount::one(ticket.weight),
            Some((.., old)) => Amount { entries: 0, weight: ticket.weight.saturating_sub(old) },
        };
        let old = old.map(|(id, ..)| id);
        if !self.make_room(put, put.at.shard, table, need, old, gone) {
            return Err(Hurdle::NoRoom(need));
        }
        if old.is_none() && table.is_full() {
            // Four billion entries in one shard: one of them gives its slot.
            let Some((entry, verdict)) = table.make_way(Shortage::Entries, put.now, None, true)
            else {
                return Err(Hurdle::NoRoom(need));
            };
            self.see_off(put, put.at.shard, entry, verdict, Shortage::Entries, gone);
        }
        let Some(mut new) = newcomer.take() else { return Ok(()) };
        let weight = ticket.weight;
        match old {
            None => {
                table.insert(new.key, new.value, ticket);
                counters.insertions.count();
                put.reservation.spend(Amount::one(weight));
            }
            Some(id) => {
                let old = table.replace(id, &mut new.value, ticket);
                put.reservation.take_over(Amount { entries: 0, weight: old });
                gone.push((new.key, new.value, RemovalCause::Replaced));
                counters.updates.count();
                put.reservation.spend(Amount { entries: 0, weight });
            }
        }
        // Under the lock still, and before the listener is called: what is left belongs to whoever
        // comes next.
        put.reservation.release();
        Ok(())
    }

    /// Under the write lock of `shard`: lets entries leave, at most [`BITE`] in one lock hold, until
    /// the reservation covers `need`. Says whether it does.
    fn make_room(
        &self,
        put: &mut Put<'_, K, V>,
        shard: &Shard<K, V>,
        table: &mut Table<K, V>,
        need: Amount,
        keep: Option<super::chunked::SlotId>,
        gone: &mut Gone<K, V>,
    ) -> bool {
        if put.only_free_room {
            return put.reservation.cover(need).is_ok();
        }
        while gone.len() < BITE {
            let Err(shortage) = put.reservation.cover(need) else { return true };
            let may_evict = put.desperate || self.has_its_share(table.held(), shortage);
            let Some((entry, verdict)) = table.make_way(shortage, put.now, keep, may_evict) else {
                return false;
            };
            self.see_off(put, shard, entry, verdict, shortage, gone);
        }
        put.reservation.cover(need).is_ok()
    }

    /// Counts an entry that has left for this put, and takes over its room.
    fn see_off(
        &self,
        put: &mut Put<'_, K, V>,
        shard: &Shard<K, V>,
        entry: Entry<K, V>,
        verdict: Verdict,
        shortage: Shortage,
        gone: &mut Gone<K, V>,
    ) {
        put.reservation.take_over(Amount::one(entry.weight));
        let cause = self.count_departure(shard, verdict, shortage);
        gone.push((entry.key, entry.value, cause));
    }

    /// With no lock held: takes room from other shards for `need`, and says whether anything was
    /// freed. Each shard's lock is tried once; if `desperate` it is waited for briefly, as readers
    /// that follow one another would keep a mere try out for ever.
    fn take_elsewhere<P: Patience>(
        &self,
        put: &mut Put<'_, K, V>,
        need: Amount,
        notifier: &mut Notifier<'_, K, V>,
        patience: P,
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
            let wait = if put.desperate { patience.brief() } else { None };
            let take = |table: &mut Table<K, V>, gone: &mut Gone<K, V>| {
                (self.make_room(put, shard, table, need, None, gone), !gone.is_empty())
            };
            let taken = match wait {
                Some(brief) => self.change(shard, brief, notifier, take),
                None => self.change(shard, Once, notifier, take),
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
    fn has_its_share(&self, held: Amount, shortage: Shortage) -> bool {
        let used = self.budget.used();
        let (own, all) = match shortage {
            Shortage::Entries => (held.entries, used.entries),
            Shortage::Weight => (held.weight, used.weight),
        };
        // The number of shards is a power of two: to divide would take longer than all else here.
        let mean = all >> self.shards.len().trailing_zeros();
        self.mask == 0 || own > mean - mean / 4
    }

    /// Counts an entry that made way, under the write lock of its shard.
    pub(super) fn count_departure(
        &self,
        shard: &Shard<K, V>,
        verdict: Verdict,
        shortage: Shortage,
    ) -> RemovalCause {
        let counters = &shard.counters;
        let (counter, cause) = match (verdict, shortage) {
            (Verdict::Expired, _) => (&counters.expired, RemovalCause::Expired),
            (Verdict::Evicted, Shortage::Entries) => {
                (&counters.evicted_by_entries, RemovalCause::Size)
            }
            (Verdict::Evicted, Shortage::Weight) => {
                (&counters.evicted_by_weight, RemovalCause::Weight)
            }
        };
        counter.count();
        cause
    }
}
