//! Tells a future that is waiting from one that is not polled any more.
//!
//! A call runs in a future that its owner may keep without ever polling it again: a borrowed one
//! behind a finished `select!`, an owned one in a runtime that is not driven. Those that wait for it
//! would wait for ever. So they *ping* it: they wake its task, and if that does not poll it within
//! [`ANSWER`], twice, the call is taken over. A call taken over by mistake costs work that is done
//! twice, and never a wrong vector: see [`inflight`](super::inflight).

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Waker};
use std::time::Duration;

use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering::Relaxed};
use crate::timer;

/// How long a wait goes on before it is asked whether the other side lives.
pub(super) const QUIET: Duration = Duration::from_millis(500);
/// How long a future has to answer a ping: far longer than an executor needs to poll a task that was
/// woken.
const ANSWER: Duration = Duration::from_millis(500);
/// And a second one. Where the executor was busy with something else until now, its timers and its
/// tasks are late alike: the task has its turn within this.
const SECOND_ANSWER: Duration = Duration::from_millis(100);

/// Signs of life of a future.
#[derive(Debug, Default)]
pub(super) struct Heartbeat {
    waker: Mutex<Option<Waker>>,
    /// Polled since the last ping. Relaxed, as the next: a hint, and a wrong one is only slow.
    answered: AtomicBool,
    /// Being polled: a model that computes inside its poll is alive.
    in_poll: AtomicBool,
}

impl Heartbeat {
    /// Wakes the task of the future, and forgets that it was polled before.
    pub(super) fn ping(&self) {
        self.answered.store(false, Relaxed);
        self.wake();
    }

    /// Wakes the task of the future.
    pub(super) fn wake(&self) {
        // Cloned, not woken under the lock: waking is the executor's code.
        let waker = self.waker.lock().clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Whether the future has been polled since the last ping, or is being polled.
    pub(super) fn is_alive(&self) -> bool {
        self.answered.load(Relaxed) || self.in_poll.load(Relaxed)
    }

    /// Runs `future`, answering pings whenever it is polled.
    pub(super) async fn around<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|cx| {
            let _polled = Polled::new(self, cx);
            future.as_mut().poll(cx)
        })
        .await
    }
}

/// A poll under way, until it is dropped.
struct Polled<'a>(&'a Heartbeat);

impl<'a> Polled<'a> {
    fn new(heartbeat: &'a Heartbeat, cx: &Context<'_>) -> Self {
        heartbeat.in_poll.store(true, Relaxed);
        heartbeat.answered.store(true, Relaxed);
        let is_known =
            |waker: &Option<Waker>| waker.as_ref().is_some_and(|known| known.will_wake(cx.waker()));
        if !is_known(&heartbeat.waker.lock()) {
            // What drops a waker is the executor's code: not under the mutex.
            let new = cx.waker().clone();
            let old = heartbeat.waker.lock().replace(new);
            drop(old);
        }
        Self(heartbeat)
    }
}

impl Drop for Polled<'_> {
    fn drop(&mut self) {
        self.0.in_poll.store(false, Relaxed);
    }
}

/// Pings those of `heartbeats` until each has answered or none of the others has in time, and returns
/// which those are.
pub(super) async fn silent<T>(candidates: Vec<T>, heartbeat: impl Fn(&T) -> &Heartbeat) -> Vec<T> {
    let mut silent = candidates;
    for answer in [ANSWER, SECOND_ANSWER] {
        silent.iter().for_each(|candidate| heartbeat(candidate).ping());
        timer::sleep(answer).await;
        silent.retain(|candidate| !heartbeat(candidate).is_alive());
        if silent.is_empty() {
            break;
        }
    }
    silent
}
