//! Where the entries of a shard stand: slots, and which of them are vacant.

use super::entry::{Entry, Slot};
use super::slots::{self, SlotId, Slots};

/// In this order, so that what a hit looks at stands together with what comes before.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Store<K, V> {
    slots: Slots<Slot<K, V>>,
    /// The first vacant slot, or `NONE`.
    vacant: SlotId,
}

impl<K, V> Default for Store<K, V> {
    fn default() -> Self {
        Self { slots: Slots::default(), vacant: SlotId::NONE }
    }
}

impl<K, V> Store<K, V> {
    /// How many slots there are, occupied or not.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether no slot is left for another entry: four billion entries in one shard.
    pub(super) fn is_full(&self) -> bool {
        self.vacant == SlotId::NONE && self.slots.is_full()
    }

    #[inline]
    pub(super) fn slot(&self, id: SlotId) -> &Slot<K, V> {
        &self.slots[id]
    }

    /// The entry in a slot that an order named.
    #[inline]
    pub(super) fn entry(&self, id: SlotId) -> Option<&Entry<K, V>> {
        self.slots[id].entry()
    }

    // Always: as a call it costs a replacement 20 instructions.
    #[inline(always)]
    pub(super) fn entry_mut(&mut self, id: SlotId) -> Option<&mut Entry<K, V>> {
        match self.slots.at_mut(id) {
            Slot::Occupied(entry) => Some(entry),
            Slot::Vacant(_) => None,
        }
    }

    /// The entry at a place in `0..len()`, for going through all of them.
    pub(super) fn entry_at(&self, place: usize) -> Option<(SlotId, &Entry<K, V>)> {
        let id = SlotId::from_bits(u32::try_from(place).ok()?);
        Some((id, self.slots.get(id)?.entry()?))
    }

    /// Puts an entry into the slot that was left last, or else into a new one. The caller has asked
    /// [`is_full`](Self::is_full).
    #[inline]
    pub(super) fn insert(&mut self, entry: Entry<K, V>) -> SlotId {
        let Some(id) = self.vacant.some() else {
            return self.slots.push(Slot::Occupied(entry));
        };
        let slot = &mut self.slots[id];
        let Slot::Vacant(next) = slot else { unreachable!("{id:?} is listed as vacant") };
        self.vacant = *next;
        *slot = Slot::Occupied(entry);
        id
    }

    /// Takes an entry out of its slot.
    #[inline]
    pub(super) fn take(&mut self, id: SlotId) -> Option<Entry<K, V>> {
        match std::mem::replace(&mut self.slots[id], Slot::Vacant(self.vacant)) {
            Slot::Occupied(entry) => {
                self.vacant = id;
                Some(entry)
            }
            vacant @ Slot::Vacant(_) => {
                self.slots[id] = vacant;
                None
            }
        }
    }

    /// The entries, for dropping them bite by bite.
    pub(super) fn into_entries(self) -> Entries<K, V> {
        Entries(self.slots.into_iter())
    }

    /// All entries.
    pub(super) fn iter(&self) -> impl Iterator<Item = (SlotId, &Entry<K, V>)> + Clone {
        (0..self.len()).filter_map(|place| self.entry_at(place))
    }

    /// Panics unless every slot is either occupied or listed as vacant.
    pub(super) fn validate(&self) {
        let mut vacant = std::collections::BTreeSet::new();
        let mut next = self.vacant;
        while next != SlotId::NONE {
            assert!(vacant.insert(next), "the vacant slots form a circle at {next:?}");
            next = match &self.slots[next] {
                Slot::Vacant(after) => *after,
                Slot::Occupied(_) => panic!("{next:?} is occupied and listed as vacant"),
            };
        }
        assert_eq!(vacant.len() + self.iter().count(), self.slots.len(), "a slot is lost");
    }
}

/// The entries of a table that is no longer used, for dropping them bite by bite.
pub(in crate::core) struct Entries<K, V>(slots::IntoIter<Slot<K, V>>);

impl<K, V> Entries<K, V> {
    /// Passes the entries of the next `slots` slots to `take`; says whether there may be more.
    pub(in crate::core) fn take_bite(
        &mut self,
        slots: usize,
        mut take: impl FnMut(Entry<K, V>),
    ) -> bool {
        for _ in 0..slots {
            match self.0.next() {
                Some(Slot::Occupied(entry)) => take(entry),
                Some(Slot::Vacant(_)) => {}
                None => return false,
            }
        }
        true
    }
}
