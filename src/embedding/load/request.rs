//! A batch on its way: which of its keys are hits, which are claimed, which are waited for.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use crate::core::{GROUP, Lookup, Try, Until, Wait as _};
use crate::embedding::wait::Pace;
use crate::embedding::{EmbeddingCache, EmbeddingKey, Inner};
use crate::error::{CacheError, ErrorKind};
use crate::hasher::DefaultHashBuilder;
use crate::vector::EmbeddingVector;

use super::Options;
use super::ancestry::{Ancestry, Waits};
use super::call::{Call, CallId, CallResult, Interest};
use super::heartbeat::{self, Heartbeat};
use super::inflight::{CallSlot, Claim};
use super::leader::Leader;
use super::output::{Answer, Missing};

/// How often a key whose call was abandoned by its caller is claimed anew. Each time another caller
/// has given up, so this is reached only where very many callers give up.
const ROUNDS: u32 = 64;

/// How often in turn another's call may show no sign of life before its keys are claimed anew: a
/// second or so. To load them twice costs less than to wait.
const SILENCES: u32 = 1;
/// The same for a call of this request, which runs in a task: some twenty seconds. Its keys are not
/// claimed anew, so the request would fail. And a task that was woken is polled in the end, unless
/// nobody drives its runtime: where so many wait for a processor that its turn takes seconds, it is
/// late and not lost.
const OWN_SILENCES: u32 = 16;

/// A call of so many keys may be made smaller than it could be, so that other tasks have a turn.
const LARGE: usize = 1024;

/// A key that was not found, once for all places in the batch that name it.
#[derive(Debug)]
struct Item {
    /// The first place that names it.
    position: usize,
    /// Once it is known.
    answer: Option<Answer>,
    /// What the cache has of it that is past its time-to-live, and by how much.
    stale: Option<(EmbeddingVector, Duration)>,
    /// Where the answer will be, until it is known.
    wait: Option<Wait>,
    /// Whether this caller's own closure was asked for it.
    asked: bool,
}

/// A place in a call that is waited for.
#[derive(Debug)]
struct Wait {
    slot: CallSlot,
    interest: Interest,
    /// Of the calls inside which this request was made.
    _noted: Waits,
}

/// A call that this request has to make: the claimed keys, and what its closure is asked for.
pub(super) type CallToMake<K, S> = (Leader<K, S>, Missing<K>);

pub(super) struct Request<'a, K: EmbeddingKey, S> {
    cache: &'a EmbeddingCache<K, S>,
    keys: &'a [K],
    options: Options,
    /// One for each key. That of a key that was not found is empty until `finish`.
    answers: Vec<Answer>,
    /// The places of the keys that were not found, and their items.
    missing: Vec<(usize, usize)>,
    items: Vec<Item>,
    /// How often something that was waited for turned out to be abandoned.
    rounds: u32,
    /// The calls inside which this request was made.
    ancestry: Ancestry,
    /// The item to claim next; all of them have been if it is none.
    next: usize,
    /// Whether calls were claimed that have not been waited for yet.
    is_leading: bool,
    pace: Pace,
}

impl<'a, K: EmbeddingKey, S: BuildHasher> Request<'a, K, S> {
    /// Looks all keys up. With nothing missing, allocates the answers only.
    pub(super) async fn look_up(
        cache: &'a EmbeddingCache<K, S>,
        keys: &'a [K],
        options: Options,
    ) -> Self {
        let mut answers = Vec::with_capacity(keys.len());
        let mut missing = Vec::new();
        let mut position = 0;
        cache
            .get_each(keys, |found| {
                answers.push(Ok(found.unwrap_or_else(|| {
                    missing.push((position, usize::MAX));
                    EmbeddingVector::empty()
                })));
                position += 1;
            })
            .await;
        Self::new(cache, keys, options, answers, missing).await
    }

    /// A batch of one that was looked up already, and not found.
    pub(super) async fn missing(
        cache: &'a EmbeddingCache<K, S>,
        key: &'a [K; 1],
        options: Options,
    ) -> Self {
        Self::new(cache, key, options, vec![Ok(EmbeddingVector::empty())], vec![(0, 0)]).await
    }

