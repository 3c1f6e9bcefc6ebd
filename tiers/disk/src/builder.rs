//! How a tier is opened.

use std::path::PathBuf;

use crate::error::{Kind, OpenError};
use crate::tier::DiskTier;

/// The least that `max_bytes` may be: the journals of the engine take up to 128 MiB of it.
pub(crate) const SMALLEST: u64 = 512 << 20;
/// What the journals, and what is written to its place while it is still in a journal, may take.
const JOURNALS: u64 = 128 << 20;
/// This part is left free for what is written while the files of a generation are being deleted.
const DELETING: u64 = 32;

/// Configures and opens a [`DiskTier`]; from [`DiskTier::builder`].
///
/// ```
/// # use embedding_cache_disk::DiskTier;
/// # fn main() -> Result<(), embedding_cache_disk::OpenError> {
/// # let temporary = tempfile::tempdir().unwrap();
/// # let directory = temporary.path();
/// let tier = DiskTier::builder(directory).max_bytes(4 << 30).open()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct DiskTierBuilder {
    pub(crate) directory: PathBuf,
    pub(crate) max_bytes: u64,
    pub(crate) generation_bytes: Option<u64>,
}

impl DiskTierBuilder {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory, max_bytes: 4 << 30, generation_bytes: None }
    }

    /// The most bytes that the directory takes on the disk: 4 GiB by default, at least 512 MiB. Two
    /// generations of entries share what the journals leave, which is all but 128 MiB and 3 %. When the
    /// newer is full the older is deleted, so that between half of that and all of it is in use.
    pub fn max_bytes(self, bytes: u64) -> Self {
        Self { max_bytes: bytes, ..self }
    }

    /// For tests: a generation is full earlier than `max_bytes` asks for.
    #[doc(hidden)]
    pub fn generation_bytes(self, bytes: u64) -> Self {
        Self { generation_bytes: Some(bytes), ..self }
    }

    /// Opens the directory, which is made if it is not there. Blocks: after a crash it reads at most
    /// 128 MiB of journals. In an async function, use `tokio::task::spawn_blocking` where that matters.
    ///
    /// # Errors
    ///
    /// - [`OpenError::is_too_small`]: `max_bytes` is below 512 MiB;
    /// - [`OpenError::is_locked`]: another tier has it open, in this process or another;
    /// - [`OpenError::is_full`], [`OpenError::is_not_writable`];
    /// - [`OpenError::is_damaged`]: the files there cannot be read. Nothing was changed.
    pub fn open(self) -> Result<DiskTier, OpenError> {
        if self.max_bytes < SMALLEST {
            return Err(Kind::TooSmall { max_bytes: self.max_bytes }.into());
        }
        DiskTier::open(&self)
    }

    /// What one generation may take.
    pub(crate) fn generation(&self) -> u64 {
        let most = (self.max_bytes - JOURNALS - self.max_bytes / DELETING) / 2;
        self.generation_bytes.map_or(most, |bytes| bytes.min(most))
    }
}
