//! Keys, values, and a process that is this program again.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use embedding_cache::tier::{Lookup, SecondTier, Tier, TierEntry, TierKey};
use embedding_cache::{CacheKey, EmbeddingCache};
use embedding_cache_disk::DiskTier;

pub(crate) fn open(directory: &Path) -> DiskTier {
    DiskTier::builder(directory).max_bytes(512 << 20).open().unwrap()
}

/// A cache of its own, as a process that begins anew has it.
pub(crate) fn process(directory: &Path) -> EmbeddingCache {
    process_with(SecondTier::new(open(directory)))
}

/// Disks of machines that are busy take longer than a request waits; what is asked here is whether
/// something is there, not when.
pub(crate) fn process_with(tier: SecondTier) -> EmbeddingCache {
    let tier = tier.soft_deadline(Duration::from_secs(5)).hard_timeout(Duration::from_secs(10));
    EmbeddingCache::builder().max_entries(100_000).tier(tier).build().unwrap()
}

pub(crate) fn key(number: usize) -> CacheKey {
    CacheKey::for_model("e5-base").revision("1").text(&number.to_string())
}

pub(crate) fn vector(number: usize) -> Vec<f32> {
    (0..64).map(|i| (number * 7 + i) as f32).collect()
}

/// The model, and how often it was asked for a text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Model(Arc<AtomicUsize>);

impl Model {
    pub(crate) fn asked(&self) -> usize {
        self.0.load(Relaxed)
    }

    /// Embeds keys `numbers`, and verifies each vector.
    pub(crate) async fn embed(&self, cache: &EmbeddingCache, numbers: std::ops::Range<usize>) {
        let from = numbers.start;
        let keys: Vec<_> = numbers.clone().map(key).collect();
        let answers = cache
            .get_or_embed_many(&keys, |missing| {
                self.0.fetch_add(missing.len(), Relaxed);
                let numbers: Vec<usize> =
                    missing.positions().iter().map(|position| from + position).collect();
                async move { numbers.into_iter().map(vector).collect::<Vec<_>>() }
            })
            .await;
        for (number, answer) in numbers.zip(answers) {
            assert_eq!(answer.expect("no request fails"), vector(number));
        }
    }
}

/// Writes what is queued.
pub(crate) async fn flush(cache: &EmbeddingCache) {
    assert_eq!(cache.tier_flush(Duration::from_secs(30)).await, 0);
}

/// A key of the tier itself.
pub(crate) fn tier_key(number: usize) -> TierKey {
    let mut digest = [0xA5; 32];
    digest[..8].copy_from_slice(&(number as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    digest[8..16].copy_from_slice(&(number as u64).to_le_bytes());
    TierKey::from_parts(2, [1; 8], digest)
}

/// Bytes that say whose they are.
pub(crate) fn value(number: usize, length: usize) -> Vec<u8> {
    (number as u64).to_le_bytes().into_iter().cycle().take(length).collect()
}

pub(crate) fn entries(
    numbers: std::ops::Range<usize>,
    length: usize,
    life: Option<Duration>,
) -> Vec<TierEntry> {
    let entry = |number| TierEntry { key: tier_key(number), value: value(number, length), life };
    numbers.map(entry).collect()
}

/// Stores entries by batches as a cache does; how many were not stored.
pub(crate) async fn store(
    tier: &DiskTier,
    numbers: std::ops::Range<usize>,
    length: usize,
) -> usize {
    let mut failed = 0;
    for from in numbers.clone().step_by(64) {
        let batch = entries(from..(from + 64).min(numbers.end), length, None);
        failed += tier.set_many(&batch).await.iter().filter(|result| result.is_err()).count();
    }
    failed
}

/// How many of `numbers` are there; whatever is there is verified.
pub(crate) async fn found(
    tier: &DiskTier,
    numbers: std::ops::Range<usize>,
    length: usize,
) -> usize {
    let mut found = 0;
    for from in numbers.clone().step_by(256) {
        let numbers = from..(from + 256).min(numbers.end);
        let keys: Vec<TierKey> = numbers.clone().map(tier_key).collect();
        for (number, lookup) in numbers.zip(tier.get_many(&keys).await) {
            match lookup {
                Lookup::Found(bytes) => {
                    assert!(bytes == value(number, length), "{number} has a value of another");
                    found += 1;
                }
                Lookup::Absent => {}
                Lookup::Failed(error) => panic!("{error}"),
            }
        }
    }
    found
}

/// The test `name`, which is ignored, in a process of its own, by way of `through` if that is
/// something; it finds `directory` in the variable of that name.
pub(crate) fn spawn(through: &[&str], name: &str, directory: &Path) -> Child {
    let program = std::env::current_exe().unwrap();
    let arguments = [name, "--exact", "--ignored", "--nocapture", "--test-threads=1"];
    let mut command = match through {
        [] => Command::new(program),
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
    };
    command.args(arguments).env("DIRECTORY", directory);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command.spawn().unwrap_or_else(|error| panic!("{through:?}: {error}"))
}

/// In a process that [`spawn`] made.
pub(crate) fn directory() -> std::path::PathBuf {
    std::env::var_os("DIRECTORY").expect("begun by another test").into()
}
