//! What gathers inputs into calls and makes these.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::task::{Poll, ready};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::embedding::load::ancestry::{Ancestry, Turn};
use crate::embedding::load::call::{catching, message};
use crate::embedding::load::{Answer, IntoEmbeddings};
use crate::error::{CacheError, ErrorKind};
use crate::timer::{Instant, within};

use super::BatcherBuilder;
use super::driven::{Crew, drop_quietly};

/// An input that waits for its call.
pub(super) struct Waiting<T> {
    pub(super) input: T,
    pub(super) since: Instant,
    /// The loads inside which it was asked for.
    pub(super) ancestry: Ancestry,
    pub(super) answer: oneshot::Sender<Answer>,
}

/// Gathers, until the last handle is dropped. An input, an answer, the closure and its futures are a
/// caller's: what panics in them, or while they are dropped, leaves everyone else served.
pub(super) struct Worker<T, F> {
    pub(super) queue: mpsc::Receiver<Waiting<T>>,
    pub(super) settings: BatcherBuilder,
    pub(super) calls: Arc<Semaphore>,
    pub(super) embed: F,
    /// Of the handles, which also own this.
    pub(super) crew: Weak<Crew>,
}

impl<T, F, Fut> Worker<T, F>
where
    T: Send + 'static,
    F: FnMut(Vec<T>) -> Fut + Send + 'static,
    Fut: Future<Output: IntoEmbeddings> + Send + 'static,
{
    pub(super) async fn run(mut self) {
        while let Some(first) = self.queue.recv().await {
            let batch = self.gather(first).await;
            let Some((permit, batch)) = self.wait_for_turn(batch).await else { break };
            if batch.is_empty() {
                continue;
            }
            // Without a handle no caller waits for an answer.
            let Some(crew) = self.crew.upgrade() else { break };
            let mut inputs = Vec::with_capacity(batch.len());
            let mut answers = Vec::with_capacity(batch.len());
            let mut ancestries = Vec::with_capacity(batch.len());
            for Waiting { input, answer, ancestry, .. } in batch {
                inputs.push(input);
                answers.push(answer);
                ancestries.push(ancestry);
            }
            let turn = Turn::new(permit);
            let ancestry = Ancestry::merge(ancestries, Arc::clone(&turn));
            // Unwind safe: what the closure has left half done is its own.
            match catch_unwind(AssertUnwindSafe(|| (self.embed)(inputs))) {
                Ok(future) => crew.start(call(ancestry, future, answers, turn)),
                Err(panic) => deliver(Err(message(&*panic)), answers),
            }
        }
    }

    /// `first` and what else comes until the batch is full or `first` has waited long enough.
    async fn gather(&mut self, first: Waiting<T>) -> Vec<Waiting<T>> {
        // No end: a delay so long that the clock cannot name it.
        let end = first.since.checked_add(self.settings.max_delay);
        let mut batch = vec![first];
        while batch.len() < self.settings.max_batch {
            // What waits already needs no timer.
            let next = match self.queue.try_recv() {
                Ok(waiting) => Some(waiting),
                Err(mpsc::error::TryRecvError::Disconnected) => None,
                Err(mpsc::error::TryRecvError::Empty) => {
                    let left = end
                        .map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
                    if left == Duration::ZERO {
                        None
                    } else {
                        within(left, pin!(self.queue.recv())).await.flatten()
                    }
                }
            };
            let Some(waiting) = next else { break };
            batch.push(waiting);
        }
        batch
    }

    /// Waits until a call may begin, while the batch goes on to fill. Leaves out inputs for which
    /// no caller waits any more.
    async fn wait_for_turn(
        &mut self,
        mut batch: Vec<Waiting<T>>,
    ) -> Option<(OwnedSemaphorePermit, Vec<Waiting<T>>)> {
        let mut turn = pin!(Arc::clone(&self.calls).acquire_owned());
        let permit = loop {
            leave_out_unwanted(&mut batch);
            let full = batch.len() >= self.settings.max_batch;
            // With the queue closed and empty, only the turn is left to wait for.
            tokio::select! {
                biased;
                permit = &mut turn => break permit.ok()?,
                Some(waiting) = self.queue.recv(), if !full => batch.push(waiting),
            }
        };
        leave_out_unwanted(&mut batch);
        Some((permit, batch))
    }
}

impl<T, F> Drop for Worker<T, F> {
    /// Dropped before its end, with inputs in the queue: those are dropped one by one, so that one
    /// whose drop panics costs no other its answer.
    fn drop(&mut self) {
        self.queue.close();
        while let Ok(waiting) = self.queue.try_recv() {
            drop_quietly(waiting);
        }
    }
}

fn leave_out_unwanted<T>(batch: &mut Vec<Waiting<T>>) {
    for unwanted in batch.extract_if(.., |waiting| waiting.answer.is_closed()) {
        drop_quietly(unwanted);
    }
}

/// Makes one call, unless all that wait for it leave before it is done.
async fn call<Fut>(
    ancestry: Ancestry,
    future: Fut,
    mut answers: Vec<oneshot::Sender<Answer>>,
    turn: Arc<Turn>,
) where
    Fut: Future<Output: IntoEmbeddings>,
{
    let asked = answers.len();
    let mut work = Box::pin(ancestry.scope(async move { future.await.into_embeddings(asked) }));
    let outcome = tokio::select! {
        biased;
        outcome = catching(work.as_mut()) => Some(outcome),
        () = all_have_left(&mut answers) => None,
    };
    drop_quietly(work);
    if let Some(outcome) = outcome {
        deliver(outcome, answers);
    }
    turn.give_back();
}

/// Waits until no caller waits for any of the answers.
async fn all_have_left(answers: &mut [oneshot::Sender<Answer>]) {
    let mut waiting = answers.iter_mut();
    let mut next = waiting.next();
    poll_fn(|cx| {
        while let Some(answer) = &mut next {
            ready!(answer.poll_closed(cx));
            next = waiting.next();
        }
        Poll::Ready(())
    })
    .await;
}

/// Hands out what a call came to. Those that no longer wait have dropped the receiver.
fn deliver(outcome: Result<Vec<Answer>, Arc<str>>, answers: Vec<oneshot::Sender<Answer>>) {
    let asked = answers.len();
    let embeddings = outcome.unwrap_or_else(|message| {
        let error = CacheError::from(ErrorKind::LoadPanicked { message });
        vec![Err(error); asked]
    });
    for (embedding, answer) in embeddings.into_iter().zip(answers) {
        // An answer that comes back is dropped here, and an error of the caller's type with it.
        drop(catch_unwind(AssertUnwindSafe(|| drop(answer.send(embedding)))));
    }
}
