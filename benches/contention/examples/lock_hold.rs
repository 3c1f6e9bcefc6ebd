//! How long does a cleanup keep a `get` waiting?
//!
//! A million entries, half of which expire at the same moment: one thread removes them with
//! `cleanup_expired` while another gets live keys, back to back, and times each get.
//!
//! ```sh
//! cargo run --release -p contention --example lock_hold
//! ```
//!
//! On a busy machine a get is late for reasons that are none of the cache's: its thread had to give
//! its processor to another program for some milliseconds. Two things tell these apart:
//!
//! - a **control** before each cleanup: the same gets while the other thread cleans up *another*
//!   cache of the same size. The same work, the same memory traffic, and no lock in common. What the
//!   cleanup column has beyond it is what the locks cost;
//! - Linux counts how long a thread was ready to run and had no processor. That much of both threads
//!   is taken off the late gets to see how many are still late. (Of both, as a get also waits while
//!   the other thread has a lock and no processor.)
//!
//! Then the locks themselves. The cleanup calls the eviction listener after each lock hold, so the
//! time from one call to the next is never shorter than a hold. It is taken in processor time of the
//! cleaning thread, which stands still while others run. Between two calls the values that left are
//! dropped too, which happens outside the lock and may take an allocator as long as it likes; so that
//! it is not taken for a hold, the example keeps a clone of each, and their drop frees nothing.
//!
//! And a **loop** that takes no lock, calls no allocator and touches no memory, timed in the same way
//! beside the same gets for as long as the cleanup takes. Its steps are all alike, so what its longest
//! one has beyond the usual is the host's: a virtual machine counts as processor time of a thread what
//! the host gives to others meanwhile. A hold over the bound in a run whose loop is over it too says
//! nothing of the lock.
//!
//! In a virtual machine a few gets of the cleanup column stay late. Waking a thread that waits for
//! a lock goes through the hypervisor, which may take its time, and no count inside the machine
//! shows that. The holds tell whether it was the lock.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use embedding_cache::{CacheError, Clock, EvictionPolicy, ShardedCache};
use hdrhistogram::Histogram;

/// The promise: no get waits longer than this for a lock.
const BOUND: Duration = Duration::from_millis(1);

/// How long a get of a live key waits for the locks of a cleanup that removes half of the cache.
#[derive(Debug, Parser)]
struct Options {
    /// Entries in the cache; every second one expires
    #[arg(long, value_name = "N", default_value = "1000000")]
    #[arg(value_parser = clap::value_parser!(u64).range(128..=100_000_000))]
    entries: u64,

    /// Rounds of a control and a cleanup
    #[arg(long, value_name = "N", default_value = "5")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1000))]
    rounds: u64,
}

fn main() -> Result<(), CacheError> {
    let options = Options::parse();
    let processors = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    println!(
        "{} entries, of which every second expires at the same moment; {processors} processors",
        grouped(options.entries)
    );
    println!("control: gets while another cache of this size is cleaned up (no lock in common)");
    println!("cleanup: gets while the same cache is cleaned up");
    println!("median of {} rounds, and the worst round in brackets", options.rounds);
    let mut longest = Longest::default();
    for policy in [EvictionPolicy::default(), EvictionPolicy::Lru] {
        longest.join(measure(policy, &options)?);
    }
    println!();
    println!(
        "No lock was held for longer than {}: the bound of {} is {}. The longest step of the loop \
         without a lock took {}.",
        show(longest.hold),
        show(BOUND),
        if longest.hold <= BOUND { "kept" } else { "BROKEN" },
        show(longest.step),
    );
    Ok(())
}

/// In processor time of the thread beside which another gets.
#[derive(Clone, Copy, Default)]
struct Longest {
    /// The longest lock hold of a cleanup.
    hold: Duration,
    /// The longest step of a loop that takes no lock.
    step: Duration,
}

impl Longest {
    fn join(&mut self, other: Self) {
        *self = Self { hold: self.hold.max(other.hold), step: self.step.max(other.step) };
    }
}

