//! A batch on its way: which of its keys are hits, which are claimed, which are waited for.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use crate::embedding::{EmbeddingCache, EmbeddingKey, Inner};
use crate::error::{CacheError, ErrorKind};
use crate::hasher::DefaultHashBuilder;
use crate::sharded::Sight;
use crate::vector::EmbeddingVector;

use super::Options;
use super::call::{Landing, Pulse};
use super::flights::{Claim, Seat};
use super::lead::Lead;
use super::output::{Answer, Missing};

/// How often a key whose call was abandoned by its caller is claimed anew. Each time another caller
/// has given up, so this is reached only where callers give up in droves.
const ROUNDS: u32 = 64;

/// A key that was not found, once for all places in the batch that name it.
#[derive(Debug)]
struct Item {
    /// The first place that names it.
    position: usize,
    /// Once it is known.
    answer: Option<Answer>,
    /// What the cache has of it that is past its time-to-live, and by how much.
    stale: Option<(EmbeddingVector, Duration)>,
    /// Where the answer will be.
    seat: Option<Seat>,
    /// Whether this caller's own closure was asked for it.
    asked: bool,
}

/// A call that this request has to make: the claimed keys, and what its closure is asked for.
pub(super) type Claimed<K, S> = (Lead<K, S>, Missing<K>);

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
        let mut request =
            Self { cache, keys, options, answers, missing, items: Vec::new(), rounds: 0 };
        if !request.missing.is_empty() {
            request.collect_items();
        }
        request
    }

    /// A batch of one that was looked up already, and not found.
    pub(super) fn missing(
        cache: &'a EmbeddingCache<K, S>,
        key: &'a [K; 1],
        options: Options,
    ) -> Self {
        let mut request = Self {
            cache,
            keys: key,
            options,
            answers: vec![Ok(EmbeddingVector::empty())],
            missing: vec![(0, 0)],
            items: Vec::new(),
            rounds: 0,
        };
        request.collect_items();
        request
    }

    /// One item for each distinct key that was not found.
    fn collect_items(&mut self) {
        let mut known =
            HashMap::with_capacity_and_hasher(self.missing.len(), DefaultHashBuilder::default());
        for (position, item) in &mut self.missing {
            *item = match known.entry(&self.keys[*position]) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(new) => {
                    let position = *position;
                    self.items.push(Item {
                        position,
                        answer: None,
                        stale: None,
                        seat: None,
                        asked: false,
                    });
                    *new.insert(self.items.len() - 1)
                }
            };
        }
    }

    /// Whether any answer is still to come.
    pub(super) fn is_open(&self) -> bool {
        self.items.iter().any(|item| item.answer.is_none())
    }

    /// Claims keys without an answer, or joins who has them, and returns the calls to make, of at
    /// most `max_batch` keys each. After too many rounds gives the rest up instead.
    ///
    /// Never waits while it holds a claim: a future that is dropped gives its claims back, but one
    /// that is kept and never polled again would keep them for ever. So where the lock of a shard is
    /// taken, it returns what it has, and goes on after those calls have landed.
    pub(super) async fn claim(&mut self, pulse: Option<&Arc<Pulse>>) -> Vec<Claimed<K, S>> {
        let inner = &self.cache.inner;
        let time_to_live = self.options.time_to_live;
        let begin = || {
            let lead = Lead::new(inner, pulse, inner.core.epoch(), time_to_live);
            (lead, Missing::new())
        };
        let mut calls = Vec::new();
        let mut call = begin();
        for item in &mut self.items {
            if item.answer.is_some() {
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
            let mut attempt = |slice| item.claim(inner, key, &mut call.0, pulse.is_none(), slice);
            let led = match attempt(Duration::ZERO) {
                None if holds_claims => break,
                None => inner.waiters.until(None, attempt).await,
                led => led,
            };
            if led == Some(true) {
                call.1.push(key.clone(), item.position);
            }
            if call.0.len() >= self.options.max_batch {
                calls.push(std::mem::replace(&mut call, begin()));
            }
        }
        if call.0.len() > 0 {
            calls.push(call);
        }
        calls
    }

    /// Waits for the calls that were claimed or joined. An item whose call was abandoned, or whose
    /// caller shows no sign of life, stays open.
    pub(super) async fn wait(&mut self) {
        let mut abandoned = false;
        for item in &mut self.items {
            let Some(seat) = item.seat.as_ref().filter(|_| item.answer.is_none()) else { continue };
            if !seat.call.wait().await {
                let probe = self.keys[item.position].probe();
                self.cache.inner.flights.give_up(&probe, seat);
            }
            item.land();
            abandoned |= item.answer.is_none();
        }
        self.rounds += u32::from(abandoned);
    }

    /// Takes what has landed; the rest has run out of time.
    pub(super) fn time_out(&mut self, waited: Duration) {
        for item in &mut self.items {
            item.land();
            if item.answer.is_none() {
                item.answer = Some(Err(ErrorKind::LoadTimeout { waited }.into()));
            }
        }
    }

    /// The same error for whatever is still to come.
    pub(super) fn fail(mut self, error: &CacheError) -> Vec<Answer> {
        for item in &mut self.items {
            item.answer.get_or_insert_with(|| Err(error.clone()));
        }
        self.finish()
    }

    /// The answers, in the order of the keys.
    pub(super) fn finish(mut self) -> Vec<Answer> {
        let inner = &self.cache.inner;
        for item in &mut self.items {
            // An old vector is better than an error: what it was made from has not changed.
            if let (Some(Err(_)), Some((vector, past))) = (&item.answer, &item.stale)
                && *past <= inner.stale_if_error
            {
                inner.observer.served_stale();
                item.answer = Some(Ok(vector.clone()));
            }
        }
        for (position, item) in self.missing {
            let answer = self.items[item].answer.clone();
            self.answers[position] =
                answer.unwrap_or_else(|| Err(ErrorKind::Abandoned { rounds: self.rounds }.into()));
        }
        self.answers
    }
}

