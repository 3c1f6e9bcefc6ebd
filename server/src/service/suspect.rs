//! A client whose inputs made calls fail: for a while its inputs share no call with others'.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How long a client is kept apart after its last failure.
const KEPT_APART: Duration = Duration::from_secs(60);

/// One for each connection: that is what tells clients apart without asking them.
///
/// Orderings: relaxed. A request that does not see it yet shares a call once more.
#[derive(Debug, Default)]
pub(crate) struct Suspect {
    /// Milliseconds since the start of the process; 0 for never.
    until: AtomicU64,
}

impl Suspect {
    pub(crate) fn accuse(&self) {
        self.until.store(now() + KEPT_APART.as_millis() as u64, Relaxed);
    }

    pub(crate) fn is_suspect(&self) -> bool {
        let until = self.until.load(Relaxed);
        until > 0 && now() < until
    }
}

fn now() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_millis() as u64
}
