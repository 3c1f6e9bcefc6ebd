//! Throughput of the caches while several threads, or tasks, use one of them at once.
//!
//! ```text
//! cargo bench -p contention --bench contention                      # all cells; reports in target/criterion
//! cargo bench -p contention --bench contention -- hit-only/threads  # those whose name matches
//! cargo bench -p contention --bench contention -- --ratios          # the comparison, as tables
//! cargo bench -p contention --bench contention -- --test            # every cell once, to see that it runs
//! ```
//!
//! # What a cell measures
//!
//! A cell is a workload, a way to drive it, a cache, and a number of threads or tasks; its figure is
//! operations per second of all of them together, against the wall clock, from the first that begins
//! to the last that ends. Vectors have 768 components; keys are 64 hexadecimal digits and the name
//! of a model. Both, the sequences of operations, and the threads are made beforehand. Each operation
//! has a key of its own, which lies in memory where the next operation's is expected: as cheap to
//! read as one that a server has just made.
//!
//! | workload | operations |
//! |---|---|
//! | hit-only | gets over 20,000 keys that are all there, Zipf 0.99 |
//! | 95-5, 50-50 | the same, with 5 % or 50 % puts that replace the vector of a key |
//! | put-at-capacity | get, and put if it misses, with a cache full at 10,000 entries; Zipf 0.9 over 100,000 keys |
//! | one-hot-key | gets of one key, of 20,000 that are there |
//! | 8-hot-keys | gets of eight keys at random, of 20,000 that are there |
//! | shards | hit-only and 50-50 by the number of shards, all else equal |
//!
//! Driven by *threads*, a cache is used outside any runtime; by *tasks*, through its `async` methods
//! in tokio's runtime with a worker for each core (see `crew.rs`).
//!
//! The caches are the single-lock baseline; the sharded cache with LRU and with hit density, the
//! default; and the sharded one as `EmbeddingCache::new` makes it, which also keeps the order by size.
//! All have the same limits and the same time-to-live (see `caches.rs`).
//!
//! Each cache pays its own price, and all of it counts. A hit of the baseline allocates, copies and
//! frees 3 KiB; one of a sharded cache counts a reference up and down. A put clones the key for both;
//! then it copies the vector for the baseline and shares it with a sharded cache, which reads it once
//! to refuse NaN. What a put replaces or evicts is dropped: for the baseline with its vector, which
//! for a sharded cache lives on, shared with the benchmark.
//!
//! # What it does not measure
//!
//! - Latency and its tails, memory, and the hit ratio, other than for its effect on put-at-capacity,
//!   the only workload where a get may miss.
//! - A server. There is no work between two operations, so this is the worst contention that so many
//!   threads can make. Nobody reads the components of a hit: the baseline has just brought them into
//!   the processor's cache by copying, a reader of the shared vector has that yet to do. And the
//!   vector of a put is read from wherever it lies, where a server's was computed a moment ago: that
//!   makes all puts slower, and the caches more alike in them.
//! - More at once than the machine has cores: beyond that, it measures how those who wait bear it
//!   that the one they wait for is descheduled.
//!
//! # How to compare
//!
//! Criterion runs one cell after the other, minutes apart: a busy neighbour distorts the ratio of
//! two cells. `--ratios` takes the caches in turns, over and over, and reports the median of the
//! ratios within a round (see `ratios.rs`).

mod caches;
mod cells;
mod crew;
mod parked;
mod ratios;
mod table;
mod workload;

/// Options of `cargo test` that criterion refuses to read.
const OF_LIBTEST: [&str; 4] = ["--test-threads", "--skip", "--shuffle", "-Z"];

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let given = |option| arguments.iter().any(|argument| argument == option);
    let of_libtest = |option| arguments.iter().any(|argument| argument.starts_with(option));

    if given("--ratios") {
        ratios::print(if given("--test") { ratios::Plan::GLANCE } else { ratios::Plan::FULL });
    } else if !given("--bench") && OF_LIBTEST.into_iter().any(of_libtest) {
        println!("contention: these are benchmarks, to which options of test runs do not apply");
    } else {
        cells::run();
    }
}
