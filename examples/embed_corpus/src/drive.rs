//! Serves the batches as a server would, and measures.
//!
//! # How the measurement stays honest
//!
//! * **The same work.** A number of batches is fixed for each task count, and every mode serves
//!   those batches, from an empty cache on. With a fixed time instead, the faster cache would serve
//!   more requests, be warm for a larger part of them, and so show a better hit ratio.
//! * **The latency is the client's.** The clock of a batch starts when its task asks, goes on while
//!   the task waits for a worker, and stops when the last vector is there. Were the clock started
//!   only once the task runs, a cache whose tasks never wait *inside* a batch would hide that they
//!   wait in front of it.
//! * **The harness's own work is left out.** Drawing a batch and comparing its vectors happen while
//!   the clock of that batch stands still. The time of both, summed over all tasks and divided by
//!   the tasks that run at once, is what the harness has taken from the server; it comes off the
//!   elapsed time before requests per second are computed, and off each wait for a worker.
//! * **Every vector is compared**, at once and bit for bit, with one that was computed before the
//!   run and never was in a cache. Keeping the vectors for later instead would keep their memory
//!   from being used again, which would slow down the modes that copy vectors.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use tokio::task::{JoinSet, yield_now};

use crate::Failure;
use crate::caches::Cache;
use crate::embedder::embed;
use crate::workload::Workload;

/// The load of one cell of the table.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    /// Tasks that ask, each for one batch at a time.
    pub(crate) tasks: usize,
    /// How many of them can run at once: no more than there are workers.
    pub(crate) at_once: usize,
    /// Paragraphs in a batch.
    pub(crate) batch: usize,
    /// Batches of all tasks together.
    pub(crate) batches: u64,
    /// After this time no new batch is begun, whatever is left. Without it, a cache that gets
    /// slower as it gets larger could keep a newcomer waiting for minutes.
    pub(crate) time_limit: Option<Duration>,
}

/// One cell of the table: a cache under a load.
pub(crate) struct Cell {
    pub(crate) cache: &'static str,
    pub(crate) has_second_tier: bool,
    pub(crate) load: Load,
    pub(crate) tally: Tally,
    /// From the first batch to the last.
    pub(crate) elapsed: Duration,
    /// What the harness took of that for itself.
    own: Duration,
    /// What the cache held in the end.
    pub(crate) held: Option<u64>,
}

/// What the tasks count, each for itself and then together.
pub(crate) struct Tally {
    /// Nanoseconds per batch.
    pub(crate) latency: Histogram<u64>,
    pub(crate) batches: u64,
    /// Found in the cache, or in the tier behind it.
    pub(crate) hits: u64,
    /// Of these, found in the tier behind it.
    pub(crate) from_second: u64,
    /// Texts embedded.
    pub(crate) embedded: u64,
    /// Puts that the cache refused. The vector is returned all the same.
    pub(crate) refused: u64,
}

impl Cell {
    pub(crate) fn requests(&self) -> u64 {
        self.tally.batches * self.load.batch as u64
    }

    pub(crate) fn requests_per_second(&self) -> f64 {
        self.requests() as f64 / self.elapsed.saturating_sub(self.own).as_secs_f64()
    }

    /// The time limit came before the last batch.
    pub(crate) fn was_stopped(&self) -> bool {
        self.tally.batches < self.load.batches
    }

    pub(crate) fn hit_ratio(&self) -> f64 {
        self.tally.hits as f64 / self.requests() as f64
    }

    /// The part of the time that the harness took for itself.
    pub(crate) fn own_share(&self) -> f64 {
        self.own.as_secs_f64() / self.elapsed.as_secs_f64()
    }
}

impl Tally {
    /// An hour in nanoseconds, longer than any batch.
    const LONGEST: u64 = 3_600_000_000_000;

    fn new() -> Self {
        Self {
            latency: Histogram::new_with_max(Self::LONGEST, 2).expect("these bounds are valid"),
            batches: 0,
            hits: 0,
            from_second: 0,
            embedded: 0,
            refused: 0,
        }
    }

    fn add(&mut self, other: &Self) {
        self.latency.add(&other.latency).expect("the bounds are the same");
        self.batches += other.batches;
        self.hits += other.hits;
        self.from_second += other.from_second;
        self.embedded += other.embedded;
        self.refused += other.refused;
    }
}

/// How often the progress bar moves. The main thread draws it, which serves nothing itself.
const TICK: Duration = Duration::from_millis(100);

/// Serves `load` from `cache`, and stops with an error at the first wrong vector.
pub(crate) async fn drive<C: Cache>(
    cache: C,
    workload: &Arc<Workload>,
    load: Load,
    bar: &ProgressBar,
) -> Result<Cell, Failure> {
    let start = Instant::now();
    let server = Arc::new(Server {
        cache,
        workload: Arc::clone(workload),
        load,
        next: AtomicU64::new(0),
        own_nanos: AtomicU64::new(0),
        deadline: load.time_limit.map(|limit| start + limit),
    });
    let mut clients = JoinSet::new();
    for _ in 0..load.tasks {
        clients.spawn(client(Arc::clone(&server)));
    }

    let (mut tallies, already) = (Vec::new(), bar.position());
    let mut ticks = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            // Returning early drops `clients`, which stops all of them.
            joined = clients.join_next() => match joined {
                Some(Ok(Ok(tally))) => tallies.push(tally),
                Some(Ok(Err(wrong))) => {
                    let (cache, tasks) = (C::NAME, load.tasks);
                    return Err(Failure::Run(format!(
                        "wrong vector (cache: {cache}, tasks: {tasks}): {wrong}"
                    )));
                }
                Some(Err(panic)) => return Err(Failure::Run(format!("a task failed: {panic}"))),
                None => break,
            },
            _ = ticks.tick() => bar.set_position(already + server.begun()),
        }
    }
    let elapsed = start.elapsed();
    bar.set_position(already + load.batches);

    let mut tally = Tally::new();
    for part in &tallies {
        tally.add(part);
    }
    let held = server.cache.memory_bytes().await;
    Ok(Cell {
        cache: C::NAME,
        has_second_tier: C::HAS_SECOND_TIER,
        load,
        tally,
        elapsed,
        own: server.own_time(),
        held,
    })
}

