//! The threads: one writes, two read. They end when what sends to them is dropped.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use embedding_cache::tier::{Lookup, Scope, TierEntry, TierError, TierKey};
use tokio::sync::oneshot;

use crate::error::tier_error;
use crate::nonces::Nonces;
use crate::store::{Generations, Store, try_room};
use crate::usage;

/// Between two attempts to open the store anew after it has failed.
const REOPEN: Duration = Duration::from_secs(1);
/// How long a write waits for files to be deleted. Less than the hard time-out of a cache.
const WAIT_FOR_ROOM: Duration = Duration::from_millis(180);
/// After how much that was written the directory is measured anew.
const MEASURE: u64 = 8 << 20;

const CLOSED: &str = "the store has failed and could not be opened again yet";

/// What the threads share.
pub(crate) struct Shared {
    pub(crate) directory: PathBuf,
    /// `None` while the store is opened anew. Readers hold it for a batch; the writer, to exchange
    /// generations, never while it writes.
    pub(crate) generations: RwLock<Option<Generations>>,
    pub(crate) nonces: Mutex<Nonces>,
}

pub(crate) struct Read {
    pub(crate) keys: Vec<TierKey>,
    pub(crate) reply: oneshot::Sender<Vec<Lookup>>,
}

pub(crate) type Reply<T> = oneshot::Sender<Result<T, TierError>>;

pub(crate) enum Write {
    Entries {
        entries: Vec<TierEntry>,
        reply: Reply<()>,
    },
    /// Read in the generation of this number, as they are stored.
    CopyForward {
        number: u64,
        entries: Vec<(TierKey, Vec<u8>)>,
    },
    Invalidate {
        scope: Scope,
        reply: Reply<()>,
    },
    Sync {
        reply: Reply<()>,
    },
    Reopen,
}

/// The body of a thread that reads.
pub(crate) fn read(shared: &Shared, reads: &Mutex<Receiver<Read>>, writes: &SyncSender<Write>) {
    loop {
        // One waits for a message, the other for the lock.
        let next = reads.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Read { keys, reply }) = next else { return };
        if reply.is_closed() {
            continue;
        }
        let (found, forward) = {
            let generations = shared.generations.read().unwrap_or_else(PoisonError::into_inner);
            match &*generations {
                Some(generations) => look_up(generations, &keys),
                None => (vec![Lookup::Failed(tier_error(CLOSED)); keys.len()], None),
            }
        };
        // Whoever asked may have given up.
        let _ = reply.send(found);
        if let Some((number, entries)) = forward {
            // A writer that is busy has better things to do.
            let _ = writes.try_send(Write::CopyForward { number, entries });
        }
    }
}

/// What was found in the generation before, and the number of that.
type Forward = Option<(u64, Vec<(TierKey, Vec<u8>)>)>;

fn look_up(generations: &Generations, keys: &[TierKey]) -> (Vec<Lookup>, Forward) {
    let now = unix_millis();
    let mut forward = Vec::new();
    let mut look_up = |key: &TierKey| -> fjall::Result<Lookup> {
        let (stored, is_older) = match (generations.current.get(key)?, &generations.previous) {
            (None, Some(previous)) => (previous.get(key)?, true),
            (found, _) => (found, false),
        };
        let Some((expiry, value)) = stored.as_ref().and_then(|stored| stored.split_first_chunk())
        else {
            return Ok(Lookup::Absent);
        };
        let expires_at = u64::from_le_bytes(*expiry);
        if expires_at != 0 && expires_at <= now {
            return Ok(Lookup::Absent);
        }
        if is_older {
            forward.push((*key, [&expiry[..], value].concat()));
        }
        Ok(Lookup::Found(value.to_vec()))
    };
    let mut found = |key| catching(|| look_up(key)).unwrap_or_else(Lookup::Failed);
    let found = keys.iter().map(&mut found).collect();
    let number = generations.previous.as_ref().map(|previous| previous.number);
    (found, number.filter(|_| !forward.is_empty()).map(|number| (number, forward)))
}

/// The thread that writes, which alone has the store.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    /// `None` after it has failed and could not be opened again.
    store: Option<Store>,
    max_bytes: u64,
    generation_bytes: u64,
    /// What the directory took when it was measured last.
    measured: u64,
    /// What was written since.
    since: u64,
    /// When a write failed, or opening anew was tried last; `None` while all is well.
    failed: Option<Instant>,
}

impl Writer {
    pub(crate) fn new(
        shared: Arc<Shared>,
        store: Store,
        max_bytes: u64,
        generation_bytes: u64,
    ) -> Self {
        // Measured at the first write.
        let since = MEASURE;
        let store = Some(store);
        Self { shared, store, max_bytes, generation_bytes, measured: 0, since, failed: None }
    }

    pub(crate) fn run(mut self, writes: &Receiver<Write>) {
        while let Ok(write) = writes.recv() {
            match write {
                Write::Entries { entries, reply } => {
                    if !reply.is_closed() {
                        let _ = reply.send(self.write(entries));
                    }
                }
                Write::CopyForward { number, entries } => {
                    // Still there if it fails.
                    let _ = self.copy_forward(number, entries);
                }
                Write::Invalidate { scope, reply } => {
                    let mut nonces =
                        self.shared.nonces.lock().unwrap_or_else(PoisonError::into_inner);
                    let _ = reply.send(nonces.renew(&scope.field()).map_err(tier_error));
                }
                Write::Sync { reply } => {
                    let _ = reply.send(self.sync());
                }
                Write::Reopen => self.reopen_if_failed(),
            }
        }
        let _ = self.sync();
        // The threads of the engine end here, not in whichever thread reads last.
        self.publish(None);
    }

