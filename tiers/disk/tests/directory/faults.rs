//! Faults in operation.

use std::time::Duration;

use embedding_cache::tier::SecondTier;
use embedding_cache_disk::DiskTier;

use crate::keeping::released;
use crate::support::{Model, directory, flush, key, open, process, process_with, spawn, vector};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the process that another test begins"]
async fn embeds_on_a_full_disk() {
    let directory = directory();
    let ballast = directory.join("ballast");
    std::fs::write(&ballast, vec![1; 20 << 20]).unwrap();
    let tier = DiskTier::builder(directory.join("tier")).max_bytes(512 << 20).open().unwrap();
    let (cache, model) = (process_with(SecondTier::new(tier)), Model::default());
    let mut number = 0;
    while cache.stats().tier.write_failures == 0 {
        model.embed(&cache, number..number + 100).await;
        cache.put(key(1_000_000 + number), vec![1.0; 60_000]).await.unwrap();
        cache.put(key(2_000_000 + number), vec![1.0; 60_000]).await.unwrap();
        flush(&cache).await;
        number += 100;
        assert!(number < 200_000, "it is never full");
    }
    // Requests go on, and each text is embedded once.
    for _ in 0..50 {
        model.embed(&cache, number..number + 100).await;
        number += 100;
    }
    assert_eq!(model.asked(), number);
    // With room again it is used again: after the pause of the breaker, if that has opened.
    std::fs::remove_file(&ballast).unwrap();
    let before = cache.stats().tier.writes;
    let started = std::time::Instant::now();
    while cache.stats().tier.writes == before {
        model.embed(&cache, number..number + 10).await;
        number += 10;
        flush(&cache).await;
        assert!(started.elapsed() < Duration::from_secs(40), "{:?}", cache.stats().tier);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// In a small file system of its own.
#[test]
fn a_full_disk_fails_no_request_and_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let mount = "mount -t tmpfs -o size=100m tmpfs \"$DIRECTORY\" && exec \"$0\" \"$@\"";
    let through = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount];
    let child = spawn(&through, "faults::embeds_on_a_full_disk", folder.path());
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
}

/// A value whose bytes have changed on the disk is a miss, never another vector.
#[tokio::test]
async fn bytes_that_have_changed_on_the_disk_are_never_a_vector() {
    let directory = tempfile::tempdir().unwrap();
    let model = Model::default();
    let cache = process(directory.path());
    model.embed(&cache, 0..2000).await;
    flush(&cache).await;
    drop(cache);
    released(directory.path()).await;
    // Opened once, so that everything is in its place and nothing in the journals.
    drop(open(directory.path()));
    let mut files = vec![directory.path().join("store")];
    let mut damaged = 0;
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        if !path.to_str().unwrap().contains("blobs") {
            continue;
        }
        let mut bytes = std::fs::read(&path).unwrap();
        let end = bytes.len().saturating_sub(4096);
        for at in (1000..end).step_by(5003) {
            bytes[at] ^= 0x10;
            damaged += 1;
        }
        std::fs::write(&path, bytes).unwrap();
    }
    assert!(damaged > 10, "the values are elsewhere");
    let cache = process(directory.path());
    for number in 0..2000 {
        if let Some(found) = cache.get_through(&key(number)).await {
            assert_eq!(found, vector(number));
        }
    }
    let tier = cache.stats().tier;
    assert!(tier.hits > 0 && tier.rejected_checksum + tier.failures_other > 0, "{tier:?}");
}
