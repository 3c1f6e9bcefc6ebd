//! A process that is killed while it saves.

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{empty, filled, key, vector};

/// Set for the process that is to be killed: where it saves.
const PATH: &str = "EMBEDDING_CACHE_SAVE_TO";
const ENTRIES: [usize; 2] = [300, 500];
const DIMENSIONS: usize = 256;

/// Not a test by itself: what the other one runs in a process of its own, over and over.
#[test]
fn saves_until_it_is_killed() {
    let Some(path) = env::var_os(PATH) else { return };
    let caches = ENTRIES.map(|entries| filled(entries, DIMENSIONS));
    println!("saving");
    loop {
        for cache in &caches {
            cache.save_snapshot(&path).unwrap();
        }
    }
}

#[test]
fn kill_9_during_a_save_leaves_a_whole_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("warm");
    filled(ENTRIES[0], DIMENSIONS).save_snapshot(&path).unwrap();
    let mut half_written = 0;
    for round in 0..25 {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "snapshot::killed::saves_until_it_is_killed", "--nocapture"])
            .env(PATH, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        wait_for_the_first_save(child.stdout.take().unwrap());
        std::thread::sleep(Duration::from_micros(1700 * round));
        // On Unix this is SIGKILL.
        child.kill().unwrap();
        child.wait().unwrap();
        half_written += usize::from(has_left_something(folder.path()));

        let cache = empty();
        let report = cache.load_snapshot(&path).unwrap();
        assert!(report.complete && report.damaged_blocks == 0, "{report:?}");
        assert!(ENTRIES.contains(&(report.entries as usize)), "{report:?}");
        for number in 0..report.entries as usize {
            assert_eq!(cache.get_blocking(&key(number)).unwrap(), vector(number, DIMENSIONS));
        }
    }
    assert!(half_written > 0, "it was never killed in the middle of a save");
}

fn wait_for_the_first_save(from: impl std::io::Read) {
    use std::io::{BufRead, BufReader};
    let mut lines = BufReader::new(from).lines();
    assert!(lines.any(|line| line.unwrap().ends_with("saving")), "it did not begin");
}

/// Whether a file was left that had not taken its place.
fn has_left_something(folder: &Path) -> bool {
    let mut files = std::fs::read_dir(folder).unwrap();
    files.any(|file| file.unwrap().file_name().to_string_lossy().ends_with(".saving"))
}
