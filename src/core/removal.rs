//! What happens to entries that have left a shard: the listener is told, and they are dropped, with
//! no lock held.
//!
//! # A listener that uses the cache
//!
//! What leaves by an operation of the listener itself is not told there: that would nest once for
//! each entry, and the stack is finite. It is queued, and told in order by the outermost operation
//! on this thread as soon as the listener has returned. So a thread is inside the listener of a cache
//! at most once, and the queue holds what the listener's own operations made leave.
//!
//! # What an invalidation leaves behind
//!
//! The table that an invalidation outdated may hold millions of entries. It is handed to a backlog,
//! from which the invalidation drops it bite by bite. If that is cancelled, each later write drops
//! one bite of what is left, and a cleanup all of it; until then its weight is known
//! ([`Removals::pending`]).

use std::any::Any;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use smallvec::SmallVec;

use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use crate::sync::{Mutex, ThreadId, thread_id};

use super::RemovalCause;
use super::budget::{Budget, Usage};
use super::counters::Counters;
use super::shard::BITE;
use super::table::slots::SlotId;
use super::table::{Entries, Table};

/// What is told of every entry that leaves.
pub(super) type Listener<K, V> = Box<dyn Fn(&K, &V, RemovalCause) + Send + Sync>;

/// An entry that has left, and why.
pub(super) type Removed<K, V> = (K, V, RemovalCause);

/// Usually one.
type Batch<K, V> = SmallVec<[Removed<K, V>; 1]>;

crate::sync::thread_local! {
    /// The caches that are calling their listener on this thread, by the address of their [`Removals`].
    static INSIDE: RefCell<Vec<usize>> = RefCell::default();
}

/// What was queued on a thread.
type Nested<K, V> = (ThreadId, VecDeque<Removed<K, V>>);

/// The listener of a cache, and what is still to be told and dropped.
pub(super) struct Removals<K, V> {
    listener: Option<Listener<K, V>>,
    /// For each thread that is inside the listener, what its operations there made leave.
    nested: Mutex<Vec<Nested<K, V>>>,
    /// How many there are. Relaxed: a thread looks for what it has put there itself.
    nested_len: AtomicUsize,
    /// What invalidations left behind. Locked for the moves of one bite, with no other lock held.
    backlog: Mutex<VecDeque<Outdated<K, V>>>,
    /// How many tables that are, and one more if there is a listener: zero says in one look that what
    /// leaves has but to be dropped. Relaxed, as the next two: nothing is read because of them but the
    /// backlog, by its lock.
    work: AtomicUsize,
    /// What is in them, or on the way there.
    entries: AtomicU64,
    weight: AtomicU64,
}

/// What is left of a table that was outdated.
struct Outdated<K, V> {
    entries: Entries<K, V>,
    /// The generation that an invalidation began when it was that which took out the table.
    owner: Option<u64>,
}

/// What is dropped of the backlog at a time.
struct Bite<K, V> {
    entries: Vec<Removed<K, V>>,
    amount: Usage,
    /// As in [`Outdated`].
    owner: Option<u64>,
}

impl<K, V> Removals<K, V> {
    pub(super) fn new(listener: Option<Listener<K, V>>) -> Self {
        Self {
            work: AtomicUsize::new(usize::from(listener.is_some())),
            listener,
            nested: Mutex::new(Vec::new()),
            nested_len: AtomicUsize::new(0),
            backlog: Mutex::new(VecDeque::new()),
            entries: AtomicU64::new(0),
            weight: AtomicU64::new(0),
        }
    }

    /// Whether an operation that made an entry leave has nothing to do but drop it.
    #[inline]
    pub(super) fn is_idle(&self) -> bool {
        self.work.load(Relaxed) == 0
    }

    #[inline]
    fn has_backlog(&self) -> bool {
        self.work.load(Relaxed) > usize::from(self.listener.is_some())
    }

