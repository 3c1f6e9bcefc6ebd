//! Lookup of many keys together: every shard of a group locked once, memory accesses overlapped.
//!
//! Of one lookup each step waits for memory that the step before has named: the bucket of the index,
//! the slot, the count of who holds the value, which a clone changes. The processor runs ahead by a
//! few hundred instructions, too few to see the next lookup. So a group takes each step for all keys
//! before the next, and each step that waits is short: a dozen keys then wait together.

use std::hash::{BuildHasher, Hash};
use std::hint::black_box;
use std::ops::Deref;
use std::time::Duration;

use equivalent::Equivalent;
use smallvec::SmallVec;

use super::clock::Stamp;
use super::policy::HitNote;
use super::shard::{Once, Patience, Unlimited, Until};
use super::table::{State, Table};
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
        let (numbers, ranks) = ranks(&places);

        // Ascending and each shard once: a second read lock of the same shard would wait for a
        // writer that waits for the first.
        let guards: Option<SmallVec<[_; GROUP]>> =
            numbers.iter().map(|&number| self.shards[number].read(patience)).collect();
        let Some(guards) = guards else { return false };
        let Answers { mut answers, noted, unnoted, expired } =
            self.look_up(&guards, &ranks, &places, keys.clone(), now);
        drop(guards);

        for (&number, noted) in numbers.iter().zip(&noted) {
            for (outcome, times) in [(Outcome::Hit, noted.hits), (Outcome::Miss, noted.misses)] {
                if times > 0 {
                    self.tally.add(number, outcome, times);
                }
            }
        }
        if unnoted | expired != 0 {
            self.finish(keys, &places, now, (unnoted, expired), &mut answers, patience);
        }
        answers.into_iter().for_each(&mut push);
        true
    }

    /// The part of a lookup under the locks: each step for all keys.
    fn look_up<'q, Q>(
        &self,
        guards: &[impl Deref<Target = Table<K, V>>],
        ranks: &[u8],
        places: &[Place<'_, K, V>],
        keys: impl Keys<'q, Q>,
        now: Stamp,
    ) -> Answers<V>
    where
        Q: Hash + Equivalent<K> + ?Sized + 'q,
    {
        let fresh_beyond = self.fresh_beyond(now);
        // An outdated table is an empty one.
        let current = |table: &&Table<K, V>| self.is_current(table);
        let tables: SmallVec<[Option<&Table<K, V>>; GROUP]> =
            ranks.iter().map(|&rank| Some(&*guards[usize::from(rank)]).filter(current)).collect();

        // Waits for the index.
        let likely: SmallVec<[_; GROUP]> =
            tables.iter().zip(places).map(|(table, at)| (*table)?.likely(at.hash)).collect();
        // Waits for the slots.
        black_box(likely.iter().flatten().fold(0, |sum, (_, slot)| sum ^ slot.touch()));
        let mut noted: SmallVec<[Noted; GROUP]> =
            SmallVec::from_elem(Noted::default(), guards.len());
        let (mut unnoted, mut expired) = (0, 0);
        let seen = tables.iter().zip(&likely).zip(places.iter().zip(ranks)).zip(keys.clone());
        let fresh: SmallVec<[Option<&V>; GROUP]> = seen
            .enumerate()
            .map(|(place, (((table, likely), (at, &rank)), key))| {
                let noted = &mut noted[usize::from(rank)];
                let in_likely = likely.and_then(|(id, slot)| Some((id, slot.entry_of(key)?)));
                let found = in_likely.or_else(|| (*table)?.find(at.hash, key));
                let (Some(table), Some((id, entry))) = (*table, found) else {
                    noted.misses += 1;
                    return None;
                };
                if entry.expiry > fresh_beyond && table.is_settled(entry) {
                    noted.hits += 1;
                    return Some(&entry.value);
                }
                match table.state(id, entry, now) {
                    State::Fresh => {
                        table.note_use(id, now);
                        // After a note that found no place, none for the same shard may be taken
                        // before it.
                        if noted.is_full || table.hit(id, entry) == HitNote::Full {
                            noted.is_full = true;
                            unnoted |= 1 << place;
                        }
                        noted.hits += 1;
                        Some(&entry.value)
                    }
                    State::Stale => {
                        noted.misses += 1;
                        None
                    }
                    State::Dead => {
                        expired |= 1 << place;
                        None
                    }
                }
            })
            .collect();
        // Waits for the counts of who holds the values.
        let answers = fresh.iter().map(|value| value.cloned()).collect();
        Answers { answers, noted, unnoted, expired }
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

/// What a group has come to.
struct Answers<V> {
    answers: SmallVec<[Option<V>; GROUP]>,
    /// For each shard.
    noted: SmallVec<[Noted; GROUP]>,
    /// A bit for each key: the hits that found no place to be noted.
    unnoted: u64,
    /// The same: what was seen expired, and has no answer yet.
    expired: u64,
}

/// What a group has come to in one shard.
#[derive(Clone, Copy, Default)]
struct Noted {
    hits: u64,
    misses: u64,
    /// Whether a hit found no place to be noted.
    is_full: bool,
}

/// The numbers of the shards that `places` are in, ascending, and for each place which of them is
/// its shard's.
fn ranks<K, V>(places: &[Place<'_, K, V>]) -> (SmallVec<[usize; GROUP]>, SmallVec<[u8; GROUP]>) {
    /// With more shards than these, the numbers are sorted.
    const FEW: usize = 256;

    let mut numbers: SmallVec<[usize; GROUP]> = SmallVec::new();
    if places.iter().any(|at| at.number >= FEW) {
        numbers.extend(places.iter().map(|at| at.number));
        numbers.sort_unstable();
        numbers.dedup();
        let rank_of = |at: &Place<'_, K, V>| numbers.binary_search(&at.number).unwrap_or(0) as u8;
        let ranks = places.iter().map(rank_of).collect();
        return (numbers, ranks);
    }
    let mut is_needed = [0_u64; FEW / 64];
    for at in places {
        is_needed[at.number / 64 % (FEW / 64)] |= 1 << (at.number % 64);
    }
    let mut rank_of = [0_u8; FEW];
    for (word, &of_word) in is_needed.iter().enumerate() {
        let mut left = of_word;
        while left != 0 {
            let number = 64 * word + left.trailing_zeros() as usize;
            rank_of[number] = numbers.len() as u8;
            numbers.push(number);
            left &= left - 1;
        }
    }
    let ranks = places.iter().map(|at| rank_of[at.number % FEW]).collect();
    (numbers, ranks)
}
