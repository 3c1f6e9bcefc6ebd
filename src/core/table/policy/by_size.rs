//! The order for [`MemoryPressure::LargestFirst`](super::MemoryPressure): by size, without a scan.
//!
//! The entries of each size that occurs stand in lists, [by their last use](super::by_use). An embedding
//! cache holds a few sizes, one for each model; other caches may hold one for each entry. So the lists
//! are in the nodes of a digital
//! search tree (Coffman, Eve: *File structures using hashing functions*, Communications of the ACM
//! 13, 1970; Knuth: *The Art of Computer Programming*, volume 3, 6.3): the sizes below a node at
//! depth `d` agree with its own in their `d` upper bits, and the next bit says on which side of it
//! they are. It is never deeper than 64, whatever the sizes, and needs no balancing. A node keeps its
//! number for as long as there is something in its lists; each entry knows that number, so to leave takes
//! constant time. An entry that was used out of order is in a heap by size and last use, one for all sizes.
//! With a heap for all entries, each insertion and each removal would go through its levels.
//!
//! The nodes stand in memory that only grows, and one whose lists have become empty is used again: nothing
//! is given back to the allocator under the lock; see [`heap`](super::super::heap) for why.

use std::cmp::Reverse;

use super::super::heap::Heap;
use super::super::list::validate_lists;
use super::super::slots::{SlotId, Slots};
use super::super::ticks::{LastUse, Looks, Ticks};
use super::by_use::{self, ByUse};

/// The largest comes first, and of several the one that was used or inserted longest ago.
type Rank = (Reverse<u64>, u64);

#[derive(Debug)]
pub(in super::super) struct Sizes {
    nodes: by_use::Nodes,
    /// For each slot in a list the number of the node whose it is.
    listed: Slots<u32>,
    tree: Tree,
    /// The entries in no list.
    used: Heap<Rank>,
}

impl Sizes {
    pub(in super::super) fn new(by_use: bool) -> Self {
        Self {
            nodes: by_use::Nodes::new(by_use),
            listed: Slots::default(),
            tree: Tree::default(),
            used: Heap::default(),
        }
    }

    pub(in super::super) fn insert(&mut self, slot: SlotId, size: u64) {
        let node = self.tree.reach(size);
        *self.listed.reach(slot) = node.bits();
        self.tree.nodes[node].entries.insert(&mut self.nodes, slot);
    }

    pub(in super::super) fn remove(&mut self, slot: SlotId) {
        if !self.nodes.holds(slot) {
            self.used.remove(slot);
            return;
        }
        let node = self.node_of(slot);
        let entries = &mut self.tree.nodes[node].entries;
        entries.remove(&mut self.nodes, slot);
        if entries.len() == 0 {
            self.tree.remove(node);
        }
    }

    /// Another entry, with this size, takes the place of the one in `slot`, or that one is written anew.
    pub(in super::super) fn exchange(&mut self, slot: SlotId, size: u64) {
        if self.nodes.holds(slot) {
            let node = self.node_of(slot);
            let Node { size: old, entries, .. } = &mut self.tree.nodes[node];
            if *old == size && entries.exchange_back(&mut self.nodes, slot) {
                return;
            }
        }
        self.remove(slot);
        self.insert(slot, size);
    }

    /// The largest, and of several the one that was used or inserted longest ago; never `keep`. None,
    /// too, where the `looks` were used up.
    pub(in super::super) fn largest(
        &mut self,
        keep: Option<SlotId>,
        last_use: impl LastUse,
        looks: &mut Looks,
    ) -> Option<SlotId> {
        let by_use = self.nodes.are_by_use();
        let last_use = |slot| if by_use { last_use(slot) } else { Ticks::NO_USE };
        let largest = match self.search(keep, last_use, looks) {
            Ok(largest) => largest,
            Err(known) if looks.suffice(self.listed.len()) => Some(known),
            Err(_) => return None,
        };
        looks.found();
        largest.map(|(_, slot)| slot)
    }

