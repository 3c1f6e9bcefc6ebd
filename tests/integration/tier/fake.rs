//! A store in memory that fails as it is told to.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use embedding_cache::tier::{
    BoxFuture, Lookup, Namespace, Scope, Tier, TierEntry, TierError, TierErrorKind, TierKey,
};
use tokio::sync::Notify;

/// What the store does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Well,
    /// Answers after a while.
    Slow(Duration),
    /// Takes calls and never answers, as a process that was stopped.
    Frozen,
    /// Refuses connections.
    Down,
    /// Answers for each key that it failed: nothing but the answers tells.
    FailsKeyByKey,
    Panics,
    /// Answers for one key less than it was asked for.
    Short,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Fake(pub(crate) Arc<Store>);

/// Bytes, and for how long they were to be kept.
type Value = (Vec<u8>, Option<Duration>);

#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) values: Mutex<HashMap<TierKey, Value>>,
    pub(crate) nonces: Mutex<BTreeMap<String, [u8; 16]>>,
    mode: Mutex<Mode>,
    /// What only one bucket does.
    bucket_mode: Mutex<Option<(u8, Mode)>>,
    buckets: AtomicUsize,
    pub(crate) reads: AtomicUsize,
    pub(crate) largest_read: AtomicUsize,
    pub(crate) reads_under_way: AtomicUsize,
    pub(crate) most_reads_under_way: AtomicUsize,
    pub(crate) writes: AtomicUsize,
    pub(crate) largest_write: AtomicUsize,
    pub(crate) resets: AtomicUsize,
    drawn: AtomicUsize,
    /// Whether it tells of changes by itself.
    pub(crate) tells: std::sync::atomic::AtomicBool,
    changed: Notify,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            values: Mutex::default(),
            nonces: Mutex::default(),
            mode: Mutex::new(Mode::Well),
            bucket_mode: Mutex::default(),
            buckets: AtomicUsize::new(1),
            reads: AtomicUsize::default(),
            largest_read: AtomicUsize::default(),
            reads_under_way: AtomicUsize::default(),
            most_reads_under_way: AtomicUsize::default(),
            writes: AtomicUsize::default(),
            largest_write: AtomicUsize::default(),
            resets: AtomicUsize::default(),
            drawn: AtomicUsize::default(),
            tells: Default::default(),
            changed: Notify::new(),
        }
    }
}

impl Fake {
    pub(crate) fn set(&self, mode: Mode) {
        *self.0.mode.lock().unwrap() = mode;
    }

    /// Divides it into buckets.
    pub(crate) fn divide(&self, buckets: usize) {
        self.0.buckets.store(buckets, Relaxed);
    }

    pub(crate) fn set_bucket(&self, bucket: u8, mode: Mode) {
        *self.0.bucket_mode.lock().unwrap() = Some((bucket, mode));
    }

    pub(crate) fn len(&self) -> usize {
        self.0.values.lock().unwrap().len()
    }

    /// Loses its nonces, as a store that was restarted without its data, or has evicted them.
    pub(crate) fn lose_nonces(&self) {
        self.0.nonces.lock().unwrap().clear();
    }

    fn nonce(&self) -> [u8; 16] {
        (self.0.drawn.fetch_add(1, Relaxed) as u128 + 1).to_le_bytes()
    }

    fn mode_of(&self, key: Option<&TierKey>) -> Mode {
        let bucket = key.map_or(0, |key| self.bucket(key));
        match *self.0.bucket_mode.lock().unwrap() {
            Some((of, mode)) if key.is_some() && of == bucket => mode,
            _ => *self.0.mode.lock().unwrap(),
        }
    }

    /// Does what the mode says before an answer, and whether there is one.
    async fn act(&self, mode: Mode) -> Result<(), TierError> {
        match mode {
            Mode::Well | Mode::Short => Ok(()),
            Mode::Slow(time) => {
                tokio::time::sleep(time).await;
                Ok(())
            }
            Mode::Frozen => std::future::pending().await,
            Mode::Down => Err(TierError::new(TierErrorKind::Connection, "connection refused")),
            Mode::FailsKeyByKey => Err(TierError::new(TierErrorKind::Other, "CLUSTERDOWN")),
            Mode::Panics => panic!("a tier with a fault"),
        }
    }
}

impl Tier for Fake {
    fn get_many<'a>(&'a self, keys: &'a [TierKey]) -> BoxFuture<'a, Vec<Lookup>> {
        Box::pin(async move {
            let store = &self.0;
            store.reads.fetch_add(1, Relaxed);
            store.largest_read.fetch_max(keys.len(), Relaxed);
            let now = store.reads_under_way.fetch_add(1, Relaxed) + 1;
            store.most_reads_under_way.fetch_max(now, Relaxed);
            let _left = Left(&store.reads_under_way);
            let mode = self.mode_of(keys.first());
            if let Err(error) = self.act(mode).await {
                return vec![Lookup::Failed(error); keys.len()];
            }
            let values = store.values.lock().unwrap();
            let found = keys.iter().map(|key| match values.get(key) {
                Some((value, _)) => Lookup::Found(value.clone()),
                None => Lookup::Absent,
            });
            found.skip(usize::from(mode == Mode::Short)).collect()
        })
    }

    fn set_many<'a>(
        &'a self,
        entries: &'a [TierEntry],
    ) -> BoxFuture<'a, Vec<Result<(), TierError>>> {
        Box::pin(async move {
            self.0.writes.fetch_add(1, Relaxed);
            self.0.largest_write.fetch_max(entries.len(), Relaxed);
            let mode = self.mode_of(entries.first().map(|entry| &entry.key));
            if let Err(error) = self.act(mode).await {
                return vec![Err(error); entries.len()];
            }
            let mut values = self.0.values.lock().unwrap();
            for entry in entries {
                values.insert(entry.key, (entry.value.clone(), entry.life));
            }
            vec![Ok(()); entries.len() - usize::from(mode == Mode::Short)]
        })
    }

    fn namespace(&self) -> BoxFuture<'_, Result<Namespace, TierError>> {
        Box::pin(async move {
            self.act(self.mode_of(None)).await?;
            let mut nonces = self.0.nonces.lock().unwrap();
            nonces.entry(Namespace::BASE_FIELD.into()).or_insert_with(|| self.nonce());
            let fields = nonces.iter().map(|(name, nonce)| (name.as_bytes(), &nonce[..]));
            Ok(Namespace::from_fields(fields).unwrap())
        })
    }

    fn invalidate(&self, scope: Scope) -> BoxFuture<'_, Result<(), TierError>> {
        Box::pin(async move {
            self.act(self.mode_of(None)).await?;
            self.0.nonces.lock().unwrap().insert(scope.field(), self.nonce());
            self.0.changed.notify_waiters();
            Ok(())
        })
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if self.0.tells.load(Relaxed) {
                self.0.changed.notified().await;
            } else {
                std::future::pending::<()>().await;
            }
        })
    }

    fn bucket(&self, key: &TierKey) -> u8 {
        (usize::from(key.digest()[31]) % self.0.buckets.load(Relaxed)) as u8
    }

    fn reset(&self) {
        self.0.resets.fetch_add(1, Relaxed);
    }
}

struct Left<'a>(&'a AtomicUsize);

impl Drop for Left<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
