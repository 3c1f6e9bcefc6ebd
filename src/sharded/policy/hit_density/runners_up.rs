//! The order in which entries leave, and those that are next.

use super::super::super::chunked::SlotId;
use super::learner::Worth;

/// Entries that are looked at again with the next eviction. 7 or 15 gain nothing.
pub(super) const RUNNERS_UP: usize = 3;

/// What makes one entry leave before another: less worth, then an earlier last use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Order(u64);

impl Order {
    /// Later than anybody.
    pub(super) const NEVER: Self = Self(u64::MAX);

    #[inline]
    pub(super) fn new(worth: Worth, youth: u32) -> Self {
        Self(u64::from(worth.bits()) << 32 | u64::from(youth))
    }
}

/// An entry, and when it leaves.
#[derive(Debug, Clone, Copy)]
struct Rank {
    order: Order,
    slot: SlotId,
}

impl Rank {
    const NOBODY: Self = Self { order: Order::NEVER, slot: SlotId::NONE };
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
    pub(super) fn keep(&mut self, order: Order, slot: SlotId) {
        if order >= self.0[RUNNERS_UP].order {
            return;
        }
        // Who is there already takes the new order, else the best of them goes.
        let known = self.0.iter().position(|rank| rank.slot == slot);
        let mut place = known.unwrap_or(RUNNERS_UP);
        while place > 0 && order < self.0[place - 1].order {
            self.0[place] = self.0[place - 1];
            place -= 1;
        }
        while place < RUNNERS_UP && self.0[place + 1].order < order {
            self.0[place] = self.0[place + 1];
            place += 1;
        }
        self.0[place] = Rank { order, slot };
    }

    /// Takes out the worst.
    pub(super) fn pop(&mut self) -> Option<SlotId> {
        let worst = self.0[0].slot;
        self.0.copy_within(1.., 0);
        self.0[RUNNERS_UP] = Rank::NOBODY;
        (worst != SlotId::NONE).then_some(worst)
    }

    /// Whether the worst leaves before one in this order.
    pub(super) fn leaves_before(&self, order: Order) -> bool {
        self.0[0].order < order
    }
}
