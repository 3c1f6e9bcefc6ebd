//! One limit for several owners, of which none can take it all: the dynamic threshold of Choudhury
//! and Hahne ("Dynamic Queue Length Thresholds for Shared-Memory Packet Switches", IEEE/ACM
//! Transactions on Networking 6(2), 1998). An owner may hold at most `factor` times what is free, so
//! one alone holds `factor / (factor + 1)` of the whole, a second the same part of the rest, and so
//! on: there is something left for the next, whatever the first ones do with theirs.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// A number of places, shared among owners that are told apart by name (here: models).
#[derive(Debug)]
pub(crate) struct Shares {
    total: usize,
    /// How many times what is free one owner may hold; `None` where there is a single owner, which
    /// may hold everything.
    factor: Option<usize>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    free: usize,
    /// Owners that hold something or wait; the others are forgotten.
    owners: HashMap<Arc<str>, Owner>,
    /// Owners that wait, the one whose turn is next in front.
    turns: VecDeque<Arc<str>>,
}

#[derive(Debug, Default)]
struct Owner {
    held: usize,
    waiting: VecDeque<oneshot::Sender<Share>>,
}

/// Places that are held until this is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    shares: Arc<Shares>,
    owner: Arc<str>,
    places: usize,
}

impl Shares {
    pub(crate) fn new(total: usize, factor: Option<usize>) -> Arc<Self> {
        let state = State { free: total, owners: HashMap::new(), turns: VecDeque::new() };
        Arc::new(Self { total, factor, state: Mutex::new(state) })
    }

    /// How many places one owner gets while no other holds any.
    pub(crate) fn alone(&self) -> usize {
        match self.factor {
            None => self.total,
            // The most h with h <= factor * (total - (h - 1)).
            Some(factor) => (factor * (self.total + 1) / (factor + 1)).clamp(1, self.total),
        }
    }

    /// Places that somebody holds.
    pub(crate) fn held(&self) -> usize {
        self.total - self.state.lock().free
    }

    /// `places` for `owner`, if it may have them now. `O(1)`, one short lock.
    pub(crate) fn try_take(self: &Arc<Self>, owner: &Arc<str>, places: usize) -> Option<Share> {
        let mut state = self.state.lock();
        let held = state.owners.get(owner).map_or(0, |owner| owner.held);
        if !self.may_take(held, state.free, places) {
            return None;
        }
        Some(self.grant(&mut state, owner, places))
    }

    /// One place for `owner`, after those of its own that asked before.
    ///
    /// Cancel safe: dropped while it waits, it leaves the queue.
    pub(crate) async fn take(self: &Arc<Self>, owner: &Arc<str>) -> Share {
        loop {
            let granted = {
                let mut state = self.state.lock();
                let entry = state.owners.entry(Arc::clone(owner)).or_default();
                let (held, first) = (entry.held, entry.waiting.is_empty());
                if first && self.may_take(held, state.free, 1) {
                    return self.grant(&mut state, owner, 1);
                }
                let (sender, granted) = oneshot::channel();
                if first {
                    state.turns.push_back(Arc::clone(owner));
                }
                if let Some(entry) = state.owners.get_mut(owner) {
                    entry.waiting.push_back(sender);
                }
                granted
            };
            // A sender is dropped only with the whole queue, so this does not loop in practice.
            if let Ok(share) = granted.await {
                return share;
            }
        }
    }

    fn may_take(&self, held: usize, free: usize, places: usize) -> bool {
        let within = match self.factor {
            None => true,
            // Whoever holds nothing may have what is free: the threshold is never zero.
            Some(factor) => held == 0 || held + places <= factor * free,
        };
        places <= free && within
    }

    fn grant(self: &Arc<Self>, state: &mut State, owner: &Arc<str>, places: usize) -> Share {
        state.free -= places;
        state.owners.entry(Arc::clone(owner)).or_default().held += places;
        Share { shares: Arc::clone(self), owner: Arc::clone(owner), places }
    }

