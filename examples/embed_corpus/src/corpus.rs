//! Reads a directory into distinct paragraphs. Knows nothing of vectors or caches.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::fmt;
use std::fs::{self, DirEntry, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indicatif::ProgressBar;

use crate::Failure;
use crate::report::number;

/// The fewest characters that make a paragraph; less is a brace, a heading, a separator.
const SHORTEST: usize = 32;

/// The most bytes of a paragraph. What is longer is cut, as for a model with a limited window; it
/// also keeps a file that is one endless line from being one endless request.
const LONGEST: usize = 4096;

/// The largest file that is read, in bytes. Larger ones are mostly data, not text.
const LARGEST_FILE: u64 = 4 << 20;

/// Of each file this much is read first: most binary files betray themselves here.
const FIRST_BLOCK: u64 = 8 << 10;

/// The text of a directory.
pub(crate) struct Corpus {
    pub(crate) root: PathBuf,
    /// Each text once, in the order in which they were found.
    pub(crate) paragraphs: Vec<Paragraph>,
    /// The text files, whether or not there was a paragraph in them.
    pub(crate) files: Vec<PathBuf>,
    /// Paragraphs found, repetitions included.
    pub(crate) found: u64,
    /// Bytes of the paragraphs found, repetitions included.
    pub(crate) bytes: u64,
    pub(crate) skipped: Skipped,
    /// The limit on paragraphs was reached before the end of the directory.
    pub(crate) cut_short: bool,
}

/// A paragraph, and where it was first seen.
pub(crate) struct Paragraph {
    pub(crate) text: Arc<str>,
    file: usize,
    ordinal: usize,
}

impl Corpus {
    /// Walks `root`, at most until `limit` distinct paragraphs are found, which bounds the memory
    /// of the whole run.
    pub(crate) fn read(root: &Path, limit: usize, bar: &ProgressBar) -> Result<Self, Failure> {
        let cannot_read =
            |error| Failure::Input(format!("cannot read {}: {error}", root.display()));
        if !fs::metadata(root).map_err(cannot_read)?.is_dir() {
            let root = root.display();
            return Err(Failure::Input(format!("{root} is a file; name a directory of text")));
        }
        let corpus = Self {
            root: root.to_owned(),
            paragraphs: Vec::new(),
            files: Vec::new(),
            found: 0,
            bytes: 0,
            skipped: Skipped::default(),
            cut_short: false,
        };
        // A stack with the next entry on top: the walk goes by the order of the names, so that it
        // finds the same paragraphs every time.
        let mut entries = entries_last_first(root).map_err(cannot_read)?;
        let mut walk = Walk { corpus, seen: HashSet::new(), limit };
        while let Some(entry) = entries.pop() {
            match walk.visit(&entry) {
                Ok(inside) => entries.extend(inside),
                Err(_) => walk.corpus.skipped.unreadable += 1,
            }
            if walk.corpus.cut_short {
                break;
            }
            bar.set_position(walk.corpus.files.len() as u64);
        }
        if walk.corpus.paragraphs.is_empty() {
            return Err(Failure::Input(walk.corpus.nothing_found()));
        }
        Ok(walk.corpus)
    }

    /// Where a paragraph comes from, for people.
    pub(crate) fn place(&self, paragraph: &Paragraph) -> String {
        format!("{}, paragraph {}", self.files[paragraph.file].display(), paragraph.ordinal)
    }

    fn nothing_found(&self) -> String {
        format!(
            "no paragraph found in {}\n\
             looked for: at least {SHORTEST} characters between blank lines, in files of UTF-8 text\n\
             files of UTF-8 text: {}\n\
             skipped: {}",
            self.root.display(),
            self.files.len(),
            self.skipped,
        )
    }
}

/// A walk under way.
struct Walk {
    corpus: Corpus,
    seen: HashSet<Arc<str>>,
    limit: usize,
}

impl Walk {
    /// Takes in a file, or returns what is in a directory.
    fn visit(&mut self, entry: &DirEntry) -> io::Result<Vec<DirEntry>> {
        let skipped = &mut self.corpus.skipped;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            if !is_skipped_directory(entry) {
                return entries_last_first(&entry.path());
            }
            skipped.directories += 1;
        } else if !kind.is_file() {
            // Symbolic links could lead out of the directory or in a circle; opening a pipe waits.
            skipped.links += 1;
        } else {
            match entry.metadata()?.len() {
                // Nothing to read; and the files under /proc that never end call themselves empty.
                0 => {}
                1..=LARGEST_FILE => match read_text(&entry.path())? {
                    Some(text) => self.add_file(entry.path(), &text),
                    None => skipped.binary += 1,
                },
                _ => skipped.large += 1,
            }
        }
        Ok(Vec::new())
    }

    fn add_file(&mut self, path: PathBuf, text: &str) {
        let file = self.corpus.files.len();
        self.corpus.files.push(path);
        for (i, paragraph) in paragraphs(text).into_iter().enumerate() {
            if !self.seen.contains(paragraph) {
                if self.seen.len() == self.limit {
                    self.corpus.cut_short = true;
                    return;
                }
                let text: Arc<str> = paragraph.into();
                self.seen.insert(Arc::clone(&text));
                self.corpus.paragraphs.push(Paragraph { text, file, ordinal: i + 1 });
            }
            self.corpus.found += 1;
            self.corpus.bytes += paragraph.len() as u64;
        }
    }
}

