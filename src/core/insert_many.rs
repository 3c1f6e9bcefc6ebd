//! Inserting many entries: every shard of a group locked once.
//!
//! Entries are taken in groups of 64: weighed and hashed with no lock held, ordered by shard, and
//! all of a shard inserted under one lock hold, as long as at most 64 entries leave under it. From
//! the first that cannot be done so on (the room must come from elsewhere, or enough have left) the
//! rest of the shard's entries go in one by one, as by a plain insert. So entries of one shard go in
//! strictly in the order given, and of two with the same key the later one stays.

use std::hash::{BuildHasher, Hash};
use std::time::Duration;

use smallvec::SmallVec;

use crate::error::{ErrorKind, InsertError};

use super::clock::Stamp;
use super::get_many::GROUP;
use super::insert::InsertOptions;
use super::make_room::NewEntry;
use super::removal::Notifier;
use super::shard::BITE;
use super::shard::{Forever, Try, Until, Wait};
use super::{Place, ShardedCache};

/// How often an entry that finds all room taken by other writers is tried in slices.
const CONTENDED: u32 = 64;

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
        let mut insert = self.start_insert_many(entries, InsertOptions::default());
        while let Progress::Some = insert.step(Forever) {}
        insert.end()
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

impl<K, V, S> ShardedCache<K, V, S>
where
    K: Hash + Eq,
    S: BuildHasher,
{
    /// Weighs an entry, and refuses it if it can never be stored.
    fn pending(&self, key: K, value: V, options: InsertOptions<'_>) -> Pending<'_, K, V> {
        let at = self.place(&key);
        let ticket = self.ticket(at, &key, &value, options.time_to_live);
        match self.admit(&ticket, options.time_to_live) {
            Ok(()) => Pending::Entry(at, Some(NewEntry { key, value, ticket })),
            Err(kind) => Pending::Refused(at.refused(kind, key, value)),
        }
    }
}

impl<K, V> Place<'_, K, V> {
    /// Counts an entry that belongs here and is refused, and gives it back.
    fn refused(&self, kind: ErrorKind, key: K, value: V) -> InsertError<K, V> {
        let refused = InsertError::new(kind, key, value);
        self.shard.count_refusal(refused.error());
        refused
    }
}

