//! Which entries belong to a model or a tenant, for both kinds of keys in the form that is stored.

use super::names::{ModelName, TenantName};
use super::{CacheKey, ContentKey, EmbeddingKey, KeySpec};

fn stored<K: EmbeddingKey>(key: &K) -> K::Stored {
    key.to_stored().unwrap()
}

fn is_of<K: EmbeddingKey>(key: &K, model: &str) -> bool {
    K::belongs_to_model(&stored(key), &ModelName::new(model))
}

fn is_whose<K: EmbeddingKey>(key: &K, tenant: &str) -> bool {
    K::belongs_to_tenant(&stored(key), &TenantName::new(tenant))
}

/// Every key of a specification, whatever else is set and whatever it is the key of.
fn keys_belong<K: EmbeddingKey>(builder: fn(&'static str) -> KeySpec<K>) {
    // Every key is compared with every name: Miri gets fewer.
    let few = if cfg!(miri) { 1 } else { 4 };
    let (models, tenants) = (["e5-base", "e5", "é", ""], ["acme", "acm", "é", ""]);
    let (models, tenants) = (&models[..few], &tenants[..few]);
    for &model in models {
        for revision in [None, Some("1"), Some("")] {
            let mut spec = builder(model);
            if let Some(revision) = revision {
                spec = spec.revision(revision);
            }
            let keys = [spec.text("a"), spec.tokens(&[1]), spec.bytes(b"a")];
            for &other in models {
                assert!(keys.iter().all(|key| is_of(key, other) == (model == other)));
            }
            assert!(keys.iter().all(|key| !tenants.iter().any(|tenant| is_whose(key, tenant))));
        }
        for &tenant in tenants {
            let spec = builder(model).tenant(tenant).dimensions(8);
            let keys = [spec.text("a"), spec.tokens(&[1]), spec.bytes(b"a")];
            for &other in tenants {
                assert!(keys.iter().all(|key| is_whose(key, other) == (tenant == other)));
            }
            assert!(keys.iter().all(|key| is_of(key, model)));
        }
    }
}

#[test]
fn content_keys_belong_to_their_model_and_tenant() {
    keys_belong(ContentKey::for_model);
}

#[test]
fn cache_keys_belong_to_their_model_and_tenant() {
    keys_belong(CacheKey::for_model);
}

#[test]
fn a_chunk_changes_neither_model_nor_tenant() {
    let key = CacheKey::for_model("e5-base").revision("1").tenant("acme").text("a").with_chunk("7");
    assert!(is_of(&key, "e5-base") && is_whose(&key, "acme"));
    assert!(is_of(&key, "e5-base@1"), "one revision, by its full name");
    assert!(!is_of(&key, "e5-base@2") && !is_of(&key, "e5-base@1@7"));
}

#[test]
fn handmade_keys_belong_to_their_model_and_to_no_tenant() {
    for content in ["", "9f86d081884c7d65", "9f86d081é", &"9f86d081".repeat(8)] {
        let key = CacheKey::new(content, "e5-base@1");
        assert!(is_of(&key, "e5-base") && !is_of(&key, "e5") && !is_of(&key, "9f86d081"));
        assert!(!is_whose(&key, "acme") && !is_whose(&key, ""));
    }
}
