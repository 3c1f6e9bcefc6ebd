//! One entry in the place of another: the new value of a key, and a new key where an old one leaves.

use std::mem;

use super::index::{Index, SlotHash};
use super::policy::Policy;
use super::slots::SlotId;
use super::stamp::{Span, Stamp};
use super::store::Store;
use super::ticks::Ticks;
use super::usage::Limit;
use super::{Entry, EvictReason, Leaver, NewEntry, Table, advance, touch_policy};

/// What became of a [`Table::replace`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Replace {
    /// And the old one weighed so much more, if it did.
    Done(u64),
    /// The key is not here.
    Absent,
    /// Nothing has changed: its entry is dead, or the new one does not fit.
    Refused,
}

/// The entry whose value is to be replaced.
enum Sought<'k, K> {
    Key(&'k K),
    Slot(SlotId),
}

impl<K, V> Table<K, V> {
    /// Exchanges the value of the entry of `key` and `value`, and gives it the weight and the
    /// time-to-live of the new entry, unless it is dead, or does not `fit`, which is asked with its old
    /// weight where the two are different. That counts as a use.
    // Always: a call passes the whole new entry through memory.
    #[inline(always)]
    pub(in super::super) fn replace(
        &mut self,
        key: &K,
        value: &mut V,
        new_entry: &NewEntry,
        fits: impl FnOnce(u64) -> bool,
    ) -> Replace
    where
        K: Eq,
    {
        self.replace_sought(Sought::Key(key), value, new_entry, fits)
    }

    /// [`replace`](Self::replace) of the entry in a slot, whatever its key is.
    #[inline(never)]
    pub(in super::super) fn replace_at(
        &mut self,
        id: SlotId,
        value: &mut V,
        new_entry: &NewEntry,
    ) -> Replace
    where
        K: Eq,
    {
        self.replace_sought(Sought::Slot(id), value, new_entry, |_| true)
    }

    // Always: as `replace`.
    #[inline(always)]
    fn replace_sought(
        &mut self,
        sought: Sought<'_, K>,
        value: &mut V,
        new_entry: &NewEntry,
        fits: impl FnOnce(u64) -> bool,
    ) -> Replace
    where
        K: Eq,
    {
        let NewEntry { hash, weight, span, now, written, .. } = *new_entry;
        let is_timeless = self.is_timeless(span);
        let found = match sought {
            Sought::Key(key) => find_mut(&mut self.index, &mut self.store, hash, key),
            Sought::Slot(id) => self.store.entry_mut(id).map(|entry| (id, entry)),
        };
        let Some((id, entry)) = found else { return Replace::Absent };
        let idle = self.orders.as_ref().and_then(|orders| orders.idle.as_ref());
        let old = entry.weight;
        if !is_timeless
            && (!entry.expiry.is_alive_at(now) || idle.is_some_and(|idle| idle.is_idle(id, now)))
            || weight != old && !fits(old)
        {
            return Replace::Refused;
        }
        let mut surplus = 0;
        if weight != old {
            entry.weight = weight;
            self.policy.weigh(id, weight);
            self.held.weight = self.held.weight - old + weight;
            surplus = old.saturating_sub(weight);
        }
        touch_policy(&mut self.policy, self.ticks, &mut self.policy_epoch, id, entry);
        mem::swap(&mut entry.value, value);
        entry.written = written;
        advance(&mut self.latest, now);
        if !is_timeless {
            let expiry = self.latest.expiry(span);
            let old_expiry = mem::replace(&mut entry.expiry, expiry);
            self.tell_exchanged(id, (old_expiry, hash), expiry, *new_entry);
        }
        Replace::Done(surplus)
    }

    /// Whether no entry here expires, and one kept for this `span` does not either: then time is no
    /// matter for it.
    #[inline]
    fn is_timeless(&self, span: Span) -> bool {
        self.orders.is_none() && span == Span::ENDLESS
    }

