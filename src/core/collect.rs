//! The traits of the standard library's collections.

use std::hash::{BuildHasher, Hash};

use super::get_many::GROUP;
use super::{Iter, ShardedCache};

/// The live entries, as [`ShardedCache::iter`] has them.
///
/// ```
/// # use embedding_cache::ShardedCache;
/// let cache = ShardedCache::new(10);
/// cache.insert("a", 1)?;
/// for (key, value) in &cache {
///     assert_eq!((key, value), ("a", 1));
/// }
/// # Ok::<(), embedding_cache::CacheError>(())
/// ```
impl<'a, K: Clone, V: Clone, S> IntoIterator for &'a ShardedCache<K, V, S> {
    type Item = (K, V);
    type IntoIter = Iter<'a, K, V, S>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Inserts many entries, as [`ShardedCache::insert_many`] does. An entry that is refused is dropped and
/// counted in [`rejected`](crate::CacheStats::rejected); to have it back use `insert_many`.
///
/// ```
/// # use embedding_cache::ShardedCache;
/// let mut cache = ShardedCache::new(100);
/// cache.extend((0..10).map(|n| (n, n * n)));
/// assert_eq!(cache.get(&3), Some(9));
/// ```
impl<K, V, S> Extend<(K, V)> for ShardedCache<K, V, S>
where
    K: Hash + Eq,
    S: BuildHasher,
{
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        (&*self).extend(entries);
    }
}

/// As `Extend` of the cache itself, through a shared reference.
impl<K, V, S> Extend<(K, V)> for &ShardedCache<K, V, S>
where
    K: Hash + Eq,
    S: BuildHasher,
{
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        let mut entries = entries.into_iter();
        // By the group, so that the results of one only are kept.
        while !self.insert_many(entries.by_ref().take(GROUP)).is_empty() {}
    }
}
