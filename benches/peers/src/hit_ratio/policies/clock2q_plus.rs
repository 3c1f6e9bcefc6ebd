//! `Clock2Q+` (Zhai et al., 2025, arXiv 2511.21958): a small FIFO, a clock and a queue of ghosts, as
//! S3-FIFO has them; a use of an entry that has just come counts for nothing, as it belongs to the first.

use std::collections::VecDeque;

use super::ids;
use super::list::List;

/// Of the capacity: the small FIFO, and the ghosts.
const SMALL: f64 = 0.1;
const GHOSTS: f64 = 0.5;
/// Of the small FIFO: in its newest part a use is not noted.
const WINDOW: f64 = 0.5;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Out,
    Small,
    Main,
}

pub(super) fn hits(requests: &[u32], capacity: usize) -> usize {
    let part = |of: usize, part: f64| ((of as f64 * part) as usize).max(1);
    let small_room = part(capacity, SMALL);
    let window = part(small_room, WINDOW) as u64;
    let mut places = vec![Place::Out; ids(requests)];
    let mut used = vec![false; places.len()];
    // When an entry came into the small FIFO, counted in entries that came into it.
    let mut came = vec![0_u64; places.len()];
    let mut arrivals = 0_u64;
    let (mut small, mut main) = (VecDeque::new(), VecDeque::new());
    let mut ghosts = List::new(places.len());
    let mut hits = 0;
    for &id in requests {
        let at = id as usize;
        match places[at] {
            Place::Small => {
                hits += 1;
                used[at] |= arrivals - came[at] >= window;
                continue;
            }
            Place::Main => {
                hits += 1;
                used[at] = true;
                continue;
            }
            Place::Out => {}
        }
        while small.len() + main.len() == capacity {
            let from_small = small.len() >= small_room || main.is_empty();
            let queue = if from_small { &mut small } else { &mut main };
            let leaves: u32 = queue.pop_front().expect("one of them is full");
            if std::mem::take(&mut used[leaves as usize]) {
                main.push_back(leaves);
                places[leaves as usize] = Place::Main;
                continue;
            }
            places[leaves as usize] = Place::Out;
            if from_small {
                ghosts.push(leaves);
                if ghosts.len() > part(capacity, GHOSTS) {
                    ghosts.pop();
                }
            }
        }
        if ghosts.remove(id) {
            main.push_back(id);
            places[at] = Place::Main;
        } else {
            small.push_back(id);
            places[at] = Place::Small;
            came[at] = arrivals;
            arrivals += 1;
        }
        used[at] = false;
    }
    hits
}