    /// An error is the best known where the looks were used up.
    fn search(
        &mut self,
        keep: Option<SlotId>,
        last_use: impl LastUse,
        looks: &mut Looks,
    ) -> Result<Option<(Rank, SlotId)>, (Rank, SlotId)> {
        let mut but_for = None;
        let listed = loop {
            let Some(number) = self.tree.largest(but_for) else { break None };
            let Node { size, ref mut entries, .. } = self.tree.nodes[number];
            let first_used = self.used.first_but(keep);
            if first_used.is_some_and(|((Reverse(used), _), _)| used > size) {
                break None;
            }
            let ranked = |(tick, slot)| ((Reverse(size), tick), slot);
            let leave = |(tick, slot)| self.used.insert(slot, (Reverse(size), tick));
            let oldest = entries.search(&mut self.nodes, keep, &last_use, looks, leave);
            if let Some(oldest) = oldest.map_err(ranked)? {
                break Some(ranked(oldest));
            }
            if entries.len() == 0 {
                self.tree.remove(number);
            } else {
                // There is only `keep` of that size.
                but_for = Some(number);
            }
        };
        // What stands in the heap was not used last before the tick that it is known by.
        let first = self.used.first();
        if listed.is_some_and(|(rank, _)| first.is_none_or(|(told, _)| told > rank)) {
            return Ok(listed);
        }
        let now = |slot, (size, _): Rank| (size, last_use(slot));
        let used = self.used.settled_first(keep, now, looks)?;
        Ok(listed.into_iter().chain(used).min())
    }

    fn node_of(&self, slot: SlotId) -> SlotId {
        SlotId::from_bits(self.listed[slot])
    }

    pub(in super::super) fn validate(&self, occupied: &mut dyn Iterator<Item = SlotId>) {
        let mut listed = self.used.validate_among(occupied).into_iter();
        let nodes = self.tree.validate();
        let lists = |node| self.tree.nodes[node].entries.validate(&self.nodes);
        let all: Vec<_> = nodes.iter().copied().flat_map(lists).collect();
        validate_lists(&all, &self.nodes.links, &mut listed);
        for node in nodes {
            assert_ne!(self.tree.nodes[node].entries.len(), 0, "empty lists are kept");
            let mut slots = lists(node).into_iter().flat_map(|list| list.iter(&self.nodes.links));
            assert!(slots.all(|slot| self.node_of(slot) == node));
        }
    }
}

#[derive(Debug)]
struct Node {
    size: u64,
    /// The entries of this size, but for those that are in the heap.
    entries: ByUse,
    /// The sizes below whose next bit is 0, and those where it is 1. Of a vacant node the first is
    /// the next vacant one.
    below: [SlotId; 2],
}

const NOTHING: [SlotId; 2] = [SlotId::NONE; 2];

/// The sizes, each once. A node is numbered as a slot is, as it stands in storage of the same kind.
#[derive(Debug)]
struct Tree {
    nodes: Slots<Node>,
    root: SlotId,
    vacant: SlotId,
}

impl Default for Tree {
    fn default() -> Self {
        Self { nodes: Slots::default(), root: SlotId::NONE, vacant: SlotId::NONE }
    }
}

/// Where the number of a node stands: on a side of the one above it, or at the root.
type Link = Option<(SlotId, usize)>;

impl Tree {
    /// The node of `size`, or `NONE`, and where its number stands, or would.
    fn find(&self, size: u64) -> (Link, SlotId) {
        let (mut link, mut node) = (None, self.root);
        // After 64 turns all bits are the same.
        for depth in 0..u64::BITS {
            if node == SlotId::NONE || self.nodes[node].size == size {
                break;
            }
            let side = (size << depth >> 63) as usize;
            link = Some((node, side));
            node = self.nodes[node].below[side];
        }
        (link, node)
    }

    fn set(&mut self, link: Link, node: SlotId) {
        match link {
            None => self.root = node,
            Some((above, side)) => self.nodes[above].below[side] = node,
        }
    }

    /// The node of `size`, which is made if there is none.
    fn reach(&mut self, size: u64) -> SlotId {
        let (link, found) = self.find(size);
        if found != SlotId::NONE {
            return found;
        }
        let node = Node { size, entries: ByUse::default(), below: NOTHING };
        let made = match self.vacant {
            SlotId::NONE => self.nodes.push(node),
            vacant => {
                self.vacant = self.nodes[vacant].below[0];
                self.nodes[vacant] = node;
                vacant
            }
        };
        self.set(link, made);
        made
    }

