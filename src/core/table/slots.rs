//! Storage that grows without moving much of what it holds: a list of segments.
//!
//! A plain `Vec` doubles by moving everything, under the lock of the shard, for as long as that
//! takes. Here only the last segment grows, by a few items at a time, and so a push moves at most
//! one segment. Segments are long enough that what is looked up together stands in few pages: pieces
//! of 64 entries lay scattered between the vectors, and each hit then also missed the processor's
//! address cache, which halved its speed. And all are equally long, so that an item is found with a
//! shift: segments that grow with what is stored (an eighth of a power of two) cost a hit ten
//! instructions more, twice.

/// Items of a segment, as a power of two: of a usual entry 150 KB, moved in some ten microseconds.
const BITS: u32 = 11;
pub(super) const SEGMENT: usize = 1 << BITS;

/// By how many items a segment grows where there are `len`: by an eighth, within bounds.
pub(super) fn growth(len: usize) -> usize {
    (len / 8).clamp(4, 256)
}

/// Which slot of a shard an entry stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::core) struct SlotId(u32);

impl SlotId {
    /// No slot: the end of a list. Never handed out by [`Slots::push`].
    pub(in crate::core) const NONE: Self = Self(u32::MAX);

    pub(in crate::core) const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    pub(in crate::core) const fn bits(self) -> u32 {
        self.0
    }

    /// Nothing for [`NONE`](Self::NONE).
    #[inline]
    pub(super) fn some(self) -> Option<Self> {
        Some(self).filter(|&id| id != Self::NONE)
    }

    /// The segment, and the place in it.
    #[inline]
    pub(super) const fn split(self) -> (usize, usize) {
        ((self.0 >> BITS) as usize, self.0 as usize % SEGMENT)
    }
}

#[derive(Debug)]
pub(in crate::core) struct Slots<T> {
    segments: Vec<Vec<T>>,
    len: usize,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { segments: Vec::new(), len: 0 }
    }
}

impl<T> Slots<T> {
    pub(in crate::core) fn len(&self) -> usize {
        self.len
    }

    pub(in crate::core) fn get(&self, id: SlotId) -> Option<&T> {
        ((id.0 as usize) < self.len).then(|| &self[id])
    }

    /// The item at `id`, as by an index.
    // Always: a replacement pays 16 instructions for each of two calls, which an index becomes there.
    // Where all indices are in line, the functions around them no longer are.
    #[inline(always)]
    pub(super) fn at_mut(&mut self, id: SlotId) -> &mut T {
        let (segment, place) = id.split();
        match self.segments.get_mut(segment).and_then(|segment| segment.get_mut(place)) {
            Some(item) => item,
            None => missing(id),
        }
    }

    /// So many items from `id` on, which are in one segment.
    #[inline]
    pub(super) fn run(&self, id: SlotId, len: usize) -> &[T] {
        let (segment, place) = id.split();
        &self.segments[segment][place..place + len]
    }

    /// Whether one more item would have no id left.
    pub(in crate::core) fn is_full(&self) -> bool {
        self.len >= MOST
    }

    /// Appends. The caller has asked [`is_full`](Self::is_full).
    pub(in crate::core) fn push(&mut self, item: T) -> SlotId {
        let id = SlotId(self.len as u32);
        debug_assert!(!self.is_full());
        if self.len.is_multiple_of(SEGMENT) {
            self.segments.push(Vec::new());
        }
        if let Some(last) = self.segments.last_mut() {
            if last.len() == last.capacity() {
                last.reserve_exact(growth(self.len).min(SEGMENT - last.len()));
            }
            last.push(item);
        }
        self.len += 1;
        id
    }
}

// For both checks of an index, as each by itself would keep at hand where it stands in the source.
#[cold]
#[inline(never)]
fn missing(id: SlotId) -> ! {
    panic!("there is no {id:?}")
}

/// The items, segment by segment, each given back when it is gone through.
pub(in crate::core) type IntoIter<T> = std::iter::Flatten<std::vec::IntoIter<Vec<T>>>;

impl<T> IntoIterator for Slots<T> {
    type Item = T;
    type IntoIter = IntoIter<T>;

    fn into_iter(self) -> IntoIter<T> {
        self.segments.into_iter().flatten()
    }
}

/// The last number is that of [`SlotId::NONE`], and a few before it are free for marks.
const MOST: usize = (u32::MAX - 32) as usize;

impl<T: Default> Slots<T> {
    /// The item at `id`, after growing to reach it. Each slot is new once and taken over many times,
    /// so growing is a call out of the way; where ids come one by one it is one push.
    #[inline]
    pub(in crate::core) fn reach(&mut self, id: SlotId) -> &mut T {
        if id.0 as usize >= self.len {
            self.grow(id);
        }
        &mut self[id]
    }

    #[cold]
    #[inline(never)]
    fn grow(&mut self, id: SlotId) {
        while self.len <= id.0 as usize {
            self.push(T::default());
        }
    }
}

impl<T> std::ops::Index<SlotId> for Slots<T> {
    type Output = T;

    #[inline]
    fn index(&self, id: SlotId) -> &T {
        let (segment, place) = id.split();
        match self.segments.get(segment).and_then(|segment| segment.get(place)) {
            Some(item) => item,
            None => missing(id),
        }
    }
}

impl<T> std::ops::IndexMut<SlotId> for Slots<T> {
    #[inline]
    fn index_mut(&mut self, id: SlotId) -> &mut T {
        self.at_mut(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Enough for several sizes of segments.
    const ITEMS: usize = if cfg!(miri) { 300 } else { 10_000 };

    #[test]
    fn items_stay_where_they_were_pushed() {
        let mut slots = Slots::default();
        for i in 0..ITEMS {
            assert_eq!(slots.push(i).bits() as usize, i);
            assert_eq!(slots.len(), i + 1);
        }
        for i in 0..slots.len() {
            assert_eq!(slots[SlotId::from_bits(i as u32)], i);
        }
        assert_eq!(slots.get(SlotId::from_bits(slots.len() as u32)), None);
        assert_eq!(slots.get(SlotId::NONE), None);
    }

    #[test]
    fn the_room_for_more_is_bounded_and_so_is_what_moves() {
        let mut slots = Slots::default();
        for i in 0..ITEMS {
            let before: Vec<_> = slots.segments.iter().map(Vec::as_ptr).collect();
            slots.push(i);
            let capacity: usize = slots.segments.iter().map(Vec::capacity).sum();
            assert!(capacity <= slots.len() + growth(slots.len()), "{capacity} for {i}");
            let all = slots.segments.iter().map(Vec::as_ptr);
            let moved = before.iter().zip(all).filter(|(before, now)| **before != *now).count();
            assert!(moved <= 1, "{moved} segments were moved");
        }
        assert!(slots.segments.iter().all(|segment| segment.len() <= SEGMENT));
    }
}
