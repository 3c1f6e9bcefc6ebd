//! Those that leave next.

use super::super::super::slots::SlotId;
use super::entry_meta::{EntryMeta, LINE, Words};
use super::order::{Order, Orders};

/// So many of a line leave without being compared with each other: with 4 there are a third fewer lines
/// to look at, and 0.02 points fewer hits.
const FEW: usize = 2;
/// The bits of an order in which two entries may differ and be as good as equal: half a bin.
const NEXT_TO_EQUAL: i16 = 2;
/// How far the bound moves for each entry too many, and for a line without any.
const STEP: i16 = 1;
/// How far at most for one line: some doublings of the worth.
const LARGEST_STEP: i16 = 1 << 13;

/// An entry that was found, with the word it had then.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    slot: SlotId,
    meta: EntryMeta,
}

/// The entries that leave next: those of a line whose order is before a *bound*.
///
/// The bound is such that of each line one is found in the mean. So an entry is compared with nothing
/// else, and with the bound by vector instructions, sixteen at once. If more than one is found the
/// bound becomes less, if none is, greater: by more with each such line in a row, so that it
/// soon gets to where the entries are after their worth has changed.
#[derive(Debug)]
pub(super) struct Candidates {
    found: [Candidate; LINE as usize],
    left: usize,
    bound: Order,
    /// How far the bound moves with the next line in which none is found.
    step: i16,
    /// Whether they were found by their worth for their weight.
    by_weight: bool,
}

impl Default for Candidates {
    fn default() -> Self {
        let none = Candidate { slot: SlotId::NONE, meta: EntryMeta::VACANT };
        Self {
            found: [none; LINE as usize],
            left: 0,
            bound: Order::NEVER,
            step: STEP,
            by_weight: false,
        }
    }
}

impl Candidates {
    /// Takes one out that is still what it was when it was found and is not `keep`. One that was
    /// used since, or left, is passed over.
    #[inline]
    pub(super) fn pop(
        &mut self,
        by_weight: bool,
        keep: Option<SlotId>,
        meta_now: impl Fn(SlotId) -> EntryMeta,
    ) -> Option<SlotId> {
        if by_weight != self.by_weight {
            self.change(by_weight);
        }
        while self.left != 0 {
            self.left -= 1;
            let Candidate { slot, meta } = self.found[self.left % LINE as usize];
            if meta_now(slot) == meta && Some(slot) != keep {
                return Some(slot);
            }
        }
        None
    }

    /// What was found in one order says nothing of the other.
    #[cold]
    #[inline(never)]
    fn change(&mut self, by_weight: bool) {
        *self = Self { by_weight, ..Self::default() };
    }

    /// Looks for candidates in a line, where none is left.
    #[inline]
    pub(super) fn look(&mut self, line: u32, words: &Words, orders: Orders) {
        let before = orders.before(self.bound);
        if before == 0 {
            self.bound = self.bound.later(self.step);
            self.step = (2 * self.step).min(LARGEST_STEP);
            return;
        }
        self.step = STEP;
        self.gather(before, line, words);
        if self.left <= FEW {
            self.bound = self.bound.earlier(STEP * (self.left as i16 - 1));
        } else {
            self.tighten(line, words, orders);
        }
    }

    /// Takes those that are marked.
    #[inline]
    fn gather(&mut self, mut marked: u32, line: u32, words: &Words) {
        self.left = 0;
        while marked != 0 {
            let place = marked.trailing_zeros();
            marked &= marked - 1;
            let slot = SlotId::from_bits(line * LINE + place);
            self.found[self.left % LINE as usize] =
                Candidate { slot, meta: words.at(place as usize) };
            self.left += 1;
        }
    }

    /// Many are before the bound: it falls to the worst of them, and only those next to equal leave.
    #[cold]
    #[inline(never)]
    fn tighten(&mut self, line: u32, words: &Words, orders: Orders) {
        self.bound = orders.first().later(NEXT_TO_EQUAL);
        self.gather(orders.before(self.bound), line, words);
    }
}

#[cfg(test)]
mod tests {
    use wide::i16x16;

    use super::super::entry_meta::EntryMetas;
    use super::super::measures::{Class, Weight};
    use super::*;

    /// Entries in the first line, each with another word; the last two slots are vacant.
    fn entries() -> EntryMetas {
        let mut metas = EntryMetas::default();
        for place in 0..LINE - 2 {
            metas.insert(slot(place), EntryMeta::new(place, false, Class::NEW, Weight::of(1)));
        }
        metas
    }

