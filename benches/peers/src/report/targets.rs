//! What this crate set itself, held against what was measured: met or missed, nothing else.

use super::Measured;
use super::hit_ratio::{Ratios, mean};
use crate::caches::Side;
use crate::sample::{Cell, Samples};
use crate::table::{Table, short, time};

const HITS: [&str; 3] = ["hits 8 hot", "hits Zipf", "hits uniform"];
const BATCHES: [&str; 1] = ["batch 64"];
const TEXT: &str = "CacheKey";
const BYTES: &str = "32 bytes";
const DOOR: &str = "EmbeddingCache";
const LOCKED: &str = "RwLock<HashMap>";

/// The peer with the best median in one cell: the greatest with `f64::max`, the least with
/// `f64::min`.
pub(super) fn best_peer(figures: &Samples, better: fn(f64, f64) -> f64) -> Option<String> {
    let median = |cache: &str| figures.spread(cache).map(|spread| spread.median);
    let peers = figures.caches().into_iter().filter(|cache| Side::of(cache) == Side::Peer);
    let medians: Vec<_> = peers.filter_map(|cache| Some((median(&cache)?, cache))).collect();
    let best = medians.iter().map(|(median, _)| *median).reduce(better)?;
    medians.into_iter().find(|(median, _)| *median == best).map(|(_, cache)| cache)
}

/// Rows of: target, whose, found, verdict.
struct Verdicts(Vec<[String; 4]>);

impl Verdicts {
    fn push(&mut self, target: &str, of: &str, found: String, met: bool) {
        let verdict = if met { "met" } else { "**missed**" };
        self.0.push([target.to_owned(), of.to_owned(), found, verdict.to_owned()]);
    }

    /// Of one ratio for each cell: all must be at least so large.
    fn all_at_least(&mut self, target: &str, of: &str, least: f64, ratios: &[(Cell, f64)]) {
        let Some((cell, worst)) = ratios.iter().min_by(|a, b| a.1.total_cmp(&b.1)) else { return };
        let met = ratios.iter().filter(|(_, ratio)| *ratio >= least).count();
        let found = format!(
            "{met} of {} cells; mean {}; least {} ({}; {}; {} at once)",
            ratios.len(),
            short(geometric_mean(ratios)),
            short(*worst),
            cell.group,
            cell.scene,
            cell.at,
        );
        self.push(target, of, found, met == ratios.len());
    }
}

fn geometric_mean(ratios: &[(Cell, f64)]) -> f64 {
    (ratios.iter().map(|(_, ratio)| ratio.ln()).sum::<f64>() / ratios.len() as f64).exp()
}

pub(super) fn table(measured: &Measured) -> Table {
    let mut verdicts = Verdicts(Vec::new());
    throughput(&measured.throughput.of_metric("per second"), &mut verdicts);
    memory(&measured.memory, &mut verdicts);
    latency(&measured.latency.of_metric("p99.9"), &mut verdicts);
    hit_ratio(&measured.hit_ratio, &mut verdicts);
    let mut table = Table::new(["target", "of", "found", "verdict"]);
    verdicts.0.into_iter().for_each(|row| table.row(row));
    table
}

fn ours(samples: &Samples) -> Vec<String> {
    samples.caches().into_iter().filter(|cache| Side::of(cache) == Side::Ours).collect()
}

/// The ratio of a cache to another one, which is chosen for each cell; the median of the rounds.
fn ratios(
    samples: &Samples,
    cache: &str,
    cells: impl Fn(&Cell) -> bool,
    base: impl Fn(&Samples) -> Option<String>,
) -> Vec<(Cell, f64)> {
    let ratio = |cell: Cell| {
        let figures = samples.of_cell(&cell);
        let ratio = figures.ratio(cache, &base(&figures)?)?;
        Some((cell, ratio.median))
    };
    samples.cells().into_iter().filter(cells).filter_map(ratio).collect()
}

fn fastest(figures: &Samples) -> Option<String> {
    best_peer(figures, f64::max)
}

fn throughput(samples: &Samples, verdicts: &mut Verdicts) {
    let key = |cell: &Cell, key: &str| cell.group.ends_with(key);
    let of = |cell: &Cell, scenes: &[&str]| scenes.contains(&cell.scene.as_str());
    for cache in ours(samples) {
        let all = ratios(samples, &cache, |_| true, fastest);
        verdicts.all_at_least("every cell ≥ 1.0 × the fastest peer", &cache, 1.0, &all);
        if !all.is_empty() {
            let mean = geometric_mean(&all);
            let found = format!("{} over {} cells", short(mean), all.len());
            verdicts.push(
                "geometric mean of cells ≥ 1.2 × the fastest peer",
                &cache,
                found,
                mean >= 1.2,
            );
        }
        // Where there are two of them, the faster.
        let moka = |figures: &Samples| {
            fastest(&figures.filtered(|sample| sample.cache.starts_with("moka")))
        };
        let over_moka = ratios(samples, &cache, |_| true, moka);
        verdicts.all_at_least("every cell ≥ 3 × moka", &cache, 3.0, &over_moka);

        if cache.starts_with(DOOR) {
            let hits = ratios(samples, &cache, |c| key(c, TEXT) && of(c, &HITS), fastest);
            let target = "hits, CacheKey ≥ 1.3 × the fastest peer";
            verdicts.all_at_least(target, &cache, 1.3, &hits);
        }
        let hits = ratios(samples, &cache, |c| key(c, BYTES) && of(c, &HITS), fastest);
        let target = "hits, 32 bytes ≥ 1.0 × the fastest peer with 32 bytes";
        verdicts.all_at_least(target, &cache, 1.0, &hits);
        let target = "hits, 32 bytes ≥ 1.6 × the fastest peer with CacheKey (ratio of medians)";
        verdicts.all_at_least(target, &cache, 1.6, &over_other_key(samples, &cache));

        for (key_name, least) in [(BYTES, 1.8), (TEXT, 1.5)] {
            let batches = ratios(samples, &cache, |c| key(c, key_name) && of(c, &BATCHES), fastest);
            let target = format!("batches, {key_name} ≥ {least} × the fastest peer in a loop");
            verdicts.all_at_least(&target, &cache, least, &batches);
        }
        let hot = |cell: &Cell| cell.scene == HITS[0] && cell.at == 1.0;
        let locked = ratios(samples, &cache, hot, |_| Some(LOCKED.to_owned()));
        let target = "hot keys, one thread ≥ 0.8 × RwLock<HashMap>";
        verdicts.all_at_least(target, &cache, 0.8, &locked);
    }
}

