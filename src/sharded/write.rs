//! Operations that write one key, and how room is made for it.
//!
//! # The way of a put
//!
//! Weigh, refuse what can never fit, hash. Then, under the write lock of the key's own shard: find
//! the old entry; reserve what the new one needs beyond it; while the budget has no room, let
//! entries of this shard leave and take over their room; insert. Unlock; tell the listener of those
//! that left, drop them.
//!
//! A shard that holds clearly less than its share is not made to give more: then room is taken from
//! other shards, one at a time and with no other lock held, into the same
//! reservation; and the put starts over with it. What a put has freed stays reserved for it, so
//! each round has more than the one before. Where nothing is left to evict because other writers
//! hold all the room in their reservations, it gives its own back and waits a little, a bounded
//! number of times.
//!
//! No thread ever waits for a lock while it holds one, so writers cannot deadlock.

use std::hash::{BuildHasher, Hash};
use std::time::Duration;

use equivalent::Equivalent;

use crate::error::{CacheError, ErrorKind, InsertError};
use crate::sync::atomic::Ordering::Relaxed;

use super::budget::{Amount, Reservation, Shortage};
use super::clock::Stamp;
use super::expiry::Life;
use super::farewell::{Farewell, Gone};
use super::policy::Leave;
use super::shard::{Once, Patience, Shard, Unlimited, Until};
use super::table::{Entry, Newcomer, Table, Verdict};
use super::{Place, RemovalCause, ShardedCache};

/// Entries that leave under one lock hold at most.
const BITE: usize = 64;

/// How often a put that found nothing to evict waits for other writers: some 20 ms in all.
const WAITS: u32 = 24;

/// A put on its way.
struct Put<'a, K, V> {
    at: Place<'a, K, V>,
    now: Stamp,
    reservation: Reservation<'a>,
    farewell: Farewell<'a, K, V>,
    /// Whether shards that hold less than their share must give as well.
    desperate: bool,
}

