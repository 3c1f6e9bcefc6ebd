//! Futures that outlive the runtime they began in: where their task is not polled any more, those
//! that wait for them drive them.
//!
//! The gathering and each call of a [`Batcher`](super::Batcher) are [`Driven`] futures, each with
//! one driver: a task of the runtime in which it began. A runtime may stay alive without being
//! driven, as one of a single thread whose `block_on` has returned; its tasks are then never polled
//! again, and never dropped. So a caller that has waited for a while pings what it may be waiting
//! for: it wakes the driver, and if that has not polled the future by the next round of pings, and
//! does not poll it just then, the future is an orphan. Callers poll orphans in their own futures,
//! until a driver does again: the late one, or a task that the caller has spawned in its own
//! runtime, if it has one. A driver that finds itself replaced ends. So to take a future for an
//! orphan whose driver was merely late costs a task, and nothing else.

use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::runtime::{Handle, Id};

use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use crate::timer::{Instant, within};

/// The time between two rounds of pings; far longer than an executor needs to poll a task that was
/// woken.
const ROUND: Duration = Duration::from_secs(1);

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A future that is polled by its driver, whichever that is at the time.
struct Driven {
    /// Nothing once it is done or abandoned. Locked while it is polled.
    work: Mutex<Option<Work>>,
    /// Of the driver that polled it last, or tried to.
    waker: Mutex<Option<Waker>>,
    /// The number of the driver. Relaxed: a driver that sees it late polls once more than it had to,
    /// under the lock.
    driver: AtomicU64,
    /// Not polled since the last ping. Relaxed: a hint.
    pinged: AtomicBool,
    /// Callers poll it. Relaxed: a hint, and a wrong one is only slow.
    orphaned: AtomicBool,
    /// The runtime in which a task to drive it was last spawned.
    runtime: Mutex<Option<Id>>,
    /// Relaxed: only says that `work` need not be looked at.
    done: AtomicBool,
}

impl Driven {
    fn new(work: Work) -> Self {
        Self {
            work: Mutex::new(Some(work)),
            waker: Mutex::new(None),
            driver: AtomicU64::new(0),
            pinged: AtomicBool::new(false),
            orphaned: AtomicBool::new(false),
            runtime: Mutex::new(None),
            done: AtomicBool::new(false),
        }
    }

    /// Polls the work, unless another driver is polling it: that one then wakes this one.
    fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        self.pinged.store(false, Relaxed);
        // Before the lock is tried: the thread that has it finds this waker afterwards.
        let known = self.waker.lock().as_ref().is_some_and(|known| known.will_wake(cx.waker()));
        if !known {
            // To clone or drop a waker is the executor's code: not under the mutex.
            let new = cx.waker().clone();
            let old = self.waker.lock().replace(new);
            drop(old);
        }
        let Some(mut work) = self.work.try_lock() else { return Poll::Pending };
        let Some(future) = work.as_mut() else { return Poll::Ready(()) };
        // Unwind safe: work that has panicked is not polled again.
        let polled = catch_unwind(AssertUnwindSafe(|| {
            future.as_mut().poll(&mut Context::from_waker(cx.waker()))
        }));
        if polled.is_ok_and(|poll| poll.is_pending()) {
            return Poll::Pending;
        }
        let finished = work.take();
        drop(work);
        self.done.store(true, Relaxed);
        drop_quietly(finished);
        Poll::Ready(())
    }

    /// The number of a new driver; the one before is let know.
    fn replace_driver(&self) -> u64 {
        let number = self.driver.fetch_add(1, Relaxed) + 1;
        self.wake();
        number
    }

    fn wake(&self) {
        let waker = self.waker.lock().clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Wakes the driver. `true` if it has not polled since the last ping.
    fn ping(&self) -> bool {
        if self.done.load(Relaxed) {
            return false;
        }
        // Locked: it is just being polled, for however long.
        let silent = self.pinged.swap(true, Relaxed) && self.work.try_lock().is_some();
        if !silent {
            self.wake();
        }
        silent
    }
}

/// The task that drives a future, from when it is first polled.
struct Driver {
    driven: Arc<Driven>,
    number: Option<u64>,
}

impl Driver {
    fn is_replaced(&self) -> bool {
        self.number.is_some_and(|number| self.driven.driver.load(Relaxed) != number)
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_replaced() {
            return Poll::Ready(());
        }
        if self.number.is_none() {
            self.number = Some(self.driven.replace_driver());
        }
        self.driven.orphaned.store(false, Relaxed);
        let poll = self.driven.poll(cx);
        if self.is_replaced() {
            // While it polled: its successor may have found the lock taken.
            self.driven.wake();
            return Poll::Ready(());
        }
        poll
    }
}

