//! What determines a vector beside the text, said once for a model and used for many texts.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use super::cache_key::CacheKey;
use super::content_key::ContentKey;
use super::framing::{Field, Framing};
use super::names::{NO_TENANT, Tag, model_tag, tagged, tenant_tag};
use super::repr::EmbeddingKey;

/// What a text is embedded for, where a model makes different vectors for different uses.
///
/// The names providers use, in the order Cohere, Voyage, Google, Jina, Nomic:
///
/// | | |
/// |---|---|
/// | `Query` | `search_query`, `query`, `RETRIEVAL_QUERY`, `retrieval.query`, `search_query` |
/// | `Document` | `search_document`, `document`, `RETRIEVAL_DOCUMENT`, `retrieval.passage`, `search_document` |
/// | `Classification` | `classification`, –, `CLASSIFICATION`, `classification`, `classification` |
/// | `Clustering` | `clustering`, –, `CLUSTERING`, `separation`, `clustering` |
/// | `Similarity` | –, –, `SEMANTIC_SIMILARITY`, `text-matching`, – |
/// | `QuestionAnswering`, `FactVerification`, `CodeQuery` | Google's `QUESTION_ANSWERING`, `FACT_VERIFICATION`, `CODE_RETRIEVAL_QUERY` |
///
/// A use that is not here goes into [`KeySpec::prompt`], by the name the provider has for it; never
/// into the nearest role, which would share its vectors.
///
/// # Examples
///
/// ```
/// use embedding_cache::{ContentKey, Role};
///
/// let spec = ContentKey::for_model("e5-base");
/// let (query, document) = (spec.clone().role(Role::Query), spec.role(Role::Document));
/// assert_ne!(query.text("rust"), document.text("rust"));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Role {
    /// What is searched with.
    Query,
    /// What is searched for: a document, a passage.
    Document,
    /// The input of a classifier.
    Classification,
    /// To be grouped with others.
    Clustering,
    /// To be compared with others of this same role.
    Similarity,
    /// A question whose answer is searched for.
    QuestionAnswering,
    /// A statement for which evidence is searched for.
    FactVerification,
    /// A question about code in words.
    CodeQuery,
}

impl Role {
    /// What stands for it in a key: part of the framing.
    const fn name(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::Document => "document",
            Self::Classification => "classification",
            Self::Clustering => "clustering",
            Self::Similarity => "similarity",
            Self::QuestionAnswering => "question-answering",
            Self::FactVerification => "fact-verification",
            Self::CodeQuery => "code-query",
        }
    }
}

/// What becomes of a text that is longer than the model takes.
///
/// Named by what is kept, as providers do not agree: Cohere's `END` and the `Right` of Hugging Face's
/// server cut off the end, which is [`KeepStart`](Self::KeepStart) here.
///
/// # Examples
///
/// ```
/// use embedding_cache::{ContentKey, Truncation};
///
/// let spec = ContentKey::for_model("e5-base");
/// let short = spec.clone().truncation(Truncation::KeepStart { max_tokens: 256 });
/// let long = spec.truncation(Truncation::KeepStart { max_tokens: 512 });
/// assert_ne!(short.text("a"), long.text("a"), "also for a text that both keep: one miss, no fault");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Truncation {
    /// The beginning is embedded.
    KeepStart {
        /// How many tokens of it at most; the model's own limit where none is configured.
        max_tokens: usize,
    },
    /// The end is embedded.
    KeepEnd {
        /// How many tokens of it at most; the model's own limit where none is configured.
        max_tokens: usize,
    },
    /// Nothing is cut off: the model refuses such a text. What it does answer is of a whole text.
    Refuse,
}

impl Truncation {
    /// What stands for it in a key: part of the framing. The bytes, and how many of them count.
    fn bytes(self) -> ([u8; 9], usize) {
        let keep = |kind: u8, max_tokens: usize| {
            let mut bytes = [kind; 9];
            bytes[1..].copy_from_slice(&(max_tokens as u64).to_le_bytes());
            (bytes, 9)
        };
        match self {
            Self::KeepStart { max_tokens } => keep(1, max_tokens),
            Self::KeepEnd { max_tokens } => keep(2, max_tokens),
            Self::Refuse => ([3; 9], 1),
        }
    }
}

