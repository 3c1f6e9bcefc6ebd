//! What the cache knows of re-use, for all shards together: counts, and the values made of them.
//!
//! # What is counted
//!
//! A key of the sample ([`Sample`](super::ghosts::Sample)) waits, from each access to the next. How
//! long is counted by its class and in bins of age, and in stretches: one **ends** if the next access
//! came, or is cut off, when the entry is evicted and whenever the ghost is looked at; where it is
//! cut the next one begins. That is what a life table is made of: of those that were there at an
//! age, the part whose wait ended there (Kaplan and Meier 1958, in its actuarial form). That the
//! cache evicts does not disturb it, as a ghost waits on. A key that has not come back yet counts from
//! the beginning, not only when its time is over (0.3 points in replays).
//!
//! # What is made of it
//!
//! For a class, let `H(t)` be the probability of a re-use up to age `t` and `S(t)` the expected time
//! spent waiting up to then, both from the life table. An entry of age `a` that is kept until age
//! `t` brings `H(t) - H(a)` hits for `S(t) - S(a)` of a slot's time (the probability to have come to
//! `a` is in both and cancels). Its value is the best ratio over all `t`: the Gittins index. On the
//! curve of the points `(S, H)` that is the steepest line from the point of `a` to one right of it,
//! so all bins of a class are done in one go from the right, keeping the upper hull.
//!
//! # When it is done
//!
//! With insertions, one class at a time ([`step`](Learner::step)): some hundred additions, 512 times
//! in a capacity. The same step decays the counts of the class, so that what is known follows what is
//! asked for, with a memory of about four capacities or 6,144 waits. If too little was
//! counted of a frequency since the last time, its classes are passed over and keep what they have: a
//! small part of what is known of it would change next to nothing. When they are learned again they
//! are decayed for the turns in which they were passed over, too, but for those without any count.
//!
//! # Orderings
//!
//! All relaxed: counts and values are estimates, each stands for itself, and no decision is wrong
//! for a value that another thread has just replaced. A count is a load and a store, not a
//! read-modify-write; when two shards meet in one cell a count is lost, one of thousands.

// Not through `sync`: nothing is promised about the order of these accesses, and a scheduling
// point at each would only make the explorations of shuttle longer.
use std::sync::atomic::{AtomicI16, AtomicU32, Ordering::Relaxed};

use super::measures::{
    AGES, BINS, Bin, CLASSES, Cell, Class, FREQUENCIES, INTERVALS, TICKS, WIDTHS, Worth, edge, end,
};

/// Counts are kept in these parts of one, so that decay can take less than one.
const ONE: u32 = 256;
/// A count loses one part in so many when its class is gone through: half is forgotten after some
/// three capacities.
const DECAY: i32 = 64;
/// Waits that must have ended before the values are learned ones, and between two decays: a small
/// cache sees few in a capacity, and remembers more capacities (0.2 points in replays).
const ENOUGH: u32 = 96;
/// One part in so many of what is known of a frequency must be new for its classes to be learned anew.
const NEW_PART: f32 = 32.0;
/// A class is believed as far as it has more observations than this; for the rest the classes of
/// its frequency stand in, and for those a guess.
const PRIOR: f32 = 48.0;

/// Counts of waits by bin.
#[derive(Debug)]
struct Waits {
    ended: [AtomicU32; BINS],
    /// Stretches cut off here, less those that began here; as an `i32`.
    cut: [AtomicU32; BINS],
}

impl Default for Waits {
    fn default() -> Self {
        let zeros = || std::array::from_fn(|_| AtomicU32::new(0));
        Self { ended: zeros(), cut: zeros() }
    }
}

/// For each bin: the waits that ended in it, and those that were at risk to.
type LifeTable = [(f32, f32); BINS];

impl Waits {
    fn add_to(&self, table: &mut LifeTable) {
        let mut later = 0.0;
        for (bin, (ended, at_risk)) in table.iter_mut().enumerate().rev() {
            let ends = self.ended[bin].load(Relaxed) as f32 / ONE as f32;
            let cut = self.cut[bin].load(Relaxed) as i32 as f32 / ONE as f32;
            *ended += ends;
            // Those that were cut off or began here were there for half the bin, on average.
            *at_risk += later + ends + cut / 2.0;
            later += ends + cut;
        }
    }

