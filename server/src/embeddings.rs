//! `POST /v1/embeddings`: from the first header to the last byte of the answer.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request as HttpRequest, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use tokio::sync::OwnedSemaphorePermit;

use crate::answer;
use crate::error::ApiError;
use crate::request::{Input, Request};
use crate::server::App;

/// What is set aside for a body before any of it has come, whatever length it claims.
const FIRST_RESERVE: usize = 256 << 10;

pub(crate) async fn handle(State(app): State<Arc<App>>, request: HttpRequest) -> Response {
    let watch = app.monitor.start();
    match respond(&app, request).await {
        Ok((response, inputs)) => {
            watch.finish(StatusCode::OK, inputs);
            response
        }
        Err(error) => {
            let status = error.status();
            if status.is_server_error() {
                tracing::warn!(%error, status = status.as_u16(), "a request failed");
            }
            watch.finish(status, 0);
            error.into_response()
        }
    }
}

async fn respond(app: &App, request: HttpRequest) -> Result<(Response, usize), ApiError> {
    let (parts, body) = request.into_parts();
    // What the headers alone give away is refused before it takes a permit or reads a byte.
    check_content_type(&parts.headers)?;
    let claimed = content_length(&parts.headers);
    if claimed.is_some_and(|bytes| bytes > app.max_body as u64) {
        return Err(ApiError::BodyTooLarge { limit: app.max_body });
    }
    // Tried, not waited for: who has to wait is told, and can go elsewhere.
    let permit = Arc::clone(&app.permits)
        .try_acquire_owned()
        .map_err(|_| ApiError::Busy { limit: app.max_concurrency })?;

    let body = tokio::time::timeout(app.read_timeout, read(body, claimed, app.max_body))
        .await
        .map_err(|_| ApiError::BodyTimeout { seconds: app.read_timeout.as_secs_f64() })??;
    let request = Request::parse(&body, app.max_inputs)?;
    let vectors = app.service.embed(&request).await?;
    let tokens = request.inputs.iter().map(Input::tokens).sum();
    let bytes = answer::write(&request.model, &vectors, request.encoding, tokens);
    let content_type = (CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let body = Body::from(Bytes::from_owner(Held { bytes, _permit: permit }));
    Ok((([content_type], body).into_response(), vectors.len()))
}

/// An answer on its way to the client. It keeps its permit until it is sent, as it takes memory
/// until then: 100 MB for the largest ones.
struct Held {
    bytes: Vec<u8>,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(value) = headers.get(CONTENT_TYPE) else {
        return Err(ApiError::ContentType("missing".into()));
    };
    let text = value.to_str().unwrap_or("unreadable");
    let essence = text.split(';').next().unwrap_or(text).trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(ApiError::ContentType(text.chars().take(100).collect()))
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The whole body, or an error as soon as it is longer than `limit`: at most that and one frame is
/// ever held.
async fn read(mut body: Body, claimed: Option<u64>, limit: usize) -> Result<Bytes, ApiError> {
    let mut whole: Option<Vec<u8>> = None;
    let mut first: Option<Bytes> = None;
    let reserve = claimed.map_or(0, |n| usize::try_from(n).unwrap_or(limit)).min(FIRST_RESERVE);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ApiError::BodyBroken(error.to_string()))?;
        let Ok(data) = frame.into_data() else { continue };
        let held = whole.as_ref().map_or(first.as_ref().map_or(0, Bytes::len), Vec::len);
        if held + data.len() > limit {
            return Err(ApiError::BodyTooLarge { limit });
        }
        match (&mut whole, first.take()) {
            // A body of one frame is used where it lies.
            (None, None) => first = Some(data),
            (None, Some(start)) => {
                let mut buffer = Vec::with_capacity(reserve.max(start.len() + data.len()));
                buffer.extend_from_slice(&start);
                buffer.extend_from_slice(&data);
                whole = Some(buffer);
            }
            (Some(buffer), _) => buffer.extend_from_slice(&data),
        }
    }
    Ok(whole.map(Bytes::from).or(first).unwrap_or_default())
}
