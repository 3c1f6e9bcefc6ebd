//! What happens to entries that have left a shard: the listener is told, and they are dropped, with
//! no lock held.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use smallvec::SmallVec;

use super::RemovalCause;
use super::builder::Listener;

/// Entries that have left a shard under one lock hold. Usually one.
pub(super) type Gone<K, V> = SmallVec<[(K, V, RemovalCause); 1]>;

/// Tells the listener, throughout one operation.
///
/// A listener that panics must not leave the operation half done. So its panic is kept, it is not
/// called again, and [`end`](Self::end), last of all, goes on with the panic.
pub(crate) struct Farewell<'a, K, V> {
    listener: Option<&'a Listener<K, V>>,
    panic: Option<Box<dyn Any + Send>>,
}

impl<'a, K, V> Farewell<'a, K, V> {
    pub(super) fn new(listener: Option<&'a Listener<K, V>>) -> Self {
        Self { listener, panic: None }
    }

    /// Whether anyone is told.
    pub(super) fn is_heard(&self) -> bool {
        self.listener.is_some() && self.panic.is_none()
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

    /// Tells the listener of all that have left, and drops them.
    pub(super) fn say(&mut self, gone: Gone<K, V>) {
        for (key, value, cause) in &gone {
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
