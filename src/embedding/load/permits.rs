//! How many calls of a model may be under way at once.
//!
//! A semaphore that hands its permits to tasks would hand them to tasks that are not polled any more:
//! in a runtime that is not driven, behind a finished `select!`. So this one knows the calls that hold
//! its permits, and a task that has waited for one for a while asks whether they live
//! ([`heartbeat`](super::heartbeat)); a call that does not answer loses its permit. If it is polled
//! again after all, it goes on without one.
//!
//! Permits are given in the order in which they were asked for.

use std::collections::{BTreeMap, HashMap};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use crate::sync::Mutex;
use crate::timer;

use super::call::Call;
use super::heartbeat::{QUIET, silent};

#[derive(Debug)]
pub(crate) struct Permits {
    /// Held for a few steps in its maps; nothing else is locked, woken or dropped meanwhile.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    free: usize,
    /// Of the task that asks next. Tickets are never used twice.
    next: u64,
    /// Those that wait, by their tickets.
    queue: BTreeMap<u64, Waiting>,
    /// Those that have a permit, by their tickets.
    holders: HashMap<u64, Arc<Call>>,
    /// When it was last asked whether the holders live.
    asked: Option<Instant>,
}

#[derive(Debug)]
struct Waiting {
    call: Arc<Call>,
    waker: Option<Waker>,
}

impl Permits {
    pub(crate) fn new(permits: usize) -> Self {
        let (queue, holders) = (BTreeMap::new(), HashMap::new());
        Self { state: Mutex::new(State { free: permits, next: 0, queue, holders, asked: None }) }
    }

    /// A permit if one is free and no task waits for it.
    pub(super) fn try_acquire(self: &Arc<Self>, call: &Arc<Call>) -> Option<Permit> {
        let mut state = self.state.lock();
        if state.free == 0 {
            return None;
        }
        state.free -= 1;
        let ticket = state.ticket();
        state.holders.insert(ticket, Arc::clone(call));
        Some(Permit { permits: Arc::clone(self), ticket })
    }

    /// Waits for a permit; `None` if the call is to go on without. Dropped before it has one, it has
    /// left the queue.
    ///
    /// A call that is part of another load, or that one waits for, does not wait: those may wait for
    /// it that hold all permits.
    pub(super) async fn acquire(self: &Arc<Self>, call: &Arc<Call>) -> Option<Permit> {
        let permit = self.try_acquire(call);
        if permit.is_some() || call.is_urgent() {
            return permit;
        }
        let ticket = self.state.lock().ticket();
        // From the first poll on it is in the queue.
        let permit = Permit { permits: Arc::clone(self), ticket };
        let mut granted = pin!(poll_fn(|cx| self.poll_granted(permit.ticket, call, cx)));
        let is_granted = loop {
            if let Some(granted) = timer::within(QUIET, granted.as_mut()).await {
                break granted;
            }
            // In a box: hardly ever needed. A permit that comes meanwhile is taken at once.
            let mut asking = Box::pin(self.revoke_from_silent());
            let outcome = poll_fn(|cx| match granted.as_mut().poll(cx) {
                Poll::Ready(granted) => Poll::Ready(Some(granted)),
                Poll::Pending => asking.as_mut().poll(cx).map(|()| None),
            });
            if let Some(granted) = outcome.await {
                break granted;
            }
        };
        is_granted.then_some(permit)
    }

    /// `false` if it is not to wait any longer.
    fn poll_granted(&self, ticket: u64, call: &Arc<Call>, cx: &Context<'_>) -> Poll<bool> {
        let new = cx.waker().clone();
        let mut state = self.state.lock();
        if state.holders.contains_key(&ticket) {
            return Poll::Ready(true);
        }
        if call.is_urgent() {
            return Poll::Ready(false);
        }
        // Revoked before it was noticed that it had been granted: it waits anew.
        let waiting = state
            .queue
            .entry(ticket)
            .or_insert_with(|| Waiting { call: Arc::clone(call), waker: None });
        let old = waiting.waker.replace(new);
        let granted = state.grant();
        drop(state);
        drop(old);
        granted.into_iter().for_each(Waker::wake);
        Poll::Pending
    }

    /// Takes the permits of calls that are not polled. One of those that wait does so at a time.
    async fn revoke_from_silent(&self) {
        let holders: Vec<(u64, Arc<Call>)> = {
            let mut state = self.state.lock();
            let now = Instant::now();
            if state.asked.is_some_and(|asked| now.saturating_duration_since(asked) < QUIET) {
                return;
            }
            state.asked = Some(now);
            state.holders.iter().map(|(ticket, call)| (*ticket, Arc::clone(call))).collect()
        };
        for (ticket, _) in silent(holders, |(_, call)| call.heartbeat()).await {
            self.release(ticket);
        }
    }

    fn release(&self, ticket: u64) {
        let (ended, woken) = {
            let mut state = self.state.lock();
            let waiting = state.queue.remove(&ticket);
            let holder = state.holders.remove(&ticket);
            state.free += usize::from(holder.is_some());
            ((waiting, holder), state.grant())
        };
        woken.into_iter().for_each(Waker::wake);
        drop(ended);
    }
}

impl State {
    fn ticket(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Gives free permits to those that wait, and returns which to wake.
    fn grant(&mut self) -> Vec<Waker> {
        let mut woken = Vec::new();
        while self.free > 0
            && let Some((ticket, Waiting { call, waker })) = self.queue.pop_first()
        {
            self.free -= 1;
            self.holders.insert(ticket, call);
            woken.extend(waker);
        }
        woken
    }
}

/// Permission for a call, or its place in the queue for one; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    permits: Arc<Permits>,
    ticket: u64,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.permits.release(self.ticket);
    }
}
