//! What was measured, one figure a line: all tables, plots and verdicts are made from these, and
//! can be made again from the files.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

const HEADER: &str = "group,scene,at,cache,metric,round,value";

/// One figure of one round.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    /// Of what kind: the way to drive it and the key, or where a trace is from.
    pub(crate) group: String,
    /// A workload, a trace.
    pub(crate) scene: String,
    /// Along the horizontal axis: threads, entries, percent.
    pub(crate) at: f64,
    pub(crate) cache: String,
    pub(crate) metric: String,
    pub(crate) round: usize,
    pub(crate) value: f64,
}

/// Where in the tables a figure belongs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Cell {
    pub(crate) group: String,
    pub(crate) scene: String,
    pub(crate) at: f64,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(pub(crate) Vec<Sample>);

impl Samples {
    pub(crate) fn push(
        &mut self,
        cell: &Cell,
        cache: &str,
        metric: &str,
        round: usize,
        value: f64,
    ) {
        let Cell { group, scene, at } = cell.clone();
        let (cache, metric) = (cache.to_owned(), metric.to_owned());
        self.0.push(Sample { group, scene, at, cache, metric, round, value });
    }

    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let mut text = format!("{HEADER}\n");
        for Sample { group, scene, at, cache, metric, round, value } in &self.0 {
            text += &format!("{group},{scene},{at},{cache},{metric},{round},{value}\n");
        }
        fs::write(path, text)
    }

    /// What a file holds; nothing if there is no such file.
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            text => text?,
        };
        let parsed = text.lines().skip(1).map(|line| {
            let fields: Vec<_> = line.split(',').collect();
            let [group, scene, at, cache, metric, round, value] = fields[..] else { return None };
            Some(Sample {
                group: group.to_owned(),
                scene: scene.to_owned(),
                at: at.parse().ok()?,
                cache: cache.to_owned(),
                metric: metric.to_owned(),
                round: round.parse().ok()?,
                value: value.parse().ok()?,
            })
        });
        let samples: Option<Vec<_>> = parsed.collect();
        let bad = || io::Error::new(io::ErrorKind::InvalidData, format!("{}", path.display()));
        samples.map(Self).ok_or_else(bad)
    }

    /// The distinct values of something, in the order of their first appearance.
    fn distinct<T: PartialEq>(&self, of: impl Fn(&Sample) -> T) -> Vec<T> {
        let mut found = Vec::new();
        for sample in &self.0 {
            let one = of(sample);
            if !found.contains(&one) {
                found.push(one);
            }
        }
        found
    }

    pub(crate) fn groups(&self) -> Vec<String> {
        self.distinct(|sample| sample.group.clone())
    }

    pub(crate) fn scenes(&self) -> Vec<String> {
        self.distinct(|sample| sample.scene.clone())
    }

    pub(crate) fn caches(&self) -> Vec<String> {
        self.distinct(|sample| sample.cache.clone())
    }

    pub(crate) fn cells(&self) -> Vec<Cell> {
        self.distinct(|Sample { group, scene, at, .. }| Cell {
            group: group.clone(),
            scene: scene.clone(),
            at: *at,
        })
    }

    pub(crate) fn ats(&self) -> Vec<f64> {
        let mut ats = self.distinct(|sample| sample.at);
        ats.sort_by(f64::total_cmp);
        ats
    }

    pub(crate) fn filtered(&self, keep: impl Fn(&Sample) -> bool) -> Self {
        Self(self.0.iter().filter(|sample| keep(sample)).cloned().collect())
    }

    pub(crate) fn of_group(&self, group: &str) -> Self {
        self.filtered(|sample| sample.group == group)
    }

    pub(crate) fn of_scene(&self, scene: &str) -> Self {
        self.filtered(|sample| sample.scene == scene)
    }

    pub(crate) fn of_metric(&self, metric: &str) -> Self {
        self.filtered(|sample| sample.metric == metric)
    }

    pub(crate) fn of_cell(&self, cell: &Cell) -> Self {
        self.filtered(|sample| {
            sample.group == cell.group && sample.scene == cell.scene && sample.at == cell.at
        })
    }

    /// The figures of a cache by round; of different cells in any order.
    pub(crate) fn of_cache(&self, cache: &str) -> BTreeMap<usize, f64> {
        let of_cache = self.0.iter().filter(|sample| sample.cache == cache);
        of_cache.map(|sample| (sample.round, sample.value)).collect()
    }

    /// Over the rounds of a cache.
    pub(crate) fn spread(&self, cache: &str) -> Option<Spread> {
        Spread::of(self.of_cache(cache).into_values())
    }

    /// Over the ratios of the rounds that both have.
    pub(crate) fn ratio(&self, cache: &str, base: &str) -> Option<Spread> {
        let base = self.of_cache(base);
        let ratios = self.of_cache(cache).into_iter();
        Spread::of(ratios.filter_map(|(round, value)| Some(value / base.get(&round)?)))
    }
}

/// The median of some numbers, the least and the greatest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) greatest: f64,
    pub(crate) count: usize,
}

impl Spread {
    pub(crate) fn of(numbers: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut numbers: Vec<_> = numbers.into_iter().collect();
        numbers.sort_by(f64::total_cmp);
        let last = numbers.len().checked_sub(1)?;
        let median = (numbers[last / 2] + numbers[last.div_ceil(2)]) / 2.0;
        Some(Self { median, least: numbers[0], greatest: numbers[last], count: last + 1 })
    }

    /// `median (least–greatest)`, each as `show` writes it.
    pub(crate) fn show(&self, show: impl Fn(f64) -> String) -> String {
        if self.count == 1 {
            return show(self.median);
        }
        format!("{} ({}–{})", show(self.median), show(self.least), show(self.greatest))
    }
}

/// Writes the medians with the least and the greatest of the rounds.
pub(crate) fn write_summary(samples: &Samples, path: &Path) -> io::Result<()> {
    let mut text = "group,scene,at,cache,metric,rounds,median,least,greatest\n".to_owned();
    // By all that tells figures apart but the round; in the order of first appearance.
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    let mut rows: Vec<(String, Vec<f64>)> = Vec::new();
    for Sample { group, scene, at, cache, metric, value, .. } in &samples.0 {
        let name = format!("{group},{scene},{at},{cache},{metric}");
        let place = *places.entry(name.clone()).or_insert_with(|| {
            rows.push((name, Vec::new()));
            rows.len() - 1
        });
        rows[place].1.push(*value);
    }
    for (name, values) in rows {
        if let Some(Spread { median, least, greatest, count }) = Spread::of(values) {
            text += &format!("{name},{count},{median},{least},{greatest}\n");
        }
    }
    fs::write(path, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_within_a_round() {
        let cell = Cell { group: "g".into(), scene: "s".into(), at: 1.0 };
        let mut samples = Samples::default();
        for (round, (a, b)) in [(1.0, 1.0), (9.0, 3.0), (20.0, 10.0)].into_iter().enumerate() {
            samples.push(&cell, "a", "m", round, a);
            samples.push(&cell, "b", "m", round, b);
        }
        let ratio = samples.ratio("a", "b").unwrap();
        assert_eq!((ratio.median, ratio.least, ratio.greatest), (2.0, 1.0, 3.0));
    }

    #[test]
    fn the_median_of_an_even_number_is_between_two() {
        assert_eq!(Spread::of([4.0, 1.0, 3.0, 2.0]).unwrap().median, 2.5);
        assert_eq!(Spread::of([]), None);
    }
}
