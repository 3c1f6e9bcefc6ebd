//! The guard around a tier: it owns time-outs, breakers, the namespace and the counts, and is the only
//! place where an error of a tier is swallowed.
//!
//! No task lives as long as the cache. Whoever has work for the tier starts a task for it in the
//! runtime that it runs in, unless one is at it already; the task ends when there is no more work, or
//! with its runtime, and then says so by a guard that is dropped with it.
//!
//! # The namespace
//!
//! Every key holds a digest of the nonces that this process knows ([`Guard::known`]). They are asked
//! for one at a time ([`refresh`]): an answer is taken before the next question goes out, so the
//! process never goes back to older ones. When they differ from those known before, another process
//! has invalidated something. Then, in this order: the era ends, so that what is being loaded will not
//! be written; the new nonces are known; what they are about leaves the first tier, which ends the
//! era once more.
//!
//! A vector may be written to the tier if nothing was invalidated between its load and the write
//! ([`Guard::namespace_of`]). The nonces are read first and the era looked at after. By cases, for a
//! load whose era was noted before the invalidation:
//!
//! 1. The nonces are read after they were exchanged. The era ended before: they are not used.
//! 2. They are read before. Whatever the era, the vector goes where nobody looks any more.
//!
//! An invalidation by this process clears the first tier, then exchanges the nonce in the store, reads
//! it back, and clears the first tier again: what was read in between by the old nonces is in it, or
//! is on its way with an era of before.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use crate::timer::{Instant, sleep, within};
use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::embedding::era::Era;
use crate::embedding::load::call::catching;
use crate::embedding::{EmbeddingCache, EmbeddingKey, Inner};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::breaker::{Breaker, Pass};
use super::contract::{Lookup, Tier, TierError, TierErrorKind};
use super::key::TierKey;
use super::namespace::{Namespace, Scope};
use super::options::{Limits, SHORTEST_POLL, SecondTier};
use super::reader::Reads;
use super::stats::{Counts, TierStats};
use super::wire::Format;
use super::writer::Writes;

/// Buckets of a tier.
const BUCKETS: usize = 256;

#[derive(Debug)]
pub(crate) struct Guard<K> {
    pub(super) tier: Held,
    pub(super) limits: Limits,
    pub(super) format: Format,
    pub(super) counts: Counts,
    pub(super) reads: Mutex<Reads<K>>,
    pub(super) writes: Mutex<Writes>,
    /// Wakes who waits for `writes` to be empty.
    pub(super) written: Notify,
    #[cfg_attr(not(feature = "tracing"), allow(dead_code))]
    name: Box<str>,
    /// What breakers count time from.
    epoch: Instant,
    breakers: Box<[Breaker]>,
    namespace: Mutex<Option<Known>>,
    /// Held while the namespace is asked for and taken.
    refreshing: tokio::sync::Mutex<()>,
    /// Whether a task looks for changes.
    polling: AtomicBool,
    /// Told when the cache is gone, so that this task does not keep the tier until the next poll.
    pub(super) ended: Notify,
    /// Where to start tasks for who has no runtime.
    runtime: Mutex<Option<Handle>>,
}

/// The nonces that are known, and since when.
#[derive(Debug, Clone)]
struct Known {
    namespace: Arc<Namespace>,
    #[cfg_attr(not(feature = "metrics"), allow(dead_code))]
    at: Instant,
}

/// A tier, which need not have `Debug`.
#[derive(Clone)]
pub(super) struct Held(pub(super) Arc<dyn Tier>);

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tier")
    }
}

impl<K: EmbeddingKey> Guard<K> {
    pub(crate) fn new(second: SecondTier, name: &str) -> Self {
        Self {
            tier: Held(second.tier),
            limits: second.limits,
            format: second.format,
            counts: Counts::default(),
            reads: Mutex::default(),
            writes: Mutex::default(),
            written: Notify::new(),
            name: name.into(),
            epoch: Instant::now(),
            breakers: (0..BUCKETS).map(|_| Breaker::default()).collect(),
            namespace: Mutex::default(),
            refreshing: tokio::sync::Mutex::default(),
            polling: AtomicBool::new(false),
            ended: Notify::new(),
            runtime: Mutex::new(Handle::try_current().ok()),
        }
    }

