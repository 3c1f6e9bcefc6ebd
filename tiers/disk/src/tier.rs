//! The tier itself: messages to the threads.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;

use embedding_cache::tier::{
    BoxFuture, Lookup, Namespace, Scope, Tier, TierEntry, TierError, TierErrorKind, TierKey,
};
use tokio::sync::oneshot;

use crate::builder::DiskTierBuilder;
use crate::error::{Kind, OpenError, tier_error};
use crate::nonces::Nonces;
use crate::store::{Store, try_room};
use crate::worker::{self, Read, Reply, Shared, Write, Writer};

/// Batches that wait for the threads. A cache has five under way at most, and gives up those that
/// take too long.
const WAITING: usize = 64;
const READERS: usize = 2;

/// Keys for which one reader alone is asked.
const FEWEST: usize = 8;

/// A [`Tier`] in a local directory.
///
/// A value that was written survives the process that is killed after that. A power cut takes what
/// was written since the last flush of the engine: 8 MiB at most, or what came after
/// [`sync`](Self::sync). Invalidations are on the disk when they return.
///
/// Dropped, it writes what it was given, waits for the disk, and gives the directory up: this blocks,
/// usually for some milliseconds.
pub struct DiskTier {
    shared: Arc<Shared>,
    /// `None` when it is being dropped, as are the others.
    reads: Option<SyncSender<Read>>,
    writes: Option<SyncSender<Write>>,
    threads: Vec<JoinHandle<()>>,
    /// Locked as long as the tier lives.
    _lock: File,
}

impl DiskTier {
    /// Starts to configure a tier in `directory`, which is made if it is not there.
    pub fn builder(directory: impl Into<PathBuf>) -> DiskTierBuilder {
        DiskTierBuilder::new(directory.into())
    }

    pub(crate) fn open(builder: &DiskTierBuilder) -> Result<Self, OpenError> {
        let directory = builder.directory.clone();
        let io = |cause| OpenError::io(directory.clone(), cause);
        fs::create_dir_all(&directory).map_err(io)?;
        let lock = lock(&directory)?;
        try_room(&directory).map_err(io)?;
        let store =
            Store::open(&directory).map_err(|cause| OpenError::engine(directory.clone(), cause))?;
        let nonces = Nonces::open(&directory).map_err(io)?;
        let shared = Arc::new(Shared {
            directory: directory.clone(),
            generations: RwLock::new(Some(store.generations())),
            nonces: Mutex::new(nonces),
        });
        let (reads, to_read) = sync_channel(WAITING);
        let (writes, to_write) = sync_channel(WAITING);
        let writer =
            Writer::new(Arc::clone(&shared), store, builder.max_bytes, builder.generation());
        let mut tier =
            Self { shared, reads: Some(reads), writes: Some(writes), threads: vec![], _lock: lock };
        tier.start(writer, to_write, to_read).map_err(io)?;
        Ok(tier)
    }

    fn start(
        &mut self,
        writer: Writer,
        to_write: Receiver<Write>,
        to_read: Receiver<Read>,
    ) -> std::io::Result<()> {
        let thread = |name: &str| std::thread::Builder::new().name(format!("ec-disk-{name}"));
        self.threads.push(thread("write").spawn(move || writer.run(&to_write))?);
        let to_read = Arc::new(Mutex::new(to_read));
        for _ in 0..READERS {
            let (shared, to_read) = (Arc::clone(&self.shared), Arc::clone(&to_read));
            let Some(writes) = self.writes.clone() else { break };
            let body = move || worker::read(&shared, &to_read, &writes);
            self.threads.push(thread("read").spawn(body)?);
        }
        Ok(())
    }

    /// Returns when everything that was written before is on the disk itself.
    ///
    /// # Errors
    ///
    /// The store has failed, and what is on the disk is not known.
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it has changed nothing.
    pub async fn sync(&self) -> Result<(), TierError> {
        self.ask(|reply| Write::Sync { reply }).await
    }