/// What determines a vector beside the text: a specification that is made once for a model, and
/// makes the keys of many texts. From [`CacheKey::for_model`](crate::CacheKey::for_model) or
/// [`ContentKey::for_model`].
///
/// Everything that changes the vector must be said here, or entries with different vectors share a
/// key. What has no setting of its own goes into [`revision`](Self::revision): pooling, the number
/// type the model computes with, an adapter, quantization of the output. What does not change the
/// vector is to be left out, as it would only make misses: how the answer is encoded
/// (`encoding_format`), who asks (`user`), batch sizes, timeouts, the address of the server.
///
/// - A setting that is not set differs from every value of it, the provider's default included: a
///   default may change. Setting one twice, the last counts. The order of the calls does not matter.
/// - Texts are taken byte by byte: no Unicode normalization, no trimming, no change of case.
/// - Keys come from a SHA-256 in which every field has its kind and its length before it, so that
///   neither `("ab", "c")` and `("a", "bc")`, nor a text and the same bytes, nor a prompt and a tenant
///   can be taken for each other. `docs/keys.md` has every byte.
///
/// A clone is a reference count, and the first change to it one allocation more: cheap enough for a
/// tenant that comes with a request. All settings are hashed when they are set; a key costs a pass over
/// its text only. Threads may share a specification. Where a type names one, `KeySpec` alone is that of
/// [`CacheKey`]s.
///
/// # Examples
///
/// ```
/// use embedding_cache::{CacheKey, Role};
///
/// let model = CacheKey::for_model("text-embedding-3-small").revision("2024-01").dimensions(512);
/// let queries = model.clone().role(Role::Query);
/// let documents = model.role(Role::Document);
///
/// let key = queries.text("what is a cache?");
/// assert_eq!(key.model_version, "text-embedding-3-small@2024-01");
/// assert_ne!(key, documents.text("what is a cache?"));
/// assert_eq!(key, queries.text("what is a cache?"));
/// ```
#[must_use]
pub struct KeySpec<K = CacheKey> {
    spec: Arc<Spec>,
    /// Makes keys and holds none.
    makes: PhantomData<fn() -> K>,
}

#[derive(Clone)]
struct Spec {
    settings: Settings,
    /// For people: the model, with its revision if that is set.
    model_version: Arc<str>,
    model_tag: Tag,
    tenant_tag: Tag,
    /// Has taken in all settings, and no text.
    framing: Framing,
}

#[derive(Clone)]
struct Settings {
    model: Arc<str>,
    revision: Option<Arc<str>>,
    role: Option<Role>,
    prompt: Option<Arc<str>>,
    dimensions: Option<usize>,
    normalize: Option<bool>,
    truncation: Option<Truncation>,
    tenant: Option<Arc<str>>,
}

impl Settings {
    /// All that is set, in the one order of the framing.
    fn framed(&self) -> Framing {
        let mut framing = Framing::new();
        framing.field(Field::Model, self.model.as_bytes());
        if let Some(revision) = &self.revision {
            framing.field(Field::Revision, revision.as_bytes());
        }
        if let Some(role) = self.role {
            framing.field(Field::Role, role.name().as_bytes());
        }
        if let Some(prompt) = &self.prompt {
            framing.field(Field::Prompt, prompt.as_bytes());
        }
        if let Some(dimensions) = self.dimensions {
            framing.field(Field::Dimensions, &(dimensions as u64).to_le_bytes());
        }
        if let Some(normalize) = self.normalize {
            framing.field(Field::Normalize, &[u8::from(normalize)]);
        }
        if let Some(truncation) = self.truncation {
            let (bytes, len) = truncation.bytes();
            framing.field(Field::Truncation, &bytes[..len]);
        }
        if let Some(tenant) = &self.tenant {
            framing.field(Field::Tenant, tenant.as_bytes());
        }
        framing
    }
}

impl CacheKey {
    /// Starts to say what, beside the text, determines the vectors of `model`; see [`KeySpec`]. Its
    /// keys have the 64 hexadecimal digits of the corresponding [`ContentKey`] as `content_hash`, and
    /// `model` or `model@revision` as `model_version`.
    ///
    /// `model` is the name without a revision; names are taken byte by byte. `O(model)`, two
    /// allocations. Model and revision are part of the key, which a cache refuses over 1 MiB; nothing
    /// else is limited.
    ///
    /// # Examples
    ///
    /// ```
    /// use embedding_cache::CacheKey;
    ///
    /// let spec = CacheKey::for_model("e5-base").revision("1");
    /// let key = spec.text("a text").with_chunk("7");
    /// assert_eq!(key.model_version, "e5-base@1");
    /// ```
    pub fn for_model(model: impl Into<Arc<str>>) -> KeySpec<Self> {
        KeySpec::new(model.into())
    }
}

