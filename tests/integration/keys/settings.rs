//! A specification and an input as plain data, to make keys of, to compare, and to hand to the program
//! in `docs/keys.md`.

use std::sync::Arc;

use embedding_cache::{CacheKey, ContentKey, EmbeddingKey, KeySpec, Role, Truncation};
use serde_json::{Value, json};

pub(crate) const ROLES: [(Role, &str); 8] = [
    (Role::Query, "query"),
    (Role::Document, "document"),
    (Role::Classification, "classification"),
    (Role::Clustering, "clustering"),
    (Role::Similarity, "similarity"),
    (Role::QuestionAnswering, "question-answering"),
    (Role::FactVerification, "fact-verification"),
    (Role::CodeQuery, "code-query"),
];

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) model: String,
    pub(crate) revision: Option<String>,
    pub(crate) role: Option<Role>,
    pub(crate) prompt: Option<String>,
    pub(crate) dimensions: Option<usize>,
    pub(crate) normalize: Option<bool>,
    pub(crate) truncation: Option<Truncation>,
    pub(crate) tenant: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    Text(String),
    Tokens(Vec<u32>),
    Bytes(Vec<u8>),
}

pub(crate) trait Kind: EmbeddingKey {
    fn for_model(model: Arc<str>) -> KeySpec<Self>;
}

impl Kind for CacheKey {
    fn for_model(model: Arc<str>) -> KeySpec<Self> {
        Self::for_model(model)
    }
}

impl Kind for ContentKey {
    fn for_model(model: Arc<str>) -> KeySpec<Self> {
        Self::for_model(model)
    }
}

impl Settings {
    pub(crate) fn of(model: &str) -> Self {
        Self { model: model.into(), ..Self::default() }
    }

    /// The specification, with its builder's methods called from place `first` on and around.
    pub(crate) fn spec_from<K: Kind>(&self, first: usize) -> KeySpec<K> {
        let mut spec = K::for_model(self.model.as_str().into());
        for call in 0..7 {
            spec = match (call + first) % 7 {
                0 => self.revision.iter().fold(spec, |spec, revision| spec.revision(revision)),
                1 => self.role.iter().fold(spec, |spec, role| spec.role(*role)),
                2 => self.prompt.iter().fold(spec, |spec, prompt| spec.prompt(prompt)),
                3 => self.dimensions.iter().fold(spec, |spec, number| spec.dimensions(*number)),
                4 => self.normalize.iter().fold(spec, |spec, yes| spec.normalize(*yes)),
                5 => self.truncation.iter().fold(spec, |spec, how| spec.truncation(*how)),
                _ => self.tenant.iter().fold(spec, |spec, tenant| spec.tenant(tenant)),
            };
        }
        spec
    }

    pub(crate) fn key<K: Kind>(&self, input: &Input) -> K {
        input.key(&self.spec_from(0))
    }

    /// The arguments of `key` in the program.
    pub(crate) fn arguments(&self, input: &Input) -> Value {
        let role = self.role.map(|role| ROLES.iter().find(|(known, _)| *known == role).unwrap().1);
        let truncation = self.truncation.map(|truncation| match truncation {
            Truncation::KeepStart { max_tokens } => json!(["keep-start", max_tokens]),
            Truncation::KeepEnd { max_tokens } => json!(["keep-end", max_tokens]),
            Truncation::Refuse => json!(["refuse"]),
            _ => unreachable!("not in these tests"),
        });
        let mut arguments = json!({
            "model": self.model,
            "revision": self.revision,
            "role": role,
            "prompt": self.prompt,
            "dimensions": self.dimensions,
            "normalize": self.normalize,
            "truncation": truncation,
            "tenant": self.tenant,
        });
        let arguments_map = arguments.as_object_mut().unwrap();
        arguments_map.retain(|_, value| !value.is_null());
        let (name, value) = match input {
            Input::Text(text) => ("text", json!(text)),
            Input::Tokens(tokens) => ("tokens", json!(tokens)),
            Input::Bytes(bytes) => ("bytes", json!(bytes)),
        };
        arguments_map.insert(name.into(), value);
        arguments
    }
}

impl Input {
    pub(crate) fn text(text: &str) -> Self {
        Self::Text(text.into())
    }

    pub(crate) fn key<K: Kind>(&self, spec: &KeySpec<K>) -> K {
        match self {
            Self::Text(text) => spec.text(text),
            Self::Tokens(tokens) => spec.tokens(tokens),
            Self::Bytes(bytes) => spec.bytes(bytes),
        }
    }
}