    /// Sends a message to the thread that writes, and waits for its answer.
    async fn ask<T>(&self, message: impl FnOnce(Reply<T>) -> Write) -> Result<T, TierError> {
        let (reply, answer) = oneshot::channel();
        send(self.writes.as_ref(), message(reply))?;
        answer.await.unwrap_or_else(|_| Err(ended()))
    }

    /// Has the readers look for `keys`, each for a part of them: what it takes to wake them is as long as
    /// a dozen reads.
    async fn read(&self, keys: &[TierKey]) -> Vec<Lookup> {
        let part = keys.len().div_ceil(READERS).max(FEWEST);
        let asked = keys.chunks(part).map(|keys| {
            let (reply, answer) = oneshot::channel();
            let sent = send(self.reads.as_ref(), Read { keys: keys.to_vec(), reply });
            (keys.len(), sent.map(|()| answer))
        });
        let mut found = Vec::with_capacity(keys.len());
        for (many, answer) in asked.collect::<Vec<_>>() {
            let part = match answer {
                Ok(answer) => answer.await.map_err(|_| ended()),
                Err(error) => Err(error),
            };
            found.extend(part.unwrap_or_else(|error| vec![Lookup::Failed(error); many]));
        }
        found
    }
}

/// Takes the lock of the directory: that of the engine is only there when its files are.
fn lock(directory: &Path) -> Result<File, OpenError> {
    let io = |cause| OpenError::io(directory.to_path_buf(), cause);
    let path = directory.join("lock");
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(Kind::Locked { directory: directory.to_path_buf() }.into())
        }
        Err(TryLockError::Error(cause)) => Err(io(cause)),
    }
}

fn send<T>(to: Option<&SyncSender<T>>, message: T) -> Result<(), TierError> {
    let Some(to) = to else { return Err(ended()) };
    to.try_send(message).map_err(|error| match error {
        TrySendError::Full(_) => {
            let message = format!("{WAITING} batches wait for the disk");
            TierError::new(TierErrorKind::Timeout, message)
        }
        TrySendError::Disconnected(_) => ended(),
    })
}

fn ended() -> TierError {
    tier_error("its thread has ended")
}

impl Tier for DiskTier {
    fn get_many<'a>(&'a self, keys: &'a [TierKey]) -> BoxFuture<'a, Vec<Lookup>> {
        Box::pin(self.read(keys))
    }

    fn set_many<'a>(
        &'a self,
        entries: &'a [TierEntry],
    ) -> BoxFuture<'a, Vec<Result<(), TierError>>> {
        Box::pin(async move {
            let written =
                self.ask(|reply| Write::Entries { entries: entries.to_vec(), reply }).await;
            vec![written; entries.len()]
        })
    }

    /// From memory: nobody else has the directory open.
    fn namespace(&self) -> BoxFuture<'_, Result<Namespace, TierError>> {
        let nonces = self.shared.nonces.lock().unwrap_or_else(PoisonError::into_inner);
        let namespace = nonces.namespace().ok_or_else(|| tier_error("there is no base"));
        Box::pin(std::future::ready(namespace))
    }

    fn invalidate(&self, scope: Scope) -> BoxFuture<'_, Result<(), TierError>> {
        Box::pin(self.ask(move |reply| Write::Invalidate { scope, reply }))
    }

    /// Opens the store anew if it has failed.
    fn reset(&self) {
        let _ = send(self.writes.as_ref(), Write::Reopen);
    }
}

impl Drop for DiskTier {
    fn drop(&mut self) {
        // Those who read send to the one who writes, which therefore ends last.
        self.reads = None;
        self.writes = None;
        for thread in self.threads.drain(..) {
            // One that has panicked has nothing left to do.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for DiskTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskTier")
            .field("directory", &self.shared.directory)
            .finish_non_exhaustive()
    }
}
