//! MQ (Zhou, Philbin and Li, USENIX 2001): queues by the logarithm of the number of uses; an entry that
//! is not used for a life sinks to the queue below.

use super::ids;
use super::list::List;

const QUEUES: usize = 8;
/// Of the capacity: keys that left, whose uses are remembered.
const GHOSTS: usize = 4;
/// Of the capacity, in requests: how long an entry stays in its queue without a use.
const LIFE: u64 = 4;

pub(super) fn hits(requests: &[u32], capacity: usize) -> usize {
    let ids = ids(requests);
    let mut queues: Vec<List> = (0..QUEUES).map(|_| List::new(ids)).collect();
    let mut ghosts = List::new(ids);
    let mut uses = vec![0_u32; ids];
    let mut expires = vec![0_u64; ids];
    // By id: the queue it is in.
    let mut queue = vec![None; ids];
    let life = LIFE * capacity as u64;
    let (mut kept, mut hits) = (0, 0);
    for (now, &id) in (0..).zip(requests) {
        let at = id as usize;
        if let Some(old) = queue[at] {
            hits += 1;
            let old: &mut List = &mut queues[old];
            old.remove(id);
        } else {
            if kept == capacity {
                let fullest = queues.iter_mut().find(|queue| queue.len() > 0);
                let leaves = fullest.and_then(List::pop).expect("the cache is full");
                queue[leaves as usize] = None;
                ghosts.push(leaves);
                if ghosts.len() > GHOSTS * capacity {
                    let forgotten = ghosts.pop().expect("there are some");
                    uses[forgotten as usize] = 0;
                }
            } else {
                kept += 1;
            }
            ghosts.remove(id);
        }
        uses[at] += 1;
        expires[at] = now + life;
        let level = (uses[at].ilog2() as usize).min(QUEUES - 1);
        queues[level].push(id);
        queue[at] = Some(level);
        for level in 1..QUEUES {
            let Some(oldest) = queues[level].oldest() else { continue };
            if expires[oldest as usize] < now {
                queues[level].remove(oldest);
                queues[level - 1].push(oldest);
                queue[oldest as usize] = Some(level - 1);
                expires[oldest as usize] = now + life;
            }
        }
    }
    hits
}
