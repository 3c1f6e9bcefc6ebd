//! The tables of the replays.

use std::fmt::Write;

use crate::caches::Side;
use crate::sample::{Cell, Samples};
use crate::table::Table;

const OPTIMUM: &str = "optimum";

/// The cells of a group, with the hit ratio of each cache in each.
pub(super) struct Ratios {
    pub(super) cells: Vec<Cell>,
    pub(super) caches: Vec<String>,
    /// By cache and cell. NaN where a cache held more than its capacity.
    pub(super) fair: Vec<Vec<f64>>,
    /// By cache and cell, whatever it held.
    pub(super) all: Vec<Vec<f64>>,
}

impl Ratios {
    pub(super) fn of(samples: &Samples, group: &str) -> Self {
        /// Percent of the capacity; small ones may be over by the entries of a shard.
        const FAIR: f64 = 110.0;
        let hits = samples.of_group(group).of_metric("hits %");
        let full = samples.of_group(group).of_metric("entries % of capacity");
        let (cells, caches) = (hits.cells(), hits.caches());
        let mut all = vec![vec![f64::NAN; cells.len()]; caches.len()];
        let mut fair = all.clone();
        for (at, cell) in cells.iter().enumerate() {
            let (hits, full) = (hits.of_cell(cell), full.of_cell(cell));
            for (row, cache) in caches.iter().enumerate() {
                let median =
                    |samples: &Samples| samples.spread(cache).map_or(f64::NAN, |s| s.median);
                all[row][at] = median(&hits);
                if median(&full) <= FAIR {
                    fair[row][at] = median(&hits);
                }
            }
        }
        Self { cells, caches, fair, all }
    }

    pub(super) fn row(&self, cache: &str) -> Option<&[f64]> {
        let row = self.caches.iter().position(|other| other == cache)?;
        Some(&self.all[row])
    }

    /// Those against whom this crate is measured: NaN where they were not fair.
    pub(super) fn peers(&self) -> impl Iterator<Item = (&str, &[f64])> {
        let rows = self.caches.iter().map(String::as_str).zip(self.fair.iter().map(Vec::as_slice));
        rows.filter(|(cache, _)| Side::of(cache) == Side::Peer)
    }

    /// The best of each cell, the references but the optimum included, `cache` itself apart.
    pub(super) fn best_of_all(&self, cache: &str) -> Vec<f64> {
        let rows = self.caches.iter().zip(&self.fair);
        let others: Vec<_> = rows.filter(|(name, _)| is_policy(name) && *name != cache).collect();
        let best = |at| others.iter().map(|(_, row)| row[at]).fold(f64::NAN, f64::max);
        (0..self.cells.len()).map(best).collect()
    }

    /// The best peer of each cell.
    pub(super) fn best(&self) -> Vec<f64> {
        let best = |at| self.peers().map(|(_, row): (_, &[f64])| row[at]).fold(f64::NAN, f64::max);
        (0..self.cells.len()).map(best).collect()
    }
}

/// Whether it is a policy at all: the optimum knows the future.
fn is_policy(cache: &str) -> bool {
    cache != OPTIMUM
}

pub(super) fn mean(numbers: &[f64]) -> f64 {
    numbers.iter().sum::<f64>() / numbers.len() as f64
}

pub(super) fn tables(samples: &Samples) -> String {
    let mut text = String::new();
    for group in samples.groups() {
        let ratios = Ratios::of(samples, &group);
        let _ = writeln!(text, "### {group} traces: {} cells\n", ratios.cells.len());
        let _ = writeln!(text, "{}", summary(&ratios));
    }
    text + "Hit ratios in percent. *wins*: cells in which no other cache of the table had more, the \
            references apart. *excess*: cells in which a cache held over a tenth more than its \
            capacity; there nobody is measured against it.\n"
}

fn summary(ratios: &Ratios) -> Table {
    let mut table = Table::new(["cache", "mean", "below the optimum", "wins", "excess"]);
    let optimum = ratios.row(OPTIMUM).map_or(f64::NAN, mean);
    let contends = |cache: &str| Side::of(cache) != Side::Reference;
    let wins = |row: &[f64]| {
        let won = |at: &usize| {
            let others =
                ratios.caches.iter().zip(&ratios.fair).filter(|(cache, _)| contends(cache));
            let most = others.map(|(_, row)| row[*at]).fold(f64::NAN, f64::max);
            row[*at] >= most - 0.005
        };
        (0..row.len()).filter(won).count().to_string()
    };
    for (cache, (all, fair)) in ratios.caches.iter().zip(ratios.all.iter().zip(&ratios.fair)) {
        let excess = fair.iter().filter(|ratio| ratio.is_nan()).count();
        table.row([
            cache.clone(),
            format!("{:.2}", mean(all)),
            format!("{:.2}", optimum - mean(all)),
            if contends(cache) { wins(fair) } else { "–".to_owned() },
            excess.to_string(),
        ]);
    }
    table
}
