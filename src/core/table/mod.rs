//! What the lock of a shard protects: the entries, the index to them, and the orders they leave in.
//!
//! One thread at a time changes it; nothing here knows of locks, limits, listeners or counters.
//! Entries that leave are returned, so that the caller can drop them after unlocking.
//!
//! Five events change a table: an entry is [inserted](Table::insert), [replaced](Table::replace),
//! [touched](Table::touch) or [taken out](Table::take), or it leaves and another one
//! [takes its slot](Table::exchange). Each part is told of each in one call.

mod config;
mod entry;
mod exchange;
pub(super) mod expiry;
mod export;
mod heap;
mod idle;
pub(super) mod index;
mod list;
mod orders;
pub(super) mod policy;
pub(super) mod slots;
pub(super) mod stamp;
mod store;
#[cfg(all(test, not(shuttle)))]
mod tests;
mod ticks;
pub(super) mod usage;

use std::mem;
use std::time::Duration;

use equivalent::Equivalent;

use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};

use idle::Idle;
use index::{Index, SlotHash};
use orders::Orders;
use policy::{AnyPolicy, HitNote, NO_EPOCH, Policy};
use slots::SlotId;
use stamp::{Span, Stamp};
use store::Store;
use ticks::{Looks, Ticks};
use usage::{Limit, Usage};

pub(super) use config::TableConfig;
pub(super) use entry::{Entry, NewEntry, Slot};
pub(super) use exchange::Replace;
pub(super) use store::Entries;

/// Why an entry made way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EvictReason {
    Expired,
    Evicted,
}

/// The slot of an entry that is to leave, and why.
pub(super) type Leaver = (SlotId, EvictReason);

/// What an entry is good for at some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// To be served.
    Fresh,
    /// Past its time-to-live, within the grace.
    Stale,
    /// Nothing.
    Dead,
}

/// Bytes of an entry in what stands beside its slot: index, order of eviction, expiry, with the room
/// to grow; as a counting allocator finds them in the mean.
pub(super) const BESIDE_THE_SLOT: usize = 38;

/// In this order, so that what a hit looks at stands together, behind the lock.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Table<K, V> {
    /// Which generation of the cache this table belongs to; see `invalidate.rs`.
    generation: u64,
    /// The [`policy_epoch`](Policy::policy_epoch) of the policy, found here without asking which
    /// policy it is. [`NO_EPOCH`] where entries may be idle for too long, as then every hit is to be
    /// noted. Of a policy that keeps an order of use the newest tick, which hits change under the read
    /// lock; see [`ticks`].
    policy_epoch: AtomicU64,
    store: Store<K, V>,
    index: Index,
    held: Usage,
    /// The latest moment seen by a write: where the clock goes back, this one stands still.
    latest: Stamp,
    /// What is left of the search for an entry to evict under this lock hold.
    looks: Looks,
    ticks: Ticks,
    /// Only where each entry needs one of them, or one entry has.
    orders: Option<Box<Orders>>,
    policy: AnyPolicy,
    table_config: TableConfig,
}

impl<K, V> Table<K, V> {
    pub(super) fn new(table_config: &TableConfig, generation: u64) -> Self {
        let policy = AnyPolicy::new(table_config.policy, table_config.learner.as_ref());
        let notes_every_hit = table_config.time_to_idle.is_some();
        let ticks = Ticks::new(policy.keeps_order(), notes_every_hit);
        let epoch = if ticks.are_kept() { Ticks::FIRST } else { NO_EPOCH };
        Self {
            table_config: table_config.clone(),
            generation,
            policy_epoch: AtomicU64::new(epoch),
            store: Store::default(),
            index: Index::default(),
            held: Usage::default(),
            latest: Stamp::ZERO,
            orders: Orders::are_needed_by_all(table_config)
                .then(|| Box::new(Orders::new(table_config))),
            looks: Looks::default(),
            ticks,
            policy,
        }
    }

