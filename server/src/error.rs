//! Every refusal as the JSON object that OpenAI's clients expect, with the right status.

use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use embedding_cache::CacheError;

use crate::backend::EmbedError;
use crate::service::Unsaved;

/// Why a request got no vectors.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("there is nothing at {path}")]
    UnknownPath { path: String },
    #[error("{method} is not possible at {path}")]
    Method { method: Method, path: String },
    #[error(
        "the content type is {0}; a JSON body with the content type application/json is needed"
    )]
    ContentType(String),
    #[error("the content encoding is {0}; a body is read as it is, or compressed with gzip")]
    ContentEncoding(String),
    #[error("the body is no gzip: {0}")]
    Gzip(String),
    #[error("the body is over the limit of {limit} bytes")]
    BodyTooLarge { limit: usize },
    #[error(
        "the answer would take up to {bytes} bytes, over the limit of {limit}: ask for fewer inputs, \
         fewer dimensions, or the encoding_format \"base64\""
    )]
    AnswerTooLarge { bytes: usize, limit: usize },
    #[error("the requests being worked on leave no room for one of this size; try again")]
    NoRoom,
    #[error("this server is stopping")]
    Stopping,
    #[error("too many requests wait for the model {model:?}; try again")]
    ModelBusy { model: String },
    #[error("the body did not arrive within {seconds} s")]
    BodyTimeout { seconds: f64 },
    #[error("the body broke off: {0}")]
    BodyBroken(String),
    /// The body is no JSON, or not the JSON that is asked for.
    #[error("{message}")]
    Invalid { message: String, param: Option<String> },
    #[error("the model {model:?} does not exist here; served are: {served}")]
    ModelNotFound { model: String, served: String },
    #[error("{limit} requests are being worked on, which is the limit; try again")]
    Busy { limit: usize },
    #[error("the queue before the model is full; try again")]
    Overloaded,
    #[error("the vectors were not there after {seconds} s")]
    Timeout { seconds: f64 },
    #[error("this server runs without a cache")]
    NoCache,
    /// What the model, or the server that was asked, did wrong.
    #[error("{error}")]
    Embed {
        error: EmbedError,
        /// Whether the upstream was sent the client's own key.
        own_key: bool,
    },
    /// The same for one input of several.
    #[error("input {index} of {of}: {source}")]
    Item { index: usize, of: usize, source: Box<ApiError> },
    /// The same for one of several that were asked for together.
    #[error(
        "one of {inputs} inputs that were asked for together, from input {first} of {of} on: {source}"
    )]
    OneOf { inputs: usize, first: usize, of: usize, source: Box<ApiError> },
    #[error("the cache failed: {0}")]
    Cache(CacheError),
    /// The vectors are gone here, and would come back from there.
    #[error("the second tier could not be told, so its vectors are not removed; try again: {0}")]
    Tier(CacheError),
    /// The same of the snapshot.
    #[error("the snapshot could not be saved, so its vectors would come back; try again: {0}")]
    Snapshot(Unsaved),
}

/// The parts of an answer that depend on the kind of error.
struct Face {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    retry_after: Option<u64>,
    /// Whether OpenAI's clients, which try again after every 5xx, are told not to.
    permanent: bool,
}

impl Face {
    fn new(status: StatusCode, kind: &'static str, code: Option<&'static str>) -> Self {
        Self { status, kind, code, retry_after: None, permanent: false }
    }

    fn retry_after(self, seconds: u64) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }

    fn permanent(self) -> Self {
        Self { permanent: true, ..self }
    }
}

const REQUEST: &str = "invalid_request_error";
const LOAD: &str = "rate_limit_error";
const SERVER: &str = "server_error";
const UPSTREAM: &str = "upstream_error";

impl ApiError {
    pub(crate) fn invalid(param: &str, message: impl Into<String>) -> Self {
        Self::Invalid { message: message.into(), param: Some(param.into()) }
    }

    /// The failure of one input of several.
    pub(crate) fn item(index: usize, of: usize, source: Self) -> Self {
        Self::Item { index, of, source: Box::new(source) }
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.face().status
    }

    fn face(&self) -> Face {
        use StatusCode as S;
        match self {
            Self::UnknownPath { .. } => Face::new(S::NOT_FOUND, REQUEST, Some("unknown_url")),
            Self::Method { .. } => {
                Face::new(S::METHOD_NOT_ALLOWED, REQUEST, Some("method_not_allowed"))
            }
            Self::ContentType(_) | Self::ContentEncoding(_) => {
                Face::new(S::UNSUPPORTED_MEDIA_TYPE, REQUEST, Some("unsupported_media_type"))
            }
            Self::BodyTooLarge { .. } => {
                Face::new(S::PAYLOAD_TOO_LARGE, REQUEST, Some("request_too_large"))
            }
            Self::AnswerTooLarge { .. } => {
                Face::new(S::BAD_REQUEST, REQUEST, Some("answer_too_large"))
            }
            Self::BodyTimeout { .. } => {
                Face::new(S::REQUEST_TIMEOUT, REQUEST, Some("request_timeout"))
            }
            Self::BodyBroken(_) | Self::Gzip(_) | Self::Invalid { .. } => {
                Face::new(S::BAD_REQUEST, REQUEST, None)
            }
            Self::ModelNotFound { .. } => Face::new(S::NOT_FOUND, REQUEST, Some("model_not_found")),
            Self::Busy { .. } | Self::Overloaded | Self::NoRoom | Self::ModelBusy { .. } => {
                overload(1)
            }
            Self::Stopping => {
                Face::new(S::SERVICE_UNAVAILABLE, SERVER, Some("stopping")).retry_after(1)
            }
            Self::Timeout { .. } => Face::new(S::GATEWAY_TIMEOUT, SERVER, Some("timeout")),
            Self::NoCache => Face::new(S::NOT_FOUND, REQUEST, Some("no_cache")),
            Self::Embed { error, own_key } => embed_face(error, *own_key),
            Self::Item { source, .. } | Self::OneOf { source, .. } => source.face(),
            Self::Tier(_) => {
                Face::new(S::SERVICE_UNAVAILABLE, SERVER, Some("tier_failed")).retry_after(1)
            }
            Self::Snapshot(_) => {
                Face::new(S::SERVICE_UNAVAILABLE, SERVER, Some("snapshot_failed")).retry_after(1)
            }
            Self::Cache(_) => Face::new(S::INTERNAL_SERVER_ERROR, SERVER, None),
        }
    }

