//! Which keys are being loaded, and by which call: single flight, for the whole process.
//!
//! # Why no key is embedded twice
//!
//! A key is claimed under the lock of its part. Under that lock the cache is looked at as well. A call
//! stores what it has loaded *before* it takes its keys out of here, so a claim of a key that another
//! call is done with comes either
//!
//! 1. before the key was taken out: it is here, and is joined;
//! 2. or after: then the vector had been stored before, and is found, unless it was evicted,
//!    expired or invalidated since, or refused by the cache.
//!
//! A call that has ended is joined no more, though its keys may still be here: a caller
//! that was told that it failed, and asks again, has a call of its own.
//!
//! Lock order: this, then shard, and the shard's is only tried; no thread takes a lock of this while
//! holding that of a shard. So there is no circle to deadlock in.
//!
//! # What is newer than a load
//!
//! A put, a removal or an invalidation of a key *supersedes* the load of it that is under way: what
//! that answers is delivered to those that wait for it, but not stored, and a claim that comes after
//! leads a call anew instead of joining. Each key in flight has a flag for this. The writer sets it
//! **before** it writes to the shard, and the insert of a loaded vector reads it under the write lock of
//! the shard, where it also gives way to a fresh entry. By cases, for a load that was claimed before
//! a put or a removal began:
//!
//! 1. The insert has the lock of the shard before the writer: what it stores is then replaced or
//!    removed.
//! 2. After the writer: the flag was set before the writer locked, so it is seen, and the insert is
//!    refused.
//!
//! And for a load that is claimed while the writer is between the flag and the shard. It runs at the
//! same time, so either order of the two is right, but it must be one order:
//!
//! 3. A put. The insert of the load comes first and is replaced; or it finds the put's entry, which is
//!    fresh, and gives way; or it finds neither, as the entry has left again, and the load counts as
//!    the later of the two.
//! 4. A removal. Nothing fresh was there when the key was claimed, so the removal counts as the
//!    earlier of the two.
//!
//! A writer reads [`len`](Inflight::len) first, and looks no further if it is 0. That is relaxed: a
//! claim that the writer knows of, by whatever way, happened before it and is counted; with any other
//! it is as in cases 3 and 4. A claim counts itself before it looks at the cache.
//!
//! An invalidation by key sets the flags of all keys that it names, part by part, before it sweeps
//! what is stored: cases 1 and 2, with its sweep as the writer. One of everything also raises the
//! epoch of the core, which an insert compares in the same place, so that it has one instant.
//!
//! A key that leaves here before its call has ended (it was taken over, or had no more time) is
//! superseded as well: a later call may have stored what a still later removal took out.

use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use equivalent::Equivalent;
use hashbrown::HashTable;

use crate::hasher::DefaultHashBuilder;
use crate::sync::Mutex;
use crate::sync::atomic::{
    AtomicBool, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};

use super::call::Call;

/// Parts, each with a lock that is held for a lookup in two hash tables.
const PARTS: usize = 64;

/// A key that is being loaded.
#[derive(Debug)]
struct Loading<T> {
    key: T,
    hash: u64,
    slot: CallSlot,
    /// That of the cache when the key was claimed.
    epoch: u64,
}

/// A place in a call: where a key's answer will be.
#[derive(Debug, Clone)]
pub(super) struct CallSlot {
    pub(super) call: Arc<Call>,
    pub(super) place: usize,
    superseded: Arc<AtomicBool>,
}

impl CallSlot {
    pub(super) fn new(call: &Arc<Call>, place: usize) -> Self {
        Self { call: Arc::clone(call), place, superseded: Arc::default() }
    }

    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.superseded, &other.superseded)
    }

    /// See the head of this file.
    pub(super) fn supersede(&self) {
        // Release, for the acquire of `is_superseded`: a claim that sees the flag comes after what its
        // writer knew. Inserts read it under the lock of a shard.
        if !self.superseded.swap(true, Release) {
            self.call.unwant();
        }
    }

    fn is_superseded(&self) -> bool {
        self.superseded.load(Acquire)
    }

    /// The flag, for the insert of what is loaded.
    pub(super) fn superseded(&self) -> &AtomicBool {
        &self.superseded
    }
}

/// How a claim of a key went.
#[derive(Debug)]
pub(super) enum Claim<F> {
    /// The cache has it, or had it when it was last looked at.
    Found(F),
    /// Another call is loading it.
    Joined(CallSlot),
    /// It is the caller's to load; the hash is for [`Inflight::end`].
    Led(u64),
    /// As many keys as are allowed are being loaded.
    Full,
}

#[derive(Debug)]
pub(crate) struct Inflight<T> {
    parts: Box<[Mutex<HashTable<Loading<T>>>]>,
    hasher: DefaultHashBuilder,
    /// Keys in all parts together. Relaxed: see the head of this file.
    len: AtomicUsize,
    limit: usize,
}

impl<T: Hash + Eq> Inflight<T> {
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

