//! Reading: keys of many requests are gathered into few batches, and no request waits for long.
//!
//! A key that is asked for already is joined, if nothing was invalidated since. At most [`BATCHES`]
//! tasks are at it; while all of them are, keys gather. A batch is split by buckets, each of which is
//! asked, fails and answers by itself. What comes is stored in the first tier before anybody is told,
//! also if nobody waits any more.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::BuildHasher;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::timer::within;
use tokio::sync::Notify;

use crate::core::{Condition, InsertOptions};
use crate::embedding::era::Era;
use crate::embedding::key::repr::KeyRepr;
use crate::embedding::{EmbeddingCache, EmbeddingKey, Inner};
use crate::sync::atomic::{AtomicBool, Ordering::Relaxed};
use crate::vector::EmbeddingVector;

use super::attached::Attached;
use super::breaker::Pass;
use super::contract::{Lookup, TierError, TierErrorKind};
use super::guard::{Guard, poll, probe, refresh};
use super::key::TierKey;
use super::options::{BATCH, BATCHES};
use super::wire::Rejected;

/// A key that was asked for.
#[derive(Debug)]
pub(super) struct Asked<K> {
    key: K,
    digest: [u8; 32],
    /// That in which it was first asked for.
    era: Era,
    bucket: u8,
    /// Whether the tier was asked. Relaxed: only tells whom a missed deadline is to be laid to.
    begun: AtomicBool,
    /// Set once: what was found, if anything.
    answer: OnceLock<Option<EmbeddingVector>>,
    answered: Notify,
}

impl<K> Asked<K> {
    /// No wake-up is missed: a `Notified` receives every `notify_waiters` from when it is made, and
    /// only then is the answer looked at, which is set before.
    async fn wait(&self) {
        let answered = pin!(self.answered.notified());
        if self.answer.get().is_none() {
            answered.await;
        }
    }
}

/// Keys that are asked for. Under the lock of the guard.
#[derive(Debug)]
pub(super) struct Reads<K> {
    waiting: VecDeque<Arc<Asked<K>>>,
    /// Those that wait and those under way.
    asked: HashMap<[u8; 32], Arc<Asked<K>>>,
    /// Tasks that read.
    under_way: usize,
}

impl<K> Default for Reads<K> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), asked: HashMap::new(), under_way: 0 }
    }
}

/// By how much the timers of tokio may fire late: they count in these.
const TICK: Duration = Duration::from_millis(1);

/// What the tier has for each of `keys`, which are distinct, as far as it comes within the soft
/// deadline.
pub(crate) async fn ask<K, S>(
    cache: &EmbeddingCache<K, S>,
    Attached { guard, .. }: &Attached<K, S>,
    keys: &[&K],
) -> Vec<Option<EmbeddingVector>>
where
    K: EmbeddingKey,
    S: BuildHasher + Send + Sync + 'static,
{
    let asked = enqueue(cache, guard, keys);
    let all = async {
        for asked in asked.iter().flatten() {
            asked.wait().await;
        }
    };
    // Either way the answers say it.
    let soft = guard.limits.soft_deadline;
    let _ = within(soft.saturating_sub(TICK).max(soft / 2), pin!(all)).await;
    // By bucket: whether it has answered all that it was asked for.
    let mut buckets = BTreeMap::new();
    let answers = asked.iter().map(|asked| {
        let asked = asked.as_ref()?;
        let answer = asked.answer.get();
        if answer.is_some() || asked.begun.load(Relaxed) {
            *buckets.entry(asked.bucket).or_insert(true) &= answer.is_some();
        }
        if answer.is_none() {
            guard.counts.late.one();
        }
        answer.cloned().flatten()
    });
    let answers = answers.collect();
    for (bucket, in_time) in buckets {
        if in_time {
            guard.breaker(bucket).in_time();
        } else {
            guard.missed(bucket);
        }
    }
    answers
}

