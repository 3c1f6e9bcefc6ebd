//! The compact key: 32 bytes that stand for all that a vector was computed from.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use equivalent::Equivalent;

use crate::error::{CacheError, ErrorKind};

use super::hex;
use super::names::{ModelName, TenantName};
use super::repr::{EmbeddingKey, KeyRepr, halves};

/// What an embedding was computed from, in 32 bytes: no heap, copied like a number.
///
/// Made by a [`KeySpec`](crate::KeySpec) from [`ContentKey::for_model`], it holds a tag of the model (4 bytes), a tag
/// of the tenant (4 bytes, all zero without one) and 24 bytes of a SHA-256 over the text and every
/// setting. Equal keys are equal texts with equal settings, but for a collision of 192 bits: after
/// 2^64 texts, more than any service embeds, the chance of a single one is 2^-65, and to make one on
/// purpose takes some 2^96 hashes. The tags only help to find the entries of a model or a tenant; two
/// names with one tag mean that too much is invalidated, never that a wrong vector is returned. The
/// bytes are specified in `docs/keys.md`, for other languages to make the same.
///
/// The [`CacheKey`](crate::CacheKey) of the same settings and text has the hexadecimal digits of the
/// same 32 bytes as its `content_hash`.
///
/// The order is that of the bytes. [`Display`](fmt::Display) writes 64 lower-case hexadecimal digits,
/// [`FromStr`] reads them in either case.
///
/// With the feature `serde`, a text of the same digits where people read the format (JSON), else 32
/// bytes.
///
/// # Examples
///
/// ```
/// use embedding_cache::{ContentKey, EmbeddingCache, EmbeddingCacheBuilder, Role};
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let cache: EmbeddingCache<ContentKey> =
///     EmbeddingCacheBuilder::new().max_bytes(256 << 20).build()?;
/// let queries = ContentKey::for_model("e5-base").revision("1").role(Role::Query);
///
/// let key = queries.text("how are keys hashed?");
/// cache.put(key, [0.6, 0.8]).await?;
/// assert_eq!(cache.get(&key).await.unwrap(), [0.6, 0.8]);
/// # Ok::<(), embedding_cache::CacheError>(())
/// # }).unwrap();
/// ```
// Aligned as numbers are: inside a result it would else stand one byte after the tag and be moved in
// odd pieces, and what reads it next would wait for all of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(align(8))]
pub struct ContentKey([u8; Self::LEN]);

impl ContentKey {
    /// Bytes of a key.
    const LEN: usize = 32;
    /// Hexadecimal digits of a key.
    const DIGITS: usize = 2 * Self::LEN;

    /// The key with these bytes, which [`as_bytes`](Self::as_bytes) gave or another program computed.
    /// Every 32 bytes are a key. `O(1)`, no allocation.
    ///
    /// ```
    /// # use embedding_cache::ContentKey;
    /// let key = ContentKey::for_model("e5-base").text("a");
    /// assert_eq!(ContentKey::from_bytes(*key.as_bytes()), key);
    /// ```
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes: 4 of the model's tag, 4 of the tenant's, 24 of the digest. `O(1)`, no
    /// allocation.
    ///
    /// ```
    /// # use embedding_cache::ContentKey;
    /// let spec = ContentKey::for_model("e5-base");
    /// let (a, b) = (spec.text("a"), spec.text("b"));
    /// assert_eq!(a.as_bytes()[..4], b.as_bytes()[..4], "one model");
    /// assert_eq!(a.as_bytes()[4..8], [0; 4], "no tenant");
    /// ```
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 lower-case hexadecimal digits: the `content_hash` of the corresponding
    /// [`CacheKey`](crate::CacheKey). One allocation of 64 bytes.
    ///
    /// ```
    /// # use embedding_cache::{CacheKey, ContentKey};
    /// let key = ContentKey::for_model("e5-base").text("a");
    /// assert_eq!(key.to_hex(), CacheKey::for_model("e5-base").text("a").content_hash);
    /// ```
    #[must_use]
    pub fn to_hex(&self) -> String {
        self.with_hex(str::to_owned)
    }

    /// Hands the digits to `use_digits`, without an allocation.
    fn with_hex<T>(&self, use_digits: impl FnOnce(&str) -> T) -> T {
        let digits: [u8; Self::DIGITS] = hex::digits(&self.0);
        match std::str::from_utf8(&digits) {
            Ok(digits) => use_digits(digits),
            Err(error) => unreachable!("hexadecimal digits are ASCII: {error}"),
        }
    }
}

/// All 32 bytes. None is left out, although those of a digest are random: keys may come from outside,
/// and only the keyed hash over all of them resists chosen ones.
impl Hash for ContentKey {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [first, second] = halves(&self.0);
        state.write_u128(first);
        state.write_u128(second);
    }
}

impl From<[u8; 32]> for ContentKey {
    fn from(bytes: [u8; 32]) -> Self {
        Self::from_bytes(bytes)
    }
}

impl From<ContentKey> for [u8; 32] {
    fn from(key: ContentKey) -> Self {
        key.0
    }
}

impl fmt::Display for ContentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with_hex(|digits| f.pad(digits))
    }
}

impl fmt::Debug for ContentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentKey({self})")
    }
}

impl FromStr for ContentKey {
    type Err = CacheError;

