//! What can be said exactly: LRU, FIFO, and the optimum. Hits of a replay.

use std::collections::{BTreeSet, VecDeque};

fn ids(requests: &[u32]) -> usize {
    requests.iter().max().map_or(0, |&most| most as usize + 1)
}

pub(super) fn lru(requests: &[u32], capacity: usize) -> usize {
    // When each id was last asked for, of those that are in; and the same by time.
    let mut last = vec![usize::MAX; ids(requests)];
    let mut by_age = BTreeSet::new();
    let mut hits = 0;
    for (now, &id) in requests.iter().enumerate() {
        let last = &mut last[id as usize];
        if by_age.remove(&(*last, id)) {
            hits += 1;
        } else if by_age.len() == capacity {
            by_age.pop_first();
        }
        *last = now;
        by_age.insert((now, id));
    }
    hits
}

pub(super) fn fifo(requests: &[u32], capacity: usize) -> usize {
    let mut is_in = vec![false; ids(requests)];
    let mut queue = VecDeque::with_capacity(capacity);
    let mut hits = 0;
    for &id in requests {
        if is_in[id as usize] {
            hits += 1;
            continue;
        }
        if queue.len() == capacity {
            let first: u32 = queue.pop_front().expect("a full queue");
            is_in[first as usize] = false;
        }
        queue.push_back(id);
        is_in[id as usize] = true;
    }
    hits
}

/// Belady's, with the right to turn the newcomer away.
pub(super) fn optimum(requests: &[u32], capacity: usize) -> usize {
    const NEVER: usize = usize::MAX;
    let mut next_use = vec![NEVER; requests.len()];
    let mut seen = vec![NEVER; ids(requests)];
    for (now, &id) in requests.iter().enumerate().rev() {
        next_use[now] = std::mem::replace(&mut seen[id as usize], now);
    }
    // Of those that are in, when each is asked for next. No two at the same time, and nobody is kept
    // who is never asked for again.
    let mut by_next = BTreeSet::new();
    let mut hits = 0;
    for (now, &next) in next_use.iter().enumerate() {
        if by_next.remove(&now) {
            hits += 1;
        }
        if next != NEVER {
            by_next.insert(next);
            if by_next.len() > capacity {
                by_next.pop_last();
            }
        }
    }
    hits
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Over everything that could leave or be turned away.
    fn best(requests: &[u32], capacity: usize, held: &BTreeSet<u32>) -> usize {
        let Some((id, rest)) = requests.split_first() else { return 0 };
        let hit = usize::from(held.contains(id));
        let mut with = held.clone();
        with.insert(*id);
        let ways = if with.len() <= capacity {
            vec![with]
        } else {
            let without = |leaves: &u32| {
                with.iter().copied().filter(|other| other != leaves).collect::<BTreeSet<_>>()
            };
            with.iter().map(without).collect()
        };
        hit + ways.iter().map(|held| best(rest, capacity, held)).max().unwrap_or(0)
    }

    #[test]
    fn nobody_does_better_than_the_optimum() {
        let mut state = 1_u64;
        for _ in 0..200 {
            let requests: Vec<_> = (0..9)
                .map(|_| {
                    state = crate::keys::mix(state);
                    (state % 5) as u32
                })
                .collect();
            for capacity in 1..4 {
                let found = optimum(&requests, capacity);
                assert_eq!(found, best(&requests, capacity, &BTreeSet::new()), "{requests:?}");
                assert!(lru(&requests, capacity) <= found && fifo(&requests, capacity) <= found);
            }
        }
    }

    #[test]
    fn lru_and_fifo_differ_where_an_old_one_is_used() {
        let requests = [0, 1, 0, 2, 0];
        assert_eq!((lru(&requests, 2), fifo(&requests, 2)), (2, 1));
    }
}
