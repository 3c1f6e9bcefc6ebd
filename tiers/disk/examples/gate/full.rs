//! A file system without room: writes fail and are told, what is there can be read, and writes go on
//! when there is room again.

use std::path::Path;
use std::time::{Duration, Instant};

use embedding_cache_disk::DiskTier;
use tokio::runtime::Runtime;

use crate::Outcome;
use crate::work::{BATCH, SMALLEST, found, spawn, store};

/// Runs the child where it may mount something.
pub(crate) fn run() -> Outcome {
    let directory = tempfile::tempdir()?;
    let mount = "mount -t tmpfs -o size=200m tmpfs \"$2\" && exec \"$0\" \"$1\" \"$2\"";
    let through = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount];
    let output = spawn(&through, "child-fills", directory.path())?.wait_with_output()?;
    print!("{}", String::from_utf8_lossy(&output.stdout));
    if output.status.success() { Ok(()) } else { Err("it does not bear a full disk".into()) }
}

pub(crate) fn child(runtime: &Runtime, directory: &Path) -> Outcome {
    let ballast = directory.join("ballast");
    std::fs::write(&ballast, vec![1; 40 << 20])?;
    let place = directory.join("tier");
    let open = || DiskTier::builder(&place).max_bytes(SMALLEST).open();
    let tier = open()?;
    runtime.block_on(async {
        let (mut stored, mut failures) = (0, 0);
        let error = loop {
            match store(&tier, stored..stored + BATCH).await {
                Ok(()) => {
                    stored += BATCH;
                    failures = 0;
                }
                // A write is refused where the disk is late, too; a full one refuses them all.
                Err(error) if failures == 20 => break error,
                Err(_) => {
                    failures += 1;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        };
        println!("{stored} entries stored, then: {error}");
        for _ in 0..3 {
            if store(&tier, stored..stored + BATCH).await.is_ok() {
                return Err("a write to a full disk is told to have succeeded".to_owned());
            }
            let there = found(&tier, 0..stored).await?;
            if there.contains(&false) {
                return Err("something cannot be read on a full disk".into());
            }
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
        std::fs::remove_file(&ballast).map_err(|error| error.to_string())?;
        let started = Instant::now();
        while store(&tier, stored..stored + BATCH).await.is_err() {
            if started.elapsed() > Duration::from_secs(10) {
                return Err("writes do not go on with room again".into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let there = found(&tier, 0..stored + BATCH).await?;
        if there.contains(&false) {
            return Err("something was lost when there was room again".into());
        }
        println!(
            "all read while it was full; writes went on {:.1?} after there was room",
            started.elapsed()
        );
        Ok(())
    })?;
    drop(tier);
    // And at the start.
    let rest = directory.join("rest");
    let mut file = std::fs::File::create(&rest)?;
    while std::io::Write::write_all(&mut file, &[1; 65_536]).is_ok() {}
    match open() {
        Err(error) if error.is_full() => println!("opened when it is full: {error}"),
        other => return Err(format!("a full disk is not told at the start: {other:?}").into()),
    }
    Ok(())
}
