//! This crate beside other caches.
//!
//! ```text
//! cargo run --release -p peers -- all --traces DIR --out DIR
//! cargo run --release -p peers -- --help
//! ```
//!
//! # How it measures
//!
//! Within a round the caches take turns, in an order that is another one in each round; a ratio of
//! two caches is taken within a round, where a busy neighbour slows both. Printed are the median of
//! the rounds and, in brackets, the least and the greatest. Keys, values and sequences of operations
//! are made beforehand and are the same for every cache; so is the hash function (see `caches`).
//! What a section measures is in the head of its module.

mod allocator;
mod caches;
mod growth;
mod hit_ratio;
mod keys;
mod latency;
mod machine;
mod memory;
mod options;
mod report;
mod sample;
mod table;
mod throughput;

use std::error::Error;
use std::fs;
use std::time::Instant;

use clap::Parser;

use options::{Cli, Command, Options};
use sample::Samples;

/// Measures a section.
type Measure = fn(&Options) -> Samples;

fn main() -> Result<(), Box<dyn Error>> {
    let Cli { command, options } = Cli::parse();
    if command == Command::Resident {
        memory::resident::print(&options);
        return Ok(());
    }
    fs::create_dir_all(&options.out)?;
    if command == Command::SampleTrace {
        return Ok(hit_ratio::write_sample(&options.out)?);
    }
    let sections: [(Command, &str, Measure); 5] = [
        (Command::Throughput, "throughput", throughput::measure),
        (Command::Latency, "latency", latency::measure),
        (Command::Memory, "memory", memory::measure),
        (Command::HitRatio, "hit-ratio", hit_ratio::measure),
        (Command::Growth, "growth", growth::measure),
    ];
    if command != Command::Report {
        fs::write(options.out.join("machine.md"), machine::describe())?;
    }
    for (of, name, measure) in sections {
        if command == of || command == Command::All {
            let began = Instant::now();
            let samples = measure(&options);
            samples.write(&options.out.join(format!("{name}.csv")))?;
            sample::write_summary(&samples, &options.out.join(format!("{name}-medians.csv")))?;
            eprintln!("{name}: {:.0} s", began.elapsed().as_secs_f64());
        }
    }
    println!("{}", report::write(&options.out)?);
    Ok(())
}

/// The order in which `caches` take their turns in a round: rotated, and every other time reversed.
fn turns(caches: usize, round: usize) -> impl Iterator<Item = usize> {
    let at = move |turn: usize| (turn + round / 2) % caches.max(1);
    (0..caches).map(move |turn| at(if round.is_multiple_of(2) { turn } else { caches - 1 - turn }))
}
