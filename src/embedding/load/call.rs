//! One call of a model, from when its keys are claimed until every waiter has its answer.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::sync::Mutex;
use crate::sync::atomic::{
    AtomicBool, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};
use crate::timer;

use super::heartbeat::{Heartbeat, QUIET, silent};
use super::output::Answer;
use super::permits::Permit;

/// The number of a call, another for each call of the process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct CallId(u64);

impl CallId {
    fn new() -> Self {
        // std's: a number that speaks of nothing else is no point for a scheduler to switch at.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
    }

    #[cfg(all(test, not(shuttle)))]
    pub(super) fn from_raw(id: u64) -> Self {
        Self(id)
    }
}

/// What a call came to.
#[derive(Debug)]
pub(super) enum CallResult {
    /// An answer for each of its keys.
    Answered(Box<[Answer]>),
    /// It took longer than the cache allows a call.
    TimedOut,
    /// Nothing, and nothing will come: its future was dropped, or its runtime shut down.
    Abandoned,
}

/// How long a call may take, from when its first key was claimed.
#[derive(Debug, Clone, Copy)]
struct Limit {
    length: Duration,
    /// `None` is a moment so late that the clock cannot name it.
    end: Option<Instant>,
}

/// A call under way, shared by the caller that makes it and all that wait for it.
#[derive(Debug)]
pub(super) struct Call {
    id: CallId,
    result: OnceLock<CallResult>,
    ended: Notify,
    /// Of the future that the call runs in.
    heartbeat: Arc<Heartbeat>,
    limit: Option<Limit>,
    /// Its permission to be under way, where it needs one. Here, so that whatever ends the call gives
    /// it back.
    permit: Mutex<Option<Permit>>,
    /// A load inside another waits for it: it must not wait for a permit, which that other may hold.
    /// Relaxed: its task is woken after it is set.
    is_urgent: AtomicBool,
    /// Requests that wait for one of its keys, once for each key.
    ///
    /// Ordering, of this and the next: sequentially consistent. One thread brings the one to 0 and
    /// then reads the other, a second thread the reverse; one of them must see both at 0. A key
    /// that is superseded is joined no more; a request that joined it a moment before, and begins to
    /// wait when the call has been given up, finds it abandoned and loads the key itself.
    waiting: AtomicUsize,
    /// Its keys that have not been superseded, and one for the leader while it claims more.
    wanted: AtomicUsize,
}

impl Call {
    pub(super) fn new(heartbeat: Arc<Heartbeat>, limit: Option<Duration>) -> Self {
        let end = |length| Limit { length, end: Instant::now().checked_add(length) };
        Self {
            id: CallId::new(),
            result: OnceLock::new(),
            ended: Notify::new(),
            heartbeat,
            limit: limit.map(end),
            permit: Mutex::default(),
            is_urgent: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            wanted: AtomicUsize::new(1),
        }
    }

    pub(super) fn id(&self) -> CallId {
        self.id
    }

    pub(super) fn heartbeat(&self) -> &Heartbeat {
        &self.heartbeat
    }

    /// How long a call may take, for the message that it took longer.
    pub(super) fn limit(&self) -> Duration {
        self.limit.map_or(Duration::MAX, |limit| limit.length)
    }

    pub(super) fn result(&self) -> Option<&CallResult> {
        self.result.get()
    }

    /// Records what the call came to, unless that is known already. Its permit is free from now on.
    pub(super) fn record(&self, result: CallResult) {
        if self.result.set(result).is_ok() {
            self.release_permit();
        }
    }

    /// Wakes those that wait for the result, and the call itself, which then drops its future.
    pub(super) fn wake(&self) {
        self.ended.notify_waiters();
        self.heartbeat.wake();
    }

    /// Ends the call, if it has not ended.
    pub(super) fn end(&self, result: CallResult) {
        self.record(result);
        self.wake();
    }

    /// Gives its permit back, if it has one.
    pub(super) fn release_permit(&self) {
        let permit = self.permit.lock().take();
        drop(permit);
    }