    /// What is no longer in the cache but not yet dropped.
    pub(super) fn pending(&self) -> Usage {
        Usage { entries: self.entries.load(Relaxed), weight: self.weight.load(Relaxed) }
    }

    /// Counts a table that is about to be handed over, before its room is given to others.
    fn expect(&self, held: Usage) {
        self.entries.fetch_add(held.entries, Relaxed);
        self.weight.fetch_add(held.weight, Relaxed);
    }

    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Whether this thread is inside the listener.
    fn is_inside(&self) -> bool {
        // A thread that tears down nests: there is no place to note it.
        self.listener.is_some()
            && INSIDE
                .try_with(|inside| inside.borrow().contains(&self.address()))
                .unwrap_or_default()
    }

    /// For the outermost operation on this thread.
    fn queue(&self, entries: impl Iterator<Item = Removed<K, V>>) {
        let (mut nested, this) = (self.nested.lock(), thread_id());
        if !nested.iter().any(|(thread, _)| *thread == this) {
            nested.push((this, VecDeque::new()));
        }
        if let Some((_, queue)) = nested.iter_mut().find(|(thread, _)| *thread == this) {
            let before = queue.len();
            queue.extend(entries);
            self.nested_len.fetch_add(queue.len() - before, Relaxed);
        }
    }

    /// The next that was queued on this thread.
    fn next_queued(&self) -> Option<Removed<K, V>> {
        if self.nested_len.load(Relaxed) == 0 {
            return None;
        }
        let (mut nested, this) = (self.nested.lock(), thread_id());
        let place = nested.iter().position(|(thread, _)| *thread == this)?;
        let next = nested[place].1.pop_front();
        match next {
            Some(_) => {
                self.nested_len.fetch_sub(1, Relaxed);
            }
            None => drop(nested.swap_remove(place)),
        }
        next
    }

    /// Takes the next bite out of the backlog. Goes by slots, as most of them may be vacant.
    fn next_bite(&self) -> Option<Bite<K, V>> {
        if !self.has_backlog() {
            return None;
        }
        // Before the lock: the allocator takes its time at times.
        let mut entries = Vec::with_capacity(BITE);
        let mut amount = Usage::default();
        let mut backlog = self.backlog.lock();
        let outdated = backlog.front_mut()?;
        let owner = outdated.owner;
        let more = outdated.entries.take_bite(BITE, |entry| {
            amount += Usage::one(entry.weight);
            entries.push((entry.key, entry.value, RemovalCause::Removed));
        });
        if !more {
            backlog.pop_front();
            self.work.fetch_sub(1, Relaxed);
        }
        drop(backlog);
        Some(Bite { entries, amount, owner })
    }
}

/// Notes that this thread is inside the listener of a cache, until dropped.
struct Inside(usize);

impl Inside {
    fn enter<K, V>(removals: &Removals<K, V>) -> Self {
        let address = removals.address();
        // Nothing to note it where the thread tears down.
        let _ = INSIDE.try_with(|inside| inside.borrow_mut().push(address));
        Self(address)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let _ = INSIDE.try_with(|inside| {
            let mut inside = inside.borrow_mut();
            if let Some(place) = inside.iter().rposition(|&address| address == self.0) {
                inside.remove(place);
            }
        });
    }
}

/// What has left a shard under one lock hold. Usually one entry.
pub(super) struct Gone<K, V> {
    entries: Batch<K, V>,
    /// How many stood in the table that was found outdated when the lock was had.
    pub(super) outdated: usize,
}

impl<K, V> Default for Gone<K, V> {
    #[inline]
    fn default() -> Self {
        Self { entries: SmallVec::new(), outdated: 0 }
    }
}

impl<K, V> Gone<K, V> {
    /// Takes an entry out of `table` and counts it. Returns its room, which it still takes.
    pub(super) fn take_out(
        &mut self,
        counters: &Counters,
        table: &mut Table<K, V>,
        id: SlotId,
        cause: RemovalCause,
    ) -> Usage {
        let Some(entry) = table.take(id) else { return Usage::default() };
        counters.count_removal(cause);
        self.push((entry.key, entry.value, cause));
        Usage::one(entry.weight)
    }

