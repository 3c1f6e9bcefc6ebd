//! Doubly linked lists of slots whose links stand in one array: any slot can leave from the middle.

use super::slots::{SlotId, Slots};

/// The neighbours of a slot in the list it is in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Links {
    /// Towards the front.
    ahead: SlotId,
    /// Towards the back.
    behind: SlotId,
}

impl Links {
    /// What both neighbours are of a slot in no list. It is the number of no slot.
    const MARK: SlotId = SlotId::from_bits(u32::MAX - 1);
    const APART: Self = Self { ahead: Self::MARK, behind: Self::MARK };
}

impl Default for Links {
    fn default() -> Self {
        Self::APART
    }
}

/// What stands in the array that a list runs through: links, alone or beside something else of the
/// same slot.
pub(super) trait Linked: Default {
    fn links(&self) -> &Links;
    fn links_mut(&mut self) -> &mut Links;
}

impl Linked for Links {
    #[inline]
    fn links(&self) -> &Links {
        self
    }

    #[inline]
    fn links_mut(&mut self) -> &mut Links {
        self
    }
}

/// A list; the links are passed to each call, as several lists share one array of them. A slot is
/// in at most one of those at a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct List {
    front: SlotId,
    back: SlotId,
    len: usize,
}

impl Default for List {
    fn default() -> Self {
        Self { front: SlotId::NONE, back: SlotId::NONE, len: 0 }
    }
}

impl List {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The slot pushed last.
    pub(super) fn front(&self) -> Option<SlotId> {
        self.front.some()
    }

    /// The slot pushed first of those still here: the next to leave.
    pub(super) fn back(&self) -> Option<SlotId> {
        self.back.some()
    }

    /// The slot in front of `id`, that is, the one pushed after it.
    pub(super) fn ahead_of<L: Linked>(&self, links: &Slots<L>, id: SlotId) -> Option<SlotId> {
        links[id].links().ahead.some()
    }

    /// Whether `id` is in a list.
    pub(super) fn holds<L: Linked>(links: &Slots<L>, id: SlotId) -> bool {
        links.get(id).is_some_and(|links| links.links().ahead != Links::MARK)
    }

    /// Adds `id`, which is in no list.
    pub(super) fn push_front<L: Linked>(&mut self, links: &mut Slots<L>, id: SlotId) {
        debug_assert!(!Self::holds(links, id));
        *links.reach(id).links_mut() = Links { ahead: SlotId::NONE, behind: self.front };
        match self.front {
            SlotId::NONE => self.back = id,
            front => links[front].links_mut().ahead = id,
        }
        self.front = id;
        self.len += 1;
    }

    /// Takes out `id`, which is in this list.
    pub(super) fn remove<L: Linked>(&mut self, links: &mut Slots<L>, id: SlotId) {
        debug_assert!(Self::holds(links, id));
        let Links { ahead, behind } = std::mem::take(links[id].links_mut());
        match ahead {
            SlotId::NONE => self.front = behind,
            ahead => links[ahead].links_mut().behind = behind,
        }
        match behind {
            SlotId::NONE => self.back = ahead,
            behind => links[behind].links_mut().ahead = ahead,
        }
        self.len -= 1;
    }

    /// Moves `id`, which is in this list, to the front.
    #[inline]
    pub(super) fn move_to_front<L: Linked>(&mut self, links: &mut Slots<L>, id: SlotId) {
        let front = self.front;
        if front == id {
            return;
        }
        debug_assert!(Self::holds(links, id));
        let in_front = Links { ahead: SlotId::NONE, behind: front };
        let Links { ahead, behind } = std::mem::replace(links[id].links_mut(), in_front);
        // There is one ahead, as it is not in front.
        links[ahead].links_mut().behind = behind;
        match behind {
            SlotId::NONE => self.back = ahead,
            behind => links[behind].links_mut().ahead = ahead,
        }
        links[front].links_mut().ahead = id;
        self.front = id;
    }

    /// Moves the slot at the back, if there is one, to the front of another list.
    #[inline]
    pub(super) fn move_back_to<L: Linked>(&mut self, other: &mut Self, links: &mut Slots<L>) {
        let Some(id) = self.back.some() else { return };
        let to = Links { ahead: SlotId::NONE, behind: other.front };
        let ahead = std::mem::replace(links[id].links_mut(), to).ahead;
        match ahead {
            SlotId::NONE => self.front = ahead,
            ahead => links[ahead].links_mut().behind = SlotId::NONE,
        }
        match other.front {
            SlotId::NONE => other.back = id,
            front => links[front].links_mut().ahead = id,
        }
        (self.back, other.front) = (ahead, id);
        self.len -= 1;
        other.len += 1;
    }

    /// All slots from the back to the front; for `validate` and tests.
    pub(super) fn iter<'a, L: Linked>(
        &self,
        links: &'a Slots<L>,
    ) -> impl Iterator<Item = SlotId> + 'a {
        std::iter::successors(self.back(), |&id| links[id].links().ahead.some())
    }
}

/// Panics unless `lists` together hold exactly `occupied`, each slot once.
pub(super) fn validate_lists<L: Linked>(
    lists: &[&List],
    links: &Slots<L>,
    occupied: &mut dyn Iterator<Item = SlotId>,
) {
    let mut listed = std::collections::BTreeSet::new();
    for list in lists {
        let mut len = 0;
        for slot in list.iter(links) {
            assert!(listed.insert(slot), "{slot:?} is listed twice");
            len += 1;
        }
        assert_eq!(len, list.len(), "a list miscounts itself");
    }
    let occupied: std::collections::BTreeSet<_> = occupied.collect();
    assert_eq!(listed, occupied, "the policy does not list what the shard holds");
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    #[test]
    fn two_lists_behave_like_deques_that_let_go_of_the_middle() {
        let (mut lists, mut links) = ([List::default(); 2], Slots::<Links>::default());
        let mut models: [VecDeque<SlotId>; 2] = Default::default();
        let mut state = 1u32;
        for _ in 0..if cfg!(miri) { 60 } else { 20_000 } {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let id = SlotId::from_bits((state >> 16) % 23);
            let place_in = |model: &VecDeque<SlotId>| model.iter().position(|&other| other == id);
            let found = (0..2).find_map(|which| Some((which, place_in(&models[which])?)));
            match (found, state >> 30) {
                (None, which) => {
                    let which = which as usize % 2;
                    lists[which].push_front(&mut links, id);
                    models[which].push_front(id);
                }
                (Some((which, place)), 0) => {
                    lists[which].move_to_front(&mut links, id);
                    models[which].remove(place);
                    models[which].push_front(id);
                }
                (Some((which, _)), 1) => {
                    let [first, second] = &mut lists;
                    let (from, to) = if which == 0 { (first, second) } else { (second, first) };
                    from.move_back_to(to, &mut links);
                    let moved = models[which].pop_back().unwrap();
                    models[1 - which].push_front(moved);
                }
                (Some((which, place)), _) => {
                    lists[which].remove(&mut links, id);
                    models[which].remove(place);
                }
            }
            for (list, model) in lists.iter().zip(&models) {
                assert!(list.iter(&links).eq(model.iter().rev().copied()));
                assert_eq!(list.len(), model.len());
                assert_eq!(list.front(), model.front().copied());
                assert_eq!(list.back(), model.back().copied());
            }
            let is_held = models.iter().any(|model| model.contains(&id));
            assert_eq!(List::holds(&links, id), is_held);
        }
    }
}
