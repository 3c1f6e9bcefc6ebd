//! The documented key, and the compact private form in which the cache stores it.

use std::fmt;
use std::hash::{Hash, Hasher};

use equivalent::Equivalent;

use crate::error::{CacheError, ErrorKind};

/// What an embedding was computed from: the text (by its hash), the model, and optionally which
/// chunk of a document it is.
///
/// Two keys are equal only if all three fields are; the cache hashes each field with its length,
/// so `("ab", "c")` and `("a", "bc")` are different keys. `chunk_id: None` differs from
/// `Some(String::new())`.
///
/// Everything that changes the vector belongs into the key: if a query prefix, a truncation or an
/// output dimension is configurable, put it into `model_version`. The order is that of the fields.
///
/// # Examples
///
/// ```
/// use embedding_cache::CacheKey;
///
/// let key = CacheKey::new("9f86d081884c7d65", "e5-base@1").with_chunk("7");
/// assert_eq!(key.to_string(), "e5-base@1/9f86d081884c7d65#7");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct CacheKey {
    /// A digest of the exact text, usually 64 hexadecimal digits of SHA-256.
    pub content_hash: String,
    /// The model, with whatever of its revision and settings changes its vectors.
    pub model_version: String,
    /// Which part of a document, where one document has several vectors.
    pub chunk_id: Option<String>,
}

impl CacheKey {
    /// A key without a chunk.
    pub fn new(content_hash: impl Into<String>, model_version: impl Into<String>) -> Self {
        Self {
            content_hash: content_hash.into(),
            model_version: model_version.into(),
            chunk_id: None,
        }
    }

    /// The same key for one chunk of the document.
    #[must_use]
    pub fn with_chunk(self, chunk_id: impl Into<String>) -> Self {
        Self { chunk_id: Some(chunk_id.into()), ..self }
    }

    fn parts(&self) -> KeyParts<'_> {
        KeyParts {
            content_hash: &self.content_hash,
            model_version: &self.model_version,
            chunk_id: self.chunk_id.as_deref(),
        }
    }
}

/// `model/hash#chunk`, for logs; not meant to be parsed.
impl fmt::Display for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.model_version, self.content_hash)?;
        match &self.chunk_id {
            Some(chunk) => write!(f, "#{chunk}"),
            None => Ok(()),
        }
    }
}

/// The borrowed view in which a `CacheKey` and a `StoredKey` meet: hashing and equality of both go
/// through it, so they cannot disagree.
#[derive(PartialEq, Eq)]
struct KeyParts<'a> {
    content_hash: &'a str,
    model_version: &'a str,
    chunk_id: Option<&'a str>,
}

impl Hash for KeyParts<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // The lengths first, in one word: they frame the three texts that follow.
        let chunk = self.chunk_id.map_or(0, |chunk| chunk.len() as u64 + 1);
        let lengths = (self.content_hash.len() as u64) << 40;
        state.write_u64(lengths ^ ((self.model_version.len() as u64) << 20) ^ chunk);
        state.write(self.content_hash.as_bytes());
        state.write(self.model_version.as_bytes());
        if let Some(chunk) = self.chunk_id {
            state.write(chunk.as_bytes());
        }
    }
}

/// A looked-up key, borrowed: lets a lookup find a [`StoredKey`] without allocating one.
pub(super) struct Probe<'a>(KeyParts<'a>);

impl<'a> From<&'a CacheKey> for Probe<'a> {
    fn from(key: &'a CacheKey) -> Self {
        Self(key.parts())
    }
}

impl Hash for Probe<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl Equivalent<StoredKey> for Probe<'_> {
    fn equivalent(&self, stored: &StoredKey) -> bool {
        self.0 == stored.parts()
    }
}

/// The stored form of a [`CacheKey`]: its three texts in one allocation, 24 bytes in the slot
/// instead of 72, and one heap block to visit for a comparison instead of two or three.
#[derive(Clone)]
pub(super) struct StoredKey {
    /// `content_hash`, `model_version` and `chunk_id`, one after the other.
    text: Box<str>,
    content_len: u32,
    /// The length of the model version, and in [`Self::CHUNKED`] whether a chunk follows it.
    model_len: u32,
}