    /// Gives places back and hands on what now is free: one place to each owner in turn. `O(owners
    /// that wait + places granted)`.
    fn give_back(self: &Arc<Self>, owner: &Arc<str>, places: usize) {
        // Shares whose receiver left in the meantime; dropped without the lock, as that takes it.
        let mut unwanted = Vec::new();
        let mut state = self.state.lock();
        state.free += places;
        if let Some(entry) = state.owners.get_mut(owner) {
            entry.held -= places;
        }
        let mut passed_over = 0;
        while state.free > 0 && passed_over < state.turns.len() {
            let Some(next) = state.turns.pop_front() else { break };
            let free = state.free;
            let Some(entry) = state.owners.get_mut(&next) else { continue };
            while entry.waiting.front().is_some_and(oneshot::Sender::is_closed) {
                entry.waiting.pop_front();
            }
            if entry.waiting.is_empty() {
                if entry.held == 0 {
                    state.owners.remove(&next);
                }
                continue;
            }
            if !self.may_take(entry.held, free, 1) {
                passed_over += 1;
                state.turns.push_back(next);
                continue;
            }
            let sender = entry.waiting.pop_front();
            let more = !entry.waiting.is_empty();
            let share = self.grant(&mut state, &next, 1);
            if more {
                state.turns.push_back(next);
            }
            passed_over = 0;
            if let Some(Err(share)) = sender.map(|sender| sender.send(share)) {
                unwanted.push(share);
            }
        }
        let idle = |entry: &Owner| entry.held == 0 && entry.waiting.is_empty();
        if state.owners.get(owner).is_some_and(idle) {
            state.owners.remove(owner);
        }
        drop(state);
        drop(unwanted);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shares.give_back(&self.owner, self.places);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> [Arc<str>; 4] {
        ["a", "b", "c", "d"].map(Arc::from)
    }

    fn fill(shares: &Arc<Shares>, owner: &Arc<str>) -> Vec<Share> {
        std::iter::from_fn(|| shares.try_take(owner, 1)).collect()
    }

    #[test]
    fn whoever_comes_next_finds_something_left() {
        let [a, b, c, d] = names();
        let shares = Shares::new(8, Some(1));
        let held = [&a, &b, &c, &d].map(|owner| fill(&shares, owner));
        assert_eq!(held.each_ref().map(Vec::len), [4, 2, 1, 1]);
        assert_eq!(shares.alone(), 4);
        assert_eq!(shares.held(), 8);
        drop(held);
        assert_eq!(shares.held(), 0);
        assert!(shares.state.lock().owners.is_empty());
        assert_eq!(fill(&Shares::new(8, None), &a).len(), 8);
        for total in 1..50 {
            for factor in [1, 2, 8] {
                let shares = Shares::new(total, Some(factor));
                assert_eq!(fill(&shares, &a).len(), shares.alone(), "{total} {factor}");
            }
        }
    }

    #[tokio::test]
    async fn owners_that_wait_take_turns_and_those_that_left_are_skipped() {
        let [a, b, ..] = names();
        let shares = Shares::new(2, None);
        let mut held = fill(&shares, &a);
        let wait = |owner: &Arc<str>| {
            let (shares, owner) = (Arc::clone(&shares), Arc::clone(owner));
            tokio::spawn(async move { shares.take(&owner).await })
        };
        let first = wait(&a);
        tokio::task::yield_now().await;
        let (left, second, other) = (wait(&a), wait(&a), wait(&b));
        tokio::task::yield_now().await;
        left.abort();
        assert!(left.await.is_err());
        held.pop();
        let first = first.await.unwrap();
        // Not the second of the same owner: the other's turn has come.
        held.pop();
        let other = other.await.unwrap();
        assert!(!second.is_finished());
        drop(first);
        let second = second.await.unwrap();
        drop((second, other));
        assert_eq!(shares.held(), 0);
        assert!(shares.state.lock().owners.is_empty());
        assert!(shares.state.lock().turns.is_empty());
    }
}
