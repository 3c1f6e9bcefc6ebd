//! The tables of what is measured in rounds.

use std::fmt::Write;

use super::targets::best_peer;
use crate::caches::Side;
use crate::sample::Samples;
use crate::table::{Table, count, rate, short, time};

fn ours(caches: &[String]) -> Vec<String> {
    caches.iter().filter(|cache| Side::of(cache) == Side::Ours).cloned().collect()
}

/// Each of ours over the fastest peer, by workload; what each cache does a second is in the CSV.
pub(super) fn throughput(samples: &Samples) -> String {
    let mut text = String::new();
    let (rates, hits) = (samples.of_metric("per second"), samples.of_metric("hits %"));
    let lost = samples.of_metric("lost %");
    for group in rates.groups() {
        let of_group = rates.of_group(&group);
        let caches = of_group.caches();
        let ours = ours(&caches);
        let ats: Vec<_> = of_group.ats().iter().map(f64::to_string).collect();
        let _ = writeln!(
            text,
            "### {group}\n\nOperations per second, as a part of the fastest peer's, with {} at once.\n",
            ats.join(", ")
        );
        let mut table = Table::new(
            ["workload", "fastest peer"].into_iter().chain(ours.iter().map(String::as_str)),
        );
        for scene in of_group.scenes() {
            let cells: Vec<_> = of_group.of_scene(&scene).cells();
            let fastest = |cell: &_| {
                let figures = of_group.of_cell(cell);
                let peer = best_peer(&figures, f64::max)?;
                Some((figures, peer))
            };
            let fastest: Vec<_> = cells.iter().filter_map(fastest).collect();
            let mut peers: Vec<&str> = fastest.iter().map(|(_, peer)| peer.as_str()).collect();
            peers.dedup();
            let ratios = ours.iter().map(|cache| {
                let ratio = |(figures, peer): &(Samples, String)| {
                    figures.ratio(cache, peer).map_or("–".into(), |ratio| short(ratio.median))
                };
                fastest.iter().map(ratio).collect::<Vec<_>>().join(" · ")
            });
            table.row([scene.clone(), peers.join(" · ")].into_iter().chain(ratios));
        }
        let _ = writeln!(text, "{table}");
        let of_group = hits.of_group(&group);
        let mean = |cache: &String| {
            let values = of_group.filtered(|sample| &sample.cache == cache);
            let mean = values.0.iter().map(|s| s.value).sum::<f64>() / values.0.len() as f64;
            mean.is_finite().then(|| format!("{cache} {mean:.1} %"))
        };
        let means: Vec<_> = caches.iter().filter_map(mean).collect();
        if !means.is_empty() {
            let _ = writeln!(text, "Gets that hit in *evict*: {}.\n", means.join(", "));
        }
        let of_group = lost.of_group(&group);
        for cache in of_group.caches() {
            let lost = of_group.0.iter().filter(|sample| sample.cache == cache);
            let most = lost.map(|sample| sample.value).fold(0.0, f64::max);
            let scenes = of_group.filtered(|sample| sample.cache == cache).scenes().join(", ");
            let _ = writeln!(
                text,
                "{cache} had lost entries that there was room for: up to {most:.2} % of the gets \
                 that should hit missed, in {scenes}.\n"
            );
        }
    }
    text
}

pub(super) fn latency(samples: &Samples) -> String {
    let mut text = String::new();
    for group in samples.groups() {
        for scene in samples.scenes() {
            let of_scene = samples.of_group(&group).of_scene(&scene);
            if of_scene.0.is_empty() {
                continue;
            }
            let _ = writeln!(text, "### {group}; {scene}\n");
            let metrics = ["p50", "p99", "p99.9", "max"];
            let columns = ["cache"].into_iter().chain(metrics);
            let mut table = Table::new(columns.chain(["puts per second", "hits"]));
            for cache in of_scene.caches() {
                let show = |metric: &str, show: fn(f64) -> String| {
                    let spread = of_scene.of_metric(metric).spread(&cache);
                    spread.map_or("–".to_owned(), |spread| show(spread.median))
                };
                let median = |metric: &str| {
                    of_scene.of_metric(metric).spread(&cache).map_or(f64::NAN, |s| s.median)
                };
                let times: Vec<_> = metrics.iter().map(|metric| show(metric, time)).collect();
                let rest = [rate(median("puts per second")), format!("{:.0} %", median("hits %"))];
                table.row([cache.clone()].into_iter().chain(times).chain(rest));
            }
            let _ = writeln!(text, "{table}");
        }
    }
    text
}

pub(super) fn memory(samples: &Samples) -> String {
    let mut text = String::new();
    let counted = samples.of_metric("bytes beyond key heap and vector");
    if !counted.0.is_empty() {
        let columns: Vec<_> = counted.cells();
        let names = columns.iter().map(|cell| format!("{}; {}", cell.group, cell.scene));
        let mut table = Table::new(["cache".to_owned()].into_iter().chain(names));
        for cache in counted.caches() {
            let bytes = |cell: &_| {
                counted.of_cell(cell).spread(&cache).map_or("–".to_owned(), |s| short(s.median))
            };
            table.row([cache.clone()].into_iter().chain(columns.iter().map(bytes)));
        }
        let _ = writeln!(text, "Bytes for each entry beyond key heap and vector.\n\n{table}");
    }
    let resident = samples.of_metric("resident set % of limit");
    let held = samples.of_metric("vectors and keys % of limit");
    if !resident.0.is_empty() {
        let mut table = Table::new(["cache", "resident set", "of it vectors and keys"]);
        let percent = |samples: &Samples, cache: &str| {
            let show = |percent| format!("{percent:.1} %");
            samples.spread(cache).map_or("–".to_owned(), |spread| spread.show(show))
        };
        for cache in resident.caches() {
            table.row([cache.clone(), percent(&resident, &cache), percent(&held, &cache)]);
        }
        let _ = writeln!(text, "Growth of the resident set, of the limit on bytes.\n\n{table}");
    }
    text
}

pub(super) fn growth(samples: &Samples) -> String {
    let mut text = String::new();
    for (group, by) in [("entries", "cache"), ("shards", "shards")] {
        for scene in samples.of_group(group).scenes() {
            for metric in ["fill", "get", "put"] {
                let figures = samples.of_group(group).of_scene(&scene).of_metric(metric);
                if figures.0.is_empty() {
                    continue;
                }
                let _ = writeln!(text, "{group}, {scene}, nanoseconds a {metric}\n");
                let ats = figures.ats();
                let columns = ats.iter().map(|&at| count(at));
                let mut table = Table::new([by.to_owned()].into_iter().chain(columns));
                for cache in figures.caches() {
                    let cost = |&at: &f64| {
                        let spread = figures.filtered(|sample| sample.at == at).spread(&cache);
                        spread.map_or("–".to_owned(), |spread| format!("{:.0}", spread.median))
                    };
                    table.row([cache.clone()].into_iter().chain(ats.iter().map(cost)));
                }
                let _ = writeln!(text, "{table}");
            }
        }
    }
    text
}
