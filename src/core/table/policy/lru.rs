//! Exact least-recently-used order, whose hits need only the read lock.
//!
//! A list in order of use would have to be relinked by each hit, under the write lock. Here a hit
//! changes the tick of its entry and nothing else, see [`ticks`](super::super::ticks), and the order is
//! put right when something is to leave: in lists as far as they go, see [`by_use`](super::by_use), else
//! in a heap by tick. Where the one on top of the heap was used since, it sinks to its new place. The victim
//! is the older of the first of each.
//!
//! The idea of a hit that leaves the order to others is that of Caffeine and its descendants. They note
//! hits in a buffer that is played back, and may drop notes under load; ticks are not dropped.

use super::super::heap::Heap;
use super::super::index::SlotHash;
use super::super::list::validate_lists;
use super::super::slots::SlotId;
use super::super::ticks::{LastUse, Looks};
use super::by_use::{ByUse, Nodes, Ticked};
use super::contract::{HitNote, Policy};

#[derive(Debug)]
pub(in super::super) struct Lru {
    nodes: Nodes,
    listed: ByUse,
    /// The entries in no list, by the tick that was seen last.
    used: Heap<u64>,
}

impl Default for Lru {
    fn default() -> Self {
        Self { nodes: Nodes::new(true), listed: ByUse::default(), used: Heap::default() }
    }
}

impl Lru {
    #[inline(never)]
    fn look_for_victim(
        &mut self,
        keep: Option<SlotId>,
        last_use: impl LastUse,
        looks: &mut Looks,
    ) -> Option<SlotId> {
        let oldest = match self.search(keep, last_use, looks) {
            Ok(oldest) => oldest,
            Err(known) if looks.suffice(self.listed.len() + self.used.len()) => Some(known),
            Err(_) => return None,
        };
        looks.found();
        oldest.map(|(_, slot)| slot)
    }

    /// The one that was used least recently; an error is the oldest known where the looks were used up.
    fn search(
        &mut self,
        keep: Option<SlotId>,
        last_use: impl LastUse,
        looks: &mut Looks,
    ) -> Result<Option<Ticked>, Ticked> {
        let leave = |(tick, slot)| self.used.insert(slot, tick);
        let listed = self.listed.search(&mut self.nodes, keep, &last_use, looks, leave)?;
        // What stands in the heap was not used last before the tick that it is known by.
        let first = self.used.first();
        if listed.is_some_and(|(tick, _)| first.is_none_or(|(told, _)| told > tick)) {
            return Ok(listed);
        }
        let used = self.used.settled_first(keep, |slot, _| last_use(slot), looks)?;
        Ok(listed.into_iter().chain(used).min())
    }

    #[inline(never)]
    fn exchange_anywhere(&mut self, slot: SlotId) {
        self.remove(slot);
        self.listed.insert(&mut self.nodes, slot);
    }
}

impl Policy for Lru {
    fn insert(&mut self, slot: SlotId, _: SlotHash, _: u64) {
        self.listed.insert(&mut self.nodes, slot);
    }

    #[inline]
    fn hit(&self, _: SlotId) -> HitNote {
        HitNote::Ordered
    }

    #[inline]
    fn touch(&mut self, _: SlotId) -> HitNote {
        HitNote::Ordered
    }

    fn remove(&mut self, slot: SlotId) {
        if self.nodes.holds(slot) {
            self.listed.remove(&mut self.nodes, slot);
        } else {
            self.used.remove(slot);
        }
    }

    #[inline]
    fn exchange(&mut self, slot: SlotId, _: SlotHash, _: SlotHash, _: u64) {
        if !self.listed.exchange_back(&mut self.nodes, slot) {
            self.exchange_anywhere(slot);
        }
    }

    #[inline]
    fn victim(
        &mut self,
        keep: Option<SlotId>,
        last_use: impl LastUse,
        looks: &mut Looks,
    ) -> Option<SlotId> {
        if keep.is_none()
            && self.used.len() == 0
            && let first @ Some(_) = self.listed.first_in_line(&mut self.nodes, &last_use, looks)
        {
            looks.found();
            return first;
        }
        self.look_for_victim(keep, last_use, looks)
    }

    // The tick says it.
    fn heat(&self, _: SlotId) -> u32 {
        0
    }

