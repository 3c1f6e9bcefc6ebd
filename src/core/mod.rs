//! The core: a sharded, lock-striped, synchronous cache for any key and any cheaply cloned value.
//!
//! What lives here knows nothing of embeddings or of tokio. The face is [`ShardedCache`]; its
//! methods are in files by what they do to the locks: [`get`] and [`get_many`], [`insert`] (with
//! [`make_room`]) and [`insert_many`], [`sweep`], [`invalidate`]. How long each may [`wait`] for a lock
//! is a parameter. Below it a [`shard`] is one lock around one [`table`]. The [`budget`] is one for all
//! shards. What leaves goes to [`removal`].

mod budget;
mod builder;
mod clock;
mod collect;
mod compute;
mod counters;
mod export;
mod get;
mod get_many;
mod hit_counters;
mod insert;
mod insert_many;
mod invalidate;
mod make_room;
mod removal;
mod shard;
mod sweep;
mod table;
#[cfg(all(test, not(shuttle)))]
mod tests;
mod wait;

use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::hasher::DefaultHashBuilder;
use crate::stats::CacheStats;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

pub use builder::ShardedCacheBuilder;
pub use clock::Clock;
pub use counters::ShardStats;
pub(crate) use export::{ExportIter, Exported};
pub(crate) use make_room::{CONTENDED, Condition, InsertOptions};
pub use sweep::Iter;
pub(crate) use sweep::{Step, Stepwise};
pub use table::policy::{EvictionPolicy, MemoryPressure};
pub(crate) use wait::{Forever, Try, Until, Wait};
pub(crate) use {get::Lookup, get_many::GROUP};

use budget::{Budget, Usage};
use builder::{Measure, entries_for};
use clock::{Span, Stamp, Time};
use compute::Inflight;
use hit_counters::HitCounters;
use removal::{Listener, Notifier, Removals};
use shard::Shard;
use table::TableConfig;
use table::index::SlotHash;

/// The longest time-to-live: 292 years.
pub(crate) const LONGEST_TIME_TO_LIVE: Duration = Stamp::LONGEST;

/// Why an entry left the cache, for an
/// [eviction listener](ShardedCacheBuilder::eviction_listener).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RemovalCause {
    /// Its time-to-live had passed, or it was idle for longer than the time-to-idle.
    Expired,
    /// It made room under the limit on entries.
    Size,
    /// It made room under the limit on weight.
    Weight,
    /// Its value was replaced; the key is still there.
    Replaced,
    /// The caller asked: `remove`, `retain`, `invalidate_if`, `invalidate_all`, `clear`.
    Removed,
}

/// What the cache knows of an entry beside its value, from [`ShardedCache::entry_info`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct EntryInfo {
    /// Its weight, 0 without a weigher.
    pub weight: u64,
    /// When its value was last written: the wall clock when the cache was made, plus the monotonic
    /// time since, to the second.
    pub written_at: DateTime<Utc>,
    /// How long it will still be served; `None` without a time-to-live. With a time-to-idle: if it
    /// is not used.
    pub expires_in: Option<Duration>,
}

