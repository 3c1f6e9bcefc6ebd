//! The bytes of a snapshot, and what becomes of hostile ones.

use std::time::Duration;

use crate::{CacheKey, ContentKey, EmbeddingCache, EmbeddingCacheBuilder, EmbeddingVector};

use super::format::{BLOCK_HEADER, Kind, MOST_PAYLOAD, Record, block_header};
use super::*;

/// Marsaglia's xorshift: the same files each time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % limit
    }
}

fn key(number: usize) -> CacheKey {
    match number % 3 {
        0 => CacheKey::for_model("e5-base").revision("1").text(&number.to_string()),
        1 => CacheKey::new(format!("text {number}"), "toy"),
        _ => CacheKey::new(format!("text {number}"), "toy").with_chunk(number.to_string()),
    }
}

/// What belongs to a key: whoever finds another has found a wrong vector.
fn vector_of(key: &CacheKey) -> Vec<f32> {
    let seed = key.to_string().bytes().fold(7_u32, |h, byte| h.wrapping_mul(31) ^ u32::from(byte));
    (0..1 + seed % 5).map(|i| (seed.wrapping_mul(i + 1) % 1000) as f32).collect()
}

fn cache() -> EmbeddingCache {
    EmbeddingCache::builder().max_entries(1000).shards(1).build().unwrap()
}

fn filled(entries: usize) -> EmbeddingCache {
    let cache = cache();
    for number in 0..entries {
        cache.put_blocking(key(number), vector_of(&key(number))).unwrap();
    }
    cache
}

fn saved(cache: &EmbeddingCache) -> Vec<u8> {
    let mut file = Vec::new();
    assert!(cache.snapshot().save_to(&mut file).unwrap().complete);
    file
}

#[test]
fn the_bytes_are_the_known_ones() {
    // Recomputed by: python3 -c "import hashlib; print(hashlib.sha256(bytes(8)+bytes.fromhex('0100000003000000')+b'abc').hexdigest()[:32])"
    let header = block_header(Kind::Records, 0, b"abc");
    assert_eq!(header[..8], [1, 0, 0, 0, 3, 0, 0, 0]);
    let hex: String = header[8..].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, "c39b9d8d39ddd49fb509b5663501feed");
    let record = Record {
        key: CacheKey::new("ab", "m").with_chunk(""),
        components: [1.0].into(),
        expires_at: 0x0102,
    };
    let mut bytes = Vec::new();
    record.write(&mut bytes);
    let expected = [
        &33_u32.to_le_bytes()[..],
        &[3, 2, 0, 0, 0, b'a', b'b', 1, 0, 0, 0, b'm', 0, 0, 0, 0],
        &[0, 1, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0],
        &1_f32.to_le_bytes(),
    ];
    assert_eq!(bytes, expected.concat());
    assert_eq!(Record::read(&mut &bytes[..]), Some(record));
}

#[test]
fn both_kinds_of_keys_come_back_and_neither_is_taken_for_the_other() {
    let words = filled(30);
    let file = saved(&words);
    let loaded = cache();
    let report = loaded.snapshot().load_from(&file[..]).unwrap();
    assert_eq!((report.entries, report.complete, report.bytes), (30, true, file.len() as u64));
    for number in 0..30 {
        assert_eq!(loaded.get_blocking(&key(number)).unwrap(), vector_of(&key(number)));
    }

    let digests = EmbeddingCacheBuilder::<ContentKey>::new().max_entries(10).build().unwrap();
    let refused = digests.snapshot().load_from(&file[..]).unwrap_err();
    assert!(refused.is_invalid_snapshot());
    assert_eq!(
        refused.to_string(),
        "the keys of the snapshot are CacheKey, those of this cache ContentKey"
    );
    let spec = ContentKey::for_model("e5-base");
    digests.put_blocking(spec.text("a"), [1.0]).unwrap();
    let mut file = Vec::new();
    digests.snapshot().save_to(&mut file).unwrap();
    let again = EmbeddingCacheBuilder::<ContentKey>::new().max_entries(10).build().unwrap();
    assert_eq!(again.snapshot().load_from(&file[..]).unwrap().entries, 1);
    assert_eq!(again.get_blocking(&spec.text("a")).unwrap(), [1.0]);
}

