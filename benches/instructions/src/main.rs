//! Counts the instructions of each operation and compares them with `limits.txt`.
//!
//! `cargo run -p instructions` prints the table and fails where a limit is exceeded; with
//! `-- --renew` it writes the limits, and the table in `docs/benchmarks.md`, anew.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::{env, fs};

use instructions::{Count, count, judge, parse, renewed};

const HERE: &str = env!("CARGO_MANIFEST_DIR");
/// What is between these lines of `docs/benchmarks.md` is the program's.
const BEGIN: &str = "<!-- written by: cargo run -p instructions -- --renew -->\n";
const END: &str = "<!-- until here -->\n";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => check(),
        ["--renew"] => renew(),
        _ => Err("usage: cargo run -p instructions [-- --renew]".to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn check() -> Result<(), String> {
    let verdict = judge(&run()?, &parse(&read(&limits())?)?);
    println!("{}", verdict.table);
    for note in &verdict.notes {
        println!("note: {note}");
    }
    if verdict.failures.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{}\nWhere that is meant to be: cargo run -p instructions -- --renew",
        verdict.failures.join("\n")
    ))
}

fn renew() -> Result<(), String> {
    let counts = run()?;
    let renewed = renewed(&counts);
    let table = judge(&counts, &parse(&renewed)?).table;
    write(&limits(), &renewed)?;

    let document = Path::new(HERE).join("../../docs/benchmarks.md");
    let text = read(&document)?;
    let parts = text.split_once(BEGIN).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(END)?;
        Some((before, after))
    });
    let (before, after) = parts.ok_or("docs/benchmarks.md has no place for the table")?;
    let day = &counts[0].day;
    write(&document, &format!("{before}{BEGIN}\nCounted on {day}.\n\n{table}\n{END}{after}"))?;
    println!("{table}");
    Ok(())
}

/// Counts all operations: builds the benchmarks and has gungraun run them under valgrind.
fn run() -> Result<Vec<Count>, String> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["bench", "--package", "instructions", "--bench", "operations", "--"])
        .args(["--output-format=json", "--parallel"])
        .current_dir(HERE)
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| format!("cargo: {e}"))?;
    if !output.status.success() {
        return Err(
            "nothing was counted; if valgrind or the runner is missing: bash .ci/run 57".to_owned()
        );
    }
    let counts: Vec<Count> =
        String::from_utf8_lossy(&output.stdout).lines().map(count).collect::<Result<_, _>>()?;
    if counts.is_empty() { Err("nothing was counted".to_owned()) } else { Ok(counts) }
}

fn limits() -> std::path::PathBuf {
    Path::new(HERE).join("limits.txt")
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}
