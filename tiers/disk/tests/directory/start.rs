//! Directories that cannot be used: a typed error at the start.

use std::io::{BufRead, BufReader, Read};
use std::process::Command;

use embedding_cache_disk::DiskTier;

use crate::support::{directory, found, open, spawn, store};

fn builder(directory: &std::path::Path) -> embedding_cache_disk::DiskTierBuilder {
    DiskTier::builder(directory).max_bytes(512 << 20)
}

#[test]
fn a_limit_that_is_too_small_is_told_with_the_least_there_is() {
    let error = builder("/nowhere".as_ref()).max_bytes((512 << 20) - 1).open().unwrap_err();
    assert!(error.is_too_small() && error.to_string().contains("536870912"), "{error}");
}

#[test]
fn a_directory_has_one_tier_at_a_time_in_a_process() {
    let directory = tempfile::tempdir().unwrap();
    let tier = open(directory.path());
    let error = builder(directory.path()).open().unwrap_err();
    assert!(error.is_locked(), "{error}");
    assert!(error.to_string().contains(directory.path().to_str().unwrap()), "{error}");
    drop(tier);
    drop(open(directory.path()));
}

#[test]
#[ignore = "the process that another test begins"]
fn holds_the_directory() {
    let _tier = open(&directory());
    println!("\nopen");
    let _ = std::io::stdin().read(&mut [0]);
}

#[test]
fn a_second_process_is_told_and_may_have_it_when_the_first_was_killed() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = spawn(&[], "start::holds_the_directory", directory.path());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "open"));
    let error = builder(directory.path()).open().unwrap_err();
    assert!(error.is_locked(), "{error}");
    child.kill().unwrap();
    child.wait().unwrap();
    drop(open(directory.path()));
}

#[test]
#[ignore = "the process that another test begins"]
fn opens_what_is_not_writable() {
    let error = builder(&directory()).open().unwrap_err();
    assert!(error.is_not_writable(), "{error}");
    assert!(error.to_string().contains(directory().to_str().unwrap()), "{error}");
}

#[test]
fn a_place_that_is_not_writable_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    for place in [&file, &file.join("below")] {
        let error = builder(place).open().unwrap_err();
        assert!(error.is_not_writable(), "{error}");
    }
    // Rights are nothing to the user who may do everything, so another looks.
    let closed = folder.path().join("closed");
    std::fs::create_dir(&closed).unwrap();
    use std::os::unix::fs::PermissionsExt;
    for (path, rights) in [(folder.path(), 0o755), (&closed, 0o555)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(rights)).unwrap();
    }
    let is_root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    let other = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let through: &[&str] = if is_root { &other } else { &[] };
    let child = spawn(through, "start::opens_what_is_not_writable", &closed);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
}

/// Not a cut, which is what a crash leaves, but a byte in the middle: an error, or what came after it
/// is gone. Never a wrong value.
#[tokio::test]
async fn a_journal_that_has_changed_is_told_or_ends_there() {
    let mut told = 0;
    for part in 1..9 {
        let directory = tempfile::tempdir().unwrap();
        let tier = open(directory.path());
        assert_eq!(store(&tier, 0..640, 100).await, 0);
        drop(tier);
        let files = std::fs::read_dir(directory.path().join("store")).unwrap();
        let mut files = files.map(|entry| entry.unwrap().path());
        let journal = files.find(|path| path.extension().is_some_and(|end| end == "jnl")).unwrap();
        let mut bytes = std::fs::read(&journal).unwrap();
        let end = bytes.iter().rposition(|&byte| byte != 0).unwrap();
        bytes[end * part / 9] ^= 1;
        std::fs::write(&journal, bytes).unwrap();
        match builder(directory.path()).open() {
            Ok(tier) => assert!(found(&tier, 0..640, 100).await < 640),
            Err(error) => {
                assert!(error.is_damaged() && error.to_string().contains("remove it"), "{error}");
                told += 1;
            }
        }
    }
    assert!(told > 0);
}

#[test]
fn files_that_have_changed_are_told_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path()));
    let version = directory.path().join("store/version");
    assert!(version.is_file());
    std::fs::write(&version, "something else").unwrap();
    let error = builder(directory.path()).open().unwrap_err();
    assert!(error.is_damaged(), "{error}");
    assert!(error.to_string().contains(directory.path().to_str().unwrap()), "{error}");
    assert_eq!(std::fs::read(&version).unwrap(), b"something else");
}