    fn slot(bits: u32) -> SlotId {
        SlotId::from_bits(bits)
    }

    /// The orders of those entries: of the given places so much, of the others a lot.
    fn orders(worst: &[(usize, i16)]) -> Orders {
        let mut orders = [20_000; LINE as usize];
        orders[LINE as usize - 2..].fill(Order::NEVER.0);
        worst.iter().for_each(|&(place, order)| orders[place] = order);
        Orders(i16x16::new(orders))
    }

    /// Candidates with this bound that have looked at the line.
    fn looked(metas: &mut EntryMetas, bound: i16, worst: &[(usize, i16)]) -> Candidates {
        let mut candidates = Candidates { bound: Order(bound), ..Candidates::default() };
        candidates.look(0, &metas.line(0), orders(worst));
        candidates
    }

    fn all(candidates: &mut Candidates, metas: &EntryMetas, keep: Option<u32>) -> Vec<u32> {
        let mut pop = || candidates.pop(false, keep.map(slot), |slot| metas.get(slot));
        let mut found: Vec<_> = std::iter::from_fn(|| pop().map(SlotId::bits)).collect();
        found.sort_unstable();
        found
    }

    #[test]
    fn those_before_the_bound_are_found_and_the_bound_follows() {
        let metas = &mut entries();
        let cases: [(&[_], &[_]); 4] = [
            (&[], &[]),
            (&[(3, 99)], &[3]),
            (&[(3, 99), (9, 0), (12, 100)], &[3, 9]),
            // Too many for all of them to leave: the worst, and those next to equal.
            (&[(1, 9), (2, 50), (3, 9), (4, 10), (5, 11), (6, 50), (8, 9)], &[1, 3, 4, 8]),
        ];
        for (worst, wanted) in cases {
            let mut candidates = looked(metas, 100, worst);
            assert_eq!(all(&mut candidates, metas, None), wanted, "{worst:?}");
            assert_eq!(candidates.bound.cmp(&Order(100)), 1.cmp(&wanted.len()), "{worst:?}");
        }
    }

    #[test]
    fn vacant_slots_and_the_entry_to_be_kept_are_never_taken() {
        let metas = &mut entries();
        let mut candidates = Candidates::default();
        assert_eq!(candidates.bound, Order::NEVER, "so every entry is before it");
        candidates.look(0, &metas.line(0), orders(&[]));
        assert_eq!(
            all(&mut candidates, metas, Some(5)),
            [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13]
        );
        // An empty line.
        metas.insert(slot(LINE), EntryMeta::VACANT);
        candidates.bound = Order::NEVER;
        let vacant = Orders(i16x16::splat(Order::NEVER.0));
        candidates.look(1, &metas.line(1), vacant);
        assert_eq!((all(&mut candidates, metas, None), candidates.bound), (vec![], Order::NEVER));
    }

    #[test]
    fn an_entry_that_was_used_or_left_since_it_was_found_is_passed_over() {
        let metas = &mut entries();
        let mut candidates = looked(metas, 100, &[(2, 1), (3, 1), (4, 1)]);
        metas.set(slot(3), metas.get(slot(3)).used(77, Class::NEW.after(1)));
        metas.take(slot(4));
        assert_eq!(all(&mut candidates, metas, None), [2]);
    }

    #[test]
    fn what_was_found_by_weight_is_not_taken_for_another_reason_or_the_other_way_round() {
        let metas = &mut entries();
        let mut candidates = looked(metas, 100, &[(2, 1), (3, 1)]);
        let meta_now = |slot| metas.get(slot);
        assert!(candidates.pop(false, None, meta_now).is_some());
        assert_eq!(candidates.pop(true, None, meta_now), None);
        assert_eq!(candidates.pop(false, None, meta_now), None, "nothing is left of the others");
        assert_eq!(candidates.bound, Order::NEVER, "nor is the bound of use");
    }

    #[test]
    fn the_bound_soon_reaches_entries_wherever_they_are() {
        let metas = &mut entries();
        let mut candidates = looked(metas, i16::MIN + 1, &[]);
        let lines = (0..).find(|_| {
            candidates.look(0, &metas.line(0), orders(&[]));
            candidates.left != 0
        });
        assert!(lines.unwrap() < 150, "{lines:?}");
        assert_eq!(all(&mut candidates, metas, None).len(), 14);
        assert!(candidates.bound > Order(20_000), "all are equal");
    }
}
