//! Any bytes, loaded as a snapshot: no panic, no allocation by a length that is not there, and nothing
//! in the cache that the report does not count.
//!
//!     cargo +nightly fuzz run snapshot

#![no_main]

use embedding_cache::{CacheKey, ContentKey, EmbeddingCacheBuilder, EmbeddingKey};
use libfuzzer_sys::fuzz_target;

fn load<K: EmbeddingKey>(file: &[u8]) {
    let cache = EmbeddingCacheBuilder::<K>::new().max_entries(100).shards(1).build().unwrap();
    match cache.snapshot().load_from(file) {
        Ok(report) => {
            assert_eq!(report.entries, cache.iter().count() as u64);
            assert!(report.bytes <= file.len() as u64);
            // What was loaded can be saved and loaded again.
            let mut again = Vec::new();
            assert!(cache.snapshot().save_to(&mut again).unwrap().complete);
        }
        Err(error) => assert!(error.is_invalid_snapshot(), "{error}"),
    }
}

fuzz_target!(|file: &[u8]| {
    load::<CacheKey>(file);
    load::<ContentKey>(file);
});