    /// Adds what was replaced.
    pub(super) fn extend(&mut self, entries: impl IntoIterator<Item = Removed<K, V>>) {
        self.entries.extend(entries);
    }

    /// What has left one by one.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Removed<K, V>> {
        self.entries.drain(..)
    }

    /// Adds one entry.
    pub(super) fn push(&mut self, entry: Removed<K, V>) {
        self.entries.push(entry);
    }

    /// How many have left one by one.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing has left.
    pub(super) fn is_empty(&self) -> bool {
        self.len() + self.outdated == 0
    }
}

/// What leaves under a lock hold, told and dropped when this is: after the hold, also when a panic
/// of the caller's code ended it.
pub(super) struct Leaving<'f, 'a, K, V> {
    notifier: &'f mut Notifier<'a, K, V>,
    pub(super) gone: Gone<K, V>,
    /// A whole table that an invalidation had outdated.
    outdated: Option<Table<K, V>>,
}

impl<'f, 'a, K, V> Leaving<'f, 'a, K, V> {
    /// Nothing yet.
    pub(super) fn new(notifier: &'f mut Notifier<'a, K, V>) -> Self {
        let entries = std::mem::take(&mut notifier.room);
        Self { notifier, gone: Gone { entries, outdated: 0 }, outdated: None }
    }

    /// Renews the table whose lock is held if an invalidation has outdated it, and gives back its room.
    #[inline]
    pub(super) fn renew(
        &mut self,
        table: &mut Table<K, V>,
        generation: u64,
        counters: &Counters,
        budget: &Budget,
    ) {
        if table.generation() != generation {
            let held = table.held();
            counters.removals.add(held.entries);
            self.notifier.removals.expect(held);
            budget.release(held);
            self.gone.outdated = held.entries as usize;
            self.outdated = Some(table.renew(generation));
        }
    }
}

impl<K, V> Drop for Leaving<'_, '_, K, V> {
    fn drop(&mut self) {
        if let Some(table) = self.outdated.take() {
            let outdated =
                Outdated { entries: table.into_entries(), owner: self.notifier.generation };
            let removals = self.notifier.removals;
            let mut backlog = removals.backlog.lock();
            backlog.push_back(outdated);
            removals.work.fetch_add(1, Relaxed);
        }
        let mut entries = std::mem::take(&mut self.gone.entries);
        self.notifier.dispose_all(entries.drain(..));
        self.notifier.room = entries;
    }
}

/// Tells the listener of what leaves, and drops it, throughout one operation.
///
/// A listener, or a drop, that panics must not leave the operation half done. So the first panic is
/// kept, the listener is not called again for what this operation made leave, and
/// [`end`](Self::end), last of all, goes on with the panic.
pub(crate) struct Notifier<'a, K, V> {
    removals: &'a Removals<K, V>,
    /// Of an invalidation of everything: the generation that it began.
    generation: Option<u64>,
    panic: Option<Box<dyn Any + Send>>,
    /// Whether the listener has panicked for an entry of this operation.
    is_silent: bool,
    /// Empty, and used for each lock hold anew.
    room: Batch<K, V>,
}

impl<'a, K, V> Notifier<'a, K, V> {
    pub(super) fn new(removals: &'a Removals<K, V>) -> Self {
        Self { removals, generation: None, panic: None, is_silent: false, room: SmallVec::new() }
    }

    /// The same for an operation that takes entries out by the bite: makes room for one now, as the
    /// allocator takes its time at times, and under a lock it would be that of others too.
    pub(super) fn in_bites(mut self) -> Self {
        self.room.reserve(BITE);
        self
    }

    /// The same for the invalidation that began `generation`.
    pub(super) fn of_generation(mut self, generation: u64) -> Self {
        self.generation = Some(generation);
        self
    }

