//! The order in which entries leave, and those that are next.

use wide::bytemuck::cast;
use wide::{i32x4, i32x8, u16x8, u32x8};

use super::super::super::slots::SlotId;
use super::entry_meta::RUN;
use super::measures::Worth;

/// Entries that are looked at again with the next eviction. 7 or 15 gain nothing.
const RUNNERS_UP: usize = 3;

/// What makes one entry leave before another: less worth, then an earlier last use, as far as the
/// lower bits of its tick tell; and in the lowest its place in the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Order(i32);

impl Order {
    /// Where the worth stands.
    pub(super) const WORTH: u32 = 16;

    /// Nobody leaves in this order or a later one: that of vacant slots.
    pub(super) const NEVER: Self = Self::new(Worth::MOST, 0);

    /// A worth has 15 bits, so it is not negative. Signed, as what is compared four at once.
    #[inline]
    pub(super) const fn new(worth: Worth, rest: u32) -> Self {
        Self(((worth.bits() as u32) << Self::WORTH | rest) as i32)
    }

    /// The same for neighbours, all at once.
    #[inline]
    pub(super) fn of_each(worths: [Worth; RUN], rests: u32x8) -> i32x8 {
        let worths = u32x8::from(u16x8::new(worths.map(Worth::bits)));
        cast(worths << Self::WORTH | rests)
    }

    /// The first of either. They are compared side by side for as long as there are several.
    #[inline]
    pub(super) fn first_of_each(halves: [i32x8; 2]) -> [Self; 2] {
        let [a, b] = halves.map(|half| {
            let [lower, upper] = cast::<_, [i32x4; 2]>(half);
            lower.min(upper).to_array()
        });
        let lower = i32x4::new([a[0], b[0], a[1], b[1]]);
        let [c, d, e, f] = lower.min(i32x4::new([a[2], b[2], a[3], b[3]])).to_array();
        [Self(c.min(e)), Self(d.min(f))]
    }

    /// The place in its run of who has this order.
    #[inline]
    pub(super) fn place(self) -> u32 {
        self.0 as u32 % RUN as u32
    }
}

/// An entry, in the lower half, and when it leaves: a number, so that keeping them in order is
/// nothing but taking the less and the greater of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank(u64);

impl Rank {
    const NOBODY: Self = Self::new(Order::NEVER, SlotId::NONE);

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
        Self([Rank::NOBODY; RUNNERS_UP + 1])
    }
}

impl RunnersUp {
    /// Keeps an entry if it is among the worst.
    #[inline]
    pub(super) fn keep(&mut self, order: Order, slot: SlotId) {
        if order >= Order::NEVER {
            return;
        }
        // Who is there already takes the new order.
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
        self.0[RUNNERS_UP] = Rank::NOBODY;
    }

    /// Takes out the worst whose order is still what it was or has become worse than that of the
    /// next: `order_now` says what it is, if it may leave at all. Who has become better goes back
    /// among the others. Bounded, as each is asked for once or twice.
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
            // Vacant slots are nobody's.
            (&[(Order::NEVER.0, 1), (i32::MAX, 2), (3, 3)], &[3]),
        ];
        for (orders, wanted) in cases {
            assert_eq!(all(kept(orders)), wanted, "{orders:?}");
        }
    }

    #[test]
    fn who_is_kept_again_is_there_once_with_its_new_order() {
        assert_eq!(all(kept(&[(1, 1), (2, 2), (3, 3), (9, 1)])), [2, 3, 1]);
        assert_eq!(all(kept(&[(1, 1), (2, 2), (3, 3), (0, 3)])), [3, 1, 2]);
    }

    #[test]
    fn who_has_become_better_waits_and_who_may_not_leave_is_dropped() {
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

    #[test]
    fn less_worth_leaves_first_then_the_earlier_use() {
        let worths = [0.0, 1e-6, 0.3, 2.0].map(Worth::of);
        assert!(worths.is_sorted() && worths[3] < Worth::MOST);
        let orders = worths.map(|worth| [0, 8, 0xFFF8].map(|rest| Order::new(worth, rest)));
        assert!(orders.as_flattened().is_sorted());
        assert!(orders.as_flattened().iter().all(|&order| order < Order::NEVER));
        assert_eq!(Order::new(worths[1], 0x1235).place(), 5);
    }
}