/// A concurrent cache in N shards, each with its own lock; for any key and any value that is cheap
/// to clone (wrap large ones in an [`Arc`](std::sync::Arc)).
///
/// A key's hash chooses its shard. Operations on different shards never wait for each other, reads
/// of one shard run side by side, and no operation holds a lock while it goes through more than a
/// fixed number of entries. The limits on entries and weight are global and hold at every instant.
///
/// Share it by reference or in an `Arc`. All methods are synchronous and take `&self`;
/// [`EmbeddingCache`](crate::EmbeddingCache) is the door for async embedding servers.
///
/// # Consistency
///
/// Operations on one key are linearizable: a `get` returns the value of the last `insert` that was
/// finished before it, or of one that runs at the same time, or nothing. What speaks of many
/// entries at once ([`len`](Self::len), [`stats`](Self::stats), [`iter`](Self::iter),
/// [`retain`](Self::retain)) is not a snapshot of one instant while others write.
/// [`invalidate_all`](Self::invalidate_all) has one: a thread that finds an entry gone by it finds no
/// other that was stored before.
///
/// # Locks
///
/// No caller's code runs, and no value is dropped, while the lock of a shard is held, apart from
/// `Hash` and `Eq` of the key, `Clone` of the value, and what says so in its documentation
/// ([`retain`](Self::retain), [`invalidate_if`](Self::invalidate_if), [`remove_if`](Self::remove_if),
/// [`iter`](Self::iter)). A value
/// whose `Clone`, or a key whose `Eq`, uses the same cache deadlocks. A listener, and a drop, may use
/// it; where there is no listener, a drop that makes another entry leave drops that one inside itself.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
/// use embedding_cache::ShardedCache;
///
/// let cache = ShardedCache::<String, Arc<str>>::builder()
///     .max_weight(1 << 20)
///     .weigher(|key: &String, value: &Arc<str>| (key.len() + value.len()) as u64)
///     .build()?;
///
/// cache.insert("greeting".to_string(), Arc::from("hello"))?;
/// assert_eq!(cache.get("greeting").as_deref(), Some("hello"));
/// assert_eq!(cache.weight(), 13);
/// # Ok::<(), embedding_cache::CacheError>(())
/// ```
pub struct ShardedCache<K, V, S = DefaultHashBuilder> {
    shards: Box<[Shard<K, V>]>,
    /// One less than there are shards, which are a power of two.
    mask: usize,
    hit_counters: HitCounters,
    hasher: S,
    budget: Budget,
    /// Whether any entry may have a time-to-live, so that reads need not look at the clock if not.
    /// Set before the first such entry is inserted, never cleared. Relaxed: a reader that sees the
    /// entry has taken the lock after its writer, and so sees this too.
    may_expire: AtomicBool,
    /// How often everything was invalidated; a table of an earlier generation counts as empty. See
    /// `invalidate.rs`, also for the next.
    generation: AtomicU64,
    /// How often anything was invalidated.
    epoch: AtomicU64,
    removals: Removals<K, V>,
    /// What [`get_or_insert_with`](Self::get_or_insert_with) computes. Its mutexes are taken with no
    /// lock of a shard held.
    inflight: Inflight<K, V>,
    config: Config<K, V>,
    /// The monotonic and the wall clock at the same moment.
    created: (Stamp, DateTime<Utc>),
}

/// What never changes after `build`.
struct Config<K, V> {
    table_config: TableConfig,
    time_to_live: Option<Duration>,
    /// How long entries with that one are kept, if all are kept equally long.
    span: Option<Span>,
    weigher: Option<Measure<K, V>>,
    /// Whether the limit on entries is none of its own, but follows from that on weight.
    entries_by_weight: bool,
    size: Option<Measure<K, V>>,
    time: Time,
}

/// Where a key belongs.
struct Place<'a, K, V> {
    shard: &'a Shard<K, V>,
    number: usize,
    hash: SlotHash,
}

// Not derived: a derived `Clone` would ask `K` and `V` for one.
impl<K, V> Clone for Place<'_, K, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K, V> Copy for Place<'_, K, V> {}

impl<K, V> ShardedCache<K, V> {
    /// A cache of at most `max_entries` entries, without a limit on weight and without a time-to-live,
    /// and otherwise as [`builder`](Self::builder) makes it. With 0 every insert is refused.
    ///
    /// ```
    /// # use embedding_cache::ShardedCache;
    /// let cache = ShardedCache::new(2);
    /// for key in 0..3 {
    ///     cache.insert(key, key * key)?;
    /// }
    /// assert_eq!((cache.len(), cache.max_entries()), (2, 2));
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// ```
    #[must_use]
    pub fn new(max_entries: usize) -> Self {
        let builder = Self::builder().max_entries(max_entries);
        // A limit is set, and everything else is the default.
        builder.build().unwrap_or_else(|error| unreachable!("{error}"))
    }

    /// Starts to configure a cache.
    ///
    /// ```
    /// # use embedding_cache::{EvictionPolicy, ShardedCache};
    /// let cache = ShardedCache::<u64, u64>::builder()
    ///     .max_entries(1000)
    ///     .shards(4)
    ///     .eviction(EvictionPolicy::Lru)
    ///     .build()?;
    /// assert_eq!((cache.shards(), cache.max_entries()), (4, 1000));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn builder() -> ShardedCacheBuilder<K, V> {
        ShardedCacheBuilder::default()
    }
}