    async fn new(
        cache: &'a EmbeddingCache<K, S>,
        keys: &'a [K],
        options: Options,
        answers: Vec<Answer>,
        missing: Vec<(usize, usize)>,
    ) -> Self {
        let mut request = Self {
            cache,
            keys,
            options,
            answers,
            missing,
            items: Vec::new(),
            rounds: 0,
            ancestry: Ancestry::default(),
            next: 0,
            is_leading: false,
            pace: Pace::default(),
        };
        if !request.missing.is_empty() {
            request.ancestry = Ancestry::current();
            request.collect_items().await;
        }
        request
    }

    /// One item for each distinct key that was not found.
    async fn collect_items(&mut self) {
        let mut known =
            HashMap::with_capacity_and_hasher(self.missing.len(), DefaultHashBuilder::default());
        for (step, (position, item)) in self.missing.iter_mut().enumerate() {
            if step % GROUP == GROUP - 1 {
                self.pace.step().await;
            }
            *item = match known.entry(&self.keys[*position]) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(new) => {
                    let position = *position;
                    self.items.push(Item {
                        position,
                        answer: None,
                        stale: None,
                        wait: None,
                        asked: false,
                    });
                    *new.insert(self.items.len() - 1)
                }
            };
        }
    }

    /// Whether there are items that [`claim`](Self::claim) has not come to yet.
    pub(super) fn is_unclaimed(&self) -> bool {
        self.next < self.items.len()
    }

    /// Whether any answer is still to come.
    pub(super) fn is_open(&self) -> bool {
        self.items.iter().any(|item| item.answer.is_none())
    }

    /// Asks the second tier, if there is one, for keys without an answer that no call is loading. Before
    /// anything is claimed: a claim must not be held by a future that may never be polled again.
    #[cfg(feature = "tier")]
    pub(super) async fn ask_tier(&mut self)
    where
        S: Send + Sync + 'static,
    {
        let inner = &self.cache.inner;
        let Some(tier) = &inner.tier else { return };
        let open = self.items.iter_mut().filter(|item| {
            item.answer.is_none() && !inner.inflight.contains(&self.keys[item.position].probe())
        });
        let open: Vec<&mut Item> = open.collect();
        if open.is_empty() {
            return;
        }
        let keys: Vec<&K> = open.iter().map(|item| &self.keys[item.position]).collect();
        let answers = Box::pin(crate::embedding::tier::ask(self.cache, tier, &keys)).await;
        for (item, answer) in open.into_iter().zip(answers) {
            item.answer = answer.map(Ok);
        }
    }

    /// Claims keys without an answer, or joins the calls that have them, and returns the calls to make,
    /// of at most `max_batch` keys each. After too many rounds gives the rest up instead.
    ///
    /// Never waits while it holds a claim: a future that is dropped gives its claims back, but one
    /// that is kept and never polled again would keep them for ever. So where the lock of a shard is
    /// taken, or it is time to yield, it returns what it has, and goes on when those calls run. Where
    /// all room in flight is taken, and some of that by itself, it goes on after they have ended: a
    /// batch may be larger than the limit.
    ///
    /// The calls run in the future of `heartbeat`; without one, each in a task of its own.
    pub(super) async fn claim(
        &mut self,
        heartbeat: Option<&Arc<Heartbeat>>,
    ) -> Vec<CallToMake<K, S>> {
        let inner = &self.cache.inner;
        let ancestry = &self.ancestry;
        let time_to_live = self.options.time_to_live;
        let begin = || {
            let heartbeat = heartbeat.cloned().unwrap_or_default();
            let epoch = inner.core.epoch();
            (Leader::new(inner, heartbeat, epoch, time_to_live, ancestry), Missing::new())
        };
        let mut calls = Vec::new();
        let mut call = begin();
        while let Some(item) = self.items.get_mut(self.next) {
            self.next += 1;
            if item.answer.is_some() || item.wait.is_some() {
                continue;
            }
            // A key that this caller's closure was asked for before: its call was abandoned, so the
            // runtime that should have carried it out is shutting down.
            if self.rounds > ROUNDS || item.asked {
                item.answer = Some(Err(ErrorKind::Abandoned { rounds: self.rounds }.into()));
                continue;
            }
            let key = &self.keys[item.position];
            let holds_claims = !calls.is_empty() || call.0.len() > 0;
            // Not in the middle of a call, unless that is a very large one.
            let between_calls = call.0.len() == 0 || call.0.len() >= LARGE;
            if between_calls && self.pace.is_due() {
                if holds_claims {
                    self.next -= 1;
                    break;
                }
                self.pace.step().await;
            }
            let mut attempt =
                |wait| item.claim(inner, key, &mut call.0, ancestry, heartbeat.is_none(), wait);
            let claimed = match attempt(Until::after(Duration::ZERO)) {
                None if holds_claims => {
                    self.next -= 1;
                    break;
                }
                None => inner.waiters.wait(attempt).await,
                Some(claimed) => claimed,
            };
            match claimed {
                Claimed::Led => call.1.push(key.clone(), item.position),
                Claimed::Full if holds_claims || self.is_leading => {
                    self.next = self.items.len();
                    break;
                }
                Claimed::Full => {
                    let limit = inner.inflight.limit();
                    item.answer = Some(Err(ErrorKind::Overloaded { limit }.into()));
                }
                Claimed::Otherwise => {}
            }
            if call.0.len() >= self.options.max_batch {
                calls.push(std::mem::replace(&mut call, begin()));
            }
        }
        if call.0.len() > 0 {
            calls.push(call);
        }
        self.is_leading |= !calls.is_empty();
        calls
    }

    /// Waits for the calls that were claimed or joined. An item whose call was abandoned, or whose
    /// future shows no sign of life, stays open.
    pub(super) async fn wait(&mut self) {
        let mut abandoned = false;
        let mut silent = HashSet::new();
        (self.next, self.is_leading) = (0, false);
        for place in 0..self.items.len() {
            if place % GROUP == GROUP - 1 {
                self.pace.step().await;
            }
            let item = &self.items[place];
            let Some(wait) = &item.wait else { continue };
            let call = wait.interest.call();
            let mut ended = call.result().is_some();
            if !ended && !silent.contains(&call.id()) {
                ended = call.wait(item.silences()).await;
                if !ended {
                    // The others are asked all at once: each by itself would take as long again.
                    silent.extend(silent_calls(&self.items[place..], item.asked).await);
                }
            }
            let item = &mut self.items[place];
            let Some(wait) = &item.wait else { continue };
            // Its leader may never come to take the key out.
            if !ended || matches!(wait.slot.call.result(), Some(CallResult::TimedOut)) {
                let probe = self.keys[item.position].probe();
                self.cache.inner.inflight.give_up(&probe, &wait.slot);
            }
            if !ended {
                // If it is polled after all, it goes on for those that still wait for it.
                wait.slot.call.release_permit();
            }
            item.take_answer();
            abandoned |= item.answer.is_none();
            item.wait = None;
        }
        self.rounds += u32::from(abandoned);
    }

    /// Takes what has come; the rest has run out of time.
    pub(super) fn time_out(&mut self, waited: Duration) {
        for item in &mut self.items {
            item.take_answer();
            if item.answer.is_none() {
                item.answer = Some(Err(ErrorKind::LoadTimeout { waited }.into()));
            }
        }
    }

    /// The same error for whatever is still to come.
    pub(super) async fn fail(mut self, error: &CacheError) -> Vec<Answer> {
        for item in &mut self.items {
            item.answer.get_or_insert_with(|| Err(error.clone()));
        }
        self.finish().await
    }

    /// The answers, in the order of the keys.
    pub(super) async fn finish(mut self) -> Vec<Answer> {
        let inner = &self.cache.inner;
        for (step, item) in self.items.iter_mut().enumerate() {
            if step % GROUP == GROUP - 1 {
                self.pace.step().await;
            }
            // An old vector is better than an error: what it was made from has not changed.
            if let (Some(Err(_)), Some((vector, past))) = (&item.answer, &item.stale)
                && *past <= inner.stale_if_error
            {
                inner.observer.served_stale();
                item.answer = Some(Ok(vector.clone()));
            }
        }
        for (step, (position, item)) in self.missing.into_iter().enumerate() {
            if step % GROUP == GROUP - 1 {
                self.pace.step().await;
            }
            let answer = self.items[item].answer.clone();
            self.answers[position] =
                answer.unwrap_or_else(|| Err(ErrorKind::Abandoned { rounds: self.rounds }.into()));
        }
        self.answers
    }
}