    /// Claims the key of `probe` for `slot`, or joins the call that has it.
    ///
    /// `epoch` was read before this call. `look` looks into the cache, under the lock of the part,
    /// without waiting; `None` is an unlucky try, and then this is one too. `stored` makes the key to
    /// keep.
    pub(super) fn claim<Q, F>(
        &self,
        probe: &Q,
        epoch: u64,
        slot: &CallSlot,
        look: impl FnOnce() -> Option<Option<F>>,
        stored: impl FnOnce() -> T,
    ) -> Option<Claim<F>>
    where
        Q: Hash + Equivalent<T>,
    {
        let hash = self.hasher.hash_one(probe);
        let mut part = self.part(hash).lock();
        if let Some(loading) = part.find_mut(hash, |loading| probe.equivalent(&loading.key)) {
            // Both before the cache is looked at: a call that has ended has stored what it had to, and
            // one that ends after the look is joined, and answers. A call supersedes its own keys when
            // it ends, so the flag, too, would say after the look that nothing is there to be joined.
            let is_over = loading.slot.call.result().is_some() || loading.slot.is_superseded();
            if let Some(found) = look()? {
                return Some(Claim::Found(found));
            }
            // Of a call that has ended the keys are just being taken out: what it answered is an
            // error, or was removed since. One of an earlier epoch will not store what it loads; one
            // of a later is right for a caller that read its own a moment too soon.
            if loading.epoch >= epoch && !is_over {
                return Some(Claim::Joined(loading.slot.clone()));
            }
            let old = std::mem::replace(&mut loading.slot, slot.clone());
            loading.epoch = epoch;
            // After unlocking, as it may wake a task.
            drop(part);
            old.supersede();
            return Some(Claim::Led(hash));
        }
        let room = Room::take(&self.len, self.limit);
        if let Some(found) = look()? {
            return Some(Claim::Found(found));
        }
        let Some(room) = room else { return Some(Claim::Full) };
        let loading = Loading { key: stored(), hash, slot: slot.clone(), epoch };
        part.insert_unique(hash, loading, |loading| loading.hash);
        room.keep();
        Some(Claim::Led(hash))
    }

    /// Whether the key of `probe` is being loaded.
    #[cfg(feature = "tier")]
    pub(super) fn contains<Q: Hash + Equivalent<T>>(&self, probe: &Q) -> bool {
        if self.len() == 0 {
            return false;
        }
        let hash = self.hasher.hash_one(probe);
        let part = self.part(hash).lock();
        part.find(hash, |loading| probe.equivalent(&loading.key)).is_some()
    }

    /// Takes out the key of `probe`, so that it can be claimed anew, if `slot` still has it.
    pub(super) fn give_up<Q: Hash>(&self, probe: &Q, slot: &CallSlot) {
        self.end(self.hasher.hash_one(probe), slot);
    }

    /// Takes out the key with this hash that `slot` leads, unless another has it now. Whatever the call
    /// answers from now on is not stored.
    pub(super) fn end(&self, hash: u64, slot: &CallSlot) {
        slot.supersede();
        let ended = {
            let mut part = self.part(hash).lock();
            let entry = part.find_entry(hash, |loading| loading.slot.is(slot));
            entry.ok().map(|entry| entry.remove().0)
        };
        // Dropped after unlocking, as the key is.
        if ended.is_some() {
            self.len.fetch_sub(1, Relaxed);
        }
    }

    /// Supersedes the load of a key that is about to be written, if there is one. See
    /// [`len`](Self::len) for when there is not.
    #[cold]
    pub(crate) fn supersede<Q: Hash + Equivalent<T>>(&self, probe: &Q) {
        let hash = self.hasher.hash_one(probe);
        let slot = {
            let part = self.part(hash).lock();
            part.find(hash, |loading| probe.equivalent(&loading.key))
                .map(|loading| loading.slot.clone())
        };
        // After unlocking, as it may wake a task.
        if let Some(slot) = slot {
            slot.supersede();
        }
    }

    /// Supersedes the loads of all keys that `names` holds for. It runs with no lock held; each part
    /// is locked for as long as its keys are cloned.
    pub(crate) fn supersede_if(&self, mut names: impl FnMut(&T) -> bool)
    where
        T: Clone,
    {
        if self.len() == 0 {
            return;
        }
        for part in &self.parts {
            let loading: Vec<(T, CallSlot)> = {
                let part = part.lock();
                part.iter().map(|loading| (loading.key.clone(), loading.slot.clone())).collect()
            };
            for (key, slot) in loading {
                if names(&key) {
                    slot.supersede();
                }
            }
        }
    }

    fn part(&self, hash: u64) -> &Mutex<HashTable<Loading<T>>> {
        // Not the bits that the table inside goes by.
        &self.parts[(hash >> 40) as usize % PARTS]
    }
}

/// Room for one key, given back unless it is kept.
struct Room<'a>(&'a AtomicUsize);

impl<'a> Room<'a> {
    fn take(len: &'a AtomicUsize, limit: usize) -> Option<Self> {
        let room = Self(len);
        (len.fetch_add(1, Relaxed) < limit).then_some(room)
    }

    fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
