//! What clients ask for, and what they must get: the batches, the keys, the reference vectors.

use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use embedding_cache::CacheKey;
use rand::seq::SliceRandom;
use rand::{SeedableRng, rngs::SmallRng};
use rand_distr::{Distribution, Zipf};

use crate::corpus::{Corpus, Paragraph};
use crate::embedder::{DIMENSIONS, MODEL, embed};

/// The requests of a run. Batch number n holds the same paragraphs in every mode, at every task
/// count and in every run with the same corpus and seed, so that all modes do the same work.
pub(crate) struct Workload {
    pub(crate) corpus: Corpus,
    /// A key for each paragraph; a server makes it once per request, outside the cache.
    keys: Vec<CacheKey>,
    /// A fresh computation for each paragraph, which never was in a cache.
    reference: Vec<Vec<f32>>,
    popularity: Zipf<f64>,
    seed: u64,
}

impl Workload {
    /// Shuffles the paragraphs, so that popularity has nothing to do with the order of the files,
    /// and embeds each one, on `threads` threads.
    pub(crate) fn new(mut corpus: Corpus, zipf: f64, seed: u64, threads: usize) -> Self {
        corpus.paragraphs.shuffle(&mut SmallRng::seed_from_u64(seed));
        let paragraphs = &corpus.paragraphs;
        let keys = paragraphs.iter().map(|p| CacheKey::new(digest(&p.text), MODEL)).collect();
        let reference = embed_all(paragraphs, threads);
        let popularity = Zipf::new(paragraphs.len() as f64, zipf)
            .expect("there is a paragraph, and the command line takes no negative exponent");
        Self { corpus, keys, reference, popularity, seed }
    }

    /// How many distinct paragraphs there are.
    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(crate) fn text(&self, paragraph: usize) -> &str {
        &self.corpus.paragraphs[paragraph].text
    }

    pub(crate) fn key(&self, paragraph: usize) -> &CacheKey {
        &self.keys[paragraph]
    }

    /// Draws the paragraphs of a batch by their popularity. One may come twice: clients do not
    /// know of each other.
    pub(crate) fn draw(&self, batch: u64, paragraphs: &mut [usize]) {
        let mut random = SmallRng::seed_from_u64(self.seed.rotate_left(32) ^ batch);
        for paragraph in paragraphs {
            // Ranks begin at 1, the most popular one.
            *paragraph = self.popularity.sample(&mut random) as usize - 1;
        }
    }

    /// What the embedder takes for a paragraph that is asked for, on average, on one core.
    pub(crate) fn measure_embedder(&self) -> Duration {
        const SAMPLE: usize = 4096;
        const ENOUGH: Duration = Duration::from_millis(200);

        let mut paragraphs = [0; SAMPLE];
        self.draw(u64::MAX, &mut paragraphs);
        let start = Instant::now();
        let mut embedded = 0;
        while embedded < SAMPLE && start.elapsed() < ENOUGH {
            black_box(embed(self.text(paragraphs[embedded])));
            embedded += 1;
        }
        start.elapsed().div_f64(embedded as f64)
    }

    /// Compares a vector with the fresh one, bit for bit; describes what differs.
    pub(crate) fn verify(&self, paragraph: usize, returned: &[f32]) -> Result<(), String> {
        let fresh = &self.reference[paragraph];
        let bits = |(a, b): (&f32, &f32)| a.to_bits() ^ b.to_bits();
        let difference = fresh.iter().zip(returned).map(bits).fold(0, |all, one| all | one);
        if difference == 0 && returned.len() == DIMENSIONS {
            return Ok(());
        }
        let place = self.corpus.place(&self.corpus.paragraphs[paragraph]);
        Err(match fresh.iter().zip(returned).position(|pair| bits(pair) != 0) {
            Some(i) => format!(
                "{place}: component {i} is {:?}, a fresh computation gives {:?}",
                returned[i], fresh[i]
            ),
            None => format!("{place}: {} components, not {DIMENSIONS}", returned.len()),
        })
    }
}

/// The vectors of all paragraphs.
fn embed_all(paragraphs: &[Paragraph], threads: usize) -> Vec<Vec<f32>> {
    let embed_some = |some: &[Paragraph]| some.iter().map(|p| embed(&p.text)).collect::<Vec<_>>();
    let shares = paragraphs.chunks(paragraphs.len().div_ceil(threads));
    thread::scope(|scope| {
        let running: Vec<_> = shares.map(|share| scope.spawn(move || embed_some(share))).collect();
        running.into_iter().flat_map(|part| part.join().expect("embedding never panics")).collect()
    })
}

/// 128 bits of FNV-1a, in hexadecimal: without a dependency, and enough for a corpus that nobody
/// has made to deceive. Here a collision would be found, as every vector is verified.
///
/// A server has no such check and takes texts from strangers: there use SHA-256 or BLAKE3, or one
/// client can make the cache give another client's text a wrong vector.
fn digest(text: &str) -> String {
    let fnv = |hash: u128, byte| (hash ^ u128::from(byte)).wrapping_mul((1 << 88) + 0x13b);
    format!("{:032x}", text.bytes().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, fnv))
}
