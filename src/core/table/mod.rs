//! What the lock of a shard protects: slots, index, order of eviction, order of expiry.
//!
//! One thread at a time changes it; nothing here knows of locks, limits, listeners or counters.
//! Entries that leave are returned, so that the caller can drop them after unlocking.

mod entries;
pub(super) mod expiry;
mod export;
mod heap;
mod idle;
pub(super) mod index;
pub(super) mod policy;
pub(super) mod slots;

use std::sync::Arc;
use std::time::Duration;

use equivalent::Equivalent;

use crate::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::core::budget::{Limit, Usage};
use crate::core::clock::{Grace, Span, Stamp};
pub(super) use entries::Entries;
use expiry::{Expiry, Jitter, Life};
use idle::Idle;
use index::{Index, SlotHash};
use policy::{
    AnyPolicy, EvictionPolicy, HitNote, Learner, Leave, MemoryPressure, NO_EPOCH, Policy, Sizes,
};
use slots::{Chunked, SlotId};

/// An entry in its slot. In this order, so that what a hit looks at stands together.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Entry<K, V> {
    pub(super) expiry: Stamp,
    pub(super) key: K,
    pub(super) value: V,
    /// The [`policy_epoch`](Policy::policy_epoch) of the policy when it had nothing more to learn from hits of this
    /// entry. Here, so that such a hit touches no memory but the slot's.
    seen_epoch: AtomicU32,
    hash: SlotHash,
    pub(super) weight: u64,
}

#[derive(Debug)]
pub(super) enum Slot<K, V> {
    Occupied(Entry<K, V>),
    /// The next vacant one, or `NONE`.
    Vacant(SlotId),
}

impl<K, V> Slot<K, V> {
    #[inline(always)]
    fn entry(&self) -> Option<&Entry<K, V>> {
        match self {
            Self::Occupied(entry) => Some(entry),
            Self::Vacant(_) => None,
        }
    }

    /// Reads something of both ends of the slot, so that the processor has it. What is returned must
    /// be used.
    #[inline(always)]
    pub(super) fn touch(&self) -> u64 {
        self.entry().map_or(0, |entry| entry.expiry.nanos() ^ entry.weight)
    }

    /// The entry, if it is that of `key`.
    #[inline(always)]
    pub(super) fn entry_of<Q>(&self, key: &Q) -> Option<&Entry<K, V>>
    where
        Q: Equivalent<K> + ?Sized,
    {
        self.entry().filter(|entry| key.equivalent(&entry.key))
    }
}

/// What the table has to know of an entry that comes in, beside its key and value.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticket {
    pub(super) hash: SlotHash,
    pub(super) weight: u64,
    /// What [`MemoryPressure::LargestFirst`] goes by.
    pub(super) size: u64,
    /// How long it is kept: its time-to-live and the grace.
    pub(super) span: Span,
    pub(super) life: Life,
    pub(super) now: Stamp,
    pub(super) written: u32,
}

/// Why a victim was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EvictReason {
    Expired,
    Evicted,
}

/// How the tables of a cache are made.
#[derive(Debug, Clone)]
pub(super) struct TableConfig {
    pub(super) policy: EvictionPolicy,
    pub(super) pressure: MemoryPressure,
    /// How much longer than they are served to ordinary lookups entries are kept.
    pub(super) grace: Grace,
    pub(super) jitter: Jitter,
    pub(super) time_to_idle: Option<Duration>,
    /// What a policy that learns has learned, one for all shards.
    pub(super) learner: Option<Arc<Learner>>,
}

impl TableConfig {
    /// With nothing but an order of eviction.
    pub(super) fn new(policy: EvictionPolicy, pressure: MemoryPressure, shards: usize) -> Self {
        let learns = policy == EvictionPolicy::HitDensity;
        let learner = learns.then(|| Arc::new(Learner::new(shards)));
        let (grace, jitter) = (Grace::default(), Jitter::default());
        Self { policy, pressure, grace, jitter, time_to_idle: None, learner }
    }
}

/// Bytes of an entry in what stands beside its slot: index, order of eviction, expiry, with the room
/// to grow; as a counting allocator finds them in the mean.
pub(super) const BESIDE_THE_SLOT: usize = 38;

/// In place of a epoch of the policy: nothing has been settled yet.
const NEVER_SEEN: u32 = 0;

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

