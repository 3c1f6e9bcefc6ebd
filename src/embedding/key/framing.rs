//! What is hashed for a key, byte by byte. `docs/keys.md` has it as a table, and a program in another
//! language that must come to the same keys: nothing here may change without a new version.

use sha2::{Digest, Sha256};

/// Begins what is hashed; the version is that of the whole framing.
const DOMAIN: &str = "embedding-cache key v1";

/// The kinds of fields, in the order in which they are written.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
pub(super) enum Field {
    Model = 1,
    Revision = 2,
    Role = 3,
    Prompt = 4,
    Dimensions = 5,
    Normalize = 6,
    Truncation = 7,
    Tenant = 8,
    Text = 16,
    Tokens = 17,
    Bytes = 18,
}

/// SHA-256 over fields, each as its tag, its length and its bytes. So what is hashed can be read back
/// in one way only, and different fields are different bytes.
///
/// SHA-256: FIPS 180-4, National Institute of Standards and Technology, 2015.
#[derive(Debug, Clone)]
pub(super) struct Framing(Sha256);

impl Framing {
    pub(super) fn new() -> Self {
        Self(Sha256::new_with_prefix(DOMAIN))
    }

    pub(super) fn field(&mut self, field: Field, bytes: &[u8]) {
        self.head(field, bytes.len());
        self.0.update(bytes);
    }

    pub(super) fn tokens(&mut self, tokens: &[u32]) {
        // No overflow: a slice in memory has at most `isize::MAX` bytes.
        self.head(Field::Tokens, size_of_val(tokens));
        // A few at a time: an update costs more than four bytes are worth.
        let mut block = [0; 256];
        for tokens in tokens.chunks(block.len() / 4) {
            for (place, token) in block.chunks_exact_mut(4).zip(tokens) {
                place.copy_from_slice(&token.to_le_bytes());
            }
            self.0.update(&block[..4 * tokens.len()]);
        }
    }

    fn head(&mut self, field: Field, len: usize) {
        self.0.update([field as u8]);
        self.0.update((len as u64).to_le_bytes());
    }

    pub(super) fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }

    /// The beginning of the digest of a name, under a domain of its own.
    pub(super) fn digest_of(domain: &str, name: impl AsRef<[u8]>) -> [u8; 4] {
        let digest: [u8; 32] = Sha256::new_with_prefix(domain).chain_update(name).finalize().into();
        let [a, b, c, d, ..] = digest;
        [a, b, c, d]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Token by token and block by block are the same, at every length around a block's.
    #[test]
    fn tokens_are_their_bytes_one_after_the_other() {
        let lengths = if cfg!(miri) { vec![0, 1, 65] } else { (0..200).collect() };
        for len in lengths {
            let tokens: Vec<u32> = (0..len).map(|i: u32| i.wrapping_mul(0x9E37_79B9)).collect();
            let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
            let (mut blocks, mut whole) = (Framing::new(), Framing::new());
            blocks.tokens(&tokens);
            whole.field(Field::Tokens, &bytes);
            assert_eq!(blocks.finish(), whole.finish(), "{len} tokens");
        }
    }
}
