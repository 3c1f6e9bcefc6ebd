//! The cells as criterion sees them: a group for each workload and way to drive it, in it a line
//! for each cache, along the number of threads or tasks.

use std::cell::LazyCell;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};

use crate::caches::{Cell, Make};
use crate::crew::{By, COUNTS, Crew};
use crate::workload::{Material, Script, Workload};

/// Runs what the command line asks for. The times are short, for there are over 200 cells; the
/// command line can lengthen them. So are the resamples: ten samples have little more to tell, and
/// the usual 100,000 take longer than the measurement.
pub(crate) fn run() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(500))
        .nresamples(5_000)
        .configure_from_args();
    // Everything is made when the first cell asks for it: a filter may leave few.
    let crew: LazyCell<Crew> = LazyCell::new(Crew::new);
    let material = LazyCell::new(Material::new);
    for workload in Workload::ALL {
        let script = LazyCell::new(|| Arc::new(Script::new(workload, &material)));
        for by in By::BOTH {
            let name = format!("{}/{}", workload.name(), by.name());
            group(&mut criterion, &name, Make::ALL, &script, by, &crew);
        }
    }
    for workload in Workload::BY_SHARDS {
        let script = LazyCell::new(|| Arc::new(Script::new(workload, &material)));
        let name = format!("shards/{}", workload.name());
        group(&mut criterion, &name, Make::BY_SHARDS, &script, By::Threads, &crew);
    }
    criterion.final_summary();
}

fn group<const N: usize>(
    criterion: &mut Criterion,
    name: &str,
    caches: [Make; N],
    script: &LazyCell<Arc<Script>, impl FnOnce() -> Arc<Script>>,
    by: By,
    crew: &LazyCell<Crew>,
) {
    let mut group = criterion.benchmark_group(name);
    // All samples of a cell are equally long, so that the warm-up's estimate decides nothing.
    group.sampling_mode(SamplingMode::Flat).throughput(Throughput::Elements(1));
    for cache in caches {
        let cell = LazyCell::new(|| cache.cell(script));
        for count in COUNTS {
            group.bench_function(BenchmarkId::new(cache.name(), count), |bencher| {
                bencher.iter_custom(|operations| time(crew, by, count, &cell, operations));
            });
        }
    }
    group.finish();
}

/// What `operations` take. Where more were run, as their number is no multiple of `count`, that part
/// of the time.
fn time(crew: &Crew, by: By, count: usize, cell: &Arc<dyn Cell>, operations: u64) -> Duration {
    // Criterion may ask for none at all, if the warm-up has used up the time to profile in.
    let turn = crew.run(by, count, cell, operations.max(1));
    turn.elapsed.mul_f64(operations as f64 / turn.operations as f64)
}
