//! How a [`ShardedCache`] is made.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{CacheError, ErrorKind};
use crate::hasher::DefaultHashBuilder;

use super::clock::{Clock, Grace, Stamp, Time};
use super::make_room::span_of;
use super::removal::Listener;
use super::table::TableConfig;
use super::table::expiry::Jitter;
use super::table::policy::{EvictionPolicy, MemoryPressure};
use super::{Config, RemovalCause, ShardedCache};

/// The most shards a cache may have: more than any machine has use for, and their locks alone are
/// then 40 MB.
const MOST_SHARDS: usize = 1 << 16;

/// By default a shard is for at least this many entries; below, shards fill unevenly and the order
/// of eviction, which is one for each shard, is far from that of the whole cache.
const ENTRIES_PER_SHARD: usize = 256;

/// And for at least this weight. Weights are mostly bytes: some 1,300 vectors of 768 dimensions, 340
/// of 3,072.
const WEIGHT_PER_SHARD: u64 = 4 << 20;

pub(super) type Measure<K, V> = Box<dyn Fn(&K, &V) -> u64 + Send + Sync>;

/// Configures and makes a [`ShardedCache`]; from [`ShardedCache::builder`].
///
/// At least one of [`max_entries`](Self::max_entries) and [`max_weight`](Self::max_weight) must be
/// set: a cache without a bound fills the machine.
#[must_use]
pub struct ShardedCacheBuilder<K, V, S = DefaultHashBuilder> {
    max_entries: Option<usize>,
    max_weight: Option<u64>,
    weigher: Option<Measure<K, V>>,
    size: Option<Measure<K, V>>,
    time_to_live: Option<Duration>,
    jitter: f64,
    grace: Duration,
    time_to_idle: Option<Duration>,
    shards: Option<usize>,
    policy: EvictionPolicy,
    pressure: MemoryPressure,
    time: Time,
    listener: Option<Listener<K, V>>,
    hasher: S,
}

impl<K, V> Default for ShardedCacheBuilder<K, V> {
    fn default() -> Self {
        Self {
            max_entries: None,
            max_weight: None,
            weigher: None,
            size: None,
            time_to_live: None,
            jitter: 0.0,
            grace: Duration::ZERO,
            time_to_idle: None,
            shards: None,
            policy: EvictionPolicy::default(),
            pressure: MemoryPressure::default(),
            time: Time::default(),
            listener: None,
            hasher: DefaultHashBuilder::default(),
        }
    }
}

impl<K, V, S> ShardedCacheBuilder<K, V, S> {
    /// The most entries the cache holds, at every instant. 0 makes a cache that refuses every
    /// insert, `usize::MAX` one that only its weight limits.
    pub fn max_entries(mut self, max: usize) -> Self {
        self.max_entries = Some(max);
        self
    }

    /// The most weight the cache holds, at every instant, in the unit of the
    /// [`weigher`](Self::weigher), which must be set as well.
    ///
    /// Where [`max_entries`](Self::max_entries) is not set, the entries are bounded all the same: to
    /// as many as this if each weighed 1, but not to less than 1,024. So a weigher that answers 0 does
    /// not fill the machine; to ask for that, set `max_entries` to `usize::MAX`.
    pub fn max_weight(mut self, max: u64) -> Self {
        self.max_weight = Some(max);
        self
    }

    /// What an entry weighs, for example its bytes. Called once for each insert, outside the locks;
    /// the weight is kept with the entry.
    ///
    /// One that counts bytes should count those of the entry itself too:
    /// [`ShardedCache::ENTRY_OVERHEAD`].
    ///
    /// ```
    /// # use embedding_cache::ShardedCache;
    /// type Cache = ShardedCache<u64, String>;
    /// let cache = Cache::builder()
    ///     .max_weight(1 << 20)
    ///     .weigher(|_: &u64, text: &String| text.capacity() as u64 + Cache::ENTRY_OVERHEAD)
    ///     .build()?;
    /// cache.insert(1, String::new())?;
    /// assert_eq!(cache.weight(), Cache::ENTRY_OVERHEAD);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// ```
    pub fn weigher(mut self, weigher: impl Fn(&K, &V) -> u64 + Send + Sync + 'static) -> Self {
        self.weigher = Some(Box::new(weigher));
        self
    }

    /// What [`MemoryPressure::LargestFirst`] goes by, where that is not the weight.
    pub(crate) fn size(mut self, size: impl Fn(&K, &V) -> u64 + Send + Sync + 'static) -> Self {
        self.size = Some(Box::new(size));
        self
    }

    /// How long after its last write an entry is served: until its age exceeds this. The default
    /// is for ever; zero means that every entry is expired at once. At most 292 years.
    pub fn time_to_live(mut self, time_to_live: Duration) -> Self {
        self.time_to_live = Some(time_to_live);
        self
    }

