//! The body of a request, parsed without copying its texts.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

use crate::backend::Content;
use crate::error::ApiError;
use crate::options::MOST_DIMENSIONS;

/// What `POST /v1/embeddings` was asked.
#[derive(Debug, PartialEq)]
pub(crate) struct Request<'a> {
    pub(crate) model: Cow<'a, str>,
    pub(crate) inputs: Vec<Input<'a>>,
    pub(crate) encoding: Encoding,
    pub(crate) dimensions: Option<usize>,
    /// Parameters that are passed on, their names in order.
    pub(crate) extra: serde_json::Map<String, serde_json::Value>,
}

/// One thing to embed; a text is borrowed from the body unless it has escapes.
#[derive(Debug, PartialEq)]
pub(crate) enum Input<'a> {
    Text(Cow<'a, str>),
    Tokens(Vec<u32>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Encoding {
    #[default]
    Float,
    Base64,
}

impl Input<'_> {
    /// A copy that outlives the request, for the model.
    pub(crate) fn to_content(&self) -> Content {
        match self {
            Self::Text(text) => Content::Text(text.as_ref().into()),
            Self::Tokens(tokens) => Content::Tokens(tokens.as_slice().into()),
        }
    }
}

impl<'a> Request<'a> {
    /// # Errors
    ///
    /// The body is not the JSON that is asked for; the error names the parameter.
    pub(crate) fn parse(
        body: &'a [u8],
        max_inputs: usize,
        passed_on: &[String],
    ) -> Result<Self, ApiError> {
        let mut field = None;
        let mut json = serde_json::Deserializer::from_slice(body);
        let fields = Fields { field: &mut field, passed_on }
            .deserialize(&mut json)
            .and_then(|fields| json.end().map(|()| fields));
        let fields = match fields {
            Ok(fields) => fields,
            Err(error) => {
                // Positions are of use in a body that is no JSON, not in one of the wrong shape.
                let message = if error.is_data() {
                    let text = error.to_string();
                    text.split(" at line ").next().unwrap_or(&text).to_owned()
                } else {
                    format!("the body is no JSON: {error}")
                };
                return Err(ApiError::Invalid { message, param: field });
            }
        };
        let missing = |name| ApiError::invalid(name, format!("the parameter {name:?} is missing"));
        let model = fields.model.ok_or_else(|| missing("model"))?;
        let inputs = match fields.input.ok_or_else(|| missing("input"))? {
            Form::One(text) => vec![Input::Text(text)],
            Form::Many(elements) => inputs(elements, max_inputs)?,
        };
        if let Some(index) = inputs.iter().position(Input::is_empty) {
            return Err(ApiError::invalid("input", format!("input {index} is empty")));
        }
        let encoding = match fields.encoding_format.as_deref() {
            None | Some("float") => Encoding::Float,
            Some("base64") => Encoding::Base64,
            Some(other) => {
                let message = format!("{other:?} is neither \"float\" nor \"base64\"");
                return Err(ApiError::invalid("encoding_format", message));
            }
        };
        let dimensions = match fields.dimensions {
            None => None,
            Some(n) => match usize::try_from(n) {
                Ok(n @ 1..=MOST_DIMENSIONS) => Some(n),
                _ => {
                    let message = format!("{n} is not from 1 to {MOST_DIMENSIONS}");
                    return Err(ApiError::invalid("dimensions", message));
                }
            },
        };
        Ok(Self { model, inputs, encoding, dimensions, extra: fields.extra })
    }
}

impl Input<'_> {
    fn is_empty(&self) -> bool {
        match self {
            Self::Text(text) => text.is_empty(),
            Self::Tokens(tokens) => tokens.is_empty(),
        }
    }
}