    /// Which generation of the cache this table belongs to.
    #[inline]
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// How many entries are here and what they weigh.
    pub(super) fn held(&self) -> Usage {
        self.held
    }

    /// How many slots there are, occupied or not: the range of [`entry_at`](Self::entry_at).
    pub(super) fn slots(&self) -> usize {
        self.store.len()
    }

    /// Whether no slot is left for another entry: four billion entries in one shard.
    pub(super) fn is_full(&self) -> bool {
        self.store.is_full()
    }

    /// The slot and the entry of `key`.
    // Always, as all that a lookup consists of: in a larger caller the compiler makes a call of it, which
    // costs a get through the door 29 instructions of 308.
    #[inline(always)]
    pub(super) fn find<Q>(&self, hash: SlotHash, key: &Q) -> Option<(SlotId, &Entry<K, V>)>
    where
        Q: Equivalent<K> + ?Sized,
    {
        let home = self.index.home(hash);
        if let Some(id) = home.and_then(|bucket| bucket.first(hash)) {
            if let Some(entry) = self.store.slot(id).entry_of(key) {
                return Some((id, entry));
            }
        } else if !self.index.may_be_elsewhere(home) {
            return None;
        }
        self.find_otherwise(hash, key)
    }

    /// As [`find`](Self::find), where the first look is not enough.
    // From the beginning, and one call for all that is rare: nothing is kept at hand for it.
    #[cold]
    #[inline(never)]
    fn find_otherwise<Q>(&self, hash: SlotHash, key: &Q) -> Option<(SlotId, &Entry<K, V>)>
    where
        Q: Equivalent<K> + ?Sized,
    {
        self.index.find(hash, |id| self.store.slot(id).entry_of(key).map(|entry| (id, entry)))
    }

    /// As [`Index::touch`].
    #[inline]
    pub(super) fn touch_index(&self, hash: SlotHash) -> u32 {
        self.index.touch(hash)
    }

    /// The slot in which `hash` probably is, without looking there.
    #[inline]
    pub(super) fn likely(&self, hash: SlotHash) -> Option<(SlotId, &Slot<K, V>)> {
        let id = self.index.likely(hash)?;
        Some((id, self.store.slot(id)))
    }

    /// The entry in a slot that an order named.
    #[inline]
    pub(super) fn entry(&self, id: SlotId) -> Option<&Entry<K, V>> {
        self.store.entry(id)
    }

    /// The entry at a place in `0..slots()`, for going through all of them.
    pub(super) fn entry_at(&self, place: usize) -> Option<(SlotId, &Entry<K, V>)> {
        self.store.entry_at(place)
    }

    /// What an entry of this table is good for.
    #[inline]
    pub(super) fn state(&self, id: SlotId, entry: &Entry<K, V>, now: Stamp) -> State {
        // Nothing can expire: where time is no matter, a hit is spared all of this.
        if now == Stamp::ZERO && entry.expiry != Stamp::ZERO {
            return State::Fresh;
        }
        if self.is_dead(id, entry, now) {
            State::Dead
        } else if entry.expiry.is_alive_at(now.plus(self.table_config.grace)) {
            State::Fresh
        } else {
            State::Stale
        }
    }

    /// Whether an entry is good for nothing any more.
    #[inline]
    pub(super) fn is_dead(&self, id: SlotId, entry: &Entry<K, V>, now: Stamp) -> bool {
        !entry.expiry.is_alive_at(now) || self.is_idle(id, now)
    }

    #[inline]
    fn is_idle(&self, id: SlotId, now: Stamp) -> bool {
        self.idle().is_some_and(|idle| idle.is_idle(id, now))
    }

    /// The order by last use, where entries may be idle for too long.
    #[inline]
    fn idle(&self) -> Option<&Idle> {
        self.orders.as_ref()?.idle.as_ref()
    }

