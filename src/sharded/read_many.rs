//! Lookup of many keys together: every shard of a group locked once, memory accesses overlapped.

use std::hash::{BuildHasher, Hash};
use std::time::Duration;

use equivalent::Equivalent;
use smallvec::SmallVec;

use super::policy::HitNote;
use super::read::Seen;
use super::shard::{Once, Patience, Unlimited, Until};
use super::table::State;
use super::{Place, ShardedCache};

/// Keys of a batch that are taken together; see [`ShardedCache::get_many`]. With 64 a usual batch
/// comes to each shard once; in batches of 64 over 200,000 keys that was faster than 16 by a few
/// percent, or not slower.
pub(crate) const GROUP: usize = 64;

/// The keys of a group, gone through more than once. An iterator, so that it may be over keys or
/// over references to keys.
trait Keys<'q, Q: ?Sized + 'q>: Iterator<Item = &'q Q> + Clone {}
impl<'q, Q: ?Sized + 'q, I: Iterator<Item = &'q Q> + Clone> Keys<'q, Q> for I {}

impl<K, V, S> ShardedCache<K, V, S>
where
    K: Hash + Eq,
    V: Clone,
    S: BuildHasher,
{
    /// The values of many keys, in their order, each counted as by [`get`](Self::get).
    ///
    /// Faster than a loop: keys are taken in groups of 64, hashed together, and the needed shards
    /// read together, each locked once a group, so that the memory accesses of one key overlap with
    /// those of the next. Up to 64 read locks are held at the same time, taken in ascending order;
    /// no other operation waits for one lock while it holds another, so that cannot deadlock.
    /// Allocates the result only.
    ///
    /// ```
    /// # use embedding_cache::ShardedCache;
    /// let cache = ShardedCache::<String, u64>::builder().max_entries(10).build()?;
    /// cache.insert("b".to_string(), 2)?;
    /// assert_eq!(cache.get_many(["a", "b", "b"]), [None, Some(2), Some(2)]);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// ```
    pub fn get_many<'q, Q>(&self, keys: impl IntoIterator<Item = &'q Q>) -> Vec<Option<V>>
    where
        Q: Hash + Equivalent<K> + ?Sized + 'q,
    {
        let mut keys = keys.into_iter();
        let mut values = Vec::with_capacity(keys.size_hint().0);
        loop {
            let group: SmallVec<[&Q; GROUP]> = keys.by_ref().take(GROUP).collect();
            if group.is_empty() {
                return values;
            }
            // Waiting without limit always comes to an answer.
            self.get_group(group.iter().copied(), Unlimited, |value| values.push(value));
        }
    }

    /// Looks up at most [`GROUP`] keys, each counted as by a `get`, and calls `push` with the answer
    /// to each, in their order, with no lock held. Waits at most `wait` for all locks together, zero
    /// tries each once; says whether they were had: if not, nothing was pushed and nothing counted.
    pub(crate) fn get_group_slice<Q>(
        &self,
        keys: &[Q],
        wait: Duration,
        push: impl FnMut(Option<V>),
    ) -> bool
    where
        Q: Hash + Equivalent<K>,
    {
        match wait {
            Duration::ZERO => self.get_group(keys.iter(), Once, push),
            wait => self.get_group(keys.iter(), Until::after(wait), push),
        }
    }

    fn get_group<'q, Q, P>(
        &self,
        keys: impl Keys<'q, Q>,
        patience: P,
        mut push: impl FnMut(Option<V>),
    ) -> bool
    where
        Q: Hash + Equivalent<K> + ?Sized + 'q,
        P: Patience,
    {
        let now = self.now_for_reading();
        let places: SmallVec<[Place<'_, K, V>; GROUP]> =
            keys.clone().map(|key| self.place(key)).collect();
        debug_assert!(places.len() <= GROUP, "a group of {}", places.len());
        let mut numbers: SmallVec<[usize; GROUP]> = places.iter().map(|at| at.number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        // Where each key's shard stands among them.
        let ranks: SmallVec<[usize; GROUP]> = places
            .iter()
            .map(|at| {
                numbers.binary_search(&at.number).expect("every shard of the group is listed")
            })
            .collect();

        // Ascending and each shard once: a second read lock of the same shard would wait for a
        // writer that waits for the first.
        let tables: Option<SmallVec<[_; GROUP]>> =
            numbers.iter().map(|&number| self.shards[number].read(patience)).collect();
        let Some(tables) = tables else { return false };
        // Find all slots before the first value is touched: each step's cache misses then overlap.
        let slots: SmallVec<[_; GROUP]> = places
            .iter()
            .zip(&ranks)
            .zip(keys.clone())
            .map(|((at, &rank), key)| self.find(&tables[rank], at.hash, key))
            .collect();
        let mut notes: SmallVec<[HitNote; GROUP]> =
            numbers.iter().map(|_| HitNote::Taken).collect();
        let seen: SmallVec<[_; GROUP]> = ranks
            .iter()
            .zip(&slots)
            .map(|(&rank, slot)| match *slot {
                None => Seen::Absent,
                Some((id, entry)) => {
                    let (table, note) = (&tables[rank], &mut notes[rank]);
                    match table.state(id, entry, now) {
                        State::Fresh => {
                            table.note_use(id, now);
                            // After a note that found no place, none for the same shard may be
                            // taken before it.
                            if *note == HitNote::Taken {
                                *note = table.hit(id);
                            }
                            Seen::Live(entry.value.clone(), *note)
                        }
                        State::Stale => Seen::Absent,
                        State::Dead => Seen::Expired,
                    }
                }
            })
            .collect();
        drop(slots);
        drop(tables);

        // What found no place is noted now, for each shard under one lock hold.
        for (&number, _) in numbers.iter().zip(notes).filter(|&(_, note)| note == HitNote::Full) {
            let unnoted = keys
                .clone()
                .zip(&places)
                .zip(&seen)
                .filter(|((_, at), seen)| {
                    at.number == number && matches!(seen, Seen::Live(_, HitNote::Full))
                })
                .map(|((key, at), _)| (key, at.hash));
            self.note_hits(&self.shards[number], unnoted, patience);
        }
        for ((key, at), seen) in keys.zip(places).zip(seen) {
            // Always an answer: a deadline that runs out for an expired entry makes it a miss.
            push(self.conclude(key, at, now, seen, patience).flatten());
        }
        true
    }
}