    /// Spreads the time-to-live over a part of it, so that what was stored together does not expire
    /// together: an entry lives between `(1 - fraction)` times the
    /// [`time_to_live`](Self::time_to_live) and the whole of it, from 0.0 (the default: the whole)
    /// to 1.0.
    ///
    /// In 16 even steps, of which its hash chooses one for each key: for one cache the same at every
    /// insert, for another process another. A time-to-live of the entry's own
    /// ([`insert_with_ttl`](ShardedCache::insert_with_ttl)) is exact all the same. Finding an
    /// expired entry looks at 16 lists in place of one.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use embedding_cache::ShardedCache;
    /// let cache = ShardedCache::<u64, u64>::builder()
    ///     .max_entries(10)
    ///     .time_to_live(Duration::from_secs(1000))
    ///     .time_to_live_jitter(0.1)
    ///     .build()?;
    /// cache.insert(1, 10)?;
    /// let left = cache.entry_info(&1).unwrap().expires_in.unwrap();
    /// assert!(left > Duration::from_secs(890) && left <= Duration::from_secs(1000));
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// ```
    pub fn time_to_live_jitter(mut self, fraction: f64) -> Self {
        self.jitter = fraction;
        self
    }

    /// How much longer than its time-to-live an entry is kept, for loads that ask for stale values;
    /// to all others it is expired. Not part of the public interface.
    #[doc(hidden)]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// How long after its last use an entry is served: until the time since its last hit or write
    /// exceeds this. The default is for ever. More than zero, at most 292 years. With a
    /// [`time_to_live`](Self::time_to_live) too, an entry expires by whichever comes first.
    ///
    /// A use is a get that finds the entry, or a write of its value; `peek`, `contains_key`,
    /// `entry_info` and iteration are none. Uses are noted by the coarse clock, to a tick of the
    /// operating system (1 to 10 ms). An idle entry is never served, but its memory may come back
    /// later: a [`cleanup_expired`](ShardedCache::cleanup_expired) finds it for certain once it has
    /// been idle for twice this long, and an insert that needs room may evict another before it.
    /// Costs 24 bytes an entry, and the first hit of a tick a write to memory.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use embedding_cache::ShardedCache;
    /// let cache = ShardedCache::<u64, u64>::builder()
    ///     .max_entries(10)
    ///     .time_to_idle(Duration::from_secs(60))
    ///     .build()?;
    /// cache.insert(1, 10)?;
    /// assert_eq!(cache.get(&1), Some(10)); // and for another minute
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// ```
    pub fn time_to_idle(mut self, time_to_idle: Duration) -> Self {
        self.time_to_idle = Some(time_to_idle);
        self
    }

    /// How many shards to divide the cache into, rounded up to a power of two; 1 to 65,536. The
    /// default is about four for each processor, and fewer where that would leave less than 256
    /// entries or a weight of 4,194,304 (of bytes, 4 MiB) to a shard. One shard makes the order of eviction exact over the whole cache.
    pub fn shards(mut self, shards: usize) -> Self {
        self.shards = Some(shards);
        self
    }

    /// Which entry leaves when the cache is full. The default is [`EvictionPolicy::HitDensity`].
    pub fn eviction(mut self, policy: EvictionPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Which entry leaves when the limit on weight is reached.
    pub fn memory_pressure(mut self, pressure: MemoryPressure) -> Self {
        self.pressure = pressure;
        self
    }

    /// Another source of time, for tests.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.time = Time::custom(clock);
        self
    }

    /// Another hash function. It must spread keys over all 64 bits, as the default, foldhash and
    /// `SipHash` do; the upper half chooses the shard, the lower half the slot.
    pub fn hasher<H>(self, hasher: H) -> ShardedCacheBuilder<K, V, H> {
        let Self {
            max_entries,
            max_weight,
            weigher,
            size,
            time_to_live,
            jitter,
            grace,
            time_to_idle,
            shards,
            policy,
            pressure,
            time,
            listener,
            hasher: _,
        } = self;
        ShardedCacheBuilder {
            max_entries,
            max_weight,
            weigher,
            size,
            time_to_live,
            jitter,
            grace,
            time_to_idle,
            shards,
            policy,
            pressure,
            time,
            listener,
            hasher,
        }
    }

    /// Is told of every entry that leaves or is replaced, and why. Called outside the locks, on the
    /// thread whose operation made the entry leave, so it may use the cache; it should be quick.
    /// What its own operations make leave is told after it has returned, in order, by the outermost
    /// operation on the thread: it is never called inside itself. One that answers each entry with
    /// an operation that makes another leave goes on for ever.
    ///
    /// If it panics, that operation does the rest of its work without calling it again, and then
    /// panics. It is not told of the entries that are there when the cache is dropped; to hear of
    /// them, [`clear`](ShardedCache::clear) it first.
    pub fn eviction_listener(
        mut self,
        listener: impl Fn(&K, &V, RemovalCause) + Send + Sync + 'static,
    ) -> Self {
        self.listener = Some(Box::new(listener));
        self
    }