    /// The runtime to start a task in: the one this is called in, or one that was seen before.
    pub(super) fn runtime(&self) -> Option<Handle> {
        match Handle::try_current() {
            Ok(here) => {
                let mut seen = self.runtime.lock();
                // Its runtime may be shut down by now; this one is not.
                *seen = Some(here.clone());
                Some(here)
            }
            Err(_) => self.runtime.lock().clone(),
        }
    }

    pub(crate) fn stats(&self) -> TierStats {
        self.counts.read()
    }

    /// The nonces, once the tier was reached.
    pub(super) fn known(&self) -> Option<Arc<Namespace>> {
        self.namespace.lock().as_ref().map(|known| Arc::clone(&known.namespace))
    }

    /// For how long nobody has heard of the nonces.
    #[cfg(feature = "metrics")]
    fn namespace_age(&self) -> Option<Duration> {
        self.namespace.lock().as_ref().map(|known| known.at.elapsed())
    }

    /// How many parts of the tier are left alone.
    #[cfg(feature = "metrics")]
    fn open_breakers(&self) -> usize {
        self.breakers.iter().filter(|breaker| breaker.is_open()).count()
    }

    /// The nonces for what was loaded in `era`; `None` if it must not be written, or if none are
    /// known. See the head of this file.
    pub(super) fn namespace_of(&self, era: &Era) -> Option<Arc<Namespace>> {
        let namespace = self.known()?;
        (!era.is_over()).then_some(namespace)
    }

    #[cfg(feature = "metrics")]
    pub(super) fn record_read(&self, took: Duration) {
        let cache = self.name.to_string();
        metrics::histogram!("embedding_cache_tier_read_seconds", "cache" => cache).record(took);
    }

    /// Copies counts and gauges into the metrics of the recorder that is installed.
    #[cfg(feature = "metrics")]
    pub(crate) fn publish(&self) {
        use metrics::{counter, gauge};
        let name = || self.name.to_string();
        let stats = self.stats();
        let count = |metric: &'static str, value: u64| {
            counter!(metric, "cache" => name()).absolute(value);
        };
        count("embedding_cache_tier_hits_total", stats.hits);
        count("embedding_cache_tier_misses_total", stats.misses);
        count("embedding_cache_tier_late_total", stats.late);
        count("embedding_cache_tier_writes_total", stats.writes);
        count("embedding_cache_tier_write_failures_total", stats.write_failures);
        count("embedding_cache_tier_dropped_total", stats.dropped);
        let labelled =
            |metric: &'static str, label: &'static str, values: &[(&'static str, u64)]| {
                for &(of, value) in values {
                    counter!(metric, "cache" => name(), label => of).absolute(value);
                }
            };
        let skipped = [
            ("open", stats.skipped_open),
            ("full", stats.skipped_full),
            ("no_runtime", stats.skipped_no_runtime),
        ];
        labelled("embedding_cache_tier_skipped_total", "why", &skipped);
        let failures = [
            ("timeout", stats.failures_timeout),
            ("connection", stats.failures_connection),
            ("refused", stats.failures_refused),
            ("other", stats.failures_other),
        ];
        labelled("embedding_cache_tier_failures_total", "kind", &failures);
        let rejected = [
            ("foreign", stats.rejected_foreign),
            ("length", stats.rejected_length),
            ("type", stats.rejected_type),
            ("dimensions", stats.rejected_dimensions),
            ("checksum", stats.rejected_checksum),
            ("signature", stats.rejected_signature),
            ("expired", stats.rejected_expired),
            ("admission", stats.rejected_admission),
        ];
        labelled("embedding_cache_tier_rejected_total", "reason", &rejected);
        let show = |metric: &'static str, value: f64| gauge!(metric, "cache" => name()).set(value);
        show("embedding_cache_tier_queue_bytes", self.writes.lock().bytes() as f64);
        show("embedding_cache_tier_breaker_open", self.open_breakers() as f64);
        if let Some(age) = self.namespace_age() {
            show("embedding_cache_tier_namespace_age_seconds", age.as_secs_f64());
        }
    }

