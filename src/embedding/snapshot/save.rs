//! Writing a snapshot.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::core::Exported;
use crate::embedding::key::repr::KeyRepr;
use crate::embedding::{Components, EmbeddingCache, EmbeddingKey, Stored};
use crate::error::{CacheError, ErrorKind};
use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::format::{
    BLOCK_HEADER, Header, Kind, MOST_DIMENSIONS, MOST_PAYLOAD, Record, block_header,
};
use super::report::{Count, End};
use super::{Pace, SnapshotProgress, SnapshotReport};

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CacheError {
    move |error| ErrorKind::snapshot_io(operation, path, error).into()
}

pub(super) fn to_writer<K: EmbeddingKey, S>(
    cache: &EmbeddingCache<K, S>,
    mut to: impl Write,
    pace: &Pace,
    progress: &SnapshotProgress,
) -> Result<SnapshotReport, CacheError> {
    write(cache, &mut to, *pace, progress).map_err(failed("write", Path::new("")))?;
    Ok(progress.report())
}

pub(super) fn to_path<K: EmbeddingKey, S>(
    cache: &EmbeddingCache<K, S>,
    path: &Path,
    pace: &Pace,
    progress: &SnapshotProgress,
) -> Result<SnapshotReport, CacheError> {
    let beside = Beside::create(path)?;
    let mut file = &beside.file;
    write(cache, &mut file, *pace, progress).map_err(failed("write", &beside.path))?;
    if progress.is_cancelled() {
        return Ok(progress.report());
    }
    beside.take_the_place_of(path)?;
    Ok(progress.report())
}

/// A file that is being written and removed when dropped, unless it has taken its place.
#[derive(Debug)]
struct Beside {
    file: File,
    path: PathBuf,
    placed: bool,
}

/// What the names of such files end with.
const ENDING: &str = ".saving";

impl Beside {
    fn create(target: &Path) -> Result<Self, CacheError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let Some(name) = target.file_name() else {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "the path names no file");
            return Err(failed("write", target)(error));
        };
        let name = name.to_string_lossy();
        let (folder, stem) = (folder_of(target), format!(".{name}."));
        remove_abandoned(&folder, &stem);
        let number = NUMBER.fetch_add(1, Relaxed);
        let path = folder.join(format!("{stem}{}-{number}{ENDING}", std::process::id()));
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(&path).map_err(failed("create", &path))?;
        // Held for as long as it is written: see `remove_abandoned`. Where files have no locks,
        // nobody takes one for abandoned either.
        let _ = file.try_lock();
        Ok(Self { file, path, placed: false })
    }

    fn take_the_place_of(mut self, target: &Path) -> Result<(), CacheError> {
        self.file.sync_all().map_err(failed("flush", &self.path))?;
        fs::rename(&self.path, target).map_err(failed("replace", target))?;
        self.placed = true;
        // The name is on the disk once its directory is. Windows has no such thing.
        #[cfg(unix)]
        {
            let folder = folder_of(target);
            let synced = File::open(&folder).and_then(|folder| folder.sync_all());
            synced.map_err(failed("flush", &folder))?;
        }
        Ok(())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if !self.placed {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn folder_of(path: &Path) -> PathBuf {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new(".")).to_owned()
}

/// How long a file that is to be removed must not have been written to: one that was just made is
/// not locked yet.
const ABANDONED: Duration = Duration::from_secs(10);

/// Removes what killed processes have left of files that were to be saved here: those that nobody
/// has locked, and nobody has written to for a while.
fn remove_abandoned(folder: &Path, stem: &str) {
    let Ok(files) = fs::read_dir(folder) else { return };
    for file in files.flatten() {
        let name = file.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with(stem) || !name.ends_with(ENDING) {
            continue;
        }
        // Of the entry itself: a link is not followed, as it is not ours.
        let Ok(found) = file.metadata() else { continue };
        let age = found.modified().ok().and_then(|written| written.elapsed().ok());
        if !found.is_file() || age.is_none_or(|age| age < ABANDONED) {
            continue;
        }
        let unlocked = OpenOptions::new().write(true).open(file.path());
        if unlocked.is_ok_and(|file| file.try_lock().is_ok()) {
            let _ = fs::remove_file(file.path());
        }
    }
}

/// Writes blocks.
struct Blocks<'a, W> {
    to: W,
    /// Room for the header, then the payload.
    block: Vec<u8>,
    number: u64,
    written: u64,
    started: Instant,
    pace: Pace,
    progress: &'a SnapshotProgress,
}