impl Item {
    /// Takes the answer, if the call has landed with one.
    fn land(&mut self) {
        if self.answer.is_some() {
            return;
        }
        let Some(seat) = &self.seat else { return };
        if let Some(Landing::Answered(answers)) = seat.call.landing() {
            self.answer = answers.get(seat.place).cloned();
        }
    }

    /// Claims `key` for the next seat of `lead`, and says whether it is now led; `None` if the lock
    /// of its shard was not had. Waits for that at most `wait`, zero tries once.
    fn claim<K: EmbeddingKey, S: BuildHasher>(
        &mut self,
        inner: &Inner<K, S>,
        key: &K,
        lead: &mut Lead<K, S>,
        may_refresh: bool,
        wait: Duration,
    ) -> Option<bool> {
        let stored = match key.to_stored() {
            Ok(stored) => stored,
            Err(error) => {
                self.answer = Some(Err(error));
                return Some(false);
            }
        };
        let probe = key.probe();
        if !wait.is_zero() {
            // Waited for here, with no lock of the flights held.
            inner.core.look_slice(&probe, wait)?;
        }
        let mut stale = None;
        let look = || match inner.core.look_slice(&probe, Duration::ZERO)? {
            Sight::Fresh(components) => Some(Some(inner.vector(components))),
            Sight::Stale { value, past } => {
                stale = Some((inner.vector(value), past));
                Some(None)
            }
            Sight::Absent => Some(None),
        };
        let (epoch, seat) = (inner.core.epoch(), lead.seat());
        let claim = inner.flights.claim(&probe, epoch, &seat, look, || stored.clone())?;
        let led = match claim {
            Claim::Found(vector) => {
                self.answer = Some(Ok(vector));
                return Some(false);
            }
            Claim::Full => {
                let limit = inner.flights.limit();
                self.answer = Some(Err(ErrorKind::Overloaded { limit }.into()));
                false
            }
            Claim::Joined(seat) => {
                inner.observer.joined();
                self.seat = Some(seat);
                false
            }
            Claim::Led(hash) => {
                lead.take(stored, hash);
                self.seat = Some(seat);
                self.asked = true;
                true
            }
        };
        // Stale while revalidate: whoever loads it now, this caller does not wait for it.
        if let Some((vector, past)) = &stale
            && may_refresh
            && *past <= inner.stale_while_revalidate
        {
            inner.observer.served_stale();
            self.answer = Some(Ok(vector.clone()));
        }
        self.stale = stale;
        Some(led)
    }
}
