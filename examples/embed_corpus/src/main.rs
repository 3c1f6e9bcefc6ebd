//! A cache's main job, on your own text:
//! `cargo run --release -p embed-corpus -- [DIR]`.
//!
//! Cuts the text files of a directory into paragraphs, and serves their embeddings like a server:
//! many tasks, each asking for batches of paragraphs of which some are far more popular than
//! others. Once without a cache, once with a cache behind a single lock, once with the sharded
//! cache. It prints one table, and compares every vector that it got with a fresh computation.
//!
//! `--help` says what is measured and how. The parts:
//!
//! * `options`: the command line;
//! * `corpus`: a directory becomes paragraphs;
//! * `embedder`: a paragraph becomes a vector;
//! * `workload`: which paragraphs are asked for, and what must come back;
//! * `caches`: the caches under one trait;
//! * `beyond`: a second tier, or a snapshot;
//! * `drive`: the tasks, and how they are measured;
//! * `report`: the table.

mod beyond;
mod caches;
mod corpus;
mod drive;
mod embedder;
mod options;
mod report;
mod workload;

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use clap::Parser;
use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};
use tokio::runtime::Runtime;

use beyond::Beyond;
use caches::{Limits, NoCache, Sabotaged};
use corpus::Corpus;
use drive::{Cell, Load, drive};
use options::Options;
use workload::Workload;

/// Why a run ends early.
enum Failure {
    /// There is nothing to run on; exit code 2, as for a wrong option.
    Input(String),
    /// Something went wrong in the run, a wrong vector above all; exit code 1.
    Run(String),
}

fn main() -> ExitCode {
    let (message, code) = match run(&Options::parse()) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Input(message)) => (message, 2),
        Err(Failure::Run(message)) => (message, 1),
    };
    eprintln!("error: {message}");
    ExitCode::from(code)
}

/// What a run is about; settled before the first row.
struct Setup<'a> {
    options: &'a Options,
    workload: Arc<Workload>,
    limits: Limits,
    beyond: Beyond,
    /// What the embedder takes for a paragraph on one core.
    embed_time: Duration,
    cores: usize,
    workers: usize,
}

fn run(options: &Options) -> Result<(), Failure> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let runtime = Runtime::new()
        .map_err(|error| Failure::Run(format!("cannot start the tokio runtime: {error}")))?;
    let workers = runtime.metrics().num_workers();
    // Before the text is read: what is wrong with a store is told at once.
    let beyond = runtime.block_on(Beyond::open(options))?;

    let spinner =
        progress(ProgressBar::new_spinner(), "{spinner} reading and embedding, {human_pos} files");
    spinner.enable_steady_tick(Duration::from_millis(100));
    let corpus = Corpus::read(&options.dir, options.max_paragraphs, &spinner)?;
    let workload = Arc::new(Workload::new(corpus, options.zipf, options.seed, cores));
    drop(spinner);

    let limits = Limits::for_entries(options.entries(workload.len()));
    let embed_time = workload.measure_embedder();
    let setup = Setup { options, workload, limits, beyond, embed_time, cores, workers };
    print(&report::introduction(&setup));
    let cells = runtime.block_on(serve_all(&setup))?;
    print(&format!("\n{}\n{}", report::table(&cells), report::closing(&setup, &cells)));
    runtime.block_on(setup.beyond.keep_all(&setup.workload, &setup.limits))?;
    Ok(())
}

/// All rows of the table, one after the other.
async fn serve_all(setup: &Setup<'_>) -> Result<Vec<Cell>, Failure> {
    let Setup { options, workload, limits, .. } = setup;
    let sharded = || {
        limits.sharded().map_err(|error| Failure::Run(format!("cannot make the cache: {error}")))
    };
    let loads: Vec<_> = options.tasks.iter().map(|&tasks| setup.load(tasks)).collect();
    let batches = loads.iter().map(|load| 3 * load.batches).sum();
    let bar = progress(ProgressBar::new(batches), "{wide_bar} {percent} %, {msg}");
    let mut cells = Vec::new();
    for load in loads {
        bar.set_message(format!("tasks: {}", load.tasks));
        cells.push(drive(NoCache, workload, load, &bar).await?);
        cells.push(drive(limits.single_lock(), workload, load, &bar).await?);
        cells.push(match &setup.beyond {
            _ if options.sabotage => {
                drive(Sabotaged::new(sharded()?), workload, load, &bar).await?
            }
            Beyond::Nothing => drive(sharded()?, workload, load, &bar).await?,
            Beyond::Tier { tier, .. } => {
                drive(Beyond::tiered(tier, limits)?, workload, load, &bar).await?
            }
            Beyond::Snapshot(path) => {
                drive(Beyond::loaded(path, limits)?, workload, load, &bar).await?
            }
        });
    }
    Ok(cells)
}

impl Setup<'_> {
    /// What the rows of a task count serve: what was asked for, or as much as the embedder alone
    /// does in the time asked for, on as many workers as the tasks can keep busy.
    fn load(&self, tasks: usize) -> Load {
        let Options { batch, batches, seconds, .. } = *self.options;
        let at_once = tasks.min(self.workers);
        let per_batch = self.embed_time.as_secs_f64() * batch as f64;
        let in_time = (seconds * at_once as f64 / per_batch) as u64;
        let (batches, time_limit) = match batches {
            Some(batches) => (batches, None),
            None => (in_time.max(tasks as u64), Some(Duration::from_secs_f64(3.0 * seconds))),
        };
        Load { tasks, at_once, batch, batches, time_limit }
    }
}

/// Gives a bar its looks. It disappears when it is dropped, in front of an error message too; where
/// standard error is no terminal it never appears.
fn progress(bar: ProgressBar, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template);
    bar.with_style(style.expect("the templates are constant and valid"))
        .with_finish(ProgressFinish::AndClear)
}

/// Prints to standard output; whoever has closed it (`| head`) has read enough.
fn print(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
}
