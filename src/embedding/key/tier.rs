//! The 32 bytes of a [`CacheKey`] in a second tier.

use sha2::{Digest, Sha256};

use super::cache_key::CacheKey;
use super::hex::Packed;
use super::names::{NO_TENANT, Tag, model_tag, tagged};

/// Begins what is hashed for a [`CacheKey`].
const DOMAIN: &str = "embedding-cache tier key v1";

/// The 32 bytes of a key. Each text is framed by its field and its length, so that different keys
/// never hash the same bytes; a chunk that is missing has no frame.
pub(super) fn digest(key: &CacheKey) -> [u8; 32] {
    let mut hash = Sha256::new_with_prefix(DOMAIN);
    let texts = [
        (1_u8, Some(&key.content_hash)),
        (2, Some(&key.model_version)),
        (3, key.chunk_id.as_ref()),
    ];
    for (field, text) in texts {
        let Some(text) = text else { continue };
        hash.update([field]);
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    let (model, tenant) = (key.model_version.as_bytes(), key.content_hash.as_bytes());
    tagged((model_tag_of(model), tenant_tag_of(tenant)), hash.finalize().into())
}

/// The tag of the model without its revision: what stands before the first `@`. A name with an `@` of
/// its own is invalidated with all whose names begin as it does.
pub(super) fn model_tag_of(version: &[u8]) -> Tag {
    let end = version.iter().position(|&byte| byte == b'@').unwrap_or(version.len());
    model_tag(&version[..end])
}

/// The tag of the tenant, where a specification would have written it.
pub(super) fn tenant_tag_of(content: &[u8]) -> Tag {
    let digits: Result<&[u8; 64], _> = content.try_into();
    digits.ok().and_then(Packed::of).map_or(NO_TENANT, |digits| tenant_tag_in(&digits))
}

/// The tag of the tenant in digits that a specification has made.
pub(super) fn tenant_tag_in(digits: &Packed) -> Tag {
    [4, 5, 6, 7].map(|at| digits.byte(at))
}

/// The tags that begin the bytes of a key that a specification has made.
pub(super) fn tags_of(bytes: &[u8; 32]) -> (Tag, Tag) {
    let [a, b, c, d, e, f, g, h, ..] = *bytes;
    ([a, b, c, d], [e, f, g, h])
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use crate::ContentKey;
    use crate::embedding::key::names::TenantName;
    use crate::embedding::key::repr::KeyRepr;

    use super::*;

    #[test]
    fn keys_that_differ_in_anything_have_different_bytes() {
        let texts = ["", "a", "ab", "b", &"0".repeat(64), &"A".repeat(64)];
        let mut seen = HashSet::new();
        let mut keys = 0;
        for content in texts {
            for model in ["", "m", "m@1", "m@2", "n@1", "ab"] {
                for chunk in [None, Some(""), Some("a"), Some("b")] {
                    let mut key = CacheKey::new(content, model);
                    key.chunk_id = chunk.map(String::from);
                    let bytes = key.tier_digest();
                    // What tells keys apart stands behind the tags.
                    seen.insert(bytes[8..].to_vec());
                    keys += 1;
                }
            }
        }
        assert_eq!(seen.len(), keys);
    }

    /// Two keys made by hand, with the digest of the text for a hash, may differ in the model only.
    #[test]
    fn models_never_exchange_vectors_by_an_equal_content_hash() {
        let hash = "5".repeat(64);
        let [one, other] = ["e5-base@1", "e5-large@1"].map(|model| CacheKey::new(&hash, model));
        assert_ne!(one.tier_digest()[8..], other.tier_digest()[8..]);
    }

    #[test]
    fn the_tags_are_those_that_an_invalidation_names() {
        let tags = |key: &CacheKey| CacheKey::tags(&key.to_stored().unwrap());
        let spec = CacheKey::for_model("e5-base").revision("7").tenant("acme");
        let (model, tenant) = tags(&spec.text("a"));
        assert_eq!(model, CacheKey::model_scope("e5-base"));
        // One revision is invalidated with all the others.
        assert_eq!(model, CacheKey::model_scope("e5-base@7"));
        assert_ne!(model, CacheKey::model_scope("e5"));
        assert_eq!(tenant, TenantName::new("acme").tag());
        assert_eq!(tags(&CacheKey::new("by hand", "e5-base")).1, [0; 4]);
        let digest = spec.text("a").tier_digest();
        assert_eq!((&digest[..4], &digest[4..8]), (&model[..], &tenant[..]));

        let content = ContentKey::for_model("org@model").tenant("acme").text("a");
        assert_eq!(ContentKey::tags(&content), (ContentKey::model_scope("org@model"), tenant));
        assert_eq!(content.tier_digest(), *content.as_bytes());
    }
}
