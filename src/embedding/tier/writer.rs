//! Writing: behind the answer, in the background, and never the reason for anybody to wait.
//!
//! What is to be written waits in a queue, which drops its oldest entry where it is full. One task
//! takes them in batches of 64 until there are none.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::timer::within;

use crate::embedding::era::Era;
use crate::embedding::{Components, EmbeddingCache, EmbeddingKey, Inner};

use super::attached::Attached;
use super::contract::TierEntry;
use super::guard::{Guard, poll, refresh};
use super::key::TierKey;
use super::options::WRITE_BATCH;

/// A vector on its way to the tier.
#[derive(Debug)]
struct Write {
    target: Target,
    components: Components,
    /// In Unix milliseconds; 0 is never.
    expires_at: u64,
}

/// Where it goes.
#[derive(Debug)]
enum Target {
    Key(TierKey),
    /// The nonces were not known: the digest, and the era from before it was loaded.
    Unknown {
        digest: [u8; 32],
        era: Era,
    },
}

impl Write {
    fn bytes(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.components)
    }
}

/// Under the lock of the guard.
#[derive(Debug, Default)]
pub(super) struct Writes {
    queue: VecDeque<Write>,
    bytes: usize,
    /// Entries of the batch under way.
    under_way: usize,
    /// Whether a task writes.
    writing: bool,
}

impl Writes {
    pub(super) fn left(&self) -> usize {
        self.queue.len() + self.under_way
    }

    #[cfg(feature = "metrics")]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Queues a vector that is stored in the first tier. `era` is from before it was loaded, or handed
/// in; `own_life` is the time-to-live that it was stored with, if not that of the cache.
pub(super) fn enqueue<K, S>(
    cache: &EmbeddingCache<K, S>,
    Attached { guard, starters }: &Attached<K, S>,
    key: &K,
    components: &Components,
    own_life: Option<Duration>,
    era: &Era,
) where
    K: EmbeddingKey,
    S: std::hash::BuildHasher,
{
    let inner = &cache.inner;
    let life = own_life.or_else(|| inner.core.life_of(&key.probe()));
    if life == Some(Duration::ZERO) {
        return;
    }
    let digest = key.tier_digest();
    let target = match guard.known() {
        None => Target::Unknown { digest, era: era.clone() },
        Some(_) => {
            let Some(namespace) = guard.namespace_of(era) else { return };
            Target::Key(TierKey::new::<K>(digest, &namespace))
        }
    };
    let expires_at = life.map_or(0, |life| {
        let millis = u64::try_from(life.as_millis()).unwrap_or(u64::MAX);
        super::unix_millis(inner).saturating_add(millis)
    });
    let write = Write { target, components: Arc::clone(components), expires_at };
    let mut dropped = Vec::new();
    let starts = {
        let mut writes = guard.writes.lock();
        writes.bytes += write.bytes();
        writes.queue.push_back(write);
        while writes.bytes > guard.limits.queue_bytes
            || writes.queue.len() > guard.limits.queue_entries
        {
            let Some(oldest) = writes.queue.pop_front() else { break };
            writes.bytes -= oldest.bytes();
            dropped.push(oldest);
        }
        !std::mem::replace(&mut writes.writing, true)
    };
    // Dropped after unlocking.
    guard.counts.dropped.add(dropped.len());
    if starts {
        (starters.write)(cache, guard);
    }
}

/// Starts the task that writes, which was found not to be there.
pub(super) fn start<K, S>(cache: &EmbeddingCache<K, S>, guard: &Arc<Guard<K>>)
where
    K: EmbeddingKey,
    S: Send + Sync + 'static,
{
    poll(cache, guard);
    let task = WriteTask { guard: Arc::clone(guard), ended: false };
    if let Some(runtime) = guard.runtime() {
        drop(runtime.spawn(task.run(Arc::downgrade(&cache.inner))));
    }
}

/// Waits until all is written that was queued before, or `deadline` is over; how many entries are
/// left.
pub(super) async fn flush<K, S>(
    cache: &EmbeddingCache<K, S>,
    guard: &Arc<Guard<K>>,
    deadline: Duration,
) -> usize
where
    K: EmbeddingKey,
    S: Send + Sync + 'static,
{
    let written = async {
        loop {
            let written = guard.written.notified();
            let starts = {
                let mut writes = guard.writes.lock();
                if writes.left() == 0 {
                    break;
                }
                !std::mem::replace(&mut writes.writing, true)
            };
            if starts {
                start(cache, guard);
                // There is no runtime, or it shuts down, and the task is gone: nobody will write.
                if !guard.writes.lock().writing {
                    break;
                }
            }
            written.await;
        }
    };
    // Either way the number says it.
    let _ = within(deadline, pin!(written)).await;
    guard.writes.lock().left()
}

/// The task that writes until there is nothing left.
struct WriteTask<K: EmbeddingKey> {
    guard: Arc<Guard<K>>,
    ended: bool,
}

impl<K: EmbeddingKey> WriteTask<K> {
    async fn run<S>(mut self, inner: Weak<Inner<K, S>>)
    where
        S: Send + Sync + 'static,
    {
        while let Some(batch) = self.next() {
            // Goes on without a cache: what was stored is to reach the tier.
            let inner = inner.upgrade();
            write(inner.as_deref(), &self.guard, batch).await;
            self.guard.writes.lock().under_way = 0;
            self.guard.written.notify_waiters();
        }
        self.guard.written.notify_waiters();
    }

