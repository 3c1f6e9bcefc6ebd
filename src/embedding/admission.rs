//! Which vectors may be stored at all.

use crate::error::ErrorKind;
use crate::vector::EmbeddingVector;

use super::key::names::ModelName;
use super::{EmbeddingKey, Stored};

/// What a vector must be like. Checked outside the locks, before anything is changed.
#[derive(Debug, Default)]
pub(super) struct Admission {
    pub(super) allow_non_finite: bool,
    /// For every model that `by_model` does not name.
    pub(super) dimensions: Option<usize>,
    pub(super) by_model: Vec<(ModelName, usize)>,
}

impl Admission {
    /// Says what is wrong with `vector` as the embedding of `key`, if anything is. `O(dimensions +
    /// models with dimensions of their own)`.
    pub(super) fn check<K: EmbeddingKey>(
        &self,
        key: &Stored<K>,
        vector: &EmbeddingVector,
    ) -> Result<(), ErrorKind> {
        if vector.is_empty() {
            return Err(ErrorKind::EmptyVector);
        }
        let found = vector.dimensions();
        let own = self.by_model.iter().find(|(model, _)| K::belongs_to_model(key, model));
        match own.map(|&(_, dimensions)| dimensions).or(self.dimensions) {
            Some(expected) if expected != found => {
                return Err(ErrorKind::WrongDimensions { found, expected });
            }
            _ => {}
        }
        if self.allow_non_finite {
            return Ok(());
        }
        match vector.first_non_finite() {
            Some((index, value)) => Err(ErrorKind::NonFinite { index, dimensions: found, value }),
            None => Ok(()),
        }
    }
}