/// Runs all rounds with one policy and prints a table; returns the longest lock hold, and the longest
/// step of the loop.
fn measure(policy: EvictionPolicy, options: &Options) -> Result<Longest, CacheError> {
    let (mut controls, mut cleanups) = (Vec::new(), Vec::new());
    let (mut longest, mut shards) = (Longest::default(), 0);
    for _ in 0..options.rounds {
        let (cache, other) = (Cache::new(policy, options)?, Cache::new(policy, options)?);
        shards = cache.core.shards();
        controls.push(gets_while_cleaning(&cache, &other));
        cleanups.push(gets_while_cleaning(&cache, &cache));
        // In a cleanup of its own, so that reading the clock slows down no get above.
        let cache = Cache::new(policy, options)?;
        let (hold, took) = longest_hold(&cache);
        longest.join(Longest { hold, step: longest_step(&cache, took) });
    }

    println!();
    println!("{policy:?}, {shards} shards");
    println!("{:<34}{:>26}{:>26}", "", "control", "cleanup");
    let row = |name: &str, figure: &dyn Fn(&Gets) -> u64, show: &dyn Fn(u64) -> String| {
        let cell = |rounds: &[Gets]| {
            let mut figures: Vec<u64> = rounds.iter().map(figure).collect();
            figures.sort_unstable();
            let (median, worst) = (figures[figures.len() / 2], figures[figures.len() - 1]);
            format!("{} ({})", show(median), show(worst))
        };
        println!("{name:<34}{:>26}{:>26}", cell(&controls), cell(&cleanups));
    };
    let nanos = |nanos| show(Duration::from_nanos(nanos));
    row("gets", &|gets| gets.latencies.len(), &grouped);
    for (name, quantile) in
        [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.9999), ("longest", 1.0)]
    {
        row(name, &|gets| gets.latencies.value_at_quantile(quantile), &nanos);
    }
    row("over 1 ms", &|gets| gets.late, &grouped);
    if controls.iter().chain(&cleanups).all(|gets| gets.counts_processor) {
        println!("less the time without a processor:");
        row("  longest", &|gets| gets.longest_on_processor, &nanos);
        row("  over 1 ms", &|gets| gets.late_on_processor, &grouped);
    }
    row("the cleanup took", &|gets| gets.cleanup.as_nanos() as u64, &nanos);

    let removed = options.entries / 2 * options.rounds;
    let spent: Duration = cleanups.iter().map(|gets| gets.cleanup_on_processor).sum();
    println!(
        "one entry took {} to remove, on average; one lock hold {} at most, one step of the loop {}",
        show(Duration::from_nanos(spent.as_nanos() as u64 / removed)),
        show(longest.hold),
        show(longest.step)
    );
    Ok(longest)
}

/// A full cache, half of which has expired.
struct Cache {
    core: ShardedCache<u64, Arc<[f32]>>,
    entries: u64,
    timer: Arc<HoldTimer>,
    /// All that expire, so that nothing is freed when they leave the cache.
    _kept: Vec<Arc<[f32]>>,
}

impl Cache {
    fn new(policy: EvictionPolicy, options: &Options) -> Result<Self, CacheError> {
        let (clock, timer) = (Arc::new(TestClock::default()), Arc::new(HoldTimer::default()));
        let called = Arc::clone(&timer);
        let core = ShardedCache::builder()
            .max_entries(options.entries as usize)
            .eviction(policy)
            .clock(Arc::clone(&clock) as Arc<dyn Clock>)
            .eviction_listener(move |_: &u64, _: &Arc<[f32]>, _| called.called())
            .build()?;
        let mut kept = Vec::with_capacity(options.entries as usize / 2);
        for key in 0..options.entries {
            let vector = Arc::from([key as f32; 4]);
            if is_live(key) {
                core.insert(key, vector)?;
            } else {
                kept.push(Arc::clone(&vector));
                core.insert_with_ttl(key, vector, Duration::from_secs(60))?;
            }
        }
        clock.0.store(61, Relaxed);
        Ok(Self { core, entries: options.entries, timer, _kept: kept })
    }

