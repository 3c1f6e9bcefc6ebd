//! Interns the names of models: each is kept once for the whole process, and a stored key needs its
//! number only.
//!
//! A process has a few models and a great many keys. Comparing a key with a stored one then needs no
//! visit to the heap for the name, and an entry is spared its bytes.
//!
//! The first [`MOST`] names get a number and keep it for ever; keys of later names are stored in
//! another form. Whether a name has a number never changes: a slot is written once, all threads look
//! through the slots in the same order, and one that does not find its name takes the first empty
//! slot. So two keys that are equal are always stored in the same form.

use std::num::NonZeroU32;
use std::sync::OnceLock;

use wide::u8x16;

/// So many names have a number: looking through more would cost more than it saves. If unused names
/// fill them, keys of other models are as slow as they would be without numbers.
const MOST: usize = 64;

/// Longer names have no number, so that what is kept for ever is 20 KB at most.
const LONGEST: usize = 256;

static NAMES: [OnceLock<Known>; MOST] = [const { OnceLock::new() }; MOST];

/// A name that has a number.
#[derive(Debug)]
struct Known {
    /// Here and not behind the pointer, so that most names are compared without a visit there.
    ends: Ends,
    name: Box<str>,
}

impl Known {
    /// Whether this is `name`, whose ends are `ends`.
    // In line throughout, where `==` of the names would call the C library: for so few bytes the call
    // costs more than the comparison.
    #[inline]
    fn is(&self, name: &str, ends: &Ends) -> bool {
        self.name.len() == name.len()
            && self.ends.are(ends)
            && (name.len() <= 2 * END || middle(&self.name).eq(middle(name)))
    }
}

/// So many bytes at either end of a name are compared first.
const END: usize = 16;

/// The first and the last [`END`] bytes of a name, which may overlap; of a shorter one as many as
/// both ends have room for, and zeros. Two names of one length, up to twice `END`, are equal if these
/// are.
#[derive(Debug, Clone, Copy)]
struct Ends(u8x16, u8x16);

impl Ends {
    fn of(name: &[u8]) -> Self {
        let longest = Self::overlapping::<END>(name).or_else(|| Self::overlapping::<8>(name));
        longest.or_else(|| Self::overlapping::<4>(name)).unwrap_or_else(|| match *name {
            [a, b, c] => Self::padded([a, b, c], []),
            [a, b] => Self::padded([a, b], []),
            [a] => Self::padded([a], []),
            _ => Self::padded([], []),
        })
    }

    /// Of a name of at least `N` bytes, the first `N` and the last.
    #[inline]
    fn overlapping<const N: usize>(name: &[u8]) -> Option<Self> {
        Some(Self::padded::<N, N>(*name.first_chunk()?, *name.last_chunk()?))
    }

    #[inline]
    fn padded<const N: usize, const M: usize>(first: [u8; N], last: [u8; M]) -> Self {
        let (mut ends, lanes) = ([[0; END]; 2], u8x16::new);
        ends[0][..N].copy_from_slice(&first);
        ends[1][..M].copy_from_slice(&last);
        Self(lanes(ends[0]), lanes(ends[1]))
    }

    #[inline]
    fn are(&self, others: &Self) -> bool {
        (self.0.simd_eq(others.0) & self.1.simd_eq(others.1)).all()
    }
}

/// What is between the ends of a name, and perhaps some of the last one.
#[inline]
fn middle(name: &str) -> impl Iterator<Item = &[u8; END]> {
    name.as_bytes().as_chunks().0.iter().skip(1)
}

/// The number of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ModelId(NonZeroU32);

impl ModelId {
    /// The number of `name`, which gets one if there is one left.
    // Always: see `Compact::of`, of which this is half.
    #[inline(always)]
    pub(super) fn named(name: &str) -> Option<Self> {
        match Ends::overlapping::<END>(name.as_bytes()) {
            Some(ends) => Self::with_ends(name, ends),
            None => Self::named_in_short(name),
        }
    }

    // Never: the ends of longer names would have to meet these in memory.
    #[inline(never)]
    fn named_in_short(name: &str) -> Option<Self> {
        Self::with_ends(name, Ends::of(name.as_bytes()))
    }

    // Always: see `Compact::of`; the ends stay in registers.
    #[inline(always)]
    fn with_ends(name: &str, ends: Ends) -> Option<Self> {
        // Nearly every process has one model: before the loop, and what that needs.
        if let Some(known) = NAMES[0].get()
            && known.is(name, &ends)
        {
            return Self::at(0);
        }
        for (number, known) in NAMES.iter().enumerate().skip(1) {
            match known.get() {
                Some(known) if known.is(name, &ends) => return Self::at(number),
                Some(_) => {}
                None => return Self::intern(name),
            }
        }
        None
    }

    #[cold]
    #[inline(never)]
    fn intern(name: &str) -> Option<Self> {
        if name.len() > LONGEST {
            return None;
        }
        // From the start: the first empty slot may be taken by another thread, with this name.
        let known = || Known { ends: Ends::of(name.as_bytes()), name: name.into() };
        let number = NAMES.iter().position(|other| *other.get_or_init(known).name == *name);
        number.and_then(Self::at)
    }

    /// The model whose name is at `index`: numbers begin with 1.
    #[inline]
    fn at(index: usize) -> Option<Self> {
        NonZeroU32::new(index as u32 + 1).map(Self)
    }

    pub(super) fn name(self) -> &'static str {
        let known = NAMES.get(self.0.get() as usize - 1).and_then(OnceLock::get);
        known.map_or("", |known| &known.name)
    }

    pub(super) fn number(self) -> NonZeroU32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_number_and_no_two_share_one() {
        // More than there are numbers; Miri gets fewer.
        let (names, threads) = if cfg!(miri) { (3, 2) } else { (2 * MOST, 4) };
        let names: Vec<String> = (0..names).map(|i| format!("model {i}")).collect();
        let number_all = || names.iter().map(|name| ModelId::named(name)).collect::<Vec<_>>();
        // At once, so that threads race for the same slots.
        let all: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(number_all)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(all.iter().all(|numbers| *numbers == all[0]), "all threads see the same");
        let numbered = all[0].iter().flatten();
        assert!(numbered.clone().count() >= names.len().min(MOST / 2));
        let distinct: std::collections::HashSet<_> = numbered.clone().collect();
        assert_eq!(distinct.len(), numbered.count());
        for (name, model) in names.iter().zip(&all[0]) {
            assert!(model.is_none_or(|model| model.name() == name));
        }
        assert_eq!(ModelId::named(&"x".repeat(LONGEST + 1)), None);
    }

    #[test]
    fn names_are_the_same_only_if_every_byte_is() {
        let lengths = if cfg!(miri) { &[3, 5, 17, 49][..] } else { &Vec::from_iter(0..100) };
        for &length in lengths {
            let name = "x".repeat(length);
            let known = Known { ends: Ends::of(name.as_bytes()), name: name.clone().into() };
            let is = |name: &str| known.is(name, &Ends::of(name.as_bytes()));
            assert!(is(&name));
            assert!(!is(&format!("{name}x")) && !is(&format!("{name}\0")));
            for at in 0..length {
                let other = format!("{}y{}", &name[..at], &name[at + 1..]);
                assert!(!is(&other) && !is(&name[..at]), "byte {at} of {length}");
            }
        }
    }
}
