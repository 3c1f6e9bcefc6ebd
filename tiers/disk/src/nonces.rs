//! The nonces, in a file of their own.
//!
//! Not in the engine: its journal ends at the first record that was not written whole, so a nonce
//! behind that would be lost, the nonce before it would be back, and with it the entries that were
//! invalidated. This file is replaced as a whole, and one that is damaged or gone means a new base:
//! a cold tier, never an older one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use embedding_cache::tier::{Namespace, Nonce};
use twox_hash::XxHash3_64;

const MAGIC: &[u8; 8] = b"ECNONCE1";
/// A field is `all`, or a letter, a colon and eight digits.
const LONGEST_FIELD: usize = 64;
/// Some two million scopes; a file that is longer is none of ours.
const LONGEST_FILE: u64 = 64 << 20;

/// The nonces by their field, as they are in the file.
#[derive(Debug)]
pub(crate) struct Nonces {
    path: PathBuf,
    fields: BTreeMap<String, Nonce>,
}

impl Nonces {
    /// Reads the file in `directory`, or makes one with a new base.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        let path = directory.join("nonces");
        let read = match File::open(&path) {
            Ok(file) => {
                let mut bytes = Vec::new();
                file.take(LONGEST_FILE).read_to_end(&mut bytes)?;
                decode(&bytes)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if let Some(fields) = read {
            return Ok(Self { path, fields });
        }
        let mut nonces = Self { path, fields: BTreeMap::new() };
        nonces.renew(Namespace::BASE_FIELD)?;
        Ok(nonces)
    }

    /// Draws the nonce of `field` anew. Durable on `Ok`; on an error the old one is kept here, and
    /// either is in the file.
    pub(crate) fn renew(&mut self, field: &str) -> io::Result<()> {
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce).map_err(|error| io::Error::other(error.to_string()))?;
        let mut fields = self.fields.clone();
        fields.insert(field.to_owned(), nonce);
        let temporary = self.path.with_extension("new");
        let mut file = File::create(&temporary)?;
        file.write_all(&encode(&fields))?;
        file.sync_all()?;
        fs::rename(&temporary, &self.path)?;
        if let Some(directory) = self.path.parent() {
            sync_directory(directory)?;
        }
        self.fields = fields;
        Ok(())
    }

    pub(crate) fn namespace(&self) -> Option<Namespace> {
        let fields = self.fields.iter().map(|(field, nonce)| (field.as_bytes(), &nonce[..]));
        Namespace::from_fields(fields)
    }
}

#[cfg(unix)]
fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(not(unix))]
fn sync_directory(_directory: &Path) -> io::Result<()> {
    Ok(())
}

/// Magic, then length, text and nonce of each field, then the checksum of all that.
fn encode(fields: &BTreeMap<String, Nonce>) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    for (field, nonce) in fields {
        bytes.push(field.len() as u8);
        bytes.extend_from_slice(field.as_bytes());
        bytes.extend_from_slice(nonce);
    }
    let checksum = XxHash3_64::oneshot(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

/// `None` for anything that [`encode`] does not make, or without a base.
fn decode(bytes: &[u8]) -> Option<BTreeMap<String, Nonce>> {
    let (bytes, checksum) = bytes.split_last_chunk::<8>()?;
    if XxHash3_64::oneshot(bytes) != u64::from_le_bytes(*checksum) {
        return None;
    }
    let mut rest = bytes.strip_prefix(MAGIC)?;
    let mut fields = BTreeMap::new();
    while let Some((&length, after)) = rest.split_first() {
        let length = usize::from(length);
        if length > LONGEST_FIELD || after.len() < length {
            return None;
        }
        let (field, after) = after.split_at(length);
        let (nonce, after) = after.split_first_chunk::<16>()?;
        fields.insert(std::str::from_utf8(field).ok()?.to_owned(), *nonce);
        rest = after;
    }
    fields.contains_key(Namespace::BASE_FIELD).then_some(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_renewed_is_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let mut nonces = Nonces::open(directory.path()).unwrap();
        let base = nonces.fields.clone();
        nonces.renew("all").unwrap();
        nonces.renew("m:00000001").unwrap();
        let again = Nonces::open(directory.path()).unwrap();
        assert_eq!(again.fields, nonces.fields);
        assert_eq!(again.fields.len(), 3);
        assert_eq!(again.fields["base"], base["base"]);
        assert!(again.namespace().is_some());
    }

    /// Never the nonces of before, some of them, or ones that somebody could guess.
    #[test]
    fn a_file_that_is_damaged_or_gone_gives_a_new_base() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nonces");
        let mut nonces = Nonces::open(directory.path()).unwrap();
        nonces.renew("all").unwrap();
        let whole = fs::read(&path).unwrap();
        let mut seen = std::collections::HashSet::from([nonces.fields["base"]]);
        let flipped = (0..whole.len()).map(|at| {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            bytes
        });
        let cut = (0..whole.len()).map(|length| whole[..length].to_vec());
        for damaged in flipped.chain(cut) {
            fs::write(&path, damaged).unwrap();
            let anew = Nonces::open(directory.path()).unwrap();
            assert_eq!(anew.fields.len(), 1);
            assert!(seen.insert(anew.fields["base"]), "an old base is back");
        }
        fs::remove_file(&path).unwrap();
        assert!(seen.insert(Nonces::open(directory.path()).unwrap().fields["base"]));
    }
}