    /// By so many rounds.
    fn decay(&self, rounds: u32) {
        let rounds = rounds.min(DECAY as u32 / 2) as i32;
        for count in self.ended.iter().chain(&self.cut) {
            let seen = count.load(Relaxed) as i32;
            if seen != 0 {
                count.store((seen - seen / DECAY * rounds) as u32, Relaxed);
            }
        }
    }
}

/// The worth of each class by bin; what is used of a class is one line of the processor's cache.
#[derive(Debug)]
#[repr(align(64))]
struct Worths([AtomicI16; Worths::CELLS]);

impl Worths {
    const CELLS: usize = CLASSES * AGES;

    /// Those of a class.
    fn row(&self, class: usize) -> &[AtomicI16; AGES] {
        &self.0.as_chunks::<{ AGES }>().0[class]
    }
}

/// A number that is replaced as a whole.
#[derive(Debug)]
struct Value(AtomicU32);

impl Value {
    #[inline]
    fn get(&self) -> f32 {
        f32::from_bits(self.0.load(Relaxed))
    }

    fn set(&self, value: f32) {
        self.0.store(value.to_bits(), Relaxed);
    }
}

/// Not a read-modify-write; see the module.
#[inline]
fn add(count: &AtomicU32, what: u32) {
    count.store(count.load(Relaxed).wrapping_add(what), Relaxed);
}

/// What there is to learn anew of a frequency.
#[derive(Debug)]
struct News {
    /// How much was counted since its classes were last learned.
    counted: AtomicU32,
    /// How much of that is enough: a part of what is known.
    enough: AtomicU32,
    /// Rounds since, but for those in which nothing was counted.
    rounds: AtomicU32,
}

impl Default for News {
    fn default() -> Self {
        // Never learned.
        let [counted, enough, rounds] = [1, 0, 0].map(AtomicU32::new);
        Self { counted, enough, rounds }
    }
}

impl News {
    /// Whether the turn of its classes has come: then the rounds for which they are to be decayed, and
    /// at least 1.
    fn due(&self) -> Option<u32> {
        let counted = self.counted.load(Relaxed);
        if counted == 0 {
            return None;
        }
        let rounds = self.rounds.load(Relaxed) + 1;
        if counted < self.enough.load(Relaxed) {
            self.rounds.store(rounds, Relaxed);
            return None;
        }
        self.counted.store(0, Relaxed);
        self.rounds.store(0, Relaxed);
        Some(rounds)
    }
}

/// One for all shards of a cache: they see the same kind of requests, and learn faster together.
#[derive(Debug)]
pub(in crate::core) struct Learner {
    waits: Box<[Waits; CLASSES]>,
    /// The value of each class at the beginning of each bin. Interpolating gains nothing: what is
    /// equal leaves in the order of age.
    worths: Box<Worths>,
    /// For each frequency, the part of those at risk whose wait ended, by bin.
    ended: [[Value; BINS]; FREQUENCIES],
    news: [News; FREQUENCIES],
    /// For how many rounds the classes of the frequency whose turn it is are to be decayed, when they
    /// are learned anew; 0 if they are passed over.
    rounds: AtomicU32,
    /// How many waits have ended since counts were last decayed, up to [`ENOUGH`].
    seen: AtomicU32,
    /// 0 until enough was seen for the first time; then 2 while this round decays, 1 if not.
    stage: AtomicU32,
    /// The class whose turn it is.
    turn: AtomicU32,
    shards: u32,
}

impl Learner {
    pub(in super::super::super) fn new(shards: usize) -> Self {
        let zeros = || std::array::from_fn(|_| Value(AtomicU32::new(0)));
        Self {
            waits: Box::default(),
            worths: Box::new(Worths(std::array::from_fn(Self::before_learning))),
            ended: std::array::from_fn(|_| zeros()),
            news: Default::default(),
            rounds: AtomicU32::new(0),
            seen: AtomicU32::new(0),
            stage: AtomicU32::new(0),
            turn: AtomicU32::new(0),
            shards: shards as u32,
        }
    }

