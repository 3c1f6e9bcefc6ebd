//! The report: tables, verdicts and plots, made from the figures in the output directory.

mod hit_ratio;
mod plots;
mod tables;
mod targets;

use std::error::Error;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::sample::Samples;

/// All that was measured so far, by section.
pub(crate) struct Measured {
    throughput: Samples,
    latency: Samples,
    memory: Samples,
    hit_ratio: Samples,
    growth: Samples,
}

/// Writes the tables of a section.
type Section = fn(&Samples) -> String;

/// Makes plots and `report.md`, and returns the latter's text.
pub(crate) fn write(out: &Path) -> Result<String, Box<dyn Error>> {
    let read = |name: &str| Samples::read(&out.join(format!("{name}.csv")));
    let measured = Measured {
        throughput: read("throughput")?,
        latency: read("latency")?,
        memory: read("memory")?,
        hit_ratio: read("hit-ratio")?,
        growth: read("growth")?,
    };
    let mut text = "# embedding-cache beside its peers\n\n".to_owned();
    text += &fs::read_to_string(out.join("machine.md")).unwrap_or_default();
    text += "\nMedians of interleaved rounds. All of them, with the least and the greatest, are in the files \
             `SECTION-medians.csv`.\n\n";
    let sections: [(&str, &Samples, Section); 5] = [
        ("Throughput", &measured.throughput, tables::throughput),
        ("Latency", &measured.latency, tables::latency),
        ("Memory", &measured.memory, tables::memory),
        ("Hit ratio", &measured.hit_ratio, hit_ratio::tables),
        ("Growth", &measured.growth, tables::growth),
    ];
    for (title, samples, section) in sections {
        if !samples.0.is_empty() {
            write!(text, "## {title}\n\n{}\n", section(samples))?;
        }
    }
    let targets = targets::table(&measured);
    write!(text, "## Targets\n\n{targets}\n")?;
    plots::draw(&measured, out)?;
    fs::write(out.join("report.md"), &text)?;
    Ok(text)
}
