//! The bytes of a snapshot. `docs/tiers.md` has them as a table: nothing here may change without a
//! new version.
//!
//! A file is a header, blocks of records, and an end block. Each carries a digest of its own, so that
//! one that was damaged is known and the others are good all the same. What is read is hostile until
//! its digest is right, and its lengths after that as well: every length is compared with a constant
//! before anything is allocated by it.

use std::io::{self, ErrorKind as IoKind, Read};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::embedding::EmbeddingKey;

pub(super) const MAGIC: [u8; 8] = *b"ECSNAP\r\n";
pub(super) const VERSION: u32 = 1;
/// Bytes of the header before its extension.
const HEADER: usize = 44;
/// Bytes before the payload of a block.
pub(super) const BLOCK_HEADER: usize = 24;
/// The most bytes of a payload, and of the header's extension.
pub(super) const MOST_PAYLOAD: usize = 1 << 20;
/// The most components of a vector.
pub(super) const MOST_DIMENSIONS: usize = 65_536;
/// The only type of a component: `f32`.
const SINGLE: u8 = 0;

/// What a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Records = 1,
    End = 2,
}

/// The first 16 bytes of SHA-256 over `parts`.
fn digest(parts: [&[u8]; 3]) -> [u8; 16] {
    let mut hash = Sha256::new();
    parts.iter().for_each(|part| hash.update(part));
    let whole: [u8; 32] = hash.finalize().into();
    let mut first = [0; 16];
    first.copy_from_slice(&whole[..16]);
    first
}

/// What a file says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) key_kind: u8,
    /// In Unix milliseconds.
    pub(super) created: u64,
    /// The nonces of a second tier at that time; empty without one.
    pub(super) namespaces: Vec<u8>,
}

/// Why a file cannot be loaded at all.
#[derive(Debug)]
pub(super) enum BadHeader {
    Io(io::Error),
    NotASnapshot,
    Version(u32),
    Damaged,
}

impl Header {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.namespaces.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[self.key_kind, 0, 0, 0]);
        bytes.extend_from_slice(&self.created.to_le_bytes());
        bytes.extend_from_slice(&(self.namespaces.len() as u32).to_le_bytes());
        let digest = digest([&bytes, &self.namespaces, &[]]);
        bytes.extend_from_slice(&digest);
        bytes.extend_from_slice(&self.namespaces);
        bytes
    }

    pub(super) fn read(from: &mut impl Read) -> Result<Self, BadHeader> {
        let mut fixed = [0; HEADER];
        let missing = |error: io::Error| match error.kind() {
            IoKind::UnexpectedEof => BadHeader::NotASnapshot,
            _ => BadHeader::Io(error),
        };
        from.read_exact(&mut fixed).map_err(missing)?;
        if !fixed.starts_with(&MAGIC) {
            return Err(BadHeader::NotASnapshot);
        }
        let version = word(&fixed, 8);
        if version != VERSION {
            return Err(BadHeader::Version(version));
        }
        let length = word(&fixed, 24) as usize;
        if length > MOST_PAYLOAD {
            return Err(BadHeader::Damaged);
        }
        let mut namespaces = Vec::new();
        read_payload(from, length, &mut namespaces).map_err(BadHeader::Io)?;
        if namespaces.len() != length || digest([&fixed[..28], &namespaces, &[]]) != fixed[28..] {
            return Err(BadHeader::Damaged);
        }
        let created = u64::from(word(&fixed, 16)) | u64::from(word(&fixed, 20)) << 32;
        Ok(Self { key_kind: fixed[12], created, namespaces })
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([0, 1, 2, 3].map(|byte| bytes[at + byte]))
}

/// Reads up to `length` bytes into `payload`; fewer at the end of the file.
fn read_payload(from: &mut impl Read, length: usize, payload: &mut Vec<u8>) -> io::Result<()> {
    payload.clear();
    // Never reserves more than is there, but for what a vector grows by.
    from.take(length as u64).read_to_end(payload)?;
    Ok(())
}

