//! Inserting many entries: every shard of a group locked once.
//!
//! Entries are taken in groups of 64: weighed and hashed with no lock held, ordered by shard, and
//! all of a shard inserted under one lock hold, as long as at most 64 entries leave under it. From
//! the first that cannot be done so on (the room must come from elsewhere, or enough have left) the
//! rest of the shard's entries go in one by one, as by a plain insert. So entries of one shard go in
//! strictly in the order given, and of two with the same key the later one stays.

use std::hash::{BuildHasher, Hash};

use smallvec::SmallVec;

use crate::error::{CacheError, ErrorKind, InsertError};

use super::ShardedCache;
use super::clock::Stamp;
use super::get_many::GROUP;
use super::make_room::{CONTENDED, InsertOptions, Put, Stored};
use super::removal::Notifier;
use super::shard::{BITE, Unlock};
use super::sweep::{Step, Stepwise, drive};
use super::wait::Wait;

impl<K, V, S> ShardedCache<K, V, S>
where
    K: Hash + Eq,
    S: BuildHasher,
{
    /// Inserts many entries, each as by [`insert`](Self::insert), and returns a result for each in
    /// their order. An entry that is refused fails alone. Of two with the same key the later one
    /// stays.
    ///
    /// Faster than a loop: entries are taken in groups of 64, and the lock of each shard that a
    /// group needs is taken once, as long as at most 64 entries must leave under it; what needs more
    /// room goes in one by one. So entries of different shards go in in no particular order, those of
    /// one shard in the order given. `O(1)` amortized for each; allocates the result and room for one
    /// group.
    ///
    /// ```
    /// # use embedding_cache::ShardedCache;
    /// let cache = ShardedCache::<u64, String>::builder()
    ///     .max_weight(10)
    ///     .weigher(|_: &u64, value: &String| value.len() as u64)
    ///     .build()?;
    /// let results = cache.insert_many([(1, "short".to_string()), (2, "much too long".to_string())]);
    /// assert!(results[0].is_ok() && results[1].is_err());
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// ```
    pub fn insert_many(
        &self,
        entries: impl IntoIterator<Item = (K, V)>,
    ) -> Vec<Result<(), InsertError<K, V>>> {
        drive(self.start_insert_many(entries, InsertOptions::default()))
    }

    /// Starts an [`insert_many`](Self::insert_many) that the caller takes step by step.
    pub(crate) fn start_insert_many<I>(
        &self,
        entries: I,
        options: InsertOptions<'static>,
    ) -> InsertMany<'_, K, V, S, I::IntoIter>
    where
        I: IntoIterator<Item = (K, V)>,
    {
        let entries = entries.into_iter();
        let results = Vec::with_capacity(entries.size_hint().0);
        InsertMany {
            cache: self,
            options,
            entries: Some(entries),
            group: Vec::new(),
            order: SmallVec::new(),
            next: 0,
            one_by_one: 0,
            contended: 0,
            notifier: self.notifier(),
            results,
        }
    }
}

/// An entry of a group.
enum Pending<'a, K, V> {
    /// The entry is gone once it is stored.
    Entry(Put<'a, K, V>, Option<(K, V)>),
    Refused(InsertError<K, V>),
}

impl<'a, K, V> Pending<'a, K, V> {
    /// Weighs an entry, and refuses it if it can never be stored. The clock is read where `moment` is
    /// not known yet.
    fn new<S>(
        cache: &'a ShardedCache<K, V, S>,
        key: K,
        value: V,
        options: InsertOptions<'a>,
        moment: &mut Option<(Stamp, u32)>,
    ) -> Self
    where
        K: Hash + Eq,
        S: BuildHasher,
    {
        let moment = || *moment.get_or_insert_with(|| cache.now_for_writing());
        let put = cache.begin_insert(&key, &value, options, moment);
        match cache.admit(&put) {
            Ok(()) => Self::Entry(put, Some((key, value))),
            Err(kind) => {
                let error = CacheError::from(kind);
                cache.count_refusal(&key, &error);
                Self::Refused(InsertError::new(error, key, value))
            }
        }
    }