/// Asks for what is not asked for yet; `None` where the tier is left alone.
fn enqueue<K, S>(
    cache: &EmbeddingCache<K, S>,
    guard: &Arc<Guard<K>>,
    keys: &[&K],
) -> Vec<Option<Arc<Asked<K>>>>
where
    K: EmbeddingKey,
    S: BuildHasher + Send + Sync + 'static,
{
    let Some(runtime) = guard.runtime() else {
        guard.counts.skipped_no_runtime.add(keys.len());
        return vec![None; keys.len()];
    };
    poll(cache, guard);
    let (era, namespace) = (cache.inner.eras.current(), guard.known());
    // Hashed before the lock.
    let passed: Vec<_> = keys
        .iter()
        .map(|key| {
            let digest = key.tier_digest();
            let tier_key = namespace.as_ref().map(|known| TierKey::new::<K>(digest, known));
            match guard.pass(tier_key.as_ref()) {
                (bucket, Pass::Closed) => Some((digest, bucket)),
                (bucket, pass) => {
                    guard.counts.skipped_open.one();
                    if pass == Pass::Probe {
                        probe(cache, guard, bucket, digest);
                    }
                    None
                }
            }
        })
        .collect();
    let mut reads = guard.reads.lock();
    let asked = keys.iter().zip(passed).map(|(&key, passed)| {
        let (digest, bucket) = passed?;
        let Reads { waiting, asked, .. } = &mut *reads;
        let is_full = waiting.len() >= guard.limits.waiting_keys;
        let entry = asked.entry(digest);
        match &entry {
            // Not one from before an invalidation: what it finds may be of before, too.
            Entry::Occupied(joined) if joined.get().era.is(&era) => {
                return Some(Arc::clone(joined.get()));
            }
            _ if is_full => {
                guard.counts.skipped_full.one();
                return None;
            }
            _ => {}
        }
        let new = Arc::new(Asked {
            key: key.clone(),
            digest,
            era: era.clone(),
            bucket,
            begun: AtomicBool::new(false),
            answer: OnceLock::new(),
            answered: Notify::new(),
        });
        entry.insert_entry(Arc::clone(&new));
        waiting.push_back(Arc::clone(&new));
        Some(new)
    });
    let asked = asked.collect();
    // One more task for each batch that waits, up to the limit.
    let before = reads.under_way;
    while reads.under_way < BATCHES && reads.under_way * BATCH < reads.waiting.len() {
        reads.under_way += 1;
    }
    let more = reads.under_way - before;
    // A runtime that shuts down drops a task at once, here, and its drop takes the lock.
    drop(reads);
    for _ in 0..more {
        let task = ReadTask { guard: Arc::clone(guard), ended: false };
        drop(runtime.spawn(task.run(Arc::downgrade(&cache.inner))));
    }
    asked
}

/// A task that reads batches until there are no more.
struct ReadTask<K: EmbeddingKey> {
    guard: Arc<Guard<K>>,
    ended: bool,
}

impl<K: EmbeddingKey> ReadTask<K> {
    async fn run<S>(mut self, inner: std::sync::Weak<Inner<K, S>>)
    where
        S: BuildHasher + Send + Sync + 'static,
    {
        while let Some(batch) = self.next() {
            let batch = Batch { guard: Arc::clone(&self.guard), asked: batch };
            let Some(inner) = inner.upgrade() else { break };
            read(inner, batch).await;
        }
    }

    /// The next batch; without one this task is counted out, under the same lock, so that whoever
    /// asks next starts another.
    fn next(&mut self) -> Option<Vec<Arc<Asked<K>>>> {
        let mut reads = self.guard.reads.lock();
        let size = reads.waiting.len().min(BATCH);
        if size == 0 {
            reads.under_way -= 1;
            self.ended = true;
            return None;
        }
        Some(reads.waiting.drain(..size).collect())
    }
}

impl<K: EmbeddingKey> Drop for ReadTask<K> {
    fn drop(&mut self) {
        if !self.ended {
            self.guard.reads.lock().under_way -= 1;
        }
    }
}

/// Keys under way. Dropped, it answers those that have no answer with nothing.
struct Batch<K: EmbeddingKey> {
    guard: Arc<Guard<K>>,
    asked: Vec<Arc<Asked<K>>>,
}

impl<K: EmbeddingKey> Drop for Batch<K> {
    fn drop(&mut self) {
        let mut reads = self.guard.reads.lock();
        for asked in &self.asked {
            if let Entry::Occupied(entry) = reads.asked.entry(asked.digest)
                && Arc::ptr_eq(entry.get(), asked)
            {
                entry.remove();
            }
        }
        drop(reads);
        for asked in &self.asked {
            asked.answer.get_or_init(|| None);
            asked.answered.notify_waiters();
        }
    }
}