    fn write(&mut self, entries: Vec<TierEntry>) -> Result<(), TierError> {
        self.reopen_if_failed();
        self.make_room(entries.iter().map(|entry| Store::size(&entry.value)).sum())?;
        let now = unix_millis();
        let entries = entries
            .into_iter()
            .map(|TierEntry { key, value, life }| (key, [&expiry(now, life), &value[..]].concat()));
        self.act(|store| store.insert(entries))
    }

    fn copy_forward(
        &mut self,
        number: u64,
        entries: Vec<(TierKey, Vec<u8>)>,
    ) -> Result<(), TierError> {
        if self.failed.is_some() {
            return Ok(());
        }
        self.make_room(entries.iter().map(|(_, stored)| Store::size(stored)).sum())?;
        self.act(|store| store.copy_forward(number, entries))
    }

    fn sync(&mut self) -> Result<(), TierError> {
        self.act(|store| store.sync())
    }

    /// Does something with the store. After one of its writes has failed the engine takes no more,
    /// until it is opened anew; it goes on reading.
    fn act<T>(&mut self, act: impl FnOnce(&mut Store) -> fjall::Result<T>) -> Result<T, TierError> {
        let Some(store) = &mut self.store else { return Err(tier_error(CLOSED)) };
        let acted = catching(|| act(store));
        if acted.is_err() {
            self.failed.get_or_insert_with(Instant::now);
        }
        acted
    }

    /// Makes sure that `bytes` more fit: begins a generation if the current one is full, and waits
    /// for the engine and for deleted files to go.
    fn make_room(&mut self, bytes: u64) -> Result<(), TierError> {
        let Some(store) = &self.store else { return Err(tier_error(CLOSED)) };
        if store.taken() + bytes > self.generation_bytes {
            self.exchange_generations()?;
        }
        let started = Instant::now();
        loop {
            let Some(store) = &self.store else { return Err(tier_error(CLOSED)) };
            if store.is_behind() {
                if started.elapsed() >= WAIT_FOR_ROOM {
                    // Or it has failed, and never catches up.
                    self.act(|store| store.check())?;
                    return Err(tier_error("the disk does not keep up with the writes"));
                }
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            // What is written goes to a journal first, and to its place while it is still there.
            let engine = store.unwritten() + store.compacting();
            let coming = engine + 2 * (self.since + bytes);
            if self.since < MEASURE && self.measured + coming <= self.max_bytes {
                self.since += bytes;
                return Ok(());
            }
            self.measured = usage::of(&self.shared.directory).map_err(tier_error)?;
            self.since = 0;
            if self.measured + engine + 2 * bytes <= self.max_bytes {
                continue;
            }
            if started.elapsed() >= WAIT_FOR_ROOM {
                let message = format!(
                    "{} bytes are taken, so that {bytes} more might exceed the limit of {}",
                    self.measured, self.max_bytes
                );
                return Err(tier_error(message));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Deletes the older generation and begins a new one.
    fn exchange_generations(&mut self) -> Result<(), TierError> {
        self.act(Store::delete_previous)?;
        let generations = self.store.as_ref().map(Store::generations);
        self.publish(generations);
        self.act(Store::begin_generation)?;
        let generations = self.store.as_ref().map(Store::generations);
        self.publish(generations);
        Ok(())
    }

    fn publish(&self, generations: Option<Generations>) {
        let mut published = self.shared.generations.write().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *published, generations);
        drop(published);
        // The last handle of a generation that was deleted removes its files.
        drop(before);
    }

    /// If a write has failed a while ago and there is room again, closes the store and opens it anew.
    fn reopen_if_failed(&mut self) {
        if self.failed.is_none_or(|failed| failed.elapsed() < REOPEN) {
            return;
        }
        self.failed = Some(Instant::now());
        // As long as there is none, what is there can be read.
        if try_room(&self.shared.directory).is_err() {
            return;
        }
        self.publish(None);
        self.store = None;
        if let Ok(store) = catching(|| Store::open(&self.shared.directory)) {
            self.publish(Some(store.generations()));
            self.store = Some(store);
            self.failed = None;
            self.since = MEASURE;
        }
    }
}

/// What the engine answers. It panics where it meets what it takes for impossible, which must not end
/// a thread.
fn catching<T>(ask: impl FnOnce() -> fjall::Result<T>) -> Result<T, TierError> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(ask)) {
        Ok(answer) => answer.map_err(tier_error),
        Err(_) => Err(tier_error("the engine panicked")),
    }
}

/// The end of a life that begins now, as it is stored.
fn expiry(now: u64, life: Option<Duration>) -> [u8; 8] {
    let expires_at = life.map_or(0, |life| {
        now.saturating_add(u64::try_from(life.as_millis()).unwrap_or(u64::MAX)).max(1)
    });
    expires_at.to_le_bytes()
}

fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
