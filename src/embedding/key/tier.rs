//! The 32 bytes of a [`CacheKey`] in a second tier.

use crate::embedding::tier::texts_digest;

use super::names::{NO_TENANT, Tag, model_tag};
use super::{CacheKey, hex};

pub(super) fn digest(key: &CacheKey) -> [u8; 32] {
    let tags =
        (model_tag_of(key.model_version.as_bytes()), tenant_tag_of(key.content_hash.as_bytes()));
    texts_digest(tags, &key.content_hash, &key.model_version, key.chunk_id.as_deref())
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
    digits.ok().and_then(hex::bytes).map_or(NO_TENANT, |bytes| tags_of(&bytes).1)
}

/// The tags that begin the bytes of a key that a specification has made.
pub(super) fn tags_of(bytes: &[u8; 32]) -> (Tag, Tag) {
    let [a, b, c, d, e, f, g, h, ..] = *bytes;
    ([a, b, c, d], [e, f, g, h])
}