    fn next(&mut self) -> Option<Vec<Write>> {
        let mut writes = self.guard.writes.lock();
        let size = writes.queue.len().min(WRITE_BATCH);
        if size == 0 {
            writes.writing = false;
            self.ended = true;
            return None;
        }
        let batch: Vec<Write> = writes.queue.drain(..size).collect();
        writes.bytes -= batch.iter().map(Write::bytes).sum::<usize>();
        writes.under_way = size;
        Some(batch)
    }
}

impl<K: EmbeddingKey> Drop for WriteTask<K> {
    fn drop(&mut self) {
        if !self.ended {
            let mut writes = self.guard.writes.lock();
            writes.writing = false;
            let lost = std::mem::take(&mut writes.under_way);
            drop(writes);
            self.guard.counts.write_failures.add(lost);
            self.guard.written.notify_waiters();
        }
    }
}

async fn write<K: EmbeddingKey, S>(
    inner: Option<&Inner<K, S>>,
    guard: &Guard<K>,
    batch: Vec<Write>,
) {
    if guard.known().is_none() && !guard.breaker(0).is_open() {
        // Nobody has read yet. Without a cache there is nothing to clear, either.
        let Some(inner) = inner else { return guard.counts.write_failures.add(batch.len()) };
        if let Err(error) = refresh(inner, guard).await {
            guard.failed(0, error.kind());
        }
    }
    let now = inner.map(super::unix_millis);
    let (mut entries, mut buckets) = (Vec::with_capacity(batch.len()), Vec::new());
    for Write { target, components, expires_at } in batch {
        let key = match target {
            Target::Key(key) => Some(key),
            Target::Unknown { digest, era } => {
                guard.namespace_of(&era).map(|namespace| TierKey::new::<K>(digest, &namespace))
            }
        };
        let Some(key) = key else {
            guard.counts.dropped.one();
            continue;
        };
        let bucket = guard.tier.0.bucket(&key);
        if guard.breaker(bucket).is_open() {
            guard.counts.dropped.one();
            continue;
        }
        let now = now.unwrap_or_else(super::system_millis);
        let life = match expires_at {
            0 => None,
            at if at <= now => continue,
            at => Some(Duration::from_millis(at - now)),
        };
        match guard.format.encode(&key, &components, expires_at) {
            Some(value) => {
                entries.push(TierEntry { key, value, life });
                buckets.push(bucket);
            }
            None => guard.counts.write_failures.one(),
        }
    }
    if entries.is_empty() {
        return;
    }
    let stored = async { Ok(guard.tier.0.set_many(&entries).await) };
    let results = match guard.in_time(stored).await {
        Ok(results) if results.len() == entries.len() => results,
        Ok(_) => {
            let message = "it answered for other entries than it was given";
            let error = super::TierError::new(super::TierErrorKind::Other, message);
            vec![Err(error); entries.len()]
        }
        Err(error) => vec![Err(error); entries.len()],
    };
    let mut failed = std::collections::BTreeMap::new();
    for (result, bucket) in results.into_iter().zip(buckets) {
        match result {
            Ok(()) => guard.counts.writes.one(),
            Err(error) => {
                guard.counts.write_failures.one();
                failed.insert(bucket, error.kind());
            }
        }
    }
    failed.into_iter().for_each(|(bucket, kind)| guard.failed(bucket, kind));
}