    /// Takes out `node`. One that has nothing below it, from below this one, comes in its place: it
    /// agrees with all there in as many bits.
    fn remove(&mut self, node: SlotId) {
        let (link, found) = self.find(self.nodes[node].size);
        debug_assert_eq!(found, node);
        let (mut last_link, mut last) = (link, node);
        while let Some(side) = self.nodes[last].below.iter().position(|&id| id != SlotId::NONE) {
            last_link = Some((last, side));
            last = self.nodes[last].below[side];
        }
        self.set(last_link, SlotId::NONE);
        if last != node {
            self.nodes[last].below = self.nodes[node].below;
            self.set(link, last);
        }
        self.nodes[node].below = [self.vacant, SlotId::NONE];
        self.vacant = node;
    }

    /// The node of the largest size other than that of `except`.
    fn largest(&self, except: Option<SlotId>) -> Option<SlotId> {
        let (mut largest, mut node) = (None, self.root);
        while node != SlotId::NONE {
            let larger = |than: SlotId| self.nodes[node].size > self.nodes[than].size;
            if except != Some(node) && largest.is_none_or(larger) {
                largest = Some(node);
            }
            // All of the upper side is larger than all of the lower one.
            let [lower, upper] = self.nodes[node].below;
            let is_all = |id: SlotId| except == Some(id) && self.nodes[id].below == NOTHING;
            node = if upper == SlotId::NONE || is_all(upper) { lower } else { upper };
        }
        largest
    }

