//! Kills a process that stores at a random moment. What it was told is stored has to be there, and
//! no invalidation that it was told of may be undone.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use embedding_cache::tier::{Scope, Tier};
use embedding_cache_disk::DiskTier;
use tokio::runtime::Runtime;

use crate::Outcome;
use crate::work::{BATCH, LENGTH, SMALLEST, found, mix, occupied, spawn, store};

/// So that generations are exchanged several times in a run, and kills meet that too.
const GENERATION: u64 = 24 << 20;
/// What has to be there: a generation without what is copied to it.
const KEPT: usize = GENERATION as usize / (LENGTH + 272) / 2;

fn open(directory: &Path) -> Result<DiskTier, embedding_cache_disk::OpenError> {
    DiskTier::builder(directory).max_bytes(SMALLEST).generation_bytes(GENERATION).open()
}

/// Stores from the number on that it reads, and says what is stored.
pub(crate) fn child(runtime: &Runtime, directory: &Path) -> Outcome {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    let mut next: usize = line.trim().parse()?;
    let tier = open(directory)?;
    let mut out = std::io::stdout();
    let mut say = |what: String| out.write_all(what.as_bytes()).and_then(|()| out.flush());
    runtime.block_on(async {
        for turn in 1_u64.. {
            store(&tier, next..next + BATCH).await?;
            next += BATCH;
            say(format!("stored {next}\n"))?;
            if turn.is_multiple_of(16) {
                let from = next.saturating_sub(mix(next as u64) as usize % (2 * KEPT));
                found(&tier, from..from + BATCH).await?;
            }
            if turn.is_multiple_of(32) {
                tier.invalidate(Scope::All).await?;
                say(format!("nonces {}\n", nonces(directory)?))?;
            }
        }
        Ok(())
    })
}

/// The file with the nonces, in digits.
fn nonces(directory: &Path) -> std::io::Result<String> {
    let bytes = std::fs::read(directory.join("nonces"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

pub(crate) fn run(runtime: &Runtime, times: u64) -> Outcome {
    let directory = tempfile::tempdir()?;
    let directory = directory.path();
    let started = Instant::now();
    let (mut told, mut checked, mut opening, mut most) = (0, 0, Duration::ZERO, 0);
    let mut without_a_word = 0;
    let mut seen = std::collections::HashSet::new();
    let mut last = None::<String>;
    for time in 0..times {
        let mut child = spawn(&[], "child-stores", directory)?;
        let from = told;
        writeln!(child.stdin.take().ok_or("no input")?, "{from}")?;
        let out = BufReader::new(child.stdout.take().ok_or("no output")?);
        let (began, begins) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            let (mut stored, mut nonces) = (None, Vec::new());
            for line in out.lines().map_while(Result::ok) {
                match line.split_once(' ') {
                    Some(("stored", number)) => {
                        stored = number.parse::<usize>().ok();
                        let _ = began.send(());
                    }
                    Some(("nonces", digits)) => nonces.push(digits.to_owned()),
                    _ => {}
                }
            }
            (stored, nonces)
        });
        // Some while it opens, most while it stores.
        let longest = if time % 4 == 0 { 200 } else { 500 };
        if time % 4 != 0 {
            begins.recv_timeout(Duration::from_secs(60))?;
        }
        std::thread::sleep(Duration::from_micros(mix(time ^ 0x5EED) % (longest * 1000)));
        child.kill()?;
        child.wait()?;
        let (stored, nonces_told) = reader.join().map_err(|_| "the reader panicked")?;
        without_a_word += u64::from(stored.is_none());
        told = stored.unwrap_or(told);
        most = occupied(directory).max(most);

        let before = Instant::now();
        let tier = open(directory).map_err(|error| format!("after kill {time}: {error}"))?;
        opening = before.elapsed().max(opening);
        let newest = told.saturating_sub(KEPT)..told;
        let there = runtime.block_on(found(&tier, newest.clone()))?;
        if let Some(lost) = there.iter().position(|&there| !there) {
            let lost = newest.start + lost;
            return Err(format!("kill {time}: {lost} is lost; {told} were stored").into());
        }
        checked += there.len();
        // Of the nonces those told last, or ones nobody has seen: an invalidation was under way.
        seen.extend(last.take());
        let mut told_now = nonces_told;
        let latest = told_now.pop();
        seen.extend(told_now);
        let now = nonces(directory)?;
        if latest.as_ref() != Some(&now) && seen.contains(&now) && latest.is_some() {
            return Err(format!("kill {time}: an invalidation was undone").into());
        }
        seen.extend(latest);
        last = Some(now);
        drop(tier);
        // The process that stores next begins behind what may have been stored unsaid.
        told += BATCH;
        runtime.block_on(async {
            let tier = open(directory).map_err(|error| error.to_string())?;
            store(&tier, told - BATCH..told).await
        })?;
    }
    println!(
        "{times} kills in {:.1} s, {without_a_word} before it had stored anything: {told} entries stored, \
         {checked} looked for after a kill, none lost, no wrong value; \
         opening took {opening:.1?} at most, the directory {} MiB",
        started.elapsed().as_secs_f64(),
        most >> 20,
    );
    Ok(())
}
