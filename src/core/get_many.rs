//! Lookup of many keys together: every shard of a group locked once, memory accesses overlapped.
//!
//! Of one lookup each step waits for memory that the step before has named: the bucket of the index,
//! the slot, the reference count of the value, which a clone changes. The processor runs ahead by a
//! few hundred instructions, too few to see the next lookup. So a group takes each step for all keys
//! before the next, and each step that waits is short: a dozen keys then wait together.

use std::hash::{BuildHasher, Hash};
use std::hint::black_box;
use std::ops::Deref;

use equivalent::Equivalent;
use smallvec::SmallVec;

use super::clock::Stamp;
use super::hit_counters::Outcome;
use super::table::index::SlotHash;
use super::table::slots::SlotId;
use super::table::{Entry, Slot, State, Table};
use super::wait::{Forever, Wait};
use super::{Place, ShardedCache};

/// Keys of a batch that are taken together; see [`ShardedCache::get_many`]. With 64 a usual batch
/// comes to each shard once; in batches of 64 over 200,000 keys that was faster than 16 by a few
/// percent, or not slower.
pub(crate) const GROUP: usize = 64;

/// The keys of a group, gone through more than once. An iterator, so that it may be over keys or
/// over references to keys.
pub(crate) trait Keys<'q, Q: ?Sized + 'q>: Iterator<Item = &'q Q> + Clone {}
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
            // A wait without a limit always has an answer.
            self.get_group(group.iter().copied(), Forever, |value| values.push(value));
        }
    }

    /// Looks up at most [`GROUP`] keys, each counted as by a `get`, and calls `push` with the answer
    /// to each, in their order, with no lock held. Says whether the locks were had: if not, nothing was
    /// pushed and nothing counted.
    pub(crate) fn get_group<'q, Q, W>(
        &self,
        keys: impl Keys<'q, Q>,
        wait: W,
        mut push: impl FnMut(Option<V>),
    ) -> bool
    where
        Q: Hash + Equivalent<K> + ?Sized + 'q,
        W: Wait,
    {
        let fresh_beyond = self.fresh_beyond_for_reading();
        let mut seats: SmallVec<[Seat<'_, K, V>; GROUP]> =
            keys.clone().map(|key| Seat::at(self.place(key))).collect();
        debug_assert!(seats.len() <= GROUP, "a group of {}", seats.len());
        let numbers = rank(&mut seats);

        // Ascending and each shard once: a second read lock of the same shard would wait for a
        // writer that waits for the first.
        let mut guards: SmallVec<[_; GROUP]> = SmallVec::new();
        for &number in &numbers {
            let Some(table) = self.shards[number].read(wait) else { return false };
            guards.push(table);
        }
        let mut noted: SmallVec<[Noted; GROUP]> =
            SmallVec::from_elem(Noted::default(), numbers.len());
        let (mut answers, expired) =
            self.look_up(&guards, &seats, keys.clone(), fresh_beyond, &mut noted);
        drop(guards);

        for (&number, noted) in numbers.iter().zip(&noted) {
            for (outcome, times) in [(Outcome::Hit, noted.hits), (Outcome::Miss, noted.misses)] {
                if times > 0 {
                    self.hit_counters.add(number, outcome, times);
                }
            }
        }
        if expired != 0 {
            let now = fresh_beyond.minus(self.config.table_config.grace);
            self.look_again(keys, now, expired, &mut answers, wait);
        }
        answers.into_iter().for_each(&mut push);
        true
    }

    /// The part of a lookup under the locks: each step for all keys before the next. Returns the
    /// answers, and a bit for each key that was seen expired and has none yet.
    #[inline]
    fn look_up<'q, Q>(
        &self,
        guards: &[impl Deref<Target = Table<K, V>>],
        seats: &[Seat<'_, K, V>],
        keys: impl Keys<'q, Q>,
        fresh_beyond: Stamp,
        noted: &mut [Noted],
    ) -> (SmallVec<[Option<V>; GROUP]>, u64)
    where
        Q: Hash + Equivalent<K> + ?Sized + 'q,
    {
        let mut looks: SmallVec<[Look<'_, K, V>; GROUP]> = SmallVec::new();
        looks.extend(seats.iter().map(|seat| {
            // An outdated table is an empty one.
            let table = Some(&*guards[usize::from(seat.rank)]);
            Look { table: table.filter(|table| self.is_current(table)), likely: None, fresh: None }
        }));
        // Waits for the index.
        let touch = |(look, seat): (&Look<'_, K, V>, &Seat<'_, K, V>)| {
            look.table.map_or(0, |table| table.touch_index(seat.at.hash))
        };
        black_box(looks.iter().zip(seats).map(touch).fold(0, |sum, read| sum ^ read));
        for (look, seat) in looks.iter_mut().zip(seats) {
            look.likely = look.table.and_then(|table| table.likely(seat.at.hash));
        }
        // Waits for the slots.
        let slots = looks.iter().filter_map(|look| look.likely);
        black_box(slots.fold(0, |sum, (_, slot)| sum ^ slot.touch()));

        let now = fresh_beyond.minus(self.config.table_config.grace);
        let mut expired = 0;
        for (place, ((look, seat), key)) in looks.iter_mut().zip(seats).zip(keys).enumerate() {
            let noted = &mut noted[usize::from(seat.rank)];
            let found = look.find(seat.at.hash, key);
            let (Some(table), Some((id, entry))) = (look.table, found) else {
                noted.misses += 1;
                continue;
            };
            if entry.expiry > fresh_beyond && table.is_settled(entry) {
                noted.hits += 1;
                look.fresh = Some(&entry.value);
                continue;
            }
            match table.state(id, entry, now) {
                State::Fresh => {
                    table.note_use(id, now);
                    table.hit(id, entry);
                    noted.hits += 1;
                    look.fresh = Some(&entry.value);
                }
                State::Stale => noted.misses += 1,
                State::Dead => expired |= 1 << place,
            }
        }
        // Waits for the reference counts of the values.
        (looks.iter().map(|look| look.fresh.cloned()).collect(), expired)
    }

    /// Looks again, under write locks, for what was seen expired.
    #[cold]
    #[inline(never)]
    fn look_again<'q, Q, W>(
        &self,
        keys: impl Keys<'q, Q>,
        now: Stamp,
        expired: u64,
        answers: &mut [Option<V>],
        wait: W,
    ) where
        Q: Hash + Equivalent<K> + ?Sized + 'q,
        W: Wait,
    {
        for (place, key) in keys.enumerate() {
            if expired & 1 << place != 0 {
                // A deadline that runs out for an expired entry makes it a miss.
                answers[place] = self.lookup_dead(key, now, wait);
            }
        }
    }
}

