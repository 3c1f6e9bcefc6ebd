//! Known answers: the keys of a table of specifications and inputs, computed by the program in
//! `docs/keys.md`, which is run here as well.

use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::process::{Command, Stdio};

use embedding_cache::{CacheKey, ContentKey, Truncation};

use super::settings::{Input, ROLES, Settings};

/// What is hashed, and the key.
struct Known {
    settings: Settings,
    input: Input,
    key: &'static str,
}

fn table() -> Vec<Known> {
    let plain = || Settings::of("e5-base");
    let hello = || Input::text("hello");
    let (keep_start, keep_end) = (
        |max_tokens| Some(Truncation::KeepStart { max_tokens }),
        |max_tokens| Some(Truncation::KeepEnd { max_tokens }),
    );
    let everything = Settings {
        model: "text-embedding-3-large".into(),
        revision: Some("2024-01-25".into()),
        role: Some(ROLES[0].0),
        prompt: Some("Represent the question: ".into()),
        dimensions: Some(1024),
        normalize: Some(true),
        truncation: keep_start(8191),
        tenant: Some("acme".into()),
    };
    let mut cases = vec![
        (plain(), hello()),
        (plain(), Input::text("")),
        (plain(), Input::text("hello ")),
        (plain(), Input::text("Grüße, 世界 🦀")),
        (plain(), Input::text("Gru\u{308}ße, 世界 🦀")),
        (plain(), Input::Text("a text over many blocks; ".repeat(100))),
        (plain(), Input::Tokens(vec![])),
        (plain(), Input::Tokens(vec![101, 7592, 102])),
        (plain(), Input::Tokens(vec![u32::MAX, 0])),
        (plain(), Input::Tokens((0..1000).collect())),
        (plain(), Input::Bytes(vec![])),
        (plain(), Input::Bytes(b"hello".to_vec())),
        (plain(), Input::Bytes(vec![0xFF, 0, 0x80])),
        (Settings::of(""), Input::text("")),
        (Settings::of("modèle"), hello()),
        (Settings { revision: Some("1".into()), ..plain() }, hello()),
        (Settings { revision: Some(String::new()), ..plain() }, hello()),
        (Settings { prompt: Some("query: ".into()), ..plain() }, hello()),
        (Settings { prompt: Some(String::new()), ..plain() }, hello()),
        (Settings { dimensions: Some(512), ..plain() }, hello()),
        (Settings { dimensions: Some(0), ..plain() }, hello()),
        (Settings { normalize: Some(true), ..plain() }, hello()),
        (Settings { normalize: Some(false), ..plain() }, hello()),
        (Settings { truncation: keep_start(512), ..plain() }, hello()),
        (Settings { truncation: keep_start(0x0102_0304), ..plain() }, hello()),
        (Settings { truncation: keep_end(512), ..plain() }, hello()),
        (Settings { truncation: Some(Truncation::Refuse), ..plain() }, hello()),
        (Settings { tenant: Some("acme".into()), ..plain() }, hello()),
        (Settings { tenant: Some(String::new()), ..plain() }, hello()),
        (everything.clone(), hello()),
        (everything.clone(), Input::Tokens(vec![9906])),
        (everything, Input::Bytes(b"hello".to_vec())),
    ];
    cases.extend(ROLES.map(|(role, _)| (Settings { role: Some(role), ..plain() }, hello())));
    assert_eq!(cases.len(), KEYS.len(), "a key for each case");
    let known = cases.into_iter().zip(KEYS);
    known.map(|((settings, input), key)| Known { settings, input, key }).collect()
}

