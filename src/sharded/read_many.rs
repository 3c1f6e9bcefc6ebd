//! Lookup of many keys together: every shard of a group locked once, memory accesses overlapped.
//!
//! Of one lookup each step waits for memory that the step before has named: the bucket of the index,
//! the slot, the count of who holds the value, which a clone changes. The processor runs ahead by a
//! few hundred instructions, too few to see the next lookup. So a group takes each step for all keys
//! before the next, and each of the first steps is short: a dozen keys then wait together. The count
//! is read before any is changed, as nothing after a locked instruction is begun before it is done.

use std::hash::{BuildHasher, Hash};
use std::hint::black_box;
use std::time::Duration;

use equivalent::Equivalent;
use smallvec::SmallVec;

use super::chunked::SlotId;
use super::clock::Stamp;
use super::policy::HitNote;
use super::shard::{Once, Patience, Unlimited, Until};
use super::table::State;
use super::tally::Outcome;
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
            self.get_group(group.iter().copied(), Unlimited, |_| 0, |value| values.push(value));
        }
    }

    /// Looks up at most [`GROUP`] keys, each counted as by a `get`, and calls `push` with the answer
    /// to each, in their order, with no lock held. `touch` is called with each value before any is
    /// cloned, to read the memory that a clone changes. Waits at most `wait` for all locks together,
    /// zero tries each once; says whether they were had: if not, nothing was pushed and nothing
    /// counted.
    pub(crate) fn get_group_slice<Q>(
        &self,
        keys: &[Q],
        wait: Duration,
        touch: impl Fn(&V) -> usize,
        push: impl FnMut(Option<V>),
    ) -> bool
    where
        Q: Hash + Equivalent<K>,
    {
        match wait {
            Duration::ZERO => self.get_group(keys.iter(), Once, touch, push),
            wait => self.get_group(keys.iter(), Until::after(wait), touch, push),
        }
    }

    fn get_group<'q, Q, P>(
        &self,
        keys: impl Keys<'q, Q>,
        patience: P,
        touch: impl Fn(&V) -> usize,
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
        let (numbers, ranks) = ranks(&places);

        // Ascending and each shard once: a second read lock of the same shard would wait for a
        // writer that waits for the first.
        let tables: Option<SmallVec<[_; GROUP]>> =
            numbers.iter().map(|&number| self.shards[number].read(patience)).collect();
        let Some(tables) = tables else { return false };
        let table_of = |rank: u8| &*tables[usize::from(rank)];

        let asked = || places.iter().zip(&ranks);
        let likely: SmallVec<[Option<SlotId>; GROUP]> =
            asked().map(|(at, &rank)| table_of(rank).likely_slot(at.hash)).collect();
        let slots = ranks.iter().zip(&likely).filter_map(|(&rank, slot)| Some((rank, (*slot)?)));
        black_box(slots.fold(0, |sum, (rank, slot)| sum ^ table_of(rank).touch_slot(slot)));
        let found: SmallVec<[_; GROUP]> = asked()
            .zip(keys.clone())
            .map(|((at, &rank), key)| self.find(table_of(rank), at.hash, key))
            .collect();
        let values = found.iter().flatten().map(|(_, entry)| &entry.value);
        black_box(values.fold(0, |sum, value| sum ^ touch(value)));

        let mut tallies: SmallVec<[Noted; GROUP]> =
            numbers.iter().map(|_| Noted::default()).collect();
        let mut answers: SmallVec<[Option<V>; GROUP]> = SmallVec::new();
        // A bit for each key.
        let (mut unnoted, mut expired) = (0_u64, 0_u64);
        for (place, (&rank, found)) in ranks.iter().zip(&found).enumerate() {
            let (table, noted) = (table_of(rank), &mut tallies[usize::from(rank)]);
            answers.push(match *found {
                None => {
                    noted.misses += 1;
                    None
                }
                Some((id, entry)) => match table.state(id, entry, now) {
                    State::Fresh => {
                        table.note_use(id, now);
                        // After a note that found no place, none for the same shard may be taken
                        // before it.
                        if noted.is_full || table.hit(id, entry) == HitNote::Full {
                            noted.is_full = true;
                            unnoted |= 1 << place;
                        }
                        noted.hits += 1;
                        Some(entry.value.clone())
                    }
                    State::Stale => {
                        noted.misses += 1;
                        None
                    }
                    State::Dead => {
                        expired |= 1 << place;
                        None
                    }
                },
            });
        }
        drop(found);
        drop(tables);

        for (&number, noted) in numbers.iter().zip(&tallies) {
            self.tally.add(number, Outcome::Hit, noted.hits);
            self.tally.add(number, Outcome::Miss, noted.misses);
        }
        if unnoted | expired != 0 {
            self.finish(keys, &places, now, (unnoted, expired), &mut answers, patience);
        }
        answers.into_iter().for_each(&mut push);
        true
    }

    /// What a group has left to do under write locks: to note the hits that found no place, for each
    /// shard under one lock hold, and to look again for what was seen expired.
    #[cold]
    #[inline(never)]
    fn finish<'q, Q, P>(
        &self,
        keys: impl Keys<'q, Q>,
        places: &[Place<'_, K, V>],
        now: Stamp,
        (mut unnoted, expired): (u64, u64),
        answers: &mut [Option<V>],
        patience: P,
    ) where
        Q: Hash + Equivalent<K> + ?Sized + 'q,
        P: Patience,
    {
        while unnoted != 0 {
            let first = places[unnoted.trailing_zeros() as usize];
            let of_shard = |&(place, _): &(usize, _)| {
                unnoted & 1 << place != 0 && places[place].number == first.number
            };
            let hits = keys.clone().enumerate().filter(of_shard);
            self.note_hits(
                first.shard,
                hits.map(|(place, key)| (key, places[place].hash)),
                patience,
            );
            let same = places.iter().enumerate().filter(|(_, at)| at.number == first.number);
            unnoted &= !same.fold(0, |bits, (place, _)| bits | 1 << place);
        }
        for (place, key) in keys.enumerate() {
            if expired & 1 << place != 0 {
                // A deadline that runs out for an expired entry makes it a miss.
                answers[place] = self.get_expired(key, now, patience);
            }
        }
    }
}

/// What a group has come to in one shard.
#[derive(Default)]
struct Noted {
    hits: u64,
    misses: u64,
    /// Whether a hit found no place to be noted.
    is_full: bool,
}

/// The numbers of the shards that `places` are in, ascending, and for each place which of them is
/// its shard's.
fn ranks<K, V>(places: &[Place<'_, K, V>]) -> (SmallVec<[usize; GROUP]>, SmallVec<[u8; GROUP]>) {
    let mut order: SmallVec<[u64; GROUP]> = places
        .iter()
        .enumerate()
        .map(|(place, at)| (at.number as u64) << 8 | place as u64)
        .collect();
    order.sort_unstable();
    let mut numbers: SmallVec<[usize; GROUP]> = SmallVec::new();
    let mut ranks: SmallVec<[u8; GROUP]> = SmallVec::from_elem(0, places.len());
    for shard_and_place in order {
        let (number, place) = ((shard_and_place >> 8) as usize, shard_and_place as u8);
        if numbers.last() != Some(&number) {
            numbers.push(number);
        }
        ranks[usize::from(place)] = (numbers.len() - 1) as u8;
    }
    (numbers, ranks)
}
