//! Those that leave next.

use super::super::super::slots::SlotId;
use super::order::Order;

/// Entries that are looked at again with the next eviction. 7 or 15 gain nothing.
const RUNNERS_UP: usize = 3;

/// An entry, in the lower half, and when it leaves: a number, so that keeping them in order is
/// nothing but taking the less and the greater of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank(u64);

impl Rank {
    const NONE: Self = Self::new(Order::NEVER, SlotId::NONE);

    #[inline]
    const fn new(Order(order): Order, slot: SlotId) -> Self {
        Self((order as u64) << 32 | slot.bits() as u64)
    }

    #[inline]
    fn slot(self) -> SlotId {
        SlotId::from_bits(self.0 as u32)
    }
}

/// The worst of those looked at, the very worst first.
#[derive(Debug)]
pub(super) struct RunnersUp([Rank; RUNNERS_UP + 1]);

impl Default for RunnersUp {
    fn default() -> Self {
        Self([Rank::NONE; RUNNERS_UP + 1])
    }
}

impl RunnersUp {
    /// Keeps an entry if it is among the worst.
    #[inline]
    pub(super) fn keep(&mut self, order: Order, slot: SlotId) {
        if order >= Order::NEVER {
            return;
        }
        // An entry that is there already takes the new order.
        if self.0.iter().any(|rank| rank.slot() == slot) {
            self.forget(slot);
        }
        let mut rank = Rank::new(order, slot);
        for place in &mut self.0 {
            (*place, rank) = ((*place).min(rank), (*place).max(rank));
        }
    }

    #[cold]
    #[inline(never)]
    fn forget(&mut self, slot: SlotId) {
        if let Some(place) = self.0.iter().position(|rank| rank.slot() == slot) {
            self.take_out(place);
        }
    }

    #[inline]
    fn take_out(&mut self, place: usize) {
        self.0.copy_within(place + 1.., place);
        self.0[RUNNERS_UP] = Rank::NONE;
    }

    /// Takes out the worst: the first whose present order is not behind the known one of the next.
    /// `order_now` says what the order is, if the entry may leave at all. An entry that has become
    /// better goes back among the others. Bounded, as each is asked for once or twice.
    #[inline]
    pub(super) fn pop(&mut self, order_now: impl Fn(SlotId) -> Option<Order>) -> Option<SlotId> {
        for _ in 0..=RUNNERS_UP {
            let worst = self.0[0].slot();
            if worst == SlotId::NONE {
                break;
            }
            self.take_out(0);
            let Some(order) = order_now(worst) else { continue };
            if Rank::new(order, worst) <= self.0[0] {
                return Some(worst);
            }
            self.keep(order, worst);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(bits: u32) -> SlotId {
        SlotId::from_bits(bits)
    }

    fn order(number: i32) -> Order {
        Order(number)
    }

    fn kept(orders: &[(i32, u32)]) -> RunnersUp {
        let mut runners_up = RunnersUp::default();
        orders.iter().for_each(|&(number, bits)| runners_up.keep(order(number), slot(bits)));
        runners_up
    }

    /// All, the worst first, as if nothing had changed.
    fn all(mut runners_up: RunnersUp) -> Vec<u32> {
        std::iter::from_fn(|| runners_up.pop(|_| Some(order(0))).map(SlotId::bits)).collect()
    }

    #[test]
    fn the_worst_are_kept_and_leave_in_order() {
        let cases = [
            (&[][..], &[][..]),
            (&[(5, 1)], &[1]),
            (&[(9, 1), (2, 2), (5, 3)], &[2, 3, 1]),
            (&[(9, 1), (2, 2), (5, 3), (8, 4), (1, 5), (7, 6)], &[5, 2, 3, 6]),
            // Vacant slots are never kept.
            (&[(Order::NEVER.0, 1), (i32::MAX, 2), (3, 3)], &[3]),
        ];
        for (orders, wanted) in cases {
            assert_eq!(all(kept(orders)), wanted, "{orders:?}");
        }
    }

    #[test]
    fn an_entry_kept_again_is_there_once_with_its_new_order() {
        assert_eq!(all(kept(&[(1, 1), (2, 2), (3, 3), (9, 1)])), [2, 3, 1]);
        assert_eq!(all(kept(&[(1, 1), (2, 2), (3, 3), (0, 3)])), [3, 1, 2]);
    }

    #[test]
    fn an_entry_that_has_become_better_waits_and_one_that_may_not_leave_is_dropped() {
        let mut runners_up = kept(&[(1, 1), (2, 2), (3, 3)]);
        // The first was used since, the second is gone.
        let now = |id: SlotId| [None, Some(order(8)), None, Some(order(3))][id.bits() as usize];
        assert_eq!(runners_up.pop(now), Some(slot(3)));
        assert_eq!(all(runners_up), [1]);
        // All were used since: no search without an end.
        let mut runners_up = kept(&[(1, 1), (2, 2)]);
        let used = std::cell::Cell::new(10);
        let now = |_| {
            used.set(used.get() + 1);
            Some(order(used.get()))
        };
        assert_eq!(runners_up.pop(now), None);
    }
}
