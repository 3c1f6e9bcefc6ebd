//! How an entry gets in, and how room is made for it.
//!
//! # The way of a put
//!
//! Weigh, refuse what can never fit, hash. Then, under the write lock of the key's own shard,
//! [`insert_at_once`](ShardedCache::insert_at_once): replace the old entry, or insert where there is
//! room, or take the slot and the room of the one that leaves next. Where that is not enough,
//! [`insert_with_room`](ShardedCache::insert_with_room): reserve what the new one needs beyond the old;
//! while the budget has no room, let entries of this shard leave and take over their room; insert.
//! Unlock; tell the listener of those that left, drop them. Nearly always that is all.
//!
//! A shard that holds clearly less than its share is not made to give more: then room is taken from
//! other shards, one at a time and with no other lock held, into the same reservation; and
//! [`insert_retrying`](ShardedCache::insert_retrying) tries again. What a put has
//! freed stays reserved for it, so each round has more than the one before. Where nothing is left to
//! evict because other writers hold all the room in their reservations, it gives its own back and
//! waits a little, a bounded number of times.
//!
//! No thread ever waits for a lock while it holds one, so writers cannot deadlock.

use std::hash::{BuildHasher, Hash};
use std::time::Duration;

use crate::error::ErrorKind;
use crate::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::budget::{Limit, Reservation, Room, Usage};
use super::clock::{Grace, Span, Stamp};
use super::removal::{Gone, Notifier};
use super::shard::{BITE, Shard, Unlock};
use super::table::expiry::Life;
use super::table::index::SlotHash;
use super::table::slots::SlotId;
use super::table::{Entry, EvictReason, NewEntry, Replace, State, Table};
use super::wait::{Until, Wait};
use super::{Config, Place, RemovalCause, ShardedCache};

/// How often an operation that finds all room reserved by others waits for it: some 20 ms in all.
pub(super) const WAITS: u32 = 24;

/// How often an insert that may not block its thread, and finds all room taken by other writers, is
/// begun anew.
pub(crate) const CONTENDED: u32 = 64;

/// How an entry is stored.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct InsertOptions<'a> {
    /// A time-to-live of its own, in place of the cache's.
    pub(crate) time_to_live: Option<Duration>,
    /// For a value that was loaded: unless something newer came since.
    pub(crate) condition: Option<Condition<'a>>,
    /// No other entry leaves for it.
    pub(crate) only_free_room: bool,
}

/// What must hold under the write lock of the shard for a loaded value to be stored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Condition<'a> {
    /// The [`epoch`](ShardedCache::epoch) from before the value was loaded is still that of the cache.
    pub(crate) epoch: u64,
    /// This is not set, and there is no fresh entry of the key: one that was there when the load began
    /// would have been served instead, so it is newer. Relaxed: it is set before the shard is locked.
    pub(crate) superseded: Option<&'a AtomicBool>,
}

/// A put on its way, but for the entry itself, which stays where it is, and the room that it holds.
pub(super) struct Put<'a, K, V> {
    pub(super) at: Place<'a, K, V>,
    pub(super) new_entry: NewEntry,
    options: InsertOptions<'a>,
    /// Whether shards that hold less than their share must give as well.
    desperate: bool,
}

// Not derived: a derived `Clone` would ask `K` and `V` for one.
impl<K, V> Clone for Put<'_, K, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K, V> Copy for Put<'_, K, V> {}

/// How an entry was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    Inserted,
    /// In place of the entry there is now what left for it last, and why. Where it was replaced, that
    /// is the old value under the new entry's own key.
    InPlaceOf(RemovalCause),
}

/// What is to leave for a put, but is not enough.
pub(super) type TooLight = (SlotId, EvictReason, Limit);

/// What stands in the way of a put under the lock of its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NeedsRoom {
    /// Its reservation has `missed` what it needs: may be tried again.
    NoRoom,
    /// The search for what is to leave has looked enough under one lock hold; as `NoRoom` otherwise.
    Tired,
    /// Something newer came since its value was loaded.
    Superseded,
}

