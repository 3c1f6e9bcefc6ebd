//! Entries in two generations, on the engine.
//!
//! A generation is a keyspace `gNUMBER`. The one with the highest number is written to; the one before
//! is read only. When the newer one is full, the older one is deleted, and a third begins. Deleting is
//! removing files: nothing is rewritten to make room.
//!
//! An entry is stored as the end of its life in milliseconds of Unix time, in 8 bytes, and its value.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use embedding_cache::tier::TierKey;
use fjall::{
    CompressionType, Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, PersistMode,
};

/// Entries wait in memory up to this, four times at most; then they are written to their place.
const MEMTABLE: u64 = 8 << 20;
/// Memtables that wait to be written. At four the engine makes the caller wait.
const MOST_SEALED: usize = 3;
/// The least that the engine allows.
const JOURNAL: u64 = 64 << 20;
/// Blocks and values that were read lately. What is read again soon is in the first tier.
const BLOCK_CACHE: u64 = 32 << 20;
/// Values are in files of their own from this many bytes on, and so all of them: compaction does not
/// rewrite them, and takes no room for twice of them.
const SEPARATE: u32 = 16;
/// What an entry takes beside its value: the key, in the value's file and in the tree, and the
/// places in between.
const OVERHEAD: u64 = 176;
/// What an entry takes of the tree, which compaction writes anew before the old one goes.
const IN_TREE: u64 = 96;

/// How long opening waits for the disk. Without room it would wait for ever.
const SETTLE: Duration = Duration::from_secs(5);

/// Where the engine's files are.
const FOLDER: &str = "store";
/// Where they are until they are whole.
const UNFINISHED: &str = "store.new";

/// One generation. A clone is another handle.
#[derive(Clone)]
pub(crate) struct Generation {
    pub(crate) number: u64,
    entries: Keyspace,
}

impl Generation {
    /// What is stored under `key`, with the 8 bytes before the value.
    pub(crate) fn get(&self, key: &TierKey) -> fjall::Result<Option<fjall::Slice>> {
        self.entries.get(key.to_bytes())
    }