    /// Reads 64 hexadecimal digits of either case. `O(1)`, no allocation but for an error.
    ///
    /// # Errors
    ///
    /// [`CacheError::is_invalid_key`] if `text` is not 64 bytes long, or one of them is no
    /// hexadecimal digit; the message names the length, or the first such character and its place.
    ///
    /// # Examples
    ///
    /// ```
    /// use embedding_cache::ContentKey;
    ///
    /// let key = ContentKey::for_model("e5-base").text("a");
    /// assert_eq!(key.to_string().parse::<ContentKey>()?, key);
    /// assert!("12ab".parse::<ContentKey>().unwrap_err().is_invalid_key());
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// ```
    fn from_str(text: &str) -> Result<Self, CacheError> {
        if text.len() != Self::DIGITS {
            let kind = ErrorKind::ContentKeyLength { bytes: text.len(), limit: Self::DIGITS };
            return Err(kind.into());
        }
        let mut bytes = [0; Self::LEN];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let (Some(high), Some(low)) = (hex::value(pair[0]), hex::value(pair[1])) else {
                return Err(not_a_digit(text));
            };
            *byte = high << 4 | low;
        }
        Ok(Self(bytes))
    }
}

/// The error for a text of the right length that has another character than digits.
fn not_a_digit(text: &str) -> CacheError {
    let first = text.char_indices().find(|(_, found)| !found.is_ascii_hexdigit());
    let (index, found) = first.unwrap_or_default();
    ErrorKind::ContentKeyDigit { index, found, limit: ContentKey::DIGITS }.into()
}

#[cfg(feature = "serde")]
mod serialized {
    use serde::de::{Error, SeqAccess, Visitor};

    use super::*;

    impl serde::Serialize for ContentKey {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            if serializer.is_human_readable() {
                self.with_hex(|digits| serializer.serialize_str(digits))
            } else {
                serializer.serialize_bytes(&self.0)
            }
        }
    }

    impl<'de> serde::Deserialize<'de> for ContentKey {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            if deserializer.is_human_readable() {
                deserializer.deserialize_str(Digits)
            } else {
                deserializer.deserialize_bytes(Bytes)
            }
        }
    }

    struct Digits;

    impl Visitor<'_> for Digits {
        type Value = ContentKey;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("64 hexadecimal digits")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<ContentKey, E> {
            text.parse().map_err(E::custom)
        }
    }

    struct Bytes;

    impl<'de> Visitor<'de> for Bytes {
        type Value = ContentKey;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("32 bytes")
        }

        fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<ContentKey, E> {
            let bytes = bytes.try_into().map_err(|_| E::invalid_length(bytes.len(), &self))?;
            Ok(ContentKey(bytes))
        }

        /// Formats that know no bytes make a sequence of them.
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<ContentKey, A::Error> {
            let mut bytes = [0; ContentKey::LEN];
            for (index, byte) in bytes.iter_mut().enumerate() {
                *byte =
                    seq.next_element()?.ok_or_else(|| A::Error::invalid_length(index, &self))?;
            }
            match seq.next_element::<u8>()? {
                Some(_) => Err(A::Error::invalid_length(ContentKey::LEN + 1, &self)),
                None => Ok(ContentKey(bytes)),
            }
        }
    }
}

/// A key to look up with, where it stands.
#[derive(Debug, Clone, Copy)]
pub struct Borrowed<'a>(&'a ContentKey);

impl Hash for Borrowed<'_> {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl Equivalent<ContentKey> for Borrowed<'_> {
    #[inline]
    fn equivalent(&self, stored: &ContentKey) -> bool {
        self.0 == stored
    }
}

impl KeyRepr for ContentKey {
    type Stored = Self;
    type Probe<'a> = Borrowed<'a>;
    type Usual<'a> = Borrowed<'a>;

    /// Its key is 8 bytes larger in the slot than the stored form of a `CacheKey`.
    const OVERHEAD: u64 = crate::ENTRY_OVERHEAD - 8;

    #[inline]
    fn probe(&self) -> Borrowed<'_> {
        Borrowed(self)
    }

    #[inline]
    fn usual(&self) -> Option<Borrowed<'_>> {
        Some(Borrowed(self))
    }

    #[inline]
    fn stored_usual(usual: Borrowed<'_>) -> Self {
        *usual.0
    }

    #[inline]
    fn to_stored(&self) -> Result<Self, CacheError> {
        Ok(*self)
    }

    fn from_stored(stored: &Self) -> Self {
        *stored
    }

    fn heap_bytes(_: &Self) -> u64 {
        0
    }

    fn specified(bytes: [u8; 32], _model_version: &str) -> Self {
        Self(bytes)
    }

    fn belongs_to_model(stored: &Self, model: &ModelName) -> bool {
        stored.0[..4] == model.tag()
    }

    fn belongs_to_tenant(stored: &Self, tenant: &TenantName) -> bool {
        stored.0[4..8] == tenant.tag()
    }

    const KIND: u8 = 2;

    fn write(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.0);
    }

    fn read(bytes: &mut &[u8]) -> Option<Self> {
        let (key, rest) = bytes.split_first_chunk()?;
        *bytes = rest;
        Some(Self(*key))
    }

    #[cfg(feature = "tier")]
    fn tier_digest(&self) -> [u8; 32] {
        self.0
    }

    #[cfg(feature = "tier")]
    fn tags(stored: &Self) -> ([u8; 4], [u8; 4]) {
        super::tier::tags_of(&stored.0)
    }

    #[cfg(feature = "tier")]
    fn model_scope(model: &str) -> [u8; 4] {
        super::names::model_tag(model)
    }
}

impl EmbeddingKey for ContentKey {}
