//! The faults that caches in the field had, tried on a real one with both kinds of keys: a key that
//! leaves something out makes one of these return another's vector.

use embedding_cache::{
    CacheKey, ContentKey, EmbeddingCache, EmbeddingCacheBuilder, KeySpec, Role, Truncation,
};

use super::settings::{Kind, ROLES};

const TEXTS: [&str; 4] = ["", "a", "rust", "a longer text, of several words"];

fn builder<K: Kind>() -> EmbeddingCacheBuilder<K> {
    EmbeddingCacheBuilder::<K>::new().max_entries(10_000)
}

/// Stores a vector of its own for each specification and text, and expects each to be found as it is.
#[track_caller]
fn nobody_finds_anothers_vector<K: Kind>(specs: &[KeySpec<K>]) {
    let cache = builder::<K>().build().unwrap();
    for (i, spec) in specs.iter().enumerate() {
        for (j, text) in TEXTS.iter().enumerate() {
            let key = spec.text(text);
            assert_eq!(cache.get_blocking(&key), None, "{spec:?} {text:?} finds another's");
            cache.put_blocking(key, [i as f32, j as f32]).unwrap();
        }
    }
    for (i, spec) in specs.iter().enumerate() {
        for (j, text) in TEXTS.iter().enumerate() {
            assert_eq!(cache.get_blocking(&spec.text(text)).unwrap(), [i as f32, j as f32]);
        }
    }
    assert_eq!(cache.info().size, specs.len() * TEXTS.len());
}

/// A test for both kinds of keys.
macro_rules! for_both_kinds {
    ($($(#[$meta:meta])* $name:ident($base:ident) $specs:expr;)*) => {$(
        $(#[$meta])*
        #[test]
        fn $name() {
            fn check<K: Kind>() {
                let $base = |model: &str| K::for_model(model.into());
                nobody_finds_anothers_vector::<K>(&$specs);
            }
            check::<CacheKey>();
            check::<ContentKey>();
        }
    )*};
}

for_both_kinds! {
    a_model_does_not_serve_for_another(of) [of("e5-base"), of("e5-large"), of("E5-base"), of("")];
    a_revision_does_not_serve_for_another(of) [
        of("e5-base"),
        of("e5-base").revision("1"),
        of("e5-base").revision("2"),
        of("e5-base").revision(""),
        // Shown in the same way, but not the same.
        of("e5-base@1"),
        of("e5-base@").revision("1"),
    ];
    a_query_does_not_serve_for_a_document(of) {
        let mut specs = vec![of("e5-base")];
        specs.extend(ROLES.map(|(role, _)| of("e5-base").role(role)));
        specs
    };
    dimensions_do_not_serve_for_others(of) [
        of("m"), of("m").dimensions(256), of("m").dimensions(512), of("m").dimensions(1536),
    ];
    a_prompt_does_not_serve_for_another(of) [
        of("m"), of("m").prompt("query: "), of("m").prompt("query:"), of("m").prompt("passage: "),
    ];
    normalized_vectors_do_not_serve_for_others(of) [
        of("m"), of("m").normalize(true), of("m").normalize(false),
    ];
    a_cut_off_text_does_not_serve_for_a_whole_one(of) [
        of("m"),
        of("m").truncation(Truncation::KeepStart { max_tokens: 256 }),
        of("m").truncation(Truncation::KeepStart { max_tokens: 512 }),
        of("m").truncation(Truncation::KeepEnd { max_tokens: 512 }),
        of("m").truncation(Truncation::Refuse),
    ];
    a_tenant_does_not_find_anothers(of) [
        of("m"), of("m").tenant("acme"), of("m").tenant("acm"), of("m").tenant(""),
    ];
    /// The second fault: `("ab", "c")` taken for `("a", "bc")`.
    texts_put_together_in_another_way_are_others(of) [
        of("ab").revision("c"), of("a").revision("bc"), of("abc"),
        of("m").revision("ab").prompt("c"), of("m").revision("a").prompt("bc"),
        of("m").prompt("ab").tenant("c"), of("m").prompt("a").tenant("bc"),
    ];
    the_kinds_of_settings_are_not_taken_for_each_other(of) [
        of("m").revision("query"), of("m").prompt("query"), of("m").tenant("query"),
        of("m").role(Role::Query),
    ];
}

#[test]
fn a_text_does_not_serve_for_its_bytes_or_tokens() {
    fn check<K: Kind>() {
        let spec = K::for_model("m".into());
        let cache = builder::<K>().build().unwrap();
        let keys = [
            spec.text("abcd"),
            spec.bytes(b"abcd"),
            spec.tokens(&[u32::from_le_bytes(*b"abcd")]),
            spec.text(""),
            spec.bytes(b""),
            spec.tokens(&[]),
        ];
        for (i, key) in keys.iter().enumerate() {
            assert_eq!(cache.get_blocking(key), None);
            cache.put_blocking(key.clone(), [i as f32]).unwrap();
        }
        for (i, key) in keys.iter().enumerate() {
            assert_eq!(cache.get_blocking(key).unwrap(), [i as f32]);
        }
    }
    check::<CacheKey>();
    check::<ContentKey>();
}

/// What a cache with content keys tells others of an entry is the key, as it was put.
#[test]
fn a_content_key_comes_back_from_the_cache_as_it_was() {
    let log = crate::support::Removals::new();
    let cache = builder::<ContentKey>().eviction_listener(log.listener()).build().unwrap();
    let spec = ContentKey::for_model("m").revision("1").tenant("acme");
    let key = spec.text("a");
    cache.put_blocking(key, [1.0]).unwrap();
    assert_eq!(pollster::block_on(cache.retain(|found, _| *found != key)), 1);
    assert_eq!(cache.get_blocking(&key), None);
    cache.put_blocking(key, [1.0]).unwrap();
    cache.put_blocking(key, [2.0]).unwrap();
    let told = log.take();
    assert_eq!(told.len(), 2, "removed, and replaced");
    assert!(told.iter().all(|(found, ..)| *found == key));
}

/// The longest names that `CacheKey` has no room for: a content key is never refused.
#[test]
fn a_long_name_is_refused_for_a_cache_key_only() {
    let name = "m".repeat(2 << 20);
    let words = EmbeddingCache::builder().max_entries(1).build().unwrap();
    let refused = words.put_blocking(CacheKey::for_model(name.as_str()).text("a"), [1.0]);
    assert!(refused.unwrap_err().is_invalid_key());
    let digests = builder::<ContentKey>().build().unwrap();
    digests.put_blocking(ContentKey::for_model(name).text("a"), [1.0]).unwrap();
}
