//! The compact private form in which the cache stores a [`CacheKey`].
//!
//! Nearly every key is a digest in hexadecimal digits and a model. Such a key is stored as 32 bytes
//! of digits, two in each, and the number of the model: it stands in its slot entirely, so that a hit
//! visits no heap block of a key, and an entry takes some hundred bytes less. Every other key is
//! stored as its texts, one after the other in one block.
//!
//! Both forms give the key back exactly. Which one it is depends on the key alone, so equal keys are
//! stored alike.

use std::hash::{Hash, Hasher};

use equivalent::Equivalent;

use crate::error::{CacheError, ErrorKind};

use super::cache_key::CacheKey;
use super::hex::{self, Packed};
use super::interner::ModelId;
use super::names::{ModelName, TenantName};
use super::repr::{EmbeddingKey, KeyRepr};
#[cfg(feature = "tier")]
use super::tier;

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

/// The usual key: its content hash, and its model. Also what such a key is looked up with.
#[derive(Debug, Clone, Copy, Eq)]
pub struct Compact {
    digest: Packed,
    model: ModelId,
}

impl Compact {
    /// `None` if the key is another: not 64 lower-case digits, with a chunk, or of a model without
    /// a number.
    // Always: as a call it costs a put 29 instructions.
    #[inline(always)]
    fn of(key: &CacheKey) -> Option<Self> {
        let digits: &[u8; 64] = key.content_hash.as_bytes().try_into().ok()?;
        if key.chunk_id.is_some() {
            return None;
        }
        let model = ModelId::named(&key.model_version)?;
        Some(Self { digest: Packed::of(digits)?, model })
    }
}

impl PartialEq for Compact {
    // Not derived: one after the other is less than both, joined.
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        if self.model != other.model {
            return false;
        }
        self.digest == other.digest
    }
}

impl Hash for Compact {
    /// The whole digest, as that of a [`ContentKey`](super::ContentKey) is, and in it the number of the
    /// model, which spares a round for it. Times a constant, so that digests that are consecutive
    /// numbers do not meet. To a digest of one model there is then one of each other model, no more,
    /// that has the same hash: a client that can choose digests comes to as many such keys as there are
    /// numbers, 64, and for more has to break the hash function.
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [first, second] = self.digest.halves();
        // No overflow, as numbers are below 2^32.
        let model = u64::from(self.model.number().get()) * 0x7FEB_352D;
        state.write_u128(first);
        state.write_u128(second ^ u128::from(model));
    }
}

/// The texts of a key, borrowed.
#[derive(Debug, Clone, Copy)]
struct Texts<'a> {
    frame: Frame,
    content: &'a [u8],
    model: &'a [u8],
    chunk: &'a [u8],
}

impl<'a> Texts<'a> {
    fn of(key: &'a CacheKey) -> Self {
        Self {
            frame: Frame::of(key),
            content: key.content_hash.as_bytes(),
            model: key.model_version.as_bytes(),
            chunk: key.chunk_id.as_deref().unwrap_or_default().as_bytes(),
        }
    }

    // Never, as `Block::is_of`: the way of the usual keys is to be short, and in line.
    #[cold]
    #[inline(never)]
    fn hash_of<H: Hasher>(key: &'a CacheKey, state: &mut H) {
        Self::of(key).hash(state);
    }

    fn len(&self) -> usize {
        self.content.len().saturating_add(self.model.len()).saturating_add(self.chunk.len())
    }
}

impl Hash for Texts<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.frame.0);
        state.write(self.content);
        state.write(self.model);
        if self.frame.is_chunked() {
            state.write(self.chunk);
        }
    }
}

/// A looked-up key, borrowed: lets a lookup find a [`StoredKey`] without allocating one.
#[derive(Debug)]
pub struct Probe<'a> {
    /// `None` if the key is stored as its texts.
    compact: Option<Compact>,
    key: &'a CacheKey,
}

impl<'a> From<&'a CacheKey> for Probe<'a> {
    // Always: see `KeyRepr::probe`, which is nothing but this.
    #[inline(always)]
    fn from(key: &'a CacheKey) -> Self {
        Self { compact: Compact::of(key), key }
    }
}