/// In this order, so that what a hit looks at stands together, behind the lock.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Table<K, V> {
    /// Which generation of the cache this table belongs to; see `invalidate.rs`.
    generation: u64,
    /// The [`policy_epoch`](Policy::policy_epoch) of the policy. Here, so that it is found without asking which
    /// policy it is. None where entries may be idle for too long, as then every hit is to be noted.
    policy_epoch: u32,
    /// The first vacant slot, or `NONE`.
    vacant: SlotId,
    slots: Chunked<Slot<K, V>>,
    index: Index,
    held: Usage,
    /// The latest moment seen by a write; see [`Expiry::schedule`].
    latest: Stamp,
    /// Only where entries may be idle for too long.
    idle: Option<Idle>,
    /// For each slot, when its value was written, in seconds since the cache was made; for people.
    written: Chunked<u32>,
    expiry: Expiry,
    /// Only where the largest is evicted first.
    sizes: Option<Sizes>,
    policy: AnyPolicy,
    table_config: TableConfig,
}

impl<K, V> Default for Slot<K, V> {
    fn default() -> Self {
        Self::Vacant(SlotId::NONE)
    }
}

impl<K, V> Table<K, V> {
    pub(super) fn new(table_config: &TableConfig, generation: u64) -> Self {
        Self {
            table_config: table_config.clone(),
            generation,
            slots: Chunked::default(),
            vacant: SlotId::NONE,
            index: Index::default(),
            policy: AnyPolicy::new(table_config.policy, table_config.learner.as_ref()),
            sizes: (table_config.pressure == MemoryPressure::LargestFirst).then(Sizes::default),
            expiry: Expiry::new(table_config.jitter),
            idle: table_config.time_to_idle.map(Idle::new),
            policy_epoch: NO_EPOCH,
            written: Chunked::default(),
            held: Usage::default(),
            latest: Stamp::ZERO,
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
        self.slots.len()
    }

    /// The slot and the entry of `key`.
    // Always: left to itself the compiler makes it a call, which costs a tenth of a hit.
    #[inline(always)]
    pub(super) fn find<Q>(&self, hash: SlotHash, key: &Q) -> Option<(SlotId, &Entry<K, V>)>
    where
        Q: Equivalent<K> + ?Sized,
    {
        let found = self.index.find(hash, |id| self.entry_of(id, key));
        if found.is_none() && self.index.is_draining() {
            return self.find_draining(hash, key);
        }
        found
    }

    // Not a second copy of the comparison on the way of every hit.
    #[cold]
    #[inline(never)]
    fn find_draining<Q>(&self, hash: SlotHash, key: &Q) -> Option<(SlotId, &Entry<K, V>)>
    where
        Q: Equivalent<K> + ?Sized,
    {
        self.index.find_draining(hash, |id| self.entry_of(id, key))
    }

    /// The entry in a slot, if it is that of `key`.
    #[inline(always)]
    fn entry_of<Q>(&self, id: SlotId, key: &Q) -> Option<(SlotId, &Entry<K, V>)>
    where
        Q: Equivalent<K> + ?Sized,
    {
        self.slots[id].entry_of(key).map(|entry| (id, entry))
    }

    /// As [`Index::touch`].
    #[inline(always)]
    pub(super) fn touch_index(&self, hash: SlotHash) -> u32 {
        self.index.touch(hash)
    }

    /// The slot in which `hash` probably is, without looking there.
    #[inline(always)]
    pub(super) fn likely(&self, hash: SlotHash) -> Option<(SlotId, &Slot<K, V>)> {
        let id = self.index.likely(hash)?;
        Some((id, &self.slots[id]))
    }

    /// The entry in a slot that an order named.
    #[inline(always)]
    pub(super) fn entry(&self, id: SlotId) -> Option<&Entry<K, V>> {
        self.slots[id].entry()
    }

    /// The entry at a place in `0..slots()`, for going through all of them.
    pub(super) fn entry_at(&self, place: usize) -> Option<(SlotId, &Entry<K, V>)> {
        let id = SlotId::from_bits(u32::try_from(place).ok()?);
        Some((id, self.slots.get(id)?.entry()?))
    }

    /// What an entry of this table is good for.
    // Always: as `find`.
    #[inline(always)]
    pub(super) fn state(&self, id: SlotId, entry: &Entry<K, V>, now: Stamp) -> State {
        // Nothing can expire: where time is no matter, a hit is spared all of this.
        if now == Stamp::ZERO && entry.expiry != Stamp::ZERO {
            return State::Fresh;
        }
        if self.idle.as_ref().is_some_and(|idle| idle.is_idle(id, now)) {
            State::Dead
        } else if entry.expiry.is_alive_at(now.plus(self.table_config.grace)) {
            State::Fresh
        } else if entry.expiry.is_alive_at(now) {
            State::Stale
        } else {
            State::Dead
        }
    }

    /// Whether an entry is good for nothing any more.
    #[inline(always)]
    pub(super) fn is_dead(&self, id: SlotId, entry: &Entry<K, V>, now: Stamp) -> bool {
        !entry.expiry.is_alive_at(now)
            || self.idle.as_ref().is_some_and(|idle| idle.is_idle(id, now))
    }

    /// How long an entry will be served, if it is not used; `None` if for ever.
    pub(super) fn life_left(
        &self,
        id: SlotId,
        entry: &Entry<K, V>,
        now: Stamp,
    ) -> Option<Duration> {
        let idle = self.idle.as_ref().and_then(|idle| idle.left(id, now));
        let own = entry.expiry.life_left(now.plus(self.table_config.grace));
        own.into_iter().chain(idle).min()
    }

    /// How long ago an entry stopped to be fresh.
    pub(super) fn past_life(&self, entry: &Entry<K, V>, now: Stamp) -> Duration {
        entry.expiry.over(now.plus(self.table_config.grace))
    }

    /// Notes when an entry was used, under either lock.
    #[inline]
    pub(super) fn note_use(&self, id: SlotId, now: Stamp) {
        if now != Stamp::ZERO
            && let Some(idle) = &self.idle
        {
            idle.note(id, now);
        }
    }

    /// Whether nobody has anything to learn from a hit of this entry.
    #[inline(always)]
    pub(super) fn is_settled(&self, entry: &Entry<K, V>) -> bool {
        // Relaxed, as all that hits note: only the epoch of the policy itself is compared. It cannot be that of an
        // earlier entry, as a slot is filled under the write lock.
        entry.seen_epoch.load(Relaxed) == self.policy_epoch
    }

    /// Notes a hit, under the read lock.
    // Not inline: most hits are settled, and this would stand in their way.
    #[inline(never)]
    pub(super) fn hit(&self, id: SlotId, entry: &Entry<K, V>) -> HitNote {
        if self.is_settled(entry) {
            return HitNote::Taken;
        }
        let note = self.policy.hit(id);
        if note == HitNote::Settled && self.policy_epoch != NO_EPOCH {
            entry.seen_epoch.store(self.policy_epoch, Relaxed);
        }
        note
    }

    /// When the value in a slot was written, in seconds since the cache was made.
    pub(super) fn written(&self, id: SlotId) -> u32 {
        self.written.get(id).copied().unwrap_or_default()
    }

    /// Notes a use, under the write lock.
    pub(super) fn touch(&mut self, id: SlotId) {
        if let Slot::Occupied(entry) = &mut self.slots[id] {
            let seen_epoch = entry.seen_epoch.get_mut();
            if *seen_epoch != self.policy_epoch
                && self.policy.touch(id) == HitNote::Settled
                && self.policy_epoch != NO_EPOCH
            {
                *seen_epoch = self.policy_epoch;
            }
        }
        if let Some(sizes) = &mut self.sizes {
            sizes.touch(id);
        }
    }

    /// Plays back what hits have noted; first of all under every write lock.
    pub(super) fn begin_write(&mut self) {
        if let Some(idle) = &mut self.idle {
            idle.reset_scan_budget();
        }
        let sizes = &mut self.sizes;
        self.policy.drain_hits(|id| {
            if let Some(sizes) = sizes {
                sizes.touch(id);
            }
        });
    }

    /// After whatever may have changed the epoch of the policy of the policy: an insertion, the choice of a victim.
    #[inline]
    fn refresh_epoch(&mut self) {
        self.policy_epoch = self.current_epoch();
    }

    #[inline]
    fn current_epoch(&self) -> u32 {
        if self.idle.is_some() { NO_EPOCH } else { self.policy.policy_epoch() }
    }

    /// Whether no slot is left for another entry: four billion entries in one shard.
    pub(super) fn is_full(&self) -> bool {
        self.vacant == SlotId::NONE && self.slots.is_full()
    }

    /// Adds an entry whose key is not here. Its room is reserved.
    pub(super) fn insert(&mut self, key: K, value: V, ticket: Ticket) {
        let Ticket { hash, weight, size, span, life, now, written } = ticket;
        self.latest = self.latest.max(now);
        let expiry = self.latest.expiry(span);
        let slot = Slot::Occupied(Entry {
            key,
            value,
            expiry,
            weight,
            hash,
            seen_epoch: AtomicU32::new(NEVER_SEEN),
        });
        let id = match self.vacant {
            SlotId::NONE => self.slots.push(slot),
            id => {
                if let Slot::Vacant(next) = std::mem::replace(&mut self.slots[id], slot) {
                    self.vacant = next;
                }
                id
            }
        };
        *self.written.reach(id) = written;
        self.index.insert(hash, id);
        self.policy.insert(id, hash, weight);
        self.refresh_epoch();
        if let Some(sizes) = &mut self.sizes {
            sizes.insert(id, size);
        }
        self.expiry.schedule(id, expiry, life, hash);
        if let Some(idle) = &mut self.idle {
            idle.write(id, self.latest);
        }
        self.held += Usage::one(weight);
    }

    /// Exchanges the value of an entry and `value`, and gives it the weight and the time-to-live of
    /// the ticket. That counts as a use. Returns the old weight.
    // Always: a call passes the whole ticket through memory.
    #[inline(always)]
    pub(super) fn replace(&mut self, id: SlotId, value: &mut V, ticket: Ticket) -> u64 {
        let Ticket { hash, weight, size, span, life, now, written } = ticket;
        self.latest = self.latest.max(now);
        let Slot::Occupied(entry) = &mut self.slots[id] else { return weight };
        let seen_epoch = entry.seen_epoch.get_mut();
        if *seen_epoch != self.policy_epoch
            && self.policy.touch(id) == HitNote::Settled
            && self.policy_epoch != NO_EPOCH
        {
            *seen_epoch = self.policy_epoch;
        }
        self.expiry.cancel(id, entry.expiry, hash);
        entry.expiry = self.latest.expiry(span);
        self.expiry.schedule(id, entry.expiry, life, hash);
        std::mem::swap(&mut entry.value, value);
        let old = std::mem::replace(&mut entry.weight, weight);
        if let Some(idle) = &mut self.idle {
            idle.write(id, self.latest);
        }
        if let Some(sizes) = &mut self.sizes {
            sizes.remove(id);
            sizes.insert(id, size);
        }
        if weight != old {
            self.policy.weigh(id, weight);
            self.held.weight = self.held.weight - old + weight;
        }
        self.written[id] = written;
        old
    }

    /// Gives an entry that is here another time to live. No use of it.
    pub(super) fn set_span(&mut self, id: SlotId, span: Span, now: Stamp) {
        self.latest = self.latest.max(now);
        if let Slot::Occupied(entry) = &mut self.slots[id] {
            self.expiry.cancel(id, entry.expiry, entry.hash);
            entry.expiry = self.latest.expiry(span);
            self.expiry.schedule(id, entry.expiry, Life::Own, entry.hash);
        }
    }

    /// Takes an entry out.
    pub(super) fn take(&mut self, id: SlotId, leave: Leave) -> Option<Entry<K, V>> {
        let slot = std::mem::replace(&mut self.slots[id], Slot::Vacant(self.vacant));
        let Slot::Occupied(entry) = slot else {
            self.slots[id] = slot;
            return None;
        };
        self.vacant = id;
        self.index.remove(entry.hash, id);
        self.policy.remove(id, entry.hash, leave);
        if let Some(sizes) = &mut self.sizes {
            sizes.remove(id);
        }
        self.expiry.cancel(id, entry.expiry, entry.hash);
        if let Some(idle) = &mut self.idle {
            idle.remove(id);
        }
        self.held = self.held.saturating_sub(Usage::one(entry.weight));
        Some(entry)
    }

    /// An entry that is dead at `now`, if one is found; see [`may_have_more`](Self::may_have_more).
    pub(super) fn expired(&mut self, now: Stamp) -> Option<SlotId> {
        let expiry_of = |id| self.entry(id).map_or(Stamp::NEVER, |entry| entry.expiry);
        let expired = self.expiry.expired(now, expiry_of);
        expired.or_else(|| self.idle.as_mut()?.expired(now))
    }

    /// Whether [`expired`](Self::expired) finds nothing more only because it has looked enough under
    /// one lock hold.
    pub(super) fn may_have_more(&self) -> bool {
        self.idle.as_ref().is_some_and(Idle::is_tired)
    }

    /// The live entry to give up next for `limit`, never `keep`.
    pub(super) fn victim(&mut self, limit: Limit, keep: Option<SlotId>) -> Option<SlotId> {
        let victim = match (&self.sizes, limit) {
            (Some(sizes), Limit::Weight) => sizes.largest(keep),
            (None, Limit::Weight) => self.policy.victim_for_weight(keep),
            _ => self.policy.victim(keep),
        };
        self.refresh_epoch();
        victim
    }

    /// Takes out what must leave next for `limit`: an expired entry if there is one, else, if
    /// `spare` does not forbid it, the one the policy gives up.
    pub(super) fn evict_one(
        &mut self,
        limit: Limit,
        now: Stamp,
        keep: Option<SlotId>,
        may_evict: bool,
    ) -> Option<(Entry<K, V>, EvictReason)> {
        if let Some(id) = self.expired(now).filter(|&id| Some(id) != keep) {
            return Some((self.take(id, Leave::Other)?, EvictReason::Expired));
        }
        if !may_evict {
            return None;
        }
        let id = self.victim(limit, keep)?;
        // Idle entries are not always found before it is their turn.
        let idle = self.idle.as_ref().is_some_and(|idle| idle.is_idle(id, now));
        let (leave, reason) = if idle {
            (Leave::Other, EvictReason::Expired)
        } else {
            (Leave::Evicted, EvictReason::Evicted)
        };
        Some((self.take(id, leave)?, reason))
    }

    /// Puts an empty table of `generation` in the place of this one, in constant time, and returns
    /// this one.
    pub(super) fn renew(&mut self, generation: u64) -> Self {
        let new = Self { latest: self.latest, ..Self::new(&self.table_config, generation) };
        std::mem::replace(self, new)
    }

    /// The entries, for dropping them bite by bite; all else is given back at once.
    pub(super) fn into_entries(self) -> Entries<K, V> {
        Entries::new(self.slots.into_iter())
    }

    /// Panics unless every part agrees with every other. Goes through everything.
    pub(super) fn validate(&self) {
        let ids = (0..self.slots.len() as u32).map(SlotId::from_bits);
        let occupied = || ids.clone().filter(|&id| self.entry(id).is_some());
        let entries = || ids.clone().filter_map(|id| Some((id, self.entry(id)?)));

        let mut held = Usage::default();
        for (id, entry) in entries() {
            held += Usage::one(entry.weight);
            assert!(self.index.contains(entry.hash, id), "the index does not know {id:?}");
        }
        assert_eq!(self.held, held, "the table miscounts itself");
        assert_eq!(self.index.len() as u64, held.entries, "the index knows empty slots");

        let mut vacant = std::collections::BTreeSet::new();
        let mut next = self.vacant;
        while next != SlotId::NONE {
            assert!(vacant.insert(next), "the vacant slots form a circle at {next:?}");
            next = match &self.slots[next] {
                Slot::Vacant(after) => *after,
                Slot::Occupied(_) => panic!("{next:?} is occupied and listed as vacant"),
            };
        }
        assert_eq!(vacant.len() + held.entries as usize, self.slots.len(), "a slot is lost");

        self.policy.validate(&mut occupied());
        if held.entries != 0 {
            assert_eq!(
                self.policy_epoch,
                self.current_epoch(),
                "hits go by a policy_epoch of the past"
            );
        }
        if let Some(sizes) = &self.sizes {
            sizes.validate(&mut occupied());
        }
        self.expiry.validate(entries().map(|(id, entry)| (id, entry.expiry, entry.hash)));
        if let Some(idle) = &self.idle {
            idle.validate(&mut occupied());
        }
    }
}
