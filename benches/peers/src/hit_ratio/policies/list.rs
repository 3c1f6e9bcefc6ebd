//! Lists of ids, linked through arrays: an id is in a list at most once.

const NONE: u32 = u32::MAX;

/// From the oldest, which is popped, to the newest, which was pushed last.
pub(super) struct List {
    /// By id: the one that is older and the one that is newer.
    links: Vec<(u32, u32)>,
    holds: Vec<bool>,
    oldest: u32,
    newest: u32,
    len: usize,
}

impl List {
    pub(super) fn new(ids: usize) -> Self {
        let (links, holds) = (vec![(NONE, NONE); ids], vec![false; ids]);
        Self { links, holds, oldest: NONE, newest: NONE, len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn contains(&self, id: u32) -> bool {
        self.holds[id as usize]
    }

    pub(super) fn oldest(&self) -> Option<u32> {
        (self.oldest != NONE).then_some(self.oldest)
    }

    /// Puts an id at the newest end, from wherever it was.
    pub(super) fn push(&mut self, id: u32) {
        self.remove(id);
        self.links[id as usize] = (self.newest, NONE);
        match self.newest {
            NONE => self.oldest = id,
            newest => self.links[newest as usize].1 = id,
        }
        self.newest = id;
        self.holds[id as usize] = true;
        self.len += 1;
    }

    pub(super) fn pop(&mut self) -> Option<u32> {
        let oldest = self.oldest()?;
        self.remove(oldest);
        Some(oldest)
    }

    /// Whether it was there.
    pub(super) fn remove(&mut self, id: u32) -> bool {
        if !std::mem::take(&mut self.holds[id as usize]) {
            return false;
        }
        let (older, newer) = self.links[id as usize];
        match older {
            NONE => self.oldest = newer,
            older => self.links[older as usize].1 = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.links[newer as usize].0 = older,
        }
        self.len -= 1;
        true
    }
}