impl Hash for Probe<'_> {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        match &self.compact {
            Some(compact) => compact.hash(state),
            None => Texts::hash_of(self.key, state),
        }
    }
}

impl Equivalent<StoredKey> for Compact {
    #[inline]
    fn equivalent(&self, stored: &StoredKey) -> bool {
        matches!(&stored.0, Stored::Compact(stored) if self == stored)
    }
}

impl Equivalent<StoredKey> for Probe<'_> {
    #[inline]
    fn equivalent(&self, stored: &StoredKey) -> bool {
        match (&self.compact, &stored.0) {
            (Some(probe), _) => probe.equivalent(stored),
            (None, Stored::Texts(stored)) => stored.is_of(self.key),
            (None, Stored::Compact(_)) => false,
        }
    }
}

/// The stored form of a [`CacheKey`]: 40 bytes in the slot.
#[derive(Debug, Clone, Eq)]
pub struct StoredKey(Stored);

impl PartialEq for StoredKey {
    // Not derived: that asks first whether both forms are the same.
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Stored::Compact(one), _) => one.equivalent(other),
            (Stored::Texts(one), Stored::Texts(other)) => one.is(other),
            (Stored::Texts(_), Stored::Compact(_)) => false,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Stored {
    Compact(Compact),
    Texts(Block),
}

/// The texts of a key in one heap block.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Block {
    /// `content_hash`, `model_version` and `chunk_id`, one after the other; each is valid UTF-8.
    text: Box<[u8]>,
    frame: Frame,
}

impl Block {
    fn texts(&self) -> Texts<'_> {
        let (content, rest) = self.text.split_at(self.frame.content_len());
        let (model, chunk) = rest.split_at(self.frame.model_len());
        Texts { frame: self.frame, content, model, chunk }
    }

    // Never, as `Texts::hash_of`.
    #[cold]
    #[inline(never)]
    fn hash_texts<H: Hasher>(&self, state: &mut H) {
        self.texts().hash(state);
    }

    #[cold]
    #[inline(never)]
    fn is(&self, other: &Self) -> bool {
        self == other
    }

    #[cold]
    #[inline(never)]
    fn is_of(&self, key: &CacheKey) -> bool {
        let probe = Texts::of(key);
        // The lengths stand in the slot, the bytes do not: lengths first.
        if self.frame != probe.frame || self.text.len() != probe.len() {
            return false;
        }
        let own = self.texts();
        own.content == probe.content && own.model == probe.model && own.chunk == probe.chunk
    }
}

impl StoredKey {
    /// The most bytes that the texts of a key may have together; the frame has room for far more. A
    /// key is a digest and two names: a longer one is a mistake (a whole text, say).
    const LIMIT: usize = 1 << 20;

    /// # Errors
    ///
    /// The texts are longer than [`Self::LIMIT`] bytes together.
    #[inline]
    pub(super) fn new(key: &CacheKey) -> Result<Self, CacheError> {
        match Compact::of(key) {
            Some(compact) => Ok(Self(Stored::Compact(compact))),
            None => Self::of_texts(key),
        }
    }

    #[cold]
    #[inline(never)]
    fn of_texts(key: &CacheKey) -> Result<Self, CacheError> {
        let texts = Texts::of(key);
        let bytes = texts.len();
        if bytes > Self::LIMIT {
            return Err(ErrorKind::KeyTooLong { bytes, limit: Self::LIMIT }.into());
        }
        let text = [texts.content, texts.model, texts.chunk].concat().into_boxed_slice();
        Ok(Self(Stored::Texts(Block { text, frame: texts.frame })))
    }

    /// Whether this is a key of `model`, whatever the revision.
    pub(super) fn is_of_model(&self, model: &ModelName) -> bool {
        match &self.0 {
            Stored::Compact(compact) => model.is_of(compact.model.name().as_bytes()),
            Stored::Texts(block) => model.is_of(block.texts().model),
        }
    }

    /// Whether this looks like a key that was made for `tenant`.
    pub(super) fn is_of_tenant(&self, tenant: &TenantName) -> bool {
        match &self.0 {
            Stored::Compact(Compact { digest, .. }) => {
                [4, 5, 6, 7].map(|at| digest.byte(at)) == tenant.tag()
            }
            Stored::Texts(block) => tenant.is_in(block.texts().content),
        }
    }