    /// The number of its shard.
    fn shard(&self) -> Option<usize> {
        match self {
            Self::Entry(put, _) => Some(put.at.number),
            Self::Refused(_) => None,
        }
    }
}

/// A [`ShardedCache::insert_many`] under way, from [`ShardedCache::start_insert_many`]. Between two
/// steps nothing is locked and no room reserved. Dropped before its end it has stored some of the
/// entries.
pub(crate) struct InsertMany<'a, K, V, S, I> {
    cache: &'a ShardedCache<K, V, S>,
    options: InsertOptions<'static>,
    /// `None` once it has ended, or panicked.
    entries: Option<I>,
    /// In the order given.
    group: Vec<Pending<'a, K, V>>,
    /// Places in the group, by shard, and in the order given within a shard.
    order: SmallVec<[u8; GROUP]>,
    /// The next in that order.
    next: usize,
    /// Up to here in that order, they go in one by one.
    one_by_one: usize,
    /// How often the next one found all room taken by other writers.
    contended: u32,
    notifier: Notifier<'a, K, V>,
    results: Vec<Result<(), InsertError<K, V>>>,
}

impl<K, V, S, I> Stepwise for InsertMany<'_, K, V, S, I>
where
    K: Hash + Eq,
    S: BuildHasher,
    I: Iterator<Item = (K, V)>,
{
    type Output = Vec<Result<(), InsertError<K, V>>>;

    /// Timeouts are not counted.
    fn step<W: Wait>(&mut self, wait: W) -> Step {
        if self.next == self.order.len() && !self.next_group() {
            return Step::Done;
        }
        if self.next == self.order.len() {
            // All of the group were refused before a lock was needed.
            return Step::More;
        }
        if self.next < self.one_by_one { self.one(wait) } else { self.one_shard(wait) }
    }

    fn end(self) -> Self::Output {
        self.notifier.end();
        self.results
    }
}