impl ContentKey {
    /// Starts to say what, beside the text, determines the vectors of `model`; see [`KeySpec`].
    ///
    /// `model` is the name without a revision, of any length; names are taken byte by byte.
    /// `O(model)`, two allocations.
    ///
    /// # Examples
    ///
    /// ```
    /// use embedding_cache::ContentKey;
    ///
    /// let spec = ContentKey::for_model("text-embedding-3-small").dimensions(512);
    /// assert_ne!(spec.text("a"), spec.text("b"));
    /// assert_eq!(spec.text("a"), spec.text("a"));
    /// ```
    pub fn for_model(model: impl Into<Arc<str>>) -> KeySpec<Self> {
        KeySpec::new(model.into())
    }
}

impl<K: EmbeddingKey> KeySpec<K> {
    fn new(model: Arc<str>) -> Self {
        let settings = Settings {
            model: Arc::clone(&model),
            revision: None,
            role: None,
            prompt: None,
            dimensions: None,
            normalize: None,
            truncation: None,
            tenant: None,
        };
        let spec = Spec {
            model_tag: model_tag(model.as_bytes()),
            tenant_tag: NO_TENANT,
            framing: settings.framed(),
            settings,
            model_version: model,
        };
        Self { spec: Arc::new(spec), makes: PhantomData }
    }

    fn with(mut self, set: impl FnOnce(&mut Spec)) -> Self {
        let spec = Arc::make_mut(&mut self.spec);
        set(spec);
        spec.framing = spec.settings.framed();
        self
    }

    /// Which revision of the model: a version, a date, a commit, and whatever else changes its vectors
    /// and has no setting here. `O(settings)`, three allocations.
    ///
    /// ```
    /// # use embedding_cache::CacheKey;
    /// let key = CacheKey::for_model("e5-base").revision("2").text("a");
    /// assert_eq!(key.model_version, "e5-base@2");
    /// ```
    pub fn revision(self, revision: &str) -> Self {
        self.with(|spec| {
            spec.settings.revision = Some(revision.into());
            spec.model_version = format!("{}@{revision}", spec.settings.model).into();
        })
    }

    /// What the texts are embedded for. `O(settings)`, no allocation.
    ///
    /// ```
    /// # use embedding_cache::{ContentKey, Role};
    /// let spec = ContentKey::for_model("e5-base");
    /// assert_ne!(spec.text("a"), spec.clone().role(Role::Query).text("a"));
    /// ```
    pub fn role(self, role: Role) -> Self {
        self.with(|spec| spec.settings.role = Some(role))
    }

    /// What the model is given with each text, an instruction or a prefix, where it is not part of the
    /// text itself; a template as it stands. `O(settings)`, one allocation.
    ///
    /// ```
    /// # use embedding_cache::ContentKey;
    /// let spec = ContentKey::for_model("e5-base");
    /// let prompted = spec.clone().prompt("query: ");
    /// assert_ne!(prompted.text("a"), spec.text("query: a"), "at worst a miss");
    /// ```
    pub fn prompt(self, prompt: &str) -> Self {
        self.with(|spec| spec.settings.prompt = Some(prompt.into()))
    }

    /// How many components are asked of a model that offers several numbers of them; not the length
    /// of the vector where nothing was asked. `O(settings)`, no allocation.
    ///
    /// ```
    /// # use embedding_cache::ContentKey;
    /// let spec = ContentKey::for_model("text-embedding-3-small");
    /// assert_ne!(spec.clone().dimensions(512).text("a"), spec.dimensions(1536).text("a"));
    /// ```
    pub fn dimensions(self, dimensions: usize) -> Self {
        self.with(|spec| spec.settings.dimensions = Some(dimensions))
    }

    /// Whether the vectors are scaled to length 1. `O(settings)`, no allocation.
    ///
    /// ```
    /// # use embedding_cache::ContentKey;
    /// let spec = ContentKey::for_model("e5-base");
    /// assert_ne!(spec.clone().normalize(true).text("a"), spec.normalize(false).text("a"));
    /// ```
    pub fn normalize(self, normalize: bool) -> Self {
        self.with(|spec| spec.settings.normalize = Some(normalize))
    }

    /// What becomes of texts that are too long. `O(settings)`, no allocation.
    ///
    /// ```
    /// # use embedding_cache::{ContentKey, Truncation};
    /// let spec = ContentKey::for_model("e5-base");
    /// assert_ne!(spec.clone().truncation(Truncation::Refuse).text("a"), spec.text("a"));
    /// ```
    pub fn truncation(self, truncation: Truncation) -> Self {
        self.with(|spec| spec.settings.truncation = Some(truncation))
    }

