//! Saves and loads a snapshot, and looks when the first hit comes.

use std::time::{Duration, Instant};

use embedding_cache::{ContentKey, EmbeddingCache, EmbeddingCacheBuilder};
use tokio::runtime::Runtime;

use crate::Outcome;

const COMPONENTS: usize = 768;
const ROUNDS: usize = 3;

fn cache(entries: usize) -> Result<EmbeddingCache<ContentKey>, embedding_cache::CacheError> {
    EmbeddingCacheBuilder::<ContentKey>::new().max_entries(2 * entries).build()
}

fn key(number: usize) -> ContentKey {
    ContentKey::for_model("gate").text(&number.to_string())
}

fn vector(number: usize) -> Vec<f32> {
    (0..COMPONENTS).map(|i| (number * 31 + i) as f32).collect()
}

pub(crate) fn run(runtime: &Runtime, megabytes: usize) -> Outcome {
    let entries = megabytes * 1_000_000 / (COMPONENTS * 4);
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("snapshot");
    let full = cache(entries)?;
    for number in 0..entries {
        full.put_blocking(key(number), vector(number))?;
    }
    for _ in 0..ROUNDS {
        let started = Instant::now();
        let saved = full.save_snapshot(&path)?;
        let saving = started.elapsed();
        let bytes = std::fs::metadata(&path)?.len() as f64;

        let empty = cache(entries)?;
        let started = Instant::now();
        let loading = empty.snapshot().load_in_background(&path)?;
        let mut first = None;
        let mut hit = None;
        while !loading.is_finished() {
            // Whichever comes first.
            for number in (0..entries).step_by(entries / 64) {
                let found = runtime.block_on(empty.get(&key(number)));
                if let (Some(vector_found), None) = (&found, first) {
                    first = Some(started.elapsed());
                    hit = Some(*vector_found == vector(number));
                }
            }
            if first.is_some() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let loaded = loading.wait()?;
        let took = started.elapsed();
        for number in (0..entries).step_by(97) {
            let found = runtime.block_on(empty.get(&key(number))).ok_or("an entry is missing")?;
            if found != vector(number) {
                return Err("a wrong vector".into());
            }
        }
        if loaded.entries != saved.entries || loaded.entries != entries as u64 {
            return Err(format!("{} of {} were loaded", loaded.entries, saved.entries).into());
        }
        let (Some(first), Some(true)) = (first, hit) else {
            return Err("no hit before the end".into());
        };
        let speed = |took: Duration| bytes / 1e6 / took.as_secs_f64();
        println!(
            "{entries} entries, {:.0} MB: saved at {:.0} MB/s with fsync, loaded at {:.0} MB/s, \
             first hit after {:.1} % of the load",
            bytes / 1e6,
            speed(saving),
            speed(took),
            100.0 * first.as_secs_f64() / took.as_secs_f64(),
        );
    }
    Ok(())
}
