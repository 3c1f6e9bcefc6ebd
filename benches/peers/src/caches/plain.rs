//! Caches of plain vectors, as users of a cache for any value have them.
//!
//! [`EmbeddingVector`] carries what only this crate's door asks for; nobody else is to store it.

use std::sync::Arc;

use embedding_cache::EmbeddingVector;

use super::{Cache, Limits, Visitor};
use crate::keys::{Key, Value};

/// A vector as caches for any value have it.
pub(crate) type Components = Arc<[f32]>;

/// A cache of plain vectors, given embeddings.
pub(super) struct Plain<C>(C);

impl<K: Key, C: Cache<K, Components>> Cache<K, EmbeddingVector> for Plain<C> {
    type Found = C::Found;

    const EVICTS: bool = C::EVICTS;
    const WEIGHS: bool = C::WEIGHS;
    const EXPIRES: bool = C::EXPIRES;

    #[inline(always)]
    fn get(&self, key: &K) -> Option<C::Found> {
        self.0.get(key)
    }

    #[inline(always)]
    fn components(found: &C::Found) -> &[f32] {
        C::components(found)
    }

    #[inline(always)]
    fn put(&self, key: K, value: EmbeddingVector) {
        self.0.put(key, value.into_shared());
    }

    #[inline(always)]
    fn get_many(&self, keys: &[K]) -> Vec<Option<C::Found>> {
        self.0.get_many(keys)
    }

    fn settle(&self) {
        self.0.settle();
    }

    fn clean_up(&self) {
        self.0.clean_up();
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

/// Shows caches of plain vectors to a visitor of caches of embeddings.
pub(super) struct Plainly<'a, T>(pub(super) &'a mut T);

impl<K: Key, T: Visitor<K, EmbeddingVector>> Visitor<K, Components> for Plainly<'_, T> {
    fn visit<C: Cache<K, Components>>(
        &mut self,
        name: String,
        make: impl Fn(&Limits) -> C + Send + Sync + 'static,
    ) {
        self.0.visit(name, move |limits| Plain(make(limits)));
    }
}

impl Value for Components {
    fn heap(&self) -> u64 {
        // The components and the two counts in front of them.
        4 * self.len() as u64 + 16
    }

    #[inline(always)]
    fn components(&self) -> &[f32] {
        self
    }
}
