//! What makes old entries unreachable: random numbers that are drawn anew, never counted.

use std::collections::BTreeMap;
use std::fmt;

use sha2::{Digest, Sha256};

/// A random number of 16 bytes.
pub type Nonce = [u8; 16];

/// What an invalidation is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Scope {
    /// Everything.
    All,
    /// Every entry with this tag of a model.
    Model([u8; 4]),
    /// Every entry with this tag of a tenant.
    Tenant([u8; 4]),
}

impl Scope {
    /// Under which name a tier keeps the nonce of this scope: `all`, `m:` or `t:` and eight
    /// hexadecimal digits.
    ///
    /// ```
    /// # use embedding_cache::tier::Scope;
    /// assert_eq!(Scope::Model([0xab, 0, 0, 1]).field(), "m:ab000001");
    /// ```
    #[must_use]
    pub fn field(&self) -> String {
        let hex = |tag: &[u8; 4]| format!("{:08x}", u32::from_be_bytes(*tag));
        match self {
            Self::All => "all".into(),
            Self::Model(tag) => format!("m:{}", hex(tag)),
            Self::Tenant(tag) => format!("t:{}", hex(tag)),
        }
    }

    fn of_field(field: &[u8]) -> Option<Self> {
        if field == b"all" {
            return Some(Self::All);
        }
        let (kind, digits) = std::str::from_utf8(field).ok()?.split_once(':')?;
        if digits.len() != 8 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        let tag = u32::from_str_radix(digits, 16).ok()?.to_be_bytes();
        match kind {
            "m" => Some(Self::Model(tag)),
            "t" => Some(Self::Tenant(tag)),
            _ => None,
        }
    }
}

/// The nonces of a tier: one for all that it holds, drawn when it was found without one, and one
/// for each scope that was ever invalidated. Together they make the 8 bytes that stand in every key.
///
/// An invalidation draws a nonce anew. So the old keys are never asked for again; a store that
/// loses its nonces gets others, and what it held before is unreachable, not resurrected.
#[derive(Clone, PartialEq, Eq)]
pub struct Namespace {
    pub(super) base: Nonce,
    pub(super) scopes: BTreeMap<Scope, Nonce>,
}

/// Begins what is hashed for a namespace.
const DOMAIN: &str = "embedding-cache tier namespace v1";

impl Namespace {
    /// The name under which a tier keeps the nonce that is drawn first.
    pub const BASE_FIELD: &'static str = "base";

    /// From what a tier has stored by name. `None` without a base of 16 bytes: then the tier has to
    /// draw one. Names and lengths that are not known are passed over.
    ///
    /// ```
    /// # use embedding_cache::tier::{Namespace, Scope};
    /// let base = (Namespace::BASE_FIELD.as_bytes(), &[1; 16][..]);
    /// assert!(Namespace::from_fields([base, (Scope::All.field().as_bytes(), &[2; 16][..])]).is_some());
    /// assert!(Namespace::from_fields([(&b"all"[..], &[2; 16][..])]).is_none());
    /// ```
    pub fn from_fields<'a>(fields: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> Option<Self> {
        let (mut base, mut scopes) = (None, BTreeMap::new());
        for (field, value) in fields {
            let Ok(nonce) = Nonce::try_from(value) else { continue };
            if field == Self::BASE_FIELD.as_bytes() {
                base = Some(nonce);
            } else if let Some(scope) = Scope::of_field(field) {
                scopes.insert(scope, nonce);
            }
        }
        Some(Self { base: base?, scopes })
    }

    /// The 8 bytes for keys of a model and a tenant. A scope that was never invalidated counts as
    /// zeros.
    pub(super) fn digest(&self, model: [u8; 4], tenant: [u8; 4]) -> [u8; 8] {
        let nonce = |scope| self.scopes.get(&scope).copied().unwrap_or_default();
        let hash = Sha256::new_with_prefix(DOMAIN)
            .chain_update(self.base)
            .chain_update(nonce(Scope::All))
            .chain_update(nonce(Scope::Model(model)))
            .chain_update(nonce(Scope::Tenant(tenant)));
        let digest: [u8; 32] = hash.finalize().into();
        let [a, b, c, d, e, f, g, h, ..] = digest;
        [a, b, c, d, e, f, g, h]
    }

    /// What was invalidated between `self` and `later`. Everything if the base is another: the store
    /// has lost what it knew, so nobody can say what else was invalidated.
    pub(super) fn changes(&self, later: &Self) -> Vec<Scope> {
        if self.base != later.base {
            return vec![Scope::All];
        }
        let scopes = self.scopes.keys().chain(later.scopes.keys());
        let mut changed: Vec<Scope> = scopes
            .filter(|scope| self.scopes.get(scope) != later.scopes.get(scope))
            .copied()
            .collect();
        changed.sort_unstable();
        changed.dedup();
        changed
    }
}

/// The number of scopes; nonces are nobody's business.
impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Namespace").field("scopes", &self.scopes.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(base: u8, scopes: &[(Scope, u8)]) -> Namespace {
        let scopes = scopes.iter().map(|&(scope, nonce)| (scope, [nonce; 16])).collect();
        Namespace { base: [base; 16], scopes }
    }

    #[test]
    fn a_nonce_drawn_anew_moves_the_keys_of_its_scope_and_no_others() {
        let (a, b) = ([1, 0, 0, 0], [2, 0, 0, 0]);
        let before = namespace(1, &[]);
        let after = namespace(1, &[(Scope::Model(a), 9)]);
        assert_ne!(before.digest(a, b), after.digest(a, b));
        assert_eq!(before.digest(b, a), after.digest(b, a), "a tenant's tag is no model's");
        for moved in [namespace(1, &[(Scope::All, 9)]), namespace(2, &[])] {
            assert_ne!(before.digest(b, a), moved.digest(b, a));
        }
    }

    #[test]
    fn what_changed_is_what_was_invalidated_and_a_lost_base_is_everything() {
        let (model, tenant) = (Scope::Model([1; 4]), Scope::Tenant([1; 4]));
        let before = namespace(1, &[(model, 1)]);
        assert_eq!(before.changes(&before), []);
        assert_eq!(before.changes(&namespace(1, &[(model, 2), (tenant, 1)])), [model, tenant]);
        assert_eq!(before.changes(&namespace(1, &[])), [model], "a nonce lost is one changed");
        assert_eq!(before.changes(&namespace(2, &[(model, 1)])), [Scope::All]);
    }

    #[test]
    fn fields_are_read_back_and_nonsense_is_passed_over() {
        let scopes = [Scope::All, Scope::Model([0xAB, 0, 1, 2]), Scope::Tenant([0; 4])];
        let mut fields = vec![(b"base".to_vec(), vec![1; 16])];
        fields.extend(scopes.iter().map(|scope| (scope.field().into_bytes(), vec![2; 16])));
        for nonsense in ["", "m:", "m:1", "m:0123456g", "x:00000000", "m:+0000001", "base2"] {
            fields.push((nonsense.into(), vec![3; 16]));
        }
        fields.push((Scope::Model([9; 4]).field().into_bytes(), vec![3; 15]));
        let read =
            Namespace::from_fields(fields.iter().map(|(name, value)| (&name[..], &value[..])));
        assert_eq!(read.unwrap(), namespace(1, &scopes.map(|scope| (scope, 2))));
    }
}
