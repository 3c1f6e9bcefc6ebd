//! A real embedder without a model: hashed word n-grams, as in feature hashing (Weinberger et al.,
//! ICML 2009). Texts that share words and phrases get vectors with a large dot product.
//!
//! To try a model of your own, replace [`embed`] and [`MODEL`]; nothing else knows what is inside.

/// Components of a vector.
pub(crate) const DIMENSIONS: usize = 768;

/// The model's name in the cache keys. Change it with anything that changes a vector.
pub(crate) const MODEL: &str = "hashed-ngrams-768@1";

/// The longest run of words that makes a feature.
const LONGEST_GRAM: usize = 3;

/// Embeds a text: lower-cased words, their runs of one, two and three, each added to one component
/// with a sign, both chosen by hash; damped by the square root and scaled to length 1.
///
/// Deterministic: the same text gives the same bits, on every machine and in every run. Never
/// empty, never zero, never NaN. It is plain CPU work of some microseconds, so the tasks call it
/// inline; a model server would be awaited there.
pub(crate) fn embed(text: &str) -> Vec<f32> {
    let mut vector = vec![0.0; DIMENSIONS];
    // The hashes of the grams that end at the latest word: 1 word, 2 words, 3 words.
    let mut grams = [0_u64; LONGEST_GRAM];
    let mut words = 0;
    for_each_word_hash(text, |word| {
        words += 1;
        // Backwards, because a gram of n words is the gram of n - 1 up to the word before, extended.
        for n in (0..LONGEST_GRAM).rev() {
            let prefix = if n == 0 { 0 } else { grams[n - 1] };
            grams[n] = mix(prefix.rotate_left(23) ^ word);
            if n < words {
                add_feature(&mut vector, grams[n]);
            }
        }
    });

    // A hundred repetitions of a word say less than a hundred times as much.
    for x in &mut vector {
        *x = x.signum() * x.abs().sqrt();
    }
    if vector.iter().all(|x| *x == 0.0) {
        // No words, or features that cancel each other out: the text as it stands is the feature.
        let whole = text.bytes().fold(FNV_OFFSET, |hash, byte| fnv(hash, u64::from(byte)));
        add_feature(&mut vector, mix(whole));
    }
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    for x in &mut vector {
        *x /= length;
    }
    vector
}

/// Adds +1 or -1 to the component that the hash selects. The signs make features that collide in a
/// component cancel out on average instead of adding up.
fn add_feature(vector: &mut [f32], hash: u64) {
    let component = (hash % DIMENSIONS as u64) as usize;
    vector[component] += if hash >> 63 == 0 { 1.0 } else { -1.0 };
}

/// Calls `visit` with a hash of each word: a run of letters and digits, in lower case.
fn for_each_word_hash(text: &str, mut visit: impl FnMut(u64)) {
    let mut word = None;
    for c in text.chars() {
        if c.is_alphanumeric() {
            let hash = word.unwrap_or(FNV_OFFSET);
            word = Some(c.to_lowercase().fold(hash, |hash, c| fnv(hash, u64::from(c))));
        } else if let Some(hash) = word.take() {
            visit(hash);
        }
    }
    if let Some(hash) = word {
        visit(hash);
    }
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

/// One step of FNV-1a, over whole characters instead of bytes.
fn fnv(hash: u64, unit: u64) -> u64 {
    (hash ^ unit).wrapping_mul(0x0000_0100_0000_01b3)
}

/// The finaliser of `SplitMix64`: spreads what FNV leaves in a few bits over all of them.
fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}
