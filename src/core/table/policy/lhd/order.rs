//! Which of two entries leaves first.

use wide::i16x16;

use super::measures::Worth;

/// What makes one entry leave before another: less worth, and in the bits below that the greater
/// age. Signed, as SSE2 compares only signed numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Order(pub(super) i16);

impl Order {
    /// Vacant slots leave in this order or a later one, entries before.
    pub(super) const NEVER: Self = Self(Worth::MOST.0);

    /// An order that is later by so much.
    #[inline]
    pub(super) fn later(self, by: i16) -> Self {
        Self(self.0.saturating_add(by)).min(Self::NEVER)
    }

    #[inline]
    pub(super) fn earlier(self, by: i16) -> Self {
        Self(self.0.saturating_sub(by)).max(Self(i16::MIN + 1))
    }
}

/// The orders of the entries of a line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Orders(pub(super) i16x16);

impl Orders {
    /// A bit for each, from the lowest on: whether it is before `bound`.
    #[inline]
    pub(super) fn before(self, bound: Order) -> u32 {
        i16x16::splat(bound.0).simd_gt(self.0).to_bitmask()
    }

    /// The least.
    #[inline]
    pub(super) fn first(self) -> Order {
        Order(self.0.reduce_min())
    }

    #[cfg(test)]
    pub(super) fn each(self) -> [Order; 16] {
        self.0.to_array().map(Order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_line_those_before_a_bound_are_marked() {
        let orders = Orders(i16x16::new(std::array::from_fn(|place| [7, 8, 9, 32639][place % 4])));
        assert_eq!(orders.before(Order(7)), 0);
        assert_eq!(orders.before(Order(8)), 0x1111);
        assert_eq!(orders.before(Order(9)), 0x3333);
        assert_eq!(orders.before(Order::NEVER), 0xFFFF);
        assert_eq!((orders.first(), orders.each()[3]), (Order(7), Order(32639)));
    }

    #[test]
    fn a_bound_stays_among_the_orders_that_there_are() {
        assert_eq!(Order(5).later(3), Order(8));
        assert_eq!(Order(5).later(i16::MAX), Order::NEVER);
        assert_eq!(Order(5).earlier(3), Order(2));
        assert_eq!(
            Order(-5).earlier(i16::MAX),
            Order(i16::MIN + 1),
            "of the least some are before it"
        );
    }
}
