//! What happens to entries that have left a shard: the listener is told, and they are dropped, with
//! no lock held.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use smallvec::SmallVec;

use super::RemovalCause;
use super::builder::Listener;
use super::put::BITE;
use super::table::Table;

/// What has left a shard under one lock hold. Usually one entry.
pub(super) struct Gone<K, V> {
    entries: SmallVec<[(K, V, RemovalCause); 1]>,
    /// A whole table that an invalidation had outdated.
    outdated: Option<Table<K, V>>,
}

impl<K, V> Gone<K, V> {
    /// Adds one entry.
    pub(super) fn push(&mut self, entry: (K, V, RemovalCause)) {
        self.entries.push(entry);
    }

    /// Adds the table that was found outdated when the lock was had.
    pub(super) fn push_outdated(&mut self, table: Table<K, V>) {
        self.outdated = Some(table);
    }

    /// How many have left one by one.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// How many stood in the outdated table.
    pub(super) fn outdated(&self) -> usize {
        self.outdated.as_ref().map_or(0, |table| table.held().entries as usize)
    }

    /// Whether nothing has left.
    pub(super) fn is_empty(&self) -> bool {
        self.len() + self.outdated() == 0
    }
}

/// What leaves under a lock hold, told and dropped when this is: after the hold, also when a panic
/// of the caller's code ended it.
pub(super) struct Leaving<'f, 'a, K, V> {
    pub(super) farewell: &'f mut Farewell<'a, K, V>,
    pub(super) gone: Gone<K, V>,
}

impl<'f, 'a, K, V> Leaving<'f, 'a, K, V> {
    /// Nothing yet.
    pub(super) fn new(farewell: &'f mut Farewell<'a, K, V>) -> Self {
        let entries = std::mem::take(&mut farewell.room);
        Self { farewell, gone: Gone { entries, outdated: None } }
    }
}

impl<K, V> Drop for Leaving<'_, '_, K, V> {
    fn drop(&mut self) {
        self.farewell.say(&self.gone);
        let mut room = std::mem::take(&mut self.gone.entries);
        room.clear();
        self.farewell.room = room;
    }
}

/// Tells the listener, throughout one operation.
///
/// A listener that panics must not leave the operation half done. So its panic is kept, it is not
/// called again, and [`end`](Self::end), last of all, goes on with the panic.
pub(crate) struct Farewell<'a, K, V> {
    listener: Option<&'a Listener<K, V>>,
    panic: Option<Box<dyn Any + Send>>,
    /// Empty, and used for each lock hold anew.
    room: SmallVec<[(K, V, RemovalCause); 1]>,
}

impl<'a, K, V> Farewell<'a, K, V> {
    pub(super) fn new(listener: Option<&'a Listener<K, V>>) -> Self {
        Self { listener, panic: None, room: SmallVec::new() }
    }

    /// The same for an operation that takes entries out by the bite: makes room for one now, as the
    /// allocator takes its time at times, and under a lock it would be that of others too.
    pub(super) fn in_bites(mut self) -> Self {
        self.room.reserve(BITE);
        self
    }

    /// Tells the listener of one that has left.
    pub(super) fn tell(&mut self, key: &K, value: &V, cause: RemovalCause) {
        if let Some(listener) = self.listener
            && self.panic.is_none()
        {
            // Unwind safe: nothing of the cache is being changed while the listener runs.
            self.panic = catch_unwind(AssertUnwindSafe(|| listener(key, value, cause))).err();
        }
    }

    /// Tells the listener of all that have left.
    fn say(&mut self, gone: &Gone<K, V>) {
        if self.listener.is_none() {
            return;
        }
        for entry in gone.outdated.iter().flat_map(Table::entries) {
            self.tell(&entry.key, &entry.value, RemovalCause::Removed);
        }
        for (key, value, cause) in &gone.entries {
            self.tell(key, value, *cause);
        }
    }

    /// Goes on with the panic of the listener, if there was one.
    pub(crate) fn end(self) {
        if let Some(panic) = self.panic {
            resume_unwind(panic);
        }
    }
}