impl<K, V, S> ShardedCache<K, V, S> {
    fn from_config(
        shards: usize,
        max_entries: u64,
        max_weight: u64,
        hasher: S,
        listener: Option<Listener<K, V>>,
        config: Config<K, V>,
    ) -> Self {
        debug_assert!(shards.is_power_of_two());
        Self {
            shards: (0..shards).map(|_| Shard::new(&config.table_config)).collect(),
            mask: shards - 1,
            hit_counters: HitCounters::new(shards),
            hasher,
            budget: Budget::new(Usage { entries: max_entries, weight: max_weight }),
            may_expire: AtomicBool::new(
                config.time_to_live.is_some() || config.table_config.time_to_idle.is_some(),
            ),
            generation: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
            removals: Removals::new(listener),
            inflight: Inflight::new(shards),
            created: (config.time.now(), config.time.wall()),
            config,
        }
    }

    /// The bytes that an entry takes beside what its key and value own on the heap: its slot, with key
    /// and value in it, and its part of the index and of the orders of eviction and expiry. For a
    /// [`weigher`](ShardedCacheBuilder::weigher) that counts bytes.
    pub const ENTRY_OVERHEAD: u64 =
        (size_of::<table::Slot<K, V>>() + table::BESIDE_THE_SLOT) as u64;

