//! The words and the table that a run prints.

use std::time::Duration;

use crate::Setup;
use crate::beyond::Beyond;
use crate::drive::Cell;
use crate::embedder::DIMENSIONS;

/// What is run on what, a line for each matter.
pub(crate) fn introduction(setup: &Setup<'_>) -> String {
    let Setup { workload, limits, embed_time, .. } = setup;
    let corpus = &workload.corpus;
    let debug = if cfg!(debug_assertions) { "; a debug build, add --release" } else { "" };
    let cut = if corpus.cut_short { " (stopped here: --max-paragraphs)" } else { "" };
    let share = 100.0 * limits.entries as f64 / workload.len() as f64;
    format!(
        "machine   {}, {}{debug}\n\
         text      {}: {}, {}\n\
         skipped   {}\n\
         corpus    {}, {} of them distinct{cut}\n\
         embedder  hashed word n-grams, {DIMENSIONS} dimensions, {} a paragraph on one core\n\
         load      batches of {} paragraphs, Zipf {} over the distinct ones, seed {}\n\
         caches    at most {} ({share:.1} % of the distinct paragraphs) and {} MiB\n\
         {}",
        number(setup.cores as u64, "core", "cores"),
        number(setup.workers as u64, "tokio worker", "tokio workers"),
        corpus.root.display(),
        number(corpus.files.len() as u64, "file", "files"),
        bytes(corpus.bytes),
        corpus.skipped,
        number(corpus.found, "paragraph", "paragraphs"),
        count(workload.len() as u64),
        duration(*embed_time),
        setup.options.batch,
        setup.options.zipf,
        setup.options.seed,
        number(limits.entries as u64, "entry", "entries"),
        count(limits.mebibytes as u64),
        setup.beyond.describe(),
    )
}

const HEADER: [&str; 11] = [
    "tasks",
    "cache",
    "requests",
    "requests/s",
    "p50",
    "p99",
    "p99.9",
    "hit ratio",
    "hits by tier",
    "embedder calls",
    "memory held",
];

/// The column with the names of the caches: aligned to the left, all others to the right.
const NAMES: usize = 1;
/// The column with the hits, by tier where there is a second one.
const HITS: usize = 8;

/// The table: a row for each cell, a blank line between task counts.
pub(crate) fn table(cells: &[Cell]) -> String {
    let rows: Vec<_> = cells.iter().map(row).collect();
    let mut names = HEADER;
    if !cells.iter().any(|cell| cell.has_second_tier) {
        names[HITS] = "hits";
    }
    let widths: [usize; HEADER.len()] = std::array::from_fn(|column| {
        let lengths = rows.iter().map(|row| row[column].chars().count());
        lengths.fold(names[column].len(), usize::max)
    });
    let header = line(&names.map(str::to_owned), &widths);
    let rule = "-".repeat(header.trim_end().len());
    let mut table = format!("{header}{rule}\n");
    for (i, row) in rows.iter().enumerate() {
        if i > 0 && cells[i].load.tasks != cells[i - 1].load.tasks {
            table.push('\n');
        }
        table += &line(row, &widths);
    }
    table
}

fn row(cell: &Cell) -> [String; HEADER.len()] {
    let quantile = |q| duration(Duration::from_nanos(cell.tally.latency.value_at_quantile(q)));
    let mark = if cell.was_stopped() { "*" } else { "" };
    let none = || "-".to_owned();
    let (hit_ratio, by_tier, held) = match &cell.held {
        Some(held) => {
            (format!("{:.1} %", 100.0 * cell.hit_ratio()), hits_by_tier(cell), bytes(*held))
        }
        None => (none(), none(), none()),
    };
    [
        cell.load.tasks.to_string(),
        cell.cache.to_owned(),
        format!("{mark}{}", count(cell.requests())),
        count(cell.requests_per_second() as u64),
        quantile(0.5),
        quantile(0.99),
        quantile(0.999),
        hit_ratio,
        by_tier,
        count(cell.tally.embedded),
        held,
    ]
}

/// Those of the first tier, and, where there is a second, those of that.
fn hits_by_tier(cell: &Cell) -> String {
    let first = count(cell.tally.hits - cell.tally.from_second);
    if cell.has_second_tier {
        format!("{first} + {}", count(cell.tally.from_second))
    } else {
        first
    }
}

fn line(texts: &[String; HEADER.len()], widths: &[usize; HEADER.len()]) -> String {
    let aligned = texts.iter().zip(widths).enumerate().map(|(column, (text, &width))| {
        if column == NAMES { format!("{text:<width$}") } else { format!("{text:>width$}") }
    });
    aligned.collect::<Vec<_>>().join("  ") + "\n"
}

/// How to read the table, and what came of the comparison of every vector.
pub(crate) fn closing(setup: &Setup<'_>, cells: &[Cell]) -> String {
    let mut text = String::from(
        "single lock     the design that this crate replaces; walks over all entries to evict one\n\
         requests        paragraphs asked for\n\
         p50 ... p99.9   a batch, from asking to its last vector, the wait for a worker included\n\
         embedder calls  paragraphs embedded\n\
         memory held     by the cache in the end, as it counts it\n\
         Rows with the same number of tasks serve the same batches, beginning with an empty cache.\n",
    );
    match setup.beyond {
        Beyond::Nothing => {}
        Beyond::Tier { .. } => {
            text += "hits by tier    in the first + in the second, which keeps what earlier rows and runs embedded\n";
        }
        Beyond::Snapshot(_) => text += "The sharded cache begins with the snapshot.\n",
    }
    if cells.iter().any(Cell::was_stopped) {
        text += "* Stopped after three times --seconds with batches left to serve, so its cache was cold\n\
                 \x20 for a larger part of them than the others'.\n";
    }
    for cell in cells.iter().filter(|cell| cell.tally.refused > 0) {
        let tasks = number(cell.load.tasks as u64, "task", "tasks");
        let refused = number(cell.tally.refused, "vector", "vectors");
        text += &format!("! {}, {tasks}: the cache refused to keep {refused}.\n", cell.cache);
    }
    let verified = cells.iter().map(Cell::requests).sum();
    let own_share = cells.iter().map(Cell::own_share).fold(0.0, f64::max);
    text += &format!(
        "\nVerified: all {} returned vectors equal a fresh computation, bit for bit.\n\
         (Drawing and comparing took up to {:.0} % of a row's time, which the figures leave out.)\n",
        count(verified),
        100.0 * own_share,
    );
    text
}

/// A number and what it counts.
pub(crate) fn number(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { many })
}

/// A number with its thousands separated.
fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A time with about three digits, in the unit that suits it.
fn duration(time: Duration) -> String {
    let (value, unit) = match time.as_secs_f64() {
        seconds if seconds >= 1.0 => (seconds, "s"),
        seconds if seconds >= 1e-3 => (seconds * 1e3, "ms"),
        seconds => (seconds * 1e6, "µs"),
    };
    let decimals = match value {
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$} {unit}")
}

fn bytes(number: u64) -> String {
    let kibibytes = number as f64 / 1024.0;
    if kibibytes < 1024.0 {
        format!("{kibibytes:.1} KiB")
    } else {
        format!("{:.1} MiB", kibibytes / 1024.0)
    }
}
