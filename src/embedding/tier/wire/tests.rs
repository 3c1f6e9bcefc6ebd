//! Known answers, recomputed by the program of `docs/tiers.md`; and hostile values.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::CacheKey;
use crate::embedding::key::repr::KeyRepr;
use crate::embedding::tier::namespace::Namespace;

use super::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn key(number: u8) -> TierKey {
    TierKey::from_parts(1, [number; 8], [number; 32])
}

fn format(secret: Option<&[u8]>) -> Format {
    Format { precision: Precision::Single, secret: secret.map(Secret::new) }
}

fn vector(dimensions: usize) -> Vec<f32> {
    (0..dimensions).map(|i| i as f32 / 8.0 - 3.0).collect()
}

struct Known {
    key: CacheKey,
    dimensions: usize,
    expires_at: u64,
    half: bool,
    secret: Option<&'static str>,
}

fn table() -> Vec<Known> {
    let keys = [
        CacheKey::new("9f86d081", "e5-base@1"),
        CacheKey::new("", ""),
        CacheKey::new("Grüße", "modèle").with_chunk(""),
        CacheKey::for_model("e5-base").revision("1").tenant("acme").text("hello").with_chunk("7"),
    ];
    // Each of the lengths that XXH3 goes about in its own way, and both ends of each.
    let dimensions = [1, 2, 15, 16, 43, 44, 45, 239, 240, 256, 768, 3072, 65_536];
    let mut table = Vec::new();
    for (number, &dimensions) in dimensions.iter().enumerate() {
        for half in [false, true] {
            table.push(Known {
                key: keys[number % keys.len()].clone(),
                dimensions,
                expires_at: [0, 1, 1_800_000_000_123][number % 3],
                half,
                secret: [None, Some("secret"), Some("")][(number + usize::from(half)) % 3],
            });
        }
    }
    table
}

/// The program of the document, as it stands there, and what the document says that it prints.
fn program() -> (&'static str, &'static str) {
    let document = include_str!("../../../../docs/tiers.md");
    let (_, rest) = document.split_once("```python\n").unwrap();
    let (program, rest) = rest.split_once("```\n").unwrap();
    let (_, rest) = rest.split_once("It prints `").unwrap();
    (program, rest.split_once('`').unwrap().0)
}

#[test]
#[cfg_attr(miri, ignore = "runs another program")]
fn the_program_in_the_document_comes_to_the_same_values() {
    let (program, printed) = program();
    let driver = "
import json, sys
for given in json.load(sys.stdin):
    secret = None if given['secret'] is None else given['secret'].encode()
    key = b'\\1' + namespace(b'0123456789abcdef') + digest(*given['key'])
    vector = [i / 8 - 3 for i in range(given['dimensions'])]
    print(key.hex(), hashlib.sha256(value(key, vector, given['expires_at'], given['half'], secret)).hexdigest())
";
    let rows = table().into_iter().filter(|row| cfg!(feature = "tier-f16") || !row.half);
    let table: Vec<Known> = rows.collect();
    let json: Vec<_> = table
        .iter()
        .map(|known| {
            serde_json::json!({
                "key": (&known.key.content_hash, &known.key.model_version, &known.key.chunk_id),
                "dimensions": known.dimensions,
                "expires_at": known.expires_at,
                "half": known.half,
                "secret": known.secret,
            })
        })
        .collect();
    let mut python = Command::new("python3")
        .args(["-c", &format!("{program}{driver}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 is needed for this test");
    let mut stdin = python.stdin.take().unwrap();
    stdin.write_all(serde_json::to_string(&json).unwrap().as_bytes()).unwrap();
    drop(stdin);
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    let output = String::from_utf8(output.stdout).unwrap();
    let mut lines = output.lines();
    assert_eq!(lines.next(), Some(printed), "the example of the document");

    let base = (Namespace::BASE_FIELD.as_bytes(), &b"0123456789abcdef"[..]);
    let namespace = Namespace::from_fields([base]).unwrap();
    for known in &table {
        let key = TierKey::new::<CacheKey>(known.key.tier_digest(), &namespace);
        let precision = match known.half {
            false => Precision::Single,
            #[cfg(feature = "tier-f16")]
            true => Precision::Half,
            #[cfg(not(feature = "tier-f16"))]
            true => unreachable!("filtered"),
        };
        let secret = known.secret.map(|secret| Secret::new(secret.as_bytes()));
        let format = Format { precision, secret };
        let value = format.encode(&key, &vector(known.dimensions), known.expires_at).unwrap();
        use sha2::Digest;
        let expected = format!("{} {}", hex(&key.to_bytes()), hex(&Sha256::digest(&value)));
        assert_eq!(lines.next(), Some(&expected[..]), "{} dimensions", known.dimensions);
    }
    assert_eq!(lines.next(), None);
}

/// Part of the format: a value that changes is one that no other process can read.
#[test]
fn the_values_are_the_known_ones() {
    let value = format(Some(b"secret")).encode(&key(3), &[0.5, -2.0], 7).unwrap();
    assert_eq!(value.len(), HEADER + 8);
    assert_eq!(
        hex(&value[..24]),
        "454356310001000002000000000000000700000000000000",
        "the header without its digests"
    );
    assert_eq!(hex(&value[48..]), "0000003f000000c0");
    let (components, expires_at) = format(Some(b"secret")).decode(&key(3), &value, 6).unwrap();
    assert_eq!((&components[..], expires_at), (&[0.5, -2.0][..], 7));
}

#[test]
fn a_value_is_read_back_bit_for_bit_by_who_has_the_secret_or_needs_none() {
    let odd = [f32::MIN_POSITIVE, -0.0, f32::MAX, 1e-40, f32::NAN];
    for secret in [None, Some(&b"s"[..])] {
        for reader in [None, secret] {
            let value = format(secret).encode(&key(1), &odd, 0).unwrap();
            let (read, _) = format(reader).decode(&key(1), &value, u64::MAX).unwrap();
            let bits = |vector: &[f32]| vector.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&read), bits(&odd));
        }
    }
}

