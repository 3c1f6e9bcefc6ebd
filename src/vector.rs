//! The value of an embedding cache: a vector of `f32` behind one shared allocation.
//!
//! This module knows nothing of caches; errors and both doors build on it.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// An embedding: an immutable vector of `f32` components, cheap to clone.
///
/// All clones share one allocation, so a cache hit costs one reference count instead of a copy of
/// 1.5 to 12 KB. It dereferences to `[f32]` and compares with itself, `Vec<f32>`, slices and arrays,
/// both ways round.
///
/// Making one from a `Vec<f32>` copies the components once (a shared allocation keeps its count in
/// front of them); from an `Arc<[f32]>` it copies nothing. Either way the components are read once,
/// to remember whether all of them are finite: a cache that has to know it need not read them again,
/// when they may have gone from the processor's caches.
///
/// # Examples
///
/// ```
/// use embedding_cache::EmbeddingVector;
///
/// let vector = EmbeddingVector::from(vec![0.6, 0.8]);
/// let same = vector.clone(); // shares the components
/// assert_eq!(same, vec![0.6, 0.8]);
/// assert_eq!(vector.iter().map(|x| x * x).sum::<f32>(), 1.0);
/// assert!(vector.ptr_eq(&same));
/// ```
// In this order: the first word that is never zero, which tells `Some` from `None`, stands between the
// two others. Else the compiler copies these two as one piece, through memory, wherever a vector is
// handed on: a tenth of a hit, together with what the next type avoids.
#[derive(Clone)]
#[repr(C)]
pub struct EmbeddingVector {
    finite: Finite,
    components: Arc<[f32]>,
}

/// Whether all components are known to be finite.
// A whole word, any value of which it may have: of a `bool` and the bytes behind it the compiler
// makes odd pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Finite(usize);

impl Finite {
    pub(crate) const UNKNOWN: Self = Self(0);
    pub(crate) const KNOWN: Self = Self(1);
}

impl From<bool> for Finite {
    fn from(known: bool) -> Self {
        if known { Self::KNOWN } else { Self::UNKNOWN }
    }
}

impl EmbeddingVector {
    /// What a cache has stored. `finite` says whether it looked at that before.
    #[inline]
    pub(crate) fn stored(components: Arc<[f32]>, finite: Finite) -> Self {
        Self { components, finite }
    }

    /// The components. `O(1)`.
    #[must_use]
    pub fn as_slice(&self) -> &[f32] {
        &self.components
    }

    /// The number of components. `O(1)`.
    #[must_use]
    pub fn dimensions(&self) -> usize {
        self.components.len()
    }

    /// A `Vec` of the components. Always copies: the shared allocation holds a count as well.
    ///
    /// ```
    /// # use embedding_cache::EmbeddingVector;
    /// assert_eq!(EmbeddingVector::from([1.0, 2.0]).into_vec(), vec![1.0, 2.0]);
    /// ```
    #[must_use]
    pub fn into_vec(self) -> Vec<f32> {
        self.components.to_vec()
    }

    /// The shared allocation itself. `O(1)`, copies nothing.
    #[must_use]
    pub fn into_shared(self) -> Arc<[f32]> {
        self.components
    }

    /// Whether `self` and `other` are clones of one another, which no comparison of components
    /// needs to find out. `O(1)`.
    #[must_use]
    pub fn ptr_eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.components, &other.components)
    }

    /// A vector of no components, which no cache stores. Allocates nothing.
    pub(crate) fn empty() -> Self {
        Self { components: Arc::default(), finite: Finite::KNOWN }
    }

    /// The first component that is NaN or infinite, with its place. `O(1)` if that is known to be
    /// none.
    pub(crate) fn first_non_finite(&self) -> Option<(usize, f32)> {
        if self.finite == Finite::KNOWN {
            return None;
        }
        self.iter().copied().enumerate().find(|(_, x)| !x.is_finite())
    }
}

/// Bytes of a shared allocation: four a component and two counts in front of them.
pub(crate) fn heap_bytes(components: &[f32]) -> u64 {
    const COUNTS: usize = 2 * size_of::<usize>();
    (size_of_val(components) + COUNTS) as u64
}

/// Whether no component is NaN or infinite.
fn are_finite(components: &[f32]) -> bool {
    // A sum is finite only if all its terms are, so mostly one addition for four components tells
    // all: every vector is read whole for this. As many sums as there are registers for, so that an
    // addition need not wait for the one before. Where finite terms overflow their sum, a second
    // look at each tells.
    const SUMS: usize = 32;
    let (chunks, rest) = components.as_chunks::<SUMS>();
    let add = |sums: [f32; SUMS], chunk: &[f32; SUMS]| -> [f32; SUMS] {
        std::array::from_fn(|lane| sums[lane] + chunk[lane])
    };
    let sums = chunks.iter().fold([0.0; SUMS], add);
    sums.iter().chain(rest).all(|x| x.is_finite()) || components.iter().all(|x| x.is_finite())
}

