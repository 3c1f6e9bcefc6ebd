//! How many tokens an input has: what the upstream said, kept beside its vector, or an estimate.

use embedding_cache::{CacheError, ContentKey, ShardedCache};

use crate::backend::Tokens;
use crate::request::Input;

/// Bytes of the cache for each number that is kept: a vector of 256 dimensions takes that.
const BYTES_FOR_EACH: u64 = 1024;

#[derive(Debug)]
pub(super) struct UsageStore(ShardedCache<ContentKey, Tokens>);

/// Tokens of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) tokens: u64,
    /// Inputs whose number no model has counted.
    pub(crate) estimated: usize,
}

impl Usage {
    pub(super) fn add(&mut self, input: &Input<'_>, known: Option<Tokens>) {
        let tokens = match (input, known) {
            // Ids are tokens, whatever anybody says.
            (Input::Tokens(ids), _) => Tokens { count: ids.len() as u32, exact: true },
            (Input::Text(_), Some(tokens)) => tokens,
            (Input::Text(text), None) => estimate(text),
        };
        self.tokens += u64::from(tokens.count);
        self.estimated += usize::from(!tokens.exact);
    }
}

/// A token for every four bytes begun: OpenAI's rule of thumb for English.
fn estimate(text: &str) -> Tokens {
    let count = u32::try_from(text.len().div_ceil(4)).unwrap_or(u32::MAX);
    Tokens { count, exact: false }
}

impl UsageStore {
    /// # Errors
    ///
    /// Never for these limits.
    pub(super) fn new(cache_bytes: u64) -> Result<Self, CacheError> {
        let entries = usize::try_from(cache_bytes / BYTES_FOR_EACH).unwrap_or(usize::MAX);
        Ok(Self(ShardedCache::builder().max_entries(entries.max(1)).build()?))
    }

    pub(super) fn put(&self, key: &ContentKey, tokens: Tokens) {
        // Not stored, it is estimated.
        let _ = self.0.insert(*key, tokens);
    }

    pub(super) fn get(&self, key: &ContentKey) -> Option<Tokens> {
        self.0.get(key)
    }

    /// Whether nothing was ever counted: the built-in model, or an upstream that does not say.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
