use std::future::{Future, pending, ready};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use tokio::runtime::Builder;

use super::{Instant, Interval, sleep};

const SHORT: Duration = Duration::from_millis(20);
const HOUR: Duration = Duration::from_secs(3600);

async fn within<T>(time: Duration, future: impl Future<Output = T>) -> Option<T> {
    super::within(time, pin!(future)).await
}

/// All that a sleep promises, in whatever runtime this is polled in.
async fn keeps_time() {
    let start = std::time::Instant::now();
    assert_eq!(within(SHORT, pending::<()>()).await, None);
    assert!(start.elapsed() >= SHORT, "{:?}", start.elapsed());
    assert_eq!(within(Duration::ZERO, ready(1)).await, Some(1), "polled once at least");
    assert_eq!(within(Duration::MAX, ready(2)).await, Some(2));
    assert_eq!(within(SHORT, sleep(Duration::MAX)).await, None);
    assert_eq!(within(HOUR, sleep(SHORT)).await, Some(()));
    let (start, mut interval) = (Instant::now(), Interval::new(SHORT));
    interval.tick().await;
    interval.tick().await;
    assert!(start.elapsed() >= 2 * SHORT, "{:?}", start.elapsed());
}

#[test]
fn sleeps_outside_a_runtime() {
    pollster::block_on(keeps_time());
}

#[test]
fn sleeps_in_runtimes_with_timers() {
    Builder::new_current_thread().enable_time().build().unwrap().block_on(keeps_time());
    let threads = Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
    threads.block_on(async { tokio::spawn(keeps_time()).await.unwrap() });
}

/// The panic hook is that of the process: one test at a time counts what it is told.
static HOOK: Mutex<()> = Mutex::new(());

/// How many panics of tokio's timers the hook is told of in `work`, on this thread.
fn told_of(work: impl FnOnce()) -> usize {
    static TOLD: AtomicUsize = AtomicUsize::new(0);
    let _alone = HOOK.lock().unwrap_or_else(PoisonError::into_inner);
    TOLD.store(0, SeqCst);
    let (this, before) = (std::thread::current().id(), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().id() == this {
            TOLD.fetch_add(1, SeqCst);
        } else {
            before(panic);
        }
    }));
    work();
    drop(std::panic::take_hook());
    TOLD.load(SeqCst)
}

#[test]
fn a_runtime_without_timers_is_asked_once() {
    let told = told_of(|| {
        let runtime = Builder::new_current_thread().build().unwrap();
        for _ in 0..3 {
            runtime.block_on(keeps_time());
        }
    });
    assert_eq!(told, 1);
}

/// A runtime of one thread that is entered, and driven by nobody.
#[test]
fn timers_that_nobody_drives_are_not_relied_on() {
    let idle = Builder::new_current_thread().enable_time().build().unwrap();
    let _inside = idle.enter();
    assert_eq!(told_of(|| pollster::block_on(keeps_time())), 0);
}

#[test]
fn a_runtime_that_is_gone_is_asked_once() {
    let gone = Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
    let handle = gone.handle().clone();
    gone.shutdown_timeout(Duration::from_secs(5));
    let told = told_of(|| {
        let _inside = handle.enter();
        for _ in 0..3 {
            pollster::block_on(keeps_time());
        }
    });
    assert_eq!(told, 1);
}

/// A timer that has begun in a runtime which then ends goes on to the end of its time.
#[test]
fn a_sleep_outlives_its_runtime() {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
    let time = Duration::from_millis(300);
    let mut sleep = pin!(sleep(time));
    let start = std::time::Instant::now();
    let told = told_of(|| {
        runtime.block_on(async {
            assert!(sleep.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        });
        drop(runtime);
        pollster::block_on(sleep);
    });
    assert!(start.elapsed() >= time, "{:?}", start.elapsed());
    assert_eq!(told, 0, "seen without a panic");
}

/// What uses up its budget at every poll runs out of time all the same.
#[tokio::test]
async fn work_that_leaves_no_budget_runs_out_of_time() {
    let work = async {
        let semaphore = tokio::sync::Semaphore::new(1);
        loop {
            drop(semaphore.acquire().await);
        }
    };
    assert_eq!(within(SHORT, work).await, None::<()>);
}

#[tokio::test(start_paused = true)]
async fn a_paused_clock_is_followed() {
    let start = Instant::now();
    assert_eq!(within(HOUR, pending::<()>()).await, None);
    let slept = start.elapsed();
    assert!(slept >= HOUR && slept < HOUR + SHORT, "{slept:?}");
    let mut interval = Interval::new(HOUR);
    interval.tick().await;
    // Late: the next tick comes at once, and those after it follow that.
    sleep(3 * HOUR).await;
    let late = Instant::now();
    interval.tick().await;
    assert!(late.elapsed() < SHORT);
    interval.tick().await;
    assert!(late.elapsed() >= HOUR);
}