/// Where a key of a group belongs.
struct Seat<'a, K, V> {
    at: Place<'a, K, V>,
    /// Which of the shards that the group needs it is.
    rank: u8,
}

impl<'a, K, V> Seat<'a, K, V> {
    #[inline]
    fn at(at: Place<'a, K, V>) -> Self {
        Self { at, rank: 0 }
    }
}

/// What is known of a key while the locks are held.
struct Look<'t, K, V> {
    /// `None` if it is outdated.
    table: Option<&'t Table<K, V>>,
    likely: Option<(SlotId, &'t Slot<K, V>)>,
    fresh: Option<&'t V>,
}

impl<'t, K, V> Look<'t, K, V> {
    /// As [`Table::find`].
    #[inline]
    fn find<Q>(&self, hash: SlotHash, key: &Q) -> Option<(SlotId, &'t Entry<K, V>)>
    where
        Q: Equivalent<K> + ?Sized,
    {
        if let Some((id, slot)) = self.likely
            && let Some(entry) = slot.entry_of(key)
        {
            return Some((id, entry));
        }
        self.table?.find(hash, key)
    }
}

/// The outcome of a group in one shard.
#[derive(Clone, Copy, Default)]
struct Noted {
    hits: u64,
    misses: u64,
}

/// Returns the numbers of the shards that the seats are in, ascending, and tells each seat which of
/// them is its own.
fn rank<K, V>(seats: &mut [Seat<'_, K, V>]) -> SmallVec<[usize; GROUP]> {
    /// With more shards than these, the numbers are sorted.
    const FEW: usize = 256;

    let mut numbers: SmallVec<[usize; GROUP]> = SmallVec::new();
    if seats.iter().any(|seat| seat.at.number >= FEW) {
        numbers.extend(seats.iter().map(|seat| seat.at.number));
        numbers.sort_unstable();
        numbers.dedup();
        for seat in seats {
            seat.rank = numbers.partition_point(|&number| number < seat.at.number) as u8;
        }
        return numbers;
    }
    let mut is_needed = [0_u64; FEW / 64];
    for seat in &*seats {
        is_needed[seat.at.number / 64 % (FEW / 64)] |= 1 << (seat.at.number % 64);
    }
    let mut rank_of = [0_u8; FEW];
    for (word, mut needed) in is_needed.into_iter().enumerate() {
        while needed != 0 {
            let number = 64 * word + needed.trailing_zeros() as usize;
            rank_of[number % FEW] = numbers.len() as u8;
            numbers.push(number);
            needed &= needed - 1;
        }
    }
    for seat in seats {
        seat.rank = rank_of[seat.at.number % FEW];
    }
    numbers
}