    /// Frequency over age, where nothing is known yet.
    fn before_learning(cell: usize) -> AtomicI16 {
        let (class, bin) = (cell / AGES, cell % AGES);
        let uses = (class / INTERVALS + 1) as f32;
        let worth = if Class::occurs(class) {
            Worth::of(uses / (edge(bin.min(BINS - 1)) + TICKS as f32))
        } else {
            Worth::MOST
        };
        AtomicI16::new(worth.0)
    }

    /// Counts a wait, or its last stretch, that an access ended.
    #[inline]
    pub(super) fn ended(&self, class: Class, bin: Bin) {
        add(&self.waits(class).ended[bin.index()], ONE);
        let seen = self.seen.load(Relaxed);
        if seen < ENOUGH {
            self.seen.store(seen + 1, Relaxed);
        }
    }

    /// Cuts off a wait.
    #[inline]
    pub(super) fn cut(&self, class: Class, bin: Bin) {
        add(&self.waits(class).cut[bin.index()], ONE);
    }

    /// A wait that was cut off in this bin goes on.
    #[inline]
    pub(super) fn begun(&self, class: Class, bin: Bin) {
        add(&self.waits(class).cut[bin.index()], ONE.wrapping_neg());
    }

    /// The counts of a class, for adding to them.
    #[inline]
    fn waits(&self, class: Class) -> &Waits {
        add(&self.news[class.frequency() as usize % FREQUENCIES].counted, 1);
        &self.waits[class.0 as usize % CLASSES]
    }

    /// What it is worth to keep an entry of this class and age: hits for a tick of a slot's time.
    #[inline]
    pub(super) fn worth(&self, cell: Cell) -> Worth {
        let Cell(cell) = cell;
        Worth(self.worths.0[cell as usize % Worths::CELLS].load(Relaxed))
    }

    /// After how many ticks a shard takes a [`step`](Self::step): all classes are learned anew
    /// 16 times in a capacity, by all shards together, or four times by one alone. Half as often
    /// costs 0.02 points, a quarter as often 0.07.
    pub(super) fn pace(&self) -> u32 {
        (TICKS / 16 * self.shards / CLASSES as u32).max(1)
    }

    /// How many a shard may watch after they left: fewer where many shards watch, as they learn
    /// together.
    pub(super) fn watched_by_shard(&self) -> usize {
        (16384 / self.shards as usize).clamp(64, 2048)
    }

    /// Learns the values of one class anew, unless nothing was counted of its frequency since the last
    /// time: in a scan, say, there is news of the new only. Bounded: five passes over the bins at most.
    pub(super) fn step(&self) {
        let class = self.turn.load(Relaxed) as usize % CLASSES;
        if class == 0 {
            let enough = self.seen.load(Relaxed) >= ENOUGH;
            match (enough, self.stage.load(Relaxed)) {
                (false, 0) => return,
                (false, _) => self.stage.store(1, Relaxed),
                (true, _) => {
                    self.stage.store(2, Relaxed);
                    self.seen.store(0, Relaxed);
                }
            }
        }
        self.turn.store((class as u32 + 1) % CLASSES as u32, Relaxed);
        let frequency = class / INTERVALS;
        if class.is_multiple_of(INTERVALS) {
            let due = self.news[frequency].due();
            self.rounds.store(due.unwrap_or_default(), Relaxed);
            if due.is_some() {
                self.pool(frequency);
            }
        }
        let rounds = self.rounds.load(Relaxed);
        if rounds == 0 || !Class::occurs(class) {
            return;
        }
        let mut own = LifeTable::default();
        self.waits[class].add_to(&mut own);
        let hazard = |bin: usize| {
            let (ended, at_risk) = own[bin];
            ((ended + PRIOR * self.ended[frequency][bin].get()) / (at_risk.max(ended) + PRIOR))
                .min(1.0)
        };
        let learned = indices(hazard).map(Worth::of);
        let (bins, beyond) = self.worths.row(class).split_at(BINS);
        for (worth, learned) in bins.iter().zip(learned) {
            worth.store(learned.0, Relaxed);
        }
        let last = learned[BINS - 1].0;
        beyond.iter().for_each(|worth| worth.store(last, Relaxed));
        if self.stage.load(Relaxed) == 2 {
            self.waits[class].decay(rounds);
        }
    }

