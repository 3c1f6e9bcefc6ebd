//! How a thread outside any runtime waits for a future.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

/// The cheapest way to wait for a future on a thread of one's own: poll it, and park until it asks
/// to be polled again. Where it need not wait, that is one poll; a runtime's `block_on` would add
/// the entering and leaving of the runtime to every operation.
pub(crate) struct Parked(Waker);

impl Parked {
    pub(crate) fn here() -> Self {
        Self(Waker::from(Arc::new(Unpark(thread::current()))))
    }

    pub(crate) fn wait_for<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        loop {
            match future.as_mut().poll(&mut Context::from_waker(&self.0)) {
                Poll::Ready(output) => return output,
                // Returns at once if the waker was called since the poll.
                Poll::Pending => thread::park(),
            }
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}