impl StoredKey {
    const CHUNKED: u32 = 1 << 31;

    /// The most bytes that the texts of a key may have together; both lengths then fit beside the
    /// flag. A key is a digest and two names: a longer one is a mistake (a whole text, say).
    const LIMIT: usize = (1 << 20) - 1;

    /// # Errors
    ///
    /// The texts are longer than [`Self::LIMIT`] bytes together.
    pub(super) fn new(key: &CacheKey) -> Result<Self, CacheError> {
        let KeyParts { content_hash, model_version, chunk_id } = key.parts();
        let chunk = chunk_id.unwrap_or_default();
        let bytes =
            content_hash.len().saturating_add(model_version.len()).saturating_add(chunk.len());
        if bytes > Self::LIMIT {
            return Err(ErrorKind::KeyTooLong { bytes, limit: Self::LIMIT }.into());
        }
        let mut text = String::with_capacity(bytes);
        text.push_str(content_hash);
        text.push_str(model_version);
        text.push_str(chunk);
        // Lossless: LIMIT is far below the flag.
        let flag = if chunk_id.is_some() { Self::CHUNKED } else { 0 };
        Ok(Self {
            text: text.into_boxed_str(),
            content_len: content_hash.len() as u32,
            model_len: model_version.len() as u32 | flag,
        })
    }

    fn parts(&self) -> KeyParts<'_> {
        let (content_hash, rest) = self.text.split_at(self.content_len as usize);
        let (model_version, chunk) = rest.split_at((self.model_len & !Self::CHUNKED) as usize);
        let chunk_id = (self.model_len & Self::CHUNKED != 0).then_some(chunk);
        KeyParts { content_hash, model_version, chunk_id }
    }

    /// Bytes of the key's heap block.
    pub(super) fn heap_bytes(&self) -> u64 {
        self.text.len() as u64
    }

    pub(super) fn to_cache_key(&self) -> CacheKey {
        let parts = self.parts();
        CacheKey {
            content_hash: parts.content_hash.to_owned(),
            model_version: parts.model_version.to_owned(),
            chunk_id: parts.chunk_id.map(str::to_owned),
        }
    }
}

impl PartialEq for StoredKey {
    fn eq(&self, other: &Self) -> bool {
        (self.content_len, self.model_len) == (other.content_len, other.model_len)
            && self.text == other.text
    }
}

impl Eq for StoredKey {}

impl Hash for StoredKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.parts().hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Vec<CacheKey> {
        let mut keys = Vec::new();
        for content in ["", "a", "ab", "abc", "é"] {
            for model in ["", "b", "bc", "c"] {
                let key = CacheKey::new(content, model);
                keys.extend([key.clone(), key.clone().with_chunk(""), key.with_chunk("c")]);
            }
        }
        keys
    }

    #[test]
    fn stored_form_is_lossless_and_tells_apart_what_the_key_tells_apart() {
        let hasher = ahash::RandomState::with_seeds(1, 2, 3, 4);
        for a in keys() {
            let stored = StoredKey::new(&a).unwrap();
            assert_eq!(stored.to_cache_key(), a);
            assert_eq!(hasher.hash_one(&stored), hasher.hash_one(Probe::from(&a)));
            for b in keys() {
                assert_eq!(Probe::from(&b).equivalent(&stored), a == b, "{a:?} {b:?}");
                assert_eq!(StoredKey::new(&b).unwrap() == stored, a == b, "{a:?} {b:?}");
                if a != b {
                    let (a, b) = (Probe::from(&a), Probe::from(&b));
                    assert_ne!(hasher.hash_one(a), hasher.hash_one(b));
                }
            }
        }
    }

    #[test]
    fn a_key_over_the_limit_is_refused_by_length() {
        let key = CacheKey::new("x".repeat(StoredKey::LIMIT), "m");
        let error = StoredKey::new(&key).err().unwrap();
        assert!(error.is_invalid_key());
        assert!(error.to_string().contains("1048576"), "{error}");
    }

    #[test]
    fn a_stored_key_takes_24_bytes_of_a_slot() {
        assert_eq!(size_of::<StoredKey>(), 24);
        assert_eq!(size_of::<Option<StoredKey>>(), 24);
    }
}
