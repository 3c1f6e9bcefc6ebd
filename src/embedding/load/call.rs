//! One call of a model, from when its keys are claimed until every waiter has its answer.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::Notify;

use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::output::Answer;

/// What a call came to.
#[derive(Debug)]
pub(super) enum Landing {
    /// An answer for each of its keys.
    Answered(Box<[Answer]>),
    /// Nothing, and nothing will come: its future was dropped, or its runtime shut down.
    Abandoned,
}

/// A call under way, shared by whoever makes it and all who wait for it.
#[derive(Debug)]
pub(super) struct Call {
    landing: OnceLock<Landing>,
    landed: Notify,
    /// Of a call that runs inside its caller's future; one that runs in a task of its own needs no
    /// proof of life.
    pulse: Option<Arc<Pulse>>,
}

impl Call {
    pub(super) fn new(pulse: Option<Arc<Pulse>>) -> Self {
        Self { landing: OnceLock::new(), landed: Notify::new(), pulse }
    }

    /// Records what the call came to; the first says it. The caller wakes the waiters with
    /// [`wake`](Self::wake) once nobody can join it any more.
    pub(super) fn land(&self, landing: Landing) -> bool {
        self.landing.set(landing).is_ok()
    }

    pub(super) fn wake(&self) {
        self.landed.notify_waiters();
    }

    pub(super) fn landing(&self) -> Option<&Landing> {
        self.landing.get()
    }

    pub(super) fn is_abandoned(&self) -> bool {
        matches!(self.landing.get(), Some(Landing::Abandoned))
    }

    /// Waits until the call has landed. `false` if its caller shows no sign of life: then it may
    /// never land.
    ///
    /// No wake-up is missed: a `Notified` receives every `notify_waiters` from when it is made, and
    /// only after that is the landing looked at, which is recorded before the waiters are woken.
    pub(super) async fn wait(&self) -> bool {
        loop {
            let mut landed = pin!(self.landed.notified());
            if self.landing.get().is_some() {
                return true;
            }
            match &self.pulse {
                None => landed.await,
                Some(pulse) => {
                    pulse.knock();
                    if !crate::sync::task::within(PATIENCE, landed.as_mut()).await
                        && self.landing.get().is_none()
                        && !pulse.has_answered()
                    {
                        return false;
                    }
                }
            }
        }
    }
}

/// How long a caller that runs a call in its own future may take to answer a knock: far longer than
/// an executor needs to poll a task that was woken.
const PATIENCE: Duration = Duration::from_secs(1);

/// Tells a future that is waiting from one that nobody polls any more.
///
/// A caller may keep the future of a borrowed load without ever polling it again: behind a finished
/// `select!`, in the same task that now waits for the same key. Those who joined it would wait for
/// ever. So they knock: they wake the task of that future, and if it is not polled within
/// [`PATIENCE`], the call is taken over. A call taken over by mistake costs work that is done twice,
/// and nothing else.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    waker: Mutex<Option<Waker>>,
    /// Polled since the last knock. Relaxed: a hint, and a wrong one is only slow.
    answered: AtomicBool,
}

impl Pulse {
    fn knock(&self) {
        self.answered.store(false, Relaxed);
        // Cloned, not woken under the lock: waking is the executor's code.
        let waker = self.waker.lock().clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn has_answered(&self) -> bool {
        self.answered.load(Relaxed)
    }

    /// The future was polled.
    fn beat(&self, cx: &Context<'_>) {
        self.answered.store(true, Relaxed);
        let is_known =
            |waker: &Option<Waker>| waker.as_ref().is_some_and(|known| known.will_wake(cx.waker()));
        if is_known(&self.waker.lock()) {
            return;
        }
        // What drops a waker is the executor's code: not under the mutex.
        let new = cx.waker().clone();
        let old = self.waker.lock().replace(new);
        drop(old);
    }

    /// Runs `future`, answering knocks whenever it is polled.
    pub(super) async fn around<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|cx| {
            self.beat(cx);
            future.as_mut().poll(cx)
        })
        .await
    }
}

/// Runs `future` to its end, or to its panic, whose message is the error.
pub(crate) async fn catching<F: Future>(future: F) -> Result<F::Output, Arc<str>> {
    let mut future = pin!(future);
    // Unwind safe: a future that has panicked is not polled again.
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Ok),
        Err(panic) => Poll::Ready(Err(message(&*panic))),
    })
    .await
}

/// What a panic said.
pub(crate) fn message(panic: &(dyn std::any::Any + Send)) -> Arc<str> {
    let text = panic
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic without a message").into()
}
