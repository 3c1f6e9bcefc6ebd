//! Which loads the code that runs here is a part of: a load asked for from inside another must not
//! wait for what its own ancestors hold.
//!
//! The ancestry travels with the future of a call: whoever polls it has it in a thread-local for the
//! length of the poll. So it is known in whatever the future awaits, and in no task that the future
//! spawns.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{LazyLock, Mutex, PoisonError};

use crate::sync::thread_local;

use super::call::CallId;

thread_local! {
    static CURRENT: RefCell<Ancestry> = RefCell::new(Ancestry::default());
}

/// The calls inside which some code runs, each once. One without any is no load's.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ancestry(Vec<CallId>);

impl Ancestry {
    /// That of the code which calls this. Allocates inside a load only.
    pub(crate) fn current() -> Self {
        CURRENT.with(|current| current.borrow().clone())
    }

    /// That of a call made for all of these.
    #[allow(dead_code)] // The batcher is its caller.
    pub(crate) fn merge(ancestries: impl IntoIterator<Item = Self>) -> Self {
        let mut calls: Vec<CallId> =
            ancestries.into_iter().flat_map(|ancestry| ancestry.0).collect();
        calls.sort_unstable();
        calls.dedup();
        Self(calls)
    }

    /// With `call`, whose own body this is to be.
    pub(super) fn within(&self, call: CallId) -> Self {
        let mut calls = self.0.clone();
        calls.push(call);
        Self(calls)
    }

    /// Whether this is no load's.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Runs `future` with this as the current ancestry.
    pub(crate) async fn scope<F: Future>(self, future: F) -> F::Output {
        let mut future = pin!(future);
        let mut own = self;
        poll_fn(|cx| {
            let _entered = Entered::new(&mut own);
            future.as_mut().poll(cx)
        })
        .await
    }

    /// Notes that these calls wait for `call` until the answer is dropped; `None` if `call` waits for
    /// one of them, directly or through others, so that none would ever end.
    pub(super) fn wait_for(&self, call: CallId) -> Option<Waits> {
        if self.0.is_empty() {
            return Some(Waits { waiting: Vec::new(), call });
        }
        // One lock over both steps: of two calls that begin to wait for each other, one sees it.
        let mut graph = WAITS.lock().unwrap_or_else(PoisonError::into_inner);
        let mut seen = HashSet::new();
        let mut open = vec![call];
        while let Some(next) = open.pop() {
            if self.0.contains(&next) {
                return None;
            }
            if seen.insert(next) {
                open.extend(graph.get(&next).into_iter().flatten());
            }
        }
        for &waiting in &self.0 {
            graph.entry(waiting).or_default().push(call);
        }
        Some(Waits { waiting: self.0.clone(), call })
    }
}

/// Exchanges the current ancestry for another, until it is dropped.
struct Entered<'a>(&'a mut Ancestry);

impl<'a> Entered<'a> {
    fn new(own: &'a mut Ancestry) -> Self {
        CURRENT.with(|current| std::mem::swap(&mut *current.borrow_mut(), own));
        Self(own)
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        CURRENT.with(|current| std::mem::swap(&mut *current.borrow_mut(), self.0));
    }
}

/// For each call whose body waits inside for others: those others, as often as it waits. Only loads
/// inside loads come here. Of the whole process, as a circle may lead through several caches. The
/// lock is taken last, and for as long as a search over calls that wait for each other takes.
static WAITS: LazyLock<Mutex<HashMap<CallId, Vec<CallId>>>> = LazyLock::new(Mutex::default);

/// A wait of calls for another, noted while this lives.
#[derive(Debug, Default)]
pub(super) struct Waits {
    waiting: Vec<CallId>,
    call: CallId,
}

impl Drop for Waits {
    fn drop(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let mut graph = WAITS.lock().unwrap_or_else(PoisonError::into_inner);
        for waiting in &self.waiting {
            let Some(calls) = graph.get_mut(waiting) else { continue };
            if let Some(place) = calls.iter().position(|call| *call == self.call) {
                calls.swap_remove(place);
            }
            if calls.is_empty() {
                graph.remove(waiting);
            }
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    fn of(calls: &[u64]) -> Ancestry {
        Ancestry(calls.iter().map(|&call| CallId::from_raw(call)).collect())
    }

    fn id(call: u64) -> CallId {
        CallId::from_raw(call)
    }

    #[test]
    fn a_circle_of_waits_is_seen_when_it_closes_and_not_after_a_wait_has_ended() {
        // Numbers that no call of another test has.
        let base = u64::MAX - 100;
        let (a, b, c) = (base, base + 1, base + 2);
        let first = of(&[a]).wait_for(id(b)).expect("b waits for nothing");
        let second = of(&[b]).wait_for(id(c)).expect("c waits for nothing");
        assert!(of(&[c]).wait_for(id(a)).is_none(), "a waits for b waits for c");
        assert!(of(&[c]).wait_for(id(c)).is_none(), "a call inside itself");
        drop(second);
        let third = of(&[c]).wait_for(id(a)).expect("b waits no more");
        drop((first, third));
        let graph = WAITS.lock().unwrap();
        assert!([a, b, c].iter().all(|&call| !graph.contains_key(&id(call))));
    }

    #[test]
    fn one_call_may_wait_twice_for_another() {
        let base = u64::MAX - 200;
        let (a, b) = (base, base + 1);
        let first = of(&[a]).wait_for(id(b)).unwrap();
        let second = of(&[a]).wait_for(id(b)).unwrap();
        drop(first);
        assert!(of(&[b]).wait_for(id(a)).is_none(), "the second wait goes on");
        drop(second);
        assert!(of(&[b]).wait_for(id(a)).is_some());
    }
}
