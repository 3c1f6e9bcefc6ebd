//! A content key as digits, as bytes, serialized, hashed; a specification as people see it.

use std::collections::HashMap;
use std::fmt::{Debug, Display};
use std::hash::{Hash, Hasher};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::str::FromStr;

use embedding_cache::{CacheKey, ContentKey, KeySpec, Role, Truncation};
use static_assertions::assert_impl_all;

assert_impl_all!(ContentKey: Send, Sync, Unpin, UnwindSafe, RefUnwindSafe, Copy, Ord, Hash, Debug);
assert_impl_all!(ContentKey: Display, FromStr, From<[u8; 32]>, Into<[u8; 32]>);
assert_impl_all!(KeySpec<ContentKey>: Send, Sync, Unpin, UnwindSafe, RefUnwindSafe, Clone, Debug);
assert_impl_all!(KeySpec<CacheKey>: Send, Sync, Unpin, UnwindSafe, RefUnwindSafe, Clone, Debug);
assert_impl_all!(Role: Send, Sync, Copy, Ord, Hash, Debug);
assert_impl_all!(Truncation: Send, Sync, Copy, Ord, Hash, Debug);

const DIGITS: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1dfeff";

fn key() -> ContentKey {
    let mut bytes = std::array::from_fn(|i| i as u8);
    [bytes[30], bytes[31]] = [0xFE, 0xFF];
    ContentKey::from_bytes(bytes)
}

#[test]
fn a_content_key_is_32_bytes_and_a_specification_a_pointer() {
    assert_eq!(size_of::<ContentKey>(), 32);
    assert_eq!(align_of::<ContentKey>(), 8, "moved like four numbers");
    assert_eq!(size_of::<KeySpec<ContentKey>>(), size_of::<usize>());
    assert!(!std::mem::needs_drop::<ContentKey>());
}

#[test]
fn a_content_key_is_its_digits_and_back() {
    assert_eq!(key().to_string(), DIGITS);
    assert_eq!(key().to_hex(), DIGITS);
    assert_eq!(format!("{:?}", key()), format!("ContentKey({DIGITS})"));
    assert_eq!(format!("{:>66}", key()), format!("  {DIGITS}"));
    assert_eq!(DIGITS.parse::<ContentKey>().unwrap(), key());
    assert_eq!(DIGITS.to_uppercase().parse::<ContentKey>().unwrap(), key(), "either case");
    assert_eq!(ContentKey::from(*key().as_bytes()), key());
    assert_eq!(<[u8; 32]>::from(key()), *key().as_bytes());
    let mut other = *key().as_bytes();
    for place in 0..32 {
        other[place] ^= 1;
        let changed = ContentKey::from(other);
        assert_ne!(changed, key(), "byte {place}");
        assert_eq!(changed < key(), other < *key().as_bytes(), "the order of the bytes");
        assert_eq!(changed.to_hex() < key().to_hex(), changed < key(), "and of the digits");
        other[place] ^= 1;
    }
}

#[test]
fn what_is_no_content_key_is_refused_by_its_length_or_its_first_other_character() {
    for (text, bytes) in
        [("", "0"), ("12ab", "4"), (&DIGITS[1..], "63"), (&format!("{DIGITS}0"), "65")]
    {
        let error = text.parse::<ContentKey>().unwrap_err();
        assert!(error.is_invalid_key() && error.vector().is_none());
        let expected =
            format!("a content key is 64 hexadecimal digits; this text is {bytes} bytes long");
        assert_eq!(error.to_string(), expected);
    }
    for (place, found) in
        [(0, "g"), (1, " "), (31, "-"), (62, "é"), (63, "G"), (10, "世"), (5, "\0")]
    {
        let text = format!("{}{found}{}", &DIGITS[..place], &DIGITS[place + found.len()..]);
        let error = text.parse::<ContentKey>().unwrap_err();
        assert!(error.is_invalid_key());
        let found = found.chars().next().unwrap();
        let expected = format!(
            "a content key is 64 hexadecimal digits; at byte {place} of this text is {found:?}"
        );
        assert_eq!(error.to_string(), expected);
    }
}