    /// Makes the cache. Allocates its shards, but no room for entries.
    ///
    /// # Errors
    ///
    /// [`CacheError::is_configuration`] if no limit is set, if a weight limit is set without a
    /// weigher, if the number of shards is 0 or over 65,536, if the jitter is not from 0.0 to 1.0, or
    /// if the time-to-idle is zero; [`CacheError::is_invalid_ttl`] if the time-to-live or the
    /// time-to-idle is over 292 years.
    pub fn build(self) -> Result<ShardedCache<K, V, S>, CacheError> {
        if self.max_entries.is_none() && self.max_weight.is_none() {
            return Err(ErrorKind::NoLimit.into());
        }
        if let (Some(limit), None) = (self.max_weight, &self.weigher) {
            return Err(ErrorKind::NoWeigher { limit }.into());
        }
        if let Some(ttl) = self.time_to_live.filter(|&ttl| ttl > Stamp::LONGEST) {
            return Err(ErrorKind::TtlTooLong { ttl, limit: Stamp::LONGEST }.into());
        }
        let (ttl, grace) = (self.time_to_live.unwrap_or_default(), self.grace);
        if ttl.saturating_add(grace) > Stamp::LONGEST {
            return Err(ErrorKind::GraceTooLong { ttl, grace, limit: Stamp::LONGEST }.into());
        }
        if let Some(tti) = self.time_to_idle.filter(|&tti| tti > Stamp::LONGEST) {
            return Err(ErrorKind::TtiTooLong { tti, limit: Stamp::LONGEST }.into());
        }
        if self.time_to_idle == Some(Duration::ZERO) {
            return Err(ErrorKind::NoTimeToIdle.into());
        }
        let Some(jitter) = Jitter::new(self.jitter) else {
            return Err(ErrorKind::Jitter { fraction: self.jitter }.into());
        };
        let max_entries = self.max_entries.unwrap_or(usize::MAX);
        let max_weight = self.max_weight.unwrap_or(u64::MAX);
        let shards = self.shards.unwrap_or_else(|| default_shards(max_entries, max_weight));
        if shards == 0 || shards > MOST_SHARDS {
            return Err(ErrorKind::ShardCount { shards, limit: MOST_SHARDS }.into());
        }
        let shards = shards.next_power_of_two();
        let grace = Grace::new(self.grace);
        Ok(ShardedCache::from_config(
            shards,
            match self.max_entries {
                Some(max) => max as u64,
                None => entries_for(max_weight),
            },
            max_weight,
            self.hasher,
            self.listener,
            Config {
                table_config: TableConfig {
                    grace,
                    jitter,
                    time_to_idle: self.time_to_idle,
                    ..TableConfig::new(self.policy, self.pressure, shards)
                },
                time_to_live: self.time_to_live,
                span: (!jitter.is_any()).then(|| span_of(self.time_to_live, grace)),
                weigher: self.weigher,
                entries_by_weight: self.max_entries.is_none(),
                // Nothing else goes by it.
                size: self.size.filter(|_| self.pressure == MemoryPressure::LargestFirst),
                time: self.time.started(),
            },
        ))
    }
}

/// How many entries may be where only the weight is limited: as many as weigh 1 each, and some that
/// weigh nothing beside them.
pub(super) fn entries_for(max_weight: u64) -> u64 {
    max_weight.max(1024)
}

/// About four shards for each processor, but none for less than [`ENTRIES_PER_SHARD`] entries or
/// [`WEIGHT_PER_SHARD`].
fn default_shards(max_entries: usize, max_weight: u64) -> usize {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let wanted = (4 * processors).next_power_of_two();
    let by_weight = usize::try_from(max_weight / WEIGHT_PER_SHARD).unwrap_or(usize::MAX);
    let sensible = (max_entries / ENTRIES_PER_SHARD).min(by_weight);
    // Rounded down to a power of two, so that a shard has at least its share.
    let sensible = sensible.checked_ilog2().map_or(1, |bits| 1 << bits);
    wanted.min(sensible).min(MOST_SHARDS)
}

impl<K, V, S> fmt::Debug for ShardedCacheBuilder<K, V, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardedCacheBuilder")
            .field("max_entries", &self.max_entries)
            .field("max_weight", &self.max_weight)
            .field("time_to_live", &self.time_to_live)
            .field("time_to_live_jitter", &self.jitter)
            .field("time_to_idle", &self.time_to_idle)
            .field("shards", &self.shards)
            .field("eviction", &self.policy)
            .field("memory_pressure", &self.pressure)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_caches_have_one_shard() {
        for entries in [0, 1, 100, 511] {
            assert_eq!(default_shards(entries, u64::MAX), 1);
        }
        for weight in [0, 1, 100, (8 << 20) - 1] {
            assert_eq!(default_shards(usize::MAX, weight), 1);
        }
        assert!(default_shards(usize::MAX, u64::MAX) >= 4);
        assert!(default_shards(usize::MAX, u64::MAX).is_power_of_two());
        assert_eq!((default_shards(1023, u64::MAX), default_shards(1023, 8 << 20)), (2, 2));
        assert_eq!(default_shards(100_000, 8 << 20), 2);
    }
}