    /// How long an entry will be served, if it is not used; `None` if for ever.
    pub(super) fn life_left(
        &self,
        id: SlotId,
        entry: &Entry<K, V>,
        now: Stamp,
    ) -> Option<Duration> {
        let idle = self.idle().and_then(|idle| idle.left(id, now));
        self.time_to_live_left(entry, now).into_iter().chain(idle).min()
    }

    /// How long ago an entry stopped to be fresh.
    pub(super) fn past_life(&self, entry: &Entry<K, V>, now: Stamp) -> Duration {
        entry.expiry.over(now.plus(self.table_config.grace))
    }

    /// Notes when an entry was used, under either lock.
    #[inline]
    pub(super) fn note_use(&self, id: SlotId, now: Stamp) {
        if now != Stamp::ZERO
            && let Some(idle) = self.idle()
        {
            idle.note(id, now);
        }
    }

    /// Whether the policy has nothing to learn from a hit of this entry.
    #[inline]
    pub(super) fn is_settled(&self, entry: &Entry<K, V>) -> bool {
        // Relaxed, as all that hits note: it is compared with the epoch of the policy only. It cannot
        // be that of an earlier entry, as a slot is filled under the write lock.
        entry.seen.load(Relaxed) == self.policy_epoch.load(Relaxed)
    }

    /// Whether entries may be idle, so that every hit is to be noted with its moment.
    #[inline]
    pub(super) fn notes_moments(&self) -> bool {
        self.ticks.notes_every_hit()
    }

    /// Notes a hit of an entry that is not [settled](Self::is_settled), under the read lock; beside
    /// [`note_use`](Self::note_use), where moments are noted.
    // Not inline: most hits are settled, and this would stand in their way.
    #[inline(never)]
    pub(super) fn hit(&self, id: SlotId, entry: &Entry<K, V>) {
        match self.policy.hit(id) {
            HitNote::Taken => {}
            HitNote::Settled => {
                let epoch = self.policy_epoch.load(Relaxed);
                if epoch != NO_EPOCH {
                    entry.seen.store(epoch, Relaxed);
                }
            }
            HitNote::Ordered => self.ticks.hit(&self.policy_epoch, &entry.seen),
        }
    }

    /// First of all under every write lock.
    #[inline(always)]
    pub(super) fn begin_write(&mut self) {
        self.looks.reset();
        if let Some(orders) = self.orders.as_deref_mut() {
            orders.begin_write();
        }
    }

    /// Notes a use, under the write lock.
    pub(super) fn touch(&mut self, id: SlotId) {
        if let Some(entry) = self.store.entry_mut(id) {
            touch_policy(&mut self.policy, self.ticks, &mut self.policy_epoch, id, entry);
        }
    }

    /// Adds an entry whose key is not here. Its room is reserved.
    pub(super) fn insert(&mut self, key: K, value: V, new_entry: NewEntry) {
        let expiry = self.stamp(new_entry.span, new_entry.now);
        let NewEntry { hash, weight, written, .. } = new_entry;
        let seen = AtomicU64::new(self.ticks.insert(&mut self.policy_epoch));
        let id = self.store.insert(Entry { expiry, key, value, seen, hash, written, weight });
        self.index.insert(hash, id);
        self.policy.insert(id, hash, weight);
        self.refresh_epoch();
        self.held += Usage::one(weight);
        let now = self.latest;
        if let Some(orders) = self.orders_for(expiry) {
            orders.inserted(id, expiry, now, new_entry);
        }
    }

    /// Gives an entry that is here another time to live. No use of it.
    pub(super) fn set_span(&mut self, id: SlotId, span: Span, now: Stamp) {
        let expiry = self.stamp(span, now);
        if let Some(entry) = self.store.entry_mut(id) {
            let (old, hash) = (mem::replace(&mut entry.expiry, expiry), entry.hash);
            if let Some(orders) = self.orders_for(expiry) {
                orders.rescheduled(id, old, expiry, hash);
            }
        }
    }

    /// Takes an entry out that leaves for another reason than that the policy chose it.
    pub(super) fn take(&mut self, id: SlotId) -> Option<Entry<K, V>> {
        let entry = self.take_from_all_but_policy(id)?;
        self.policy.remove(id);
        Some(entry)
    }