/// Keys may come from outside: a hash that left bytes out would let them collide.
#[test]
fn a_content_key_is_hashed_with_all_its_bytes() {
    #[derive(Default)]
    struct Writes(Vec<Vec<u8>>);

    impl Hasher for Writes {
        fn write(&mut self, bytes: &[u8]) {
            self.0.push(bytes.to_vec());
        }

        fn finish(&self) -> u64 {
            0
        }
    }

    let mut writes = Writes::default();
    key().hash(&mut writes);
    assert_eq!(writes.0.concat(), key().as_bytes());
}

#[test]
fn a_specification_shows_what_is_set_and_little_of_a_long_prompt() {
    let spec = ContentKey::for_model("e5-base");
    assert_eq!(format!("{spec:?}"), r#"KeySpec { model: "e5-base" }"#);
    let spec = spec
        .revision("1")
        .role(Role::Query)
        .prompt("query: ")
        .dimensions(512)
        .normalize(true)
        .truncation(Truncation::Refuse)
        .tenant("acme");
    let all = r#"KeySpec { model: "e5-base", revision: "1", prompt: "query: ", tenant: "acme", role: Query, dimensions: 512, normalize: true, truncation: Refuse }"#;
    assert_eq!(format!("{spec:?}"), all);
    let long = spec.prompt(&format!("{} secret", "é".repeat(1000)));
    let shown = format!("{long:?}");
    assert!(shown.contains("ééé") && shown.contains("(2007 bytes)"), "{shown}");
    assert!(!shown.contains("secret") && shown.len() < 250, "{shown}");
}

#[test]
fn a_content_key_is_a_key_of_a_map() {
    let spec = ContentKey::for_model("e5-base");
    let map: HashMap<_, _> = ["a", "b"].map(|text| (spec.text(text), text)).into();
    assert_eq!(map[&spec.text("b")], "b");
    assert!(!map.contains_key(&spec.text("c")));
}

#[cfg(feature = "serde")]
mod serialized {
    use std::collections::HashMap;

    use ciborium::Value;
    use embedding_cache::ContentKey;

    use super::{DIGITS, key};

    #[test]
    fn where_people_read_it_a_key_is_its_digits() {
        let json = serde_json::to_string(&key()).unwrap();
        assert_eq!(json, format!("\"{DIGITS}\""));
        assert_eq!(serde_json::from_str::<ContentKey>(&json).unwrap(), key());
        let map: HashMap<ContentKey, u8> = [(key(), 7)].into();
        let json = serde_json::to_string(&map).unwrap();
        assert_eq!(json, format!("{{\"{DIGITS}\":7}}"));
        assert_eq!(serde_json::from_str::<HashMap<ContentKey, u8>>(&json).unwrap(), map);
    }

    #[test]
    fn elsewhere_a_key_is_32_bytes() {
        let mut cbor = Vec::new();
        ciborium::into_writer(&key(), &mut cbor).unwrap();
        assert_eq!(cbor.len(), 34, "two of them say that it is bytes, and how many");
        assert_eq!(cbor[2..], *key().as_bytes());
        assert_eq!(ciborium::from_reader::<ContentKey, _>(&cbor[..]).unwrap(), key());
        let read = |value: Value| {
            let mut cbor = Vec::new();
            ciborium::into_writer(&value, &mut cbor).unwrap();
            ciborium::from_reader::<ContentKey, _>(&cbor[..])
        };
        // Formats without bytes make a sequence of them.
        let sequence = |bytes: &[u8]| Value::Array(bytes.iter().map(|&byte| byte.into()).collect());
        assert_eq!(read(sequence(key().as_bytes())).unwrap(), key());
        for len in [0, 31, 33, 64] {
            let bytes: Vec<u8> = vec![1; len];
            assert!(read(sequence(&bytes)).is_err(), "{len} in sequence");
            assert!(read(Value::Bytes(bytes)).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn what_is_no_key_is_refused_with_its_reason() {
        let error = serde_json::from_str::<ContentKey>("\"12ab\"").unwrap_err();
        assert!(error.to_string().contains("this text is 4 bytes long"), "{error}");
        let error = serde_json::from_str::<ContentKey>("[1, 2]").unwrap_err();
        assert!(error.to_string().contains("64 hexadecimal digits"), "{error}");
    }
}