impl<K, V, S, I> InsertMany<'_, K, V, S, I>
where
    K: Hash + Eq,
    S: BuildHasher,
    I: Iterator<Item = (K, V)>,
{
    /// Notes the results of a group that is done, and weighs and orders the next one, if any.
    fn next_group(&mut self) -> bool {
        self.results.extend(self.group.drain(..).map(|entry| match entry {
            Pending::Entry(..) => Ok(()),
            Pending::Refused(refused) => Err(refused),
        }));
        (self.next, self.one_by_one) = (0, 0);
        self.order.clear();
        // At once, and no more than is told of.
        let told = self.entries.as_ref().map_or(0, |entries| entries.size_hint().0);
        self.group.reserve(told.min(GROUP));
        // One for all: what counts is read again under way to the lock.
        let mut moment = None;
        while self.group.len() < GROUP {
            // A caller's code that panics costs its own entry; the others are stored all the same.
            let Self { cache, options, entries, notifier, .. } = self;
            let next = notifier.catch(|| entries.as_mut()?.next()).flatten();
            let Some((key, value)) = next else {
                *entries = None;
                break;
            };
            let entry = notifier.catch(|| Pending::new(cache, key, value, *options, &mut moment));
            let Some(entry) = entry else { continue };
            if let Pending::Entry(..) = entry {
                self.order.push(self.group.len() as u8);
            }
            self.group.push(entry);
        }
        let group = &self.group;
        // Unstable, as that allocates nothing: the place itself keeps the order given.
        self.order.sort_unstable_by_key(|&place| (group[usize::from(place)].shard(), place));
        !group.is_empty()
    }

    /// Inserts as many entries of the next shard as one lock hold allows.
    fn one_shard<W: Wait>(&mut self, wait: W) -> Step {
        let Self { cache, group, order, next, notifier, .. } = self;
        let number = group[usize::from(order[*next])].shard();
        let same = |&&place: &&u8| group[usize::from(place)].shard() == number;
        let end = *next + order[*next..].iter().take_while(same).count();
        let Some(shard) = number.map(|number| &cache.shards[number]) else {
            unreachable!("what is refused has no place in the order")
        };
        // Read now: the group may have waited for other locks.
        let moment = notifier.catch(|| cache.now_for_writing());
        let mut done = *next;
        let stored = notifier.catch_all(|notifier| {
            let mut reservation = None;
            cache.change(shard, wait, Unlock::Plain, notifier, |table, gone| {
                for &place in &order[*next..end] {
                    let Pending::Entry(put, entry) = &mut group[usize::from(place)] else { break };
                    stamp(put, moment);
                    let stored = gone.len() < BITE
                        && match cache.insert_again(put, &mut reservation, table, entry, gone) {
                            Ok(Stored::Inserted) => true,
                            Ok(Stored::InPlaceOf(cause)) => {
                                let left = entry.take();
                                gone.extend(left.map(|(k, v)| (k, v, cause)));
                                true
                            }
                            Err(_) => false,
                        };
                    if !stored {
                        break;
                    }
                    done += 1;
                }
                // The last of a bite may have made room and then wait: it keeps none.
                drop(reservation.take());
            })
        });
        match stored {
            Some(Some(())) => (self.next, self.one_by_one) = (done, end),
            Some(None) => return Step::Locked,
            // The comparison of a key panicked: that entry is dropped, and the next ones are tried.
            None => {
                if let Some(&place) = order.get(done) {
                    drop_entry(&mut group[usize::from(place)], notifier);
                }
                self.next = done + 1;
            }
        }
        Step::More
    }

    /// Inserts the next entry by itself.
    fn one<W: Wait>(&mut self, wait: W) -> Step {
        let Self { cache, group, order, next, notifier, .. } = self;
        let pending = &mut group[usize::from(order[*next])];
        let Pending::Entry(put, entry) = pending else {
            unreachable!("what is refused has no place in the order")
        };
        stamp(put, notifier.catch(|| cache.now_for_writing()));
        let outcome = notifier
            .catch_all(|notifier| cache.insert_retrying(put, None, None, entry, notifier, wait));
        match outcome {
            Some(Ok(Stored::Inserted)) => {}
            Some(Ok(Stored::InPlaceOf(cause))) => {
                if let Some((key, value)) = entry.take() {
                    notifier.dispose((key, value, cause));
                }
            }
            Some(Err(ErrorKind::Timeout { .. })) => return Step::Locked,
            // An async caller waits between two steps, and not here.
            Some(Err(ErrorKind::Contended { .. }))
                if wait.is_bounded() && self.contended < CONTENDED =>
            {
                self.contended += 1;
                return Step::Locked;
            }
            Some(Err(kind)) => {
                let Some((key, value)) = entry.take() else {
                    unreachable!("a refused insert leaves its entry")
                };
                let error = CacheError::from(kind);
                put.at.shard.counters.count_refusal(&error);
                *pending = Pending::Refused(InsertError::new(error, key, value));
            }
            None => drop_entry(pending, notifier),
        }
        self.contended = 0;
        self.next += 1;
        Step::More
    }
}

/// Drops an entry whose insert ended with a panic of the caller's code.
fn drop_entry<K, V>(pending: &mut Pending<'_, K, V>, notifier: &mut Notifier<'_, K, V>) {
    if let Pending::Entry(_, entry) = pending {
        let entry = entry.take();
        notifier.catch(|| drop(entry));
    }
}

/// Notes when an entry is written; the moment at which it was weighed stays where the clock panicked.
fn stamp<K, V>(put: &mut Put<'_, K, V>, moment: Option<(Stamp, u32)>) {
    if let Some((now, written)) = moment {
        (put.new_entry.now, put.new_entry.written) = (now, written);
    }
}
