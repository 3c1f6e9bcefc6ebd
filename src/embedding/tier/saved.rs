//! The nonces of a tier in a snapshot: what is loaded must not be older than an invalidation.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::embedding::{EmbeddingKey, Inner};

use super::attached::Attached;
use super::guard::{Guard, refresh};
use super::namespace::{Namespace, Nonce, Scope};

/// Which keys of a snapshot are in the same namespace as when it was saved.
#[derive(Debug)]
pub(crate) enum Fits {
    /// There is no second tier.
    All,
    Both {
        saved: Namespace,
        now: Arc<Namespace>,
    },
    /// Of one of both nobody knows the nonces.
    None,
}

impl Fits {
    pub(crate) fn holds<K: EmbeddingKey>(&self, key: &K) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Both { saved, now } => {
                let digest = key.tier_digest();
                let [model, tenant, ..] = *digest.as_chunks::<4>().0 else { return false };
                saved.digest(model, tenant) == now.digest(model, tenant)
            }
        }
    }
}

/// Bytes of a scope with its nonce: kind, tag, nonce.
const SCOPE: usize = 21;

impl Namespace {
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.base.to_vec();
        for (scope, nonce) in &self.scopes {
            let (kind, tag) = match *scope {
                Scope::All => (0, [0; 4]),
                Scope::Model(tag) => (1, tag),
                Scope::Tenant(tag) => (2, tag),
            };
            bytes.push(kind);
            bytes.extend_from_slice(&tag);
            bytes.extend_from_slice(nonce);
        }
        bytes
    }

    fn of_bytes(bytes: &[u8]) -> Option<Self> {
        let (base, rest) = bytes.split_first_chunk::<16>()?;
        let (scopes, []) = rest.as_chunks::<SCOPE>() else { return None };
        let scopes = scopes.iter().map(|bytes| {
            let tag = [bytes[1], bytes[2], bytes[3], bytes[4]];
            let scope = match bytes[0] {
                0 => Scope::All,
                1 => Scope::Model(tag),
                2 => Scope::Tenant(tag),
                _ => return None,
            };
            Some((scope, Nonce::try_from(&bytes[5..]).ok()?))
        });
        Some(Self { base: *base, scopes: scopes.collect::<Option<_>>()? })
    }
}

impl<K: EmbeddingKey, S> Inner<K, S> {
    /// The nonces that are known, for the head of a snapshot; empty where there are none, or far more
    /// than it has room for.
    pub(crate) fn namespaces(&self) -> Vec<u8> {
        let known = self.tier.as_ref().and_then(|tier| tier.guard.known());
        let bytes = known.map_or_else(Vec::new, |known| known.to_bytes());
        if bytes.len() > 1 << 20 { Vec::new() } else { bytes }
    }
}

impl<K: EmbeddingKey, S> Inner<K, S> {
    /// Which keys of a snapshot with these nonces may be loaded. Where those of the tier are not known
    /// yet, waits for them for up to twice the hard time-out: on a thread that may block.
    pub(crate) fn fits(self: &Arc<Self>, saved: &[u8]) -> Fits {
        let Some(tier) = &self.tier else { return Fits::All };
        let Some(saved) = Namespace::of_bytes(saved) else { return Fits::None };
        match known_soon(self, tier) {
            Some(now) => Fits::Both { saved, now },
            None => Fits::None,
        }
    }
}

fn known_soon<K: EmbeddingKey, S>(
    inner: &Arc<Inner<K, S>>,
    Attached { guard, starters }: &Attached<K, S>,
) -> Option<Arc<Namespace>> {
    if let Some(known) = guard.known() {
        return Some(known);
    }
    (starters.refresh)(inner, guard);
    let started = Instant::now();
    while started.elapsed() < 2 * guard.limits.hard_timeout {
        std::thread::sleep(Duration::from_millis(1));
        if let Some(known) = guard.known() {
            return Some(known);
        }
    }
    None
}

/// Starts a task that asks for the nonces.
pub(super) fn start_refresh<K, S>(inner: &Arc<Inner<K, S>>, guard: &Arc<Guard<K>>)
where
    K: EmbeddingKey,
    S: Send + Sync + 'static,
{
    let Some(runtime) = guard.runtime() else { return };
    let (inner, guard) = (Arc::downgrade(inner), Arc::clone(guard));
    drop(runtime.spawn(async move {
        if let Some(inner) = inner.upgrade() {
            drop(refresh(&inner, &guard).await);
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonces_are_read_back_and_nothing_else_is() {
        let scopes = [Scope::All, Scope::Model([1, 2, 3, 4]), Scope::Tenant([9; 4])];
        let scopes = (5..).zip(scopes).map(|(nonce, scope)| (scope, [nonce; 16])).collect();
        let namespace = Namespace { base: [7; 16], scopes };
        let bytes = namespace.to_bytes();
        assert_eq!(Namespace::of_bytes(&bytes), Some(namespace));
        for length in 0..bytes.len() {
            let read = Namespace::of_bytes(&bytes[..length]);
            assert_eq!(read.is_some(), length >= 16 && (length - 16) % SCOPE == 0);
        }
        let mut unknown = bytes;
        unknown[16] = 3;
        assert_eq!(Namespace::of_bytes(&unknown), None);
    }
}
