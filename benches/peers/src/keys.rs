//! Keys, values and how much memory they take outside a cache.

use embedding_cache::{CacheKey, ContentKey, EmbeddingKey, EmbeddingVector};

/// The model in every `CacheKey`.
const MODEL: &str = "intfloat/multilingual-e5-base";
pub(crate) const DIMENSIONS: usize = 768;

/// A key as any of the caches can have it.
pub(crate) trait Key: Clone + Eq + std::hash::Hash + Send + Sync + 'static {
    /// Bytes of the key's own allocations: its *key heap*.
    const HEAP: u64;

    /// The key of a number; other numbers have other keys.
    fn nth(number: u64) -> Self;
}

/// A key that embeddings are cached under, too.
pub(crate) trait TextKey: Key + EmbeddingKey {
    const NAME: &'static str;
}

/// Two strings: 64 hexadecimal digits and the model's name. Its key heap is their bytes, whether
/// a cache keeps two strings or packs them into one allocation.
impl Key for CacheKey {
    const HEAP: u64 = 64 + MODEL.len() as u64;

    fn nth(number: u64) -> Self {
        Self::new(ContentKey::nth(number).to_hex(), MODEL)
    }
}

impl TextKey for CacheKey {
    const NAME: &'static str = "CacheKey";
}

/// 32 bytes that lie in the entry itself; there is no key heap.
impl Key for ContentKey {
    const HEAP: u64 = 0;

    fn nth(number: u64) -> Self {
        let mut bytes = [0; 32];
        for (word, part) in (4 * number..).zip(bytes.chunks_exact_mut(8)) {
            part.copy_from_slice(&mix(word).to_le_bytes());
        }
        Self::from_bytes(bytes)
    }
}

impl TextKey for ContentKey {
    const NAME: &'static str = "32 bytes";
}

impl Key for u64 {
    const HEAP: u64 = 0;

    fn nth(number: u64) -> Self {
        mix(number)
    }
}

/// A value as any of the caches can have it: cheap to clone.
pub(crate) trait Value: Clone + Send + Sync + 'static {
    /// Bytes of its allocation.
    fn heap(&self) -> u64;

    /// What a server reads of it.
    fn components(&self) -> &[f32];
}

impl Value for EmbeddingVector {
    fn heap(&self) -> u64 {
        // The components and the two counts in front of them.
        4 * self.dimensions() as u64 + 16
    }

    #[inline(always)]
    fn components(&self) -> &[f32] {
        self
    }
}

impl Value for u64 {
    fn heap(&self) -> u64 {
        0
    }

    fn components(&self) -> &[f32] {
        &[]
    }
}

/// A vector that no other number has.
pub(crate) fn vector(number: u64, dimensions: usize) -> EmbeddingVector {
    (0..dimensions as u64).map(|at| (mix(number) ^ at) as u8 as f32 / 256.0 - 0.5).collect()
}

/// `SplitMix64`, a bijection: neighbours come out far apart.
pub(crate) fn mix(number: u64) -> u64 {
    let x = number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}