/// What the tasks of a cell share.
struct Server<C> {
    cache: C,
    workload: Arc<Workload>,
    load: Load,
    /// The next batch that nobody has taken. Relaxed: each task only needs a number of its own.
    next: AtomicU64,
    /// What the tasks together took for the harness's own work. Relaxed: a sum, read for itself.
    own_nanos: AtomicU64,
    deadline: Option<Instant>,
}

/// A client: asks for one batch after the other until there are none left.
async fn client<C: Cache>(server: Arc<Server<C>>) -> Result<Tally, String> {
    let workload = &server.workload;
    let mut tally = Tally::new();
    let mut paragraphs = vec![0; server.load.batch];
    while let Some(batch) = server.begin_batch() {
        let begun = Instant::now();
        workload.draw(batch, &mut paragraphs);

        let asked = Instant::now();
        let waited = server.wait_for_turn(asked).await;
        let started = Instant::now();
        let reply = server.answer(&paragraphs, &mut tally).await;
        let answered = Instant::now();

        for (&paragraph, vector) in paragraphs.iter().zip(&reply) {
            workload.verify(paragraph, vector.as_ref())?;
        }
        tally.batches += 1;
        let latency = waited + (answered - started);
        tally.latency.saturating_record(latency.as_nanos() as u64);
        server.add_own_time((asked - begun) + answered.elapsed());
        // The reply is dropped here, on the server's time: giving back copies is part of the cost.
    }
    Ok(tally)
}

impl<C: Cache> Server<C> {
    fn begin_batch(&self) -> Option<u64> {
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return None;
        }
        let batch = self.next.fetch_add(1, Ordering::Relaxed);
        (batch < self.load.batches).then_some(batch)
    }

    fn begun(&self) -> u64 {
        self.next.load(Ordering::Relaxed).min(self.load.batches)
    }

    /// Lets the others go first, as a request that comes in over the network would have to; without
    /// this the first tasks would never let the rest begin. Returns the time this took, without what
    /// the harness took of it.
    async fn wait_for_turn(&self, asked: Instant) -> Duration {
        if self.load.tasks == 1 {
            // Nobody to wait for: the runtime would only wake an idle worker and do nothing.
            return Duration::ZERO;
        }
        let own_before = self.own_time();
        yield_now().await;
        asked.elapsed().saturating_sub(self.own_time() - own_before)
    }

    fn add_own_time(&self, time: Duration) {
        self.own_nanos.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    /// What the harness has taken from the server until now: spread over the tasks that run at once.
    fn own_time(&self) -> Duration {
        Duration::from_nanos(self.own_nanos.load(Ordering::Relaxed) / self.load.at_once as u64)
    }

    /// What a server does with a batch: looks everything up, embeds what is missing, and keeps it.
    /// A missing paragraph that a batch has twice is embedded twice; that is rare, and the same for
    /// all caches.
    async fn answer(&self, paragraphs: &[usize], tally: &mut Tally) -> Vec<C::Vector> {
        let mut found = Vec::with_capacity(paragraphs.len());
        for &paragraph in paragraphs {
            found.push(self.cache.get(self.workload.key(paragraph)).await);
        }
        if C::HAS_SECOND_TIER {
            self.ask_second(paragraphs, &mut found, tally).await;
        }
        let mut reply = Vec::with_capacity(paragraphs.len());
        for (&paragraph, found) in paragraphs.iter().zip(found) {
            if let Some(vector) = found {
                tally.hits += 1;
                reply.push(vector);
                continue;
            }
            // Here a server would await its model, for all that is missing at once.
            let vector = C::Vector::from(embed(self.workload.text(paragraph)));
            tally.embedded += 1;
            if self.cache.put(self.workload.key(paragraph), &vector).await.is_err() {
                tally.refused += 1;
            }
            reply.push(vector);
        }
        reply
    }

    /// Asks the second tier for all that the first had not, at once.
    async fn ask_second(
        &self,
        paragraphs: &[usize],
        found: &mut [Option<C::Vector>],
        tally: &mut Tally,
    ) {
        let places: Vec<usize> = (0..found.len()).filter(|&place| found[place].is_none()).collect();
        if places.is_empty() {
            return;
        }
        let keys = places.iter().map(|&place| self.workload.key(paragraphs[place]).clone());
        let answers = self.cache.get_through(keys.collect()).await;
        for (place, answer) in places.into_iter().zip(answers) {
            tally.from_second += u64::from(answer.is_some());
            found[place] = answer;
        }
    }
}
