//! Where requests come from: recorded traces, and seeded synthetic ones made here.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, Zipf};

use crate::options::Options;

const SEED: u64 = 0x7ace;
const ENDING: &str = ".u32.zst";

pub(super) enum Source {
    Recorded { name: String, path: PathBuf },
    Synthetic { name: &'static str, make: Make, size: Size },
}

type Make = fn(&mut SmallRng, Size) -> Vec<u32>;

/// Of a synthetic trace.
#[derive(Clone, Copy)]
pub(super) struct Size {
    keys: usize,
    requests: usize,
}

/// The recorded traces, the largest first, so that none is begun last; then the synthetic ones.
pub(super) fn all(options: &Options) -> Vec<Source> {
    let mut sources = options.traces.as_deref().map_or_else(Vec::new, recorded);
    let size =
        Size { keys: options.size(100_000, 2_000), requests: options.size(1_000_000, 20_000) };
    let synthetic: [(&str, Make); 10] = [
        ("zipf 0.7", |random, size| zipf(random, size, 0.7)),
        ("zipf 0.9", |random, size| zipf(random, size, 0.9)),
        ("zipf 1.1", |random, size| zipf(random, size, 1.1)),
        ("zipf and scans", zipf_and_scans),
        ("loop", in_a_loop),
        ("loop and zipf", loop_and_zipf),
        ("drift", drift),
        ("changing hot set", changing_hot_set),
        ("re-embedding", re_embedding),
        ("re-embedding and queries", re_embedding_and_queries),
    ];
    let synthetic = synthetic.map(|(name, make)| Source::Synthetic { name, make, size });
    sources.extend(synthetic);
    sources
}

fn recorded(directory: &Path) -> Vec<Source> {
    let mut found = Vec::new();
    match fs::read_dir(directory) {
        Err(error) => eprintln!("hit-ratio: no traces from {}: {error}", directory.display()),
        Ok(entries) => {
            for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                if let Some(name) = name.strip_suffix(ENDING) {
                    let bytes = fs::metadata(&path).map_or(0, |metadata| metadata.len());
                    found.push((bytes, name.to_owned(), path));
                }
            }
        }
    }
    found.sort_by(|a, b| (b.0, &a.1).cmp(&(a.0, &b.1)));
    found.into_iter().map(|(_, name, path)| Source::Recorded { name, path }).collect()
}

impl Source {
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Recorded { name, .. } => name,
            Self::Synthetic { name, .. } => name,
        }
    }

    pub(super) fn group(&self) -> &'static str {
        match self {
            Self::Recorded { .. } => "public",
            Self::Synthetic { .. } => "synthetic",
        }
    }

    /// Ids, numbered densely by first appearance.
    pub(super) fn requests(&self) -> io::Result<Vec<u32>> {
        let requests = match self {
            Self::Recorded { path, .. } => read(path)?,
            Self::Synthetic { make, size, .. } => make(&mut SmallRng::seed_from_u64(SEED), *size),
        };
        let mut numbers = HashMap::new();
        let dense = |id| {
            let next = numbers.len() as u32;
            *numbers.entry(id).or_insert(next)
        };
        Ok(requests.into_iter().map(dense).collect())
    }
}