#[test]
fn another_version_and_other_files_are_refused_by_name() {
    let mut file = saved(&filled(1));
    file[8] = 9;
    let refused = cache().snapshot().load_from(&file[..]).unwrap_err();
    assert!(refused.is_invalid_snapshot() && !refused.is_snapshot_io());
    assert!(refused.to_string().contains("version 9"), "{refused}");
    for other in [&b""[..], b"PK\x03\x04", &[0; 4096]] {
        let refused = cache().snapshot().load_from(other).unwrap_err();
        assert_eq!(refused.to_string(), "this is no snapshot of an embedding cache");
    }
}

/// Every change that can be thought of, one to three at a time. No panic, no vector under a key that
/// it does not belong to, and no entry that was not saved.
#[test]
fn mutated_files_load_without_a_panic_or_a_wrong_vector() {
    let files = 100_000;
    let good: Vec<Vec<u8>> = [0, 1, 12].map(|entries| blocks_of_their_own(&filled(entries))).into();
    let mut random = Random(0x5DEE_CE66);
    let (mut loaded, mut refused, mut partly) = (0, 0, 0);
    for _ in 0..files {
        let mut file = good[random.below(good.len())].clone();
        for _ in 0..1 + random.below(3) {
            mutate(&mut file, &mut random);
        }
        let cache = cache();
        match cache.snapshot().load_from(&file[..]) {
            Err(error) => {
                assert!(error.is_invalid_snapshot(), "{error}");
                refused += 1;
            }
            Ok(report) => {
                loaded += 1;
                partly += u64::from(!report.complete && report.entries > 0);
                assert_eq!(report.entries, cache.iter().count() as u64);
            }
        }
        for (key, vector, _) in cache.export() {
            assert_eq!(vector, vector_of(&key), "a wrong vector under {key}");
        }
    }
    assert!(loaded > 100 && refused > 100 && partly > 100);
}

/// A file in which each entry has a block, as a small one has only one.
fn blocks_of_their_own(cache: &EmbeddingCache) -> Vec<u8> {
    let mut file = saved(&super::tests::cache());
    let end = file.len() - BLOCK_HEADER - 8;
    file.truncate(end);
    let mut number = 0;
    for (key, vector, _) in cache.export() {
        let mut record = Vec::new();
        Record { key, components: vector.into_shared(), expires_at: 0 }.write(&mut record);
        file.extend_from_slice(&block_header(Kind::Records, number, &record));
        file.extend_from_slice(&record);
        number += 1;
    }
    let count = number.to_le_bytes();
    file.extend_from_slice(&block_header(Kind::End, number, &count));
    file.extend_from_slice(&count);
    file
}

