//! The comparison in turns.
//!
//! For each workload and way to drive it, all caches are made first. Then come the rounds: in each,
//! at every number of threads, the caches take turns, in the opposite order from round to round. A
//! turn is about a tenth of a second, after a tenth of that to warm up. So the turns that are
//! compared lie within half a second, and what slows the machine down for longer slows all of them
//! down. Ratios are taken within a round; printed are the median of the rounds and, in brackets, the
//! least and the greatest.

use std::sync::Arc;
use std::time::Duration;

use crate::caches::{Cell, Make};
use crate::crew::{By, COUNTS, Crew, cores};
use crate::table::{Spread, Table, rate};
use crate::workload::{Material, Script, Workload};

/// How much of it.
pub(crate) struct Plan {
    rounds: usize,
    turn: Duration,
}

impl Plan {
    pub(crate) const FULL: Self = Self { rounds: 7, turn: Duration::from_millis(100) };
    /// To see that it runs.
    pub(crate) const GLANCE: Self = Self { rounds: 1, turn: Duration::from_micros(200) };
}

/// Runs the comparison and prints it as Markdown.
pub(crate) fn print(plan: Plan) {
    let material = Material::new();
    let crew = Crew::new();
    println!("{}", header(&plan));
    for by in By::BOTH {
        let all: Vec<_> = Workload::ALL
            .into_iter()
            .map(|workload| Rates::measure(&plan, &crew, &material, workload, by, Make::ALL))
            .collect();
        println!("## Driven by {}\n", by.name());
        print_rates(&all);
        print_scaling(&all);
        for rates in &all {
            rates.print_hit_ratios();
        }
    }
    let by_shards: Vec<_> = Workload::BY_SHARDS
        .into_iter()
        .map(|workload| {
            Rates::measure(&plan, &crew, &material, workload, By::Threads, Make::BY_SHARDS)
        })
        .collect();
    println!("## By the number of shards, driven by threads\n");
    print_rates(&by_shards);
    print_scaling(&by_shards);
}

fn header(plan: &Plan) -> String {
    let (system, processor) = (std::env::consts::OS, std::env::consts::ARCH);
    let model = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|facts| {
        let line = facts.lines().find(|line| line.starts_with("model name"))?;
        Some(format!(", {}", line.split_once(':')?.1.trim()))
    });
    let debug =
        if cfg!(debug_assertions) { "; a debug build, its figures mean nothing" } else { "" };
    format!(
        "{} cores, {system} {processor}{}; {} rounds of {} ms{debug}\n\n\
         Operations per second, medians. Ratios: median of the rounds (least–greatest).\n",
        cores(),
        model.unwrap_or_default(),
        plan.rounds,
        plan.turn.as_secs_f64() * 1e3,
    )
}

/// What was measured of one workload.
struct Rates {
    workload: Workload,
    /// The first is what the others are compared with.
    caches: [Make; 4],
    counts: &'static [usize],
    /// Operations per second by count, cache and round.
    rates: Vec<Vec<Vec<f64>>>,
    /// Operations, and how many of them were gets that missed, by cache.
    misses: [(u64, u64); 4],
}

impl Rates {
    fn measure(
        plan: &Plan,
        crew: &Crew,
        material: &Arc<Material>,
        workload: Workload,
        by: By,
        caches: [Make; 4],
    ) -> Self {
        eprintln!("{}, {} ...", workload.name(), by.name());
        let script = Arc::new(Script::new(workload, material));
        let cells = caches.map(|cache| cache.cell(&script));
        // At capacity with more of them, little changes but the patience it takes.
        let counts = if workload == Workload::AtCapacity { &COUNTS[..2] } else { &COUNTS };

        let calibrate = |&count| cells.each_ref().map(|cell| plan.calibrate(crew, by, count, cell));
        let enough: Vec<_> = counts.iter().map(calibrate).collect();
        let mut rates = vec![vec![Vec::new(); caches.len()]; counts.len()];
        let mut misses = [(0, 0); 4];
        for round in 0..plan.rounds {
            for (at, &count) in counts.iter().enumerate() {
                for turn in 0..caches.len() {
                    let cache = if round % 2 == 0 { turn } else { caches.len() - 1 - turn };
                    let (cell, operations) = (&cells[cache], enough[at][cache]);
                    crew.run(by, count, cell, operations / 10);
                    let turn = crew.run(by, count, cell, operations);
                    rates[at][cache].push(turn.per_second());
                    misses[cache].0 += turn.operations;
                    misses[cache].1 += turn.misses;
                }
            }
        }
        Self { workload, caches, counts, rates, misses }
    }

    /// The ratio of each round between two caches, or two counts.
    fn ratio(&self, (count, cache): (usize, usize), (base_count, base): (usize, usize)) -> Spread {
        let (rates, base) = (&self.rates[count][cache], &self.rates[base_count][base]);
        Spread::of(rates.iter().zip(base).map(|(rate, base)| rate / base))
    }

    fn print_hit_ratios(&self) {
        if self.misses.iter().all(|&(_, misses)| misses == 0) {
            return;
        }
        let ratios = self.caches.iter().zip(self.misses).map(|(cache, (operations, misses))| {
            format!("{} {:.1} %", cache.name(), 100.0 * (1.0 - misses as f64 / operations as f64))
        });
        let ratios = ratios.collect::<Vec<_>>().join(", ");
        println!("Gets that hit in {}: {ratios}.\n", self.workload.name());
    }
}

impl Plan {
    /// How many operations of a cell fill a turn.
    fn calibrate(&self, crew: &Crew, by: By, count: usize, cell: &Arc<dyn Cell>) -> u64 {
        let mut operations = 64 * count as u64;
        loop {
            let turn = crew.run(by, count, cell, operations);
            if turn.elapsed * 4 >= self.turn {
                return (turn.per_second() * self.turn.as_secs_f64()) as u64 + 1;
            }
            operations *= 2;
        }
    }
}

fn print_rates(all: &[Rates]) {
    let caches = all[0].caches.map(Make::name);
    let ratios = caches[1..].iter().map(|cache| format!("{cache} ÷ {}", caches[0]));
    let names = ["workload".to_owned(), "at once".to_owned()];
    let mut table = Table::new(names.into_iter().chain(caches.iter().cloned()).chain(ratios));
    for rates in all {
        for (at, count) in rates.counts.iter().enumerate() {
            let medians = rates.rates[at]
                .iter()
                .map(|rounds| rate(Spread::of(rounds.iter().copied()).median));
            let ratios =
                (1..caches.len()).map(|cache| rates.ratio((at, cache), (at, 0)).to_string());
            let row = [rates.workload.name().to_owned(), count.to_string()];
            table.row(row.into_iter().chain(medians).chain(ratios));
        }
    }
    println!("{table}");
}

/// How much faster two at once are than one.
fn print_scaling(all: &[Rates]) {
    let caches = all[0].caches.map(Make::name);
    println!("Two at once against one:\n");
    let mut table = Table::new(["workload".to_owned()].into_iter().chain(caches.clone()));
    for rates in all {
        let scaling =
            (0..caches.len()).map(|cache| rates.ratio((1, cache), (0, cache)).to_string());
        table.row([rates.workload.name().to_owned()].into_iter().chain(scaling));
    }
    println!("{table}");
}