/// What stands before the payload of the block with this number.
pub(super) fn block_header(kind: Kind, number: u64, payload: &[u8]) -> [u8; BLOCK_HEADER] {
    let mut header = [0; BLOCK_HEADER];
    header[0] = kind as u8;
    header[4..8].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    let digest = digest([&number.to_le_bytes(), &header[..8], payload]);
    header[8..].copy_from_slice(&digest);
    header
}

/// A block as it was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Block {
    /// Records, in the payload.
    Records,
    /// The end, with the number of records.
    End(u64),
    /// Its digest is of something else.
    Damaged,
    /// No further block can be found: the file ends here, or a length is impossible.
    Lost,
}

/// Reads the block with this number.
pub(super) fn read_block(
    from: &mut impl Read,
    number: u64,
    payload: &mut Vec<u8>,
) -> io::Result<Block> {
    let mut header = [0; BLOCK_HEADER];
    match from.read_exact(&mut header) {
        Ok(()) => {}
        Err(error) if error.kind() == IoKind::UnexpectedEof => return Ok(Block::Lost),
        Err(error) => return Err(error),
    }
    let length = word(&header, 4) as usize;
    if length > MOST_PAYLOAD {
        return Ok(Block::Lost);
    }
    read_payload(from, length, payload)?;
    if payload.len() != length {
        return Ok(Block::Lost);
    }
    if digest([&number.to_le_bytes(), &header[..8], payload]) != header[8..] {
        return Ok(Block::Damaged);
    }
    Ok(match header[0] {
        kind if kind == Kind::Records as u8 && header[1..4] == [0; 3] => Block::Records,
        kind if kind == Kind::End as u8 && header[1..4] == [0; 3] && length == 8 => {
            Block::End(u64::from(word(payload, 0)) | u64::from(word(payload, 4)) << 32)
        }
        _ => Block::Damaged,
    })
}

/// An entry as it is written.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Record<K> {
    pub(super) key: K,
    pub(super) components: Arc<[f32]>,
    /// In Unix milliseconds; 0 is never.
    pub(super) expires_at: u64,
}

impl<K: EmbeddingKey> Record<K> {
    /// Appends the record: its length, the key, the type, dimensions, expiry, components.
    pub(super) fn write(&self, bytes: &mut Vec<u8>) {
        let start = bytes.len();
        bytes.extend_from_slice(&[0; 4]);
        self.key.write(bytes);
        bytes.push(SINGLE);
        bytes.extend_from_slice(&(self.components.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&self.expires_at.to_le_bytes());
        let from = bytes.len();
        bytes.resize(from + 4 * self.components.len(), 0);
        let places = bytes[from..].as_chunks_mut().0;
        places.iter_mut().zip(&*self.components).for_each(|(place, x)| *place = x.to_le_bytes());
        let length = (bytes.len() - start - 4) as u32;
        bytes[start..start + 4].copy_from_slice(&length.to_le_bytes());
    }

    /// Takes a record from the front of `bytes`, which are those of a good block. `None` if there is
    /// none: then nobody can say where the next one begins.
    pub(super) fn read(bytes: &mut &[u8]) -> Option<Self> {
        let (length, rest) = bytes.split_first_chunk()?;
        let (mut record, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        *bytes = rest;
        let key = K::read(&mut record)?;
        let (fixed, components) = record.split_first_chunk::<13>()?;
        let (components, []) = components.as_chunks::<4>() else { return None };
        let dimensions = word(fixed, 1) as usize;
        if fixed[0] != SINGLE
            || dimensions == 0
            || dimensions > MOST_DIMENSIONS
            || components.len() != dimensions
        {
            return None;
        }
        let expires_at = u64::from(word(fixed, 5)) | u64::from(word(fixed, 9)) << 32;
        let components = components.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        Some(Self { key, components, expires_at })
    }
}