    /// The bucket of a key, and what its breaker says.
    pub(super) fn pass(&self, key: Option<&TierKey>) -> (u8, Pass) {
        // Until the nonces are known there are no keys, and so only one bucket.
        let bucket = key.map_or(0, |key| self.tier.0.bucket(key));
        (bucket, self.breaker(bucket).pass(self.epoch))
    }

    pub(super) fn breaker(&self, bucket: u8) -> &Breaker {
        &self.breakers[usize::from(bucket)]
    }

    /// A part of the tier has failed.
    pub(super) fn failed(&self, bucket: u8, kind: TierErrorKind) {
        self.counts.failed(kind);
        if let Some(pause) = self.breaker(bucket).failed(self.epoch) {
            self.opened(bucket, pause);
        }
    }

    /// A request has waited for a part in vain.
    pub(super) fn missed(&self, bucket: u8) {
        if let Some(pause) = self.breaker(bucket).missed(self.epoch) {
            self.opened(bucket, pause);
        }
    }

    fn opened(&self, bucket: u8, pause: Duration) {
        self.counts.opened.one();
        self.tell_state(bucket, Some(pause));
        // A connection on which nothing comes any more may never end by itself, and a client may go
        // on asking a server that is another's by now.
        self.tier.0.reset();
    }

    /// One line for each change of state: calls that fail are counted, not logged.
    #[cfg_attr(not(feature = "tracing"), allow(clippy::unused_self))]
    fn tell_state(&self, bucket: u8, pause: Option<Duration>) {
        #[cfg(feature = "tracing")]
        match pause {
            Some(pause) => tracing::warn!(
                cache = &*self.name,
                bucket,
                ?pause,
                "the second tier fails and is left alone"
            ),
            None => tracing::info!(cache = &*self.name, bucket, "the second tier is well again"),
        }
        #[cfg(not(feature = "tracing"))]
        let _ = (bucket, pause);
    }

    /// What the tier answers within the hard time-out.
    pub(super) async fn in_time<T>(
        &self,
        answer: impl Future<Output = Result<T, TierError>>,
    ) -> Result<T, TierError> {
        match within(self.limits.hard_timeout, pin!(catching(answer))).await {
            Some(Ok(answer)) => answer,
            Some(Err(message)) => {
                let message = format!("it panicked: {message}");
                Err(TierError::new(TierErrorKind::Other, message))
            }
            None => {
                let message = format!("nothing within {:?}", self.limits.hard_timeout);
                Err(TierError::new(TierErrorKind::Timeout, message))
            }
        }
    }
}

/// Asks the tier for its nonces, and lets what others have invalidated leave the first tier.
pub(super) async fn refresh<K: EmbeddingKey, S>(
    inner: &Inner<K, S>,
    guard: &Guard<K>,
) -> Result<Arc<Namespace>, TierError> {
    let _one_at_a_time = guard.refreshing.lock().await;
    let later = Arc::new(guard.in_time(guard.tier.0.namespace()).await?);
    let known = Known { namespace: Arc::clone(&later), at: Instant::now() };
    let changes = match guard.known() {
        Some(earlier) => earlier.changes(&later),
        None => Vec::new(),
    };
    if changes.is_empty() {
        *guard.namespace.lock() = Some(known);
        return Ok(later);
    }
    inner.eras.end();
    *guard.namespace.lock() = Some(known);
    // Dropped in between, it has not cleared everything: then the nonces are forgotten, so that
    // whoever asks next finds them changed.
    let unfinished = Forget { guard, armed: true };
    for scope in changes {
        clear(inner, scope).await;
    }
    unfinished.disarm();
    Ok(later)
}

/// Clears the first tier wholly if a clearing of parts was not carried to its end.
struct Forget<'a, K> {
    guard: &'a Guard<K>,
    armed: bool,
}

impl<K> Forget<'_, K> {
    fn disarm(mut self) {
        self.armed = false;
    }
}

impl<K> Drop for Forget<'_, K> {
    fn drop(&mut self) {
        if self.armed {
            // With another base everything counts as changed.
            if let Some(known) = &mut *self.guard.namespace.lock() {
                let mut other = (*known.namespace).clone();
                other.base = [0; 16];
                known.namespace = Arc::new(other);
            }
        }
    }
}