    /// Learns anew which part of those at risk ends its wait, over all classes of a frequency.
    fn pool(&self, frequency: usize) {
        let mut row = LifeTable::default();
        for class in (frequency * INTERVALS..).take(INTERVALS) {
            if Class::occurs(class) {
                self.waits[class].add_to(&mut row);
            }
        }
        let (_, known) = row[0];
        self.news[frequency].enough.store((known / NEW_PART) as u32, Relaxed);
        for (bin, (ended, at_risk)) in row.into_iter().enumerate() {
            let part = (ended + PRIOR * unseen(frequency, bin)) / (at_risk.max(ended) + PRIOR);
            self.ended[frequency][bin].set(part);
        }
    }
}

/// The hazard in a bin where no wait has been seen yet: a key that has waited long will wait longer
/// still, and one that was used more often, less. Without it a hot key would count as dead in the
/// first scan that takes longer than any wait before. It is the hazard of a key whose rate is unknown,
/// uses over time, and a third of it, as most keys slow down.
fn unseen(frequency: usize, bin: usize) -> f32 {
    let uses = (frequency + 1) as f32 / 3.0;
    uses * WIDTHS[bin] / (end(bin) + TICKS as f32 / 2.0)
}

/// The Gittins index at the beginning of each bin, from the part of those at risk that ends its
/// wait in it.
fn indices(hazard: impl Fn(usize) -> f32) -> [f32; BINS] {
    // The curve: time spent waiting, and hits, up to the beginning of each bin.
    let mut points = [(0.0, 0.0); BINS + 1];
    let mut waiting = 1.0;
    for bin in 0..BINS {
        let still = waiting * (1.0 - hazard(bin));
        let (spent, hits) = points[bin];
        let wait = (waiting + still) / 2.0 * WIDTHS[bin] + 1e-6;
        points[bin + 1] = (spent + wait, hits + waiting - still);
        waiting = still;
    }
    let slope = |from: usize, to: usize| {
        (points[to].1 - points[from].1) / (points[to].0 - points[from].0).max(f32::MIN_POSITIVE)
    };
    // The upper hull of the points to the right; its last corner is the nearest.
    let mut hull = [BINS; BINS + 1];
    let mut corners = 1;
    let mut indices = [0.0; BINS];
    for bin in (0..BINS).rev() {
        let mut steepest = slope(bin, hull[corners - 1]);
        while corners > 1 {
            let further = slope(bin, hull[corners - 2]);
            if further < steepest {
                break;
            }
            steepest = further;
            corners -= 1;
        }
        indices[bin] = steepest;
        hull[corners] = bin;
        corners += 1;
    }
    indices
}

#[cfg(test)]
mod tests {
    use super::super::measures::OLDEST;
    use super::*;

    fn value(learner: &Learner, class: Class, age: u32) -> f32 {
        learner.worth(Cell::new(class.bits(), Bin::of(age))).value()
    }

    /// The definition, horizon by horizon.
    fn by_definition(hazard: impl Fn(usize) -> f32, from: usize) -> f32 {
        let (mut waiting, mut spent, mut hits, mut best) = (1.0, 0.0, 0.0, 0.0_f32);
        for bin in from..BINS {
            let still = waiting * (1.0 - hazard(bin));
            spent += (waiting + still) / 2.0 * (end(bin) - edge(bin));
            hits += waiting - still;
            best = best.max(hits / spent);
            waiting = still;
        }
        best
    }

    #[test]
    fn the_hull_finds_the_best_horizon() {
        let mut state = 7u32;
        for _ in 0..if cfg!(miri) { 3 } else { 300 } {
            let hazards: [f32; BINS] = std::array::from_fn(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // Many small ones, some large.
                (state >> 8) as f32 / (1 << 24) as f32 * if state & 7 == 0 { 0.9 } else { 0.05 }
            });
            let found = indices(|bin| hazards[bin]);
            for (bin, &found) in found.iter().enumerate() {
                let wanted = by_definition(|bin| hazards[bin], bin);
                assert!((found - wanted).abs() <= wanted * 0.01 + 1e-5, "{bin}: {found} {wanted}");
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "minutes of arithmetic")]
    fn a_class_that_comes_back_late_is_worth_more_the_nearer_that_is() {
        let learner = Learner::new(1);
        let class = Class::NEW;
        for _ in 0..1000 {
            // All come back after just over one capacity, as in a loop.
            learner.ended(class, Bin::of(TICKS + 10));
        }
        (0..2 * CLASSES).for_each(|_| learner.step());
        let at = |age| value(&learner, class, age);
        assert!(at(0) < at(TICKS / 2) && at(TICKS / 2) < at(TICKS), "{} {}", at(0), at(TICKS));
        assert!(at(TICKS) > 4.0 * at(3 * TICKS), "a key that did not come then will not come");
    }