    /// Puts a new entry, whose key is not here, into the slot of the one that is to
    /// [leave next](Self::next_to_leave), unless it does not `fit`, which is asked with the weight of
    /// that one where the two are different. In its place `key` and `value` are afterwards those
    /// of the one that left. Returns how much more that one weighed, if it did.
    ///
    /// In a cache that is full this is what an insert consists of. Taken out and put in one after
    /// the other, each of the two entries would be moved three times and each part told twice.
    // Always: a call passes the whole new entry through memory.
    #[inline(always)]
    pub(in super::super) fn exchange(
        &mut self,
        (id, reason): Leaver,
        key: &mut K,
        value: &mut V,
        new_entry: &NewEntry,
        fits: impl FnOnce(u64) -> bool,
    ) -> Option<u64> {
        let NewEntry { hash, weight, span, now, written, .. } = *new_entry;
        let is_timeless = self.is_timeless(span);
        let Some(entry) = self.store.entry_mut(id) else {
            unreachable!("{id:?} was named under this lock hold");
        };
        let (old, mut surplus) = (entry.weight, 0);
        if weight != old {
            if !fits(old) {
                return None;
            }
            entry.weight = weight;
            self.held.weight = self.held.weight - old + weight;
            surplus = old.saturating_sub(weight);
        }
        // By word; moved out of an option and back, the bytes beside a flag in a value are, too.
        mem::swap(&mut entry.key, key);
        mem::swap(&mut entry.value, value);
        let mut expiry = Stamp::NEVER;
        let mut old_expiry = expiry;
        advance(&mut self.latest, now);
        if !is_timeless {
            expiry = self.latest.expiry(span);
            old_expiry = mem::replace(&mut entry.expiry, expiry);
        }
        let old_hash = mem::replace(&mut entry.hash, hash);
        *entry.seen.get_mut() = self.ticks.insert(&mut self.policy_epoch);
        entry.written = written;
        self.index.exchange(old_hash, hash, id);
        let epoch = self.policy_epoch.get_mut();
        let new_epoch = match reason {
            EvictReason::Evicted => {
                self.policy.exchange_in_epoch(id, old_hash, hash, weight, *epoch)
            }
            EvictReason::Expired => self.policy.renew_in_epoch(id, hash, weight, *epoch),
        };
        if self.table_config.time_to_idle.is_none() {
            *epoch = new_epoch;
        }
        if !is_timeless {
            self.tell_exchanged(id, (old_expiry, old_hash), expiry, *new_entry);
        }
        Some(surplus)
    }

    // Not inline: it has no part in a put where nothing expires.
    #[inline(never)]
    fn tell_exchanged(
        &mut self,
        id: SlotId,
        old: (Stamp, SlotHash),
        expiry: Stamp,
        new_entry: NewEntry,
    ) {
        let now = self.latest;
        if let Some(orders) = self.orders_for(expiry) {
            orders.exchanged(id, old, expiry, now, new_entry);
        }
    }

    /// [`next_to_leave`](Self::next_to_leave) for a newcomer.
    // Always: where there are no orders but the policy's, this is all.
    #[inline(always)]
    pub(in super::super) fn leaver_for_another(
        &mut self,
        limit: Limit,
        now: Stamp,
        may_evict: bool,
    ) -> Option<Leaver> {
        if self.orders.is_some() || !may_evict {
            return self.next_to_leave(limit, now, None, may_evict);
        }
        let (last_use, looks) = (Ticks::of(&self.store), &mut self.looks);
        let victim = match limit {
            Limit::Entries => self.policy.victim(None, last_use, looks),
            Limit::Weight => self.policy.victim_for_weight(None, last_use, looks),
        };
        victim.map(|id| (id, EvictReason::Evicted))
    }
}

/// The slot and the entry of `key`.
// Always: as `Table::find`.
#[inline(always)]
fn find_mut<'s, K: Eq, V>(
    index: &mut Index,
    store: &'s mut Store<K, V>,
    hash: SlotHash,
    key: &K,
) -> Option<(SlotId, &'s mut Entry<K, V>)> {
    let home = index.home(hash);
    if let Some(id) = home.and_then(|bucket| bucket.first(hash)) {
        if store.slot(id).entry_of(key).is_some() {
            // The entry is known from the look at its key. By its number alone it would be looked up
            // again.
            return store.entry_mut(id).map(|entry| (id, entry));
        }
    } else if !index.may_be_elsewhere(home) {
        return None;
    }
    find_further(index, store, hash, key)
}

/// As [`find_mut`], where the first look is not enough. While the index is in two tables that is
/// often so, and it would be for ever where nothing but replacements comes: so each moves some of it.
#[cold]
#[inline(never)]
fn find_further<'s, K: Eq, V>(
    index: &mut Index,
    store: &'s mut Store<K, V>,
    hash: SlotHash,
    key: &K,
) -> Option<(SlotId, &'s mut Entry<K, V>)> {
    let look = |id| store.slot(id).entry_of(key).map(|_| id);
    let id = index.find(hash, look);
    index.go_on();
    let id = id?;
    store.entry_mut(id).map(|entry| (id, entry))
}
