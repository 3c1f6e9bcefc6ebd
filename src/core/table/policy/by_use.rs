//! Entries by their last use, in lists that are put right when one of them is to leave.
//!
//! What was not used since it came stands in a list, each new entry in front: as that is the order of
//! their ticks, nothing but the back of it is looked at. Where the entry there was used since, it moves
//! in front of a second list, if it was used after all that is in there, which is so where entries are
//! used in the order in which they came; else out of the lists, for a heap that [`lru`](super::lru) and
//! [`by_size`](super::by_size) have. Where the first of those was used since, it moves likewise. However
//! often an entry was used meanwhile, that is one step, and what is never used costs what it does in a
//! queue.

use super::super::list::{Links, List};
use super::super::slots::{SlotId, Slots};
use super::super::ticks::{LastUse, Looks, is_of_a_use};

/// Where slots stand in their lists, if they are in one.
#[derive(Debug)]
pub(super) struct Nodes {
    pub(super) links: Slots<Links>,
    /// The tick by which a slot stands in the list of the used ones; 0 elsewhere. Empty where no order
    /// of use is kept.
    told: Slots<u64>,
    by_use: bool,
}

impl Nodes {
    pub(super) fn new(by_use: bool) -> Self {
        Self { links: Slots::default(), told: Slots::default(), by_use }
    }

    /// Whether entries leave in the order of their last use, and not of the last write.
    pub(super) fn are_by_use(&self) -> bool {
        self.by_use
    }

    #[inline]
    pub(super) fn holds(&self, slot: SlotId) -> bool {
        List::holds(&self.links, slot)
    }

    #[inline]
    fn told(&self, slot: SlotId) -> u64 {
        self.told.get(slot).copied().unwrap_or_default()
    }
}

/// An entry with its tick.
pub(super) type Ticked = (u64, SlotId);

/// Both lists. The nodes are passed to each call, as those of [`List`] are.
#[derive(Debug, Default)]
pub(super) struct ByUse {
    /// The entries that were not used when they were looked at last, the youngest in front.
    unused: List,
    /// Those found used that came up in the order of their uses, the last used in front.
    in_order: List,
}

impl ByUse {
    pub(super) fn len(&self) -> usize {
        self.unused.len() + self.in_order.len()
    }

    /// Adds an entry that comes in.
    pub(super) fn insert(&mut self, nodes: &mut Nodes, slot: SlotId) {
        self.unused.push_front(&mut nodes.links, slot);
        if nodes.by_use {
            nodes.told.reach(slot);
        }
    }

    /// Takes out a slot that is in one of the lists.
    #[inline]
    pub(super) fn remove(&mut self, nodes: &mut Nodes, slot: SlotId) {
        let is_unused = nodes.told(slot) == 0;
        let list = if is_unused { &mut self.unused } else { &mut self.in_order };
        list.remove(&mut nodes.links, slot);
        if !is_unused {
            nodes.told[slot] = 0;
        }
    }

    /// Puts another entry in the place of the one in `slot`, if that is at the back of a list; whether
    /// it was.
    #[inline]
    pub(super) fn exchange_back(&mut self, nodes: &mut Nodes, slot: SlotId) -> bool {
        if self.unused.back() == Some(slot) {
            self.unused.move_to_front(&mut nodes.links, slot);
        } else if self.in_order.back() == Some(slot) {
            self.in_order.move_back_to(&mut self.unused, &mut nodes.links);
            nodes.told[slot] = 0;
        } else {
            return false;
        }
        true
    }

    /// Whether a use at `tick` came after all that are in order.
    #[inline]
    fn is_in_order(&self, nodes: &Nodes, tick: u64) -> bool {
        self.in_order.front().is_none_or(|front| nodes.told[front] < tick)
    }

    /// The one that was used least recently, where the lists alone say it.
    #[inline]
    pub(super) fn first_in_line(
        &mut self,
        nodes: &mut Nodes,
        last_use: &impl LastUse,
        looks: &mut Looks,
    ) -> Option<SlotId> {
        loop {
            let unused = self.unused.back()?;
            let tick = last_use(unused);
            if !is_of_a_use(tick) {
                let Some(used) = self.in_order.back() else { return Some(unused) };
                let told = nodes.told[used];
                if told > tick {
                    return Some(unused);
                }
                return (last_use(used) == told).then_some(used);
            }
            if !self.is_in_order(nodes, tick) || !looks.take() {
                return None;
            }
            self.unused.move_back_to(&mut self.in_order, &mut nodes.links);
            nodes.told[unused] = tick;
        }
    }

    /// The one that was used least recently of those in the lists, but for `keep`; an error is the
    /// oldest known where the looks were used up. `leave` is told of what leaves the lists.
    pub(super) fn search(
        &mut self,
        nodes: &mut Nodes,
        keep: Option<SlotId>,
        last_use: &impl LastUse,
        looks: &mut Looks,
        mut leave: impl FnMut(Ticked),
    ) -> Result<Option<Ticked>, Ticked> {
        let mut oldest: Option<Ticked> = None;
        for is_unused in [true, false] {
            loop {
                let list = if is_unused { &self.unused } else { &self.in_order };
                let back = list.back();
                let slot = match back {
                    Some(back) if keep == Some(back) => list.ahead_of(&nodes.links, back),
                    _ => back,
                };
                let Some(slot) = slot else { break };
                let told = nodes.told(slot);
                if oldest.is_some_and(|(before, _)| told > before) {
                    // Used after that one, whatever came since.
                    break;
                }
                let tick = last_use(slot);
                if tick == told || is_unused && !is_of_a_use(tick) {
                    oldest = Some((tick, slot));
                    break;
                }
                if !looks.take() {
                    return Err((tick, slot));
                }
                self.remove(nodes, slot);
                if self.is_in_order(nodes, tick) {
                    self.in_order.push_front(&mut nodes.links, slot);
                    nodes.told[slot] = tick;
                } else {
                    leave((tick, slot));
                }
            }
        }
        Ok(oldest)
    }

    /// The slots, for `validate`, which panics unless they are in order.
    pub(super) fn validate(&self, nodes: &Nodes) -> [&List; 2] {
        let lists = [&self.unused, &self.in_order];
        let [mut unused, in_order] =
            lists.map(|list| list.iter(&nodes.links).map(|slot| nodes.told(slot)));
        assert!(unused.all(|told| told == 0), "an unused one has a tick");
        assert!(in_order.is_sorted_by(|a, b| 0 < *a && a < b), "out of order");
        lists
    }
}