    fn validate(&self, occupied: &mut dyn Iterator<Item = SlotId>) {
        let mut listed = self.used.validate_among(occupied).into_iter();
        validate_lists(&self.listed.validate(&self.nodes), &self.nodes.links, &mut listed);
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    const HASH: SlotHash = SlotHash(0);
    const SLOTS: u32 = 200;

    fn slot(bits: u32) -> SlotId {
        SlotId::from_bits(bits)
    }

    /// The order, with the ticks that a table would keep.
    struct Ticked {
        lru: Lru,
        ticks: Vec<u64>,
        newest: u64,
        looks: Looks,
    }

    impl Ticked {
        fn new() -> Self {
            let ticks = vec![0; SLOTS as usize];
            Self { lru: Lru::default(), ticks, newest: 0, looks: Looks::default() }
        }

        fn insert(&mut self, id: u32) {
            self.newest += 2;
            self.ticks[id as usize] = self.newest - 1;
            self.lru.insert(slot(id), HASH, 1);
        }

        fn hit(&mut self, id: u32) {
            assert_eq!(self.lru.hit(slot(id)), HitNote::Ordered);
            self.newest += 2;
            self.ticks[id as usize] = self.newest;
        }

        /// The victim of one lock hold.
        fn victim(&mut self, keep: Option<u32>) -> Option<u32> {
            self.looks.reset();
            let Self { lru, ticks, looks, .. } = self;
            let last_use = |id: SlotId| ticks[id.bits() as usize];
            lru.victim(keep.map(slot), last_use, looks).map(SlotId::bits)
        }

        /// The victim of as many as it takes, and how many that were.
        fn victim_at_last(&mut self, keep: Option<u32>) -> (Option<u32>, usize) {
            for holds in 1.. {
                let victim = self.victim(keep);
                if victim.is_some() || !self.looks.are_used_up() {
                    return (victim, holds);
                }
            }
            unreachable!()
        }
    }

    #[test]
    fn whatever_was_used_last_leaves_last() {
        let mut ticked = Ticked::new();
        (0..4).for_each(|id| ticked.insert(id));
        [1, 0, 0, 1, 2, 1].into_iter().for_each(|id| ticked.hit(id));
        assert_eq!(ticked.victim(Some(3)), Some(0));
        let mut order = Vec::new();
        while let Some(victim) = ticked.victim(None) {
            ticked.lru.evict(slot(victim), HASH);
            order.push(victim);
        }
        assert_eq!(order, [3, 0, 2, 1]);
    }

    #[test]
    fn nothing_to_evict_but_what_is_kept() {
        let mut ticked = Ticked::new();
        assert_eq!(ticked.victim(None), None);
        ticked.insert(0);
        assert_eq!(ticked.victim(Some(0)), None);
        ticked.hit(0);
        assert_eq!(ticked.victim(None), Some(0));
        assert_eq!(ticked.victim(Some(0)), None, "nor from the heap");
    }

    #[test]
    fn a_lock_hold_puts_a_bite_right_and_the_next_goes_on() {
        let mut ticked = Ticked::new();
        (0..SLOTS).for_each(|id| ticked.insert(id));
        for turn in 0..3 {
            // All of them, in another order than the one known.
            (0..SLOTS).for_each(|at| ticked.hit(at * 77 % SLOTS));
            assert_eq!(ticked.victim(None), None, "there is no answer yet");
            assert!(ticked.looks.are_used_up());
            assert!(turn > 0 || ticked.lru.used.len() < 64, "one came up in order");
            let (victim, holds) = ticked.victim_at_last(None);
            assert_eq!((victim, holds), (Some(0), SLOTS as usize / 64), "exactly the oldest");
            assert_eq!(ticked.victim_at_last(None), (Some(0), 1), "and it is known now");
        }
    }

    #[test]
    fn a_search_ends_though_all_is_used_again_meanwhile() {
        let mut ticked = Ticked::new();
        (0..SLOTS).for_each(|id| ticked.insert(id));
        let mut holds = 0;
        let victim = loop {
            (0..SLOTS).for_each(|id| ticked.hit(id));
            holds += 1;
            if let Some(victim) = ticked.victim(None) {
                break victim;
            }
        };
        assert!(holds <= 2 * SLOTS as usize / 64 + 1, "{holds} lock holds");
        ticked.lru.evict(slot(victim), HASH);
        ticked.lru.validate(&mut (0..SLOTS).filter(|&id| id != victim).map(slot));
    }

    #[test]
    fn behaves_like_a_list_that_every_hit_relinks() {
        let (steps, slots) = if cfg!(miri) { (300, 8) } else { (100_000, SLOTS) };
        // More or fewer hits for an eviction.
        for hits in [1, 4, 64, 1000] {
            let (mut ticked, mut model) = (Ticked::new(), Vec::new());
            let mut state = 1u64;
            let mut random = |below: u32| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 33) as u32 % below
            };
            for step in 0..steps {
                let id = random(slots);
                let place = model.iter().position(|&other| other == id);
                match (place, random(hits + 3)) {
                    (None, 0..=2) => {
                        ticked.insert(id);
                        model.push(id);
                    }
                    (None, _) => {}
                    (Some(place), 0) => {
                        ticked.lru.remove(slot(id));
                        model.remove(place);
                    }
                    (Some(_), what @ 1..=2) => {
                        let keep = (what == 1).then_some(id);
                        let expected = model.iter().find(|&&other| keep != Some(other)).copied();
                        assert_eq!(ticked.victim_at_last(keep).0, expected);
                        if let Some(victim) = expected {
                            ticked.lru.evict(slot(victim), HASH);
                            model.retain(|&other| other != victim);
                        }
                    }
                    (Some(place), _) => {
                        ticked.hit(id);
                        model.remove(place);
                        model.push(id);
                    }
                }
                if step % 100 == 99 {
                    let mut occupied = model.clone();
                    occupied.sort_unstable();
                    ticked.lru.validate(&mut occupied.into_iter().map(slot));
                }
            }
        }
    }
}