fn read(path: &Path) -> io::Result<Vec<u32>> {
    let mut bytes = Vec::new();
    zstd::Decoder::new(File::open(path)?)?.read_to_end(&mut bytes)?;
    if !bytes.len().is_multiple_of(4) {
        let why = format!("{} bytes are no sequence of u32", bytes.len());
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    let id = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    Ok(bytes.chunks_exact(4).map(id).collect())
}

/// Writes a small trace as a file, to see that it is read.
pub(crate) fn write_sample(directory: &Path) -> io::Result<()> {
    let size = Size { keys: 2_000, requests: 10_000 };
    let trace = zipf_and_scans(&mut SmallRng::seed_from_u64(SEED), size);
    let bytes: Vec<u8> = trace.into_iter().flat_map(u32::to_le_bytes).collect();
    let file = directory.join(format!("sample{ENDING}"));
    fs::write(file, zstd::encode_all(&*bytes, 0)?)
}

/// Ranks from 0 on.
fn ranks(keys: usize, exponent: f64) -> impl Fn(&mut SmallRng) -> u32 {
    let popularity = Zipf::new(keys.max(1) as f64, exponent).expect("a valid distribution");
    move |random| popularity.sample(random) as u32 - 1
}

fn zipf(random: &mut SmallRng, Size { keys, requests }: Size, exponent: f64) -> Vec<u32> {
    let rank = ranks(keys, exponent);
    (0..requests).map(|_| rank(random)).collect()
}

/// Popular keys; now and then a scan over keys that are not asked for otherwise: a batch job that
/// reads through an archive beside the queries.
fn zipf_and_scans(random: &mut SmallRng, Size { keys, requests }: Size) -> Vec<u32> {
    let rank = ranks(keys / 2, 0.9);
    let (mut trace, mut scanned) = (Vec::with_capacity(requests), 0);
    while trace.len() < requests {
        trace.extend((0..keys / 4).map(|_| rank(random)));
        // A tenth of the keys in a row, the next tenth the next time.
        let scan = (0..keys / 20).map(|step| (keys / 2 + (scanned + step) % (keys / 2)) as u32);
        trace.extend(scan);
        scanned += keys / 20;
    }
    trace.truncate(requests);
    trace
}

/// All keys in the same order over and over: the worst for LRU.
fn in_a_loop(_: &mut SmallRng, Size { keys, requests }: Size) -> Vec<u32> {
    (0..requests).map(|at| (at % (keys / 4)) as u32).collect()
}

fn loop_and_zipf(random: &mut SmallRng, Size { keys, requests }: Size) -> Vec<u32> {
    let rank = ranks(keys / 2, 0.9);
    let mut at = 0;
    let mut one = || {
        if random.random_bool(0.5) {
            return rank(random);
        }
        at += 1;
        (keys / 2 + at % (keys / 4)) as u32
    };
    (0..requests).map(|_| one()).collect()
}

/// What is popular moves on slowly: yesterday's news.
fn drift(random: &mut SmallRng, Size { keys, requests }: Size) -> Vec<u32> {
    let rank = ranks(keys / 2, 0.9);
    let one = |at: usize| (at * (keys / 2) / requests) as u32 + rank(random);
    (0..requests).map(one).collect()
}

/// Eight times, all that was popular is popular no more.
fn changing_hot_set(random: &mut SmallRng, Size { keys, requests }: Size) -> Vec<u32> {
    let rank = ranks(keys / 8, 0.9);
    let one = |at: usize| (at * 8 / requests * (keys / 8)) as u32 + rank(random);
    (0..requests).map(one).collect()
}

/// An index that is built anew: document after document, each of some paragraphs, most of which are
/// as they were the last time, and some that many documents share.
fn re_embedding(random: &mut SmallRng, Size { keys, requests }: Size) -> Vec<u32> {
    const PARAGRAPHS: usize = 20;
    const SHARED: u32 = 200;
    let shared = ranks(SHARED as usize, 0.8);
    let documents = (keys / 4 / PARAGRAPHS).max(1);
    let mut fresh = SHARED;
    let mut new = || {
        fresh += 1;
        fresh
    };
    let mut index: Vec<Vec<u32>> =
        (0..documents).map(|_| (0..PARAGRAPHS).map(|_| new()).collect()).collect();
    let mut trace = Vec::with_capacity(requests);
    while trace.len() < requests {
        for document in &mut index {
            // In one pass out of four a document was edited.
            if random.random_bool(0.25) {
                let edited = random.random_range(0..PARAGRAPHS);
                document[edited] = new();
            }
            trace.push(shared(random));
            trace.extend(&*document);
        }
    }
    trace.truncate(requests);
    trace
}

/// The same, with queries in between, which are popular or not.
fn re_embedding_and_queries(random: &mut SmallRng, size: Size) -> Vec<u32> {
    let half = Size { requests: size.requests / 2, ..size };
    let documents = re_embedding(random, half);
    let rank = ranks(size.keys / 2, 1.0);
    let after = documents.iter().copied().max().unwrap_or(0) + 1;
    // A batch of documents, then queries.
    let mut trace = Vec::with_capacity(size.requests);
    for batch in documents.chunks(64) {
        trace.extend(batch);
        trace.extend((0..batch.len()).map(|_| after + rank(random)));
    }
    trace
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn synthetic_traces_are_the_same_each_time_and_dense() {
        let size = Size { keys: 2_000, requests: 5_000 };
        let makes: [Make; 3] = [zipf_and_scans, re_embedding, re_embedding_and_queries];
        for make in makes {
            let source = Source::Synthetic { name: "one", make, size };
            let requests = source.requests().unwrap();
            assert_eq!(requests, source.requests().unwrap());
            let mut next = 0;
            for &id in &requests {
                assert!(id <= next, "{id} before {next}");
                next += u32::from(id == next);
            }
        }
    }
}
