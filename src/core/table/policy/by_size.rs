//! The order for [`MemoryPressure::LargestFirst`](super::MemoryPressure): by size, without a scan.
//!
//! One list for each size that occurs, in the order of use. An embedding cache holds a few sizes, one
//! for each model; other caches may hold one for each entry. So the lists are the nodes of a digital
//! search tree (Coffman, Eve: *File structures using hashing functions*, Communications of the ACM
//! 13, 1970; Knuth: *The Art of Computer Programming*, volume 3, 6.3): the sizes below a node at
//! depth `d` agree with its own in their `d` upper bits, and the next bit says on which side of it
//! they are. It is never deeper than 64, whatever the sizes, and needs no balancing. A node keeps its
//! number for as long as its list is not empty; each entry knows that number, so a use takes constant
//! time.
//!
//! The nodes stand in memory that only grows, and a list that has become empty is used again: nothing
//! is given back to the allocator under the lock; see [`heap`](super::super::heap) for why.

use super::super::list::{Links, List, validate_lists};
use super::super::slots::{SlotId, Slots};

#[derive(Debug, Default)]
pub(in super::super) struct Sizes {
    links: Slots<Links>,
    /// For each slot the number of the node in whose list it is.
    listed: Slots<u32>,
    tree: Tree,
}

impl Sizes {
    pub(in super::super) fn insert(&mut self, slot: SlotId, size: u64) {
        let node = self.tree.reach(size);
        *self.listed.reach(slot) = node.bits();
        self.tree.nodes[node].list.push_front(&mut self.links, slot);
    }

    pub(in super::super) fn remove(&mut self, slot: SlotId) {
        let node = self.node_of(slot);
        let list = &mut self.tree.nodes[node].list;
        list.remove(&mut self.links, slot);
        if list.len() == 0 {
            self.tree.remove(node);
        }
    }

    /// The entry was used: among those of its size it leaves last.
    pub(in super::super) fn touch(&mut self, slot: SlotId) {
        let node = self.node_of(slot);
        self.tree.nodes[node].list.move_to_front(&mut self.links, slot);
    }

    /// The largest, and of several the one that was used or inserted longest ago; never `keep`.
    pub(in super::super) fn largest(&self, keep: Option<SlotId>) -> Option<SlotId> {
        let largest = self.tree.largest(None)?;
        let list = &self.tree.nodes[largest].list;
        let oldest = list.back().filter(|&oldest| keep != Some(oldest));
        oldest.or_else(|| list.ahead_of(&self.links, keep?)).or_else(|| {
            // There is only `keep` of that size.
            self.tree.nodes[self.tree.largest(Some(largest))?].list.back()
        })
    }

    fn node_of(&self, slot: SlotId) -> SlotId {
        SlotId::from_bits(self.listed[slot])
    }

    pub(in super::super) fn validate(&self, occupied: &mut dyn Iterator<Item = SlotId>) {
        let nodes = self.tree.validate();
        let lists: Vec<_> = nodes.iter().map(|&node| &self.tree.nodes[node].list).collect();
        validate_lists(&lists, &self.links, occupied);
        for node in nodes {
            let list = &self.tree.nodes[node].list;
            assert_ne!(list.len(), 0, "an empty list is kept");
            assert!(list.iter(&self.links).all(|slot| self.node_of(slot) == node));
        }
    }
}

#[derive(Debug)]
struct Node {
    size: u64,
    /// The entries of this size, the youngest in front.
    list: List,
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
        let node = Node { size, list: List::default(), below: NOTHING };
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

    #[test]
    fn the_largest_leaves_first_and_of_equals_the_oldest() {
        let mut sizes = Sizes::default();
        for (place, size) in [5, 9, 9, 1].into_iter().enumerate() {
            sizes.insert(slot(place as u32), size);
        }
        assert_eq!(sizes.largest(None), Some(slot(1)));
        assert_eq!(sizes.largest(Some(slot(1))), Some(slot(2)));
        sizes.touch(slot(1));
        assert_eq!(sizes.largest(None), Some(slot(2)));
        sizes.remove(slot(2));
        assert_eq!(sizes.largest(Some(slot(1))), Some(slot(0)));
        sizes.remove(slot(1));
        sizes.remove(slot(0));
        assert_eq!(sizes.largest(None), Some(slot(3)));
        assert_eq!(sizes.largest(Some(slot(3))), None);
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
        for size_of in kinds {
            let (mut sizes, mut model, mut state) = (Sizes::default(), Model::default(), 1u64);
            let mut random = || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state
            };
            let (steps, slots) = if cfg!(miri) { (30, 8) } else { (20_000, 200) };
            for step in 0..steps {
                let id = slot((random() % slots) as u32);
                match (model.remove(id), random() % 4) {
                    (None, _) => {
                        let size = size_of(random());
                        sizes.insert(id, size);
                        model.insert(id, size);
                    }
                    (Some(size), 0) => {
                        sizes.touch(id);
                        model.insert(id, size);
                    }
                    (Some(_), 1) => {
                        sizes.remove(id);
                        let size = size_of(random());
                        sizes.insert(id, size);
                        model.insert(id, size);
                    }
                    (Some(_), _) => sizes.remove(id),
                }
                let largest = model.largest(None);
                assert_eq!(sizes.largest(None), largest);
                for keep in [largest, Some(id)] {
                    assert_eq!(sizes.largest(keep), model.largest(keep), "but for {keep:?}");
                }
                if step % 50 == 49 {
                    sizes.validate(&mut model.sizes.keys().copied());
                }
            }
            // Each step adds one size at most, and what has become empty is used again.
            assert!(sizes.tree.nodes.len() <= 200);
            model.sizes.keys().for_each(|&id| sizes.remove(id));
            assert_eq!(sizes.largest(None), None);
            sizes.validate(&mut std::iter::empty());
        }
    }
}