/// An entry of a group.
enum Pending<'a, K, V> {
    /// `None` once it is stored.
    Entry(Place<'a, K, V>, Option<NewEntry<K, V>>),
    Refused(InsertError<K, V>),
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

/// What a step of an [`InsertMany`] came to.
pub(crate) enum Progress {
    /// Some entries more are stored or refused.
    Some,
    /// Another thread held the lock all the time, or all the room.
    Locked,
    /// All are.
    Done,
}

impl<K, V, S, I> InsertMany<'_, K, V, S, I>
where
    K: Hash + Eq,
    S: BuildHasher,
    I: Iterator<Item = (K, V)>,
{
    /// A step that waits at most `wait` for a lock; zero tries once. Timeouts are not counted.
    pub(crate) fn step_slice(&mut self, wait: Duration) -> Progress {
        match wait {
            Duration::ZERO => self.step(Try),
            wait => self.step(Until::after(wait)),
        }
    }

    /// The results, when all is done; goes on with the panic of the listener, if there was one.
    pub(crate) fn end(self) -> Vec<Result<(), InsertError<K, V>>> {
        self.notifier.end();
        self.results
    }

    fn step<P: Wait>(&mut self, wait: P) -> Progress {
        if self.next == self.order.len() && !self.next_group() {
            return Progress::Done;
        }
        if self.next == self.order.len() {
            // All of the group were refused before they came to a lock.
            return Progress::Some;
        }
        if self.next < self.one_by_one { self.one(wait) } else { self.one_shard(wait) }
    }

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
        while self.group.len() < GROUP {
            // A caller's code that panics costs its own entry; the others are stored all the same.
            let Self { cache, options, entries, notifier, .. } = self;
            let next = notifier.catch(|| entries.as_mut()?.next()).flatten();
            let Some((key, value)) = next else {
                *entries = None;
                break;
            };
            let entry = notifier.catch(|| cache.pending(key, value, *options));
            let Some(entry) = entry else { continue };
            if let Pending::Entry(..) = entry {
                self.order.push(self.group.len() as u8);
            }
            self.group.push(entry);
        }
        let group = &self.group;
        // Unstable, as that allocates nothing: the place itself keeps the order given.
        self.order.sort_unstable_by_key(|&place| match &group[usize::from(place)] {
            Pending::Entry(at, _) => (at.number, place),
            Pending::Refused(_) => (usize::MAX, place),
        });
        !group.is_empty()
    }

    /// Inserts as many entries of the next shard as one lock hold allows.
    fn one_shard<P: Wait>(&mut self, wait: P) -> Progress {
        let Self { cache, options, group, order, next, notifier, .. } = self;
        let number_of = |group: &[Pending<'_, K, V>], place: u8| match &group[usize::from(place)] {
            Pending::Entry(at, _) => Some(at.number),
            Pending::Refused(_) => None,
        };
        let first = order[*next];
        let number = number_of(group, first);
        let same = |&&place: &&u8| number_of(group, place) == number;
        let end = *next + order[*next..].iter().take_while(same).count();
        let Pending::Entry(at, _) = group[usize::from(first)] else { return Progress::Some };
        // Read now: the group may have waited for other locks.
        let moment = notifier.catch(|| cache.now_for_writing());
        let mut done = *next;
        let stored = notifier.catch_all(|notifier| {
            let mut put = cache.begin_insert(at, options.condition);
            cache.change(at.shard, wait, notifier, |table, gone| {
                for &place in &order[*next..end] {
                    let Pending::Entry(_, new_entry) = &mut group[usize::from(place)] else {
                        break;
                    };
                    stamp(new_entry, moment);
                    // The last of a bite may make way for one that then waits: it keeps nothing.
                    if gone.len() >= BITE
                        || cache.insert_locked(&mut put, table, new_entry, gone).is_err()
                    {
                        break;
                    }
                    done += 1;
                }
                put.reservation.release();
            })
        });
        match stored {
            Some(Some(())) => (self.next, self.one_by_one) = (done, end),
            Some(None) => return Progress::Locked,
            // The comparison of a key panicked: that entry is dropped, and the next ones are tried.
            None => {
                if let Some(Pending::Entry(_, new_entry)) =
                    order.get(done).map(|&place| &mut group[usize::from(place)])
                {
                    let new_entry = new_entry.take();
                    notifier.catch(|| drop(new_entry));
                }
                self.next = done + 1;
            }
        }
        Progress::Some
    }

    /// Inserts the next entry by itself.
    fn one<P: Wait>(&mut self, wait: P) -> Progress {
        let Self { cache, options, group, order, next, notifier, .. } = self;
        let entry = &mut group[usize::from(order[*next])];
        if let Pending::Entry(at, new_entry) = entry {
            let at = *at;
            stamp(new_entry, notifier.catch(|| cache.now_for_writing()));
            let outcome = notifier.catch_all(|notifier| {
                let mut put = cache.begin_insert(at, options.condition);
                cache.insert_retrying(&mut put, new_entry, notifier, wait)
            });
            match outcome {
                Some(Err(ErrorKind::Timeout { .. })) => return Progress::Locked,
                // In slices there is no waiting in between: that is up to the caller.
                Some(Err(ErrorKind::Contended { .. }))
                    if wait.is_bounded() && self.contended < CONTENDED =>
                {
                    self.contended += 1;
                    return Progress::Locked;
                }
                Some(Err(kind)) => {
                    if let Some(NewEntry { key, value, .. }) = new_entry.take() {
                        *entry = Pending::Refused(at.refused(kind, key, value));
                    }
                }
                None => {
                    let new_entry = new_entry.take();
                    notifier.catch(|| drop(new_entry));
                }
                Some(Ok(())) => {}
            }
        }
        self.contended = 0;
        self.next += 1;
        Progress::Some
    }
}

/// Notes when an entry is written; the moment at which it was weighed stays where the clock panicked.
fn stamp<K, V>(new_entry: &mut Option<NewEntry<K, V>>, moment: Option<(Stamp, u32)>) {
    if let (Some(new_entry), Some((now, written))) = (new_entry, moment) {
        (new_entry.ticket.now, new_entry.ticket.written) = (now, written);
    }
}