/// Hits with the short key over the fastest peer's with the other: these are different cells, so
/// there are no rounds to compare within.
fn over_other_key(samples: &Samples, cache: &str) -> Vec<(Cell, f64)> {
    let hits = |cell: &Cell| cell.group.ends_with(BYTES) && HITS.contains(&cell.scene.as_str());
    let ratio = |cell: Cell| {
        let other = Cell { group: cell.group.replace(BYTES, TEXT), ..cell.clone() };
        let base = samples.of_cell(&other);
        let base = base.spread(&fastest(&base)?)?.median;
        let median = samples.of_cell(&cell).spread(cache)?.median;
        Some((cell, median / base))
    };
    samples.cells().into_iter().filter(hits).filter_map(ratio).collect()
}

fn memory(samples: &Samples, verdicts: &mut Verdicts) {
    let counted = samples.of_metric("bytes beyond key heap and vector").of_scene("plain");
    for (key, most) in [(TEXT, 110.0), (BYTES, 72.0)] {
        let of_key = counted.of_group(key);
        // Only the door packs a `CacheKey`; the core keeps whatever type it is given.
        for cache in ours(&of_key).into_iter().filter(|cache| cache.starts_with(DOOR)) {
            let Some(bytes) = of_key.spread(&cache).map(|spread| spread.median) else { continue };
            let found = if key == BYTES {
                format!("{bytes:.1}; {:.1} without the key itself", bytes - 32.0)
            } else {
                format!("{bytes:.1}")
            };
            let target = format!("bytes for each entry, {key} ≤ {most}");
            verdicts.push(&target, &cache, found, bytes <= most);
        }
    }
}

fn latency(samples: &Samples, verdicts: &mut Verdicts) {
    for cell in samples.cells() {
        let figures = samples.of_cell(&cell);
        let Some(peer) = best_peer(&figures, f64::min) else { continue };
        for cache in ours(&figures) {
            let (Some(own), Some(best)) = (figures.spread(&cache), figures.spread(&peer)) else {
                continue;
            };
            let target = format!("p99.9 ≤ the best peer's; {}; {}", cell.group, cell.scene);
            let found = format!("{} beside {} of {peer}", own.show(time), best.show(time));
            verdicts.push(&target, &cache, found, own.median <= best.median);
        }
    }
}

fn hit_ratio(samples: &Samples, verdicts: &mut Verdicts) {
    for group in samples.groups() {
        let ratios = Ratios::of(samples, &group);
        let best = ratios.best();
        // One that was not fair in some cell has no mean.
        let means = ratios.peers().map(|(cache, row)| (mean(row), cache));
        let single = means.filter(|(mean, _)| mean.is_finite()).max_by(|a, b| a.0.total_cmp(&b.0));
        let Some((single, peer)) = single else { continue };
        let caches = ratios.caches.iter().filter(|cache| Side::of(cache) == Side::Ours);
        for (cache, row) in caches.filter_map(|cache| Some((cache, ratios.row(cache)?))) {
            let mut push = |target: &str, found, met| {
                verdicts.push(&format!("{group} traces: {target}"), cache, found, met);
            };
            let ahead = mean(row) - single;
            let found = format!("{ahead:+.2} ({:.2} beside {single:.2} of {peer})", mean(row));
            push("mean hit ratio ≥ the best peer's + 0.8 points", found, ahead >= 0.8);
            let under = mean(&best) - mean(row);
            let target = "mean ≤ 0.5 points under the best peer of each cell";
            push(target, format!("{under:+.2}"), under <= 0.5);
            let best_of_all = ratios.best_of_all(cache);
            let far = best_of_all.iter().zip(row).filter(|(best, own)| *best - *own > 1.0).count();
            let found = format!(
                "{far} of {}; mean {:.2} beside {:.2}",
                row.len(),
                mean(row),
                mean(&best_of_all)
            );
            push(
                "≤ 10 cells > 1 point under the best of all other policies there",
                found,
                far <= 10,
            );
            let behind: Vec<_> = best.iter().zip(row).map(|(best, own)| best - own).collect();
            let far = behind.iter().filter(|&&points| points > 2.0).count();
            let share = 100.0 * far as f64 / behind.len() as f64;
            let found = format!("{far} of {} ({share:.1} %)", behind.len());
            push("≤ 6 % of cells > 2 points under the best peer there", found, share <= 6.0);
            let worst = behind.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let at = behind.iter().position(|&points| points == worst);
            let cell = at.map_or(String::new(), |at| {
                format!(" ({}, {} %)", ratios.cells[at].scene, ratios.cells[at].at)
            });
            let target = "no cell > 12 points under the best peer there";
            push(target, format!("{worst:.2}{cell}"), worst <= 12.0);
        }
    }
}