    #[test]
    #[cfg_attr(miri, ignore = "minutes of arithmetic")]
    fn classes_that_nothing_was_counted_of_are_passed_over() {
        let learner = Learner::new(1);
        let (busy, quiet) = (Class::NEW, Class::NEW.after(1));
        let counted = |class: Class| {
            learner.waits[class.0 as usize].ended[Bin::of(4).index()].load(Relaxed) / ONE
        };
        (0..1000).for_each(|_| learner.ended(quiet, Bin::of(4)));
        (0..CLASSES).for_each(|_| learner.step());
        let (before, worth) = (counted(quiet), value(&learner, quiet, 0));
        for _ in 0..20 {
            (0..ENOUGH).for_each(|_| learner.ended(busy, Bin::of(4)));
            (0..CLASSES).for_each(|_| learner.step());
        }
        assert_eq!((counted(quiet), value(&learner, quiet, 0)), (before, worth));
        assert!(counted(busy) < 20 * ENOUGH, "decayed");
        // One more counts, and all are decayed.
        (0..ENOUGH).for_each(|_| learner.ended(quiet, Bin::of(4)));
        (0..CLASSES).for_each(|_| learner.step());
        assert!(counted(quiet) < before + ENOUGH);
    }

    #[test]
    fn a_frequency_is_due_when_enough_is_new_and_is_decayed_for_all_rounds_with_news() {
        let news = News::default();
        assert_eq!(news.due(), Some(1), "never learned");
        assert_eq!(news.due(), None, "nothing was counted");
        news.enough.store(10, Relaxed);
        for counted in [3, 6, 9] {
            news.counted.store(counted, Relaxed);
            assert_eq!(news.due(), None, "{counted}");
        }
        news.counted.store(10, Relaxed);
        assert_eq!((news.due(), news.due()), (Some(4), None));
        news.counted.store(12, Relaxed);
        assert_eq!(news.due(), Some(1), "what was counted before is no news");
    }

    #[test]
    fn a_decay_for_several_rounds_is_about_as_many_decays() {
        let (at_once, one_by_one) = (Waits::default(), Waits::default());
        for waits in [&at_once, &one_by_one] {
            waits.ended[3].store(1000 * ONE, Relaxed);
            waits.cut[4].store((500 * ONE).wrapping_neg(), Relaxed);
        }
        at_once.decay(8);
        (0..8).for_each(|_| one_by_one.decay(1));
        for (count, other) in at_once.ended.iter().zip(&one_by_one.ended) {
            let (count, other) = (count.load(Relaxed), other.load(Relaxed));
            assert!(count <= other && other - count <= other / 64, "{count} {other}");
        }
        let cut = at_once.cut[4].load(Relaxed) as i32;
        assert!((-450..-430).contains(&(cut / ONE as i32)), "{cut}");
    }

    #[test]
    #[cfg_attr(miri, ignore = "minutes of arithmetic")]
    fn what_was_learned_is_forgotten() {
        let learner = Learner::new(1);
        (0..1000).for_each(|_| learner.ended(Class::NEW, Bin::of(4)));
        (0..CLASSES).for_each(|_| learner.step());
        let before = value(&learner, Class::NEW, 0);
        for _ in 0..100 {
            // Enough for a round that decays.
            (0..ENOUGH).for_each(|_| learner.ended(Class::NEW.after(1), Bin::of(1)));
            (0..20).for_each(|_| learner.cut(Class::NEW, Bin::of(OLDEST)));
            (0..CLASSES).for_each(|_| learner.step());
        }
        assert!(value(&learner, Class::NEW, 0) < before / 4.0);
    }
}
