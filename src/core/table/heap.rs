//! Slots by a moment, or by another key, the earliest on top, in memory that only grows.
//!
//! A heap with four children to a node (Johnson: *Priority queues with update and finding minimum
//! spanning trees*, Information Processing Letters 4, 1975; heaps as such: Knuth, *The Art of
//! Computer Programming*, volume 3, 5.2.3) that knows the place of every slot, so that any of them
//! can leave: each operation is one way up or down, `O(log n)`. Four children and not two, as that
//! halves the levels, and with them the lines of memory on the way.
//!
//! A search tree would give its nodes back one by one, under the lock of the shard, and no bound is
//! known for what the allocator then does: that of glibc at times joins all small free blocks there
//! are, which took it up to a tenth of a second. Here nothing is given back before the table is
//! dropped, and nothing is taken before the first slot comes.

use super::slots::{SEGMENT, SlotId, Slots, growth};
use super::ticks::Looks;

/// Children of a node: those of place `p` are at `4p + 1` and the three after it.
const CHILDREN: usize = 4;

/// Where the first place is, in the two arrays.
const ROOT: usize = CHILDREN - 1;

#[derive(Debug)]
pub(in crate::core) struct Heap<M> {
    /// How many there are. What stands at this place and behind it in the two arrays is left over.
    len: usize,
    /// Apart from the slots, as together they would be padded to 16 bytes.
    moments: Slots<M>,
    slots: Slots<SlotId>,
    places: Places,
}

// Not derived: that would ask `M` for a default.
impl<M> Default for Heap<M> {
    fn default() -> Self {
        let (moments, slots) = (Slots::default(), Slots::default());
        Self { len: 0, moments, slots, places: Places::default() }
    }
}

/// Where what has this place stands. The places before the root are never used: so the children of a
/// node are four places that a multiple of four begins with, and in one segment.
const fn at(place: usize) -> SlotId {
    // There are no more places than slots.
    SlotId::from_bits((place + ROOT) as u32)
}

const fn parent(place: usize) -> usize {
    (place - 1) / CHILDREN
}

impl<M: Ord + Copy + std::fmt::Debug> Heap<M> {
    pub(in crate::core) fn len(&self) -> usize {
        self.len
    }

    /// The earliest; of several any.
    #[inline]
    pub(in crate::core) fn first(&self) -> Option<(M, SlotId)> {
        (self.len > 0).then(|| (self.moments[at(0)], self.slots[at(0)]))
    }

    /// The earliest but for `keep`.
    #[inline]
    pub(in crate::core) fn first_but(&self, keep: Option<SlotId>) -> Option<(M, SlotId)> {
        let first = self.first()?;
        if keep != Some(first.1) {
            return Some(first);
        }
        let second =
            (1..self.len.min(CHILDREN + 1)).min_by_key(|&child| self.moments[at(child)])?;
        Some((self.moments[at(second)], self.slots[at(second)]))
    }

    /// The earliest but for `keep` where the moments have become later since they were told:
    /// `now` says what one is. Puts what comes up with a moment of the past in its place, as far as
    /// there are `looks`. An error is what comes first where they were used up.
    pub(in crate::core) fn settled_first(
        &mut self,
        keep: Option<SlotId>,
        now: impl Fn(SlotId, M) -> M,
        looks: &mut Looks,
    ) -> Result<Option<(M, SlotId)>, (M, SlotId)> {
        while let Some((told, slot)) = self.first_but(keep) {
            let moment = now(slot, told);
            if moment == told {
                return Ok(Some((told, slot)));
            }
            if !looks.take() {
                return Err((moment, slot));
            }
            // Later than told, so it sinks.
            if let Some(place) = self.places.get(slot) {
                self.sink(place, slot, moment);
            }
        }
        Ok(None)
    }

    /// The moment of `slot`, if it is here.
    pub(in crate::core) fn moment_of(&self, slot: SlotId) -> Option<M> {
        self.places.get(slot).map(|place| self.moments[at(place)])
    }

    /// Adds `slot`, which is not here.
    pub(in crate::core) fn insert(&mut self, slot: SlotId, moment: M) {
        debug_assert_eq!(self.places.get(slot), None);
        let place = self.len;
        while self.slots.len() <= place + ROOT {
            self.moments.push(moment);
            self.slots.push(slot);
        }
        self.len += 1;
        self.places.reach(slot);
        self.rise(place, slot, moment);
    }

    /// Takes out `slot`; whether it was here.
    pub(in crate::core) fn remove(&mut self, slot: SlotId) -> bool {
        let Some(place) = self.places.take(slot) else { return false };
        self.len -= 1;
        if place < self.len {
            let (last, moment) = (self.slots[at(self.len)], self.moments[at(self.len)]);
            // It may come from another branch, and so belong higher as well as lower.
            if place > 0 && moment < self.moments[at(parent(place))] {
                self.rise(place, last, moment);
            } else {
                self.sink(place, last, moment);
            }
        }
        true
    }