    /// Entries held, expired ones that were not yet noticed included. `O(1)`, no lock.
    ///
    /// An insert that is under way is counted from when its room is reserved, so this is never over
    /// the limit and may be ahead of what a `get` finds.
    ///
    /// ```
    /// # use embedding_cache::ShardedCache;
    /// let cache = ShardedCache::<String, u64>::builder().max_entries(10).build()?;
    /// cache.insert("a".to_string(), 1)?;
    /// assert_eq!(cache.len(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn len(&self) -> usize {
        self.budget.used().entries as usize
    }

    /// Whether [`len`](Self::len) is 0. `O(1)`, no lock.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The weight of the entries held, 0 without a weigher. `O(1)`, no lock; counted as
    /// [`len`](Self::len) is.
    pub fn weight(&self) -> u64 {
        self.budget.used().weight
    }

    /// The weight of entries that are gone but whose memory is not given back yet: what a
    /// [`clear`](Self::clear) that is under way, or that a panic ended or its caller cancelled, has
    /// still to drop. It is not part of [`weight`](Self::weight), as no operation finds those entries; each
    /// write drops up to 64 of them, a [`cleanup_expired`](Self::cleanup_expired) all. `O(1)`, no
    /// lock.
    ///
    /// ```
    /// # use embedding_cache::ShardedCache;
    /// let cache = ShardedCache::<u64, u64>::builder().max_entries(10).build()?;
    /// cache.insert(1, 10)?;
    /// cache.clear();
    /// assert_eq!(cache.unreclaimed_weight(), 0);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// ```
    pub fn unreclaimed_weight(&self) -> u64 {
        self.removals.pending().weight
    }

    /// The limit on entries; `usize::MAX` if none was set.
    pub fn max_entries(&self) -> usize {
        let max = self.budget.max();
        let follows = self.config.entries_by_weight && max.entries == entries_for(max.weight);
        if follows { usize::MAX } else { max.entries as usize }
    }

    /// The limit on weight; `u64::MAX` if there is none.
    pub fn max_weight(&self) -> u64 {
        self.budget.max().weight
    }

    /// How many shards the cache has.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// When the cache was made, by the wall clock.
    pub fn created_at(&self) -> DateTime<Utc> {
        self.created.1
    }

    /// The time of day by the clock of this cache.
    pub(crate) fn wall_time(&self) -> DateTime<Utc> {
        self.config.time.wall()
    }

    /// The counts of all shards together. `O(shards)`, no lock.
    pub fn stats(&self) -> CacheStats {
        let mut sum = CacheStats::default();
        for (number, shard) in self.shards.iter().enumerate() {
            sum += shard.counters.read(self.hit_counters.read(number));
        }
        sum
    }

    /// What each shard holds and has counted. `O(shards)`, no lock.
    ///
    /// ```
    /// # use embedding_cache::ShardedCache;
    /// let cache = ShardedCache::<u64, u64>::builder().max_entries(100).shards(4).build()?;
    /// for key in 0..100 {
    ///     cache.insert(key, key)?;
    /// }
    /// let shards = cache.shard_stats();
    /// assert_eq!(shards.len(), 4);
    /// assert_eq!(shards.iter().map(|shard| shard.entries).sum::<usize>(), 100);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// ```
    pub fn shard_stats(&self) -> Vec<ShardStats> {
        let shard_stats = |(number, shard): (usize, &Shard<K, V>)| {
            let held = shard.counters.held();
            ShardStats {
                entries: held.entries as usize,
                weight: held.weight,
                stats: shard.counters.read(self.hit_counters.read(number)),
            }
        };
        self.shards.iter().enumerate().map(shard_stats).collect()
    }

    /// The wall clock so many seconds after the cache was made.
    fn wall_time_after(&self, seconds: u32) -> DateTime<Utc> {
        self.created.1 + TimeDelta::seconds(i64::from(seconds))
    }

    /// The moment for a read: exact to a tick. If nothing can expire there is no look at the clock,
    /// and it is zero; otherwise never.
    #[inline]
    fn now_for_reading(&self) -> Stamp {
        if !self.may_expire.load(Relaxed) {
            return Stamp::ZERO;
        }
        // An entry with any life at all, written at zero, is alive at one.
        self.config.time.coarse().max(Stamp::from_nanos(1))
    }

    /// The expiry beyond which an entry is fresh at the [moment for a read](Self::now_for_reading),
    /// unless it is idle; zero also at the very moment zero, when nothing has expired yet but what is
    /// expired at once, and nothing is idle.
    // Always: beside what keeps registers through a call, reading the clock is a few instructions.
    #[inline(always)]
    fn fresh_beyond_for_reading(&self) -> Stamp {
        if !self.may_expire.load(Relaxed) {
            return Stamp::ZERO;
        }
        let (now, grace) = (self.config.time.coarse(), self.config.table_config.grace);
        // A branch that always goes the same way is less than a sum that must not overflow.
        if grace.is_zero() { now } else { now.plus(grace) }
    }

    /// The moment for an export: exact, so that lives are.
    fn now_for_export(&self) -> Stamp {
        if self.may_expire.load(Relaxed) { self.config.time.now() } else { Stamp::ZERO }
    }

    /// For what leaves in one operation.
    pub(crate) fn notifier(&self) -> Notifier<'_, K, V> {
        Notifier::new(&self.removals)
    }

    /// Panics unless every shard and the budget agree. Takes the locks one after the other and goes
    /// through everything; for tests, with no other thread at work.
    #[doc(hidden)]
    #[allow(clippy::missing_panics_doc)]
    pub fn validate(&self) {
        let mut held = Usage::default();
        for shard in &self.shards {
            let table = shard.read(Forever).expect("waits as long as it takes");
            table.validate();
            assert_eq!(table.held(), shard.counters.held(), "the gauges are not shown");
            held += table.held();
        }
        assert_eq!(self.budget.used(), held, "the budget is not what the shards hold");
        assert_eq!(self.budget.excess(), None, "a limit is exceeded");
        assert!(self.inflight.is_empty(), "a computation has not ended");
    }
}

// The caller's code that may panic runs outside the locks, or before anything is changed under
// them, so a cache that a panic went through is whole; there is a test for each kind of it.
impl<K, V, S> std::panic::UnwindSafe for ShardedCache<K, V, S> {}
impl<K, V, S> std::panic::RefUnwindSafe for ShardedCache<K, V, S> {}

impl<K: Hash + Eq, V, S: BuildHasher> ShardedCache<K, V, S> {
    // Always: a call would return the place through memory, on the way of every hit.
    #[inline(always)]
    fn place<Q: Hash + ?Sized>(&self, key: &Q) -> Place<'_, K, V> {
        let hash = self.hasher.hash_one(key);
        let number = (hash >> 32) as usize & self.mask;
        Place { shard: &self.shards[number], number, hash: SlotHash(hash as u32) }
    }
}

impl<K, V, S> fmt::Debug for ShardedCache<K, V, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardedCache")
            .field("len", &self.len())
            .field("max_entries", &self.max_entries())
            .field("weight", &self.weight())
            .field("max_weight", &self.max_weight())
            .field("shards", &self.shards.len())
            .field("eviction", &self.config.table_config.policy)
            .finish_non_exhaustive()
    }
}
