//! What is left of a table that is no longer used, for dropping it bite by bite.

use super::slots;
use super::{Entry, Slot};

/// The entries of a table that is no longer used.
pub(in crate::core) struct Entries<K, V>(slots::IntoIter<Slot<K, V>>);

impl<K, V> Entries<K, V> {
    pub(super) fn new(slots: slots::IntoIter<Slot<K, V>>) -> Self {
        Self(slots)
    }

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