/// What a claim of a key came to, for the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claimed {
    /// It is to be loaded by the call.
    Led,
    /// There is no room to load it.
    Full,
    /// It is answered or waited for.
    Otherwise,
}

/// Those of the calls that `items` wait for that show no sign of life; of the request's own calls only
/// if `own` are asked as well.
async fn silent_calls(items: &[Item], own: bool) -> Vec<CallId> {
    let waits =
        items.iter().filter(|item| own || !item.asked).filter_map(|item| item.wait.as_ref());
    let mut calls: Vec<&Arc<Call>> = waits.map(|wait| wait.interest.call()).collect();
    calls.retain(|call| call.result().is_none());
    calls.sort_unstable_by_key(|call| call.id());
    calls.dedup_by_key(|call| call.id());
    heartbeat::silent(calls, |call| call.heartbeat()).await.iter().map(|call| call.id()).collect()
}

impl Item {
    /// How often in turn its call may show no sign of life.
    fn silences(&self) -> u32 {
        if self.asked { OWN_SILENCES } else { SILENCES }
    }

    /// Takes the answer, if the call has ended with one.
    fn take_answer(&mut self) {
        if self.answer.is_some() {
            return;
        }
        let Some(Wait { slot, .. }) = &self.wait else { return };
        self.answer = match slot.call.result() {
            Some(CallResult::Answered(answers)) => answers.get(slot.place).cloned(),
            Some(CallResult::TimedOut) => {
                Some(Err(ErrorKind::CallTimeout { limit: slot.call.limit() }.into()))
            }
            Some(CallResult::Abandoned) | None => None,
        };
    }

