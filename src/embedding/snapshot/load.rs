//! Reading a snapshot.

use std::fmt;
use std::fs::File;
use std::hash::BuildHasher;
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::core::{Condition, InsertOptions, Until};
use crate::embedding::era::Era;
use crate::embedding::key::repr::KeyRepr;
use crate::embedding::{EmbeddingCache, EmbeddingKey};
use crate::error::{CacheError, ErrorKind};
use crate::vector::EmbeddingVector;

use super::format::{BLOCK_HEADER, BadHeader, Block, Header, Record, read_block};
use super::report::{Count, End};
use super::save::unix_millis;
use super::{Pace, SnapshotProgress, SnapshotReport};

pub(super) fn from_reader<K: EmbeddingKey, S: BuildHasher>(
    cache: &EmbeddingCache<K, S>,
    mut from: impl Read,
    pace: Pace,
    progress: &SnapshotProgress,
) -> Result<SnapshotReport, CacheError> {
    let path = Path::new("");
    let mut load = Load::open(cache, &mut from, path, pace, progress)?;
    let era = cache.inner.eras.current();
    while load.step(cache, &mut from, &era).map_err(failed(path))? {}
    Ok(progress.report())
}

pub(super) fn from_path<K: EmbeddingKey, S: BuildHasher>(
    cache: &EmbeddingCache<K, S>,
    path: &Path,
    pace: Pace,
    progress: &SnapshotProgress,
) -> Result<SnapshotReport, CacheError> {
    let mut from = open(path)?;
    let mut load = Load::open(cache, &mut from, path, pace, progress)?;
    let era = cache.inner.eras.current();
    while load.step(cache, &mut from, &era).map_err(failed(path))? {}
    Ok(progress.report())
}

