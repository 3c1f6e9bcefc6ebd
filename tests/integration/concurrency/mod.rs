//! Promises that must hold while threads are at work on one cache: limits at every sample, no lock
//! held while a caller's code runs, values that were really written, counts that add up.

mod invalidation;
mod limits;
mod lowering;
mod unlocked;
mod values;

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

type Worker<'a> = Box<dyn FnOnce() + Send + 'a>;

/// A worker for each of `inputs`.
fn each<'a, T: Send + 'a>(
    inputs: impl IntoIterator<Item = T>,
    work: &'a (impl Fn(T) + Sync),
) -> Vec<Worker<'a>> {
    let worker = |input| Box::new(move || work(input)) as Worker<'a>;
    inputs.into_iter().map(worker).collect()
}

/// Runs `workers` to their end on threads of their own while one more thread calls `sample` again
/// and again, and once more in the end. A sample or a worker that panics fails the test.
fn sampled(workers: Vec<Worker<'_>>, sample: impl Fn() + Sync) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            while !done.load(SeqCst) {
                sample();
            }
            sample();
        });
        let workers: Vec<_> = workers.into_iter().map(|worker| scope.spawn(worker)).collect();
        let ends: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        done.store(true, SeqCst);
        for end in ends.into_iter().chain([sampler.join()]) {
            end.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
}

/// Random numbers that are the same in every run.
fn numbers(seed: u64) -> impl Rng {
    SmallRng::seed_from_u64(seed)
}
