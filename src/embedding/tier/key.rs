//! What a vector is stored under in a second tier: a namespace, a kind of key and 32 bytes.

use std::fmt;

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
