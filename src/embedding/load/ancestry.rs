//! Which loads the code that runs here is a part of: a load asked for from inside another must not
//! wait for what its own ancestors hold.
//!
//! The ancestry travels with the future of a call: the thread that polls it has it in a thread-local for the
//! length of the poll. So it is known in whatever the future awaits, and in no task that the future
//! spawns.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use tokio::sync::OwnedSemaphorePermit;

use crate::sync::thread_local;

use super::call::CallId;

thread_local! {
    static CURRENT: RefCell<Ancestry> = RefCell::new(Ancestry::default());
}

/// The calls inside which some code runs, each once. One without any is no load's.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ancestry {
    calls: Vec<CallId>,
    /// Of the calls of batchers among them.
    turns: Vec<Arc<Turn>>,
}

/// The permission of a batcher's call to be under way.
///
/// The call gives it back as soon as anything inside it waits for a load or for a batcher: what that
/// waits for may itself be waiting for this turn, through however many others, and while the call
/// waits it does not use the model.
#[derive(Debug)]
pub(crate) struct Turn(Mutex<Option<OwnedSemaphorePermit>>);

impl Turn {
    pub(crate) fn new(permit: OwnedSemaphorePermit) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Some(permit))))
    }

    pub(crate) fn give_back(&self) {
        let permit = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(permit);
    }
}

impl Ancestry {
    /// That of the code which calls this. Allocates inside a load only.
    pub(crate) fn current() -> Self {
        CURRENT.with(|current| current.borrow().clone())
    }

    /// That of a batcher's call which is made for all of these, and has `turn`.
    pub(crate) fn merge(ancestries: impl IntoIterator<Item = Self>, turn: Arc<Turn>) -> Self {
        let (mut calls, mut turns) = (Vec::new(), vec![turn]);
        for ancestry in ancestries {
            calls.extend(ancestry.calls);
            turns.extend(ancestry.turns);
        }
        calls.sort_unstable();
        calls.dedup();
        turns.sort_unstable_by_key(Arc::as_ptr);
        turns.dedup_by(|one, other| Arc::ptr_eq(one, other));
        Self { calls, turns }
    }

    /// With `call`, whose own body this is to be.
    pub(super) fn within(&self, call: CallId) -> Self {
        let mut ancestry = self.clone();
        ancestry.calls.push(call);
        ancestry
    }

    /// Whether this is no load's.
    pub(super) fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Something inside these calls is about to wait for others.
    pub(crate) fn give_turns_back(&self) {
        self.turns.iter().for_each(|turn| turn.give_back());
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
        self.give_turns_back();
        if self.calls.is_empty() {
            return Some(Waits { waiting: Vec::new(), call });
        }
        // One lock over both steps: of two calls that begin to wait for each other, one sees it.
        let mut graph = WAITS.lock().unwrap_or_else(PoisonError::into_inner);
        let mut seen = HashSet::new();
        let mut open = vec![call];
        while let Some(next) = open.pop() {
            if self.calls.contains(&next) {
                return None;
            }
            if seen.insert(next) {
                open.extend(graph.get(&next).into_iter().flatten());
            }
        }
        for &waiting in &self.calls {
            graph.entry(waiting).or_default().push(call);
        }
        Some(Waits { waiting: self.calls.clone(), call })
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
        let calls = calls.iter().map(|&call| CallId::from_raw(call)).collect();
        Ancestry { calls, turns: Vec::new() }
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
