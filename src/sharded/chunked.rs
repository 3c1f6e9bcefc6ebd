//! Storage that grows without moving what it holds: a list of chunks of 32 items.
//!
//! A plain `Vec` doubles by moving everything, under the lock of the shard, for as long as that
//! takes. Here a push makes 32 default items at most, and moves 8 bytes for every 32 items when the
//! list of chunks grows. A chunk is an array, so that looking up an item checks one bound, not two:
//! this is on the way of every hit.

const BITS: u32 = 5;
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
    chunks: Vec<Box<[T; CHUNK]>>,
    len: usize,
}

impl<T> Default for Chunked<T> {
    fn default() -> Self {
        Self { chunks: Vec::new(), len: 0 }
    }
}

impl<T> Chunked<T> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The item at `id`, if it was pushed.
    pub(super) fn get(&self, id: SlotId) -> Option<&T> {
        ((id.0 as usize) < self.len).then(|| &self[id])
    }

    /// Whether one more item would have no id left.
    pub(super) fn is_full(&self) -> bool {
        self.len >= SlotId::NONE.0 as usize
    }
}

impl<T: Default> Chunked<T> {
    /// Appends. The caller has asked [`is_full`](Self::is_full).
    pub(super) fn push(&mut self, item: T) -> SlotId {
        let id = SlotId(self.len as u32);
        debug_assert_ne!(id, SlotId::NONE);
        if self.len == self.chunks.len() * CHUNK {
            self.chunks.push(Box::new(std::array::from_fn(|_| T::default())));
        }
        self.len += 1;
        self[id] = item;
        id
    }

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
    fn the_room_for_more_is_one_chunk_at_most() {
        let mut chunked = Chunked::default();
        for i in 0..10 * CHUNK {
            chunked.push(i);
            assert!(chunked.chunks.len() * CHUNK < chunked.len() + CHUNK);
        }
    }
}