impl Drop for Driver {
    /// Before the future is done, this is the runtime's shutdown. Then the future is dropped too,
    /// unless others drive it.
    fn drop(&mut self) {
        if self.number.is_none() || self.is_replaced() || self.driven.orphaned.load(Relaxed) {
            return;
        }
        let work = self.driven.work.try_lock().and_then(|mut work| work.take());
        if work.is_some() {
            self.driven.done.store(true, Relaxed);
            drop_quietly(work);
        }
    }
}

/// All that is under way for one batcher: its gathering and its calls.
#[derive(Default)]
pub(super) struct Crew {
    all: Mutex<Vec<Arc<Driven>>>,
    /// When the last round of pings was.
    last_round: Mutex<Option<Instant>>,
    /// Whether any may be orphaned. Relaxed: a hint.
    orphans: AtomicBool,
}

impl Crew {
    /// Begins `work`, in a task of the current runtime if there is one; the first is the gathering,
    /// which begins the others. What an orphan begins is one: its runtime, if this is one, may be the
    /// one that is not driven.
    pub(super) fn start(&self, work: impl Future<Output = ()> + Send + 'static) {
        let driven = Arc::new(Driven::new(Box::pin(work)));
        let first = {
            let mut all = self.all.lock();
            // Before it grows, so that this is constant on average.
            if all.len() == all.capacity() {
                all.retain(|driven| !driven.done.load(Relaxed));
            }
            all.push(Arc::clone(&driven));
            Arc::clone(&all[0])
        };
        match Handle::try_current() {
            Ok(runtime) if !first.orphaned.load(Relaxed) => {
                let number = Some(driven.replace_driver());
                spawn(&runtime, Driver { driven, number });
            }
            _ => {
                self.make_orphan(&driven);
                self.adopt();
                // The caller that is polling the gathering polls this next.
                first.wake();
            }
        }
    }

    fn make_orphan(&self, driven: &Driven) {
        driven.orphaned.store(true, Relaxed);
        self.orphans.store(true, Relaxed);
    }

    /// Waits for `answer`, and sees to it that what it waits for is driven.
    pub(super) async fn attend<F: Future>(&self, mut answer: Pin<&mut F>) -> F::Output {
        self.adopt();
        loop {
            let turn = poll_fn(|cx| {
                self.poll_orphans(cx);
                answer.as_mut().poll(cx)
            });
            if let Some(answer) = within(ROUND, pin!(turn)).await {
                return answer;
            }
            self.round();
        }
    }

    /// Pings all, and gives those that did not answer the last ping a new driver. Once in a
    /// [`ROUND`], however many wait.
    fn round(&self) {
        {
            let Some(mut last) = self.last_round.try_lock() else { return };
            if last.is_some_and(|last| last.elapsed() < ROUND / 2) {
                return;
            }
            *last = Some(Instant::now());
        }
        for driven in self.under_way() {
            if driven.ping() {
                self.make_orphan(&driven);
            }
        }
        self.adopt();
    }

    /// Spawns tasks to drive the orphans in this runtime, if it is one, and has not been tried.
    fn adopt(&self) {
        if !self.orphans.load(Relaxed) {
            return;
        }
        let orphans = self.orphans();
        if orphans.is_empty() {
            self.orphans.store(false, Relaxed);
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        for driven in orphans {
            if *driven.runtime.lock() != Some(runtime.id()) {
                spawn(&runtime, Driver { driven, number: None });
            }
        }
    }

    /// Polls the orphans. Again at each poll of a caller and at each round: where one that polled
    /// them has left, what they wait for wakes no task.
    fn poll_orphans(&self, cx: &Context<'_>) {
        if self.orphans.load(Relaxed) {
            for driven in self.orphans() {
                let _ = driven.poll(cx);
            }
        }
    }

    fn orphans(&self) -> Vec<Arc<Driven>> {
        let mut orphans = self.under_way();
        orphans.retain(|driven| driven.orphaned.load(Relaxed));
        orphans
    }

    /// What is not done. Not under the lock: to wake or to poll is the code of others.
    fn under_way(&self) -> Vec<Arc<Driven>> {
        self.all.lock().iter().filter(|driven| !driven.done.load(Relaxed)).cloned().collect()
    }
}

fn spawn(runtime: &Handle, driver: Driver) {
    *driver.driven.runtime.lock() = Some(runtime.id());
    drop(runtime.spawn(driver));
}

impl fmt::Debug for Crew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crew").finish_non_exhaustive()
    }
}

/// Drops a value that may be a caller's: if that panics, others are served all the same.
pub(super) fn drop_quietly<T>(value: T) {
    drop(catch_unwind(AssertUnwindSafe(|| drop(value))));
}
