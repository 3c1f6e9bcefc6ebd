//! The documented key.

use std::fmt;
use std::sync::Arc;

use crate::error::CacheError;

use super::ContentKey;
use super::form::Form;
use super::names::{ModelName, TenantName};
use super::spec::KeySpec;
use super::stored::{Probe, StoredKey};

/// What an embedding was computed from: the text (by its hash), the model, and optionally which
/// chunk of a document it is.
///
/// Two keys are equal only if all three fields are; the cache hashes each field with its length,
/// so `("ab", "c")` and `("a", "bc")` are different keys. `chunk_id: None` differs from
/// `Some(String::new())`.
///
/// Everything that changes the vector belongs into the key: the revision of the model, the role of
/// the text, a prompt, the dimensions that were asked for. A [`KeySpec`] from
/// [`for_model`](Self::for_model) sees to that; in a key made by hand ([`new`](Self::new)) they have to go
/// into `model_version`. The order is that of the fields.
///
/// # Examples
///
/// ```
/// use embedding_cache::CacheKey;
///
/// let key = CacheKey::new("9f86d081884c7d65", "e5-base@1").with_chunk("7");
/// assert_eq!(key.to_string(), "e5-base@1/9f86d081884c7d65#7");
///
/// let key = CacheKey::for_model("e5-base").revision("1").text("a text");
/// assert_eq!((key.model_version.as_str(), key.content_hash.len()), ("e5-base@1", 64));
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
    /// Starts to say what, beside the text, determines the vectors of `model`; see [`KeySpec`]. Its
    /// keys have the 64 hexadecimal digits of the corresponding [`ContentKey`] as `content_hash`, and
    /// `model` or `model@revision` as `model_version`.
    ///
    /// `model` is the name without a revision; names are taken byte by byte. `O(model)`, two
    /// allocations. Model and revision are part of the key, which a cache refuses over 1 MiB; nothing
    /// else is limited.
    ///
    /// # Examples
    ///
    /// ```
    /// use embedding_cache::CacheKey;
    ///
    /// let spec = CacheKey::for_model("e5-base").revision("1");
    /// let key = spec.text("a text").with_chunk("7");
    /// assert_eq!(key.model_version, "e5-base@1");
    /// ```
    pub fn for_model(model: impl Into<Arc<str>>) -> KeySpec<Self> {
        KeySpec::new(model.into())
    }

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

impl Form for CacheKey {
    type Stored = StoredKey;
    type Probe<'a> = Probe<'a>;

    const OVERHEAD: u64 = crate::ENTRY_OVERHEAD;

    #[inline]
    fn probe(&self) -> Probe<'_> {
        Probe::from(self)
    }

    #[inline]
    fn to_stored(&self) -> Result<StoredKey, CacheError> {
        StoredKey::new(self)
    }

    fn from_stored(stored: &StoredKey) -> Self {
        stored.to_cache_key()
    }

    fn heap_bytes(stored: &StoredKey) -> u64 {
        stored.heap_bytes()
    }

    fn specified(key: ContentKey, model_version: &str) -> Self {
        Self::new(key.to_hex(), model_version)
    }

    fn belongs_to_model(stored: &StoredKey, model: &ModelName) -> bool {
        stored.is_of_model(model)
    }

    fn belongs_to_tenant(stored: &StoredKey, tenant: &TenantName) -> bool {
        stored.is_of_tenant(tenant)
    }

    const KIND: u8 = 1;

    /// How many texts, and each with its length before it.
    fn write(&self, bytes: &mut Vec<u8>) {
        let texts = [Some(&self.content_hash), Some(&self.model_version), self.chunk_id.as_ref()];
        bytes.push(texts.iter().flatten().count() as u8);
        for text in texts.into_iter().flatten() {
            // Lossless: a stored key has at most 1 MiB.
            bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
            bytes.extend_from_slice(text.as_bytes());
        }
    }

    fn read(bytes: &mut &[u8]) -> Option<Self> {
        fn text(bytes: &mut &[u8]) -> Option<String> {
            let (len, rest) = bytes.split_first_chunk()?;
            let (text, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
            *bytes = rest;
            // Copied only once it is known to be there: a length allocates nothing.
            std::str::from_utf8(text).ok().map(str::to_owned)
        }
        let texts = *bytes.split_off_first()?;
        let (content_hash, model_version) = (text(bytes)?, text(bytes)?);
        let chunk_id = match texts {
            2 => None,
            3 => Some(text(bytes)?),
            _ => return None,
        };
        Some(Self { content_hash, model_version, chunk_id })
    }

    #[cfg(feature = "tier")]
    fn tier_digest(&self) -> [u8; 32] {
        super::tier::digest(self)
    }

    #[cfg(feature = "tier")]
    fn tags(stored: &StoredKey) -> ([u8; 4], [u8; 4]) {
        stored.tags()
    }

    #[cfg(feature = "tier")]
    fn model_scope(model: &str) -> [u8; 4] {
        super::tier::model_tag_of(model.as_bytes())
    }
}

impl super::EmbeddingKey for CacheKey {}
