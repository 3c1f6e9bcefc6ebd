//! A power cut: of what was not synced, anything may be on the disk. The journal is cut off, or
//! pages of it are zeros; what was synced has to be there.

use std::fs;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use embedding_cache_disk::DiskTier;
use tokio::runtime::Runtime;

use crate::Outcome;
use crate::work::{BATCH, SMALLEST, found, mix, spawn, store};

const SYNCED: usize = 10 * BATCH;
const UNSYNCED: usize = 4 * BATCH;

fn open(directory: &Path) -> Result<DiskTier, embedding_cache_disk::OpenError> {
    DiskTier::builder(directory).max_bytes(SMALLEST).open()
}

/// Stores, syncs, waits for a word, stores more, and waits to be killed.
pub(crate) fn child(runtime: &Runtime, directory: &Path) -> Outcome {
    let tier = open(directory)?;
    let all = |numbers: std::ops::Range<usize>| {
        runtime.block_on(async {
            for from in numbers.step_by(BATCH) {
                store(&tier, from..from + BATCH).await?;
            }
            Ok::<(), String>(())
        })
    };
    all(0..SYNCED)?;
    runtime.block_on(tier.sync())?;
    println!("synced");
    std::io::stdin().read_line(&mut String::new())?;
    all(SYNCED..SYNCED + UNSYNCED)?;
    println!("stored");
    std::io::stdin().read_line(&mut String::new())?;
    Ok(())
}

pub(crate) fn run(runtime: &Runtime, times: u64) -> Outcome {
    let (mut cut, mut zeroed, mut kept) = (0, 0, 0);
    for time in 0..times {
        let directory = tempfile::tempdir()?;
        let directory = directory.path();
        let mut child = spawn(&[], "child-tears", directory)?;
        let mut input = child.stdin.take().ok_or("no input")?;
        let mut lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
        if lines.next().transpose()?.as_deref() != Some("synced") {
            return Err("the process does not store".into());
        }
        let journal = journal(directory)?;
        let synced = end(&journal)?;
        writeln!(input)?;
        if lines.next().transpose()?.as_deref() != Some("stored") {
            return Err("the process does not store more".into());
        }
        child.kill()?;
        child.wait()?;
        let written = end(&journal)?;
        let random = |number: u64, below: u64| mix(time * 8 + number) % below.max(1);
        let file = fs::OpenOptions::new().read(true).write(true).open(&journal)?;
        if time % 2 == 0 {
            file.set_len(synced + random(0, written - synced))?;
            cut += 1;
        } else {
            let page = 4096;
            let (first, last) = (synced.div_ceil(page), written / page);
            for turn in 0..1 + random(1, 4) {
                let at = (first + random(2 + turn, last - first)) * page;
                file.write_all_at(&[0; 4096], at)?;
            }
            zeroed += 1;
        }
        file.sync_all()?;
        let tier = open(directory).map_err(|error| format!("torn {time}: {error}"))?;
        let there = runtime.block_on(found(&tier, 0..SYNCED + UNSYNCED))?;
        if let Some(lost) = there[..SYNCED].iter().position(|&there| !there) {
            return Err(format!("torn {time}: {lost} was synced and is lost").into());
        }
        kept += there[SYNCED..].iter().filter(|&&there| there).count();
        // It goes on as if nothing had happened.
        runtime.block_on(store(&tier, SYNCED..SYNCED + BATCH))?;
        drop(tier);
        let tier = open(directory).map_err(|error| format!("torn {time}, again: {error}"))?;
        let there = runtime.block_on(found(&tier, 0..SYNCED + BATCH))?;
        if there.contains(&false) {
            return Err(format!("torn {time}: what was stored after it is lost").into());
        }
    }
    println!(
        "{cut} journals cut off, {zeroed} with pages of zeros: all {SYNCED} synced entries there each \
         time, {kept} of {} others, no wrong value",
        times as usize * UNSYNCED,
    );
    Ok(())
}

/// The newest journal of the engine.
fn journal(directory: &Path) -> Result<PathBuf, Box<dyn std::error::Error>> {
    let files = fs::read_dir(directory.join("store"))?;
    let journals = files.flatten().map(|file| file.path());
    let newest = journals.filter(|path| path.extension().is_some_and(|end| end == "jnl")).max();
    newest.ok_or_else(|| "there is no journal".into())
}

/// Where the last byte that is not zero stands: the file was made longer than it is.
fn end(journal: &Path) -> std::io::Result<u64> {
    let mut file = fs::File::open(journal)?;
    file.seek(SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last as u64 + 1))
}
