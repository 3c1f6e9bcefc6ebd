//! Which vectors may be stored at all.

use crate::error::ErrorKind;
use crate::vector::EmbeddingVector;

use super::key::names::ModelName;

/// What a vector must be like. Checked outside the locks, before anything is changed.
#[derive(Debug, Default)]
pub(super) struct Admission {
    pub(super) allow_non_finite: bool,
    /// For every model that `by_model` does not name.
    pub(super) dimensions: Option<usize>,
    pub(super) by_model: Vec<(ModelName, usize)>,
}

impl Admission {
    /// Says what is wrong with `vector` as the embedding of a key, if anything is; `is_of` says whether
    /// the key is of a model, and is asked only where one has dimensions of its own. `O(dimensions +
    /// models with dimensions of their own)`.
    // In line is what nearly every vector comes to: a look at each thing that may be asked for.
    #[inline]
    pub(super) fn check(
        &self,
        vector: &EmbeddingVector,
        is_of: impl Fn(&ModelName) -> bool,
    ) -> Result<(), ErrorKind> {
        let asks_for_dimensions = self.dimensions.is_some() || !self.by_model.is_empty();
        if vector.is_empty() || asks_for_dimensions {
            self.check_dimensions(vector.dimensions(), is_of)?;
        }
        if self.allow_non_finite {
            return Ok(());
        }
        match vector.first_non_finite() {
            Some((index, value)) => {
                Err(ErrorKind::NonFinite { index, dimensions: vector.dimensions(), value })
            }
            None => Ok(()),
        }
    }

    #[inline(never)]
    fn check_dimensions(
        &self,
        found: usize,
        is_of: impl Fn(&ModelName) -> bool,
    ) -> Result<(), ErrorKind> {
        if found == 0 {
            return Err(ErrorKind::EmptyVector);
        }
        let own = self.by_model.iter().find(|(model, _)| is_of(model));
        match own.map(|&(_, dimensions)| dimensions).or(self.dimensions) {
            Some(expected) if expected != found => {
                Err(ErrorKind::WrongDimensions { found, expected })
            }
            _ => Ok(()),
        }
    }
}
