//! The threads and tasks that drive a cell, and how their time is taken.
//!
//! Threads are started once and wait for their next turn; each begins when all have arrived, at a
//! place of its own in the script. Every one notes when it began and ended; the time of a turn is from
//! the first beginning to the last end.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};

use super::cells::{BATCH, Runner};

/// Who drives a cell.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// Threads outside any runtime.
    Threads,
    /// Tasks in a runtime with two workers.
    Tasks,
}

impl By {
    pub(crate) const BOTH: [Self; 2] = [Self::Threads, Self::Tasks];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Threads => "threads",
            Self::Tasks => "tasks",
        }
    }
}

/// What a turn came to.
pub(crate) struct Turn {
    elapsed: Duration,
    pub(crate) operations: u64,
    pub(crate) misses: u64,
}

impl Turn {
    pub(crate) fn per_second(&self) -> f64 {
        self.operations as f64 / self.elapsed.as_secs_f64()
    }
}

/// What one thread or task notes.
struct Note {
    began: Instant,
    ended: Instant,
    misses: u64,
}

type Errand = Box<dyn FnOnce() -> Note + Send>;

pub(crate) struct Crew {
    /// Where each thread takes its errands from, and where it leaves its notes.
    threads: Vec<(Sender<Errand>, Receiver<Note>)>,
    runtime: Runtime,
}

const ALIVE: &str = "no thread panics";

impl Crew {
    pub(crate) fn new(counts: &[usize]) -> Self {
        let most = counts.iter().copied().max().unwrap_or(1);
        let runtime = Builder::new_multi_thread().worker_threads(2).build();
        let runtime = runtime.expect("the machine lets us start threads");
        Self { threads: (0..most).map(|_| start()).collect(), runtime }
    }

    /// Has `count` threads or tasks run at least `operations` together.
    pub(crate) fn run(
        &self,
        by: By,
        count: usize,
        cell: &Arc<dyn Runner>,
        operations: u64,
    ) -> Turn {
        let each = operations.div_ceil(count as u64).next_multiple_of(BATCH as u64);
        let start = cell.next(each as usize);
        let place = |number: usize| start + number * (cell.period() / count);
        let places: Vec<_> = (0..count).map(place).collect();
        let notes = match by {
            By::Threads => self.by_threads(&places, cell, each),
            By::Tasks => self.by_tasks(&places, cell, each),
        };
        let began = notes.iter().map(|note| note.began).min().expect("at least one");
        let ended = notes.iter().map(|note| note.ended).max().expect("at least one");
        let misses = notes.iter().map(|note| note.misses).sum();
        Turn { elapsed: ended - began, operations: each * count as u64, misses }
    }

    fn by_threads(&self, places: &[usize], cell: &Arc<dyn Runner>, each: u64) -> Vec<Note> {
        let all_here = Arc::new(Barrier::new(places.len()));
        for ((errands, _), &from) in self.threads.iter().zip(places) {
            let (cell, all_here) = (Arc::clone(cell), Arc::clone(&all_here));
            let errand = move || {
                all_here.wait();
                let began = Instant::now();
                let misses = cell.run(from, each as usize);
                Note { began, ended: Instant::now(), misses }
            };
            errands.send(Box::new(errand)).expect(ALIVE);
        }
        let threads = &self.threads[..places.len()];
        threads.iter().map(|(_, notes)| notes.recv().expect(ALIVE)).collect()
    }

    fn by_tasks(&self, places: &[usize], cell: &Arc<dyn Runner>, each: u64) -> Vec<Note> {
        let alone = places.len() == 1;
        // No barrier: the one who comes last would wake the others onto its own worker's queue.
        let spawn = |&from: &usize| {
            let run = Arc::clone(cell).task(from, each as usize, alone);
            self.runtime.spawn(async move {
                let began = Instant::now();
                let misses = run.await;
                Note { began, ended: Instant::now(), misses }
            })
        };
        let tasks: Vec<_> = places.iter().map(spawn).collect();
        tasks.into_iter().map(|task| self.runtime.block_on(task).expect("no task panics")).collect()
    }

    /// How many operations of a cell fill a turn.
    pub(crate) fn calibrate(
        &self,
        by: By,
        count: usize,
        cell: &Arc<dyn Runner>,
        fill: Duration,
    ) -> u64 {
        let mut operations = (BATCH * count) as u64;
        loop {
            let turn = self.run(by, count, cell, operations);
            if turn.elapsed * 4 >= fill {
                return (turn.per_second() * fill.as_secs_f64()) as u64 + 1;
            }
            operations *= 2;
        }
    }
}

/// A thread that runs errands until nobody can send one.
fn start() -> (Sender<Errand>, Receiver<Note>) {
    let (errands, to_run) = channel::<Errand>();
    let (to_report, notes) = channel();
    thread::spawn(move || to_run.into_iter().try_for_each(|run| to_report.send(run())));
    (errands, notes)
}
