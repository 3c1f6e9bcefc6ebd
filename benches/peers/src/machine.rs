//! What was measured where: the head of a report.

use std::fmt::Write;
use std::fs;

/// Packages whose versions are part of a result.
const PACKAGES: [&str; 9] = [
    "embedding-cache",
    "moka",
    "quick_cache",
    "foyer-memory",
    "mini-moka",
    "scc",
    "parking_lot",
    "ahash",
    "hashbrown",
];

/// The lock file that this binary was built with.
const LOCK: &str = include_str!("../../../Cargo.lock");

/// Machine, toolchain, date and versions, a line each.
pub(crate) fn describe() -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "- {name}: {value}");
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    line("processor", format!("{}, {cores} cores", field("/proc/cpuinfo", "model name")));
    line("memory", field("/proc/meminfo", "MemTotal"));
    line("kernel", read("/proc/sys/kernel/osrelease"));
    line("load before the run (1, 5, 15 min)", load());
    line("compiler", env!("PEERS_RUSTC").to_owned());
    line("date", chrono::Utc::now().format("%Y-%m-%d %H:%M UTC").to_string());
    line("versions", versions());
    if cfg!(debug_assertions) {
        line("build", "debug, so its figures mean nothing".to_owned());
    }
    text
}

fn read(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

fn load() -> String {
    read("/proc/loadavg").split_whitespace().take(3).collect::<Vec<_>>().join(", ")
}

/// The value of the first `name: value` line of a file.
fn field(path: &str, name: &str) -> String {
    let text = read(path);
    let line = text.lines().find(|line| line.starts_with(name));
    let value = line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim());
    value.unwrap_or("unknown").to_owned()
}

fn versions() -> String {
    let known = |package: &str| {
        let name = format!("name = \"{package}\"");
        let versions = LOCK.split("[[package]]").filter(|entry| entry.lines().any(|l| l == name));
        let version = |entry: &str| {
            let line = entry.lines().find_map(|line| line.strip_prefix("version = "))?;
            Some(line.trim_matches('"').to_owned())
        };
        let versions: Vec<_> = versions.filter_map(version).collect();
        format!("{package} {}", versions.join(" and "))
    };
    PACKAGES.map(known).join(", ")
}