    #[inline]
    fn take_from_all_but_policy(&mut self, id: SlotId) -> Option<Entry<K, V>> {
        let entry = self.store.take(id)?;
        self.index.remove(entry.hash, id);
        if let Some(orders) = &mut self.orders {
            orders.removed(id, entry.expiry, entry.hash);
        }
        self.held = self.held.saturating_sub(Usage::one(entry.weight));
        Some(entry)
    }

    /// When an entry written at `now` expires.
    #[inline]
    fn stamp(&mut self, span: Span, now: Stamp) -> Stamp {
        advance(&mut self.latest, now);
        self.latest.expiry(span)
    }

    /// The orders, if any of them has to know of an entry with this `expiry`.
    #[inline]
    fn orders_for(&mut self, expiry: Stamp) -> Option<&mut Orders> {
        if expiry != Stamp::NEVER && self.orders.is_none() {
            self.make_orders();
        }
        self.orders.as_deref_mut()
    }

    #[cold]
    #[inline(never)]
    fn make_orders(&mut self) {
        self.orders = Some(Box::new(Orders::new(&self.table_config)));
    }

    /// After whatever may have changed the epoch of the policy: an insertion, the choice of a victim.
    #[inline]
    fn refresh_epoch(&mut self) {
        if self.table_config.time_to_idle.is_none() {
            let epoch = self.policy_epoch.get_mut();
            *epoch = self.policy.policy_epoch(*epoch);
        }
    }

    /// An entry that is dead at `now`, if one is found; see [`may_have_more`](Self::may_have_more).
    pub(super) fn expired(&mut self, now: Stamp) -> Option<SlotId> {
        let store = &self.store;
        let expiry_of = |id| store.entry(id).map_or(Stamp::NEVER, |entry| entry.expiry);
        self.orders.as_mut()?.expired(now, expiry_of)
    }

    /// Whether [`expired`](Self::expired) finds nothing more only because it has looked enough under
    /// one lock hold.
    pub(super) fn may_have_more(&self) -> bool {
        self.idle().is_some_and(Idle::is_tired)
    }

    /// Whether [`evict_one`](Self::evict_one) has found nothing only because it has looked enough under
    /// one lock hold.
    pub(super) fn is_tired(&self) -> bool {
        self.looks.are_used_up()
    }

    /// The live entry to give up next for `limit`, never `keep`.
    fn victim(&mut self, limit: Limit, keep: Option<SlotId>) -> Option<SlotId> {
        let sizes = self.orders.as_mut().and_then(|orders| orders.sizes.as_mut());
        let victim = {
            let (last_use, looks) = (Ticks::of(&self.store), &mut self.looks);
            match (limit, sizes) {
                (Limit::Entries, _) => self.policy.victim(keep, last_use, looks),
                (Limit::Weight, None) => self.policy.victim_for_weight(keep, last_use, looks),
                (Limit::Weight, Some(sizes)) => sizes.largest(keep, last_use, looks),
            }
        };
        if victim.is_none() {
            // Else when it leaves.
            self.refresh_epoch();
        }
        victim
    }

    /// What must leave next for `limit`, never `keep`, and why: an expired entry if there is one, else,
    /// if it `may_evict`, the one that the policy gives up. It is to be [evicted](Self::evict) or
    /// [exchanged](Self::exchange) under this lock hold. Where it finds none, see
    /// [`is_tired`](Self::is_tired).
    pub(super) fn next_to_leave(
        &mut self,
        limit: Limit,
        now: Stamp,
        keep: Option<SlotId>,
        may_evict: bool,
    ) -> Option<Leaver> {
        if let Some(id) = self.expired(now).filter(|&id| Some(id) != keep) {
            return Some((id, EvictReason::Expired));
        }
        if !may_evict {
            return None;
        }
        let id = self.victim(limit, keep)?;
        // An idle entry is not always found before its turn comes.
        let is_idle = self.is_idle(id, now);
        Some((id, if is_idle { EvictReason::Expired } else { EvictReason::Evicted }))
    }

