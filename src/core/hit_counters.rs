//! Hits and misses, counted exactly and without a read-modify-write.
//!
//! A counter beside the lock of the shard costs each hit one more locked instruction, and with
//! several threads on one shard one more transfer of its cache line: a quarter of the throughput of
//! a hot key, measured. So each thread counts in cells that no other thread writes; a plain load
//! and store suffices, and the sum over the threads is exact.
//!
//! 1. A thread leases a number while it lives; two living threads never have the same. A number
//!    below the count of lanes is that of a lane.
//! 2. A cell is written only by the thread that has its number, so no count is lost between the
//!    load and the store.
//! 3. A number changes hands under the mutex of [`LEASES`], so the next owner sees what the last
//!    one stored and goes on from there.
//! 4. A thread that has no number (more than [`NUMBERS`] threads live, or this one is already
//!    tearing down) counts in cells of all such threads, by read-modify-writes.
//!
//! Orderings: relaxed. Joining a thread makes its counts visible; a count publishes nothing.

// Not through `sync`: a scheduling point between load and store would model a race that (2) rules
// out, as shuttle runs all its threads on one.
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// How many threads at a time can count alone.
const NUMBERS: usize = 128;

/// The cells that a cache makes for them: 2 MB. One with over a thousand shards has lanes for fewer
/// threads. Fewer for Miri, which takes ten seconds to make so many.
const CELLS: usize = if cfg!(miri) { 1 << 7 } else { 1 << 17 };

/// Hits and misses of one shard.
#[derive(Debug, Default)]
struct Cells {
    hits: AtomicU64,
    misses: AtomicU64,
}

/// Cells between two lanes: a pair of cache lines, so that no two lanes share one.
const GAP: usize = 128 / size_of::<Cells>();

#[derive(Debug)]
pub(super) struct HitCounters {
    /// The lanes one after the other: the cells of one thread for all shards. In one piece, so that
    /// a count on the way of every hit finds its cell by arithmetic.
    cells: Box<[Cells]>,
    /// From one lane to the next.
    stride: usize,
    /// For the threads that have no lane of their own.
    common: Box<[Cells]>,
}

/// The outcome of a `get`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Hit,
    Miss,
}

impl Cells {
    #[inline]
    fn of(&self, outcome: Outcome) -> &AtomicU64 {
        match outcome {
            Outcome::Hit => &self.hits,
            Outcome::Miss => &self.misses,
        }
    }
}

impl HitCounters {
    pub(super) fn new(shards: usize) -> Self {
        let stride = shards + GAP;
        let lanes = (CELLS / stride).clamp(1, NUMBERS);
        let cells = |count: usize| (0..count).map(|_| Cells::default()).collect();
        Self { cells: cells(lanes * stride), stride, common: cells(shards) }
    }

    #[inline]
    pub(super) fn count(&self, shard: usize, outcome: Outcome) {
        self.add(shard, outcome, 1);
    }

    /// Counts as many at once.
    #[inline]
    pub(super) fn add(&self, shard: usize, outcome: Outcome, times: u64) {
        let Some(cells) = self.own(NUMBER.get(), shard) else {
            return self.add_without_lane(shard, outcome, times);
        };
        let cell = cells.of(outcome);
        cell.store(cell.load(Relaxed) + times, Relaxed);
    }

    #[cold]
    #[inline(never)]
    fn add_without_lane(&self, shard: usize, outcome: Outcome, times: u64) {
        if NUMBER.get() == UNKNOWN && lease().is_some_and(|number| self.own(number, 0).is_some()) {
            return self.add(shard, outcome, times);
        }
        self.common[shard].of(outcome).fetch_add(times, Relaxed);
    }

    /// The cells that the thread with this number alone writes, if it has a lane.
    #[inline]
    fn own(&self, number: usize, shard: usize) -> Option<&Cells> {
        // `UNKNOWN` and `NONE` are minus one and minus two: they come out less than two strides
        // below zero, so far behind all cells.
        self.cells.get(number.wrapping_mul(self.stride).wrapping_add(shard))
    }

