//! Which thread waits for which, so that none waits for itself.
//!
//! A thread that computes a value may need another one, which another thread computes, which needs
//! the first. Each thread that is about to wait therefore says so, and then follows the chain of
//! threads from the one it waits for on. If the chain leads back to it, it does not wait.
//!
//! No circle is missed. Each thread of it writes down what it waits for before it follows the chain,
//! each under a mutex of its own. Were every thread to miss the circle, each would have read some
//! place in it before that was written: the reading of one comes before the writing of the next, and
//! all around the circle before its own writing, which it came after. Two threads may both find the
//! same circle; then neither of them waits.
//!
//! No circle is made up either. Of a call that has ended the chain is followed no further, and it is
//! marked so before its thread waits for anything else.

use smallvec::SmallVec;

use crate::sync::atomic::{AtomicBool, Ordering::SeqCst};
use crate::sync::{Mutex, thread_local};

use std::sync::Arc;

/// A thread, as others see it.
#[derive(Debug, Default)]
pub(super) struct Worker {
    /// What it waits for at this moment.
    waits_for: Mutex<Option<Arc<Work>>>,
}

/// That a thread computes a value.
#[derive(Debug)]
pub(super) struct Work {
    by: Arc<Worker>,
    ended: AtomicBool,
}

thread_local! {
    static THIS: Arc<Worker> = Arc::default();
}

/// The thread this is called on. While a thread tears down it is another one each time, so that a
/// circle is not found that begins in a destructor of a thread-local.
fn this() -> Arc<Worker> {
    THIS.try_with(Arc::clone).unwrap_or_default()
}

impl Work {
    /// Work of this thread, which begins.
    pub(super) fn begin() -> Arc<Self> {
        Arc::new(Self { by: this(), ended: AtomicBool::new(false) })
    }

    /// From now on nobody has to wait for it.
    pub(super) fn end(&self) {
        self.ended.store(true, SeqCst);
    }

    /// Says that this thread waits for the work until what this returns is dropped; `None` if the
    /// work waits for this thread, directly or through others.
    pub(super) fn wait(self: &Arc<Self>) -> Option<Waiting> {
        let waiting = Waiting(this());
        *waiting.0.waits_for.lock() = Some(Arc::clone(self));
        (!self.waits_on(&waiting.0)).then_some(waiting)
    }

    /// Whether the thread of this work waits for `thread`. One step for each thread of the chain.
    fn waits_on(self: &Arc<Self>, thread: &Arc<Worker>) -> bool {
        let mut work = Arc::clone(self);
        let mut passed = SmallVec::<[Arc<Worker>; 4]>::new();
        loop {
            if work.ended.load(SeqCst) {
                return false;
            }
            if Arc::ptr_eq(&work.by, thread) {
                return true;
            }
            // A circle of others: one of them finds it, and goes on.
            if passed.iter().any(|worker| Arc::ptr_eq(worker, &work.by)) {
                return false;
            }
            passed.push(Arc::clone(&work.by));
            let next = work.by.waits_for.lock().clone();
            match next {
                Some(next) => work = next,
                None => return false,
            }
        }
    }
}

/// That this thread waits; it no longer does once this is dropped.
#[derive(Debug)]
pub(super) struct Waiting(Arc<Worker>);

impl Drop for Waiting {
    fn drop(&mut self) {
        *self.0.waits_for.lock() = None;
    }
}
