//! What the tier on the disk has to bear: `cargo run --release -p embedding-cache-disk --example gate`.
//!
//! ```text
//! gate size ENTRIES [MEBIBYTES]   stores so many, and measures the directory throughout
//! gate kills TIMES                kills a process that stores, and looks what is left
//! gate torn TIMES                 the same, and tears up what was not synced
//! gate full                       fills a small file system, and makes room again
//! gate reads                      32 reads at once, beside the engine alone
//! gate snapshot MEGABYTES         saves and loads a snapshot (which needs no tier)
//! ```
//!
//! Each ends with an error where a promise is broken. `full` mounts a file system in a namespace of
//! its own, by `unshare`.

mod full;
mod kills;
mod reads;
mod size;
mod snapshot;
mod torn;
mod work;

use std::error::Error;

type Outcome = Result<(), Box<dyn Error>>;

fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build()?;
    match arguments[..] {
        ["size", entries] => size::run(&runtime, entries.parse()?, 512),
        ["size", entries, mebibytes] => size::run(&runtime, entries.parse()?, mebibytes.parse()?),
        ["kills", times] => kills::run(&runtime, times.parse()?),
        ["torn", times] => torn::run(&runtime, times.parse()?),
        ["full"] => full::run(),
        ["reads"] => reads::run(&runtime),
        ["snapshot", megabytes] => snapshot::run(&runtime, megabytes.parse()?),
        ["child-stores", directory] => kills::child(&runtime, directory.as_ref()),
        ["child-tears", directory] => torn::child(&runtime, directory.as_ref()),
        ["child-fills", directory] => full::child(&runtime, directory.as_ref()),
        _ => Err("gate size ENTRIES [MEBIBYTES] | kills TIMES | torn TIMES | full | reads | snapshot MEGABYTES".into()),
    }
}