impl<K, V, S> ShardedCache<K, V, S>
where
    K: Hash + Eq,
    S: BuildHasher,
{
    /// Stores `value` under `key` with the time-to-live of the cache. A value that is there is
    /// replaced, which evicts nobody unless the entry grows.
    ///
    /// The write lock of one shard; `O(1)` amortized. Where room is needed, expired entries of the
    /// shard leave first, then those that the policies name; at most 64 under one lock hold.
    /// Entries that left are dropped, and the listener called, after unlocking.
    ///
    /// # Errors
    ///
    /// Each gives key and value back:
    /// - [`CacheError::is_too_large`] if the entry alone is over a limit: nothing has changed, an
    ///   old value of the key included.
    /// - [`CacheError::is_contended`] if other writers held all the room for some 20 ms.
    ///
    /// ```
    /// # use embedding_cache::ShardedCache;
    /// let cache = ShardedCache::<String, u64>::builder().max_entries(10).build()?;
    /// cache.insert("a".to_string(), 1)?;
    /// cache.insert("a".to_string(), 2)?;
    /// assert_eq!((cache.len(), cache.get("a")), (1, Some(2)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn insert(&self, key: K, value: V) -> Result<(), InsertError<K, V>> {
        self.insert_within(key, value, None, Unlimited)
    }

    /// [`insert`](Self::insert) with a time-to-live of its own; zero means expired at once.
    ///
    /// # Errors
    ///
    /// As [`insert`](Self::insert), and [`CacheError::is_invalid_ttl`] if `time_to_live` is over
    /// 292 years.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use embedding_cache::ShardedCache;
    /// let cache = ShardedCache::<String, u64>::builder().max_entries(10).build()?;
    /// cache.insert_with_ttl("a".to_string(), 1, Duration::from_secs(60))?;
    /// cache.insert_with_ttl("b".to_string(), 2, Duration::ZERO)?;
    /// assert_eq!((cache.get("a"), cache.get("b")), (Some(1), None));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn insert_with_ttl(
        &self,
        key: K,
        value: V,
        time_to_live: Duration,
    ) -> Result<(), InsertError<K, V>> {
        if time_to_live > Stamp::LONGEST {
            let kind = ErrorKind::TtlTooLong { ttl: time_to_live, limit: Stamp::LONGEST };
            let refused = InsertError::new(kind, key, value);
            self.count_refusal(refused.key(), refused.error());
            return Err(refused);
        }
        self.may_expire.store(true, Relaxed);
        self.insert_within(key, value, Some(time_to_live), Unlimited)
    }

    /// [`insert`](Self::insert) that waits at most `wait` for locks; zero tries once.
    ///
    /// # Errors
    ///
    /// As [`insert`](Self::insert), and [`CacheError::is_timeout`] if another thread held the lock
    /// all the time: then the value was *not* stored, and will not be. Entries that had already
    /// made room for it stay evicted.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use embedding_cache::ShardedCache;
    /// let cache = ShardedCache::<String, u64>::builder().max_entries(10).build()?;
    /// match cache.try_insert_for("a".to_string(), 1, Duration::from_millis(5)) {
    ///     Ok(()) => assert_eq!(cache.get("a"), Some(1)),
    ///     Err(refused) => {
    ///         let (error, key, value) = refused.into_parts();
    ///         println!("{error}; {key} and {value} are not stored");
    ///     }
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn try_insert_for(
        &self,
        key: K,
        value: V,
        wait: Duration,
    ) -> Result<(), InsertError<K, V>> {
        self.insert_within(key, value, None, Until::after(wait))
    }

    /// Inserts many entries, each as by [`insert`](Self::insert), and returns a result for each in
    /// their order. An entry that is refused fails alone.
    ///
    /// ```
    /// # use embedding_cache::ShardedCache;
    /// let cache = ShardedCache::<u64, String>::builder()
    ///     .max_weight(10)
    ///     .weigher(|_: &u64, value: &String| value.len() as u64)
    ///     .build()?;
    /// let results = cache.insert_many([(1, "short".to_string()), (2, "much too long".to_string())]);
    /// assert!(results[0].is_ok() && results[1].is_err());
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// ```
    pub fn insert_many(
        &self,
        entries: impl IntoIterator<Item = (K, V)>,
    ) -> Vec<Result<(), InsertError<K, V>>> {
        entries.into_iter().map(|(key, value)| self.insert(key, value)).collect()
    }

    /// Removes the entry of `key` and returns its value, if it was alive. The write lock of one
    /// shard; `O(1)`. The listener is told.
    ///
    /// ```
    /// # use embedding_cache::ShardedCache;
    /// let cache = ShardedCache::<String, u64>::builder().max_entries(10).build()?;
    /// cache.insert("a".to_string(), 1)?;
    /// assert_eq!(cache.remove("a"), Some(1));
    /// assert_eq!(cache.remove("a"), None);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn remove<Q>(&self, key: &Q) -> Option<V>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        self.remove_within(key, Unlimited).flatten()
    }

    /// A `remove` that waits at most `wait` for the lock, zero tries once; `None` if it was not had.
    pub(crate) fn remove_slice<Q>(&self, key: &Q, wait: Duration) -> Option<Option<V>>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        match wait {
            Duration::ZERO => self.remove_within(key, Once),
            wait => self.remove_within(key, Until::after(wait)),
        }
    }

    fn remove_within<Q, P>(&self, key: &Q, patience: P) -> Option<Option<V>>
    where
        Q: Hash + Equivalent<K> + ?Sized,
        P: Patience,
    {
        let now = self.now_for_reading();
        let at = self.place(key);
        let entry = at.shard.write(patience, |table| {
            let entry = table.find(at.hash, key).map(|(id, _)| id);
            let entry = entry.and_then(|id| table.take(id, Leave::Other))?;
            self.release(&entry);
            let alive = entry.expiry.is_alive_at(now);
            let counters = &at.shard.counters;
            if alive { &counters.removals } else { &counters.expired }.count();
            Some((entry, alive))
        });
        let Some((entry, alive)) = entry? else { return Some(None) };
        let cause = if alive { RemovalCause::Removed } else { RemovalCause::Expired };
        let mut farewell = self.farewell();
        farewell.tell(&entry.key, &entry.value, cause);
        farewell.end();
        Some(alive.then_some(entry.value))
    }

    /// An insert that counts neither a timeout nor a refusal, for waits in several slices; zero
    /// tries once.
    pub(crate) fn insert_slice(
        &self,
        key: K,
        value: V,
        wait: Duration,
    ) -> Result<(), InsertError<K, V>> {
        match wait {
            Duration::ZERO => self.insert_uncounted(key, value, None, Once),
            wait => self.insert_uncounted(key, value, None, Until::after(wait)),
        }
    }

    /// Counts a put that was not carried out.
    pub(crate) fn count_refusal<Q: Hash + ?Sized>(&self, key: &Q, error: &CacheError) {
        let counters = &self.place(key).shard.counters;
        if error.is_timeout() { &counters.timeouts } else { &counters.rejected }.count();
    }

    fn insert_within<P: Patience>(
        &self,
        key: K,
        value: V,
        own_ttl: Option<Duration>,
        patience: P,
    ) -> Result<(), InsertError<K, V>> {
        self.insert_uncounted(key, value, own_ttl, patience).inspect_err(|refused| {
            self.count_refusal(refused.key(), refused.error());
        })
    }

    fn insert_uncounted<P: Patience>(
        &self,
        key: K,
        value: V,
        own_ttl: Option<Duration>,
        patience: P,
    ) -> Result<(), InsertError<K, V>> {
        let at = self.place(&key);
        let weight = self.config.weigher.as_ref().map_or(0, |weigh| weigh(&key, &value));
        let size = self.config.size.as_ref().map_or(weight, |size| size(&key, &value));
        if let Err(kind) = self.can_ever_fit(weight) {
            return Err(InsertError::new(kind, key, value));
        }

        let time = &self.config.time;
        // Ages are counted from here, so exactly; without a time-to-live only people will read it.
        let now = if self.may_expire.load(Relaxed) { time.now() } else { time.coarse() };
        let mut newcomer = Some(Newcomer {
            key,
            value,
            hash: at.hash,
            weight,
            size,
            time_to_live: own_ttl.or(self.config.time_to_live),
            life: if own_ttl.is_some() { Life::Own } else { Life::Default },
            now,
            written: u32::try_from(now.since(self.created.0).as_secs()).unwrap_or(u32::MAX),
        });
        let mut put = Put {
            at,
            now,
            reservation: Reservation::new(&self.budget),
            farewell: self.farewell(),
            desperate: false,
        };
        let outcome = self.carry_out(&mut put, &mut newcomer, patience);
        let Put { reservation, farewell, .. } = put;
        drop(reservation);
        farewell.end();
        match (outcome, newcomer) {
            (Ok(()), _) | (Err(_), None) => Ok(()),
            (Err(kind), Some(Newcomer { key, value, .. })) => {
                Err(InsertError::new(kind, key, value))
            }
        }
    }

    /// Takes `newcomer` into its shard, round after round until there is room.
    fn carry_out<P: Patience>(
        &self,
        put: &mut Put<'_, K, V>,
        newcomer: &mut Option<Newcomer<K, V>>,
        patience: P,
    ) -> Result<(), ErrorKind> {
        let weight = newcomer.as_ref().map_or(0, |newcomer| newcomer.weight);
        // Every round but the waiting ones frees something, most of them a whole bite.
        let most = WAITS + 64 + u32::try_from(self.len() / (BITE / 2)).unwrap_or(u32::MAX / 2);
        let mut waits = 0;
        for rounds in 1..=most {
            let mut gone = Gone::new();
            let attempt = put
                .at
                .shard
                .write(patience, |table| self.try_here(put, table, newcomer, &mut gone));
            let mut freed = !gone.is_empty();
            put.farewell.say(gone);
            let need = match attempt {
                None => {
                    let waited = patience.given();
                    return Err(ErrorKind::Timeout { operation: "insert", waited });
                }
                Some(Ok(())) => return Ok(()),
                Some(Err(need)) => need,
            };
            // The limits may have been lowered since the put began.
            self.can_ever_fit(weight)?;
            freed |= self.take_elsewhere(put, need, patience);
            if freed {
                continue;
            }
            if !put.desperate {
                put.desperate = true;
                continue;
            }
            if waits == WAITS || patience.is_over() {
                return Err(ErrorKind::Contended { weight, limit: self.max_weight(), rounds });
            }
            waits += 1;
            put.reservation.release();
            patience.back_off(waits);
        }
        Err(ErrorKind::Contended { weight, limit: self.max_weight(), rounds: most })
    }

    /// Under the write lock of the key's own shard: makes room and inserts, or says what is needed.
    fn try_here(
        &self,
        put: &mut Put<'_, K, V>,
        table: &mut Table<K, V>,
        newcomer: &mut Option<Newcomer<K, V>>,
        gone: &mut Gone<K, V>,
    ) -> Result<(), Amount> {
        let Some(new) = newcomer else { return Ok(()) };
        let counters = &put.at.shard.counters;
        let found = table.find(put.at.hash, &new.key);
        let found = found.map(|(id, entry)| (id, entry.expiry.is_alive_at(put.now), entry.weight));
        let old = found.filter(|&(_, alive, _)| alive);
        // An expired entry of the same key is no update: it leaves, and its room is the first taken.
        let expired = found.filter(|&(_, alive, _)| !alive);
        if let Some(entry) = expired.and_then(|(id, ..)| table.take(id, Leave::Other)) {
            put.reservation.take_over(Amount::one(entry.weight));
            counters.expired.count();
            gone.push((entry.key, entry.value, RemovalCause::Expired));
        }
        let need = match old {
            None => Amount::one(new.weight),
            Some((.., old)) => Amount { entries: 0, weight: new.weight.saturating_sub(old) },
        };
        let old = old.map(|(id, ..)| id);
        if !self.make_room(put, put.at.shard, table, need, old, gone) {
            return Err(need);
        }
        if old.is_none() && table.is_full() {
            // Four billion entries in one shard: one of them gives its slot.
            let Some((entry, verdict)) = table.make_way(Shortage::Entries, put.now, None, true)
            else {
                return Err(need);
            };
            self.see_off(put, put.at.shard, entry, verdict, Shortage::Entries, gone);
        }
        let Some(new) = newcomer.take() else { return Ok(()) };
        let weight = new.weight;
        match old {
            None => {
                table.insert(new);
                counters.insertions.count();
                put.reservation.spend(Amount::one(weight));
            }
            Some(id) => {
                if let Some(replaced) = table.replace(id, new) {
                    put.reservation.take_over(Amount { entries: 0, weight: replaced.weight });
                    gone.push((replaced.key, replaced.value, RemovalCause::Replaced));
                }
                counters.updates.count();
                put.reservation.spend(Amount { entries: 0, weight });
            }
        }
        // Under the lock still, and before the listener is called: what is left belongs to whoever
        // comes next.
        put.reservation.release();
        Ok(())
    }

    /// Under the write lock of `shard`: lets at most [`BITE`] entries leave, until the reservation
    /// covers `need`. Says whether it does.
    fn make_room(
        &self,
        put: &mut Put<'_, K, V>,
        shard: &Shard<K, V>,
        table: &mut Table<K, V>,
        need: Amount,
        keep: Option<super::chunked::SlotId>,
        gone: &mut Gone<K, V>,
    ) -> bool {
        for _ in 0..BITE {
            let Err(shortage) = put.reservation.cover(need) else { return true };
            let may_evict = put.desperate || self.has_its_share(table.held(), shortage);
            let Some((entry, verdict)) = table.make_way(shortage, put.now, keep, may_evict) else {
                return false;
            };
            self.see_off(put, shard, entry, verdict, shortage, gone);
        }
        put.reservation.cover(need).is_ok()
    }

    /// Counts an entry that has left for this put, and takes over its room.
    fn see_off(
        &self,
        put: &mut Put<'_, K, V>,
        shard: &Shard<K, V>,
        entry: Entry<K, V>,
        verdict: Verdict,
        shortage: Shortage,
        gone: &mut Gone<K, V>,
    ) {
        put.reservation.take_over(Amount::one(entry.weight));
        let cause = self.count_departure(shard, verdict, shortage);
        gone.push((entry.key, entry.value, cause));
    }

    /// With no lock held: takes room from other shards for `need`, and says whether anything was
    /// freed. Each shard's lock is tried once; if `desperate` it is waited for briefly, as readers
    /// that follow one another would keep a mere try out for ever.
    fn take_elsewhere<P: Patience>(
        &self,
        put: &mut Put<'_, K, V>,
        need: Amount,
        patience: P,
    ) -> bool {
        let all = self.shards.len();
        let mut freed = false;
        // Starting behind the own shard spreads the load: keys are spread evenly over shards.
        for step in 1..all {
            let shard = &self.shards[(put.at.number + step) & (all - 1)];
            // A look from outside first: most shards need not be locked at all.
            let held = shard.counters.held();
            if held.entries == 0 {
                continue;
            }
            let mut gone = Gone::new();
            let wait = if put.desperate { patience.brief() } else { None };
            let take =
                |table: &mut Table<K, V>| self.make_room(put, shard, table, need, None, &mut gone);
            let covered = match wait {
                Some(brief) => shard.write(brief, take),
                None => shard.write(Once, take),
            };
            freed |= !gone.is_empty();
            put.farewell.say(gone);
            if covered == Some(true) {
                return true;
            }
        }
        freed
    }
}