    /// Whose entry it is, where entries must not be shared: by one tenant's key another's entry is
    /// never found. A tag of it stands in the key, by which all entries of a tenant can be found.
    /// `O(settings)`, one allocation.
    ///
    /// ```
    /// # use embedding_cache::ContentKey;
    /// let spec = ContentKey::for_model("e5-base");
    /// assert_ne!(spec.clone().tenant("acme").text("a"), spec.tenant("").text("a"));
    /// ```
    pub fn tenant(self, tenant: &str) -> Self {
        self.with(|spec| {
            spec.settings.tenant = Some(tenant.into());
            spec.tenant_tag = tenant_tag(tenant);
        })
    }

    /// The key of `text`, as it is handed to the model. One pass over it, `O(text)`; allocates
    /// nothing for a [`ContentKey`], and two strings for a [`CacheKey`].
    ///
    /// ```
    /// # use embedding_cache::ContentKey;
    /// let spec = ContentKey::for_model("e5-base");
    /// assert_ne!(spec.text("a"), spec.text("a "));
    /// ```
    #[must_use]
    pub fn text(&self, text: &str) -> K {
        self.key(|framing| framing.field(Field::Text, text.as_bytes()))
    }

    /// The key of a text that is handed to the model as `tokens`. Differs from that of the text: which
    /// tokens it is, only the model's tokenizer could say. One pass, `O(tokens)`; allocates nothing for
    /// a [`ContentKey`], and two strings for a [`CacheKey`].
    ///
    /// ```
    /// # use embedding_cache::ContentKey;
    /// let spec = ContentKey::for_model("e5-base");
    /// assert_ne!(spec.tokens(&[101, 7592, 102]), spec.tokens(&[101, 102]));
    /// ```
    #[must_use]
    pub fn tokens(&self, tokens: &[u32]) -> K {
        self.key(|framing| framing.tokens(tokens))
    }

    /// The key of what is no text: an image, a recording. Differs from that of a text with the same
    /// bytes. One pass, `O(bytes)`; allocates nothing for a [`ContentKey`], and two strings for a
    /// [`CacheKey`].
    ///
    /// ```
    /// # use embedding_cache::ContentKey;
    /// let spec = ContentKey::for_model("clip-vit-b-32");
    /// assert_ne!(spec.bytes(b"abc"), spec.text("abc"));
    /// ```
    #[must_use]
    pub fn bytes(&self, bytes: &[u8]) -> K {
        self.key(|framing| framing.field(Field::Bytes, bytes))
    }

    fn key(&self, input: impl FnOnce(&mut Framing)) -> K {
        let spec = &*self.spec;
        let mut framing = spec.framing.clone();
        input(&mut framing);
        let bytes = tagged((spec.model_tag, spec.tenant_tag), framing.finish());
        K::specified(bytes, &spec.model_version)
    }
}

impl<K> Clone for KeySpec<K> {
    fn clone(&self) -> Self {
        Self { spec: Arc::clone(&self.spec), makes: PhantomData }
    }
}

/// What is set; of a long prompt only the beginning and the length.
impl<K> fmt::Debug for KeySpec<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Characters that are shown of a text.
        const SHOWN: usize = 24;

        struct Beginning<'a>(&'a str);

        impl fmt::Debug for Beginning<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.0.char_indices().nth(SHOWN) {
                    None => self.0.fmt(f),
                    Some((end, _)) => write!(f, "{:?}… ({} bytes)", &self.0[..end], self.0.len()),
                }
            }
        }

        let mut shown = f.debug_struct("KeySpec");
        let settings = &self.spec.settings;
        let mut text = |name, text: Option<&str>| {
            if let Some(text) = text {
                shown.field(name, &Beginning(text));
            }
        };
        text("model", Some(&settings.model));
        text("revision", settings.revision.as_deref());
        text("prompt", settings.prompt.as_deref());
        text("tenant", settings.tenant.as_deref());
        if let Some(role) = settings.role {
            shown.field("role", &role);
        }
        if let Some(dimensions) = settings.dimensions {
            shown.field("dimensions", &dimensions);
        }
        if let Some(normalize) = settings.normalize {
            shown.field("normalize", &normalize);
        }
        if let Some(truncation) = settings.truncation {
            shown.field("truncation", &truncation);
        }
        shown.finish()
    }
}
