//! A batcher for each kind of batch: what one call cannot ask for together does not wait together.

use std::collections::HashMap;
use std::sync::Arc;

use embedding_cache::{Batcher, CacheError, EmbeddingVector};
use parking_lot::Mutex;

use crate::backend::{Backend, BatchKind, Job};
use crate::options::Options;

use std::time::Duration;

/// The lanes that are in use. One that nobody uses is forgotten, so there are never more than inputs
/// that wait for the model.
#[derive(Debug)]
pub(super) struct Lanes {
    backend: Arc<Backend>,
    batch: usize,
    delay: Duration,
    queue: usize,
    open: Mutex<HashMap<Arc<BatchKind>, Lane>>,
}

#[derive(Debug)]
struct Lane {
    batcher: Batcher<Job>,
    users: usize,
}

impl Lanes {
    pub(super) fn new(options: &Options, backend: &Arc<Backend>) -> Self {
        Self {
            backend: Arc::clone(backend),
            batch: options.model_batch as usize,
            delay: options.model_delay,
            queue: options.model_queue as usize,
            open: Mutex::default(),
        }
    }

    /// The vectors of jobs of one kind, in calls that they may share with those of other requests.
    pub(super) async fn embed(
        &self,
        kind: &Arc<BatchKind>,
        jobs: Vec<Job>,
    ) -> Vec<Result<EmbeddingVector, CacheError>> {
        let count = jobs.len();
        match self.enter(kind) {
            Ok(lane) => lane.batcher.embed_many(jobs).await,
            Err(error) => vec![Err(error); count],
        }
    }

    fn enter(&self, kind: &Arc<BatchKind>) -> Result<InUse<'_>, CacheError> {
        let mut open = self.open.lock();
        let batcher = if let Some(lane) = open.get_mut(kind) {
            lane.users += 1;
            lane.batcher.clone()
        } else {
            let batcher = self.batcher()?;
            open.insert(Arc::clone(kind), Lane { batcher: batcher.clone(), users: 1 });
            batcher
        };
        Ok(InUse { lanes: self, kind: Arc::clone(kind), batcher })
    }

    fn batcher(&self) -> Result<Batcher<Job>, CacheError> {
        let backend = Arc::clone(&self.backend);
        Batcher::builder()
            .max_batch(self.batch)
            .max_delay(self.delay)
            .max_queue(self.queue)
            // No more than can be under way: what waits here goes on to fill.
            .max_concurrent(self.backend.calls_of_a_model())
            .build(move |jobs: Vec<Job>| {
                let backend = Arc::clone(&backend);
                async move { backend.embed(jobs, false).await }
            })
    }
}

/// A lane that is kept open.
struct InUse<'a> {
    lanes: &'a Lanes,
    kind: Arc<BatchKind>,
    batcher: Batcher<Job>,
}

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        let mut open = self.lanes.open.lock();
        if let Some(lane) = open.get_mut(&self.kind) {
            lane.users -= 1;
            if lane.users == 0 {
                open.remove(&self.kind);
            }
        }
    }
}
