//! The cache in a file: loaded at the start while requests are answered, saved from time to time and
//! at the end.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use embedding_cache::{
    CacheError, ContentKey, EmbeddingCache, SnapshotLoad, SnapshotProgress, SnapshotReport,
};
use parking_lot::Mutex;
use tokio::task::AbortHandle;

use crate::options::{OptionError, Options};

type Cache = EmbeddingCache<ContentKey>;

/// The snapshot of one cache.
#[derive(Debug)]
pub(crate) struct Snapshots {
    shared: Arc<Shared>,
    /// What loads and saves in the background.
    task: AbortHandle,
}

/// Orderings: relaxed. `loaded` is read by whoever saves; a save that misses it is left out, and the
/// file from before stays.
#[derive(Debug)]
struct Shared {
    cache: Cache,
    path: PathBuf,
    every: Duration,
    loading: SnapshotProgress,
    loaded: AtomicBool,
    /// One save at a time.
    turn: tokio::sync::Mutex<()>,
    saves: AtomicU64,
    failures: AtomicU64,
    last: Mutex<Option<(Instant, SnapshotReport)>>,
}

/// How long a load takes to notice that something was removed.
const LOAD_ENDS: Duration = Duration::from_secs(10);

/// Why the snapshot was not saved.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unsaved(String);

/// What became of the snapshot so far.
#[derive(Debug)]
pub(crate) struct SnapshotState {
    pub(crate) loaded: SnapshotReport,
    pub(crate) is_loading: bool,
    pub(crate) saves: u64,
    pub(crate) failures: u64,
    /// How long ago it was saved last, and what.
    pub(crate) last: Option<(Duration, SnapshotReport)>,
}

impl Snapshots {
    /// Begins to load. Must be called in the runtime: saving is a task.
    ///
    /// # Errors
    ///
    /// The file is there and no snapshot, or none can be written in its place.
    pub(super) fn begin(options: &Options, cache: &Cache) -> Result<Option<Self>, OptionError> {
        let Some(path) = &options.snapshot else { return Ok(None) };
        let unusable = |problem: String| OptionError::new("--snapshot", problem);
        let loading = SnapshotProgress::default();
        let load = if fs::symlink_metadata(path).is_ok() {
            let load = cache.snapshot().progress(&loading).load_in_background(path);
            Some(load.map_err(|error| unusable(error.to_string()))?)
        } else {
            None
        };
        try_writing_beside(path).map_err(|error| {
            unusable(format!("nothing can be written beside {}: {error}", path.display()))
        })?;
        let shared = Arc::new(Shared {
            cache: cache.clone(),
            path: path.clone(),
            every: options.snapshot_every,
            loading,
            loaded: AtomicBool::new(load.is_none()),
            turn: tokio::sync::Mutex::new(()),
            saves: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            last: Mutex::new(None),
        });
        let task = tokio::spawn(Arc::clone(&shared).keep(load)).abort_handle();
        Ok(Some(Self { shared, task }))
    }

    /// Saves once more, for the end. What was not yet loaded by then would be lost, so then the file
    /// stays as it is.
    pub(super) async fn finish(&self) {
        self.task.abort();
        if !self.shared.loaded.load(Relaxed) {
            self.shared.loading.cancel();
            tracing::warn!(path = %self.shared.path.display(), "the snapshot was still being loaded and is not saved");
            return;
        }
        // Counted and logged.
        drop(self.shared.save().await);
    }

    /// Saves now, as something was removed that is not to come back from the file.
    ///
    /// # Errors
    ///
    /// It could not be saved, or is still being loaded after a while, though a removal ends that.
    pub(super) async fn save_without_what_was_removed(&self) -> Result<(), Unsaved> {
        let loaded = async {
            while !self.shared.loaded.load(Relaxed) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(LOAD_ENDS, loaded).await.is_err() {
            return Err(Unsaved("it is still being loaded".into()));
        }
        self.shared.save().await
    }

    pub(super) fn state(&self) -> SnapshotState {
        let shared = &*self.shared;
        SnapshotState {
            loaded: shared.loading.report(),
            is_loading: !shared.loaded.load(Relaxed),
            saves: shared.saves.load(Relaxed),
            failures: shared.failures.load(Relaxed),
            last: shared.last.lock().map(|(at, report)| (at.elapsed(), report)),
        }
    }
}

impl Drop for Snapshots {
    fn drop(&mut self) {
        self.task.abort();
        self.shared.loading.cancel();
    }
}

impl Shared {
    async fn keep(self: Arc<Self>, load: Option<SnapshotLoad>) {
        if let Some(load) = load {
            let ended = tokio::task::spawn_blocking(move || load.wait()).await;
            match ended {
                Ok(Ok(report)) => tracing::info!(?report, "the snapshot is loaded"),
                Ok(Err(error)) => self.failed(&error, "the snapshot could not be read on"),
                Err(_) => return,
            }
            self.loaded.store(true, Relaxed);
        }
        if self.every.is_zero() {
            return;
        }
        loop {
            tokio::time::sleep(self.every).await;
            // Counted and logged; the next may fare better.
            drop(self.save().await);
        }
    }