/// Texts, or token arrays, or the ids of a single token array; never a mixture.
fn inputs(elements: Vec<Element<'_>>, max_inputs: usize) -> Result<Vec<Input<'_>>, ApiError> {
    let count = elements.len();
    let mixed = |index: usize, first: &str| {
        let message = format!("input {index} is not {first}, as the first input is");
        ApiError::invalid("input", message)
    };
    let first = match elements.first() {
        None => return Err(ApiError::invalid("input", "the list of inputs is empty")),
        Some(Element::Id(_)) => {
            let mut ids = Vec::with_capacity(count);
            for (index, element) in elements.into_iter().enumerate() {
                let Element::Id(id) = element else { return Err(mixed(index, "a token id")) };
                ids.push(id);
            }
            return Ok(vec![Input::Tokens(ids)]);
        }
        Some(Element::Text(_)) => "a string",
        Some(Element::Ids(_)) => "a list of token ids",
    };
    if count > max_inputs {
        let message = format!("{count} inputs are over the limit of {max_inputs}");
        return Err(ApiError::invalid("input", message));
    }
    let mut inputs = Vec::with_capacity(count);
    for (index, element) in elements.into_iter().enumerate() {
        inputs.push(match (element, first) {
            (Element::Text(text), "a string") => Input::Text(text),
            (Element::Ids(ids), "a list of token ids") => Input::Tokens(ids),
            _ => return Err(mixed(index, first)),
        });
    }
    Ok(inputs)
}

/// The fields as they stand in the body.
#[derive(Default)]
struct FieldValues<'a> {
    model: Option<Cow<'a, str>>,
    input: Option<Form<'a>>,
    encoding_format: Option<Cow<'a, str>>,
    dimensions: Option<u64>,
    extra: serde_json::Map<String, serde_json::Value>,
}

/// Reads the fields and leaves the name of the one that it could not read.
struct Fields<'f> {
    field: &'f mut Option<String>,
    passed_on: &'f [String],
}

impl<'de> DeserializeSeed<'de> for Fields<'_> {
    type Value = FieldValues<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = FieldValues<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut values = FieldValues::default();
        let mut seen: Vec<String> = Vec::new();
        while let Some(Text(name)) = map.next_key()? {
            *self.field = Some(name.clone().into_owned());
            if seen.iter().any(|other| *other == name) {
                return Err(A::Error::custom(format_args!("{name:?} stands twice")));
            }
            match name.as_ref() {
                "model" => values.model = map.next_value::<Option<Text<'_>>>()?.map(|text| text.0),
                "input" => values.input = Some(map.next_value()?),
                "encoding_format" => {
                    values.encoding_format =
                        map.next_value::<Option<Text<'_>>>()?.map(|text| text.0);
                }
                "dimensions" => values.dimensions = map.next_value()?,
                "user" => drop(map.next_value::<IgnoredAny>()?),
                name if self.passed_on.iter().any(|passed| passed == name) => {
                    drop(values.extra.insert(name.to_owned(), map.next_value()?));
                }
                // Not passed over: what is not understood might change the vector.
                _ => return Err(A::Error::custom(format_args!("unknown parameter {name:?}"))),
            }
            seen.push(name.into_owned());
        }
        *self.field = None;
        Ok(values)
    }
}

