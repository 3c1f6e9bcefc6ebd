//! The plots: what is ours in one strong colour, everything else muted.

use std::error::Error;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::Measured;
use super::hit_ratio::{Ratios, mean};
use crate::caches::Side;
use crate::sample::Samples;
use crate::table::{count, rate, short, time};

type Drawn = Result<(), Box<dyn Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Of one chart among others, and of one that is alone.
const SMALL: (u32, u32) = (360, 250);
const ALONE: (u32, u32) = (720, 400);

const FONT: &str = "sans-serif";
const INK: RGBColor = RGBColor(51, 51, 51);
const FAINT: RGBColor = RGBColor(225, 225, 225);
/// The first is the one that counts; the others are its relatives.
const OURS: [RGBColor; 4] = [
    RGBColor(200, 30, 30),
    RGBColor(235, 130, 110),
    RGBColor(130, 20, 50),
    RGBColor(240, 165, 175),
];
/// Told apart, but none before the others.
const MUTED: [RGBColor; 8] = [
    RGBColor(110, 140, 175),
    RGBColor(130, 165, 130),
    RGBColor(185, 160, 110),
    RGBColor(150, 130, 170),
    RGBColor(110, 165, 165),
    RGBColor(175, 135, 150),
    RGBColor(140, 140, 140),
    RGBColor(165, 175, 195),
];

/// Makes every plot for which there are figures.
pub(super) fn draw(measured: &Measured, out: &Path) -> Drawn {
    let rates = measured.throughput.of_metric("per second");
    for group in rates.groups() {
        let name = file_name(&format!("throughput {group}"));
        throughput(&rates.of_group(&group), &group, &out.join(name))?;
    }
    let latency = &measured.latency;
    for group in latency.groups() {
        for scene in latency.of_group(&group).scenes() {
            let name = file_name(&format!("latency {group} {scene}"));
            let samples = latency.of_group(&group).of_scene(&scene);
            percentiles(&samples, &format!("{scene}, {group}"), &out.join(name))?;
        }
    }
    let bytes = measured.memory.of_metric("bytes beyond key heap and vector").of_scene("plain");
    if !bytes.0.is_empty() {
        memory(&bytes, &out.join("memory.svg"))?;
    }
    for group in measured.hit_ratio.groups() {
        let name = file_name(&format!("hit-ratio {group}"));
        hit_ratio(&measured.hit_ratio, &group, &out.join(name))?;
    }
    for (group, title) in [("entries", "By entries"), ("shards", "By shards, ShardedCache")] {
        let samples = measured.growth.of_group(group);
        if !samples.0.is_empty() {
            growth(&samples, title, &out.join(file_name(&format!("growth {group}"))))?;
        }
    }
    Ok(())
}

fn file_name(name: &str) -> String {
    let plain = |letter: char| if letter.is_alphanumeric() { letter } else { '-' };
    let name: String = name.to_lowercase().chars().map(plain).collect();
    name.replace("--", "-") + ".svg"
}

/// A line: its name and its heights, where there are any.
struct Line {
    name: String,
    heights: Vec<Option<f64>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Scale {
    FromZero,
    Logarithmic,
}

/// One of the charts of a picture.
struct Chart {
    title: String,
    along: &'static str,
    places: Vec<String>,
    lines: Vec<Line>,
    scale: Scale,
    show: fn(f64) -> String,
}

fn text(size: u32) -> TextStyle<'static> {
    TextStyle::from((FONT, size)).color(&INK)
}

/// Colour and width of the lines, by name: the same in all charts of a picture.
fn styles(names: &[String]) -> Vec<(String, RGBColor, u32)> {
    let (mut ours, mut muted) = (OURS.iter().cycle(), MUTED.iter().cycle());
    let style = |name: &String| match Side::of(name) {
        Side::Ours => (name.clone(), *ours.next().expect("endless"), 3),
        Side::Peer => (name.clone(), *muted.next().expect("endless"), 2),
        Side::Reference => (name.clone(), RGBColor(185, 185, 185), 1),
    };
    names.iter().map(style).collect()
}

