//! Storage that grows without moving what it holds: a list of segments, each an eighth of a power of
//! two long.
//!
//! A plain `Vec` doubles by moving everything, under the lock of the shard, for as long as that
//! takes. Here a push moves nothing: when the last segment is full, room for the next is allocated,
//! at most an eighth of what there is. Segments grow with what is stored, so that what is looked up
//! together stands in few pages: pieces of a fixed small size lie scattered between the vectors, and
//! each hit then also misses the processor's address cache, which halved its speed.
//!
//! Item `i` stands where a histogram with eight buckets for each power of two would count `i + 32`:
//! the highest set bit and the three below it are the segment, the bits below those the place.

/// The first segments are for four items each.
const FIRST: u32 = 32;
/// The three bits below the highest one.
const SUB_BITS: u32 = 3;
/// What the formula makes of the segment of item 0.
const FIRST_SEGMENT: usize = ((FIRST.ilog2() - SUB_BITS) << SUB_BITS) as usize;

/// Which slot of a shard an entry stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SlotId(u32);

impl SlotId {
    /// No slot: the end of a list. Never handed out by [`Chunked::push`].
    pub(super) const NONE: Self = Self(u32::MAX);

    pub(super) const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    pub(super) const fn bits(self) -> u32 {
        self.0
    }

    /// The segment, and the place in it.
    #[inline]
    const fn split(self) -> (usize, usize) {
        // Only `NONE`, which is no item's, wraps around. The bit of `FIRST` is never above the
        // highest one, and tells the compiler that there is one.
        let at = self.0.wrapping_add(FIRST);
        let shift = (at | FIRST).ilog2() - SUB_BITS;
        let top = at >> shift; // 8 to 15: the highest bit and the three below
        let segment = (shift as usize) << SUB_BITS | (top & 7) as usize;
        (segment.wrapping_sub(FIRST_SEGMENT), (at ^ top << shift) as usize)
    }
}

#[derive(Debug)]
pub(super) struct Chunked<T> {
    segments: Vec<Vec<T>>,
    len: usize,
}

impl<T> Default for Chunked<T> {
    fn default() -> Self {
        Self { segments: Vec::new(), len: 0 }
    }
}

impl<T> Chunked<T> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn get(&self, id: SlotId) -> Option<&T> {
        ((id.0 as usize) < self.len).then(|| &self[id])
    }

    /// Whether one more item would have no id left.
    pub(super) fn is_full(&self) -> bool {
        self.len >= MOST
    }

    /// Appends. The caller has asked [`is_full`](Self::is_full).
    pub(super) fn push(&mut self, item: T) -> SlotId {
        let id = SlotId(self.len as u32);
        debug_assert!(!self.is_full());
        let (segment, place) = id.split();
        if place == 0 {
            let at = id.0 + FIRST;
            self.segments.push(Vec::with_capacity(1 << (at.ilog2() - SUB_BITS)));
        }
        self.segments[segment].push(item);
        self.len += 1;
        id
    }
}

/// Ids are counted from [`FIRST`] in 32 bits, and the last one is [`SlotId::NONE`].
const MOST: usize = (u32::MAX - FIRST) as usize;

impl<T: Default> Chunked<T> {
    /// The item at `id`, after growing to reach it. Where ids come one by one, as they do here,
    /// that is one push.
    pub(super) fn reach(&mut self, id: SlotId) -> &mut T {
        while self.len <= id.0 as usize {
            self.push(T::default());
        }
        &mut self[id]
    }
}

impl<T> std::ops::Index<SlotId> for Chunked<T> {
    type Output = T;

    #[inline]
    fn index(&self, id: SlotId) -> &T {
        let (segment, place) = id.split();
        &self.segments[segment][place]
    }
}

impl<T> std::ops::IndexMut<SlotId> for Chunked<T> {
    #[inline]
    fn index_mut(&mut self, id: SlotId) -> &mut T {
        let (segment, place) = id.split();
        &mut self.segments[segment][place]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Enough for several sizes of segments.
    const ITEMS: usize = if cfg!(miri) { 300 } else { 10_000 };

    #[test]
    fn items_stay_where_they_were_pushed() {
        let mut chunked = Chunked::default();
        for i in 0..ITEMS {
            assert_eq!(chunked.push(i).bits() as usize, i);
            assert_eq!(chunked.len(), i + 1);
        }
        for i in 0..chunked.len() {
            assert_eq!(chunked[SlotId::from_bits(i as u32)], i);
        }
        assert_eq!(chunked.get(SlotId::from_bits(chunked.len() as u32)), None);
        assert_eq!(chunked.get(SlotId::NONE), None);
    }

    #[test]
    fn the_room_for_more_is_an_eighth_and_nothing_moves() {
        let mut chunked = Chunked::default();
        for i in 0..ITEMS {
            chunked.push(i);
            let capacity: usize = chunked.segments.iter().map(Vec::capacity).sum();
            assert!(capacity <= chunked.len() + chunked.len() / 8 + 4, "{capacity} for {i}");
        }
        let whole = chunked.segments.split_last().unwrap().1;
        assert!(whole.iter().all(|segment| segment.len() == segment.capacity()));
    }

    #[test]
    fn the_last_ids_have_places_of_their_own() {
        let last = SlotId((MOST - 1) as u32);
        let before = SlotId((MOST - 2) as u32);
        assert_ne!(last.split(), before.split());
    }
}
