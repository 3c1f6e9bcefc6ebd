//! How much a table holds, and which limit on that stands in the way.

/// Some entries and their weight together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::core) struct Usage {
    pub(in crate::core) entries: u64,
    pub(in crate::core) weight: u64,
}

impl Usage {
    pub(in crate::core) const fn one(weight: u64) -> Self {
        Self { entries: 1, weight }
    }

    pub(in crate::core) fn saturating_sub(self, other: Self) -> Self {
        Self {
            entries: self.entries.saturating_sub(other.entries),
            weight: self.weight.saturating_sub(other.weight),
        }
    }
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.entries += other.entries;
        self.weight += other.weight;
    }
}

/// Which limit stands in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::core) enum Limit {
    Entries,
    Weight,
}