/// Part of the format: a key that changes makes every cache outside a process worthless.
const KEYS: [&str; 40] = [
    "c80f756a0000000061612a42704e48faa29e446e04302afe5d3e0a9a46b0f590",
    "c80f756a00000000e14e70988bc27a7134ce63f137590298d866add563496fef",
    "c80f756a00000000cce1eb11f9781f4cfbff9638b076a67b7f807f0fff82186d",
    "c80f756a00000000e9e747907e428fd1ff984d560853467d9c069872370daf59",
    "c80f756a00000000eaaf52d73f24f3223a3ed7fb124aac6361456e8b73b66e1c",
    "c80f756a00000000e26dcd27816f5c0cd6fc098c774bfea81fc5454841d06089",
    "c80f756a000000003c626f0507a114b85ef1cdcd81da3c28edf094a225555b41",
    "c80f756a00000000758576c4e0b58c6362362effffd2df1a9c23b83c703ad13b",
    "c80f756a00000000d21140711e98fee8cfcd4724d929e198a86eb87292740676",
    "c80f756a00000000c8aa85498b0ba23fafb329854e811867f8c16b5eaa7371c4",
    "c80f756a00000000ef3749183dc8330004bfd4f0d2a68a970298095a5e984420",
    "c80f756a0000000086ec84ffd480aabadd209077c5cb8382367070490c0f1bb8",
    "c80f756a00000000b0ed089a2bcb1c781af724648c417ef61f1b339036fb2b66",
    "c291f8fe000000000b4a46b5853ff136e09c32f7a2400088cf387e292da0aeb5",
    "b5b50a7100000000f3d1dcd7c14fff1999ce89dc00f38dca9156ddee1d0d6dc5",
    "c80f756a00000000767991bceebeb8f9ca942ecfad221661f6c259d3b9da3c85",
    "c80f756a00000000e6758aa7fc73ea587dcf513dfa267f8465313bbd853468fb",
    "c80f756a000000009b1a63ee7812e23219d370cd318206abf6e54e6aae0aff9e",
    "c80f756a00000000ce06f3fc3df24d5142c7a5e0c30366f53e8d0aba94270b2b",
    "c80f756a000000006aeb56ce817172f3a8f0493eebaa82568d147fad55c973b8",
    "c80f756a000000009c4e395f5725f16a039918898317288c33d6f1fb433b897d",
    "c80f756a00000000f0e766497dc9931d7e6458fad0fecaa6cc8a127284d06430",
    "c80f756a00000000e1c093dec3236ad0b0f7a8e2fc626d592689522098b4ee33",
    "c80f756a0000000054d25b3fdf8f8ac25e66fa59dab8ebbd3baedcad44420b32",
    "c80f756a000000003fdbda9366573aa21215e060200da7af0c7e2d2d28e705d6",
    "c80f756a000000005294d7a870d5751a05518c17d2e0c8fd1df7f81c6b85c912",
    "c80f756a00000000bf957de3fec2cb66a0d1470579764eb0a19c4c4aa060b81a",
    "c80f756a9a5fd0a80bfe853b8a70d5073b702c5c203f8e3a7f0710685cf3f5e8",
    "c80f756a2fad4aacb67b677b8603dd57dedfeea0585321a03996bb94fefb6941",
    "e4a2a0eb9a5fd0a87997778cc20459f58870ed1c07e53f812625b6d876d4b047",
    "e4a2a0eb9a5fd0a8a5095526de8937743511476e4fa9a600b9f279adfabc5c8a",
    "e4a2a0eb9a5fd0a86225ba938e40a650a57664558f1acde23b3027ac03276fae",
    "c80f756a00000000322baefad557f8138a9e6f72ffdd83cf092dbd913266cd8c",
    "c80f756a00000000d6e63408465ee59a43bf033e8570d79c143dd5814f24651e",
    "c80f756a000000005833fa0ff93bc61d1b98fa32c5cf7b1a03eb064cd21ffa38",
    "c80f756a00000000e2872462a27f4cf33f9681ad7b070498a58332260d4006f3",
    "c80f756a00000000f93844715e17d3574d610b8358fc1f18c4f5755674871a43",
    "c80f756a00000000e2b76c48a486901d143541cad12c7b277ffddbe59f66156f",
    "c80f756a00000000dbe892509a08dde89ea7dfbaa8e689bfffa06376c9396d08",
    "c80f756a0000000063bafd4f1576d68bb9c4247c79ad81a00b7cffdf33b4d636",
];