    /// The tags of the model and of the tenant in a second tier.
    #[cfg(feature = "tier")]
    pub(super) fn tags(&self) -> (super::names::Tag, super::names::Tag) {
        match &self.0 {
            Stored::Compact(Compact { digest, model }) => {
                (tier::model_tag_of(model.name().as_bytes()), tier::tenant_tag_in(digest))
            }
            Stored::Texts(block) => {
                let Texts { content, model, .. } = block.texts();
                (tier::model_tag_of(model), tier::tenant_tag_of(content))
            }
        }
    }

    /// Bytes of the key's heap block, if it has one.
    pub(super) fn heap_bytes(&self) -> u64 {
        match &self.0 {
            Stored::Compact(_) => 0,
            Stored::Texts(block) => block.text.len() as u64,
        }
    }

    pub(super) fn to_cache_key(&self) -> CacheKey {
        // Never lossy: these bytes came from a `CacheKey`.
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match &self.0 {
            Stored::Compact(Compact { digest, model }) => {
                CacheKey::new(text(&digest.digits()), model.name())
            }
            Stored::Texts(block) => {
                let Texts { frame, content, model, chunk } = block.texts();
                CacheKey {
                    content_hash: text(content),
                    model_version: text(model),
                    chunk_id: frame.is_chunked().then(|| text(chunk)),
                }
            }
        }
    }
}

impl Hash for StoredKey {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        match &self.0 {
            Stored::Compact(compact) => compact.hash(state),
            Stored::Texts(block) => block.hash_texts(state),
        }
    }
}

impl KeyRepr for CacheKey {
    type Stored = StoredKey;
    type Probe<'a> = Probe<'a>;
    type Usual<'a> = Compact;

    const OVERHEAD: u64 = crate::ENTRY_OVERHEAD;

    // Always: as a call it costs a get 17 instructions.
    #[inline(always)]
    fn probe(&self) -> Probe<'_> {
        Probe::from(self)
    }

    #[inline(always)]
    fn usual(&self) -> Option<Compact> {
        Compact::of(self)
    }

    #[inline]
    fn stored_usual(usual: Compact) -> StoredKey {
        StoredKey(Stored::Compact(usual))
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

    fn specified(bytes: [u8; 32], model_version: &str) -> Self {
        let digits = hex::digits::<32, 64>(&bytes);
        Self::new(String::from_utf8_lossy(&digits), model_version)
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
        tier::digest(self)
    }

    #[cfg(feature = "tier")]
    fn tags(stored: &StoredKey) -> ([u8; 4], [u8; 4]) {
        stored.tags()
    }

    #[cfg(feature = "tier")]
    fn model_scope(model: &str) -> [u8; 4] {
        tier::model_tag_of(model.as_bytes())
    }
}

impl EmbeddingKey for CacheKey {}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Vec<CacheKey> {
        let mut keys = Vec::new();
        // Every key is compared with every other: Miri gets fewer.
        let digest = |digit: &str| digit.repeat(64);
        let digests = [digest("a"), digest("0"), digest("A"), digest("g"), "f0".repeat(31) + "f"];
        let few = cfg!(miri);
        let mut contents = if few { vec!["ab"] } else { vec!["", "a", "ab", "abc", "é"] };
        contents.extend(digests.iter().take(if few { 1 } else { 5 }).map(String::as_str));
        let models = if few { &["", "b"][..] } else { &["", "b", "bc", "c"] };
        for content in contents.iter().copied() {
            for model in models.iter().copied() {
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
            if let Some(usual) = a.usual() {
                assert_eq!(hasher.hash_one(&stored), hasher.hash_one(usual));
                assert_eq!(CacheKey::stored_usual(usual), stored);
            }
            for b in keys() {
                assert_eq!(Probe::from(&b).equivalent(&stored), a == b, "{a:?} {b:?}");
                let usual = b.usual().map_or(a == b, |usual| usual.equivalent(&stored));
                assert_eq!(usual, a == b, "{a:?} {b:?}");
                assert_eq!(StoredKey::new(&b).unwrap() == stored, a == b, "{a:?} {b:?}");
                if a != b {
                    let (a, b) = (Probe::from(&a), Probe::from(&b));
                    assert_ne!(hasher.hash_one(a), hasher.hash_one(b));
                }
            }
        }
    }