    /// Writes what is in memory to its place, for a while at most.
    fn settle(&self) -> fjall::Result<()> {
        self.entries.rotate_memtable()?;
        let started = Instant::now();
        while self.entries.sealed_memtable_count() > 0 && started.elapsed() < SETTLE {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn contains(&self, key: &TierKey) -> fjall::Result<bool> {
        self.entries.contains_key(key.to_bytes())
    }
}

/// What readers look into. A clone is another handle.
#[derive(Clone)]
pub(crate) struct Generations {
    pub(crate) current: Generation,
    pub(crate) previous: Option<Generation>,
}

/// The engine with its generations.
pub(crate) struct Store {
    database: Database,
    generations: Generations,
    /// What was written to the current generation, as it will be on the disk.
    written: u64,
    /// How many entries that are.
    entries: u64,
    /// What of it was written since the memtable was changed.
    in_memory: u64,
}

impl Store {
    /// Opens what is in `directory`, or makes it. The caller holds the lock of the directory.
    pub(crate) fn open(directory: &Path) -> fjall::Result<Self> {
        let folder = directory.join(FOLDER);
        if !folder.try_exists()? {
            // Made under another name: the engine does not open what it has made in part.
            let unfinished = directory.join(UNFINISHED);
            if unfinished.try_exists()? {
                fs::remove_dir_all(&unfinished)?;
            }
            drop(database(&unfinished)?);
            fs::rename(&unfinished, &folder)?;
        }
        let database = database(&folder)?;
        let mut numbers: Vec<u64> = database
            .list_keyspace_names()
            .iter()
            .filter_map(|name| name.strip_prefix('g')?.parse().ok())
            .collect();
        numbers.sort_unstable();
        let current = generation(&database, numbers.pop().unwrap_or(1))?;
        let previous = match numbers.pop() {
            Some(number) => Some(generation(&database, number)?),
            None => None,
        };
        for older in numbers {
            database.delete_keyspace(generation(&database, older)?.entries)?;
        }
        // After a crash what was in the journals only is in memory again. In its place its size is
        // known, and the journals are given up, however often that happens.
        for generation in previous.iter().chain([&current]) {
            generation.settle()?;
        }
        let written = current.entries.disk_space();
        let entries = current.entries.approximate_len() as u64;
        let generations = Generations { current, previous };
        Ok(Self { database, generations, written, entries, in_memory: 0 })
    }

    pub(crate) fn generations(&self) -> Generations {
        self.generations.clone()
    }

    /// What the current generation takes at most, while compaction writes it anew.
    pub(crate) fn taken(&self) -> u64 {
        self.written + self.compacting()
    }

    /// What compaction may take for a while.
    pub(crate) fn compacting(&self) -> u64 {
        self.entries * IN_TREE
    }

    /// Whether so much waits to be written to its place that the engine would make the caller wait, and
    /// without end if its threads have failed.
    pub(crate) fn is_behind(&self) -> bool {
        self.generations.current.entries.sealed_memtable_count() >= MOST_SEALED
    }

    /// Whether the engine still takes writes.
    pub(crate) fn check(&self) -> fjall::Result<()> {
        self.database.persist(PersistMode::Buffer)
    }

    /// What may wait in memory, and will be on the disk twice until its journal is given up.
    pub(crate) fn unwritten(&self) -> u64 {
        let Generations { current, previous } = &self.generations;
        let sealed = |generation: &Generation| generation.entries.sealed_memtable_count() as u64;
        MEMTABLE * (1 + sealed(current) + previous.as_ref().map_or(0, sealed))
    }

    /// What an entry will take.
    pub(crate) fn size(value: &[u8]) -> u64 {
        value.len() as u64 + OVERHEAD
    }

    /// Stores entries as they are to be, all or none. They survive the process from then on.
    pub(crate) fn insert(
        &mut self,
        entries: impl IntoIterator<Item = (TierKey, Vec<u8>)>,
    ) -> fjall::Result<()> {
        let mut batch = self.database.batch().durability(Some(PersistMode::Buffer));
        let (mut bytes, mut number) = (0, 0);
        for (key, stored) in entries {
            bytes += Self::size(&stored);
            number += 1;
            batch.insert(&self.generations.current.entries, key.to_bytes(), stored);
        }
        batch.commit()?;
        self.written += bytes;
        self.entries += number;
        self.in_memory += bytes;
        if self.in_memory >= MEMTABLE {
            // The engine leaves this to a thread of its own. Where that is late, memory and journal
            // have no bound.
            self.generations.current.entries.rotate_memtable()?;
            self.in_memory = 0;
        }
        Ok(())
    }

    /// Copies what was read in generation `number` to the current one, unless something newer is
    /// there, or that generation is no longer the one before.
    pub(crate) fn copy_forward(
        &mut self,
        number: u64,
        entries: Vec<(TierKey, Vec<u8>)>,
    ) -> fjall::Result<()> {
        let Generations { current, previous } = &self.generations;
        if previous.as_ref().is_none_or(|previous| previous.number != number) {
            return Ok(());
        }
        let mut missing = Vec::with_capacity(entries.len());
        for (key, stored) in entries {
            if !current.contains(&key)? {
                missing.push((key, stored));
            }
        }
        self.insert(missing)
    }

    /// Deletes the older generation. Its files go when nobody reads in it and the journals that know
    /// it are given up.
    pub(crate) fn delete_previous(&mut self) -> fjall::Result<()> {
        match self.generations.previous.take() {
            Some(previous) => self.database.delete_keyspace(previous.entries),
            None => Ok(()),
        }
    }

    /// Begins a generation; the current one becomes the one before.
    pub(crate) fn begin_generation(&mut self) -> fjall::Result<()> {
        let next = generation(&self.database, self.generations.current.number + 1)?;
        let full = std::mem::replace(&mut self.generations.current, next);
        (self.written, self.entries, self.in_memory) = (0, 0, 0);
        // Nothing will be written to it any more, and until it is in its place the journals stay.
        let rotated = full.entries.rotate_memtable();
        self.generations.previous = Some(full);
        rotated.map(drop)
    }

    /// Returns when everything that was stored before is on the disk itself.
    pub(crate) fn sync(&self) -> fjall::Result<()> {
        self.database.persist(PersistMode::SyncAll)
    }
}

fn database(folder: &Path) -> fjall::Result<Database> {
    Database::builder(folder)
        .max_journaling_size(JOURNAL)
        .cache_size(BLOCK_CACHE)
        // Handed to the system once for each batch.
        .manual_journal_persist(true)
        .worker_threads(2)
        .open()
}

fn generation(database: &Database, number: u64) -> fjall::Result<Generation> {
    let options = || {
        let separation = KvSeparationOptions::default()
            .compression(CompressionType::None)
            .separation_threshold(SEPARATE);
        KeyspaceCreateOptions::default()
            .max_memtable_size(MEMTABLE)
            .manual_journal_persist(true)
            .with_kv_separation(Some(separation))
    };
    Ok(Generation { number, entries: database.keyspace(&format!("g{number}"), options)? })
}

/// Whether there is room for some more: writes a file of a mebibyte, and removes it.
pub(crate) fn try_room(directory: &Path) -> io::Result<()> {
    let path: PathBuf = directory.join("room");
    let written = fs::File::create(&path).and_then(|mut file| {
        file.write_all(&vec![0xEC; 1 << 20])?;
        file.sync_all()
    });
    let removed = fs::remove_file(&path);
    written.and(removed)
}
