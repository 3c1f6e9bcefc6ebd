//! The models of stored keys: each name is kept once for the whole process, and a stored key needs
//! its number only.
//!
//! A process has a few models and a great many keys. Comparing a key with a stored one then needs no
//! visit to the heap for the name, and an entry is spared its bytes.
//!
//! The first [`MOST`] names get a number and keep it for ever; what others have to do without one is
//! stored in another form. Which of both a name is never changes: a slot is written once, everyone
//! looks through them in the same order, and who finds no name of their own takes the first empty
//! slot. So two keys that are equal are always stored in the same form.

use std::sync::OnceLock;

/// So many names have a number: looking through more would cost more than it saves. Who fills them
/// with names that nobody uses makes keys of other models as slow as they would be without.
const MOST: usize = 64;

/// Longer names have no number, so that what is kept for ever is 16 KB at most.
const LONGEST: usize = 256;

static NAMES: [OnceLock<Box<str>>; MOST] = [const { OnceLock::new() }; MOST];

/// The number of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Model(u32);

impl Model {
    /// The number of `name`, which gets one if there is one left.
    #[inline]
    pub(super) fn named(name: &str) -> Option<Self> {
        for (number, known) in NAMES.iter().enumerate() {
            match known.get() {
                Some(known) if **known == *name => return Some(Self(number as u32)),
                Some(_) => {}
                None => return Self::enter(name),
            }
        }
        None
    }

    #[cold]
    #[inline(never)]
    fn enter(name: &str) -> Option<Self> {
        if name.len() > LONGEST {
            return None;
        }
        // From the start: the first empty slot may be taken by another thread, with this name.
        let number = NAMES.iter().position(|known| **known.get_or_init(|| name.into()) == *name);
        number.map(|number| Self(number as u32))
    }

    pub(super) fn name(self) -> &'static str {
        NAMES.get(self.0 as usize).and_then(OnceLock::get).map_or("", |name| name)
    }

    pub(super) fn number(self) -> u32 {
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
        let number_all = || names.iter().map(|name| Model::named(name)).collect::<Vec<_>>();
        // At once, so that threads race for the same slots.
        let all: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(number_all)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(all.iter().all(|numbers| *numbers == all[0]), "everyone sees the same");
        let numbered = all[0].iter().flatten();
        assert!(numbered.clone().count() >= names.len().min(MOST / 2));
        let distinct: std::collections::HashSet<_> = numbered.clone().collect();
        assert_eq!(distinct.len(), numbered.count());
        for (name, model) in names.iter().zip(&all[0]) {
            assert!(model.is_none_or(|model| model.name() == name));
        }
        assert_eq!(Model::named(&"x".repeat(LONGEST + 1)), None);
    }
}
