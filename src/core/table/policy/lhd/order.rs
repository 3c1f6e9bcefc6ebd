//! Which of two entries leaves first.

use wide::bytemuck::cast;
use wide::{i32x4, i32x8, u16x8, u32x8};

use super::measures::Worth;

/// Neighbours that are compared with vector instructions, all at once.
pub(super) const RUN: usize = 8;

/// What makes one entry leave before another: less worth, then an earlier last use, as far as the
/// lower bits of its tick tell; and in the lowest its place in the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Order(pub(super) i32);

impl Order {
    /// Where the worth stands.
    pub(super) const WORTH: u32 = 16;

    /// The order of vacant slots: no entry leaves in this order or a later one.
    pub(super) const NEVER: Self = Self::new(Worth::MOST, 0);

    /// A worth has 15 bits, so this is not negative. It is signed, as SSE2 compares only signed numbers
    /// four at once.
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

    /// The first of each half. Both are compared side by side for as long as several are left.
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

    /// The place in its run of the entry that has this order.
    #[inline]
    pub(super) fn place(self) -> u32 {
        self.0 as u32 % RUN as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
