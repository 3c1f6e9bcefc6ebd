//! Instructions per operation, against limits: what `benches/operations.rs` and the program that
//! runs it have to agree on, and the judging of what was counted.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// How often each benchmark does its operation; a batch counts as often as it has keys.
pub const OPERATIONS: u32 = 4096;

/// A limit is so much of what was counted when it was made: more than a compiler's minor release
/// moves, less than a forgotten branch or a second look at a key on the way of a hit.
const ALLOWED: f64 = 1.04;

/// An operation this far under its limit could get that much worse unseen.
const FAR_UNDER: f64 = 0.9;

/// Benchmarks of another cache; nobody here can keep them to a limit.
const PEER: &str = "quick_cache";

/// What was counted of one benchmark.
#[derive(Debug)]
pub struct Count {
    /// The benchmark: `function::id`.
    pub name: String,
    /// Instructions of one operation.
    pub instructions: f64,
    /// The day, `2026-11-23`.
    pub day: String,
}

/// Instructions allowed, by the name of the benchmark.
pub type Limits = BTreeMap<String, f64>;

/// Counts beside their limits.
#[derive(Debug, Default)]
pub struct Verdict {
    /// A table in Markdown.
    pub table: String,
    /// Why the run fails; empty if it does not.
    pub failures: Vec<String>,
    /// Limits that should be lowered.
    pub notes: Vec<String>,
}

/// Reads one line of what gungraun prints as JSON.
///
/// # Errors
///
/// If the line is none of its summaries.
pub fn count(line: &str) -> Result<Count, String> {
    let summary: serde_json::Value = serde_json::from_str(line).map_err(|e| e.to_string())?;
    let text = |field: &str| summary[field].as_str().ok_or(format!("no {field} in {line}"));
    let total = "/profiles/0/data/total/metrics/Ir/values/new";
    let total = summary.pointer(total).and_then(serde_json::Value::as_f64);
    Ok(Count {
        name: format!("{}::{}", text("function_name")?, text("id")?),
        instructions: total.ok_or(format!("no instructions in {line}"))? / f64::from(OPERATIONS),
        day: text("started_at")?.chars().take(10).collect(),
    })
}

/// Reads limits: a name and a number a line, after `#` a comment.
///
/// # Errors
///
/// If a line is neither.
pub fn parse(limits: &str) -> Result<Limits, String> {
    let lines = limits.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, limit) = line.rsplit_once(' ').ok_or(format!("no limit: {line}"))?;
            let limit = limit.parse().map_err(|e| format!("{e}: {line}"))?;
            Ok((name.trim_end().to_owned(), limit))
        })
        .collect()
}

/// The limits to set after `counts`, in their order.
#[must_use]
pub fn renewed(counts: &[Count]) -> String {
    let mut limits = "# Instructions allowed for one operation. Written by\n\
                      #     cargo run -p instructions -- --renew\n"
        .to_owned();
    for Count { name, instructions, .. } in counts.iter().filter(|c| !c.name.starts_with(PEER)) {
        let limit = (instructions * ALLOWED * 10.0).ceil() / 10.0;
        writeln!(limits, "{name:<32} {limit:>8.1}").expect("a string takes all");
    }
    limits
}

/// Compares counts with limits.
#[must_use]
pub fn judge(counts: &[Count], limits: &Limits) -> Verdict {
    let mut verdict = Verdict::default();
    let Verdict { table, failures, notes } = &mut verdict;
    table.push_str("| operation                        | instructions |    limit |\n");
    table.push_str("|----------------------------------|-------------:|---------:|\n");
    for Count { name, instructions, .. } in counts {
        let limit = limits.get(name);
        let shown = limit.map_or("–".to_owned(), |limit| format!("{limit:.1}"));
        writeln!(table, "| {name:<32} | {instructions:>12.1} | {shown:>8} |").expect("as above");
        match limit {
            None if name.starts_with(PEER) => {}
            None => failures.push(format!("{name} has no limit")),
            Some(limit) if instructions > limit => failures.push(format!(
                "{name} takes {instructions:.1} instructions, {:.1} % over its limit of {limit:.1}",
                100.0 * (instructions / limit - 1.0)
            )),
            Some(limit) if *instructions < FAR_UNDER * limit => notes.push(format!(
                "{name} takes {instructions:.1} instructions, {:.0} % under its limit of \
                 {limit:.1}: lower it",
                100.0 * (1.0 - instructions / limit)
            )),
            Some(_) => {}
        }
    }
    for name in limits.keys().filter(|name| counts.iter().all(|count| count.name != **name)) {
        failures.push(format!("{name} has a limit, and was not counted"));
    }
    verdict
}