/// A string, borrowed if it can be: serde's own `Cow` always copies.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// The forms that `input` has.
enum Form<'a> {
    One(Cow<'a, str>),
    Many(Vec<Element<'a>>),
}

/// The forms that an element of a list has.
enum Element<'a> {
    Text(Cow<'a, str>),
    Id(u32),
    Ids(Vec<u32>),
}

impl<'de> Deserialize<'de> for Form<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Forms;
        impl<'de> Visitor<'de> for Forms {
            type Value = Form<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a list of strings, or lists of token ids")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Form<'de>, E> {
                Ok(Form::One(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Form<'de>, E> {
                Ok(Form::One(Cow::Owned(text.to_owned())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Form<'de>, A::Error> {
                let mut elements = Vec::new();
                while let Some(element) = list.next_element()? {
                    elements.push(element);
                }
                Ok(Form::Many(elements))
            }
        }
        deserializer.deserialize_any(Forms)
    }
}

impl<'de> Deserialize<'de> for Element<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements;
        impl<'de> Visitor<'de> for Elements {
            type Value = Element<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a string, a token id from 0 to {}, or a list of token ids", u32::MAX)
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Element<'de>, E> {
                Ok(Element::Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Element<'de>, E> {
                Ok(Element::Text(Cow::Owned(text.to_owned())))
            }

            fn visit_u64<E: serde::de::Error>(self, id: u64) -> Result<Element<'de>, E> {
                let unexpected = serde::de::Unexpected::Unsigned(id);
                let id = id.try_into().map_err(|_| E::invalid_value(unexpected, &self))?;
                Ok(Element::Id(id))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Element<'de>, A::Error> {
                let mut ids = Vec::new();
                while let Some(id) = list.next_element()? {
                    ids.push(id);
                }
                Ok(Element::Ids(ids))
            }
        }
        deserializer.deserialize_any(Elements)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str) -> Result<Request<'_>, ApiError> {
        Request::parse(body.as_bytes(), 3, &["prompt_name".into()])
    }

    #[test]
    fn texts_without_escapes_are_borrowed() {
        let request = parse(r#"{"model":"m","input":["plain","with \n escape"]}"#).unwrap();
        assert!(matches!(&request.inputs[0], Input::Text(Cow::Borrowed("plain"))));
        assert!(
            matches!(&request.inputs[1], Input::Text(Cow::Owned(text)) if text == "with \n escape")
        );
    }

    #[test]
    fn all_forms_of_input_are_understood() {
        let forms = [
            (r#""a""#, vec![Input::Text("a".into())]),
            (r#"["a","b"]"#, vec![Input::Text("a".into()), Input::Text("b".into())]),
            ("[1,2,3,4]", vec![Input::Tokens(vec![1, 2, 3, 4])]),
            (
                "[[1],[2,4294967295]]",
                vec![Input::Tokens(vec![1]), Input::Tokens(vec![2, u32::MAX])],
            ),
        ];
        for (form, inputs) in forms {
            let body = format!(
                r#"{{"input":{form},"model":"m","user":{{"x":[1]}},"encoding_format":null,"dimensions":7}}"#
            );
            let request = parse(&body).unwrap();
            assert_eq!(request.inputs, inputs);
            assert_eq!((request.encoding, request.dimensions), (Encoding::Float, Some(7)));
        }
    }

    #[test]
    fn parameters_on_the_list_are_kept() {
        let request = parse(r#"{"model":"m","input":"a","prompt_name":{"b":1,"a":[2]}}"#).unwrap();
        let extra = serde_json::Value::Object(request.extra).to_string();
        assert_eq!(extra, r#"{"prompt_name":{"a":[2],"b":1}}"#);
        assert!(parse(r#"{"model":"m","input":"a","prompt_name":1,"prompt_name":2}"#).is_err());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = [
            ("", None),
            ("[]", None),
            ("\"m\"", None),
            (r#"{"model":"m","input":"a"} x"#, None),
            (r#"{"model":"m"}"#, Some("input")),
            (r#"{"input":"a"}"#, Some("model")),
            (r#"{"model":null,"input":"a"}"#, Some("model")),
            (r#"{"model":1,"input":"a"}"#, Some("model")),
            (r#"{"model":"m","input":null}"#, Some("input")),
            (r#"{"model":"m","input":1}"#, Some("input")),
            (r#"{"model":"m","input":{}}"#, Some("input")),
            (r#"{"model":"m","input":""}"#, Some("input")),
            (r#"{"model":"m","input":[]}"#, Some("input")),
            (r#"{"model":"m","input":["a",""]}"#, Some("input")),
            (r#"{"model":"m","input":[[]]}"#, Some("input")),
            (r#"{"model":"m","input":["a",1]}"#, Some("input")),
            (r#"{"model":"m","input":[1,"a"]}"#, Some("input")),
            (r#"{"model":"m","input":[[1],"a"]}"#, Some("input")),
            (r#"{"model":"m","input":[[1],["a"]]}"#, Some("input")),
            (r#"{"model":"m","input":[[[1]]]}"#, Some("input")),
            (r#"{"model":"m","input":[-1]}"#, Some("input")),
            (r#"{"model":"m","input":[1.5]}"#, Some("input")),
            (r#"{"model":"m","input":[4294967296]}"#, Some("input")),
            (r#"{"model":"m","input":[true]}"#, Some("input")),
            (r#"{"model":"m","input":["a","b","c","d"]}"#, Some("input")),
            (r#"{"model":"m","input":"a","encoding_format":"int8"}"#, Some("encoding_format")),
            (r#"{"model":"m","input":"a","encoding_format":1}"#, Some("encoding_format")),
            (r#"{"model":"m","input":"a","dimensions":0}"#, Some("dimensions")),
            (r#"{"model":"m","input":"a","dimensions":-1}"#, Some("dimensions")),
            (r#"{"model":"m","input":"a","dimensions":65537}"#, Some("dimensions")),
            (r#"{"model":"m","input":"a","dimensions":"8"}"#, Some("dimensions")),
            (r#"{"model":"m","input":"a","truncate":true}"#, Some("truncate")),
            (r#"{"model":"m","input":"a","input":"b"}"#, Some("input")),
        ];
        for (body, expected) in wrong {
            match parse(body) {
                Err(ApiError::Invalid { message, param }) => {
                    assert_eq!(param.as_deref(), expected, "{body}: {message}");
                }
                other => panic!("{body}: {other:?}"),
            }
        }
        let deep = format!(r#"{{"model":"m","input":{}"#, "[".repeat(100_000));
        assert!(parse(&deep).is_err());
    }
}