/// Charts in a grid, with a title above and the names of the lines below.
fn picture(path: &Path, title: &str, charts: &[Chart], size: (u32, u32)) -> Drawn {
    let names: Vec<String> =
        charts.iter().flat_map(|chart| &chart.lines).fold(Vec::new(), |mut names, line| {
            if !names.contains(&line.name) {
                names.push(line.name.clone());
            }
            names
        });
    let styles = styles(&names);
    let columns = charts.len().clamp(1, 4);
    let rows = charts.len().div_ceil(columns);
    let (width, height) = (size.0 * columns as u32, size.1 * rows as u32);
    let per_line = (width / 175).max(1) as usize;
    let legend = 20 * styles.len().div_ceil(per_line) as u32 + 14;
    let root = SVGBackend::new(path, (width, 34 + height + legend)).into_drawing_area();
    root.fill(&WHITE)?;
    let (head, rest) = root.split_vertically(34);
    head.draw(&Text::new(title.to_owned(), (12, 9), text(17)))?;
    let (body, foot) = rest.split_vertically(height);
    for (area, chart) in body.split_evenly((rows, columns)).iter().zip(charts) {
        draw_chart(area, chart, &styles)?;
    }
    for (number, (name, colour, width)) in styles.iter().enumerate() {
        let x = 14 + 175 * (number % per_line) as i32;
        let y = 12 + 20 * (number / per_line) as i32;
        let style = ShapeStyle::from(colour).stroke_width(*width);
        foot.draw(&PathElement::new(vec![(x, y), (x + 22, y)], style))?;
        foot.draw(&Text::new(name.clone(), (x + 28, y - 6), text(12)))?;
    }
    root.present()?;
    Ok(())
}

fn draw_chart(area: &Area<'_>, chart: &Chart, styles: &[(String, RGBColor, u32)]) -> Drawn {
    let heights = chart.lines.iter().flat_map(|line| line.heights.iter().flatten().copied());
    let heights: Vec<f64> = heights.filter(|height| height.is_finite() && *height > 0.0).collect();
    let most = heights.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let least = heights.iter().copied().fold(f64::MAX, f64::min).min(most);
    let logarithmic = chart.scale == Scale::Logarithmic;
    let place = |height: f64| if logarithmic { height.log10() } else { height };
    let (bottom, top) = match chart.scale {
        Scale::FromZero => (0.0, most * 1.05),
        Scale::Logarithmic => (least.log10() - 0.1, most.log10() + 0.1),
    };
    let last = chart.places.len().saturating_sub(1).max(1) as f64;
    let mut context = ChartBuilder::on(area)
        .caption(&chart.title, text(14))
        .margin(8)
        .x_label_area_size(34)
        .y_label_area_size(58)
        .build_cartesian_2d(-0.15..last + 0.15, bottom..top)?;
    let along = |x: &f64| {
        let whole = (x - x.round()).abs() < 1e-6;
        let name = if whole && *x > -0.5 { chart.places.get(x.round() as usize) } else { None };
        name.cloned().unwrap_or_default()
    };
    let up = |y: &f64| (chart.show)(if logarithmic { 10_f64.powf(*y) } else { *y });
    context
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(FAINT)
        .axis_style(INK)
        .x_labels(chart.places.len().max(2) * 2)
        .y_labels(6)
        .x_label_formatter(&along)
        .y_label_formatter(&up)
        .x_desc(chart.along)
        .axis_desc_style(text(11))
        .label_style(text(11))
        .draw()?;
    // Ours last, so that it lies above the others.
    let mut lines: Vec<_> = chart.lines.iter().collect();
    lines.sort_by_key(|line| Side::of(&line.name) == Side::Ours);
    for line in lines {
        let Some((_, colour, width)) = styles.iter().find(|style| style.0 == line.name) else {
            continue;
        };
        let style = ShapeStyle::from(colour).stroke_width(*width);
        let point = |(x, height): (usize, &Option<f64>)| {
            let height = height.filter(|height| height.is_finite())?;
            (!logarithmic || height > 0.0).then(|| (x as f64, place(height)))
        };
        let points: Vec<_> = line.heights.iter().enumerate().filter_map(point).collect();
        let dots = points.iter().map(|&point| Circle::new(point, *width, style.filled()));
        context.draw_series(dots)?;
        context.draw_series(LineSeries::new(points.iter().copied(), style))?;
    }
    Ok(())
}

/// The medians of the caches, at each place along the axis.
fn lines(samples: &Samples, ats: &[f64]) -> Vec<Line> {
    let line = |name: String| {
        let height = |&at: &f64| {
            samples.filtered(|sample| sample.at == at).spread(&name).map(|spread| spread.median)
        };
        Line { heights: ats.iter().map(height).collect(), name }
    };
    samples.caches().into_iter().map(line).collect()
}