#[test]
fn vectors_of_no_component_or_too_many_are_not_written() {
    assert!(format(None).encode(&key(1), &[], 0).is_none());
    assert!(format(None).encode(&key(1), &vector(MOST_DIMENSIONS + 1), 0).is_none());
    assert!(format(None).encode(&key(1), &vector(MOST_DIMENSIONS), 0).is_some());
}

#[test]
fn each_fault_has_its_reason() {
    let good = format(None).encode(&key(1), &vector(4), 100).unwrap();
    let signed = format(Some(b"secret")).encode(&key(1), &vector(4), 100).unwrap();
    let read = |value: &[u8], now| format(None).decode(&key(1), value, now).unwrap_err();
    let with = |at: usize, byte: u8| {
        let mut value = good.clone();
        value[at] = byte;
        value
    };
    assert_eq!(read(&[], 0), Rejected::Length);
    assert_eq!(read(&good[..47], 0), Rejected::Length);
    assert_eq!(read(&good[..good.len() - 1], 0), Rejected::Length);
    assert_eq!(read(&[&good[..], &[0]].concat(), 0), Rejected::Length);
    assert_eq!(read(b"ECV2 some other value, of forty-eight bytes or more", 0), Rejected::Foreign);
    assert_eq!(read(&with(4, 9), 0), Rejected::Type);
    assert_eq!(read(&with(5, 2), 0), Rejected::Foreign);
    assert_eq!(read(&with(6, 1), 0), Rejected::Foreign);
    assert_eq!(read(&with(12, 1), 0), Rejected::Foreign);
    assert_eq!(read(&with(8, 0), 0), Rejected::Dimensions);
    assert_eq!(read(&with(11, 1), 0), Rejected::Dimensions);
    assert_eq!(read(&with(8, 5), 0), Rejected::Length);
    assert_eq!(read(&with(16, 101), 0), Rejected::Checksum);
    assert_eq!(read(&with(50, 1), 0), Rejected::Checksum);
    assert_eq!(read(&with(40, 1), 0), Rejected::Foreign, "a signature that says it is none");
    assert_eq!(read(&good, 100), Rejected::Expired);
    assert!(format(None).decode(&key(1), &good, 99).is_ok());
    assert_eq!(format(None).decode(&key(2), &good, 0).unwrap_err(), Rejected::Checksum);
    for secret in [&b"Secret"[..], b"", b"secret2"] {
        let refused = format(Some(secret)).decode(&key(1), &signed, 0).unwrap_err();
        assert_eq!(refused, Rejected::Signature);
    }
    let unsigned = format(Some(b"secret")).decode(&key(1), &good, 0).unwrap_err();
    assert_eq!(unsigned, Rejected::Signature);
}

