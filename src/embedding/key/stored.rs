//! The compact private form in which the cache stores a [`CacheKey`].

use std::hash::{Hash, Hasher};

use equivalent::Equivalent;

use crate::error::{CacheError, ErrorKind};

use super::CacheKey;

/// The lengths of a key's texts: 32 bits for the content hash, 31 for the model version, one for
/// whether a chunk follows. With the length of all three together they frame the texts, so keys
/// with equal frames and equal bytes are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Frame(u64);

impl Frame {
    const CHUNKED: u64 = 1 << 63;

    fn of(key: &CacheKey) -> Self {
        let flag = if key.chunk_id.is_some() { Self::CHUNKED } else { 0 };
        // Lossless up to `StoredKey::LIMIT`; the frame of a longer key equals no stored one's, as
        // the length of all its texts does not.
        Self(
            key.content_hash.len() as u64 & 0xFFFF_FFFF
                | (key.model_version.len() as u64) << 32
                | flag,
        )
    }

    fn content_len(self) -> usize {
        (self.0 & 0xFFFF_FFFF) as usize
    }

    fn model_len(self) -> usize {
        ((self.0 & !Self::CHUNKED) >> 32) as usize
    }

    fn is_chunked(self) -> bool {
        self.0 & Self::CHUNKED != 0
    }
}

/// Both forms of a key are hashed by this, so that they cannot disagree.
#[inline]
fn hash_framed<H: Hasher>(frame: Frame, content: &[u8], model: &[u8], chunk: &[u8], state: &mut H) {
    state.write_u64(frame.0);
    state.write(content);
    state.write(model);
    if frame.is_chunked() {
        state.write(chunk);
    }
}

/// A looked-up key, borrowed: lets a lookup find a [`StoredKey`] without allocating one.
#[derive(Debug)]
pub struct Probe<'a> {
    frame: Frame,
    content: &'a [u8],
    model: &'a [u8],
    chunk: &'a [u8],
}

impl<'a> From<&'a CacheKey> for Probe<'a> {
    #[inline]
    fn from(key: &'a CacheKey) -> Self {
        Self {
            frame: Frame::of(key),
            content: key.content_hash.as_bytes(),
            model: key.model_version.as_bytes(),
            chunk: key.chunk_id.as_deref().unwrap_or_default().as_bytes(),
        }
    }
}

impl Probe<'_> {
    fn len(&self) -> usize {
        self.content.len().saturating_add(self.model.len()).saturating_add(self.chunk.len())
    }
}

impl Hash for Probe<'_> {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash_framed(self.frame, self.content, self.model, self.chunk, state);
    }
}

impl Equivalent<StoredKey> for Probe<'_> {
    #[inline]
    fn equivalent(&self, stored: &StoredKey) -> bool {
        // The lengths stand in the slot, the bytes do not: lengths first.
        if stored.frame != self.frame || stored.text.len() != self.len() {
            return false;
        }
        let (content, model, chunk) = stored.texts();
        // A chunk of no bytes is the usual one: not worth a call to compare memory.
        content == self.content && model == self.model && (chunk.is_empty() || chunk == self.chunk)
    }
}

/// The stored form of a [`CacheKey`]: its three texts in one allocation, 24 bytes in the slot
/// instead of 72, and one heap block to visit for a comparison instead of two or three.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredKey {
    /// `content_hash`, `model_version` and `chunk_id`, one after the other; each is valid UTF-8.
    text: Box<[u8]>,
    frame: Frame,
}

impl StoredKey {
    /// The most bytes that the texts of a key may have together; the frame has room for far more. A
    /// key is a digest and two names: a longer one is a mistake (a whole text, say).
    const LIMIT: usize = 1 << 20;

    /// # Errors
    ///
    /// The texts are longer than [`Self::LIMIT`] bytes together.
    pub(super) fn new(key: &CacheKey) -> Result<Self, CacheError> {
        let probe = Probe::from(key);
        let bytes = probe.len();
        if bytes > Self::LIMIT {
            return Err(ErrorKind::KeyTooLong { bytes, limit: Self::LIMIT }.into());
        }
        let text = [probe.content, probe.model, probe.chunk].concat().into_boxed_slice();
        Ok(Self { text, frame: probe.frame })
    }

    /// Content hash, model version and chunk.
    #[inline]
    fn texts(&self) -> (&[u8], &[u8], &[u8]) {
        let (content, rest) = self.text.split_at(self.frame.content_len());
        let (model, chunk) = rest.split_at(self.frame.model_len());
        (content, model, chunk)
    }

    /// The content hash; usually of digits.
    pub(super) fn content(&self) -> &[u8] {
        self.texts().0
    }

    /// The model, with its revision.
    pub(super) fn model(&self) -> &[u8] {
        self.texts().1
    }

    /// Bytes of the key's heap block.
    pub(super) fn heap_bytes(&self) -> u64 {
        self.text.len() as u64
    }

    pub(super) fn to_cache_key(&self) -> CacheKey {
        // Never lossy: these bytes came from a `CacheKey`.
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let (content, model, chunk) = self.texts();
        CacheKey {
            content_hash: text(content),
            model_version: text(model),
            chunk_id: self.frame.is_chunked().then(|| text(chunk)),
        }
    }
}

impl Hash for StoredKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let (content, model, chunk) = self.texts();
        hash_framed(self.frame, content, model, chunk, state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Vec<CacheKey> {
        let mut keys = Vec::new();
        // Every key is compared with every other: Miri gets fewer.
        let contents = if cfg!(miri) { &["", "ab"][..] } else { &["", "a", "ab", "abc", "é"] };
        for content in contents.iter().copied() {
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