impl<W: Write> Blocks<'_, W> {
    fn payload(&self) -> usize {
        self.block.len() - BLOCK_HEADER
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.to.write_all(bytes)?;
        self.written += bytes.len() as u64;
        self.progress.add(Count::Bytes, bytes.len() as u64);
        self.pace.keep(self.started, self.written);
        Ok(())
    }

    /// Writes the block and begins another.
    fn end_block(&mut self, kind: Kind) -> io::Result<()> {
        let header = block_header(kind, self.number, &self.block[BLOCK_HEADER..]);
        self.block[..BLOCK_HEADER].copy_from_slice(&header);
        let block = std::mem::take(&mut self.block);
        self.write(&block)?;
        self.block = block;
        self.block.truncate(BLOCK_HEADER);
        self.number += 1;
        Ok(())
    }
}

fn write<K: EmbeddingKey, S>(
    cache: &EmbeddingCache<K, S>,
    to: impl Write,
    pace: Pace,
    progress: &SnapshotProgress,
) -> io::Result<()> {
    let core = &cache.inner.core;
    let now = unix_millis(core.wall_time());
    let header = Header { key_kind: K::KIND, created: now, namespaces: cache.inner.namespaces() };
    let mut block = Vec::with_capacity(BLOCK_HEADER + MOST_PAYLOAD);
    block.resize(BLOCK_HEADER, 0);
    let started = Instant::now();
    let mut blocks = Blocks { to, block, number: 0, written: 0, started, pace, progress };
    blocks.write(&header.to_bytes())?;

    let mut export = core.start_export();
    let (mut bite, mut record_bytes, mut entries) = (Vec::new(), Vec::new(), 0_u64);
    while export.step(&mut bite) {
        if progress.is_cancelled() {
            return Ok(());
        }
        let now = unix_millis(core.wall_time());
        for entry in bite.drain(..) {
            record_bytes.clear();
            if !write_record::<K>(entry, now, &mut record_bytes) {
                progress.add(Count::TooLarge, 1);
                continue;
            }
            if blocks.payload() + record_bytes.len() > MOST_PAYLOAD {
                blocks.end_block(Kind::Records)?;
            }
            blocks.block.extend_from_slice(&record_bytes);
            entries += 1;
            progress.add(Count::Entries, 1);
        }
    }
    if blocks.payload() > 0 {
        blocks.end_block(Kind::Records)?;
    }
    blocks.block.extend_from_slice(&entries.to_le_bytes());
    blocks.end_block(Kind::End)?;
    blocks.to.flush()?;
    progress.mark(End::Complete);
    Ok(())
}

/// Says whether the entry has a place in a snapshot.
fn write_record<K: EmbeddingKey>(
    (key, components, life): Exported<Stored<K>, Components>,
    now: u64,
    bytes: &mut Vec<u8>,
) -> bool {
    if components.len() > MOST_DIMENSIONS {
        return false;
    }
    let expires_at = life.map_or(0, |life| {
        // Never 0, which is for ever.
        now.saturating_add(u64::try_from(life.as_millis()).unwrap_or(u64::MAX)).max(1)
    });
    let key = <K as KeyRepr>::from_stored(&key);
    Record { key, components, expires_at }.write(bytes);
    bytes.len() <= MOST_PAYLOAD
}

/// Before 1970 there are no snapshots.
pub(super) fn unix_millis(time: chrono::DateTime<chrono::Utc>) -> u64 {
    u64::try_from(time.timestamp_millis()).unwrap_or(0)
}