    /// Panics unless each node is found by its size and every other is vacant; returns the nodes.
    fn validate(&self) -> Vec<SlotId> {
        let (mut nodes, mut next) = (Vec::new(), vec![self.root]);
        while let Some(node) = next.pop() {
            if node != SlotId::NONE {
                assert_eq!(self.find(self.nodes[node].size).1, node, "{node:?} is not found");
                next.extend(self.nodes[node].below);
                nodes.push(node);
            }
        }
        let (mut vacant, mut next) = (0, self.vacant);
        while next != SlotId::NONE {
            (vacant, next) = (vacant + 1, self.nodes[next].below[0]);
        }
        assert_eq!(nodes.len() + vacant, self.nodes.len(), "a node is lost");
        nodes
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::collections::{BTreeMap, VecDeque};

    use super::*;

    fn slot(bits: u32) -> SlotId {
        SlotId::from_bits(bits)
    }

    /// The order, with the ticks that a table would keep.
    struct Ticked {
        sizes: Sizes,
        ticks: Vec<u64>,
        newest: u64,
    }

    impl Ticked {
        fn new() -> Self {
            Self { sizes: Sizes::new(true), ticks: vec![0; 200], newest: 0 }
        }

        fn insert(&mut self, id: SlotId, size: u64) {
            self.newest += 2;
            self.ticks[id.bits() as usize] = self.newest - 1;
            self.sizes.insert(id, size);
        }

        fn hit(&mut self, id: SlotId) {
            self.newest += 2;
            self.ticks[id.bits() as usize] = self.newest;
        }

        /// After as many lock holds as it takes.
        fn largest(&mut self, keep: Option<SlotId>) -> Option<SlotId> {
            let mut looks = Looks::default();
            for _ in 0..10 {
                let last_use = |id: SlotId| self.ticks[id.bits() as usize];
                looks.reset();
                let largest = self.sizes.largest(keep, last_use, &mut looks);
                if largest.is_some() || !looks.are_used_up() {
                    return largest;
                }
            }
            unreachable!("each look is one of 200")
        }
    }

    #[test]
    fn the_largest_leaves_first_and_of_equals_the_oldest() {
        let mut sizes = Ticked::new();
        for (place, size) in [5, 9, 9, 1].into_iter().enumerate() {
            sizes.insert(slot(place as u32), size);
        }
        assert_eq!(sizes.largest(None), Some(slot(1)));
        assert_eq!(sizes.largest(Some(slot(1))), Some(slot(2)));
        sizes.hit(slot(1));
        assert_eq!(sizes.largest(None), Some(slot(2)));
        sizes.sizes.remove(slot(2));
        assert_eq!(sizes.largest(Some(slot(1))), Some(slot(0)));
        sizes.sizes.remove(slot(1));
        sizes.sizes.remove(slot(0));
        assert_eq!(sizes.largest(None), Some(slot(3)));
        assert_eq!(sizes.largest(Some(slot(3))), None);
    }

    #[test]
    fn a_lock_hold_puts_a_bite_right() {
        let mut ticked = Ticked::new();
        (0..200).for_each(|id| ticked.insert(slot(id), 7));
        (0..200).rev().for_each(|id| ticked.hit(slot(id)));
        let (ticks, mut looks) = (&ticked.ticks, Looks::default());
        let last_use = |id: SlotId| ticks[id.bits() as usize];
        assert_eq!(ticked.sizes.largest(None, last_use, &mut looks), None);
        assert!(looks.are_used_up());
        assert_eq!(ticked.sizes.used.len(), 63, "and one came up in order");
        assert_eq!(ticked.largest(None), Some(slot(199)));
    }

    /// The slots of each size, the oldest in front.
    #[derive(Default)]
    struct Model {
        by_size: BTreeMap<u64, VecDeque<SlotId>>,
        sizes: BTreeMap<SlotId, u64>,
    }

    impl Model {
        fn insert(&mut self, slot: SlotId, size: u64) {
            self.by_size.entry(size).or_default().push_back(slot);
            self.sizes.insert(slot, size);
        }

        fn remove(&mut self, slot: SlotId) -> Option<u64> {
            let size = self.sizes.remove(&slot)?;
            let slots = self.by_size.get_mut(&size)?;
            slots.retain(|&other| other != slot);
            if slots.is_empty() {
                self.by_size.remove(&size);
            }
            Some(size)
        }

        fn largest(&self, keep: Option<SlotId>) -> Option<SlotId> {
            let mut all = self.by_size.values().rev().flatten();
            all.find(|&&slot| keep != Some(slot)).copied()
        }
    }

    #[test]
    fn behaves_like_a_sorted_map_of_queues_whatever_the_sizes() {
        let kinds: [fn(u64) -> u64; 5] = [
            |number| number % 3,
            |number| 16 + 4 * (number % 500),
            |number| number,
            |number| 1 << (number % 64),
            |number| u64::MAX << (number % 65).min(63),
        ];
        for (size_of, by_use) in kinds.into_iter().flat_map(|kind| [(kind, true), (kind, false)]) {
            let (mut sizes, mut model, mut state) = (Ticked::new(), Model::default(), 1u64);
            sizes.sizes = Sizes::new(by_use);
            let mut random = || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state
            };
            let (steps, slots) = if cfg!(miri) { (30, 8) } else { (20_000, 200) };
            for step in 0..steps {
                let id = slot((random() % slots) as u32);
                match (model.remove(id), random() % 6) {
                    (None, _) => {
                        let size = size_of(random());
                        sizes.insert(id, size);
                        model.insert(id, size);
                    }
                    (Some(size), 0 | 1) => {
                        sizes.hit(id);
                        if !by_use {
                            sizes.sizes.exchange(id, size);
                        }
                        model.insert(id, size);
                    }
                    (Some(old), what @ 2..=3) => {
                        let size = if what == 2 { old } else { size_of(random()) };
                        sizes.hit(id);
                        sizes.sizes.exchange(id, size);
                        model.insert(id, size);
                    }
                    (Some(old), 4) => {
                        let size = if random().is_multiple_of(2) { old } else { size_of(random()) };
                        sizes.newest += 2;
                        sizes.ticks[id.bits() as usize] = sizes.newest - 1;
                        sizes.sizes.exchange(id, size);
                        model.insert(id, size);
                    }
                    (Some(_), _) => sizes.sizes.remove(id),
                }
                // Not each time: more than one is to have been used in between.
                if random().is_multiple_of(8) {
                    let largest = model.largest(None);
                    for keep in [None, largest, Some(id)] {
                        assert_eq!(sizes.largest(keep), model.largest(keep), "but for {keep:?}");
                    }
                }
                if step % 50 == 49 {
                    sizes.sizes.validate(&mut model.sizes.keys().copied());
                }
            }
            // Each step adds one size at most, and what has become empty is used again.
            assert!(sizes.sizes.tree.nodes.len() <= 200);
            model.sizes.keys().for_each(|&id| sizes.sizes.remove(id));
            assert_eq!(sizes.largest(None), None);
            sizes.sizes.validate(&mut std::iter::empty());
        }
    }
}