    /// Removes what has expired; returns how long that took, by the clock and in processor time.
    fn clean_up(&self) -> (Duration, Duration) {
        let start = (Instant::now(), processor_time());
        let removed = self.core.cleanup_expired() as u64;
        assert_eq!(removed, self.entries / 2, "every second entry has expired");
        (start.0.elapsed(), processor_time() - start.1)
    }
}

fn is_live(key: u64) -> bool {
    key.is_multiple_of(2)
}

/// A clock that stands still until it is set, so that half a million entries expire at once.
#[derive(Default)]
struct TestClock(AtomicU64);

impl Clock for TestClock {
    fn monotonic(&self) -> Duration {
        Duration::from_secs(self.0.load(Relaxed))
    }
}

/// The gets of one thread during a cleanup by another.
struct Gets {
    /// In nanoseconds.
    latencies: Histogram<u64>,
    /// Gets over the bound.
    late: u64,
    /// Those that are over it less the time in which a thread had no processor.
    late_on_processor: u64,
    /// The longest get less that time, in nanoseconds.
    longest_on_processor: u64,
    /// Whether that time is known here.
    counts_processor: bool,
    /// How long the cleanup took.
    cleanup: Duration,
    cleanup_on_processor: Duration,
}

/// Gets live keys of `cache` for as long as `cleaned` is cleaned up by another thread.
fn gets_while_cleaning(cache: &Cache, cleaned: &Cache) -> Gets {
    let (mut gets, took) = gets_while(cache, || cleaned.clean_up());
    (gets.cleanup, gets.cleanup_on_processor) = took;
    gets
}

/// Gets live keys of `cache` for as long as another thread does `work`; and what came of that.
fn gets_while<T: Send>(cache: &Cache, work: impl FnOnce() -> T + Send) -> (Gets, T) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let (here_i_am, who) = mpsc::channel();
        let (gets_are_done, wait) = mpsc::channel::<()>();
        let done = &done;
        let worker = scope.spawn(move || {
            here_i_am.send(own_figures()).expect("the other side waits");
            // Until the gets run at full speed.
            thread::sleep(Duration::from_millis(20));
            let outcome = work();
            done.store(true, Relaxed);
            // The figures of this thread go when it ends.
            let _ = wait.recv();
            outcome
        });
        let worker_figures = who.recv().expect("the worker reports first");
        let gets = get_until(done, cache, &[own_figures(), worker_figures]);
        drop(gets_are_done);
        (gets, worker.join().expect("the work succeeds"))
    })
}

fn get_until(done: &AtomicBool, cache: &Cache, threads: &[PathBuf]) -> Gets {
    /// Gets between two looks at the time without a processor: a look costs as much as some gets.
    const LOOK: u64 = 1024;

    let mut gets = Gets {
        latencies: Histogram::new(3).expect("3 digits are allowed"),
        late: 0,
        late_on_processor: 0,
        longest_on_processor: 0,
        counts_processor: time_without_processor(threads).is_some(),
        cleanup: Duration::ZERO,
        cleanup_on_processor: Duration::ZERO,
    };
    let mut keys = Keys::default();
    let mut without = time_without_processor(threads).unwrap_or_default();
    for round in 0_u64.. {
        if done.load(Relaxed) {
            break;
        }
        let key = keys.next(cache.entries);
        let start = Instant::now();
        let found = cache.core.get(&key);
        let latency = start.elapsed();
        assert!(found.is_some_and(|vector| vector[0] == key as f32), "{key} is live");
        gets.latencies.record(latency.as_nanos() as u64).expect("the histogram grows");

        // Every late get, and from time to time another, so that what is taken off is from the
        // last few gets only.
        if latency > BOUND / 10 || round.is_multiple_of(LOOK) {
            let now = time_without_processor(threads).unwrap_or(without);
            let on_processor = latency.saturating_sub(now - without);
            without = now;
            gets.longest_on_processor =
                gets.longest_on_processor.max(on_processor.as_nanos() as u64);
            gets.late += u64::from(latency > BOUND);
            gets.late_on_processor += u64::from(on_processor > BOUND);
        }
    }
    gets
}