    /// Claims `key` for the next slot of `leader`; `None` if the lock of its shard was not had. Waits
    /// for that at most `wait`, zero tries once.
    fn claim<K: EmbeddingKey, S: BuildHasher>(
        &mut self,
        inner: &Inner<K, S>,
        key: &K,
        leader: &mut Leader<K, S>,
        ancestry: &Ancestry,
        may_refresh: bool,
        wait: Until,
    ) -> Option<Claimed> {
        let stored = match key.to_stored() {
            Ok(stored) => stored,
            Err(error) => {
                self.answer = Some(Err(error));
                return Some(Claimed::Otherwise);
            }
        };
        let probe = key.probe();
        if !wait.given().is_zero() {
            // Waited for here, with no lock of what is in flight held.
            inner.core.peek_state(&probe, wait)?;
        }
        let mut stale = None;
        let look = || match inner.core.peek_state(&probe, Try)? {
            Lookup::Fresh(components) => Some(Some(inner.vector(components))),
            Lookup::Stale { value, past } => {
                stale = Some((inner.vector(value), past));
                Some(None)
            }
            Lookup::Absent => Some(None),
        };
        let (epoch, slot) = (inner.core.epoch(), leader.slot());
        let claimed = match inner.inflight.claim(&probe, epoch, &slot, look, || stored.clone())? {
            Claim::Found(vector) => {
                self.answer = Some(Ok(vector));
                return Some(Claimed::Otherwise);
            }
            Claim::Full => Claimed::Full,
            Claim::Joined(slot) => {
                inner.observer.joined();
                match ancestry.wait_for(slot.call.id()) {
                    Some(noted) => {
                        if !ancestry.is_empty() {
                            slot.call.hurry();
                        }
                        self.wait = Some(Wait::new(slot, noted));
                    }
                    None => self.answer = Some(Err(ErrorKind::Recursive.into())),
                }
                Claimed::Otherwise
            }
            Claim::Led(hash) => {
                // No call waits inside for what was not waited for yet, so this closes no circle.
                let noted = ancestry.wait_for(slot.call.id()).unwrap_or_default();
                self.wait = Some(Wait::new(slot.clone(), noted));
                leader.take(stored, hash, slot);
                self.asked = true;
                Claimed::Led
            }
        };
        // Stale while revalidate: whichever call loads it now, this caller does not wait for it.
        if let Some((vector, past)) = &stale
            && may_refresh
            && claimed != Claimed::Full
            && *past <= inner.stale_while_revalidate
        {
            inner.observer.served_stale();
            self.answer = Some(Ok(vector.clone()));
            self.wait = None;
        }
        self.stale = stale;
        Some(claimed)
    }
}

impl Wait {
    fn new(slot: CallSlot, noted: Waits) -> Self {
        Self { interest: Interest::new(&slot.call), slot, _noted: noted }
    }
}
