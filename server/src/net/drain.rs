//! How many requests are under way, for a server that waits for them before it ends.

use std::sync::Arc;

use tokio::sync::watch;

/// Counts requests that have come whole, until their answers are written.
#[derive(Debug)]
pub(crate) struct Drain(watch::Sender<usize>);

/// A request under way.
#[derive(Debug)]
pub(crate) struct Active(Arc<Drain>);

impl Drain {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(watch::Sender::new(0)))
    }

    pub(crate) fn begin(self: &Arc<Self>) -> Active {
        self.0.send_modify(|active| *active += 1);
        Active(Arc::clone(self))
    }

    /// Waits until nothing is under way. Cancel safe.
    pub(crate) async fn idle(&self) {
        // The sender is this one's own, so the channel cannot be closed.
        let _ = self.0.subscribe().wait_for(|active| *active == 0).await;
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.0.send_modify(|active| *active -= 1);
    }
}
