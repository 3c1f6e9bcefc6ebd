//! Storage that grows without moving what it holds: a vector of chunks of at most 256 items.
//!
//! A plain `Vec` doubles by moving everything, under the lock of the shard, for as long as that
//! takes. Here a push moves at most one chunk, while that is still small, and 24 bytes for every
//! 256 items when the list of chunks grows.

const BITS: u32 = 8;
const CHUNK: usize = 1 << BITS;

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

    const fn split(self) -> (usize, usize) {
        ((self.0 >> BITS) as usize, self.0 as usize & (CHUNK - 1))
    }
}

#[derive(Debug)]
pub(super) struct Chunked<T> {
    chunks: Vec<Vec<T>>,
}

impl<T> Default for Chunked<T> {
    fn default() -> Self {
        Self { chunks: Vec::new() }
    }
}

impl<T> Chunked<T> {
    pub(super) fn len(&self) -> usize {
        match self.chunks.last() {
            Some(last) => (self.chunks.len() - 1) * CHUNK + last.len(),
            None => 0,
        }
    }

    pub(super) fn get(&self, id: SlotId) -> Option<&T> {
        let (chunk, place) = id.split();
        self.chunks.get(chunk)?.get(place)
    }

    /// Whether one more item would have no id left.
    pub(super) fn is_full(&self) -> bool {
        self.len() >= SlotId::NONE.0 as usize
    }

    /// Appends, moving at most one chunk. The caller has asked [`is_full`](Self::is_full).
    pub(super) fn push(&mut self, item: T) -> SlotId {
        let id = SlotId(self.len() as u32);
        debug_assert_ne!(id, SlotId::NONE);
        if self.chunks.last().is_none_or(|last| last.len() == CHUNK) {
            self.chunks.push(Vec::new());
        }
        // A chunk grows in steps of an eighth of all there is: a shard of a few hundred entries
        // would waste much of a whole one.
        let step = (self.len() / 8).max(4);
        let last = self.chunks.last_mut().expect("a chunk was just made");
        if last.len() == last.capacity() {
            last.reserve_exact(step.min(CHUNK - last.len()));
        }
        last.push(item);
        id
    }
}

impl<T: Default> Chunked<T> {
    /// The item at `id`, after growing to reach it. Where ids come one by one, as they do here,
    /// that is one push.
    pub(super) fn reach(&mut self, id: SlotId) -> &mut T {
        while self.len() <= id.0 as usize {
            self.push(T::default());
        }
        &mut self[id]
    }
}

impl<T> std::ops::Index<SlotId> for Chunked<T> {
    type Output = T;

    #[inline]
    fn index(&self, id: SlotId) -> &T {
        let (chunk, place) = id.split();
        &self.chunks[chunk][place]
    }
}

impl<T> std::ops::IndexMut<SlotId> for Chunked<T> {
    #[inline]
    fn index_mut(&mut self, id: SlotId) -> &mut T {
        let (chunk, place) = id.split();
        &mut self.chunks[chunk][place]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_stay_where_they_were_pushed() {
        let mut chunked = Chunked::default();
        for i in 0..3 * CHUNK + 7 {
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
    fn the_room_for_more_is_an_eighth_at_most() {
        let mut chunked = Chunked::default();
        for i in 0..10 * CHUNK {
            chunked.push(i);
            let capacity: usize = chunked.chunks.iter().map(Vec::capacity).sum();
            assert!(chunked.chunks.iter().all(|chunk| chunk.capacity() <= CHUNK));
            assert!(capacity <= chunked.len() + chunked.len() / 8 + 4);
        }
    }
}