/// Removes what `scope` is about from the first tier.
pub(super) async fn clear<K: EmbeddingKey, S>(inner: &Inner<K, S>, scope: Scope) -> usize {
    match scope {
        Scope::All => inner.invalidate_all().await,
        Scope::Model(tag) => inner.remove_named(|key| K::tags(key).0 == tag).await,
        Scope::Tenant(tag) => inner.remove_named(|key| K::tags(key).1 == tag).await,
    }
}

/// Starts a task that looks for what others invalidate, unless there is one.
pub(super) fn poll<K, S>(cache: &EmbeddingCache<K, S>, guard: &Arc<Guard<K>>)
where
    K: EmbeddingKey,
    S: Send + Sync + 'static,
{
    if guard.polling.load(Relaxed) || guard.polling.swap(true, Relaxed) {
        return;
    }
    let Some(runtime) = guard.runtime() else {
        guard.polling.store(false, Relaxed);
        return;
    };
    let (inner, polling) = (Arc::downgrade(&cache.inner), Polling(Arc::clone(guard)));
    drop(runtime.spawn(async move {
        let guard = &*polling.0;
        loop {
            tokio::select! {
                () = guard.ended.notified() => break,
                () = sleep(guard.limits.poll_interval) => {}
                // A tier whose future panics is not asked for it again before the next poll.
                told = catching(guard.tier.0.changed()) => match told {
                    Ok(()) => sleep(SHORTEST_POLL).await,
                    Err(_) => sleep(guard.limits.poll_interval).await,
                },
            }
            let Some(inner) = inner.upgrade() else { break };
            // A failure is not counted: reads and writes tell of it.
            drop(refresh(&inner, guard).await);
        }
    }));
}

/// Says that nobody looks for changes any more, when the task ends in whatever way.
struct Polling<K>(Arc<Guard<K>>);

impl<K> Drop for Polling<K> {
    fn drop(&mut self) {
        self.0.polling.store(false, Relaxed);
    }
}

/// Starts a task that finds out whether a part of the tier is well again, by a key of it. No request
/// waits for it.
pub(super) fn probe<K, S>(
    cache: &EmbeddingCache<K, S>,
    guard: &Arc<Guard<K>>,
    bucket: u8,
    digest: [u8; 32],
) where
    K: EmbeddingKey,
    S: Send + Sync + 'static,
{
    let probe = Probe { guard: Arc::clone(guard), bucket, ended: false };
    let Some(runtime) = guard.runtime() else { return };
    let inner = Arc::downgrade(&cache.inner);
    drop(runtime.spawn(async move {
        let mut probe = probe;
        let Some(inner) = inner.upgrade() else { return };
        let guard = Arc::clone(&probe.guard);
        // The nonces first: what was invalidated while it could not be reached must not be read.
        let well = match refresh(&inner, &guard).await {
            Err(error) => Err(error),
            Ok(namespace) => {
                let key = [TierKey::new::<K>(digest, &namespace)];
                let looked = async { Ok(guard.tier.0.get_many(&key).await) };
                match guard.in_time(looked).await {
                    Err(error) => Err(error),
                    Ok(found) => match found.into_iter().next() {
                        Some(Lookup::Failed(error)) => Err(error),
                        _ => Ok(()),
                    },
                }
            }
        };
        probe.ended = true;
        match well {
            Ok(()) => {
                guard.breaker(bucket).close();
                guard.counts.closed.one();
                guard.tell_state(bucket, None);
            }
            Err(error) => {
                guard.counts.failed(error.kind());
                guard.breaker(bucket).reopen(guard.epoch);
                guard.tier.0.reset();
            }
        }
    }));
}

/// A probe that is dropped before its end lets another try.
struct Probe<K: EmbeddingKey> {
    guard: Arc<Guard<K>>,
    bucket: u8,
    ended: bool,
}

impl<K: EmbeddingKey> Drop for Probe<K> {
    fn drop(&mut self) {
        if !self.ended {
            self.guard.breaker(self.bucket).give_up_probing();
        }
    }
}