/// Asks the tier for a batch, bucket by bucket.
async fn read<K, S>(inner: Arc<Inner<K, S>>, mut batch: Batch<K>)
where
    K: EmbeddingKey,
    S: BuildHasher + Send + Sync + 'static,
{
    let guard = Arc::clone(&batch.guard);
    let namespace = match guard.known() {
        Some(known) => known,
        None => {
            batch.asked.iter().for_each(|asked| asked.begun.store(true, Relaxed));
            match refresh(&inner, &guard).await {
                Ok(namespace) => namespace,
                Err(error) => return guard.failed(0, error.kind()),
            }
        }
    };
    let mut parts: BTreeMap<u8, Part<K>> = BTreeMap::new();
    for asked in std::mem::take(&mut batch.asked) {
        let key = TierKey::new::<K>(asked.digest, &namespace);
        let bucket = guard.tier.0.bucket(&key);
        let part = parts.entry(bucket).or_insert_with(|| Part {
            bucket,
            keys: Vec::new(),
            batch: Batch { guard: Arc::clone(&guard), asked: Vec::new() },
        });
        part.keys.push(key);
        part.batch.asked.push(asked);
    }
    let mut parts = parts.into_values();
    let last = parts.next_back();
    // In tasks of their own, so that one which stalls holds none of the others up.
    let others: Vec<_> =
        parts.map(|part| tokio::spawn(read_part(Arc::clone(&inner), part))).collect();
    if let Some(last) = last {
        read_part(inner, last).await;
    }
    for other in others {
        // An error is a runtime that shuts down, or a panic of the eviction listener.
        drop(other.await);
    }
}

/// The keys of a batch in one bucket.
struct Part<K: EmbeddingKey> {
    bucket: u8,
    /// Parallel to what was asked.
    keys: Vec<TierKey>,
    batch: Batch<K>,
}

async fn read_part<K, S>(inner: Arc<Inner<K, S>>, part: Part<K>)
where
    K: EmbeddingKey,
    S: BuildHasher + Send + Sync + 'static,
{
    let Part { bucket, keys, batch } = part;
    let guard = &*batch.guard;
    if guard.breaker(bucket).is_open() {
        guard.counts.skipped_open.add(keys.len());
        return;
    }
    batch.asked.iter().for_each(|asked| asked.begun.store(true, Relaxed));
    let looked = async {
        let found = guard.tier.0.get_many(&keys).await;
        if found.len() == keys.len() {
            return Ok(found);
        }
        let message = format!("it answered {} of {} keys", found.len(), keys.len());
        Err(TierError::new(TierErrorKind::Other, message))
    };
    #[cfg(feature = "metrics")]
    let started = crate::timer::Instant::now();
    let found = match guard.in_time(looked).await {
        Ok(found) => found,
        Err(error) => return guard.failed(bucket, error.kind()),
    };
    #[cfg(feature = "metrics")]
    guard.record_read(started.elapsed());
    let now = super::unix_millis(&inner);
    let mut failure = None;
    for ((asked, key), found) in batch.asked.iter().zip(&keys).zip(found) {
        let answer = match found {
            Lookup::Found(value) => take(&inner, guard, asked, key, &value, now).await,
            Lookup::Absent => None,
            Lookup::Failed(error) => {
                failure = Some(error.kind());
                continue;
            }
        };
        let count = if answer.is_some() { &guard.counts.hits } else { &guard.counts.misses };
        count.one();
        asked.answer.get_or_init(|| answer);
    }
    match failure {
        Some(kind) => guard.failed(bucket, kind),
        None => guard.breaker(bucket).succeeded(),
    }
}

/// What a value is good for: stores it in the first tier, unless there is something by now.
async fn take<K: EmbeddingKey, S: BuildHasher>(
    inner: &Inner<K, S>,
    guard: &Guard<K>,
    asked: &Asked<K>,
    key: &TierKey,
    value: &[u8],
    now: u64,
) -> Option<EmbeddingVector> {
    let (components, expires_at) = match guard.format.decode(key, value, now) {
        Ok(good) => good,
        Err(reason) => {
            guard.counts.rejected(reason);
            return None;
        }
    };
    let vector = EmbeddingVector::from(components);
    let stored = <K as KeyRepr>::to_stored(&asked.key).ok()?;
    if inner.admission.check(&vector, |model| K::belongs_to_model(&stored, model)).is_err() {
        guard.counts.rejected(Rejected::Admission);
        return None;
    }
    let core = &inner.core;
    // Of the life that it has left, never a life anew.
    let left = (expires_at != 0).then(|| Duration::from_millis(expires_at - now));
    let own = left
        .filter(|left| core.life_of(&asked.key.probe()).is_none_or(|life| *left < life))
        .filter(|left| *left <= crate::core::LONGEST_TIME_TO_LIVE);
    // Where there is a fresh value by now, that is newer.
    let condition = Condition { epoch: core.epoch(), superseded: Some(asked.era.flag()) };
    let options =
        InsertOptions { time_to_live: own, condition: Some(condition), ..InsertOptions::default() };
    let entry = Some((stored, vector.clone().into_shared()));
    match inner.insert(entry, options, None).await {
        Err(error) if error.is_superseded() && asked.era.is_over() => None,
        Err(error) if error.is_superseded() => {
            core.peek(&asked.key.probe()).map(|components| inner.vector(components))
        }
        // Good, if it found no room.
        _ => Some(vector),
    }
}