/// The outcome of one lock hold.
pub(super) type Attempt = Result<Stored, NeedsRoom>;

impl<K, V, S> ShardedCache<K, V, S>
where
    K: Hash + Eq,
    S: BuildHasher,
{
    /// Weighs an entry; `moment` says when that is. To be [admitted](Self::admit) before it is stored.
    // Always: a call returns the put through memory, a tenth of a replacement.
    #[inline(always)]
    pub(super) fn begin_insert<'a>(
        &'a self,
        key: &K,
        value: &V,
        options: InsertOptions<'a>,
        moment: impl FnOnce() -> (Stamp, u32),
    ) -> Put<'a, K, V> {
        let at = self.place(key);
        let mut life = Life::Default;
        if options.time_to_live.is_some() {
            life = Life::Own;
            // Before the entry can expire: see the field.
            self.may_expire.store(true, Relaxed);
        }
        let weight = self.config.weigher.as_ref().map_or(0, |weigh| weigh(key, value));
        let size = self.config.size.as_ref().map_or(weight, |size| size(key, value));
        let (now, written) = moment();
        let span = self.span(options.time_to_live, at.hash);
        let new_entry = NewEntry { hash: at.hash, weight, size, span, life, now, written };
        Put { at, new_entry, options, desperate: false }
    }

    /// Refuses what can never be stored.
    #[inline]
    pub(super) fn admit(&self, put: &Put<'_, K, V>) -> Result<(), ErrorKind> {
        if let Some(ttl) = put.options.time_to_live {
            self.check_ttl(ttl)?;
        }
        // One comparison on the way of every put: whether there is room for any entry at all is asked
        // where there is none for this one.
        let weight = put.new_entry.weight;
        if weight > self.budget.max_weight() { self.can_ever_fit(weight) } else { Ok(()) }
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
        let Config { table_config, time_to_live, span, .. } = &self.config;
        if let (None, Some(span)) = (own_ttl, span) {
            return *span;
        }
        let common = || time_to_live.map(|ttl| table_config.jitter.apply(ttl, hash));
        span_of(own_ttl.or_else(common), table_config.grace)
    }

    /// The moment for a write, and the same in seconds since the cache was made.
    pub(super) fn now_for_writing(&self) -> (Stamp, u32) {
        let time = &self.config.time;
        // Ages are counted from here, so exactly; without a time-to-live only people will read it.
        let now = if self.may_expire.load(Relaxed) { time.now() } else { time.coarse() };
        (now, now.seconds_since(self.created.0))
    }

    /// Under the write lock of the key's own shard: stores the entry in one of the ways in which nearly
    /// all are stored, or changes nothing. Those are:
    ///
    /// 1. In place of the value of its key.
    /// 2. In free room.
    /// 3. In the slot and the room of one entry that leaves. Where the two weigh the same, nothing of
    ///    the budget is written. No room is reserved between the look at the budget and the exchange,
    ///    as none is taken beside that of the one that leaves.
    ///
    /// Else it names what would leave in the third, if there was such an entry.
    // Always: a call passes what is known of the entry through memory, a tenth of a replacement.
    #[inline(always)]
    pub(super) fn insert_at_once(
        &self,
        put: &Put<'_, K, V>,
        table: &mut Table<K, V>,
        entry: &mut Option<(K, V)>,
    ) -> Result<Attempt, Option<TooLight>> {
        let Some((key, value)) = entry else { unreachable!("what is stored is not tried again") };
        // Not copied as a whole: what is known of the entry stays in registers.
        let Put { at: Place { shard, .. }, new_entry, .. } = put;
        if let Some(condition) = put.options.condition
            && self.is_superseded(condition, new_entry.hash, new_entry.now, table, key)
        {
            return Ok(Err(NeedsRoom::Superseded));
        }
        let weight = new_entry.weight;
        let fits = |old| weight < old || self.budget.try_reserve_weight(weight - old);
        match table.replace(key, value, new_entry, fits) {
            Replace::Done(surplus) => {
                self.budget.release_weight(surplus);
                shard.counters.count_removal(RemovalCause::Replaced);
                return Ok(Ok(Stored::InPlaceOf(RemovalCause::Replaced)));
            }
            Replace::Refused => return Err(None),
            Replace::Absent => {}
        }
        let used = self.budget.used();
        match self.budget.room_for(used, weight) {
            Room::Full(limit) if !put.options.only_free_room => {
                let may_evict = self.has_its_share(table.held(), used, limit);
                let leaver = table.leaver_for_another(limit, new_entry.now, may_evict);
                let Some((id, reason)) = leaver else { return Err(None) };
                let Some(surplus) = table.exchange((id, reason), key, value, new_entry, fits)
                else {
                    return Err(Some((id, reason, limit)));
                };
                self.budget.release_weight(surplus);
                shard.counters.insertions.count();
                let cause = shard.counters.count_eviction(reason, limit);
                Ok(Ok(Stored::InPlaceOf(cause)))
            }
            Room::Free if !table.is_full() && self.budget.try_reserve(weight) => {
                let Some((key, value)) = entry.take() else {
                    unreachable!("it is there, see above")
                };
                table.insert(key, value, NewEntry { ..*new_entry });
                shard.counters.insertions.count();
                Ok(Ok(Stored::Inserted))
            }
            _ => Err(None),
        }
    }

    /// Under the write lock of the key's own shard, where the entry was not stored
    /// [at once](Self::insert_at_once): more than one entry has to leave, or none may, or that of the
    /// key is dead. Makes room and stores it, or says what stands in the way. Where it stores it, a
    /// reservation that was empty is so again.
    // Takes a copy of the put: what a reference is made to stands in memory on the other ways, too.
    #[cold]
    #[inline(never)]
    pub(super) fn insert_with_room(
        &self,
        put: Put<'_, K, V>,
        leaver: Option<TooLight>,
        reservation: &mut Reservation<'_>,
        table: &mut Table<K, V>,
        entry: &mut Option<(K, V)>,
        gone: &mut Gone<K, V>,
    ) -> Attempt {
        let Put { at: Place { shard, .. }, ref new_entry, .. } = put;
        if let Some((id, reason, limit)) = leaver
            && let Some(Entry { key, value, weight, .. }) = table.evict((id, reason))
        {
            reservation.take_over(Usage::one(weight));
            gone.push((key, value, shard.counters.count_eviction(reason, limit)));
        }
        let Some((key, value)) = entry else { unreachable!("what is stored is not tried again") };
        let mut need = Usage::one(new_entry.weight);
        let mut replaces = None;
        // Where one has left already, the key is not here. Nor is it compared with others any more: a
        // panic there would keep what has left from the listener.
        let found = if leaver.is_none() { table.find(new_entry.hash, key) } else { None };
        if let Some((id, found)) = found {
            if table.is_dead(id, found, new_entry.now) {
                // No update: it leaves, and its room is the first that is taken.
                let freed = gone.take_out(&shard.counters, table, id, RemovalCause::Expired);
                reservation.take_over(freed);
            } else {
                need = Usage { entries: 0, weight: new_entry.weight.saturating_sub(found.weight) };
                replaces = Some(id);
            }
        }
        if (replaces.is_none() || need.weight > 0)
            && !self.evict_until(&put, reservation, need, shard, table, replaces, gone)
        {
            return Err(if table.is_tired() { NeedsRoom::Tired } else { NeedsRoom::NoRoom });
        }
        if let Some(id) = replaces {
            let Replace::Done(surplus) = table.replace_at(id, value, new_entry) else {
                unreachable!("it was found under this lock hold, and alive")
            };
            reservation.take_over(Usage { entries: 0, weight: surplus });
            reservation.spend(need);
            reservation.release();
            shard.counters.count_removal(RemovalCause::Replaced);
            return Ok(Stored::InPlaceOf(RemovalCause::Replaced));
        }
        if table.is_full() {
            // Four billion entries in one shard: one of them gives its slot.
            let victim = table.evict_one(Limit::Entries, new_entry.now, None, true);
            let Some((Entry { key, value, weight, .. }, reason)) = victim else {
                return Err(NeedsRoom::Tired);
            };
            reservation.take_over(Usage::one(weight));
            let cause = shard.counters.count_eviction(reason, Limit::Entries);
            gone.push((key, value, cause));
        }
        let Some((key, value)) = entry.take() else { unreachable!("it is there, see above") };
        table.insert(key, value, NewEntry { ..*new_entry });
        reservation.spend(need);
        reservation.release();
        shard.counters.insertions.count();
        Ok(Stored::Inserted)
    }

    #[inline]
    fn reserved<'r, 'b>(
        &'b self,
        reservation: &'r mut Option<Reservation<'b>>,
    ) -> &'r mut Reservation<'b> {
        reservation.get_or_insert_with(|| Reservation::new(&self.budget))
    }

    /// Under the write lock of the key's own shard: stores the entry, or says what stands in the way. For
    /// all tries but the first of a put.
    #[inline(never)]
    pub(super) fn insert_again<'b>(
        &'b self,
        put: &Put<'_, K, V>,
        reservation: &mut Option<Reservation<'b>>,
        table: &mut Table<K, V>,
        entry: &mut Option<(K, V)>,
        gone: &mut Gone<K, V>,
    ) -> Attempt {
        let mut leaver = None;
        // What is reserved is for this entry, so it does not begin with the room of another.
        if reservation.as_ref().is_none_or(Reservation::is_empty) {
            match self.insert_at_once(put, table, entry) {
                Ok(attempt) => return attempt,
                Err(too_light) => leaver = too_light,
            }
        }
        let held = self.reserved(reservation);
        let attempt = self.insert_with_room(*put, leaver, held, table, entry, gone);
        if let (Ok(_), Some(reservation)) = (attempt, reservation) {
            // What an earlier try has left in it belongs to the writer that comes next: under the lock
            // still, and before the listener is called.
            reservation.release();
        }
        attempt
    }

    /// Whether something newer came than what is to be stored. Before room is made: an entry that is
    /// not to be stored evicts nothing. An invalidation that begins after this has its sweep come to
    /// this shard after this lock hold.
    #[inline(never)]
    fn is_superseded(
        &self,
        condition: Condition<'_>,
        hash: SlotHash,
        now: Stamp,
        table: &Table<K, V>,
        key: &K,
    ) -> bool {
        let is_fresh = |(id, entry)| table.state(id, entry, now) == State::Fresh;
        self.is_past(condition)
            || condition.superseded.is_some() && table.find(hash, key).is_some_and(is_fresh)
    }

    /// Stores an entry, round after round until there is room. `first` is what a try before this came
    /// to, and whether anything left for it.
    pub(super) fn insert_retrying<'b, W: Wait>(
        &'b self,
        put: &mut Put<'_, K, V>,
        mut reservation: Option<Reservation<'b>>,
        mut first: Option<(Attempt, bool)>,
        entry: &mut Option<(K, V)>,
        notifier: &mut Notifier<'_, K, V>,
        wait: W,
    ) -> Result<Stored, ErrorKind> {
        let (shard, weight) = (put.at.shard, put.new_entry.weight);
        let contended = |rounds| ErrorKind::Contended { weight, limit: self.max_weight(), rounds };
        put.desperate = false;
        // Every round but the waiting ones frees something, most of them a whole bite.
        let most = WAITS + 64 + u32::try_from(self.len() / (BITE / 2)).unwrap_or(u32::MAX / 2);
        let (mut waits, mut rounds) = (0, 0);
        while rounds < most {
            let attempt = first.take().or_else(|| {
                self.change(shard, wait, Unlock::Plain, notifier, |table, gone| {
                    let attempt = self.insert_again(put, &mut reservation, table, entry, gone);
                    (attempt, !gone.is_empty())
                })
            });
            // Of searches that go on there are as many as their [`Looks`] allow.
            let is_tired = matches!(attempt, Some((Err(NeedsRoom::Tired), _)));
            rounds += u32::from(!is_tired);
            let freed = match attempt {
                None => {
                    return Err(ErrorKind::Timeout { operation: "insert", waited: wait.given() });
                }
                Some((Ok(stored), _)) => return Ok(stored),
                Some((Err(NeedsRoom::Superseded), _)) => return Err(ErrorKind::Superseded),
                Some((Err(NeedsRoom::NoRoom | NeedsRoom::Tired), freed)) => freed,
            };
            // The limits may have been lowered since the put began.
            self.can_ever_fit(weight)?;
            if put.options.only_free_room {
                return Err(contended(rounds));
            }
            if is_tired {
                continue;
            }
            let reservation = self.reserved(&mut reservation);
            if self.take_elsewhere(put, reservation, notifier, wait) || freed {
                continue;
            }
            if !put.desperate {
                put.desperate = true;
                continue;
            }
            if waits == WAITS || wait.is_over() {
                return Err(contended(rounds));
            }
            waits += 1;
            reservation.release();
            wait.back_off(waits);
        }
        Err(contended(most))
    }

    /// Under the write lock of `shard`: lets entries leave, at most [`BITE`] in one lock hold, until
    /// the reservation covers `need`. Says whether it does.
    #[allow(clippy::too_many_arguments)]
    fn evict_until(
        &self,
        put: &Put<'_, K, V>,
        reservation: &mut Reservation<'_>,
        need: Usage,
        shard: &Shard<K, V>,
        table: &mut Table<K, V>,
        keep: Option<SlotId>,
        gone: &mut Gone<K, V>,
    ) -> bool {
        while let Err(limit) = reservation.cover(need) {
            let may_evict =
                put.desperate || self.has_its_share(table.held(), self.budget.used(), limit);
            let victim = if put.options.only_free_room || gone.len() >= BITE {
                None
            } else {
                table.evict_one(limit, put.new_entry.now, keep, may_evict)
            };
            let Some((Entry { key, value, weight, .. }, reason)) = victim else {
                reservation.missed = need;
                return false;
            };
            // What this frees is handed to the put.
            reservation.take_over(Usage::one(weight));
            gone.push((key, value, shard.counters.count_eviction(reason, limit)));
        }
        true
    }

    /// With no lock held: takes the room that was missed from other shards, and says whether anything was freed, or will
    /// be with another try. Each
    /// shard's lock is tried once; if `desperate` it is waited for briefly, as readers that follow one
    /// another would keep a mere try out for ever.
    fn take_elsewhere<W: Wait>(
        &self,
        put: &Put<'_, K, V>,
        reservation: &mut Reservation<'_>,
        notifier: &mut Notifier<'_, K, V>,
        wait: W,
    ) -> bool {
        let (all, need) = (self.shards.len(), reservation.missed);
        let mut freed = false;
        // Starting behind the own shard spreads the load: keys are spread evenly over shards.
        for step in 1..all {
            let shard = &self.shards[(put.at.number + step) & (all - 1)];
            // A look from outside first: most shards need not be locked at all.
            if shard.counters.held().entries == 0 {
                continue;
            }
            let wait = if put.desperate { wait.brief() } else { Until::after(Duration::ZERO) };
            let taken = self.change(shard, wait, Unlock::Plain, notifier, |table, gone| {
                let covered = self.evict_until(put, reservation, need, shard, table, None, gone);
                // A search that goes on is worth another round as well.
                (covered, !gone.is_empty() || table.is_tired())
            });
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
    #[inline(never)]
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
    fn has_its_share(&self, held: Usage, used: Usage, limit: Limit) -> bool {
        let (own, all) = match limit {
            Limit::Entries => (held.entries, used.entries),
            Limit::Weight => (held.weight, used.weight),
        };
        // The number of shards is a power of two: to divide would take longer than all else here.
        let mean = all >> self.shards.len().trailing_zeros();
        self.mask == 0 || own > mean - mean / 4
    }
}

/// How long an entry of this time-to-live is kept.
pub(super) fn span_of(time_to_live: Option<Duration>, grace: Grace) -> Span {
    match time_to_live {
        None => Span::ENDLESS,
        Some(Duration::ZERO) => Span::NONE,
        Some(ttl) => Span::of(ttl.saturating_add(grace.length())),
    }
}