impl<K, V, S> ShardedCache<K, V, S> {
    /// Whether an entry of this weight could be stored in the empty cache.
    fn can_ever_fit(&self, weight: u64) -> Result<(), ErrorKind> {
        let max = self.budget.max();
        if max.entries == 0 {
            return Err(ErrorKind::NoCapacity);
        }
        if weight > max.weight {
            return Err(ErrorKind::TooLarge { weight, limit: max.weight });
        }
        Ok(())
    }

    /// Whether a shard that holds this much holds about its share, so that it should give what its
    /// own newcomers need. Three quarters of the mean: keys spread over shards unevenly, and a
    /// shard that is merely below the mean is not to send its writers elsewhere.
    fn has_its_share(&self, held: Amount, shortage: Shortage) -> bool {
        let (used, all) = (self.budget.used(), self.shards.len() as u64);
        let (own, mean) = match shortage {
            Shortage::Entries => (held.entries, used.entries / all),
            Shortage::Weight => (held.weight, used.weight / all),
        };
        all == 1 || own > mean - mean / 4
    }

    /// Counts an entry that made way, under the write lock of its shard.
    pub(super) fn count_departure(
        &self,
        shard: &Shard<K, V>,
        verdict: Verdict,
        shortage: Shortage,
    ) -> RemovalCause {
        let counters = &shard.counters;
        let (counter, cause) = match (verdict, shortage) {
            (Verdict::Expired, _) => (&counters.expired, RemovalCause::Expired),
            (Verdict::Evicted, Shortage::Entries) => {
                (&counters.evicted_by_entries, RemovalCause::Size)
            }
            (Verdict::Evicted, Shortage::Weight) => {
                (&counters.evicted_by_weight, RemovalCause::Weight)
            }
        };
        counter.count();
        cause
    }
}