    /// Keys that nearly are those that are stored in the compact form, and these.
    #[cfg(not(miri))]
    fn nearly_usual() -> impl proptest::strategy::Strategy<Value = CacheKey> {
        use proptest::prelude::*;
        let digit = prop::sample::select(Vec::from(b"0123456789abcdef"));
        let other = prop::char::range(' ', '~').prop_map(|other| other as u8);
        let digit = prop_oneof![500 => digit, 1 => other];
        let length = prop_oneof![8 => Just(64), 1 => Just(63), 1 => Just(65)];
        let content =
            (prop::collection::vec(digit, 65), length).prop_map(|(mut digits, length)| {
                digits.truncate(length);
                digits.into_iter().map(char::from).collect::<String>()
            });
        let chunk = prop_oneof![9 => Just(None), 1 => Just(Some(String::new()))];
        // A few, as the process has few numbers; and some of those that another test gives them to.
        let length = prop_oneof![0..2_usize, 15..18_usize, 32..35_usize, 256..258_usize];
        let model = prop_oneof![
            length.prop_map(|length| "x".repeat(length)),
            (0..128).prop_map(|number| format!("model {number}")),
        ];
        (content, model, chunk).prop_map(|(content_hash, model_version, chunk_id)| CacheKey {
            content_hash,
            model_version,
            chunk_id,
        })
    }

    #[cfg(not(miri))]
    proptest::proptest! {
        #[test]
        fn every_form_of_a_key_hashes_and_compares_as_the_stored_one(
            key in nearly_usual(), other in nearly_usual(), at in 0..65_usize, digit in "[0-9a-fA-F:`/@g]",
        ) {
            use proptest::prelude::*;
            let hasher = ahash::RandomState::with_seeds(1, 2, 3, 4);
            // Another by one character, or the same.
            let mut near = key.clone();
            let at = at.min(near.content_hash.len() - 1);
            near.content_hash.replace_range(at..=at, &digit);
            let stored = StoredKey::new(&key).unwrap();
            prop_assert_eq!(&stored.to_cache_key(), &key);
            for other in [&key, &other, &near] {
                let (same, own) = (*other == key, StoredKey::new(other).unwrap());
                prop_assert_eq!(own == stored, same);
                prop_assert_eq!(Probe::from(other).equivalent(&stored), same);
                prop_assert_eq!(hasher.hash_one(Probe::from(other)), hasher.hash_one(&own));
                let usual = other.usual();
                prop_assert_eq!(usual.is_some(), matches!(own.0, Stored::Compact(_)));
                if let Some(usual) = usual {
                    prop_assert_eq!(usual.equivalent(&stored), same);
                    prop_assert_eq!(hasher.hash_one(usual), hasher.hash_one(&own));
                    prop_assert_eq!(CacheKey::stored_usual(usual), own);
                }
            }
        }
    }

    #[test]
    fn digests_that_are_consecutive_numbers_hash_apart_for_every_model() {
        let hasher = ahash::RandomState::with_seeds(1, 2, 3, 4);
        let (numbers, models) = if cfg!(miri) { (8, 2) } else { (4096, 8) };
        let mut hashes = std::collections::HashSet::new();
        for (number, model) in (0..numbers).flat_map(|n| (0..models).map(move |m| (n, m))) {
            // Counted at either end of the digest.
            for digest in [format!("{number:064x}"), format!("{number:08x}{:056x}", u64::MAX)] {
                let key = CacheKey::new(digest, format!("model {model}"));
                assert!(hashes.insert(hasher.hash_one(Probe::from(&key))), "{key}");
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
    fn a_stored_key_takes_40_bytes_of_a_slot() {
        use std::sync::Arc;
        assert_eq!(size_of::<StoredKey>(), 40);
        // Nor does it take more for a slot to be empty.
        assert_eq!(size_of::<Option<(StoredKey, Arc<[f32]>)>>(), 56);
    }
}