    /// Stores `slot` at the free place `place`, or above it.
    fn rise(&mut self, mut place: usize, slot: SlotId, moment: M) {
        while place > 0 {
            let above = parent(place);
            if self.moments[at(above)] <= moment {
                break;
            }
            self.put(place, self.slots[at(above)], self.moments[at(above)]);
            place = above;
        }
        self.put(place, slot, moment);
    }

    /// Stores `slot` at the free place `place`, or below it.
    fn sink(&mut self, mut place: usize, slot: SlotId, moment: M) {
        while let Some((least, earliest)) = self.least_below(place)
            && earliest < moment
        {
            self.put(place, self.slots[at(least)], earliest);
            place = least;
        }
        self.put(place, slot, moment);
    }

    /// The child of `place` with the earliest moment.
    #[inline]
    fn least_below(&self, place: usize) -> Option<(usize, M)> {
        let first = CHILDREN * place + 1;
        let count = self.len.checked_sub(first)?.min(CHILDREN);
        // They stand in one line of memory, or two, and are compared without a look for each.
        let moments = self.moments.run(at(first), count);
        let mut least = (0, *moments.first()?);
        for (child, &moment) in moments.iter().enumerate().skip(1) {
            if moment < least.1 {
                least = (child, moment);
            }
        }
        Some((first + least.0, least.1))
    }

    fn put(&mut self, place: usize, slot: SlotId, moment: M) {
        self.slots[at(place)] = slot;
        self.moments[at(place)] = moment;
        self.places.set(slot, place);
    }

    /// Panics unless every slot is where it is said to be, and none later than one below it.
    pub(in crate::core) fn validate(&self) {
        assert_eq!(self.places.taken(), self.len, "the heap miscounts itself");
        for place in 0..self.len {
            let slot = self.slots[at(place)];
            assert_eq!(self.places.get(slot), Some(place), "{slot:?} stands elsewhere");
            assert!(
                place == 0 || self.moments[at(parent(place))] <= self.moments[at(place)],
                "{slot:?} comes before the one above it"
            );
        }
    }

    /// As [`validate`](Self::validate), and unless all here are among `occupied`; returns the others.
    pub(in crate::core) fn validate_among(
        &self,
        occupied: &mut dyn Iterator<Item = SlotId>,
    ) -> Vec<SlotId> {
        self.validate();
        let (here, others): (Vec<_>, Vec<_>) =
            occupied.partition(|&slot| self.moment_of(slot).is_some());
        assert_eq!(here.len(), self.len, "something empty is in the heap");
        others
    }
}

/// For each slot its place in the heap.
///
/// Not [`Slots`], which has no gaps: the first slot that comes may be the millionth, and to write
/// a million places then would take too long. Here a segment is written as far as a slot of it was
/// in the heap.
#[derive(Debug, Default)]
struct Places {
    segments: Vec<Vec<u32>>,
}

impl Places {
    /// In place of a place: not in the heap.
    const APART: u32 = u32::MAX;

    fn get(&self, slot: SlotId) -> Option<usize> {
        let (segment, offset) = slot.split();
        let place = *self.segments.get(segment)?.get(offset)?;
        (place != Self::APART).then_some(place as usize)
    }

    /// Makes room for the place of `slot`.
    fn reach(&mut self, slot: SlotId) {
        let (segment, offset) = slot.split();
        if segment >= self.segments.len() {
            self.segments.resize_with(segment + 1, Vec::new);
        }
        let segment = &mut self.segments[segment];
        let missing = (offset + 1).saturating_sub(segment.len());
        if missing > segment.capacity() - segment.len() {
            let growth = growth(slot.bits() as usize).max(missing);
            segment.reserve_exact(growth.min(SEGMENT - segment.len()));
        }
        segment.extend(std::iter::repeat_n(Self::APART, missing));
    }

    /// Notes the place of `slot`, which was [reached](Self::reach).
    fn set(&mut self, slot: SlotId, place: usize) {
        let (segment, offset) = slot.split();
        self.segments[segment][offset] = place as u32;
    }

    /// The place of `slot`, from now on forgotten.
    fn take(&mut self, slot: SlotId) -> Option<usize> {
        let place = self.get(slot)?;
        self.set(slot, Self::APART as usize);
        Some(place)
    }

    /// How many slots have a place.
    fn taken(&self) -> usize {
        self.segments.iter().flatten().filter(|&&place| place != Self::APART).count()
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::super::stamp::Stamp;
    use super::*;

    const STEPS: usize = if cfg!(miri) { 100 } else { 50_000 };
    /// More than a segment.
    const SLOTS: u32 = if cfg!(miri) { 60 } else { 3000 };

    fn slot(bits: u32) -> SlotId {
        SlotId::from_bits(bits)
    }

    fn moment(nanos: u64) -> Stamp {
        Stamp::from_nanos(nanos)
    }

    fn random(state: &mut u64) -> u32 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (*state >> 33) as u32
    }

