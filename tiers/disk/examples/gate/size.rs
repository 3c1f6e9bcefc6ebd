//! Stores many entries and measures the directory throughout.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use embedding_cache_disk::DiskTier;
use tokio::runtime::Runtime;

use crate::Outcome;
use crate::work::{BATCH, LENGTH, found, mix, occupied, store};

pub(crate) fn run(runtime: &Runtime, entries: usize, mebibytes: u64) -> Outcome {
    let directory = tempfile::tempdir()?;
    let max_bytes = mebibytes << 20;
    let tier = DiskTier::builder(directory.path()).max_bytes(max_bytes).open()?;
    let ended = Arc::new(AtomicBool::new(false));
    let sampler = std::thread::spawn({
        let (ended, directory) = (Arc::clone(&ended), directory.path().to_path_buf());
        move || {
            let (mut samples, mut most) = (0_u64, 0);
            while !ended.load(Relaxed) {
                most = occupied(&directory).max(most);
                samples += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
            (samples, most)
        }
    });
    let started = Instant::now();
    let (mut refused, mut read, mut hits, mut longest) = (0, 0, 0, Duration::ZERO);
    runtime.block_on(async {
        for (turn, from) in (0..entries).step_by(BATCH).enumerate() {
            let batch = from..(from + BATCH).min(entries);
            let size = batch.len();
            let before = Instant::now();
            if store(&tier, batch).await.is_err() {
                refused += size;
            }
            longest = longest.max(before.elapsed());
            // Something old is read now and then, and so carried over.
            if turn % 16 == 0 && from > 0 {
                let at = mix(turn as u64) as usize % from;
                let there = found(&tier, at..(at + 32).min(from)).await?;
                read += there.len();
                hits += there.into_iter().filter(|&there| there).count();
            }
        }
        Ok::<(), String>(())
    })?;
    let took = started.elapsed();
    ended.store(true, Relaxed);
    let (samples, most) = sampler.join().map_err(|_| "the sampler panicked")?;
    // What was stored last is there, about a generation of it at least.
    let generation = (max_bytes - (192 << 20)) as usize / 2 / (LENGTH + 272);
    let newest = entries.saturating_sub(generation / 2);
    let there = runtime.block_on(found(&tier, newest..entries))?;
    let there = there.into_iter().filter(|&there| there).count();
    let payload = entries * LENGTH;
    println!(
        "{entries} entries of {LENGTH} bytes ({:.1} GB) in {:.1} s, {:.0} a second, longest batch {longest:.1?}; \
         {refused} refused\n\
         at most {} of {} MiB in {samples} samples; {hits} of {read} older ones were there when read; \
         {there} of the newest {}",
        payload as f64 / 1e9,
        took.as_secs_f64(),
        entries as f64 / took.as_secs_f64(),
        most >> 20,
        max_bytes >> 20,
        entries - newest,
    );
    if most > max_bytes {
        return Err(format!("{most} bytes are more than {max_bytes}").into());
    }
    if there + refused < entries - newest {
        return Err("some of the newest are not there".into());
    }
    // Beyond the first batches, being refused is the exception.
    if refused * 100 > entries {
        return Err(format!("{refused} of {entries} were refused").into());
    }
    Ok(())
}
