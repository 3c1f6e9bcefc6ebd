//! 32 reads at once, beside the same reads of the engine without anything around it.

use std::hint::black_box;
use std::time::{Duration, Instant};

use embedding_cache::tier::{SecondTier, Tier};
use embedding_cache::{ContentKey, EmbeddingCache, EmbeddingCacheBuilder};
use embedding_cache_disk::DiskTier;
use fjall::{
    CompressionType, Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, PersistMode,
};
use tokio::runtime::Runtime;

use crate::Outcome;
use crate::work::{BATCH, SMALLEST, key, mix, store, value};

const ENTRIES: usize = 50_000;
const KEYS: usize = 32;
const ROUNDS: usize = 15;
const TIMES: usize = 200;

fn raw(directory: &std::path::Path) -> fjall::Result<(Database, Keyspace)> {
    let database = Database::builder(directory)
        .max_journaling_size(64 << 20)
        .cache_size(32 << 20)
        .manual_journal_persist(true)
        .worker_threads(2)
        .open()?;
    let separation =
        KvSeparationOptions::default().compression(CompressionType::None).separation_threshold(16);
    let options = || {
        KeyspaceCreateOptions::default()
            .max_memtable_size(8 << 20)
            .manual_journal_persist(true)
            .with_kv_separation(Some(separation))
    };
    let keyspace = database.keyspace("g1", options)?;
    for from in (0..ENTRIES).step_by(BATCH) {
        let mut batch = database.batch().durability(Some(PersistMode::Buffer));
        for number in from..(from + BATCH).min(ENTRIES) {
            batch.insert(&keyspace, key(number).to_bytes(), [&[0; 8][..], &value(number)].concat());
        }
        batch.commit()?;
    }
    Ok((database, keyspace))
}

fn content(number: usize) -> ContentKey {
    ContentKey::for_model("gate").text(&number.to_string())
}

pub(crate) fn run(runtime: &Runtime) -> Outcome {
    let folders = [tempfile::tempdir()?, tempfile::tempdir()?, tempfile::tempdir()?];
    let (_database, keyspace) = raw(folders[0].path())?;
    let tier = DiskTier::builder(folders[1].path()).max_bytes(SMALLEST).open()?;
    let behind = DiskTier::builder(folders[2].path()).max_bytes(SMALLEST).open()?;
    let second = SecondTier::new(behind)
        .soft_deadline(Duration::from_secs(1))
        .hard_timeout(Duration::from_secs(5));
    // So few that nearly every read is one of the second tier.
    let cache: EmbeddingCache<ContentKey> =
        EmbeddingCacheBuilder::new().max_entries(512).tier(second).build()?;
    runtime.block_on(async {
        for from in (0..ENTRIES).step_by(BATCH) {
            store(&tier, from..(from + BATCH).min(ENTRIES)).await?;
            for number in from..(from + BATCH).min(ENTRIES) {
                let vector: Vec<f32> = (0..768).map(|i| (number + i) as f32).collect();
                cache.put(content(number), vector).await.map_err(|error| error.to_string())?;
            }
            if from % (64 * BATCH) == 0 {
                cache.tier_flush(Duration::from_secs(60)).await;
            }
        }
        match cache.tier_flush(Duration::from_secs(60)).await {
            0 => Ok(()),
            left => Err(format!("{left} entries were not written")),
        }
    })?;
    // Flushed and compacted.
    std::thread::sleep(Duration::from_secs(2));
    let mut medians = [vec![], vec![], vec![]];
    for round in 0..ROUNDS {
        for (way, medians) in medians.iter_mut().enumerate() {
            let mut times = Vec::with_capacity(TIMES);
            for time in 0..TIMES {
                let draw = |place: usize| {
                    mix(((round * TIMES + time) * KEYS + place) as u64) as usize % ENTRIES
                };
                let numbers: [usize; KEYS] = std::array::from_fn(draw);
                times.push(runtime.block_on(async {
                    match way {
                        0 => {
                            let keys = numbers.map(|number| key(number).to_bytes());
                            let started = Instant::now();
                            for key in &keys {
                                let found = keyspace.get(key).map_err(|error| error.to_string())?;
                                black_box(found.ok_or("not there")?[8..].to_vec());
                            }
                            Ok::<Duration, String>(started.elapsed())
                        }
                        1 => {
                            let keys = numbers.map(key);
                            let started = Instant::now();
                            let found = black_box(tier.get_many(&keys).await);
                            let took = started.elapsed();
                            let is_there =
                                |found| matches!(found, embedding_cache::tier::Lookup::Found(_));
                            if found.into_iter().all(is_there) {
                                Ok(took)
                            } else {
                                Err("not there".into())
                            }
                        }
                        _ => {
                            let keys = numbers.map(content);
                            let started = Instant::now();
                            let found = black_box(cache.get_through_many(&keys).await);
                            let took = started.elapsed();
                            if found.iter().all(Option::is_some) {
                                Ok(took)
                            } else {
                                Err("not there".into())
                            }
                        }
                    }
                })?);
            }
            times.sort_unstable();
            medians.push(times[TIMES / 2]);
        }
    }
    let median = |way: usize| {
        let mut medians = medians[way].clone();
        medians.sort_unstable();
        medians[ROUNDS / 2].as_secs_f64() * 1e6
    };
    let [raw, tier, through] = [median(0), median(1), median(2)];
    println!(
        "32 reads, medians of {ROUNDS} rounds of {TIMES}: engine {raw:.0} µs, tier {tier:.0} µs ({:.2} times), \
         cache with tier {through:.0} µs ({:.2} times)",
        tier / raw,
        through / raw,
    );
    Ok(())
}