/// What was passed over.
#[derive(Default)]
pub(crate) struct Skipped {
    /// Hidden ones, `target`, `node_modules`.
    directories: u64,
    /// Symbolic links, pipes, sockets, devices.
    links: u64,
    large: u64,
    binary: u64,
    unreadable: u64,
}

/// What was passed over and how often, in one line.
impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = [
            (self.directories, "hidden or build directory", "hidden or build directories"),
            (self.links, "link or special file", "links and special files"),
            (self.large, "file over 4 MiB", "files over 4 MiB"),
            (self.binary, "binary file", "binary files"),
            (self.unreadable, "unreadable entry", "unreadable entries"),
        ];
        let met = kinds.into_iter().filter(|(count, ..)| *count > 0);
        let list: Vec<_> = met.map(|(count, one, many)| number(count, one, many)).collect();
        if list.is_empty() { f.write_str("nothing") } else { f.write_str(&list.join(", ")) }
    }
}

/// What is in a directory, the last name first.
fn entries_last_first(directory: &Path) -> io::Result<Vec<DirEntry>> {
    let mut entries = fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(|entry| Reverse(entry.file_name()));
    Ok(entries)
}

/// What tools keep there for themselves: `.git` and the like, build output, dependencies.
fn is_skipped_directory(entry: &DirEntry) -> bool {
    let name = entry.file_name();
    name.as_encoded_bytes().starts_with(b".") || name == "target" || name == "node_modules"
}

/// The text of a file; `None` if it is not UTF-8 or has a NUL byte.
fn read_text(path: &Path) -> io::Result<Option<String>> {
    let mut file = File::open(path)?;
    let mut bytes = Vec::new();
    file.by_ref().take(FIRST_BLOCK).read_to_end(&mut bytes)?;
    if !bytes.contains(&0) {
        // The limit again, for a file that grows under our eyes.
        file.take(LARGEST_FILE).read_to_end(&mut bytes)?;
    }
    if bytes.contains(&0) {
        return Ok(None);
    }
    Ok(String::from_utf8(bytes).ok())
}

/// The paragraphs of a text: what stands between blank lines, trimmed, without the very short and
/// with the very long cut into pieces.
fn paragraphs(text: &str) -> Vec<&str> {
    let mut paragraphs = Vec::new();
    let (mut start, mut end) = (0, 0);
    for line in text.split_inclusive('\n') {
        if line.trim().is_empty() {
            push_pieces(&text[start..end], &mut paragraphs);
            start = end + line.len();
        }
        end += line.len();
    }
    push_pieces(&text[start..end], &mut paragraphs);
    paragraphs
}

fn push_pieces<'a>(mut text: &'a str, paragraphs: &mut Vec<&'a str>) {
    while !text.is_empty() {
        let (piece, rest) = text.split_at(text.floor_char_boundary(LONGEST));
        let piece = piece.trim();
        if piece.chars().nth(SHORTEST - 1).is_some() {
            paragraphs.push(piece);
        }
        text = rest;
    }
}