    /// Runs the caller's code and keeps its panic for the [`end`](Self::end); `None` if it did.
    pub(super) fn catch<R>(&mut self, work: impl FnOnce() -> R) -> Option<R> {
        // Unwind safe: where a panic is caught, nothing of the cache is left half changed.
        match catch_unwind(AssertUnwindSafe(work)) {
            Ok(result) => Some(result),
            Err(panic) => {
                self.panic.get_or_insert(panic);
                None
            }
        }
    }

    /// [`catch`](Self::catch) of work that needs the notifier itself.
    pub(super) fn catch_all<R>(&mut self, work: impl FnOnce(&mut Self) -> R) -> Option<R> {
        match catch_unwind(AssertUnwindSafe(|| work(self))) {
            Ok(result) => Some(result),
            Err(panic) => {
                self.panic.get_or_insert(panic);
                None
            }
        }
    }

    /// Tells the listener of entries that have left, in their order, and drops them.
    pub(super) fn dispose_all(&mut self, entries: impl Iterator<Item = Removed<K, V>>) {
        self.dispose_each(entries, true);
    }

    /// [`dispose_all`](Self::dispose_all) of one.
    pub(super) fn dispose(&mut self, entry: Removed<K, V>) {
        self.dispose_each(std::iter::once(entry), true);
    }

    /// Tells the listener of an entry that has left, whose value the caller keeps.
    pub(super) fn tell(&mut self, key: K, value: &V, cause: RemovalCause)
    where
        V: Clone,
    {
        if self.removals.is_inside() {
            if let Some(value) = self.catch(|| value.clone()) {
                self.removals.queue(std::iter::once((key, value, cause)));
            }
            return;
        }
        let inside = self.removals.listener.is_some().then(|| Inside::enter(self.removals));
        self.call(&key, value, cause, true);
        self.catch(|| drop(key));
        if inside.is_some() {
            self.dispose_queued();
        }
    }

    /// Drops a bite of what invalidations left behind; says whether there was any.
    pub(super) fn reclaim_bite(&mut self) -> bool {
        let Some(Bite { entries, amount, owner }) = self.removals.next_bite() else { return false };
        self.dispose_each(entries.into_iter(), owner.is_some() && owner == self.generation);
        self.removals.entries.fetch_sub(amount.entries, Relaxed);
        self.removals.weight.fetch_sub(amount.weight, Relaxed);
        true
    }

    /// Last of all: drops a bite of what invalidations left behind, and goes on with the first panic,
    /// if there was one.
    pub(crate) fn end(mut self) {
        if self.removals.has_backlog() {
            self.reclaim_bite();
        }
        if let Some(panic) = self.panic {
            resume_unwind(panic);
        }
    }

    fn dispose_each(&mut self, entries: impl Iterator<Item = Removed<K, V>>, is_own: bool) {
        let removals = self.removals;
        if removals.is_inside() {
            return removals.queue(entries);
        }
        // Entered for the drops as well: what they make leave is told after them.
        let mut inside = None;
        for (key, value, cause) in entries {
            if removals.listener.is_some() && inside.is_none() {
                inside = Some(Inside::enter(removals));
            }
            self.call(&key, &value, cause, is_own);
            self.catch(|| drop((key, value)));
        }
        if inside.is_some() {
            self.dispose_queued();
        }
    }

    /// What the listener's own operations made leave: each is another operation's, so a panic for
    /// one keeps none of the others from the listener.
    fn dispose_queued(&mut self) {
        while let Some((key, value, cause)) = self.removals.next_queued() {
            self.call(&key, &value, cause, false);
            self.catch(|| drop((key, value)));
        }
    }

    fn call(&mut self, key: &K, value: &V, cause: RemovalCause, is_own: bool) {
        if let Some(listener) = &self.removals.listener
            && !(is_own && self.is_silent)
            && self.catch(|| listener(key, value, cause)).is_none()
        {
            self.is_silent |= is_own;
        }
    }
}
