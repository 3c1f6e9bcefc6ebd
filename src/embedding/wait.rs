//! How an async operation waits for the lock of a shard: in short slices, yielding in between.
//!
//! Locks are held for microseconds, so an async operation tries the lock first and nearly always
//! has it. Where another thread sits on it for longer (a slow `retain`), blocking would take an
//! executor thread out of service for as long, and a timer would need a runtime with timers. So the
//! operation parks its thread for a slice, yields to the other tasks, and tries again.

use std::time::{Duration, Instant};

use crate::core::{Step, Stepwise, Until};
use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// All that wait in one cache together park an executor thread for about this long in a round, so
/// that a thousand waiting tasks do not stop the others a thousand times as long.
const ROUND: Duration = Duration::from_micros(400);
/// The shortest slice worth parking for.
const SHORTEST: Duration = Duration::from_micros(10);

/// Work of its own after which an async operation yields to other tasks.
const WORK: Duration = Duration::from_micros(200);

/// Lets an operation of many steps yield every [`WORK`]. A step must take no longer than that.
#[derive(Default)]
pub(super) struct Pace {
    /// From the second step on: an operation of one step pays nothing.
    since: Option<Instant>,
}

impl Pace {
    /// Before each step: yields, if it is time.
    pub(super) async fn step(&mut self) {
        if self.is_due() {
            tokio::task::yield_now().await;
            self.since = Some(Instant::now());
        }
    }

    /// Before each step that must not be interrupted: whether it is time to yield.
    pub(super) fn is_due(&mut self) -> bool {
        self.since.get_or_insert_with(Instant::now).elapsed() >= WORK
    }
}

/// How many operations of a cache are waiting.
#[derive(Debug, Default)]
pub(super) struct Waiters(AtomicU64);

impl Waiters {
    /// Calls `attempt` until it has a result: first without a wait, then in slices. Dropping the
    /// future leaves nothing behind.
    pub(super) async fn wait<T>(&self, mut attempt: impl FnMut(Until) -> Option<T>) -> T {
        if let Some(done) = attempt(Until::after(Duration::ZERO)) {
            return done;
        }
        match self.wait_in_slices(None, attempt).await {
            Some(done) => done,
            None => unreachable!("there is no limit"),
        }
    }

    /// As [`wait`](Self::wait), after the first try had no result; `None` when `limit` is over.
    pub(super) async fn wait_in_slices<T>(
        &self,
        limit: Option<Duration>,
        mut attempt: impl FnMut(Until) -> Option<T>,
    ) -> Option<T> {
        let deadline = limit.map(|limit| Instant::now().checked_add(limit));
        let waiting = Waiting::new(self);
        loop {
            let slice = match deadline {
                // No limit, or one that the clock cannot name.
                None | Some(None) => waiting.slice(),
                Some(Some(deadline)) => match deadline.saturating_duration_since(Instant::now()) {
                    Duration::ZERO => return None,
                    remaining => waiting.slice().min(remaining),
                },
            };
            if let Some(done) = attempt(Until::after(slice)) {
                return Some(done);
            }
            tokio::task::yield_now().await;
        }
    }

    /// Takes all steps of `work`, and yields between them.
    pub(super) async fn drive<T: Stepwise>(&self, mut work: T) -> T::Output {
        let mut pace = Pace::default();
        loop {
            let step = |wait| Some(work.step(wait)).filter(|&step| step != Step::Locked);
            if self.wait(step).await == Step::Done {
                return work.end();
            }
            pace.step().await;
        }
    }
}

/// One operation that waits; counted until it is dropped.
struct Waiting<'a>(&'a Waiters);

impl<'a> Waiting<'a> {
    fn new(waiters: &'a Waiters) -> Self {
        // Relaxed: the count only sizes slices.
        waiters.0.fetch_add(1, Relaxed);
        Self(waiters)
    }

    fn slice(&self) -> Duration {
        let all = u32::try_from(self.0.0.load(Relaxed)).unwrap_or(u32::MAX).max(1);
        (ROUND / all).max(SHORTEST)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}
