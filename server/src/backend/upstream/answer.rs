//! What an upstream answered, believed only as far as it can be checked.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};

use super::super::{EmbedError, Job, Tokens};

/// The vectors of an answer; one may be of no use without the others.
pub(super) type Vectors = Vec<Result<Vec<f32>, EmbedError>>;

/// What came, as far as it could be believed.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) vectors: Vectors,
    /// Tokens of all inputs together, if the upstream said so.
    tokens: Option<u64>,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    data: Option<Vec<Item>>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    error: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: Option<u64>,
    #[serde(default)]
    total_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct Item {
    index: Option<usize>,
    embedding: Components,
}

/// A list of numbers or base64, whichever the server prefers. What is no number becomes NaN, as one
/// bad component is the failure of one input, not of the whole answer.
struct Components(Vec<f32>);

impl<'de> Deserialize<'de> for Components {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Components;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of numbers or base64")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Components, E> {
                let bytes = STANDARD.decode(text).map_err(E::custom)?;
                let (floats, rest) = bytes.as_chunks::<4>();
                if !rest.is_empty() {
                    return Err(E::custom("base64 of no whole number of floats"));
                }
                Ok(Components(floats.iter().map(|float| f32::from_le_bytes(*float)).collect()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Components, A::Error> {
                let mut floats = Vec::new();
                while let Some(number) = list.next_element::<Option<f32>>()? {
                    floats.push(number.unwrap_or(f32::NAN));
                }
                Ok(Components(floats))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// The vectors of an answer to `expected` inputs, each at the place that its index says.
///
/// # Errors
///
/// The text is no answer, or not one to as many inputs: then it cannot be known which vector belongs
/// to which input, so none is used.
pub(super) fn read(
    text: &[u8],
    expected: usize,
    message_limit: usize,
) -> Result<Answered, EmbedError> {
    let answer: Answer = serde_json::from_slice(text)
        .map_err(|error| EmbedError::Answer { reason: error.to_string() })?;
    // Some servers and proxies answer 200 and put the error into the body.
    let error = answer.error.filter(|error| !error.is_null());
    let data = match (answer.data, error) {
        (_, Some(error)) => return Err(error_object(text, &error, message_limit)),
        (None, None) => return Err(EmbedError::Answer { reason: "it has no data".into() }),
        (Some(data), None) => data,
    };
    if data.len() != expected {
        return Err(EmbedError::WrongCount { expected, got: data.len() });
    }
    let mut vectors: Vec<Option<Vec<f32>>> = vec![None; expected];
    for (place, item) in data.into_iter().enumerate() {
        let index = item.index.unwrap_or(place);
        match vectors.get_mut(index) {
            Some(slot @ None) => *slot = Some(item.embedding.0),
            Some(Some(_)) => {
                return Err(EmbedError::Answer { reason: format!("index {index} twice") });
            }
            None => {
                let reason = format!("index {index} of {expected}");
                return Err(EmbedError::Answer { reason });
            }
        }
    }
    let tokens = answer.usage.and_then(|usage| usage.prompt_tokens.or(usage.total_tokens));
    // As many vectors as places and none twice: every place has one.
    let vectors = vectors.into_iter().map(|vector| vector.ok_or(EmbedError::Empty)).collect();
    Ok(Answered { vectors, tokens })
}

/// An error that came with status 200: by the status that it names, if it names one.
fn error_object(text: &[u8], error: &serde_json::Value, limit: usize) -> EmbedError {
    let message = error_message(text, limit);
    let status = ["code", "status"].iter().find_map(|name| {
        let value = error.get(name)?;
        value.as_u64().or_else(|| value.as_str()?.parse().ok())
    });
    match status.and_then(|status| u16::try_from(status).ok()) {
        Some(status @ 400..=599) => EmbedError::Status { status, message, retry_after: None },
        _ => EmbedError::ErrorObject { message },
    }
}

impl Answered {
    /// Writes down what the upstream counted, with the inputs: exactly where it was asked for one
    /// alone, in proportion to their bytes otherwise.
    pub(super) fn share_tokens(&self, jobs: &[Job]) {
        let Some(total) = self.tokens.filter(|total| *total <= u64::from(u32::MAX)) else { return };
        if let [job] = jobs {
            job.tokens.set(Tokens { count: total as u32, exact: true });
            return;
        }
        let bytes: u64 = jobs.iter().map(|job| job.content.bytes() as u64).sum();
        let (mut before, mut given) = (0, 0);
        for job in jobs {
            // What is due up to and with this one, less what was given: the parts sum up to the whole.
            before += job.content.bytes() as u64;
            let due = (total * before + bytes / 2).checked_div(bytes).unwrap_or(0);
            job.tokens.set(Tokens { count: (due - given) as u32, exact: false });
            given = due;
        }
    }
}

/// # Errors
///
/// The vector is empty, has other dimensions than expected, or a component that is no finite number.
pub(super) fn check(vector: &[f32], expected: Option<usize>) -> Result<(), EmbedError> {
    if vector.is_empty() {
        return Err(EmbedError::Empty);
    }
    if let Some(expected) = expected.filter(|expected| *expected != vector.len()) {
        return Err(EmbedError::WrongDimensions { expected, got: vector.len() });
    }
    match vector.iter().position(|x| !x.is_finite()) {
        Some(component) => Err(EmbedError::NotFinite { component }),
        None => Ok(()),
    }
}

/// The message in an upstream's error: OpenAI's form, or what other servers write, or the text.
pub(super) fn error_message(text: &[u8], limit: usize) -> String {
    let parsed = serde_json::from_slice::<serde_json::Value>(text).ok();
    let places = ["/error/message", "/error", "/message", "/detail"];
    let found = parsed
        .as_ref()
        .and_then(|json| places.iter().find_map(|place| json.pointer(place)?.as_str()))
        .map(str::to_owned)
        .or_else(|| Some(parsed.as_ref()?.get("error")?.to_string()))
        .unwrap_or_else(|| String::from_utf8_lossy(text).into_owned());
    let mut message: String = found.chars().filter(|c| !c.is_control()).take(limit).collect();
    if message.is_empty() {
        message.push_str("no message");
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_those_of_the_indices() {
        let text =
            br#"{"data":[{"index":1,"embedding":[2,null]},{"index":0,"embedding":"AACAPw=="}]}"#;
        let vectors = read(text, 2, 100).unwrap().vectors;
        assert_eq!(vectors[0].as_ref().unwrap(), &[1.0]);
        let second = vectors[1].as_ref().unwrap();
        assert!(matches!(check(second, None), Err(EmbedError::NotFinite { component: 1 })));
        assert!(matches!(
            check(&[1.0], Some(2)),
            Err(EmbedError::WrongDimensions { expected: 2, got: 1 })
        ));
        assert!(matches!(check(&[], None), Err(EmbedError::Empty)));
    }

    #[test]
    fn what_cannot_be_matched_to_inputs_is_refused() {
        let wrong: [&[u8]; 7] = [
            br#"{"data":[{"embedding":[1]}]}"#,
            br#"{"data":[{"index":0,"embedding":[1]},{"index":0,"embedding":[1]}]}"#,
            br#"{"data":[{"index":0,"embedding":[1]},{"index":2,"embedding":[1]}]}"#,
            br#"{"data":[{"embedding":[1]},{"embedding":"AAA="}]}"#,
            br#"{"data":[{"embedding":[1]},{"embedding":[NaN]}]}"#,
            br#"{"data":[{"embedding":[1]},{"embedding":[1"#,
            b"\xff",
        ];
        for text in wrong {
            assert!(read(text, 2, 100).is_err(), "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn an_error_with_status_200_is_an_error() {
        let error = |text: &str| read(text.as_bytes(), 1, 100).unwrap_err();
        let plain = error(r#"{"error":{"message":"too long"}}"#);
        assert!(matches!(plain, EmbedError::ErrorObject { message } if message == "too long"));
        let coded = error(r#"{"error":{"message":"slow down","code":"429"},"data":[]}"#);
        assert!(matches!(coded, EmbedError::Status { status: 429, .. }));
        assert!(matches!(error("{}"), EmbedError::Answer { .. }));
        // Not every "error" is one.
        assert!(read(br#"{"error":null,"data":[{"embedding":[1]}]}"#, 1, 100).is_ok());
    }

    #[test]
    fn messages_are_found_and_bounded() {
        assert_eq!(error_message(br#"{"error":{"message":"too long"}}"#, 100), "too long");
        assert_eq!(error_message(br#"{"detail":"no\nsuch"}"#, 100), "nosuch");
        assert_eq!(error_message(br#"{"error":{"type":"busy"}}"#, 100), r#"{"type":"busy"}"#);
        assert_eq!(error_message(b"", 100), "no message");
        assert_eq!(error_message("é".repeat(500).as_bytes(), 100).chars().count(), 100);
    }
}
