//! Inputs that the upstream refused a moment ago: asked for again, it is not asked again.

use std::time::Duration;

use embedding_cache::{CacheError, ContentKey, ShardedCache};

use crate::backend::Failed;

/// How long a refusal is remembered: long enough for a client that tries again at once, short enough
/// that a corrected upstream is soon believed.
const REMEMBERED: Duration = Duration::from_secs(10);

/// Refusals that are remembered at a time.
const MOST: usize = 4096;

#[derive(Debug)]
pub(super) struct Refusals(ShardedCache<ContentKey, Failed>);

impl Refusals {
    /// # Errors
    ///
    /// Never for these limits.
    pub(super) fn new() -> Result<Self, CacheError> {
        let cache = ShardedCache::builder().max_entries(MOST).time_to_live(REMEMBERED).build()?;
        Ok(Self(cache))
    }

    /// The first of `keys` that was refused, or what came of all of them together.
    pub(super) fn find(&self, keys: &[ContentKey]) -> Option<(Option<usize>, Failed)> {
        // Nearly always there is none.
        if self.0.is_empty() {
            return None;
        }
        let one = keys.iter().enumerate().find_map(|(place, key)| Some((place, self.0.get(key)?)));
        if let Some((place, failed)) = one {
            return Some((Some(place), failed));
        }
        Some((None, self.0.get(&together(keys))?))
    }

    pub(super) fn remember(&self, key: ContentKey, failed: Failed) {
        // Not stored is not remembered, no more.
        let _ = self.0.insert(key, failed);
    }

    /// Remembers that these inputs were refused, and that it was not found out which of them.
    pub(super) fn remember_together(&self, keys: &[ContentKey], failed: Failed) {
        self.remember(together(keys), failed);
    }
}

fn together(keys: &[ContentKey]) -> ContentKey {
    let digits: String = keys.iter().map(ContentKey::to_hex).collect();
    ContentKey::builder("inputs that were refused together").text(&digits)
}
