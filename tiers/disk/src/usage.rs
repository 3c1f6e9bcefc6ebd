//! What a directory takes on the disk.

use std::fs;
use std::io;
use std::path::Path;

/// The bytes that the files below `directory` occupy. Files that are deleted meanwhile count as
/// nothing. One system call for each file.
pub(crate) fn of(directory: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    let mut folders = vec![directory.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                folders.push(entry.path());
            } else {
                bytes += occupied(&metadata);
            }
        }
    }
    Ok(bytes)
}

/// A journal is made with its full length and without its blocks, so the length would be too much.
#[cfg(unix)]
fn occupied(metadata: &fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    metadata.blocks() * 512
}

#[cfg(not(unix))]
fn occupied(metadata: &fs::Metadata) -> u64 {
    metadata.len()
}
