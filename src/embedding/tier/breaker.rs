//! Leaves a part of a tier alone that has failed, and finds out when it is well again.
//!
//! One for each bucket of a tier. Closed, it lets everything pass and counts failures in a row. Open,
//! it lets nothing pass for a pause, which doubles each time. After the pause it lets one probe pass,
//! which no request waits for; that closes it or opens it anew.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use crate::timer::Instant;

/// Failed batches in a row that open it.
const FAILED: u32 = 3;
/// Soft deadlines missed in a row that open it.
const MISSED: u32 = 16;
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What a breaker says of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    Closed,
    Open,
    /// Open, and whoever is told so has to probe.
    Probe,
}

/// Orderings: relaxed throughout. Nothing is read by what is found here; a state that is seen late
/// costs a key more or less that is asked for.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    /// Until when it is open, in milliseconds since the epoch of the guard, plus 1; 0 is closed.
    until: AtomicU64,
    /// Whether a probe is under way.
    probing: AtomicBool,
    failed: AtomicU32,
    missed: AtomicU32,
    /// How often it was opened without being closed.
    openings: AtomicU32,
}

impl Breaker {
    /// Closed it costs one load.
    pub(super) fn pass(&self, epoch: Instant) -> Pass {
        match self.until.load(Relaxed) {
            0 => Pass::Closed,
            until if millis_since(epoch) + 1 < until => Pass::Open,
            _ if self.probing.swap(true, Relaxed) => Pass::Open,
            _ => Pass::Probe,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.until.load(Relaxed) != 0
    }

    /// A batch came to its end in time. Does not close it: a probe does.
    pub(super) fn succeeded(&self) {
        if self.failed.load(Relaxed) != 0 {
            self.failed.store(0, Relaxed);
        }
    }

    /// A batch has failed. The pause, if that opens it.
    pub(super) fn failed(&self, epoch: Instant) -> Option<Duration> {
        let failed = self.failed.fetch_add(1, Relaxed) + 1;
        (failed >= FAILED).then(|| self.open(epoch)).flatten()
    }

    /// A request had its answer before the soft deadline.
    pub(super) fn in_time(&self) {
        if self.missed.load(Relaxed) != 0 {
            self.missed.store(0, Relaxed);
        }
    }

    /// A request had not. The pause, if that opens it.
    pub(super) fn missed(&self, epoch: Instant) -> Option<Duration> {
        let missed = self.missed.fetch_add(1, Relaxed) + 1;
        (missed >= MISSED).then(|| self.open(epoch)).flatten()
    }

    fn open(&self, epoch: Instant) -> Option<Duration> {
        let openings = self.openings.load(Relaxed);
        let pause = pause(openings, &RandomState::new());
        let until = millis_since(epoch) + 1 + pause.as_millis() as u64;
        // The first of those who come to it at once.
        self.until.compare_exchange(0, until, Relaxed, Relaxed).ok()?;
        self.openings.store(openings.saturating_add(1), Relaxed);
        Some(pause)
    }

    /// The probe has failed. The next pause.
    pub(super) fn reopen(&self, epoch: Instant) -> Duration {
        let openings = self.openings.load(Relaxed);
        let pause = pause(openings, &RandomState::new());
        self.openings.store(openings.saturating_add(1), Relaxed);
        self.until.store(millis_since(epoch) + 1 + pause.as_millis() as u64, Relaxed);
        self.probing.store(false, Relaxed);
        pause
    }

    /// The probe came back.
    pub(super) fn close(&self) {
        for count in [&self.failed, &self.missed, &self.openings] {
            count.store(0, Relaxed);
        }
        self.until.store(0, Relaxed);
        self.probing.store(false, Relaxed);
    }

    /// The probe was dropped before it knew: another is to try.
    pub(super) fn give_up_probing(&self) {
        self.probing.store(false, Relaxed);
    }
}

/// A second, doubled with each opening up to half a minute; then a quarter more or less, so that
/// processes do not come back all at once.
fn pause(openings: u32, random: &RandomState) -> Duration {
    let pause = SHORTEST_PAUSE.saturating_mul(1 << openings.min(5)).min(LONGEST_PAUSE);
    let part = random.hash_one(openings) % 1000;
    pause.mul_f64(0.75 + part as f64 / 2000.0)
}

fn millis_since(epoch: Instant) -> u64 {
    epoch.elapsed().as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_half_a_minute_with_a_quarter_of_jitter() {
        for (openings, seconds) in [(0, 1), (1, 2), (2, 4), (3, 8), (4, 16), (5, 30), (90, 30)] {
            let (mut least, mut most) = (Duration::MAX, Duration::ZERO);
            for _ in 0..200 {
                let pause = pause(openings, &RandomState::new());
                (least, most) = (least.min(pause), most.max(pause));
            }
            let middle = Duration::from_secs(seconds);
            assert!(least >= middle.mul_f64(0.75) && most <= middle.mul_f64(1.25));
            assert!(most > least, "no jitter");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_after_three_failures_or_sixteen_misses_in_a_row() {
        let epoch = Instant::now();
        let breaker = Breaker::default();
        for _ in 0..5 {
            assert!(breaker.failed(epoch).is_none() && breaker.failed(epoch).is_none());
            breaker.succeeded();
            (0..15).for_each(|_| assert!(breaker.missed(epoch).is_none()));
            breaker.in_time();
        }
        assert_eq!(breaker.pass(epoch), Pass::Closed);
        let opened = (0..3).filter_map(|_| breaker.failed(epoch)).count();
        assert_eq!((opened, breaker.pass(epoch)), (1, Pass::Open));

        let missed = Breaker::default();
        let opened = (0..20).filter_map(|_| missed.missed(epoch)).count();
        assert_eq!((opened, missed.pass(epoch)), (1, Pass::Open));
    }

    #[tokio::test(start_paused = true)]
    async fn one_probe_passes_after_the_pause_and_closes_it_or_opens_it_for_longer() {
        let epoch = Instant::now();
        let breaker = Breaker::default();
        assert_eq!((0..3).filter_map(|_| breaker.failed(epoch)).count(), 1);
        tokio::time::advance(Duration::from_millis(700)).await;
        assert_eq!(breaker.pass(epoch), Pass::Open);
        tokio::time::advance(Duration::from_millis(600)).await;
        assert_eq!(breaker.pass(epoch), Pass::Probe);
        assert_eq!(breaker.pass(epoch), Pass::Open, "one is enough");
        breaker.give_up_probing();
        assert_eq!(breaker.pass(epoch), Pass::Probe);
        let pause = breaker.reopen(epoch);
        assert!(pause >= Duration::from_millis(1500), "{pause:?}");
        assert_eq!(breaker.pass(epoch), Pass::Open);
        tokio::time::advance(pause + Duration::from_millis(2)).await;
        assert_eq!(breaker.pass(epoch), Pass::Probe);
        breaker.close();
        assert_eq!(breaker.pass(epoch), Pass::Closed);
        let pauses: Vec<_> = (0..3).filter_map(|_| breaker.failed(epoch)).collect();
        assert!(pauses[0] <= Duration::from_millis(1250), "it begins anew: {pauses:?}");
    }
}
