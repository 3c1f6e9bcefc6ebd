//! What is a file and what is not, and what an error says of it.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use embedding_cache::{CacheError, SnapshotProgress};

use super::{empty, filled, key};

/// Names in a folder.
fn names(folder: &Path) -> Vec<String> {
    let files = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_file_takes_the_place_of_the_old_one_and_nothing_else_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("warm");
    fs::write(&path, "not a snapshot").unwrap();
    let cache = filled(50, 8);
    let report = cache.save_snapshot(&path).unwrap();
    assert_eq!((report.entries, report.complete), (50, true));
    assert_eq!(report.bytes, fs::metadata(&path).unwrap().len());
    assert_eq!(names(folder.path()), ["warm"]);
    assert_eq!(empty().load_snapshot(&path).unwrap().entries, 50);
}

#[cfg(unix)]
#[test]
fn only_its_user_may_read_it() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("warm");
    filled(1, 8).save_snapshot(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn what_a_killed_save_has_left_is_removed_by_the_next_and_one_under_way_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("warm");
    let long_ago = SystemTime::now() - Duration::from_secs(11);
    let names = [".warm.1-0.saving", ".warm.2-0.saving", ".warm.3-0.saving", ".other.1-0.saving"];
    let [left, held, new, foreign] = names.map(|name| {
        let path = folder.path().join(name);
        fs::write(&path, "half of it").unwrap();
        if !name.contains('3') {
            fs::File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
        }
        path
    });
    let under_way = fs::OpenOptions::new().write(true).open(&held).unwrap();
    under_way.lock().unwrap();
    filled(1, 8).save_snapshot(&path).unwrap();
    assert!(!left.exists() && held.exists() && new.exists() && foreign.exists());
}

#[test]
fn a_save_that_fails_or_is_cancelled_leaves_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("warm");
    filled(3, 8).save_snapshot(&path).unwrap();
    let progress = SnapshotProgress::default();
    progress.cancel();
    let report = filled(50, 8).snapshot().progress(&progress).save(&path).unwrap();
    assert!(!report.complete);
    assert_eq!(names(folder.path()), ["warm"]);
    assert_eq!(empty().load_snapshot(&path).unwrap().entries, 3);
}

#[test]
fn errors_name_the_file_and_what_the_system_says() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    let refused = empty().load_snapshot(&missing).unwrap_err();
    assert!(refused.is_snapshot_io() && !refused.is_invalid_snapshot());
    assert!(refused.to_string().contains(missing.to_str().unwrap()), "{refused}");
    let source = std::error::Error::source(&refused).unwrap();
    let source = source.downcast_ref::<io::Error>().unwrap();
    assert_eq!(source.kind(), io::ErrorKind::NotFound);

    let is_io = |error: CacheError| assert!(error.is_snapshot_io(), "{error}");
    // A folder that is not there, and a file in the place of one.
    is_io(filled(1, 8).save_snapshot(missing.join("warm")).unwrap_err());
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    is_io(filled(1, 8).save_snapshot(file.join("warm")).unwrap_err());
    is_io(filled(1, 8).save_snapshot("/").unwrap_err());
    // A folder in the place of the file.
    let inner = folder.path().join("inner");
    fs::create_dir(&inner).unwrap();
    is_io(filled(1, 8).save_snapshot(&inner).unwrap_err());
    assert_eq!(names(folder.path()), ["file", "inner"], "nothing is left behind");
}

#[test]
fn a_full_disk_is_an_error() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let room = self.0.min(bytes.len());
            if room == 0 && !bytes.is_empty() {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.0 -= room;
            Ok(room)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let cache = filled(20, 8);
    let mut whole = Vec::new();
    cache.snapshot().save_to(&mut whole).unwrap();
    for room in [0, 1, 43, 44, 100, whole.len() - 1] {
        let error = cache.snapshot().save_to(Full(room)).unwrap_err();
        assert!(error.is_snapshot_io(), "{error}");
    }
    assert!(cache.snapshot().save_to(Full(whole.len())).unwrap().complete);
}

/// A pipe would be waited for, a device never ends.
#[cfg(unix)]
#[test]
fn only_regular_files_are_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    for path in [&pipe, Path::new("/dev/zero"), folder.path()] {
        let refused = empty().load_snapshot(path).unwrap_err();
        assert!(refused.is_snapshot_io(), "{refused}");
        assert!(refused.to_string().contains("not a regular file"), "{refused}");
    }
}

#[test]
fn two_saves_to_one_path_at_once_leave_one_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("warm");
    std::thread::scope(|scope| {
        for entries in [40, 60, 80] {
            let path = &path;
            scope.spawn(move || {
                let cache = filled(entries, 8);
                for _ in 0..20 {
                    assert!(cache.save_snapshot(path).unwrap().complete);
                }
            });
        }
    });
    assert_eq!(names(folder.path()), ["warm"]);
    let cache = empty();
    let report = cache.load_snapshot(&path).unwrap();
    assert!(report.complete && [40, 60, 80].contains(&report.entries));
    assert!(cache.get_blocking(&key(39)).is_some());
}
