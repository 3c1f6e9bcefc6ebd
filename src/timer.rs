//! Timers for whatever runtime the caller runs in: none of this panics, whether that has timers or
//! not, is shutting down, or is no tokio runtime at all.
//!
//! The timers of the current tokio runtime are used where it has any, so that they are driven with
//! its other timers, and stand still where its clock is paused. Elsewhere those of `futures-timer`
//! are, which one thread of the process drives; and beside tokio's, where it may be that no thread
//! drives those.
//!
//! Tokio has no way to ask whether a runtime has timers: to make one panics where there are none.
//! That panic is caught, and the runtime remembered, so that the panic hook of the process prints
//! one line for each runtime without timers. Where panics abort, tokio's timers are never tried.
//!
//! Under `--cfg shuttle` there is no clock: a wait counts as over after a few turns of the others.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

/// The clock of the timers, not the system's: where tokio's clock is paused, so is it.
pub(crate) use tokio::time::Instant;

pub(crate) use imp::sleep_until;

/// Sleeps for `time`. One that no clock can name is for ever.
pub(crate) async fn sleep(time: Duration) {
    match Instant::now().checked_add(time) {
        Some(end) => sleep_until(end).await,
        None => std::future::pending().await,
    }
}

/// What `future` comes to, if it does within `time`. It is polled at least once.
///
/// Pinned by the caller: taken by value, it would be held twice.
pub(crate) async fn within<F: Future>(
    time: Duration,
    mut future: Pin<&mut F>,
) -> Option<F::Output> {
    let mut sleep = pin!(sleep(time));
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => sleep.as_mut().poll(cx).map(|()| None),
    })
    .await
}

/// Ticks at an interval; the first after one.
#[derive(Debug)]
pub(crate) struct Interval {
    period: Duration,
    next: Option<Instant>,
}

impl Interval {
    pub(crate) fn new(period: Duration) -> Self {
        Self { period, next: Instant::now().checked_add(period) }
    }

    /// Waits for the next tick. One that is late delays those after it.
    pub(crate) async fn tick(&mut self) {
        match self.next {
            Some(next) => sleep_until(next).await,
            None => std::future::pending().await,
        }
        self.next = Instant::now().checked_add(self.period);
    }
}

#[cfg(not(shuttle))]
mod imp {
    use std::future::{Future, poll_fn};
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::pin::pin;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    use std::sync::{Mutex, PoisonError};
    use std::task::Poll;

    use futures_timer::Delay;
    use tokio::runtime::{Handle, Id, RuntimeFlavor};
    use tokio::task::unconstrained;
    use tokio::time::Sleep;

    use super::Instant;

    /// Sleeps until `end`, by the timers of the current tokio runtime or those of the process.
    pub(crate) async fn sleep_until(end: Instant) {
        if !tokio_sleep(end).await {
            process_sleep(end).await;
        }
    }

    /// `false` as soon as it turns out that the current runtime, if there is one, has no timers, or
    /// that they have been shut down.
    async fn tokio_sleep(end: Instant) -> bool {
        let Some((sleep, runtime)) = tokio_timer(end) else { return false };
        let mut sleep = pin!(sleep);
        let mut reserve = pin!(may_be_idle().then(|| process_sleep(end)));
        poll_fn(|cx| {
            // Polled elsewhere now, and its runtime may not be driven any more.
            if current() != Some(runtime) {
                return Poll::Ready(false);
            }
            // Those that a shutdown has ended have elapsed as well, and too early.
            if sleep.is_elapsed() {
                return Poll::Ready(Instant::now() >= end);
            }
            // Not counted against the task's budget: the future that a time is set for may use it up
            // at every poll, and would never run out of time.
            match caught(|| pin!(unconstrained(sleep.as_mut())).poll(cx)) {
                Some(Poll::Ready(())) => return Poll::Ready(true),
                Some(Poll::Pending) => {}
                None => {
                    WITHOUT_TIMERS.remember(runtime);
                    return Poll::Ready(false);
                }
            }
            while let Some(timer) = reserve.as_mut().as_pin_mut() {
                match timer.poll(cx) {
                    Poll::Ready(()) if Instant::now() >= end => return Poll::Ready(true),
                    // Tokio's clock is paused.
                    Poll::Ready(()) => reserve.set(Some(process_sleep(end))),
                    Poll::Pending => break,
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Whether no thread may drive the timers of the current runtime: it has one thread, and this is no
    /// task of it. It may be its `block_on`, which drives them, or a future that is polled elsewhere
    /// after `enter`.
    fn may_be_idle() -> bool {
        tokio::task::try_id().is_none()
            && Handle::try_current()
                .is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::CurrentThread)
    }

    /// A timer of the current runtime, and that runtime, if there are any.
    fn tokio_timer(end: Instant) -> Option<(Sleep, Id)> {
        // A panic while another goes on may end the process.
        if cfg!(panic = "abort") || std::thread::panicking() {
            return None;
        }
        let runtime = current()?;
        if WITHOUT_TIMERS.knows(runtime) {
            return None;
        }
        let sleep = caught(|| tokio::time::sleep_until(end));
        if sleep.is_none() {
            WITHOUT_TIMERS.remember(runtime);
        }
        Some((sleep?, runtime))
    }

    fn current() -> Option<Id> {
        Handle::try_current().ok().map(|runtime| runtime.id())
    }

    async fn process_sleep(end: Instant) {
        let mut delay = Some(Delay::new(end.saturating_duration_since(Instant::now())));
        poll_fn(|cx| {
            if let Some(timer) = &mut delay {
                if let Some(poll) = caught(|| pin!(timer).poll(cx)) {
                    return poll;
                }
                delay = None;
            }
            // The process may start no thread to drive timers. So this task asks for the time over
            // and over: that costs a processor, but is no panic, and no wait without an end.
            if Instant::now() >= end {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// What `timer` answers, or nothing if it panics. Unwind safe: what has panicked is dropped.
    fn caught<T>(timer: impl FnOnce() -> T) -> Option<T> {
        catch_unwind(AssertUnwindSafe(timer)).ok()
    }

    static WITHOUT_TIMERS: Runtimes =
        Runtimes { any: AtomicBool::new(false), last: Mutex::new(Vec::new()) };

    /// Some runtimes, the last that were met.
    struct Runtimes {
        /// Whether there are any. Relaxed: a thread that misses the first one panics once more, caught.
        any: AtomicBool,
        last: Mutex<Vec<Id>>,
    }

    /// Runtimes without timers that are remembered; one that was forgotten costs another line of the
    /// panic hook.
    const REMEMBERED: usize = 64;

    impl Runtimes {
        /// Another runtime may have the name of one that is gone. Then it is taken for that, and has
        /// the timers of the process, which are as good where the clock is not paused.
        fn knows(&self, runtime: Id) -> bool {
            self.any.load(Relaxed) && self.lock().contains(&runtime)
        }

        fn remember(&self, runtime: Id) {
            let mut last = self.lock();
            if last.contains(&runtime) {
                return;
            }
            if last.len() == REMEMBERED {
                last.remove(0);
            }
            last.push(runtime);
            self.any.store(true, Relaxed);
        }

        fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Id>> {
            self.last.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }
}

#[cfg(shuttle)]
mod imp {
    use super::Instant;

    /// Turns of the other tasks after which a time counts as over.
    const TURNS: usize = 20;

    pub(crate) async fn sleep_until(_: Instant) {
        for _ in 0..TURNS {
            shuttle::future::yield_now().await;
        }
    }
}

#[cfg(all(test, not(shuttle), not(miri)))]
mod tests;