/// Short on purpose: the dimensions and the first four components.
impl fmt::Debug for EmbeddingVector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 4;
        write!(f, "EmbeddingVector({}-d, [", self.components.len())?;
        for (i, x) in self.components.iter().take(SHOWN).enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{x:?}")?;
        }
        f.write_str(if self.components.len() > SHOWN { ", …])" } else { "])" })
    }
}

impl Deref for EmbeddingVector {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.components
    }
}

impl AsRef<[f32]> for EmbeddingVector {
    fn as_ref(&self) -> &[f32] {
        &self.components
    }
}

impl Borrow<[f32]> for EmbeddingVector {
    fn borrow(&self) -> &[f32] {
        &self.components
    }
}

impl From<Vec<f32>> for EmbeddingVector {
    fn from(components: Vec<f32>) -> Self {
        Arc::<[f32]>::from(components).into()
    }
}

impl From<&[f32]> for EmbeddingVector {
    fn from(components: &[f32]) -> Self {
        Arc::<[f32]>::from(components).into()
    }
}

impl<const N: usize> From<[f32; N]> for EmbeddingVector {
    fn from(components: [f32; N]) -> Self {
        Arc::<[f32]>::from(components).into()
    }
}

impl From<Arc<[f32]>> for EmbeddingVector {
    fn from(components: Arc<[f32]>) -> Self {
        let finite = are_finite(&components).into();
        Self { components, finite }
    }
}

impl From<Box<[f32]>> for EmbeddingVector {
    fn from(components: Box<[f32]>) -> Self {
        Arc::<[f32]>::from(components).into()
    }
}

impl FromIterator<f32> for EmbeddingVector {
    fn from_iter<I: IntoIterator<Item = f32>>(components: I) -> Self {
        components.into_iter().collect::<Arc<[f32]>>().into()
    }
}

impl From<EmbeddingVector> for Vec<f32> {
    fn from(vector: EmbeddingVector) -> Self {
        vector.into_vec()
    }
}

impl PartialEq for EmbeddingVector {
    fn eq(&self, other: &Self) -> bool {
        self.components == other.components
    }
}

impl PartialEq<Vec<f32>> for EmbeddingVector {
    fn eq(&self, other: &Vec<f32>) -> bool {
        *self.components == **other
    }
}

impl PartialEq<EmbeddingVector> for Vec<f32> {
    fn eq(&self, other: &EmbeddingVector) -> bool {
        **self == *other.components
    }
}

impl PartialEq<[f32]> for EmbeddingVector {
    fn eq(&self, other: &[f32]) -> bool {
        *self.components == *other
    }
}

impl PartialEq<EmbeddingVector> for [f32] {
    fn eq(&self, other: &EmbeddingVector) -> bool {
        *self == *other.components
    }
}

impl PartialEq<&[f32]> for EmbeddingVector {
    fn eq(&self, other: &&[f32]) -> bool {
        *self.components == **other
    }
}

impl PartialEq<EmbeddingVector> for &[f32] {
    fn eq(&self, other: &EmbeddingVector) -> bool {
        **self == *other.components
    }
}

impl<const N: usize> PartialEq<[f32; N]> for EmbeddingVector {
    fn eq(&self, other: &[f32; N]) -> bool {
        *self.components == other[..]
    }
}

impl<const N: usize> PartialEq<EmbeddingVector> for [f32; N] {
    fn eq(&self, other: &EmbeddingVector) -> bool {
        self[..] == *other.components
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for EmbeddingVector {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.components.serialize(serializer)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for EmbeddingVector {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::<f32>::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_component_that_is_not_finite_is_found_wherever_it_stands() {
        let extremes = [0.0, -0.0, 1.0, f32::MIN_POSITIVE / 2.0, f32::MAX, f32::MIN, f32::EPSILON];
        let dimensions = if cfg!(miri) { &[1, 17][..] } else { &[1, 2, 15, 16, 17, 33, 100] };
        for &dimensions in dimensions {
            let finite: Vec<f32> = extremes.iter().copied().cycle().take(dimensions).collect();
            assert_eq!(EmbeddingVector::from(&finite[..]).first_non_finite(), None);
            let huge = EmbeddingVector::from(vec![f32::MAX; dimensions]);
            assert_eq!(huge.first_non_finite(), None, "though their sum is infinite");
            for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for place in 0..dimensions {
                    let mut components = finite.clone();
                    components[place] = bad;
                    components[dimensions - 1] = bad;
                    let found = EmbeddingVector::from(components).first_non_finite();
                    let (at, value) = found.expect("one is not finite");
                    assert_eq!((at, value.to_bits()), (place, bad.to_bits()));
                }
            }
        }
    }
}