#[test]
fn the_keys_are_the_known_ones() {
    for Known { settings, input, key } in table() {
        let found: ContentKey = settings.key(&input);
        assert_eq!(found.to_hex(), key, "{settings:?} {input:?}");
    }
}

/// One specification and text, one digest, in either kind of key.
#[test]
fn a_cache_key_has_the_digits_of_the_content_key_and_a_readable_model() {
    for Known { settings, input, key } in table() {
        let found: CacheKey = settings.key(&input);
        assert_eq!(found.content_hash, key);
        assert_eq!(found.chunk_id, None);
        let model = match &settings.revision {
            Some(revision) => format!("{}@{revision}", settings.model),
            None => settings.model.clone(),
        };
        assert_eq!(found.model_version, model);
    }
}

#[test]
fn the_keys_are_pairwise_distinct() {
    let table = table();
    assert_eq!(KEYS.iter().collect::<HashSet<_>>().len(), KEYS.len());
    // In what is left without the tags too: they are not what tells keys apart.
    assert_eq!(KEYS.iter().map(|key| &key[16..]).collect::<HashSet<_>>().len(), KEYS.len());
    let words: HashSet<CacheKey> =
        table.iter().map(|known| known.settings.key(&known.input)).collect();
    assert_eq!(words.len(), KEYS.len());
}

/// The tags stand where an invalidation looks for them.
#[test]
fn a_model_and_a_tenant_have_one_tag_each() {
    let (mut models, mut tenants) = (BTreeMap::new(), BTreeMap::new());
    for Known { settings, key, .. } in table() {
        assert_eq!(*models.entry(settings.model).or_insert(&key[..8]), &key[..8]);
        assert_eq!(*tenants.entry(settings.tenant).or_insert(&key[8..16]), &key[8..16]);
    }
    assert_eq!(models.values().collect::<HashSet<_>>().len(), 4);
    assert_eq!(tenants.values().collect::<HashSet<_>>().len(), 3);
    assert_eq!(tenants[&None], "00000000");
}

/// The program of the document, as it stands there, and what the document says that it prints.
fn program() -> (&'static str, &'static str) {
    let document = include_str!("../../../docs/keys.md");
    let (_, rest) = document.split_once("```python\n").unwrap();
    let (program, rest) = rest.split_once("```\n").unwrap();
    let (_, rest) = rest.split_once("It prints `").unwrap();
    (program, rest.split_once('`').unwrap().0)
}

#[test]
fn the_program_in_the_document_comes_to_the_same_keys() {
    let (program, printed) = program();
    let driver = "
import json, sys
for given in json.load(sys.stdin):
    print(key(**given).hex())
";
    let table = table();
    let given: Vec<_> = table.iter().map(|known| known.settings.arguments(&known.input)).collect();
    let mut python = Command::new("python3")
        .args(["-c", &format!("{program}{driver}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 is needed for this test");
    let mut stdin = python.stdin.take().unwrap();
    stdin.write_all(serde_json::to_string(&given).unwrap().as_bytes()).unwrap();
    drop(stdin);
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    let output = String::from_utf8(output.stdout).unwrap();
    let mut lines = output.lines();
    assert_eq!(lines.next(), Some(printed), "the example of the document");
    for Known { settings, input, key } in &table {
        let found: ContentKey = settings.key(input);
        let line = lines.next();
        assert_eq!(line, Some(*key), "{settings:?} {input:?}");
        assert_eq!(line, Some(found.to_hex().as_str()), "{settings:?} {input:?}");
    }
    assert_eq!(lines.next(), None);
}