fn mutate(file: &mut Vec<u8>, random: &mut Random) {
    if file.is_empty() {
        file.push(random.below(256) as u8);
        return;
    }
    let at = random.below(file.len());
    // The head of a file is a small part of it, and is mutated as often as the rest.
    let at = if random.below(4) == 0 { at.min(random.below(64)) } else { at };
    match random.below(8) {
        0 => file[at] ^= 1 << random.below(8),
        1 => file[at] = random.below(256) as u8,
        2 => file.truncate(at),
        3 => file.insert(at, random.below(256) as u8),
        4 => drop(file.remove(at)),
        // A length, perhaps.
        5 => {
            let value: u32 = [0, 1, u32::MAX, 1 << 20, (1 << 20) + 1, 1 << 31][random.below(6)];
            let end = (at + 4).min(file.len());
            file[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
        }
        // Parts of it in other places.
        6 => {
            let end = at + random.below(file.len() - at + 1);
            let part = file[at..end].to_vec();
            let to = random.below(file.len() + 1);
            file.splice(to..to, part);
        }
        _ => {
            let end = at + random.below(file.len() - at + 1);
            drop(file.drain(at..end));
        }
    }
}

/// Digests that are right over content that is not: written by a program that means harm.
#[test]
fn a_forged_block_gives_nothing_beyond_what_it_holds() {
    let head = saved(&cache());
    let head = &head[..head.len() - BLOCK_HEADER - 8];
    let mut good = Vec::new();
    Record { key: key(1), components: vector_of(&key(1)).into(), expires_at: 0 }.write(&mut good);
    let random = &mut Random(3);
    let mut payloads: Vec<Vec<u8>> = vec![
        vec![],
        vec![0],
        u32::MAX.to_le_bytes().to_vec(),
        [&[255, 255, 15, 0][..], &good].concat(),
        [&good[..], &[1, 0]].concat(),
    ];
    for _ in 0..20_000 {
        let mut payload = [&good[..], &good].concat();
        mutate(&mut payload, random);
        payloads.push(payload);
    }
    for payload in payloads {
        let mut file = head.to_vec();
        file.extend_from_slice(&block_header(Kind::Records, 0, &payload));
        file.extend_from_slice(&payload);
        let cache = cache();
        let report = cache.snapshot().load_from(&file[..]).unwrap();
        assert!(!report.complete, "there is no end");
        assert!(report.entries <= 2);
    }
}

#[test]
fn a_damaged_block_is_passed_over_and_a_cut_file_keeps_what_comes_before() {
    let file = blocks_of_their_own(&filled(12));
    let mut damaged = file.clone();
    let middle = file.len() / 2;
    damaged[middle] ^= 1;
    let report = cache().snapshot().load_from(&damaged[..]).unwrap();
    // A flipped bit of a length ends it; of anything else it costs one entry.
    assert_eq!((report.damaged_blocks, report.entries, report.complete), (1, 11, false));

    let cut = cache();
    let report = cut.snapshot().load_from(&file[..file.len() - 40]).unwrap();
    assert_eq!((report.entries, report.complete, report.damaged_blocks), (11, false, 0));
}

#[test]
fn what_is_there_stays_what_is_stale_does_not_come_and_lives_go_on() {
    let source = cache();
    let hour = Duration::from_secs(3600);
    let put = |number, life| {
        let entries = [(key(number), vector_of(&key(number)), life)];
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(source.put_many_with_ttl(entries))[0].as_ref().unwrap();
    };
    put(0, None);
    put(1, Some(hour));
    put(2, Some(Duration::from_millis(30)));
    put(3, Some(2 * hour));
    let file = saved(&source);
    std::thread::sleep(Duration::from_millis(40));

    let target = EmbeddingCache::builder().max_entries(10).time_to_live(hour).build().unwrap();
    target.put_blocking(key(0), [9.0]).unwrap();
    let report = target.snapshot().load_from(&file[..]).unwrap();
    assert_eq!((report.entries, report.present, report.expired), (2, 1, 1));
    assert_eq!(target.get_blocking(&key(0)).unwrap(), [9.0]);
    let lives: Vec<_> = target.export().map(|(key, _, life)| (key, life.unwrap())).collect();
    for (_, life) in lives {
        assert!(life <= hour && life > hour - Duration::from_secs(60), "{life:?}");
    }
}

#[test]
fn loading_evicts_nobody_and_leaves_a_twentieth_free() {
    let file = saved(&filled(300));
    let target = EmbeddingCache::builder().max_entries(100).build().unwrap();
    let own = CacheKey::new("own", "toy");
    target.put_blocking(own.clone(), [1.0]).unwrap();
    let report = target.snapshot().load_from(&file[..]).unwrap();
    assert!(report.full && !report.complete);
    assert_eq!((target.info().size, target.stats().evictions), (95, 0));
    assert!(target.get_blocking(&own).is_some());
}

#[test]
fn vectors_that_the_cache_does_not_take_are_refused() {
    let source = EmbeddingCache::builder().max_entries(10).allow_non_finite(true).build().unwrap();
    source.put_blocking(key(0), [f32::NAN, 1.0]).unwrap();
    source.put_blocking(key(1), [1.0, 2.0, 3.0]).unwrap();
    source.put_blocking(key(2), [1.0, 2.0]).unwrap();
    let target = EmbeddingCache::builder().max_entries(100).dimensions(2).build().unwrap();
    let report = target.snapshot().load_from(&saved(&source)[..]).unwrap();
    assert_eq!((report.entries, report.refused, report.complete), (1, 2, true));
    assert_eq!(target.stats().rejected, 0, "no put of the caller's was refused");
}

#[test]
fn what_is_too_large_for_a_block_is_left_out_and_counted() {
    let source = EmbeddingCache::builder().max_entries(10).build().unwrap();
    source.put_blocking(key(0), vec![1.0; format::MOST_DIMENSIONS + 1]).unwrap();
    source.put_blocking(CacheKey::new("x".repeat(MOST_PAYLOAD - 100), "m"), [1.0; 100]).unwrap();
    source.put_blocking(key(1), vec![1.0; format::MOST_DIMENSIONS]).unwrap();
    let mut file = Vec::new();
    let report = source.snapshot().save_to(&mut file).unwrap();
    assert_eq!((report.entries, report.too_large, report.complete), (1, 2, true));
    let report = cache().snapshot().load_from(&file[..]).unwrap();
    assert_eq!((report.entries, report.complete), (1, true));
}

/// An invalidation while it is being loaded: none of what was saved comes after it.
#[test]
fn nothing_is_loaded_past_an_invalidation() {
    let file = blocks_of_their_own(&filled(12));
    let target = cache();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let report = target
        .snapshot()
        .load_from(InTheMiddle {
            file: &file,
            at: 0,
            then: || {
                runtime.block_on(target.invalidate_model("not there"));
            },
        })
        .unwrap();
    assert!(report.stopped_by_invalidation && report.entries > 0);
    assert_eq!(target.info().size, report.entries as usize, "nothing came after it");
}

/// Does something once half of a file is read.
struct InTheMiddle<'a, F> {
    file: &'a [u8],
    at: usize,
    then: F,
}