pub(super) fn in_background<K, S>(
    cache: &EmbeddingCache<K, S>,
    path: &Path,
    pace: Pace,
    progress: SnapshotProgress,
) -> Result<SnapshotLoad, CacheError>
where
    K: EmbeddingKey,
    S: BuildHasher + Send + Sync + 'static,
{
    let mut from = open(path)?;
    let mut load = Load::open(cache, &mut from, path, pace, &progress)?;
    let (path, inner) = (path.to_owned(), Arc::downgrade(&cache.inner));
    // From now on, not from when the thread comes to it.
    let era = cache.inner.eras.current();
    let run = {
        let path = path.clone();
        move || loop {
            let Some(inner) = inner.upgrade() else { return Ok(load.progress.report()) };
            let more = load.step(&EmbeddingCache { inner }, &mut from, &era);
            if !more.map_err(failed(&path))? {
                return Ok(load.progress.report());
            }
        }
    };
    let thread = std::thread::Builder::new().name("snapshot load".into()).spawn(run);
    let thread = thread.map_err(failed(&path))?;
    Ok(SnapshotLoad { progress, thread })
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> CacheError {
    move |error| ErrorKind::snapshot_io("read", path, error).into()
}

/// Regular files only: a pipe or a device may never end, or never begin.
fn open(path: &Path) -> Result<BufReader<File>, CacheError> {
    let regular = |is_file: bool| {
        let error = || io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
        is_file.then_some(()).ok_or_else(error)
    };
    // Before, as to open a pipe waits for who writes to it; and after, as it may be another by then.
    let file = std::fs::metadata(path)
        .and_then(|found| regular(found.is_file()))
        .and_then(|()| File::open(path))
        .and_then(|file| regular(file.metadata()?.is_file()).map(|()| file))
        .map_err(failed(path))?;
    Ok(BufReader::with_capacity(1 << 18, file))
}

/// A snapshot that is being loaded in the background, from
/// [`Snapshot::load_in_background`](super::Snapshot::load_in_background). Dropped, it goes on.
pub struct SnapshotLoad {
    progress: SnapshotProgress,
    thread: JoinHandle<Result<SnapshotReport, CacheError>>,
}

impl SnapshotLoad {
    /// How far it is. `O(1)`, no lock.
    #[must_use]
    pub fn report(&self) -> SnapshotReport {
        self.progress.report()
    }

    /// Stops it after the block under way; what was loaded stays.
    pub fn cancel(&self) {
        self.progress.cancel();
    }

    /// Whether it has come to its end.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Blocks until it has come to its end.
    ///
    /// # Errors
    ///
    /// [`CacheError::is_snapshot_io`]: the file could not be read on; what was read before is loaded.
    ///
    /// # Panics
    ///
    /// With what the eviction listener has panicked with, if it did.
    pub fn wait(self) -> Result<SnapshotReport, CacheError> {
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl fmt::Debug for SnapshotLoad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotLoad").field("report", &self.report()).finish_non_exhaustive()
    }
}

/// A load between two blocks.
struct Load {
    /// Which of the keys still are what they were when it was saved.
    #[cfg(feature = "tier")]
    fits: crate::embedding::tier::Fits,
    payload: Vec<u8>,
    number: u64,
    read: u64,
    /// Records seen, whatever became of them.
    records: u64,
    started: Instant,
    pace: Pace,
    progress: SnapshotProgress,
}

/// How long an insert waits for the lock of a shard before it tries anew.
const SLICE: Duration = Duration::from_millis(50);

impl Load {
    #[cfg_attr(not(feature = "tier"), allow(unused_variables))]
    fn open<K: EmbeddingKey, S>(
        cache: &EmbeddingCache<K, S>,
        from: &mut impl Read,
        path: &Path,
        pace: Pace,
        progress: &SnapshotProgress,
    ) -> Result<Self, CacheError> {
        let path = path.display().to_string();
        let header = Header::read(from).map_err(|bad| match bad {
            BadHeader::Io(error) => ErrorKind::snapshot_io("read", Path::new(&path), error),
            BadHeader::NotASnapshot => ErrorKind::NotASnapshot { path: path.clone() },
            BadHeader::Damaged => ErrorKind::DamagedSnapshot { path: path.clone() },
            BadHeader::Version(found) => ErrorKind::SnapshotVersion {
                path: path.clone(),
                found,
                known: super::format::VERSION,
            },
        })?;
        if header.key_kind != K::KIND {
            let (found, expected) = (kind_name(header.key_kind), kind_name(K::KIND));
            return Err(ErrorKind::SnapshotKeys { path, found, expected }.into());
        }
        let read = header.to_bytes().len() as u64;
        progress.add(Count::Bytes, read);
        Ok(Self {
            #[cfg(feature = "tier")]
            fits: cache.inner.fits(&header.namespaces),
            payload: Vec::new(),
            number: 0,
            read,
            records: 0,
            started: Instant::now(),
            pace,
            progress: progress.clone(),
        })
    }

    /// Loads the next block; `false` at the end.
    fn step<K: EmbeddingKey, S: BuildHasher>(
        &mut self,
        cache: &EmbeddingCache<K, S>,
        from: &mut impl Read,
        era: &Era,
    ) -> io::Result<bool> {
        if self.progress.is_cancelled() {
            return Ok(false);
        }
        let block = read_block(from, self.number, &mut self.payload)?;
        self.number += 1;
        if block == Block::Lost {
            return Ok(false);
        }
        let bytes = (BLOCK_HEADER + self.payload.len()) as u64;
        self.read += bytes;
        self.progress.add(Count::Bytes, bytes);
        match block {
            Block::End(records) => {
                if records == self.records {
                    self.progress.mark(End::Complete);
                }
                return Ok(false);
            }
            Block::Damaged => self.progress.add(Count::DamagedBlocks, 1),
            Block::Records | Block::Lost => {
                let payload = std::mem::take(&mut self.payload);
                let more = self.store_all(cache, &payload, era);
                self.payload = payload;
                if !more {
                    return Ok(false);
                }
            }
        }
        self.pace.keep(self.started, self.read);
        Ok(true)
    }

    /// Stores the records of a good block; `false` where loading stops.
    fn store_all<K: EmbeddingKey, S: BuildHasher>(
        &mut self,
        cache: &EmbeddingCache<K, S>,
        mut payload: &[u8],
        era: &Era,
    ) -> bool {
        while !payload.is_empty() {
            let Some(record) = Record::<K>::read(&mut payload) else {
                // Its digest is right and its content is not: not written by this program.
                self.progress.add(Count::DamagedBlocks, 1);
                return true;
            };
            self.records += 1;
            match self.store(cache, record, era) {
                Ok(count) => self.progress.add(count, 1),
                Err(end) => {
                    self.progress.mark(end);
                    return false;
                }
            }
        }
        true
    }

    fn store<K: EmbeddingKey, S: BuildHasher>(
        &self,
        cache: &EmbeddingCache<K, S>,
        record: Record<K>,
        era: &Era,
    ) -> Result<Count, End> {
        let inner = &*cache.inner;
        let core = &inner.core;
        let Record { key, components, expires_at } = record;
        let now = unix_millis(core.wall_time());
        if expires_at != 0 && expires_at <= now {
            return Ok(Count::Expired);
        }
        #[cfg(feature = "tier")]
        if !self.fits.holds(&key) {
            return Ok(Count::Invalidated);
        }
        let vector = EmbeddingVector::from(components);
        let Ok(stored) = <K as KeyRepr>::to_stored(&key) else { return Ok(Count::Refused) };
        if inner.admission.check(&vector, |model| K::belongs_to_model(&stored, model)).is_err() {
            return Ok(Count::Refused);
        }
        if core.is_nearly_full() {
            return Err(End::Full);
        }
        // What is left of its life, where that is less than the cache would give it.
        let left = (expires_at != 0).then(|| Duration::from_millis(expires_at - now));
        let own = left.filter(|&left| core.time_to_live().is_none_or(|ttl| left < ttl));
        let own = own.filter(|&left| left <= crate::core::LONGEST_TIME_TO_LIVE);
        // Where there is a fresh value by now, that is newer.
        let condition = Condition { epoch: core.epoch(), superseded: Some(era.flag()) };
        let options =
            InsertOptions { time_to_live: own, condition: Some(condition), only_free_room: true };
        let mut entry = Some((stored, vector.into_shared()));
        loop {
            match core.insert_with(&mut entry, options, Until::after(SLICE)) {
                Ok(()) => return Ok(Count::Entries),
                Err(error) if error.is_timeout() => {}
                Err(error) if error.is_superseded() && era.is_over() => {
                    return Err(End::Invalidated);
                }
                Err(error) if error.is_superseded() => return Ok(Count::Present),
                Err(error) if error.is_contended() => return Err(End::Full),
                Err(_) => return Ok(Count::Refused),
            }
        }
    }
}

fn kind_name(kind: u8) -> &'static str {
    match kind {
        1 => "CacheKey",
        2 => "ContentKey",
        _ => "an unknown kind of key",
    }
}