    /// Hits and misses of one shard so far.
    pub(super) fn read(&self, shard: usize) -> (u64, u64) {
        let own = self.cells.iter().skip(shard).step_by(self.stride);
        own.chain([&self.common[shard]]).fold((0, 0), |(hits, misses), cells| {
            (hits + cells.hits.load(Relaxed), misses + cells.misses.load(Relaxed))
        })
    }
}

/// Which numbers are free.
struct Leases {
    returned: Vec<usize>,
    /// Numbers from here on have never been leased.
    fresh: usize,
}

static LEASES: Mutex<Leases> = Mutex::new(Leases { returned: Vec::new(), fresh: 0 });

/// The number of this thread, given back when the thread ends.
struct Lease(Cell<usize>);

const UNKNOWN: usize = usize::MAX;
const NONE: usize = usize::MAX - 1;

thread_local! {
    /// The number, `UNKNOWN` or `NONE`. Apart from [`LEASE`], as it needs no destructor: that makes
    /// reading it cheap, and possible while the thread is tearing down.
    static NUMBER: Cell<usize> = const { Cell::new(UNKNOWN) };
    static LEASE: Lease = const { Lease(Cell::new(NONE)) };
}

impl Drop for Lease {
    fn drop(&mut self) {
        NUMBER.set(NONE);
        if self.0.get() != NONE {
            LEASES.lock().unwrap_or_else(PoisonError::into_inner).returned.push(self.0.get());
        }
    }
}

/// Leases a number for this thread, if one is left.
#[cold]
fn lease() -> Option<usize> {
    // Should the lease be gone already, the thread is tearing down and must not take another.
    let leased = LEASE.try_with(|lease| {
        let mut leases = LEASES.lock().unwrap_or_else(PoisonError::into_inner);
        let number = leases.returned.pop().or_else(|| {
            let fresh = Some(leases.fresh).filter(|&fresh| fresh < NUMBERS)?;
            leases.fresh += 1;
            Some(fresh)
        })?;
        lease.0.set(number);
        Some(number)
    });
    let number = leased.ok().flatten();
    NUMBER.set(number.unwrap_or(NONE));
    number
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn no_count_is_lost_with_more_threads_than_numbers() {
        let hit_counters = HitCounters::new(9);
        let (waves, threads, counts) = if cfg!(miri) { (1, 3, 5) } else { (3, NUMBERS + 20, 500) };
        for _ in 0..waves {
            let all = std::sync::Barrier::new(threads);
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| {
                        // All at once, so that numbers run out.
                        all.wait();
                        for _ in 0..counts {
                            hit_counters.count(8, Outcome::Hit);
                            hit_counters.count(0, Outcome::Miss);
                        }
                        all.wait();
                    });
                }
            });
        }
        let each = (waves * threads * counts) as u64;
        assert_eq!(hit_counters.read(8), (each, 0));
        assert_eq!(hit_counters.read(0), (0, each));
        assert_eq!(hit_counters.read(1), (0, 0));
    }

    #[test]
    fn counting_while_the_thread_tears_down_works() {
        struct Late(Cell<Option<std::sync::Arc<HitCounters>>>);
        impl Drop for Late {
            fn drop(&mut self) {
                if let Some(hit_counters) = self.0.take() {
                    hit_counters.count(0, Outcome::Hit);
                }
            }
        }
        thread_local!(static LATE: Late = const { Late(Cell::new(None)) });
        let hit_counters = std::sync::Arc::new(HitCounters::new(1));
        for late_first in [true, false] {
            let hit_counters = hit_counters.clone();
            let thread = std::thread::spawn(move || {
                // Destructors run in the reverse order of first use: try both.
                if late_first {
                    LATE.with(|late| late.0.set(Some(hit_counters.clone())));
                    hit_counters.count(0, Outcome::Hit);
                } else {
                    hit_counters.count(0, Outcome::Hit);
                    LATE.with(|late| late.0.set(Some(hit_counters.clone())));
                }
            });
            thread.join().unwrap();
        }
        assert_eq!(hit_counters.read(0), (4, 0));
    }
}
