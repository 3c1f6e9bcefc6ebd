//! Going through the entries, the most used first, for writing them down.
//!
//! First a list of all slots is made, with what the policy says of each: under the read lock of one
//! shard at a time, 64 slots a lock hold. It is sorted with no lock held. Then the entries are taken
//! in that order, again 64 at a time. An entry that left in between is missed; one that took its slot
//! is taken in its place; one that moved to another slot may come twice. Each is live when it is
//! taken.

use std::time::Duration;

use super::ShardedCache;

use super::shard::BITE;
use super::table::slots::SlotId;
use super::table::{State, Table};
use super::wait::Forever;

/// Where an entry was found, and how hot it was.
#[derive(Debug, Clone, Copy)]
struct Listed {
    heat: u64,
    shard: u32,
    slot: SlotId,
}

/// An entry on its way out: key, value, and how long it will still be served.
pub(crate) type Exported<K, V> = (K, V, Option<Duration>);

/// An export under way, from [`ShardedCache::start_export`]. Between two steps nothing is locked.
#[derive(Debug)]
pub(crate) struct Export<'a, K, V, S> {
    cache: &'a ShardedCache<K, V, S>,
    /// The hottest last.
    listed: Vec<Listed>,
}

impl<K, V, S> ShardedCache<K, V, S> {
    /// Lists all entries, hottest first. `O(entries × log(entries))`; 16 bytes for each.
    pub(crate) fn start_export(&self) -> Export<'_, K, V, S> {
        let mut listed = Vec::with_capacity(self.len());
        for number in 0..self.shards.len() {
            self.list(number, &mut listed);
        }
        // Of equals the one in the lower slot comes first.
        listed.sort_unstable_by(|a, b| {
            a.heat.cmp(&b.heat).then_with(|| (b.shard, b.slot).cmp(&(a.shard, a.slot)))
        });
        Export { cache: self, listed }
    }

    fn list(&self, number: usize, listed: &mut Vec<Listed>) {
        let shard = &self.shards[number];
        let (mut from, mut until, mut newest) = (0, usize::MAX, None);
        while from < until {
            let Some(table) = shard.read(Forever) else { return };
            if !self.is_current(&table) {
                return;
            }
            // Those that come later are not listed: were the shard to grow as fast, that would never
            // end.
            until = until.min(table.slots());
            let newest = *newest.get_or_insert_with(|| table.newest());
            let bite = (from..(from + BITE).min(until)).filter_map(|place| table.entry_at(place));
            listed.extend(bite.map(|(slot, entry)| {
                let heat = table.heat(slot, entry, newest);
                Listed { heat, shard: number as u32, slot }
            }));
            from += BITE;
        }
    }
}

impl<K: Clone, V: Clone, S> Export<'_, K, V, S> {
    /// Adds up to 64 entries to `bite`, the next hottest; `false` at the end.
    pub(crate) fn step(&mut self, bite: &mut Vec<Exported<K, V>>) -> bool {
        let from = self.listed.len().saturating_sub(BITE);
        let mut next: Vec<Listed> = self.listed.drain(from..).rev().collect();
        if next.is_empty() {
            return false;
        }
        // Stable: those of one shard stay in their order.
        next.sort_by_key(|listed| listed.shard);
        bite.reserve(next.len());
        let now = self.cache.now_for_export();
        for group in next.chunk_by(|a, b| a.shard == b.shard) {
            let Some(shard) = self.cache.shards.get(group[0].shard as usize) else { continue };
            let Some(table) = shard.read(Forever) else { continue };
            if !self.cache.is_current(&table) {
                continue;
            }
            for listed in group {
                let Some((id, entry)) = table.entry_at(listed.slot.bits() as usize) else {
                    continue;
                };
                if table.state(id, entry, now) == State::Fresh {
                    let life = entry_life(&table, id, now);
                    bite.push((entry.key.clone(), entry.value.clone(), life));
                }
            }
        }
        true
    }
}

/// How long the entry in a slot will be served, however much it is used.
fn entry_life<K, V>(table: &Table<K, V>, id: SlotId, now: super::clock::Stamp) -> Option<Duration> {
    table.entry(id).and_then(|entry| table.time_to_live_left(entry, now))
}

/// The entries of a [`ShardedCache`], hottest first.
impl<K: Clone, V: Clone, S> Iterator for ExportIter<'_, K, V, S> {
    type Item = Exported<K, V>;

    fn next(&mut self) -> Option<Exported<K, V>> {
        loop {
            if let Some(entry) = self.bite.next() {
                return Some(entry);
            }
            let mut bite = Vec::new();
            if !self.export.step(&mut bite) {
                return None;
            }
            self.bite = bite.into_iter();
        }
    }
}

#[derive(Debug)]
pub(crate) struct ExportIter<'a, K, V, S> {
    export: Export<'a, K, V, S>,
    bite: std::vec::IntoIter<Exported<K, V>>,
}

impl<'a, K, V, S> IntoIterator for Export<'a, K, V, S>
where
    K: Clone,
    V: Clone,
{
    type Item = Exported<K, V>;
    type IntoIter = ExportIter<'a, K, V, S>;

    fn into_iter(self) -> ExportIter<'a, K, V, S> {
        ExportIter { export: self, bite: Vec::new().into_iter() }
    }
}
