//! Every refusal as the JSON object that OpenAI's clients expect, with the right status.

use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use embedding_cache::CacheError;

use crate::backend::EmbedError;

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
    #[error("the body is over the limit of {limit} bytes")]
    BodyTooLarge { limit: usize },
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
    #[error("{0}")]
    Embed(EmbedError),
    /// The same for one input of several.
    #[error("input {index} of {of}: {source}")]
    Item { index: usize, of: usize, source: Box<ApiError> },
    #[error("the cache failed: {0}")]
    Cache(CacheError),
}

/// The parts of an answer that depend on the kind of error.
struct Face {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    retry_after: Option<u64>,
}

const REQUEST: &str = "invalid_request_error";
const LOAD: &str = "rate_limit_error";
const SERVER: &str = "server_error";
const UPSTREAM: &str = "upstream_error";

impl ApiError {
    pub(crate) fn invalid(param: &str, message: impl Into<String>) -> Self {
        Self::Invalid { message: message.into(), param: Some(param.into()) }
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.face().status
    }

    fn face(&self) -> Face {
        let face = |status, kind, code| Face { status, kind, code, retry_after: None };
        match self {
            Self::UnknownPath { .. } => face(StatusCode::NOT_FOUND, REQUEST, Some("unknown_url")),
            Self::Method { .. } => {
                face(StatusCode::METHOD_NOT_ALLOWED, REQUEST, Some("method_not_allowed"))
            }
            Self::ContentType(_) => {
                face(StatusCode::UNSUPPORTED_MEDIA_TYPE, REQUEST, Some("unsupported_media_type"))
            }
            Self::BodyTooLarge { .. } => {
                face(StatusCode::PAYLOAD_TOO_LARGE, REQUEST, Some("request_too_large"))
            }
            Self::BodyTimeout { .. } => {
                face(StatusCode::REQUEST_TIMEOUT, REQUEST, Some("request_timeout"))
            }
            Self::BodyBroken(_) | Self::Invalid { .. } => {
                face(StatusCode::BAD_REQUEST, REQUEST, None)
            }
            Self::ModelNotFound { .. } => {
                face(StatusCode::NOT_FOUND, REQUEST, Some("model_not_found"))
            }
            Self::Busy { .. } | Self::Overloaded => Face {
                retry_after: Some(1),
                ..face(StatusCode::TOO_MANY_REQUESTS, LOAD, Some("rate_limit_exceeded"))
            },
            Self::Timeout { .. } => face(StatusCode::GATEWAY_TIMEOUT, SERVER, Some("timeout")),
            Self::NoCache => face(StatusCode::NOT_FOUND, REQUEST, Some("no_cache")),
            Self::Embed(error) => embed_face(error),
            Self::Item { source, .. } => source.face(),
            Self::Cache(_) => face(StatusCode::INTERNAL_SERVER_ERROR, SERVER, None),
        }
    }

    fn param(&self) -> Option<String> {
        match self {
            Self::Invalid { param, .. } => param.clone(),
            Self::ModelNotFound { .. } => Some("model".into()),
            Self::Item { index, .. } => Some(format!("input[{index}]")),
            _ => None,
        }
    }
}

/// What an error of the model means to who asked us: their request, our load, or a server behind.
fn embed_face(error: &EmbedError) -> Face {
    let face = |status, kind, code| Face { status, kind, code, retry_after: None };
    match error {
        EmbedError::Timeout { .. } => {
            face(StatusCode::GATEWAY_TIMEOUT, UPSTREAM, Some("upstream_timeout"))
        }
        EmbedError::Status { status, retry_after, .. } => match *status {
            // These are about what was asked, which came from the client.
            400 | 413 | 422 => face(StatusCode::BAD_REQUEST, REQUEST, Some("upstream_refused")),
            404 => face(StatusCode::NOT_FOUND, REQUEST, Some("model_not_found")),
            429 => Face {
                retry_after: Some(retry_after.unwrap_or(1)),
                ..face(StatusCode::TOO_MANY_REQUESTS, LOAD, Some("rate_limit_exceeded"))
            },
            504 => face(StatusCode::GATEWAY_TIMEOUT, UPSTREAM, Some("upstream_timeout")),
            // A refused key too: it is this server's, the client can do nothing about it.
            _ => face(StatusCode::BAD_GATEWAY, UPSTREAM, Some("upstream_failed")),
        },
        EmbedError::Unreachable { .. } => {
            face(StatusCode::BAD_GATEWAY, UPSTREAM, Some("upstream_unreachable"))
        }
        EmbedError::Answer { .. }
        | EmbedError::WrongCount { .. }
        | EmbedError::WrongDimensions { .. }
        | EmbedError::NotFinite { .. }
        | EmbedError::Empty => {
            face(StatusCode::BAD_GATEWAY, UPSTREAM, Some("upstream_invalid_answer"))
        }
        EmbedError::Panicked => face(StatusCode::INTERNAL_SERVER_ERROR, SERVER, None),
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Face { status, kind, code, retry_after } = self.face();
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
        response
    }
}
