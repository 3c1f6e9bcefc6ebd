//! The threads and tasks that drive a cell, and how their time is taken.
//!
//! Threads are started once and wait for their next turn. Each begins when all have arrived, at a
//! place of its own in the script. Every one of them notes when it began and ended; the time of a
//! turn is from the first beginning to the last end, so that waking them up is not part of it, and
//! neither is the thread that waits for their notes. Tasks are spawned for each turn, which is a
//! microsecond each against milliseconds of operations, and are timed in the same way.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

use crate::caches::Cell;
use crate::workload::Script;

/// Who drives a cell.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// Threads outside any runtime.
    Threads,
    /// Tasks in a multi-threaded runtime with a worker for each core.
    Tasks,
}

impl By {
    pub(crate) const BOTH: [Self; 2] = [Self::Threads, Self::Tasks];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Threads => "threads",
            Self::Tasks => "tokio",
        }
    }
}

/// How many threads or tasks drive a cell at once.
pub(crate) const COUNTS: [usize; 4] = [1, 2, 4, 8];
const MOST: usize = 8;

/// After so many operations a task lets the others go on, as a server's task does while it waits
/// for its next request; else an operation that never has to wait would keep the other tasks from
/// beginning at all.
const REQUEST: u64 = 64;

/// What a turn came to.
pub(crate) struct Turn {
    pub(crate) elapsed: Duration,
    /// All of them together; a little more than was asked for, where that is no multiple of their
    /// number.
    pub(crate) operations: u64,
    /// Gets that missed.
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

pub(crate) fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

impl Crew {
    pub(crate) fn new() -> Self {
        let threads = (0..MOST).map(|_| thread()).collect();
        let runtime = Builder::new_multi_thread().worker_threads(cores()).build();
        let runtime = runtime.expect("the machine lets us start threads");
        Self { threads, runtime }
    }

    /// Has `count` threads or tasks run at least `operations` of the cell together.
    pub(crate) fn run(&self, by: By, count: usize, cell: &Arc<dyn Cell>, operations: u64) -> Turn {
        let each = operations.div_ceil(count as u64);
        let start = cell.next(each);
        let places = (0..count).map(|number| start + number * (Script::LEN / count));
        let notes = match by {
            By::Threads => self.by_threads(places, count, cell, each),
            By::Tasks => self.by_tasks(places, count, cell, each),
        };
        let began = notes.iter().map(|note| note.began).min().expect("at least one");
        let ended = notes.iter().map(|note| note.ended).max().expect("at least one");
        let misses = notes.iter().map(|note| note.misses).sum();
        assert!(misses == 0 || cell.may_miss(), "{misses} gets missed in a workload of hits");
        Turn { elapsed: ended - began, operations: each * count as u64, misses }
    }

    fn by_threads(
        &self,
        places: impl Iterator<Item = usize>,
        count: usize,
        cell: &Arc<dyn Cell>,
        each: u64,
    ) -> Vec<Note> {
        let all_here = Arc::new(Barrier::new(count));
        for ((errands, _), from) in self.threads.iter().zip(places) {
            let (cell, all_here) = (Arc::clone(cell), Arc::clone(&all_here));
            let errand = move || {
                all_here.wait();
                let began = Instant::now();
                let misses = cell.run(from, each);
                Note { began, ended: Instant::now(), misses }
            };
            errands.send(Box::new(errand)).expect(ALIVE);
        }
        self.threads[..count].iter().map(|(_, notes)| notes.recv().expect(ALIVE)).collect()
    }

    fn by_tasks(
        &self,
        places: impl Iterator<Item = usize>,
        count: usize,
        cell: &Arc<dyn Cell>,
        each: u64,
    ) -> Vec<Note> {
        // One alone has nobody to let go on; to yield would only wake an idle worker, in vain.
        let request = if count == 1 { u64::MAX } else { REQUEST };
        // No barrier: the one who comes last would wake the others onto its own worker's queue.
        let spawn = |from| {
            let run = Arc::clone(cell).task(from, each, request);
            self.runtime.spawn(async move {
                let began = Instant::now();
                let misses = run.await;
                Note { began, ended: Instant::now(), misses }
            })
        };
        let tasks: Vec<_> = places.map(spawn).collect();
        let note = |task: JoinHandle<_>| self.runtime.block_on(task).expect("no task panics");
        tasks.into_iter().map(note).collect()
    }
}

const ALIVE: &str = "no thread panics";

/// A thread that runs errands until nobody can send one.
fn thread() -> (Sender<Errand>, Receiver<Note>) {
    let (errands, to_run) = channel::<Errand>();
    let (to_report, notes) = channel();
    thread::spawn(move || to_run.into_iter().try_for_each(|run| to_report.send(run())));
    (errands, notes)
}
