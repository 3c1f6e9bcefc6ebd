//! Why a tier could not be opened, and how errors of the engine are told.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use embedding_cache::tier::{TierError, TierErrorKind};

use crate::builder::SMALLEST;

/// Why a [`DiskTier`](crate::DiskTier) could not be opened. Names the directory.
///
/// ```
/// # use embedding_cache_disk::DiskTier;
/// let error = DiskTier::builder("/tmp/small").max_bytes(1 << 20).open().unwrap_err();
/// assert!(error.is_too_small());
/// assert_eq!(error.to_string(), "max_bytes is 1048576, and at least 536870912 are needed");
/// ```
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct OpenError(#[from] Kind);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Kind {
    #[error("max_bytes is {max_bytes}, and at least {SMALLEST} are needed")]
    TooSmall { max_bytes: u64 },
    #[error("{}: another process uses this directory", directory.display())]
    Locked { directory: PathBuf },
    #[error("{}: there is no room: {cause}", directory.display())]
    Full { directory: PathBuf, cause: io::Error },
    #[error("{}: it cannot be written to: {cause}", directory.display())]
    NotWritable { directory: PathBuf, cause: io::Error },
    #[error("{}: what is stored there is damaged, remove it to start anew: {cause}", directory.display())]
    Damaged { directory: PathBuf, cause: Box<dyn Error + Send + Sync> },
    #[error("{}: {cause}", directory.display())]
    Io { directory: PathBuf, cause: io::Error },
}

impl OpenError {
    /// `max_bytes` is below 512 MiB.
    #[must_use]
    pub fn is_too_small(&self) -> bool {
        matches!(self.0, Kind::TooSmall { .. })
    }

    /// Another process has the directory open, or this process has it open already.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        matches!(self.0, Kind::Locked { .. })
    }

    /// The file system, or the quota, has no room left.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self.0, Kind::Full { .. })
    }

    /// The directory cannot be made, or files in it cannot be written.
    #[must_use]
    pub fn is_not_writable(&self) -> bool {
        matches!(self.0, Kind::NotWritable { .. })
    }

    /// The files in the directory are not those of a tier, are of another version, or have changed
    /// since they were written.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        matches!(self.0, Kind::Damaged { .. })
    }

    pub(crate) fn io(directory: PathBuf, cause: io::Error) -> Self {
        use io::ErrorKind;
        let kind = match cause.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Kind::Full { directory, cause },
            ErrorKind::PermissionDenied
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::NotADirectory
            | ErrorKind::AlreadyExists => Kind::NotWritable { directory, cause },
            _ => Kind::Io { directory, cause },
        };
        kind.into()
    }

    pub(crate) fn engine(directory: PathBuf, cause: fjall::Error) -> Self {
        match cause {
            fjall::Error::Locked => Kind::Locked { directory }.into(),
            fjall::Error::Io(cause) | fjall::Error::Storage(fjall::LsmError::Io(cause))
                if cause.kind() != io::ErrorKind::UnexpectedEof =>
            {
                Self::io(directory, cause)
            }
            cause => Kind::Damaged { directory, cause: cause.into() }.into(),
        }
    }
}

/// What the cache is told of an error in operation.
pub(crate) fn tier_error(cause: impl Into<Box<dyn Error + Send + Sync>>) -> TierError {
    TierError::new(TierErrorKind::Other, cause)
}
