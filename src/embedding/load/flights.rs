//! Which keys are being loaded, and by which call: single flight, for the whole process.
//!
//! # Why no key is embedded twice
//!
//! Someone claims a key under the lock of its flights. Under that lock the cache is looked at as
//! well. A call stores what it has loaded *before* it takes its keys out of the flights, so whoever
//! claims a key that another call is done with comes either
//!
//! 1. before the keys were taken out: the flight is there, and is joined;
//! 2. or after: then the vector had been stored before, and is found, unless it was evicted,
//!    expired or invalidated since, or refused by the cache.
//!
//! A call that has landed is joined by nobody any more, though its keys may still be there: who was
//! told that it failed, and asks again, has a call of its own.
//!
//! Lock order: flights, then shard, and the shard's is only tried; nobody takes a lock of flights
//! while holding that of a shard. So there is no circle to deadlock in.
//!
//! # After an invalidation
//!
//! What a call loads that began before an invalidation is delivered to those who wait for it, but
//! not stored, and nobody who comes after the invalidation joins it: its flight is of an earlier
//! epoch and is superseded.

use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use equivalent::Equivalent;
use hashbrown::HashTable;

use crate::hasher::DefaultHashBuilder;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::call::Call;

/// Parts of the flights, each with a lock that is held for a lookup in two hash tables.
const PARTS: usize = 64;

/// A key on its way.
#[derive(Debug)]
struct Flight<T> {
    key: T,
    hash: u64,
    seat: Seat,
    /// That of the cache when the key was claimed.
    epoch: u64,
}

/// A place in a call: where a key's answer will be.
#[derive(Debug, Clone)]
pub(super) struct Seat {
    pub(super) call: Arc<Call>,
    pub(super) place: usize,
}

impl Seat {
    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.call, &other.call) && self.place == other.place
    }
}

/// How a claim of a key went.
#[derive(Debug)]
pub(super) enum Claim<F> {
    /// The cache has it, or had it when it was last looked at.
    Found(F),
    /// Another call is loading it.
    Joined(Seat),
    /// It is the caller's to load; the hash is for [`Flights::end`].
    Led(u64),
    /// As many keys as are allowed are being loaded.
    Full,
}

#[derive(Debug)]
pub(crate) struct Flights<T> {
    parts: Box<[Mutex<HashTable<Flight<T>>>]>,
    hasher: DefaultHashBuilder,
    /// Keys in all parts together. Relaxed: only ever changed by read-modify-writes, and speaks of
    /// nothing else.
    len: AtomicUsize,
    limit: usize,
}

impl<T: Hash + Eq> Flights<T> {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            parts: (0..PARTS).map(|_| Mutex::default()).collect(),
            hasher: DefaultHashBuilder::default(),
            len: AtomicUsize::new(0),
            limit,
        }
    }

    /// Keys that are being loaded.
    pub(crate) fn len(&self) -> usize {
        self.len.load(Relaxed)
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Claims the key of `probe` for `seat`, or joins whoever has it.
    ///
    /// `epoch` was read before this call. `look` looks into the cache, under the lock of the flights,
    /// without waiting; `None` is an unlucky try, and then this is one too. `stored` makes the key to
    /// keep.
    pub(super) fn claim<Q, F>(
        &self,
        probe: &Q,
        epoch: u64,
        seat: &Seat,
        look: impl FnOnce() -> Option<Option<F>>,
        stored: impl FnOnce() -> T,
    ) -> Option<Claim<F>>
    where
        Q: Hash + Equivalent<T>,
    {
        let hash = self.hasher.hash_one(probe);
        let mut part = self.part(hash).lock();
        let flight = part.find_mut(hash, |flight| probe.equivalent(&flight.key));
        // Before the cache is looked at: a call that has landed has stored what it had to.
        let landed = flight.as_ref().is_some_and(|flight| flight.seat.call.landing().is_some());
        if let Some(found) = look()? {
            return Some(Claim::Found(found));
        }
        if let Some(flight) = flight {
            // Of a call that has landed, or is abandoned, the keys are just being taken out: what it
            // answered is an error, or was removed since. One of an earlier epoch will not store
            // what it loads; one of a later is right for whoever read theirs a moment too soon.
            if flight.epoch >= epoch && !landed && !flight.seat.call.is_abandoned() {
                return Some(Claim::Joined(flight.seat.clone()));
            }
            flight.seat = seat.clone();
            flight.epoch = epoch;
            return Some(Claim::Led(hash));
        }
        if self.len.fetch_add(1, Relaxed) >= self.limit {
            self.len.fetch_sub(1, Relaxed);
            return Some(Claim::Full);
        }
        let flight = Flight { key: stored(), hash, seat: seat.clone(), epoch };
        part.insert_unique(hash, flight, |flight| flight.hash);
        Some(Claim::Led(hash))
    }

    /// Takes out the key of `probe`, so that it can be claimed anew, if `seat` still has it.
    pub(super) fn give_up<Q: Hash>(&self, probe: &Q, seat: &Seat) {
        self.end(self.hasher.hash_one(probe), seat);
    }

    /// Takes out the key with this hash that `seat` led, unless it was superseded.
    pub(super) fn end(&self, hash: u64, seat: &Seat) {
        let ended = {
            let mut part = self.part(hash).lock();
            let entry = part.find_entry(hash, |flight| flight.seat.is(seat));
            entry.ok().map(|entry| entry.remove().0)
        };
        // Dropped after unlocking; so was nothing else, as a seat is two words and a count.
        if ended.is_some() {
            self.len.fetch_sub(1, Relaxed);
        }
    }

    fn part(&self, hash: u64) -> &Mutex<HashTable<Flight<T>>> {
        // Not the bits that the table inside goes by.
        &self.parts[(hash >> 40) as usize % PARTS]
    }
}
