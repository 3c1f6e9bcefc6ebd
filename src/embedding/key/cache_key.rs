//! The documented key.

use std::fmt;

/// What an embedding was computed from: the text (by its hash), the model, and optionally which
/// chunk of a document it is.
///
/// Two keys are equal only if all three fields are; the cache hashes each field with its length,
/// so `("ab", "c")` and `("a", "bc")` are different keys. `chunk_id: None` differs from
/// `Some(String::new())`.
///
/// Everything that changes the vector belongs into the key: the revision of the model, the role of
/// the text, a prompt, the dimensions that were asked for. A [`KeySpec`](crate::KeySpec) from
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
