//! What a vector is stored under in a second tier: a namespace, a kind of key and 32 bytes.

use std::fmt;

use sha2::{Digest, Sha256};

use crate::embedding::EmbeddingKey;

use super::namespace::Namespace;

/// The key of a vector in a second tier: equal exactly if the keys of the cache are equal and were
/// written in the same namespace.
///
/// Of a [`ContentKey`](crate::ContentKey) it holds the 32 bytes. Of a [`CacheKey`](crate::CacheKey)
/// it holds a tag of the model, a tag of the tenant, and 24 bytes of a SHA-256 over all three texts:
/// two keys made by hand may differ in the model only. `docs/tiers.md` has every byte.
///
/// ```
/// # use embedding_cache::tier::TierKey;
/// let key = TierKey::from_parts(2, [7; 8], [9; 32]);
/// assert_eq!(key.to_bytes().len(), TierKey::LEN);
/// assert_eq!((key.kind(), key.digest()), (2, &[9; 32]));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TierKey {
    kind: u8,
    namespace: [u8; 8],
    digest: [u8; 32],
}

impl TierKey {
    /// Bytes of a key.
    pub const LEN: usize = 41;

    /// A key of these parts; for tests of a [`Tier`](super::Tier), as a cache makes its own.
    #[must_use]
    pub const fn from_parts(kind: u8, namespace: [u8; 8], digest: [u8; 32]) -> Self {
        Self { kind, namespace, digest }
    }

    pub(super) fn new<K: EmbeddingKey>(digest: [u8; 32], namespace: &Namespace) -> Self {
        let [model, tenant, ..] = *digest.as_chunks::<4>().0 else { unreachable!("32 bytes") };
        Self { kind: K::KIND, namespace: namespace.digest(model, tenant), digest }
    }

    /// Which kind of key it is of: 1 for a [`CacheKey`](crate::CacheKey), 2 for a
    /// [`ContentKey`](crate::ContentKey).
    #[must_use]
    pub const fn kind(&self) -> u8 {
        self.kind
    }

    /// The 8 bytes of the namespace that it was written in.
    #[must_use]
    pub const fn namespace(&self) -> &[u8; 8] {
        &self.namespace
    }

    /// The 32 bytes that stand for the key of the cache.
    #[must_use]
    pub const fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// Kind, namespace and digest, one after the other. `O(1)`, no allocation.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0] = self.kind;
        bytes[1..9].copy_from_slice(&self.namespace);
        bytes[9..].copy_from_slice(&self.digest);
        bytes
    }
}

/// Hexadecimal digits.
impl fmt::Debug for TierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TierKey({}:", self.kind)?;
        self.namespace.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(":")?;
        self.digest.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(")")
    }
}

/// Begins what is hashed for a [`CacheKey`](crate::CacheKey).
const DOMAIN: &str = "embedding-cache tier key v1";

/// The 32 bytes of a `CacheKey`. Each text is framed by its field and its length, so that different
/// keys never hash the same bytes; a chunk that is missing has no frame.
pub(crate) fn texts_digest(
    tags: ([u8; 4], [u8; 4]),
    content_hash: &str,
    model_version: &str,
    chunk_id: Option<&str>,
) -> [u8; 32] {
    let mut hash = Sha256::new_with_prefix(DOMAIN);
    let texts = [(1_u8, Some(content_hash)), (2, Some(model_version)), (3, chunk_id)];
    for (field, text) in texts {
        let Some(text) = text else { continue };
        hash.update([field]);
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    let mut bytes: [u8; 32] = hash.finalize().into();
    bytes.copy_within(..24, 8);
    bytes[..4].copy_from_slice(&tags.0);
    bytes[4..8].copy_from_slice(&tags.1);
    bytes
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use crate::embedding::key::form::Form;
    use crate::{CacheKey, ContentKey};

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
        assert_eq!(tenant, crate::embedding::key::form::TenantName::new("acme").tag());
        assert_eq!(tags(&CacheKey::new("by hand", "e5-base")).1, [0; 4]);
        let digest = spec.text("a").tier_digest();
        assert_eq!((&digest[..4], &digest[4..8]), (&model[..], &tenant[..]));

        let content = ContentKey::for_model("org@model").tenant("acme").text("a");
        assert_eq!(ContentKey::tags(&content), (ContentKey::model_scope("org@model"), tenant));
        assert_eq!(content.tier_digest(), *content.as_bytes());
    }
}
