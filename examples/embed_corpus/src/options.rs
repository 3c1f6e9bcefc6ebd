//! The command line.

use std::path::PathBuf;

use clap::Parser;

/// What a cache does for the embeddings of your own text: none, a single lock, sharded.
///
/// The text files under DIR are cut into paragraphs: what stands between blank lines, at least 32
/// characters, at most 4 KiB. Read are files of UTF-8 text up to 4 MiB. Symbolic links are not
/// followed; `target`, `node_modules` and hidden directories are not entered. Nothing is written,
/// and nothing leaves the machine.
///
/// Compared are no cache; the design that this crate replaces (`embedding_cache::baseline`), with
/// one lock, and a walk over all entries for each eviction; and the sharded cache.
///
/// The embedder hashes runs of one to three words into 768 dimensions. It is real, but some thousand
/// times faster than a model: here a cache must itself be fast to be worth its while. With a model,
/// the column `embedder calls` decides.
///
/// WHAT IS MEASURED. Each task asks for one batch of paragraphs after the other, drawn with a Zipf
/// popularity. The server looks each paragraph up, embeds those it did not find, and puts them into
/// the cache. For each task count all three serve the very same batches, beginning with an empty
/// cache: as many as take about `--seconds` without a cache. (With a fixed time instead, the faster
/// cache would be warm for longer and show a better hit ratio.) p50, p99 and p99.9 are of the time
/// from asking for a batch to its last vector, including the wait for a worker thread.
///
/// VERIFICATION. Before the run each paragraph is embedded once; no cache ever sees these vectors.
/// Every vector that is returned is compared with them, bit for bit, after the clock of its batch
/// has stopped. The time of the comparisons is left out of requests per second and of the waits.
/// The first wrong vector ends the run.
///
/// BEYOND ONE PROCESS. With --redis, --disk or --snapshot the sharded cache finds what an earlier run
/// has embedded: the second run over the same text shows 0 embedder calls in its rows. A row begins
/// with an empty first tier, or with the snapshot loaded. After the rows every paragraph is asked for
/// once, so that the next run finds all of them whatever it draws. So that nothing is embedded again
/// because a store is slow for a moment, its answer is waited for up to a second. --redis and --disk
/// are in a build with the features of these names: cargo run --release -p embed-corpus --features disk
///
/// EXIT CODES. 0: all vectors were right. 1: a wrong vector, or another failure of the run. 2: a
/// wrong option, or no text found.
#[derive(Debug, Parser)]
#[command(name = "embed_corpus", verbatim_doc_comment)]
pub(crate) struct Options {
    /// The directory of text
    #[arg(default_value = ".")]
    pub(crate) dir: PathBuf,

    /// Tasks that ask at the same time; three rows for each number
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', default_value = "1,8,64")]
    #[arg(value_parser = whole_number(1, 1024))]
    pub(crate) tasks: Vec<usize>,

    /// Paragraphs in a batch
    #[arg(long, value_name = "N", default_value = "32", value_parser = whole_number(1, 4096))]
    pub(crate) batch: usize,

    /// Exponent of the Zipf distribution of popularity; 0 is even
    #[arg(long, value_name = "S", default_value = "0.99", value_parser = number(0.0, 10.0))]
    pub(crate) zipf: f64,

    /// Entries that a cache may hold, in percent of the paragraphs [default: 25, with --snapshot 110]
    #[arg(long, value_name = "PERCENT", value_parser = number(0.0, 200.0))]
    capacity: Option<f64>,

    /// Time for a row without a cache; any row stops after 3 times that
    #[arg(long, value_name = "S", default_value = "1.5", value_parser = number(0.001, 3600.0))]
    pub(crate) seconds: f64,

    /// Batches for each row, instead of --seconds; no row is stopped then
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MOST_BATCHES))]
    pub(crate) batches: Option<u64>,

    /// Seed of all draws: the same text and seed give the same batches
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) seed: u64,

    /// Stop reading after so many distinct paragraphs, at 4 KiB each
    #[arg(long, value_name = "N", default_value = "50000")]
    #[arg(value_parser = whole_number(1, 10_000_000))]
    pub(crate) max_paragraphs: usize,

    /// A second tier for the sharded cache: a Redis or Valkey server, or some of a cluster (feature redis)
    #[arg(long, value_name = "URL,URL,...", value_delimiter = ',', group = "behind")]
    pub(crate) redis: Vec<String>,

    /// A second tier for the sharded cache: a directory (feature disk)
    #[arg(long, value_name = "DIR", group = "behind")]
    pub(crate) disk: Option<PathBuf>,

    /// A snapshot that the sharded cache begins with if it is there, and that is saved in the end
    #[arg(long, value_name = "FILE", group = "behind")]
    pub(crate) snapshot: Option<PathBuf>,

    /// Let the sharded cache return one wrong bit: must end in an error
    #[arg(long)]
    pub(crate) sabotage: bool,
}

impl Options {
    /// The capacity of the caches for so many distinct paragraphs; at least one entry.
    pub(crate) fn entries(&self, paragraphs: usize) -> usize {
        // Loading a snapshot leaves a twentieth of the room free.
        let usual = if self.snapshot.is_some() { 110.0 } else { 25.0 };
        let capacity = self.capacity.unwrap_or(usual);
        ((paragraphs as f64 * capacity / 100.0) as usize).max(1)
    }
}

/// Beyond any run, and far from where sums of batches overflow.
const MOST_BATCHES: u64 = 1_000_000_000_000;

type Parsed<T> = Result<T, String>;

fn whole_number(least: usize, most: usize) -> impl Fn(&str) -> Parsed<usize> + Clone {
    move |text| match text.parse() {
        Ok(n) if (least..=most).contains(&n) => Ok(n),
        _ => Err(format!("a whole number from {least} to {most} is needed")),
    }
}

fn number(least: f64, most: f64) -> impl Fn(&str) -> Parsed<f64> + Clone {
    move |text| match text.parse() {
        Ok(x) if (least..=most).contains(&x) => Ok(x),
        _ => Err(format!("a number from {least} to {most} is needed")),
    }
}
