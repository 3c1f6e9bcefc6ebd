//! W-TinyLFU with a window that adapts (Einziger, Eytan, Friedman and Manes, Middleware 2018), as
//! Caffeine has it: hill climbing by the hit ratio of samples. Uses are counted for each id up to 15 and
//! halved as in a sketch of four bits, but without its collisions.

use super::ids;
use super::list::List;

/// Of the capacity: the window at first, and each step of the climber.
const WINDOW: f64 = 0.01;
const STEP: f64 = 0.0625;
/// Of the main part: what is protected.
const PROTECTED: f64 = 0.8;
/// Of the capacity, in requests: after how many uses are halved, and the climber takes a step.
const SAMPLE: usize = 10;
/// What is left of a step after each sample, and the change of the hit ratio that begins anew.
const DECAY: f64 = 0.98;
const RESTART: f64 = 0.05;
const MOST_USES: u8 = 15;

struct Cache {
    window: List,
    probation: List,
    protected: List,
    uses: Vec<u8>,
    window_room: usize,
    capacity: usize,
}

impl Cache {
    fn protected_room(&self) -> usize {
        ((self.capacity - self.window_room) as f64 * PROTECTED) as usize
    }

    fn hit(&mut self, id: u32) -> bool {
        if self.window.contains(id) {
            self.window.push(id);
        } else if self.protected.contains(id) {
            self.protected.push(id);
        } else if self.probation.remove(id) {
            self.protected.push(id);
            self.demote();
        } else {
            return false;
        }
        true
    }

    fn demote(&mut self) {
        while self.protected.len() > self.protected_room() {
            let Some(oldest) = self.protected.pop() else { break };
            self.probation.push(oldest);
        }
    }

    fn insert(&mut self, id: u32) {
        self.window.push(id);
        while self.window.len() > self.window_room {
            let candidate = self.window.pop().expect("it is over its room");
            let kept = self.window.len() + self.probation.len() + self.protected.len();
            if kept < self.capacity {
                self.probation.push(candidate);
                continue;
            }
            let victim = self.probation.oldest().or(self.protected.oldest());
            let Some(victim) = victim else { continue };
            if self.uses[candidate as usize] > self.uses[victim as usize] {
                let _ = self.probation.remove(victim) || self.protected.remove(victim);
                self.probation.push(candidate);
            }
        }
    }

    /// Gives the window other room, and entries from one part to the other.
    fn resize(&mut self, room: usize) {
        self.window_room = room.clamp(1, self.capacity - 1);
        while self.window.len() > self.window_room {
            let Some(oldest) = self.window.pop() else { break };
            self.probation.push(oldest);
        }
        let main_room = self.capacity - self.window_room;
        while self.probation.len() + self.protected.len() > main_room {
            let Some(oldest) = self.probation.pop().or_else(|| self.protected.pop()) else { break };
            self.window.push(oldest);
        }
        self.demote();
    }
}

pub(super) fn hits(requests: &[u32], capacity: usize) -> usize {
    let ids = ids(requests);
    let mut cache = Cache {
        window: List::new(ids),
        probation: List::new(ids),
        protected: List::new(ids),
        uses: vec![0; ids],
        window_room: ((capacity as f64 * WINDOW) as usize).max(1),
        capacity,
    };
    let sample = SAMPLE * capacity;
    let (mut hits, mut hits_before) = (0, 0);
    let (mut ratio_before, mut step) = (0.0, STEP * capacity as f64);
    let mut room = cache.window_room as f64;
    for (now, &id) in requests.iter().enumerate() {
        let uses = &mut cache.uses[id as usize];
        *uses = (*uses + 1).min(MOST_USES);
        if cache.hit(id) {
            hits += 1;
        } else {
            cache.insert(id);
        }
        if (now + 1).is_multiple_of(sample) {
            cache.uses.iter_mut().for_each(|uses| *uses /= 2);
            let ratio = (hits - hits_before) as f64 / sample as f64;
            let change = ratio - ratio_before;
            if change < 0.0 {
                step = -step;
            }
            room = (room + step).clamp(1.0, capacity as f64 - 1.0);
            cache.resize(room as usize);
            step = if change.abs() >= RESTART {
                (STEP * capacity as f64).copysign(step)
            } else {
                step * DECAY
            };
            (hits_before, ratio_before) = (hits, ratio);
        }
    }
    hits
}
