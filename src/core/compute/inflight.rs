//! The values that threads are computing, by their keys.

use std::sync::{Arc, OnceLock};

use equivalent::Equivalent;

use crate::core::Place;
use crate::core::table::index::SlotHash;
use crate::sync::atomic::{
    AtomicBool, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};
use crate::sync::{Condvar, Mutex};

use super::circle::Work;

/// Into how many parts the calls are divided at most, each with a mutex of its own.
const MOST_PARTS: usize = 64;

/// The calls under way. Few at a time, so a part is a list.
type Part<K, V> = Mutex<Vec<Arc<Call<K, V>>>>;

/// The values being computed in one cache.
#[derive(Debug)]
pub(in crate::core) struct Inflight<K, V> {
    parts: Box<[Part<K, V>]>,
    /// How many calls there are in all parts, so that a removal need not look where there are none.
    /// Sequentially consistent: a removal that begins after a call did must see it.
    calls: AtomicUsize,
}

/// One computation of one value.
#[derive(Debug)]
pub(super) struct Call<K, V> {
    hash: SlotHash,
    key: K,
    /// The [`epoch`](crate::core::ShardedCache::epoch) when it began.
    epoch: u64,
    /// Whether the key was removed since. Relaxed: it is set before the shard is locked.
    superseded: AtomicBool,
    work: Arc<Work>,
    /// Set before `ended`; not at all by a call that failed.
    value: OnceLock<V>,
    ended: Mutex<bool>,
    changed: Condvar,
}

/// What a thread that needs a value has to do.
pub(super) enum Role<'a, K, V> {
    /// To compute it.
    Lead(Leader<'a, K, V>),
    /// To wait for the thread that computes it.
    Wait(Arc<Call<K, V>>),
}

/// The right to compute the value of a key. Dropped without [`finish`](Self::finish) it has failed:
/// another thread that waits takes over.
pub(super) struct Leader<'a, K, V> {
    inflight: &'a Inflight<K, V>,
    part: &'a Part<K, V>,
    call: Arc<Call<K, V>>,
}

/// The computation that was to be waited for waits for this thread.
#[derive(Debug)]
pub(super) struct Circle;

impl<K, V> Inflight<K, V> {
    /// None under way. `shards` is a power of two, and so is the number of parts.
    pub(in crate::core) fn new(shards: usize) -> Self {
        let parts = (0..shards.min(MOST_PARTS)).map(|_| Part::default()).collect();
        Self { parts, calls: AtomicUsize::new(0) }
    }

    pub(in crate::core) fn is_empty(&self) -> bool {
        self.calls.load(SeqCst) == 0
    }

    /// Joins the call that computes the value of `key`, or begins one. A call from before an
    /// invalidation or a removal of the key is not joined: its value is older than that.
    pub(super) fn enter<Q>(&self, at: Place<'_, K, V>, key: &Q, epoch: u64) -> Role<'_, K, V>
    where
        Q: Equivalent<K> + ToOwned<Owned = K> + ?Sized,
    {
        let part = self.part(at.number);
        let find = |calls: &[Arc<Call<K, V>>]| {
            let joined = |call: &&Arc<Call<K, V>>| {
                call.is_of(at.hash, key) && call.epoch == epoch && !call.superseded.load(Relaxed)
            };
            calls.iter().find(joined).cloned()
        };
        if let Some(call) = find(&part.lock()) {
            return Role::Wait(call);
        }
        // With no lock held, as this is the caller's code.
        let call = Arc::new(Call {
            hash: at.hash,
            key: key.to_owned(),
            epoch,
            superseded: AtomicBool::new(false),
            work: Work::begin(),
            value: OnceLock::new(),
            ended: Mutex::new(false),
            changed: Condvar::default(),
        });
        let mut calls = part.lock();
        if let Some(call) = find(&calls) {
            return Role::Wait(call);
        }
        calls.push(Arc::clone(&call));
        drop(calls);
        self.calls.fetch_add(1, SeqCst);
        Role::Lead(Leader { inflight: self, part, call })
    }

    /// Says that the entry of `key` is about to be removed: what is being computed for it is older.
    #[inline]
    pub(in crate::core) fn supersede<Q>(&self, at: Place<'_, K, V>, key: &Q)
    where
        Q: Equivalent<K> + ?Sized,
    {
        if !self.is_empty() {
            self.supersede_calls(at, key);
        }
    }

    #[cold]
    #[inline(never)]
    fn supersede_calls<Q>(&self, at: Place<'_, K, V>, key: &Q)
    where
        Q: Equivalent<K> + ?Sized,
    {
        for call in self.part(at.number).lock().iter() {
            if call.is_of(at.hash, key) {
                call.superseded.store(true, Relaxed);
            }
        }
    }

    fn part(&self, shard: usize) -> &Part<K, V> {
        &self.parts[shard & (self.parts.len() - 1)]
    }
}

impl<K, V> Call<K, V> {
    fn is_of<Q: Equivalent<K> + ?Sized>(&self, hash: SlotHash, key: &Q) -> bool {
        self.hash == hash && key.equivalent(&self.key)
    }

    /// Waits until the call has ended; `None` if it has failed.
    pub(super) fn wait(&self) -> Result<Option<V>, Circle>
    where
        V: Clone,
    {
        let _waiting = self.work.wait().ok_or(Circle)?;
        let mut ended = self.ended.lock();
        while !*ended {
            ended = self.changed.wait(ended);
        }
        drop(ended);
        Ok(self.value.get().cloned())
    }
}

impl<K, V> Leader<'_, K, V> {
    pub(super) fn superseded(&self) -> &AtomicBool {
        &self.call.superseded
    }

    /// Hands the value to all who wait.
    pub(super) fn finish(self, value: V) {
        // It is set nowhere else.
        let _ = self.call.value.set(value);
    }
}

impl<K, V> Drop for Leader<'_, K, V> {
    fn drop(&mut self) {
        let mut calls = self.part.lock();
        let place = calls.iter().position(|call| Arc::ptr_eq(call, &self.call));
        // Not the last reference, so nothing of the caller's is dropped under the lock.
        place.map(|place| calls.swap_remove(place));
        drop(calls);
        self.inflight.calls.fetch_sub(1, SeqCst);
        self.call.work.end();
        *self.call.ended.lock() = true;
        self.call.changed.notify_all();
    }
}
