//! The form of a vector in a second tier, byte by byte. `docs/tiers.md` has it as a table, and a
//! program in another language that comes to the same bytes: nothing here may change without a new
//! version.
//!
//! What is read comes from outside: whatever is not exactly a value that was written under the key
//! it was asked for is refused, with the reason.

use std::fmt;
use std::hash::Hasher;
use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use twox_hash::XxHash3_64;

use super::key::TierKey;

const MAGIC: [u8; 4] = *b"ECV1";
/// Bytes in front of the components.
pub(super) const HEADER: usize = 48;
/// Of the header, what the checksum and the signature cover.
const COVERED: usize = 24;
/// The most components of a value.
pub(super) const MOST_DIMENSIONS: usize = 65_536;
const SIGNED: u8 = 1;

/// How a component is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Precision {
    /// Four bytes: exactly as it is.
    #[default]
    Single,
    /// Two bytes: rounded.
    #[cfg(feature = "tier-f16")]
    Half,
}

impl Precision {
    fn number(self) -> u8 {
        match self {
            Self::Single => 0,
            #[cfg(feature = "tier-f16")]
            Self::Half => 1,
        }
    }

    fn of_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Single),
            #[cfg(feature = "tier-f16")]
            1 => Some(Self::Half),
            _ => None,
        }
    }

    /// Bytes of a component.
    fn width(self) -> usize {
        match self {
            Self::Single => 4,
            #[cfg(feature = "tier-f16")]
            Self::Half => 2,
        }
    }

    /// Single, where a component is beyond what a half can hold.
    #[cfg(feature = "tier-f16")]
    fn fitting(self, components: &[f32]) -> Self {
        let fits = |x: &f32| x.abs() <= half::f16::MAX.to_f32() || !x.is_finite();
        if components.iter().all(fits) { self } else { Self::Single }
    }

    #[cfg(not(feature = "tier-f16"))]
    fn fitting(self, _: &[f32]) -> Self {
        self
    }
}

/// Why a value was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Rejected {
    /// It does not begin as a value of this version does.
    Foreign,
    /// It is longer or shorter than it says.
    Length,
    /// Its components are of a type that is not known here.
    Type,
    /// No component, or more than a value may have.
    Dimensions,
    /// Its checksum is that of other bytes, or of another key.
    Checksum,
    /// It is not signed with the secret.
    Signature,
    /// Its life is over.
    Expired,
    /// It is a good value of a vector that this cache does not take.
    Admission,
}

/// The secret that signs values. Never shown.
#[derive(Clone)]
pub(super) struct Secret(Hmac<Sha256>);

impl Secret {
    pub(super) fn new(secret: &[u8]) -> Self {
        match Hmac::new_from_slice(secret) {
            Ok(hmac) => Self(hmac),
            Err(error) => unreachable!("HMAC takes keys of any length: {error}"),
        }
    }

