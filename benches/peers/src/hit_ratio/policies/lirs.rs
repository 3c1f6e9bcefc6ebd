//! LIRS (Jiang and Zhang, SIGMETRICS 2002): an entry is kept by the distance between its last two uses.

use super::ids;
use super::list::List;

/// Of the capacity: what is kept for entries whose last two uses are far apart.
const HIR: f64 = 0.01;
/// Of the capacity: keys that are known and not kept.
const GHOSTS: usize = 2;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Neither kept nor known, or known by the stack only.
    Out,
    Lir,
    Hir,
}

struct Lirs {
    states: Vec<State>,
    /// The most recently used of all kinds; its oldest is always an LIR entry.
    stack: List,
    /// Kept HIR entries, in the order in which they leave.
    queue: List,
    /// In the stack, but no longer kept.
    ghosts: List,
    lirs: usize,
}

impl Lirs {
    /// Takes from the stack's old end what is no LIR entry.
    fn prune(&mut self) {
        while let Some(oldest) = self.stack.oldest() {
            if self.states[oldest as usize] == State::Lir {
                break;
            }
            self.stack.remove(oldest);
            self.ghosts.remove(oldest);
        }
    }

    /// Makes `id` an LIR entry, and the oldest of these an HIR entry where there are too many.
    fn promote(&mut self, id: u32, most: usize) {
        self.states[id as usize] = State::Lir;
        self.stack.push(id);
        self.lirs += 1;
        if self.lirs > most {
            let oldest = self.stack.pop().expect("LIR entries are in the stack");
            self.states[oldest as usize] = State::Hir;
            self.lirs -= 1;
            self.queue.push(oldest);
        }
        self.prune();
    }
}

pub(super) fn hits(requests: &[u32], capacity: usize) -> usize {
    let ids = ids(requests);
    let hirs = ((capacity as f64 * HIR) as usize).max(2).min(capacity - 1);
    let most = capacity - hirs;
    let mut lirs = Lirs {
        states: vec![State::Out; ids],
        stack: List::new(ids),
        queue: List::new(ids),
        ghosts: List::new(ids),
        lirs: 0,
    };
    let mut hits = 0;
    for &id in requests {
        match lirs.states[id as usize] {
            State::Lir => {
                hits += 1;
                lirs.stack.push(id);
                lirs.prune();
            }
            State::Hir => {
                hits += 1;
                if lirs.stack.contains(id) {
                    lirs.queue.remove(id);
                    lirs.promote(id, most);
                } else {
                    lirs.stack.push(id);
                    lirs.queue.push(id);
                }
            }
            State::Out if lirs.lirs < most => lirs.promote(id, most),
            State::Out => {
                if lirs.lirs + lirs.queue.len() == capacity {
                    let leaves = lirs.queue.pop().expect("LIR entries alone do not fill it");
                    lirs.states[leaves as usize] = State::Out;
                    if lirs.stack.contains(leaves) {
                        lirs.ghosts.push(leaves);
                    }
                    if lirs.ghosts.len() > GHOSTS * capacity {
                        let forgotten = lirs.ghosts.pop().expect("there are some");
                        lirs.stack.remove(forgotten);
                    }
                }
                if lirs.ghosts.remove(id) {
                    lirs.promote(id, most);
                } else {
                    lirs.states[id as usize] = State::Hir;
                    lirs.stack.push(id);
                    lirs.queue.push(id);
                }
            }
        }
    }
    hits
}
