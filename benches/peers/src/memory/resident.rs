//! The resident set of a process with one cache in it: this program, started again.

use std::process::Command;

use embedding_cache::{CacheKey, EmbeddingVector};

use crate::caches::{Cache, Limits, Ours, Visitor, visit_weighing};
use crate::keys::{self, DIMENSIONS, Key, Value};
use crate::options::Options;
use crate::sample::{Cell, Samples};

/// The limit, in vectors that would fit.
const FITTING: (usize, usize) = (80_000, 500);

pub(crate) fn measure(options: &Options, samples: &mut Samples) {
    let mut names = Names(Vec::new());
    let ours = if options.every_policy { Ours::EveryPolicy } else { Ours::Default };
    visit_weighing::<CacheKey>(ours, &mut names);
    let cell = Cell { group: CacheKey::NAME.to_owned(), scene: "resident set".to_owned(), at: 0.0 };
    for round in 0..options.few_rounds() {
        for name in &names.0 {
            match child(options, name) {
                Ok((resident, held)) => {
                    samples.push(&cell, name, "resident set % of limit", round, resident);
                    samples.push(&cell, name, "vectors and keys % of limit", round, held);
                }
                Err(why) => eprintln!("memory: no resident set of {name}: {why}"),
            }
        }
    }
}

use crate::keys::TextKey;

fn child(options: &Options, cache: &str) -> Result<(f64, f64), String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    command.args(["resident", "--every-policy", "--cache", cache]);
    if options.quick {
        command.arg("--quick");
    }
    let output = command.output().map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut numbers = text.split_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(resident)), Some(Ok(held))) => Ok((resident, held)),
        _ => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// What the child does.
pub(crate) fn print(options: &Options) {
    let wanted = options.cache.clone().unwrap_or_default();
    visit_weighing::<CacheKey>(Ours::EveryPolicy, &mut Fill { wanted, options });
}

struct Names(Vec<String>);

impl Visitor<CacheKey, EmbeddingVector> for Names {
    fn visit<C: Cache<CacheKey, EmbeddingVector>>(
        &mut self,
        name: String,
        _: impl Fn(&Limits) -> C + Send + Sync + 'static,
    ) {
        // The core as well as the door would be the same twice.
        if C::WEIGHS && !name.starts_with("ShardedCache") {
            self.0.push(name);
        }
    }
}

struct Fill<'a> {
    wanted: String,
    options: &'a Options,
}

impl Visitor<CacheKey, EmbeddingVector> for Fill<'_> {
    fn visit<C: Cache<CacheKey, EmbeddingVector>>(
        &mut self,
        name: String,
        make: impl Fn(&Limits) -> C + Send + Sync + 'static,
    ) {
        if !C::WEIGHS || name != self.wanted {
            return;
        }
        let fitting = self.options.size(FITTING.0, FITTING.1);
        let entry = CacheKey::HEAP + keys::vector(0, DIMENSIONS).heap();
        let limit = entry * fitting as u64;
        let before = resident_bytes();
        let cache = make(&Limits { bytes: Some(limit), ..Limits::entries(fitting) });
        for number in 0..4 * fitting as u64 {
            cache.put(CacheKey::nth(number), keys::vector(number, DIMENSIONS));
        }
        cache.settle();
        let (grown, held) = (resident_bytes() - before, entry * cache.len() as u64);
        let percent = |bytes: f64| 100.0 * bytes / limit as f64;
        println!("{} {}", percent(grown), percent(held as f64));
    }
}

/// By the operating system; NaN where it does not say.
fn resident_bytes() -> f64 {
    /// Of every Linux that this is likely to run on.
    const PAGE: f64 = 4096.0;
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<f64>().ok());
    pages.map_or(f64::NAN, |pages| pages * PAGE)
}