    fn over(&self, covered: &[&[u8]]) -> Hmac<Sha256> {
        covered.iter().fold(self.0.clone(), |mac, part| mac.chain_update(part))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Writes and reads values.
#[derive(Debug, Clone, Default)]
pub(super) struct Format {
    pub(super) precision: Precision,
    /// With one, every value is signed and none without is read.
    pub(super) secret: Option<Secret>,
}

impl Format {
    /// What `components` are once they were written and read, where that is something else.
    pub(super) fn rounded(&self, components: &[f32]) -> Option<Arc<[f32]>> {
        match self.precision.fitting(components) {
            Precision::Single => None,
            #[cfg(feature = "tier-f16")]
            Precision::Half => {
                Some(components.iter().map(|&x| half::f16::from_f32(x).to_f32()).collect())
            }
        }
    }

    /// The value of `components` under `key`, good until `expires_at` in Unix milliseconds; 0 is
    /// for ever. `None` if it has no component or too many. One allocation; `O(dimensions)`.
    pub(super) fn encode(
        &self,
        key: &TierKey,
        components: &[f32],
        expires_at: u64,
    ) -> Option<Vec<u8>> {
        let dimensions = components.len();
        if dimensions == 0 || dimensions > MOST_DIMENSIONS {
            return None;
        }
        let precision = self.precision.fitting(components);
        let mut value = Vec::with_capacity(HEADER + precision.width() * dimensions);
        value.extend_from_slice(&MAGIC);
        let flags = if self.secret.is_some() { SIGNED } else { 0 };
        value.extend_from_slice(&[precision.number(), flags, 0, 0]);
        value.extend_from_slice(&(dimensions as u32).to_le_bytes());
        value.extend_from_slice(&[0; 4]);
        value.extend_from_slice(&expires_at.to_le_bytes());
        value.extend_from_slice(&[0; HEADER - COVERED]);
        value.resize(HEADER + precision.width() * dimensions, 0);
        let payload = &mut value[HEADER..];
        match precision {
            Precision::Single => {
                let places = payload.as_chunks_mut().0.iter_mut().zip(components);
                places.for_each(|(place, x)| *place = x.to_le_bytes());
            }
            #[cfg(feature = "tier-f16")]
            Precision::Half => {
                let places = payload.as_chunks_mut().0.iter_mut().zip(components);
                places.for_each(|(place, &x)| *place = half::f16::from_f32(x).to_le_bytes());
            }
        }
        let key = key.to_bytes();
        let covered = covered(&key, &value);
        let signature = self.secret.as_ref().map(|secret| sign(secret, &covered));
        let checksum = checksum(&covered);
        value[24..32].copy_from_slice(&checksum.to_le_bytes());
        value[32..48].copy_from_slice(&signature.unwrap_or_default());
        Some(value)
    }

    /// The components and the expiry of a value that was found under `key` at `now`, in Unix
    /// milliseconds. Three allocations; `O(dimensions)`.
    pub(super) fn decode(
        &self,
        key: &TierKey,
        value: &[u8],
        now: u64,
    ) -> Result<(Arc<[f32]>, u64), Rejected> {
        let Some((header, payload)) = value.split_first_chunk::<HEADER>() else {
            return Err(Rejected::Length);
        };
        if !header.starts_with(&MAGIC) {
            return Err(Rejected::Foreign);
        }
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| header[at + byte]));
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let Some(precision) = Precision::of_number(header[4]) else {
            return Err(Rejected::Type);
        };
        let signed = match header[5] {
            0 => false,
            SIGNED => true,
            _ => return Err(Rejected::Foreign),
        };
        if header[6..8] != [0; 2] || header[12..16] != [0; 4] {
            return Err(Rejected::Foreign);
        }
        let dimensions = word(8) as usize;
        if dimensions == 0 || dimensions > MOST_DIMENSIONS {
            return Err(Rejected::Dimensions);
        }
        if payload.len() != dimensions * precision.width() {
            return Err(Rejected::Length);
        }
        let key = key.to_bytes();
        let covered = covered(&key, value);
        if checksum(&covered) != long(24) {
            return Err(Rejected::Checksum);
        }
        let signature = &header[32..48];
        match &self.secret {
            Some(secret) if signed => {
                let mac = secret.over(&covered);
                mac.verify_truncated_left(signature).map_err(|_| Rejected::Signature)?;
            }
            Some(_) => return Err(Rejected::Signature),
            // Whoever has no secret cannot tell a signature from noise, but knows what none is.
            None if !signed && *signature != [0; 16] => return Err(Rejected::Foreign),
            None => {}
        }
        let expires_at = long(16);
        if expires_at != 0 && expires_at <= now {
            return Err(Rejected::Expired);
        }
        let components = match precision {
            Precision::Single => {
                payload.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
            }
            #[cfg(feature = "tier-f16")]
            Precision::Half => {
                let halves = payload.as_chunks().0.iter();
                halves.map(|bytes| half::f16::from_le_bytes(*bytes).to_f32()).collect()
            }
        };
        Ok((components, expires_at))
    }
}

/// What checksum and signature are over: the header without them, the key, the components.
fn covered<'a>(key: &'a [u8; TierKey::LEN], value: &'a [u8]) -> [&'a [u8]; 3] {
    [&value[..COVERED], key, &value[HEADER..]]
}

fn checksum(covered: &[&[u8]]) -> u64 {
    let mut hash = XxHash3_64::new();
    covered.iter().for_each(|part| hash.write(part));
    hash.finish()
}

fn sign(secret: &Secret, covered: &[&[u8]]) -> [u8; 16] {
    let whole: [u8; 32] = secret.over(covered).finalize().into_bytes().into();
    let mut cut = [0; 16];
    cut.copy_from_slice(&whole[..16]);
    cut
}

#[cfg(test)]
mod tests;
