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
            // Small caches have many shards with few entries each, so the first chunk grows in
            // small steps; with 256 entries and more a whole chunk at once wastes little.
            let capacity = if self.chunks.is_empty() { 4 } else { CHUNK };
            self.chunks.push(Vec::with_capacity(capacity));
        }
        let last = self.chunks.last_mut().expect("a chunk was just made");
        if last.len() == last.capacity() {
            last.reserve_exact((last.len() / 4).clamp(4, CHUNK - last.len()));
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
    fn a_chunk_that_is_filling_wastes_at_most_a_quarter() {
        let mut chunked = Chunked::default();
        for i in 0..10 * CHUNK {
            chunked.push(i);
            let first = &chunked.chunks[0];
            assert!(first.capacity() <= CHUNK);
            assert!(first.capacity() <= first.len() + first.len() / 4 + 4);
        }
    }
}