    /// A heap, and what it should hold.
    #[derive(Default)]
    struct Modelled {
        heap: Heap<Stamp>,
        order: BTreeSet<(Stamp, SlotId)>,
        moments: BTreeMap<SlotId, Stamp>,
    }

    impl Modelled {
        fn insert(&mut self, slot: SlotId, moment: Stamp) {
            self.heap.insert(slot, moment);
            self.order.insert((moment, slot));
            self.moments.insert(slot, moment);
        }

        fn remove(&mut self, slot: SlotId) {
            let moment = self.moments.remove(&slot);
            assert_eq!(self.heap.moment_of(slot), moment);
            assert_eq!(self.heap.remove(slot), moment.is_some(), "{slot:?}");
            if let Some(moment) = moment {
                self.order.remove(&(moment, slot));
            }
        }

        fn check(&self) {
            assert_eq!(self.heap.len(), self.order.len());
            let (first, model) = (self.heap.first(), self.order.first());
            assert_eq!(first.map(|first| first.0), model.map(|model| model.0));
            if let Some((moment, slot)) = first {
                assert_eq!(self.moments.get(&slot), Some(&moment));
            }
        }
    }

    #[test]
    fn behaves_like_a_sorted_set_and_lets_go_of_the_middle() {
        // Of few moments most are equal, of many none.
        for moments in [1, 3, 1000, u32::MAX] {
            let (mut modelled, mut state) = (Modelled::default(), u64::from(moments));
            // Five times growing and shrinking.
            for step in 0..STEPS {
                let id = slot(random(&mut state) % SLOTS);
                let grows = (step / (STEPS / 10)).is_multiple_of(2);
                match random(&mut state) % 4 {
                    0 => modelled.remove(id),
                    1 if !grows => {
                        let Some((_, first)) = modelled.heap.first() else { continue };
                        modelled.remove(first);
                    }
                    _ => {
                        modelled.remove(id);
                        let at = random(&mut state) % moments;
                        modelled.insert(id, moment(u64::from(at)));
                    }
                }
                modelled.check();
                if step % 100 == 99 {
                    modelled.heap.validate();
                }
            }
            while let Some((_, first)) = modelled.heap.first() {
                modelled.remove(first);
                modelled.check();
            }
            modelled.heap.validate();
        }
    }

    #[test]
    fn moments_leave_in_order() {
        let mut heap = Heap::default();
        let moments = [5, 1, 9, 9, 0, 7, 3, 1, u64::MAX, 2];
        for (place, &nanos) in moments.iter().enumerate() {
            heap.insert(slot(place as u32), moment(nanos));
        }
        heap.validate();
        let mut left = Vec::new();
        while let Some((moment, slot)) = heap.first() {
            left.push((moment.nanos(), moments[slot.bits() as usize]));
            assert!(heap.remove(slot));
        }
        let mut sorted = moments.map(|nanos| (nanos, nanos));
        sorted.sort_unstable();
        assert_eq!(left, sorted);
    }

    #[test]
    fn a_slot_that_is_not_here_is_not_taken_out() {
        let mut heap = Heap::default();
        assert!(!heap.remove(slot(0)));
        heap.insert(slot(5), moment(1));
        for other in [0, 4, 6, 5000, u32::MAX - 2] {
            assert!(!heap.remove(slot(other)));
            assert_eq!(heap.moment_of(slot(other)), None);
        }
        assert!(heap.remove(slot(5)));
        assert!(!heap.remove(slot(5)));
        assert_eq!((heap.len(), heap.first()), (0, None));
    }

    #[test]
    fn the_first_slot_may_be_a_late_one_and_takes_no_room_for_those_before_it() {
        let mut heap = Heap::default();
        heap.insert(slot(10_000_000), moment(1));
        heap.insert(slot(3), moment(0));
        let room: usize = heap.places.segments.iter().map(Vec::capacity).sum();
        assert!(room <= SEGMENT + 4, "{room} places");
        assert_eq!(heap.first(), Some((moment(0), slot(3))));
        heap.validate();
    }

    #[test]
    fn the_room_for_more_is_bounded() {
        let mut heap = Heap::default();
        for i in 0..if cfg!(miri) { 300 } else { 10_000 } {
            heap.insert(slot(i), moment(u64::from(i)));
            let room: usize = heap.places.segments.iter().map(Vec::capacity).sum();
            assert!(room <= heap.len() + growth(i as usize), "{room} places for {}", heap.len());
        }
    }
}