    /// Cancel safe: what is being written then is written to its end, unobserved.
    ///
    /// # Errors
    ///
    /// It could not be written; that is counted and logged.
    async fn save(&self) -> Result<(), Unsaved> {
        let _turn = self.turn.lock().await;
        let (cache, path) = (self.cache.clone(), self.path.clone());
        let began = Instant::now();
        match tokio::task::spawn_blocking(move || cache.save_snapshot(path)).await {
            Ok(Ok(report)) => {
                self.saves.fetch_add(1, Relaxed);
                *self.last.lock() = Some((Instant::now(), report));
                let (entries, bytes) = (report.entries, report.bytes);
                tracing::info!(entries, bytes, took = ?began.elapsed(), "the snapshot is saved");
                Ok(())
            }
            Ok(Err(error)) => {
                self.failed(&error, "the snapshot could not be saved");
                Err(Unsaved(error.to_string()))
            }
            // It panicked, or the runtime ends.
            Err(error) => {
                self.failures.fetch_add(1, Relaxed);
                tracing::warn!(%error, "the snapshot was not saved");
                Err(Unsaved(error.to_string()))
            }
        }
    }

    fn failed(&self, error: &CacheError, what: &str) {
        self.failures.fetch_add(1, Relaxed);
        tracing::warn!(%error, path = %self.path.display(), "{what}");
    }
}

/// A folder that is not there, or not this user's to write in, is found at the start rather than at
/// the end.
fn try_writing_beside(path: &Path) -> std::io::Result<()> {
    let name = path.file_name().ok_or(std::io::ErrorKind::InvalidInput)?.to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.{}.try", std::process::id()));
    OpenOptions::new().write(true).create(true).truncate(true).open(&beside)?;
    fs::remove_file(&beside)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn cache(entries: usize) -> Cache {
        let cache = embedding_cache::EmbeddingCacheBuilder::<ContentKey>::new()
            .max_bytes(64 << 20)
            .build()
            .unwrap();
        let spec = ContentKey::for_model("m");
        for i in 0..entries {
            cache.put_blocking(spec.text(&i.to_string()), vec![i as f32; 64]).unwrap();
        }
        cache
    }

    fn options(path: &Path) -> Options {
        let path = path.display().to_string();
        Options::try_parse_from(["embedding-cache-server", "--snapshot", &path]).unwrap()
    }

    #[tokio::test]
    async fn a_server_that_ends_while_it_loads_keeps_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache");
        // More than a block, so that there is something left to load after the first.
        cache(20_000).save_snapshot(&path).unwrap();
        let before = fs::read(&path).unwrap();
        let snapshots = Snapshots::begin(&options(&path), &cache(0)).unwrap().unwrap();
        // Before the task that waits for the load has run at all: this runtime has one thread.
        snapshots.finish().await;
        assert_eq!(fs::read(&path).unwrap(), before);
        assert_eq!(snapshots.state().saves, 0);
    }

    #[tokio::test]
    async fn what_is_saved_is_loaded_and_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache");
        let first = Snapshots::begin(&options(&path), &cache(300)).unwrap().unwrap();
        assert!(!first.state().is_loading);
        first.finish().await;
        let state = first.state();
        assert_eq!((state.saves, state.failures), (1, 0));
        assert_eq!(state.last.map(|(_, report)| report.entries), Some(300));

        let restarted = cache(0);
        let second = Snapshots::begin(&options(&path), &restarted).unwrap().unwrap();
        let began = Instant::now();
        while second.state().is_loading {
            assert!(began.elapsed() < Duration::from_secs(30));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!((second.state().loaded.entries, restarted.len()), (300, 300));
        // A folder that is gone is a failure that is told, not the end of the server.
        drop(folder);
        second.finish().await;
        assert_eq!((second.state().saves, second.state().failures), (0, 1));
    }
}
