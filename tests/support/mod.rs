//! What the integration tests share: a clock that a test sets, a gate that stops a thread at a
//! chosen place, a log of what left a cache, and a guard against tests that hang.

// Every test file compiles this module for itself and uses only a part of it.
#![allow(dead_code)]

use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use chrono::{DateTime, Utc};
use embedding_cache::{CacheKey, Clock, EvictionPolicy, MemoryPressure, RemovalCause};

/// After this long a test that waits has failed. No test that passes comes near it.
pub(crate) const HANG: Duration = Duration::from_secs(20);

/// Every order of eviction.
pub(crate) const POLICIES: [EvictionPolicy; 3] =
    [EvictionPolicy::Lru, EvictionPolicy::S3Fifo, EvictionPolicy::HitDensity];

/// Every answer to a shortage of weight.
pub(crate) const PRESSURES: [MemoryPressure; 2] =
    [MemoryPressure::PolicyOrder, MemoryPressure::LargestFirst];

/// Calls `test` with every policy, every memory pressure and each number of shards.
pub(crate) fn everywhere(
    shards: &[usize],
    mut test: impl FnMut(EvictionPolicy, MemoryPressure, usize),
) {
    for policy in POLICIES {
        for pressure in PRESSURES {
            for &shards in shards {
                test(policy, pressure, shards);
            }
        }
    }
}

/// The `i`-th key, of the form that servers use.
pub(crate) fn key(i: usize) -> CacheKey {
    CacheKey::new(format!("{i:064x}"), "e5-base@1")
}

/// A mutex whose owner may have panicked, as some tests do on purpose.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A clock that stands still until the test moves it. It starts at 1,000 seconds, so that there is
/// a past to go back to.
#[derive(Debug)]
pub(crate) struct FakeClock {
    monotonic: Mutex<Duration>,
    wall: Mutex<DateTime<Utc>>,
    readings: AtomicU64,
}

impl FakeClock {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            monotonic: Mutex::new(Duration::from_secs(1000)),
            wall: Mutex::new(DateTime::from_timestamp(1_700_000_000, 0).unwrap()),
            readings: AtomicU64::new(0),
        })
    }

    pub(crate) fn advance(&self, by: Duration) {
        *lock(&self.monotonic) += by;
    }

    /// Sets the monotonic clock, back too.
    pub(crate) fn set(&self, to: Duration) {
        *lock(&self.monotonic) = to;
    }

    pub(crate) fn set_wall(&self, to: DateTime<Utc>) {
        *lock(&self.wall) = to;
    }

    /// How often the monotonic clock was read.
    pub(crate) fn readings(&self) -> u64 {
        self.readings.load(Relaxed)
    }
}

impl Clock for FakeClock {
    fn monotonic(&self) -> Duration {
        self.readings.fetch_add(1, Relaxed);
        *lock(&self.monotonic)
    }

    fn wall(&self) -> DateTime<Utc> {
        *lock(&self.wall)
    }
}

/// A hash function that puts the key `k: u64` into shard `k` modulo the number of shards.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ShardIsKey;

#[derive(Debug, Default)]
pub(crate) struct ShardIsKeyHasher(u64);

impl BuildHasher for ShardIsKey {
    type Hasher = ShardIsKeyHasher;

    fn build_hasher(&self) -> ShardIsKeyHasher {
        ShardIsKeyHasher::default()
    }
}

impl Hasher for ShardIsKeyHasher {
    fn finish(&self) -> u64 {
        // The upper half chooses the shard, the lower one the place in it.
        self.0 << 32 | self.0 & 0xFFFF_FFFF
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("for u64 only")
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

/// Stops whoever passes while it is closed.
#[derive(Debug)]
pub(crate) struct Gate {
    /// Whether it is open, and how many threads have come to it while it was closed.
    state: Mutex<(bool, usize)>,
    changed: Condvar,
}

impl Gate {
    pub(crate) fn closed() -> Arc<Self> {
        Arc::new(Self { state: Mutex::new((false, 0)), changed: Condvar::new() })
    }

    /// An open gate, to be closed later.
    pub(crate) fn opened() -> Arc<Self> {
        Arc::new(Self { state: Mutex::new((true, 0)), changed: Condvar::new() })
    }

    /// Goes through, at once or when the gate is opened.
    pub(crate) fn pass(&self) {
        let mut state = lock(&self.state);
        if state.0 {
            return;
        }
        state.1 += 1;
        self.changed.notify_all();
        let (state, late) =
            self.changed.wait_timeout_while(state, HANG, |(open, _)| !*open).unwrap();
        drop(state);
        assert!(!late.timed_out(), "nobody opened the gate");
    }

    /// Waits until `n` threads have come to the closed gate.
    pub(crate) fn wait_for(&self, n: usize) {
        let state = lock(&self.state);
        let (state, late) =
            self.changed.wait_timeout_while(state, HANG, |(_, arrived)| *arrived < n).unwrap();
        drop(state);
        assert!(!late.timed_out(), "nobody came to the gate");
    }

    pub(crate) fn open(&self) {
        lock(&self.state).0 = true;
        self.changed.notify_all();
    }

    pub(crate) fn close(&self) {
        *lock(&self.state) = (false, 0);
    }
}

/// Opens a gate when it is dropped, so that a test that fails does not leave a thread behind it.
#[derive(Debug)]
pub(crate) struct OpenOnDrop<'a>(pub(crate) &'a Gate);

impl Drop for OpenOnDrop<'_> {
    fn drop(&mut self) {
        self.0.open();
    }
}

/// Sets a flag when it is dropped: tells the other threads of a test to end, also when it failed.
#[derive(Debug)]
pub(crate) struct SetOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// What a cache has told its listener, in order.
#[derive(Debug)]
pub(crate) struct Removals<K, V>(Arc<Mutex<Vec<(K, V, RemovalCause)>>>);

impl<K, V> Clone for Removals<K, V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: Clone, V: Clone> Removals<K, V> {
    pub(crate) fn new() -> Self {
        Self(Arc::default())
    }

    /// The listener to give to a builder.
    pub(crate) fn listener(&self) -> impl Fn(&K, &V, RemovalCause) + Send + Sync + 'static
    where
        K: Send + 'static,
        V: Send + 'static,
    {
        let log = Arc::clone(&self.0);
        move |key, value, cause| lock(&log).push((key.clone(), value.clone(), cause))
    }

    /// What was told since the last call.
    pub(crate) fn take(&self) -> Vec<(K, V, RemovalCause)> {
        std::mem::take(&mut *lock(&self.0))
    }
}

/// Runs `work` on a thread of its own and fails, rather than hangs, if it does not end.
pub(crate) fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, wait) = mpsc::channel();
    let thread = thread::spawn(move || {
        let _ = done.send(work());
    });
    match wait.recv_timeout(HANG) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("the operation does not end"),
        Err(mpsc::RecvTimeoutError::Disconnected) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => unreachable!("the thread sent nothing and did not panic"),
        },
    }
}

/// Waits until `condition` holds, polling it.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed() < HANG, "never happened: {what}");
        thread::yield_now();
    }
}
