//! Names by which many entries are found at once: a model's and a tenant's, with the tags that stand
//! for them in a key.

use super::framing::Framing;
use super::hex;

/// What stands in a key for a name: four bytes of its digest.
pub(super) type Tag = [u8; 4];

/// The tag of a key without a tenant; the tag of no tenant.
pub(super) const NO_TENANT: Tag = [0; 4];

/// The 32 bytes of a key: the tags of model and tenant first, then as much of the digest as fits.
pub(super) fn tagged((model, tenant): (Tag, Tag), mut digest: [u8; 32]) -> [u8; 32] {
    digest.copy_within(..24, 8);
    digest[..4].copy_from_slice(&model);
    digest[4..8].copy_from_slice(&tenant);
    digest
}

/// The tag of a model, by its name without a revision.
pub(super) fn model_tag(name: impl AsRef<[u8]>) -> Tag {
    Framing::digest_of("embedding-cache model tag v1", name)
}

/// The tag of a tenant: never [`NO_TENANT`].
pub(super) fn tenant_tag(name: &str) -> Tag {
    or_one(Framing::digest_of("embedding-cache tenant tag v1", name))
}

fn or_one(tag: Tag) -> Tag {
    if tag == NO_TENANT { [0, 0, 0, 1] } else { tag }
}

/// The name of a model, ready to be compared with many stored keys. `O(name)` to make, one
/// allocation.
#[derive(Debug, Clone)]
pub struct ModelName {
    text: Box<str>,
    tag: Tag,
}

impl ModelName {
    /// `name` is the model without a revision: every revision of it is meant.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { text: name.into(), tag: model_tag(name) }
    }

    pub(super) fn tag(&self) -> Tag {
        self.tag
    }

    /// Whether `version` is this model, or this model with `@` and a revision behind it.
    pub(super) fn is_of(&self, version: &[u8]) -> bool {
        matches!(version.strip_prefix(self.text.as_bytes()), Some([] | [b'@', ..]))
    }
}

/// The name of a tenant, ready to be compared with many stored keys. `O(name)` to make, no
/// allocation: keys hold a tenant's tag and nothing else of it.
#[derive(Debug, Clone)]
pub struct TenantName {
    tag: Tag,
    /// The tag as it stands in a text.
    digits: [u8; 8],
}

impl TenantName {
    /// `name` is what [`KeySpec::tenant`](crate::KeySpec::tenant) was given.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let tag = tenant_tag(name);
        Self { tag, digits: hex::digits(&tag) }
    }

    pub(in super::super) fn tag(&self) -> Tag {
        self.tag
    }

    /// Whether `content` is the 32 bytes of a key, in lower-case hexadecimal digits, with this
    /// tenant's tag among them.
    pub(super) fn is_in(&self, content: &[u8]) -> bool {
        content.len() == 64
            && content[8..16] == self.digits
            && content.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_the_first_bytes_of_a_digest_of_its_own_kind() {
        // python3 -c "import hashlib; print(hashlib.sha256(b'embedding-cache model tag v1e5-base').hexdigest()[:8])"
        assert_eq!(hex::digits::<4, 8>(&model_tag("e5-base")), *b"c80f756a");
        assert_eq!(hex::digits::<4, 8>(&tenant_tag("e5-base")), *b"69409f7d");
        assert_ne!(tenant_tag(""), NO_TENANT);
    }

    #[test]
    fn no_tenant_has_the_tag_of_none() {
        assert_eq!(or_one([0; 4]), [0, 0, 0, 1]);
        assert_eq!(or_one([0, 0, 0, 2]), [0, 0, 0, 2]);
        assert_eq!(or_one([1, 0, 0, 0]), [1, 0, 0, 0]);
    }

    #[test]
    fn a_model_is_its_name_or_a_revision_of_it() {
        let model = ModelName::new("e5-base");
        for version in ["e5-base", "e5-base@1", "e5-base@", "e5-base@1@2"] {
            assert!(model.is_of(version.as_bytes()), "{version}");
        }
        for version in ["", "e5", "e5-bas", "e5-base-v2", "e5-base-v2@1", "E5-base", "x@e5-base"] {
            assert!(!model.is_of(version.as_bytes()), "{version}");
        }
        // A name may have an @ of its own; then it is one revision that is meant.
        let revision = ModelName::new("e5-base@1");
        assert!(revision.is_of(b"e5-base@1") && !revision.is_of(b"e5-base@12"));
    }

    #[test]
    fn a_tenant_is_in_a_text_of_64_digits_only() {
        let tenant = TenantName::new("acme");
        let tag = String::from_utf8(tenant.digits.to_vec()).unwrap();
        let content = |before: &str, after: &str| format!("{before}{tag}{after}");
        let (before, after) = ("0".repeat(8), "9af0".repeat(12));
        assert!(tenant.is_in(content(&before, &after).as_bytes()));
        assert!(!TenantName::new("acm").is_in(content(&before, &after).as_bytes()));
        for (before, after) in [
            (&before[1..], &after[..]),
            (&before, &after[1..]),
            ("", ""),
            ("0000000", &format!("{after}0")),
            (&before, &after.to_uppercase()),
            (&before, &format!("{}g", &after[1..])),
            ("0000000é", &after[1..]),
        ] {
            assert!(!tenant.is_in(content(before, after).as_bytes()), "{before} {after}");
        }
    }
}