/// A checksum that was computed anew over a changed vector does not make up for the signature.
#[test]
fn who_may_write_to_the_store_but_has_no_secret_is_found_out() {
    let forged = format(Some(b"guess")).encode(&key(1), &vector(4), 0).unwrap();
    assert!(format(None).decode(&key(1), &forged, 0).is_ok());
    let refused = format(Some(b"secret")).decode(&key(1), &forged, 0).unwrap_err();
    assert_eq!(refused, Rejected::Signature);
}

#[test]
fn a_secret_is_never_shown() {
    let shown = format!("{:?}", format(Some(b"hunter2")));
    assert!(shown.contains("Secret(..)") && !shown.contains("hunter2"), "{shown}");
    let bytes = format!("{:?}", b"hunter2");
    assert!(!shown.contains(&bytes[1..bytes.len() - 1]));
}

/// Values as a broken or hostile store has them: truncated, with flipped bits, of another key, with
/// other dimensions, stale, signed by another. None is ever taken for a vector.
#[test]
fn no_mutated_value_is_ever_a_vector() {
    let reads = match (cfg!(miri), cfg!(debug_assertions)) {
        (true, _) => 50,
        (_, true) => 200_000,
        _ => 10_000_000,
    };
    let formats = [format(None), format(Some(b"secret"))];
    let other = format(Some(b"another"));
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut reasons = std::collections::BTreeMap::new();
    let now = 1_000;
    for round in 0..reads {
        let format = &formats[round % 2];
        let dimensions = 1 + random.below(24);
        let components: Vec<f32> = (0..dimensions).map(|_| random.below(1000) as f32).collect();
        let own = key(random.below(200) as u8);
        let mut value = format.encode(&own, &components, now + 1).unwrap();
        let mut asked = own;
        match random.below(7) {
            0 => value.truncate(random.below(value.len())),
            1 => {
                let bit = random.below(8 * value.len());
                value[bit / 8] ^= 1 << (bit % 8);
            }
            2 => asked = key(200 + random.below(56) as u8),
            3 => value[8..12].copy_from_slice(&(dimensions as u32 + 1).to_le_bytes()),
            4 => value = format.encode(&own, &components, now).unwrap(),
            5 => {
                let at = random.below(value.len());
                let byte = value[at];
                value[at] = byte.wrapping_add(1 + random.below(255) as u8);
            }
            _ => match format.secret {
                Some(_) => value = other.encode(&own, &components, 0).unwrap(),
                None => value.extend_from_slice(&[0; 4][..1 + random.below(4)]),
            },
        }
        let refused = format.decode(&asked, &value, now).expect_err("a mutated value");
        *reasons.entry(format!("{refused:?}")).or_insert(0) += 1;
    }
    if reads > 1000 {
        for reason in
            ["Foreign", "Length", "Type", "Dimensions", "Checksum", "Signature", "Expired"]
        {
            assert!(reasons.contains_key(reason), "never {reason}: {reasons:?}");
        }
    }
}

/// Marsaglia's xorshift: the same values each time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % limit
    }
}

#[cfg(feature = "tier-f16")]
#[test]
fn half_precision_keeps_the_direction_of_a_unit_vector() {
    let mut random = Random(7);
    for dimensions in [64, 384, 768, 3072] {
        let raw: Vec<f32> = (0..dimensions).map(|_| random.below(2001) as f32 - 1000.0).collect();
        let norm = raw.iter().map(|x| x * x).sum::<f32>().sqrt();
        let unit: Vec<f32> = raw.iter().map(|x| x / norm).collect();
        let half = Format { precision: Precision::Half, secret: None };
        let value = half.encode(&key(1), &unit, 0).unwrap();
        assert_eq!(value.len(), HEADER + 2 * dimensions);
        let (read, _) = half.decode(&key(1), &value, 0).unwrap();
        assert_eq!(read, half.rounded(&unit).unwrap(), "what others read is what it keeps");
        let product = |a: &[f32], b: &[f32]| {
            a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>()
        };
        let cosine = product(&read, &unit) / (product(&read, &read) * product(&unit, &unit)).sqrt();
        assert!(1.0 - cosine < 1e-7, "1 - cos is {}", 1.0 - cosine);
    }
}

#[cfg(feature = "tier-f16")]
#[test]
fn what_a_half_cannot_hold_is_kept_and_written_as_it_is() {
    let half = Format { precision: Precision::Half, secret: None };
    let large = [70_000.0, 1e-9, 0.1];
    assert!(half.rounded(&large).is_none());
    let value = half.encode(&key(1), &large, 0).unwrap();
    assert_eq!(
        (value.len(), &*half.decode(&key(1), &value, 0).unwrap().0),
        (HEADER + 12, &large[..])
    );
}
