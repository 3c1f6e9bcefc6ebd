//! The command line, and how large everything is.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

/// embedding-cache beside moka, quick_cache, foyer, mini-moka and scc: the same work in the same run.
///
/// Figures are kept as CSV in the output directory; the report, the verdicts on the targets and the
/// plots are made from all that lies there, so sections can be measured one by one.
#[derive(Parser)]
#[command(name = "peers")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) options: Options,
}

#[derive(Clone, Copy, PartialEq, Eq, Subcommand)]
pub(crate) enum Command {
    /// Operations per second, by workload, threads, key and way to drive it.
    Throughput,
    /// Percentiles of a get while a writer evicts and a cleanup runs.
    Latency,
    /// Bytes for each entry, and the resident set under a limit on bytes.
    Memory,
    /// Replays of traces.
    HitRatio,
    /// Nanoseconds for each get and put, by entries and by shards.
    Growth,
    /// All of these.
    All,
    /// Measures nothing; makes report, verdicts and plots again.
    Report,
    /// Writes a small trace, in the format of those that hit-ratio reads, into the output directory.
    SampleTrace,
    /// Fills one cache in this process and prints what that did to its resident set.
    #[command(hide = true)]
    Resident,
}

#[derive(Args, Clone)]
pub(crate) struct Options {
    /// Where CSV, SVG and the report go.
    #[arg(long, global = true, default_value = "target/peers", value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Interleaved rounds; of the slowest parts, a third as many.
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    rounds: Option<u64>,
    /// Milliseconds of each turn of a cache in throughput; thirty times that in latency.
    #[arg(long, global = true, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..))]
    millis: Option<u64>,
    /// Threads or tasks at once.
    #[arg(long, global = true, value_delimiter = ',', default_value = "1,2,4,8", value_name = "N,…",
          value_parser = clap::value_parser!(u64).range(1..=64))]
    threads: Vec<u64>,
    /// Only cells whose name (as progress shows it) contains this; may be given more than once.
    #[arg(long, global = true, value_name = "TEXT")]
    only: Vec<String>,
    /// Measure every eviction policy of this crate, not only the default, in all sections.
    #[arg(long, global = true)]
    pub(crate) every_policy: bool,
    /// A directory of traces: NAME.u32.zst, each a zstd-compressed sequence of little-endian u32 ids.
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) traces: Option<PathBuf>,
    /// The largest number of entries that growth goes to.
    #[arg(long, global = true, value_name = "N")]
    largest: Option<usize>,
    /// Small and short: only to see that all of it runs.
    #[arg(long, global = true)]
    pub(crate) quick: bool,
    /// Which cache, for the hidden command.
    #[arg(long, global = true, hide = true)]
    pub(crate) cache: Option<String>,
}

impl Options {
    pub(crate) fn rounds(&self) -> usize {
        self.rounds.map_or(if self.quick { 2 } else { 7 }, |rounds| rounds as usize)
    }

    /// Of what takes long.
    pub(crate) fn few_rounds(&self) -> usize {
        self.rounds().div_ceil(3)
    }

    /// Of a cache in throughput.
    pub(crate) fn turn(&self) -> Duration {
        let millis = self.millis.unwrap_or(if self.quick { 1 } else { 100 });
        Duration::from_millis(millis)
    }

    /// Of a cache in latency.
    pub(crate) fn latency_turn(&self) -> Duration {
        self.turn() * 30
    }

    pub(crate) fn threads(&self) -> Vec<usize> {
        let threads = self.threads.iter().map(|&threads| threads as usize);
        threads.filter(|&threads| !self.quick || threads <= 2).collect()
    }

    pub(crate) fn wants(&self, cell: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|text| cell.contains(text))
    }

    /// A size, or a small one.
    pub(crate) fn size(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }

    pub(crate) fn largest(&self) -> usize {
        self.largest.unwrap_or(self.size(10_000_000, 10_000))
    }
}