/// Live keys in no order.
struct Keys(u64);

impl Default for Keys {
    fn default() -> Self {
        Self(0x9E37_79B9_7F4A_7C15)
    }
}

impl Keys {
    fn next(&mut self, entries: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % entries / 2 * 2
    }
}

/// The longest lock hold of a cleanup, timed while another thread gets; and how long all of it took.
fn longest_hold(cache: &Cache) -> (Duration, Duration) {
    cache.timer.runs.store(true, Relaxed);
    let took = gets_while_cleaning(cache, cache).cleanup;
    (cache.timer.times.lock().expect("the listener does not panic").longest, took)
}

/// The longest step of a loop that runs for `time`, while another thread gets: about as much work as one
/// lock hold, in registers.
fn longest_step(cache: &Cache, time: Duration) -> Duration {
    /// Numbers drawn in a step: some 30 microseconds.
    const DRAWN: u32 = 16_384;

    let (_, longest) = gets_while(cache, || {
        let (began, mut before) = (Instant::now(), processor_time());
        let (mut keys, mut longest) = (Keys::default(), Duration::ZERO);
        while began.elapsed() < time {
            for _ in 0..DRAWN {
                std::hint::black_box(keys.next(1 << 20));
            }
            let now = processor_time();
            longest = longest.max(now.saturating_sub(before));
            before = now;
        }
        longest
    });
    longest
}

/// Measures the longest time from one call of the listener to the next.
#[derive(Default)]
struct HoldTimer {
    runs: AtomicBool,
    times: Mutex<Times>,
}

#[derive(Default)]
struct Times {
    latest: Option<Duration>,
    longest: Duration,
}

impl HoldTimer {
    fn called(&self) {
        if !self.runs.load(Relaxed) {
            return;
        }
        let now = processor_time();
        let mut times = self.times.lock().expect("the listener does not panic");
        if let Some(before) = times.latest.replace(now) {
            times.longest = times.longest.max(now.saturating_sub(before));
        }
    }
}

/// The time for which this thread has had a processor.
#[cfg(target_os = "linux")]
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Elsewhere, the time that has passed: what other programs take is then in the figures.
#[cfg(not(target_os = "linux"))]
fn processor_time() -> Duration {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    START.elapsed()
}

/// Where Linux keeps its figures of this thread.
fn own_figures() -> PathBuf {
    // A link to `<process>/task/<thread>`, which other threads can read too.
    let link = std::fs::read_link("/proc/thread-self").unwrap_or_default();
    Path::new("/proc").join(link).join("schedstat")
}

/// For how long these threads have been ready to run and had no processor; `None` where the system
/// does not say.
fn time_without_processor(threads: &[PathBuf]) -> Option<Duration> {
    let of_thread = |path: &PathBuf| {
        let figures = std::fs::read_to_string(path).ok()?;
        figures.split_whitespace().nth(1)?.parse().ok().map(Duration::from_nanos)
    };
    threads.iter().map(of_thread).sum()
}

/// A duration with three digits.
fn show(duration: Duration) -> String {
    let nanos = duration.as_nanos() as f64;
    let (value, unit) = match nanos {
        ..1e3 => (nanos, "ns"),
        ..1e6 => (nanos / 1e3, "µs"),
        ..1e9 => (nanos / 1e6, "ms"),
        _ => (nanos / 1e9, "s"),
    };
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    let digits = if unit == "ns" { 0 } else { digits };
    format!("{value:.digits$} {unit}")
}

/// A number with its thousands apart.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(|group| std::str::from_utf8(group).unwrap())
        .collect();
    groups.join(" ")
}
