//! Keys and values, each of which can be told from every other.

use std::ops::Range;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use embedding_cache::tier::{Lookup, Tier, TierEntry, TierKey};
use embedding_cache_disk::DiskTier;

/// 768 components of four bytes, with a header.
pub(crate) const LENGTH: usize = 3120;
pub(crate) const BATCH: usize = 64;
pub(crate) const SMALLEST: u64 = 512 << 20;

/// A random number that is the same each time.
pub(crate) fn mix(number: u64) -> u64 {
    let mixed = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

pub(crate) fn key(number: usize) -> TierKey {
    let mut digest = [0; 32];
    for (place, bytes) in digest.chunks_mut(8).enumerate() {
        bytes.copy_from_slice(&mix(number as u64 * 4 + place as u64 + 1).to_le_bytes());
    }
    TierKey::from_parts(2, [7; 8], digest)
}

pub(crate) fn value(number: usize) -> Vec<u8> {
    let mut value = Vec::with_capacity(LENGTH + 8);
    let mut word = mix(number as u64 ^ 0xEC);
    while value.len() < LENGTH {
        value.extend_from_slice(&word.to_le_bytes());
        word = word.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
    }
    value.truncate(LENGTH);
    value
}

/// Stores a batch; the first error.
pub(crate) async fn store(tier: &DiskTier, numbers: Range<usize>) -> Result<(), String> {
    let entry = |number| TierEntry { key: key(number), value: value(number), life: None };
    let entries: Vec<TierEntry> = numbers.map(entry).collect();
    let results = tier.set_many(&entries).await;
    results.into_iter().find_map(Result::err).map_or(Ok(()), |error| Err(error.to_string()))
}

/// Which of `numbers` are there. A value that is not the one that was stored is an error.
pub(crate) async fn found(tier: &DiskTier, numbers: Range<usize>) -> Result<Vec<bool>, String> {
    let mut there = Vec::with_capacity(numbers.len());
    for from in numbers.clone().step_by(256) {
        let part = from..(from + 256).min(numbers.end);
        let keys: Vec<TierKey> = part.clone().map(key).collect();
        for (number, lookup) in part.zip(tier.get_many(&keys).await) {
            match lookup {
                Lookup::Found(bytes) if bytes == value(number) => there.push(true),
                Lookup::Found(_) => return Err(format!("{number} has the value of another")),
                Lookup::Absent => there.push(false),
                Lookup::Failed(error) => return Err(error.to_string()),
            }
        }
    }
    Ok(there)
}

/// What the files of a directory take.
pub(crate) fn occupied(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    let bytes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => occupied(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    });
    bytes.sum()
}

/// This program as another process.
pub(crate) fn spawn(through: &[&str], what: &str, directory: &Path) -> std::io::Result<Child> {
    let program = std::env::current_exe()?;
    let mut command = match through {
        [] => Command::new(&program),
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(&program);
            command
        }
    };
    command.arg(what).arg(directory).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()
}