    fn param(&self) -> Option<String> {
        match self {
            Self::Invalid { param, .. } => param.clone(),
            Self::ModelNotFound { .. } => Some("model".into()),
            Self::AnswerTooLarge { .. } | Self::OneOf { .. } => Some("input".into()),
            Self::Item { index, .. } => Some(format!("input[{index}]")),
            _ => None,
        }
    }
}

fn overload(seconds: u64) -> Face {
    Face::new(StatusCode::TOO_MANY_REQUESTS, LOAD, Some("rate_limit_exceeded")).retry_after(seconds)
}

/// What an error of the model means to who asked us: their request, our load, or a server behind.
fn embed_face(error: &EmbedError, own_key: bool) -> Face {
    use StatusCode as S;
    match error {
        EmbedError::Timeout { .. } => {
            Face::new(S::GATEWAY_TIMEOUT, UPSTREAM, Some("upstream_timeout"))
        }
        EmbedError::Status { status, retry_after, .. } => match *status {
            // These are about what was asked, which came from the client.
            400 | 413 | 422 => Face::new(S::BAD_REQUEST, REQUEST, Some("upstream_refused")),
            404 => Face::new(S::NOT_FOUND, REQUEST, Some("model_not_found")),
            401 if own_key => {
                Face::new(S::UNAUTHORIZED, "authentication_error", Some("invalid_api_key"))
            }
            403 if own_key => {
                Face::new(S::FORBIDDEN, "permission_error", Some("permission_denied"))
            }
            // The key is this server's: the client can do nothing about it, now or later.
            401 | 403 => {
                Face::new(S::BAD_GATEWAY, UPSTREAM, Some("upstream_unauthorized")).permanent()
            }
            429 => overload(retry_after.unwrap_or(1)),
            503 => {
                let face = Face::new(S::SERVICE_UNAVAILABLE, UPSTREAM, Some("upstream_failed"));
                face.retry_after(retry_after.unwrap_or(1))
            }
            504 => Face::new(S::GATEWAY_TIMEOUT, UPSTREAM, Some("upstream_timeout")),
            // Neither an answer nor an error: the URL is that of something else.
            100..400 => {
                Face::new(S::BAD_GATEWAY, UPSTREAM, Some("upstream_invalid_answer")).permanent()
            }
            _ => Face::new(S::BAD_GATEWAY, UPSTREAM, Some("upstream_failed")),
        },
        EmbedError::Down { seconds, .. } => {
            let face = Face::new(S::SERVICE_UNAVAILABLE, UPSTREAM, Some("upstream_down"));
            face.retry_after(*seconds)
        }
        EmbedError::Unreachable { .. } | EmbedError::Broken { .. } => {
            Face::new(S::BAD_GATEWAY, UPSTREAM, Some("upstream_unreachable"))
        }
        EmbedError::ErrorObject { .. } => {
            Face::new(S::BAD_GATEWAY, UPSTREAM, Some("upstream_failed"))
        }
        // Asked for again, it would be the same: something has to be configured otherwise.
        EmbedError::WrongDimensions { .. } => {
            Face::new(S::UNPROCESSABLE_ENTITY, REQUEST, Some("wrong_dimensions"))
        }
        // The model takes this input for another number of vectors, or for one that is none: that is
        // the same each time too.
        EmbedError::Answer { .. }
        | EmbedError::WrongCount { .. }
        | EmbedError::NotFinite { .. }
        | EmbedError::Empty => {
            Face::new(S::BAD_GATEWAY, UPSTREAM, Some("upstream_invalid_answer")).permanent()
        }
        EmbedError::QueueFull { .. } => overload(1),
        EmbedError::OutOfCalls | EmbedError::Panicked => {
            Face::new(S::INTERNAL_SERVER_ERROR, SERVER, None)
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Face { status, kind, code, retry_after, permanent } = self.face();
        let body = serde_json::json!({
            "error": {
                "message": self.to_string(),
                "type": kind,
                "param": self.param(),
                "code": code,
            }
        });
        let content_type = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let mut response = (status, [content_type], body.to_string()).into_response();
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if permanent {
            let never = HeaderValue::from_static("false");
            response.headers_mut().insert("x-should-retry", never);
        }
        response
    }
}
