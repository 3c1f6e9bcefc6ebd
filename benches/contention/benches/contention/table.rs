//! Tables in Markdown, legible as they are.

use std::fmt;

/// Rows of texts; the first column is aligned to the left, the others to the right.
pub(crate) struct Table(Vec<Vec<String>>);

impl Table {
    pub(crate) fn new(header: impl IntoIterator<Item = String>) -> Self {
        Self(vec![header.into_iter().collect()])
    }

    pub(crate) fn row(&mut self, row: impl IntoIterator<Item = String>) {
        self.0.push(row.into_iter().collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.0[0].len();
        let width = |column: usize| self.0.iter().map(|row| row[column].chars().count()).max();
        let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0).max(2)).collect();
        for (number, row) in self.0.iter().enumerate() {
            for (column, (text, &width)) in row.iter().zip(&widths).enumerate() {
                match column {
                    0 => write!(f, "| {text:<width$} |")?,
                    _ => write!(f, " {text:>width$} |")?,
                }
            }
            writeln!(f)?;
            if number == 0 {
                for (column, &width) in widths.iter().enumerate() {
                    let dashes = "-".repeat(width);
                    match column {
                        0 => write!(f, "|-{dashes}-|")?,
                        _ => write!(f, "-{dashes}:|")?,
                    }
                }
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

/// The median of some numbers, the least and the greatest.
pub(crate) struct Spread {
    pub(crate) median: f64,
    least: f64,
    greatest: f64,
}

impl Spread {
    /// Of at least one number.
    pub(crate) fn of(numbers: impl IntoIterator<Item = f64>) -> Self {
        let mut numbers: Vec<_> = numbers.into_iter().collect();
        numbers.sort_by(f64::total_cmp);
        let last = numbers.len() - 1;
        let median = (numbers[last / 2] + numbers[last.div_ceil(2)]) / 2.0;
        Self { median, least: numbers[0], greatest: numbers[last] }
    }
}

/// `median (least–greatest)`.
impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { median, least, greatest } = *self;
        write!(f, "{} ({}–{})", short(median), short(least), short(greatest))
    }
}

/// A number with three digits or a few more.
fn short(number: f64) -> String {
    let decimals = match number {
        100.0.. => 0,
        10.0.. => 1,
        _ => 2,
    };
    format!("{number:.decimals$}")
}

/// Operations per second, in thousands or millions.
pub(crate) fn rate(per_second: f64) -> String {
    if per_second >= 1e6 {
        format!("{} M", short(per_second / 1e6))
    } else {
        format!("{} k", short(per_second / 1e3))
    }
}