    /// Takes out what is to [leave next](Self::next_to_leave).
    pub(super) fn evict(&mut self, (id, reason): Leaver) -> Option<Entry<K, V>> {
        let entry = self.take_from_all_but_policy(id)?;
        match reason {
            EvictReason::Evicted => self.policy.evict(id, entry.hash),
            EvictReason::Expired => self.policy.remove(id),
        }
        self.refresh_epoch();
        Some(entry)
    }

    /// [`next_to_leave`](Self::next_to_leave), taken out.
    pub(super) fn evict_one(
        &mut self,
        limit: Limit,
        now: Stamp,
        keep: Option<SlotId>,
        may_evict: bool,
    ) -> Option<(Entry<K, V>, EvictReason)> {
        let (id, reason) = self.next_to_leave(limit, now, keep, may_evict)?;
        Some((self.evict((id, reason))?, reason))
    }

    /// Puts an empty table of `generation` in the place of this one, in constant time, and returns
    /// this one.
    pub(super) fn renew(&mut self, generation: u64) -> Self {
        let new = Self { latest: self.latest, ..Self::new(&self.table_config, generation) };
        mem::replace(self, new)
    }

    /// The entries, for dropping them bite by bite; all else is given back at once.
    pub(super) fn into_entries(self) -> Entries<K, V> {
        self.store.into_entries()
    }

    /// Panics unless every part agrees with every other. Goes through everything.
    pub(super) fn validate(&self) {
        self.store.validate();
        let ids = || self.store.iter().map(|(id, _)| id);

        let mut held = Usage::default();
        for (id, entry) in self.store.iter() {
            held += Usage::one(entry.weight);
            assert!(self.index.contains(entry.hash, id), "the index does not know {id:?}");
        }
        assert_eq!(self.held, held, "the table miscounts itself");
        assert_eq!(self.index.len() as u64, held.entries, "the index knows empty slots");

        self.policy.validate(&mut ids());
        let (epoch, notes_every_hit) = (self.newest(), self.table_config.time_to_idle.is_some());
        let present = if notes_every_hit { NO_EPOCH } else { self.policy.policy_epoch(epoch) };
        if held.entries != 0 && !self.ticks.are_kept() {
            assert_eq!(epoch, present, "hits go by an epoch of the past");
        }
        match &self.orders {
            Some(orders) => {
                let all = self.store.iter().map(|(id, entry)| (id, entry.expiry, entry.hash));
                orders.validate(all);
            }
            None => {
                let expires = |(_, entry): (_, &Entry<K, V>)| entry.expiry != Stamp::NEVER;
                assert!(!Orders::are_needed_by_all(&self.table_config), "an order is missing");
                assert!(!self.store.iter().any(expires), "the order of expiry is missing");
            }
        }
    }
}

/// Notes that something is written at `now`; `latest` is the [latest moment](Table::latest) of a write.
#[inline]
fn advance(latest: &mut Stamp, now: Stamp) {
    // Mostly it stands still, as the clock is coarse where nothing expires.
    if now > *latest {
        *latest = now;
    }
}

/// Tells the policy of a use under the write lock, unless it has nothing to learn from it.
#[inline]
fn touch_policy<K, V>(
    policy: &mut AnyPolicy,
    ticks: Ticks,
    policy_epoch: &mut AtomicU64,
    id: SlotId,
    entry: &mut Entry<K, V>,
) {
    let seen = entry.seen.get_mut();
    let epoch = *policy_epoch.get_mut();
    if *seen == epoch {
        return;
    }
    match policy.touch(id) {
        HitNote::Taken => {}
        HitNote::Settled if epoch == NO_EPOCH => {}
        HitNote::Settled => *seen = epoch,
        HitNote::Ordered => *seen = ticks.touch(policy_epoch),
    }
}