    /// Keeps `permit` until the call ends.
    pub(super) fn keep(&self, permit: Permit) {
        let old = self.permit.lock().replace(permit);
        drop(old);
        // It may have ended since it was asked for, with nothing to give back then.
        if self.result.get().is_some() {
            self.release_permit();
        }
    }

    /// Lets it go on without a permit.
    pub(super) fn hurry(&self) {
        if !self.is_urgent.swap(true, Relaxed) {
            self.heartbeat.wake();
        }
    }

    pub(super) fn is_urgent(&self) -> bool {
        self.is_urgent.load(Relaxed)
    }

    /// One key more is wanted of it.
    pub(super) fn want(&self) {
        self.wanted.fetch_add(1, SeqCst);
    }

    /// One less: it was superseded, or no more are claimed.
    pub(super) fn unwant(&self) {
        if self.wanted.fetch_sub(1, SeqCst) == 1 && self.waiting.load(SeqCst) == 0 {
            self.heartbeat.wake();
        }
    }

    /// Whether no caller waits for it or will wait, and nothing of it may be stored.
    fn is_unwanted(&self) -> bool {
        self.wanted.load(SeqCst) == 0 && self.waiting.load(SeqCst) == 0
    }

    /// Runs `future` until the call has been ended by others, its time is over or no caller wants it any
    /// more; then it is dropped.
    pub(super) async fn run<F: Future>(&self, future: F) -> Option<F::Output> {
        let left = match self.limit.and_then(|limit| limit.end) {
            Some(end) => end.saturating_duration_since(Instant::now()),
            None => Duration::MAX,
        };
        let running = async {
            let mut future = pin!(future);
            poll_fn(|cx| {
                if self.result.get().is_some() || self.is_unwanted() {
                    return Poll::Ready(None);
                }
                future.as_mut().poll(cx).map(Some)
            })
            .await
        };
        if left == Duration::MAX {
            return running.await;
        }
        match timer::within(left, pin!(running)).await {
            Some(output) => output,
            None => {
                self.end(CallResult::TimedOut);
                None
            }
        }
    }

    /// Waits until the call has ended. `false` if its future showed no sign of life so many times in
    /// turn, each some [`QUIET`] and two pings long: then it may never end.
    ///
    /// No wake-up is missed: a `Notified` receives every `notify_waiters` from when it is made, and
    /// only after that is the result looked at, which is recorded before the waiters are woken.
    pub(super) async fn wait(&self, silences: u32) -> bool {
        let mut silent_for = 0;
        loop {
            let ended = self.ended.notified();
            if self.result.get().is_some() {
                return true;
            }
            let quiet = match self.limit.and_then(|limit| limit.end) {
                Some(end) => match end.saturating_duration_since(Instant::now()) {
                    // The call's own timer has not ended it: it is not polled, or its poll blocks.
                    Duration::ZERO => {
                        self.end(CallResult::TimedOut);
                        return true;
                    }
                    left => QUIET.min(left),
                },
                None => QUIET,
            };
            let mut ended = pin!(ended);
            if timer::within(quiet, ended.as_mut()).await.is_some() {
                return true;
            }
            // In a box: hardly ever needed.
            let mut alive =
                Box::pin(async { silent(vec![self], |call| call.heartbeat()).await.is_empty() });
            let answered = poll_fn(|cx| {
                if ended.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(true);
                }
                alive.as_mut().poll(cx)
            });
            silent_for = if answered.await { 0 } else { silent_for + 1 };
            if silent_for >= silences {
                return self.result.get().is_some();
            }
        }
    }
}

/// A wait for a call: while one lives, the call is not given up as unwanted.
#[derive(Debug)]
pub(super) struct Interest(Arc<Call>);

impl Interest {
    pub(super) fn new(call: &Arc<Call>) -> Self {
        call.waiting.fetch_add(1, SeqCst);
        Self(Arc::clone(call))
    }

    pub(super) fn call(&self) -> &Arc<Call> {
        &self.0
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        let call = &self.0;
        if call.waiting.fetch_sub(1, SeqCst) == 1 && call.wanted.load(SeqCst) == 0 {
            call.heartbeat.wake();
        }
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