impl<F: Fn()> Read for InTheMiddle<'_, F> {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        let half = self.file.len() / 2;
        let end = if self.at < half { half } else { self.file.len() };
        let n = to.len().min(end - self.at);
        to[..n].copy_from_slice(&self.file[self.at..][..n]);
        self.at += n;
        if self.at == half {
            (self.then)();
        }
        Ok(n)
    }
}

/// Of a large cache the most used comes first, whatever the policy.
#[test]
fn the_most_used_are_saved_first() {
    use crate::EvictionPolicy::{HitDensity, Lru, S3Fifo};
    let entries = 4000;
    for policy in [Lru, S3Fifo, HitDensity] {
        for shards in [1, 4] {
            let cache = EmbeddingCache::builder()
                .max_entries(entries)
                .shards(shards)
                .eviction(policy)
                .build()
                .unwrap();
            // More than fits, so that there is time for a policy to learn from, and some used often.
            let used: Vec<CacheKey> = (0..entries / 10).map(|n| key(3 * n + 1)).collect();
            for number in 0..4 * entries {
                let key = key(3 * number);
                cache.put_blocking(key.clone(), [1.0]).unwrap();
                if number % 4 == 0 {
                    let used = &used[number / 4 % used.len()];
                    if cache.get_blocking(used).is_none() {
                        cache.put_blocking(used.clone(), [2.0]).unwrap();
                    }
                }
            }
            used.iter().for_each(|key| drop(cache.get_blocking(key)));
            let order: Vec<EmbeddingVector> = cache.export().map(|(_, vector, _)| vector).collect();
            assert_eq!(order.len(), cache.info().size);
            let at: Vec<usize> = order
                .iter()
                .enumerate()
                .filter(|(_, vector)| **vector == [2.0])
                .map(|(at, _)| at)
                .collect();
            assert!(at.len() > used.len() / 2, "{policy:?} has lost them: {}", at.len());
            let mean = at.iter().sum::<usize>() / at.len();
            assert!(mean < entries / 4, "{policy:?}, {shards} shards: at {mean} of {entries}");
        }
    }
}

#[test]
fn the_order_of_an_lru_is_exact_hits_that_were_only_noted_included() {
    let cache = EmbeddingCache::builder()
        .max_entries(1000)
        .shards(1)
        .eviction(crate::EvictionPolicy::Lru)
        .build()
        .unwrap();
    (0..200).for_each(|number| cache.put_blocking(key(number), [number as f32]).unwrap());
    let used = [7, 150, 3];
    used.iter().for_each(|&number| drop(cache.get_blocking(&key(number))));
    let order: Vec<usize> = cache.export().map(|(_, vector, _)| vector[0] as usize).collect();
    let mut expected = vec![3, 150, 7];
    expected.extend((0..200).rev().filter(|number| !used.contains(number)));
    assert_eq!(order, expected);
    assert_eq!(cache.stats().hits, 3, "an export is no use");
}
