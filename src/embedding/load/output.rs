//! What a model call is asked for, and what it may answer.

use std::error::Error;
use std::sync::Arc;

use crate::error::{CacheError, ErrorKind};
use crate::vector::EmbeddingVector;

/// What a caller gets for one key.
pub(crate) type Answer = Result<EmbeddingVector, CacheError>;

/// The keys of a batch that a model call has to embed: each once, in the order in which the batch
/// first names them, at most [`max_batch`](super::Load::max_batch) of them.
///
/// A key says what an embedding was made from, but not the text itself. So this also knows where in
/// the batch each key stands: [`select`](Self::select) picks what belongs to them from a slice that
/// is parallel to the keys.
///
/// # Examples
///
/// ```
/// use embedding_cache::{CacheKey, EmbeddingCache};
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let cache = EmbeddingCache::new(100, 3600, 10);
/// let texts = ["red", "green", "red"];
/// let keys = texts.map(|text| CacheKey::new(text, "toy"));
///
/// let answers = cache.get_or_embed_many(&keys, |missing| {
///     assert_eq!(missing.positions(), [0, 1]); // "red" is asked for once
///     let texts: Vec<&str> = missing.select(&texts).copied().collect();
///     async move { texts.iter().map(|text| [text.len() as f32]).collect::<Vec<_>>() }
/// });
/// let lengths: Vec<f32> = answers.await.into_iter().map(|answer| answer.unwrap()[0]).collect();
/// assert_eq!(lengths, [3.0, 5.0, 3.0]);
/// # });
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing<K> {
    keys: Vec<K>,
    positions: Vec<usize>,
}

impl<K> Missing<K> {
    pub(super) fn new() -> Self {
        Self { keys: Vec::new(), positions: Vec::new() }
    }

    pub(super) fn push(&mut self, key: K, position: usize) {
        self.keys.push(key);
        self.positions.push(position);
    }

    /// How many keys there are to embed; at least one.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Never, in a closure that a load calls: it is called for what is missing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The keys to embed. The answer must have an embedding, or an error, for each in this order.
    #[must_use]
    pub fn keys(&self) -> &[K] {
        &self.keys
    }

    /// Where each key stands in the batch that was asked for.
    #[must_use]
    pub fn positions(&self) -> &[usize] {
        &self.positions
    }

    /// Of a slice that is parallel to the batch (its texts, say), the items that belong to the
    /// missing keys.
    ///
    /// # Panics
    ///
    /// While it is iterated, if the slice is shorter than the batch. Inside the closure that a model
    /// call is made with, that becomes an error of these keys.
    pub fn select<'a, T>(&'a self, items: &'a [T]) -> impl ExactSizeIterator<Item = &'a T> {
        self.positions.iter().map(|&position| &items[position])
    }

    /// The keys by value.
    #[must_use]
    pub fn into_keys(self) -> Vec<K> {
        self.keys
    }
}

impl<'a, K> IntoIterator for &'a Missing<K> {
    type Item = &'a K;
    type IntoIter = std::slice::Iter<'a, K>;

    fn into_iter(self) -> Self::IntoIter {
        self.keys.iter()
    }
}

impl<K> IntoIterator for Missing<K> {
    type Item = K;
    type IntoIter = std::vec::IntoIter<K>;

    fn into_iter(self) -> Self::IntoIter {
        self.keys.into_iter()
    }
}

pub(super) mod sealed {
    pub trait Sealed {}
}

use sealed::Sealed;

/// What a model may answer for one input: a vector in any form that makes an [`EmbeddingVector`],
/// or a `Result` of one, whose error is then that input's alone.
///
/// Sealed.
pub trait IntoEmbedding: Sealed {
    #[doc(hidden)]
    fn into_embedding(self) -> Result<EmbeddingVector, CacheError>;
}

macro_rules! embeddings {
    ($([$($generic:tt)*] $form:ty),* $(,)?) => {$(
        impl<$($generic)*> Sealed for $form {}
        impl<$($generic)*> IntoEmbedding for $form {
            fn into_embedding(self) -> Result<EmbeddingVector, CacheError> {
                Ok(self.into())
            }
        }
    )*};
}

embeddings!(
    [] EmbeddingVector,
    [] Vec<f32>,
    [] Box<[f32]>,
    [] Arc<[f32]>,
    [] &[f32],
    [const N: usize] [f32; N],
);

impl<V, E> Sealed for Result<V, E> {}

impl<V, E> IntoEmbedding for Result<V, E>
where
    V: Into<EmbeddingVector>,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    fn into_embedding(self) -> Result<EmbeddingVector, CacheError> {
        self.map(Into::into).map_err(|cause| cause.into().into())
    }
}

/// What a model may answer for a batch: a `Vec` with an [`IntoEmbedding`] for each input, in their
/// order, or a `Result` of such a `Vec`, whose error is then that of every input.
///
/// Sealed.
pub trait IntoEmbeddings: BatchSealed {
    /// `asked` answers exactly: fewer or more fail them all, as nothing says which belongs to which input.
    #[doc(hidden)]
    fn into_embeddings(self, asked: usize) -> Vec<Result<EmbeddingVector, CacheError>>;
}

use batch_sealed::BatchSealed;

mod batch_sealed {
    pub trait BatchSealed {}
}

impl<I: IntoEmbedding> BatchSealed for Vec<I> {}

impl<I: IntoEmbedding> IntoEmbeddings for Vec<I> {
    fn into_embeddings(self, asked: usize) -> Vec<Result<EmbeddingVector, CacheError>> {
        if self.len() != asked {
            let wrong = CacheError::from(ErrorKind::WrongCount { asked, answered: self.len() });
            return same(asked, &wrong);
        }
        self.into_iter().map(IntoEmbedding::into_embedding).collect()
    }
}

impl<I: IntoEmbedding, E> BatchSealed for Result<Vec<I>, E> {}

impl<I, E> IntoEmbeddings for Result<Vec<I>, E>
where
    I: IntoEmbedding,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    fn into_embeddings(self, asked: usize) -> Vec<Result<EmbeddingVector, CacheError>> {
        match self {
            Ok(embeddings) => embeddings.into_embeddings(asked),
            Err(cause) => same(asked, &CacheError::from(cause.into())),
        }
    }
}

/// The same error for each of `asked` inputs.
pub(super) fn same(asked: usize, error: &CacheError) -> Vec<Answer> {
    vec![Err(error.clone()); asked]
}