fn throughput(samples: &Samples, group: &str, path: &Path) -> Drawn {
    let charts: Vec<_> = samples
        .scenes()
        .into_iter()
        .map(|scene| {
            let of_scene = samples.of_scene(&scene);
            let ats = of_scene.ats();
            Chart {
                along: "at once",
                places: ats.iter().map(f64::to_string).collect(),
                lines: lines(&of_scene, &ats),
                title: scene,
                scale: Scale::FromZero,
                show: rate,
            }
        })
        .collect();
    picture(path, &format!("Operations per second: {group}"), &charts, SMALL)
}

fn percentiles(samples: &Samples, title: &str, path: &Path) -> Drawn {
    const METRICS: [&str; 4] = ["p50", "p99", "p99.9", "max"];
    let line = |name: String| {
        let height = |metric: &&str| Some(samples.of_metric(metric).spread(&name)?.median);
        Line { heights: METRICS.iter().map(height).collect(), name }
    };
    let chart = Chart {
        title: title.to_owned(),
        along: "percentile",
        places: METRICS.map(str::to_owned).to_vec(),
        lines: samples.caches().into_iter().map(line).collect(),
        scale: Scale::Logarithmic,
        show: time,
    };
    picture(path, "Time of a get while a writer evicts", &[chart], ALONE)
}

fn hit_ratio(samples: &Samples, group: &str, path: &Path) -> Drawn {
    let ratios = Ratios::of(samples, group);
    let ats = samples.of_group(group).ats();
    let below = |cache: &String| {
        let row = ratios.row(cache).unwrap_or_default();
        let height = |&at: &f64| {
            let here = ratios.cells.iter().zip(row).filter(|(cell, _)| cell.at == at);
            let here: Vec<_> = here.map(|(_, ratio)| *ratio).collect();
            (!here.is_empty()).then(|| mean(&here))
        };
        Line { name: cache.clone(), heights: ats.iter().map(height).collect() }
    };
    let chart = Chart {
        title: format!("mean over the {group} traces, percent"),
        along: "capacity in percent of the unique keys",
        places: ats.iter().map(f64::to_string).collect(),
        lines: ratios.caches.iter().map(below).collect(),
        scale: Scale::FromZero,
        show: short,
    };
    picture(path, "Hit ratio", &[chart], ALONE)
}

fn growth(samples: &Samples, title: &str, path: &Path) -> Drawn {
    let mut charts = Vec::new();
    for scene in samples.scenes() {
        for metric in ["get", "put"] {
            let figures = samples.of_scene(&scene).of_metric(metric);
            let ats = figures.ats();
            charts.push(Chart {
                title: format!("{metric}, {scene}"),
                along: "",
                places: ats.iter().map(|&at| count(at)).collect(),
                lines: lines(&figures, &ats),
                scale: Scale::Logarithmic,
                show: time,
            });
        }
    }
    picture(path, &format!("Nanoseconds an operation. {title}"), &charts, SMALL)
}

/// Bars, a group for each cache: there is nothing between two caches that a line could lead along.
fn memory(samples: &Samples, path: &Path) -> Drawn {
    let (caches, keys) = (samples.caches(), samples.groups());
    let (bar, gap) = (13, 12);
    let row = keys.len() as i32 * bar + gap;
    let (left, width) = (150, 720);
    let height = 70 + row * caches.len() as i32;
    let root = SVGBackend::new(path, (width as u32, height as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    let title = "Bytes for each entry beyond key heap and vector";
    root.draw(&Text::new(title, (12, 9), text(17)))?;
    let keys_text = format!("In each pair: {}", keys.join(", then "));
    root.draw(&Text::new(keys_text, (12, 32), text(12)))?;
    let most = samples.0.iter().map(|sample| sample.value).fold(1.0, f64::max);
    let per_byte = f64::from(width - left - 60) / most;
    for (number, (name, colour, _)) in styles(&caches).iter().enumerate() {
        let top = 58 + row * number as i32;
        let middle = top + (row - gap) / 2 - 6;
        root.draw(&Text::new(name.clone(), (12, middle), text(12)))?;
        for (at, key) in keys.iter().enumerate() {
            let Some(bytes) = samples.of_group(key).spread(name) else { continue };
            let (y, right) = (top + at as i32 * bar, left + (bytes.median * per_byte) as i32);
            root.draw(&Rectangle::new([(left, y), (right, y + bar - 2)], colour.filled()))?;
            let label = format!("{:.0}", bytes.median);
            root.draw(&Text::new(label, (right + 5, y), text(11)))?;
        }
    }
    root.present()?;
    Ok(())
}
