//! A budget of bytes for bodies and answers that are in memory at a time.
//!
//! Nothing may take more than half of what is free, so that a few wide answers that nobody reads
//! leave room for many narrow ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that may be held at a time, by all requests together.
///
/// Orderings: relaxed. The count publishes nothing; a compare-exchange loop alone keeps it within
/// the limit.
#[derive(Debug)]
pub(crate) struct ByteBudget {
    limit: usize,
    held: AtomicUsize,
}

/// Bytes that are held until this is dropped.
#[derive(Debug)]
pub(crate) struct Reserved {
    budget: Arc<ByteBudget>,
    bytes: usize,
}

impl ByteBudget {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, held: AtomicUsize::new(0) })
    }

    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// `bytes`, if twice as many are free.
    pub(crate) fn try_reserve(self: &Arc<Self>, bytes: usize) -> Option<Reserved> {
        self.try_add(bytes).then(|| Reserved { budget: Arc::clone(self), bytes })
    }

    fn try_add(&self, bytes: usize) -> bool {
        let add = |held: usize| {
            let free = self.limit.saturating_sub(held);
            (bytes <= free / 2).then(|| held + bytes)
        };
        self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
    }
}

impl Reserved {
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes it `bytes` in all, and says whether there was room for that.
    pub(crate) fn try_resize(&mut self, bytes: usize) -> bool {
        if bytes <= self.bytes {
            self.budget.held.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        } else if !self.budget.try_add(bytes - self.bytes) {
            return false;
        }
        self.bytes = bytes;
        true
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_one_finds_room_where_a_large_one_does_not_and_everything_comes_back() {
        let budget = ByteBudget::new(100);
        let mut one = budget.try_reserve(50).unwrap();
        assert!(budget.try_reserve(26).is_none());
        assert!(budget.try_reserve(usize::MAX).is_none());
        let two = budget.try_reserve(25).unwrap();
        assert!(!one.try_resize(70));
        assert!(one.try_resize(60));
        drop(two);
        assert!(one.try_resize(1));
        assert_eq!((one.bytes(), budget.held()), (1, 1));
        drop(one);
        assert_eq!(budget.held(), 0);
        let many: Vec<_> = std::iter::from_fn(|| budget.try_reserve(1)).collect();
        assert_eq!(many.len(), 99);
    }
}
