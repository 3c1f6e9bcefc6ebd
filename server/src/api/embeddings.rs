//! `POST /v1/embeddings`: from the headers to the answer that is to be written.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::extract::{Extension, Request as HttpRequest, State};
use axum::http::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

use crate::backend::Secret;
use crate::error::ApiError;
use crate::limits::Reserved;
use crate::net::{Active, Connection};
use crate::server::App;
use crate::service::Embedded;

use super::answer;
use super::body::{self, Coding, Whole};
use super::request::Request;
use super::{X_CACHE, X_CACHE_HITS, X_CACHE_MISSES, X_USAGE};

pub(crate) async fn handle(
    State(app): State<Arc<App>>,
    Extension(connection): Extension<Arc<Connection>>,
    request: HttpRequest,
) -> Response {
    let mut watch = app.monitor.start(connection.began());
    let mut active = None;
    let (mut response, inputs) = match respond(&app, &connection, request, &mut active).await {
        Ok(answered) => answered,
        Err(error) => {
            if error.status().is_server_error() {
                tracing::warn!(%error, status = error.status().as_u16(), "a request failed");
            }
            (error.into_response(), 0)
        }
    };
    watch.answered(response.status(), inputs);
    if active.is_none() {
        // The body is not read to its end; what comes of it cannot be a request.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let active = active.unwrap_or_else(|| app.drain.begin());
    connection.finish_when_written(watch, active);
    response
}

/// `active` is set as soon as the request has come whole.
async fn respond(
    app: &App,
    connection: &Connection,
    request: HttpRequest,
    active: &mut Option<Active>,
) -> Result<(Response, usize), ApiError> {
    let (parts, body) = request.into_parts();
    // What the headers alone give away is refused before it takes a permit or reads a byte.
    let (coding, claimed) = body::check(&parts.headers, app.max_body)?;
    // Relaxed: one that just misses it is served.
    if app.stopping.load(Ordering::Relaxed) {
        return Err(ApiError::Stopping);
    }
    // Tried, not waited for: who has to wait is told, and can go elsewhere.
    let permit = Arc::clone(&app.permits)
        .try_acquire_owned()
        .map_err(|_| ApiError::Busy { limit: app.max_concurrency })?;

    let reading = body::read(body, claimed, app.max_body, &app.buffers);
    let mut whole = tokio::time::timeout(app.read_timeout, reading)
        .await
        .map_err(|_| ApiError::BodyTimeout { seconds: app.read_timeout.as_secs_f64() })??;
    *active = Some(app.drain.begin());
    if coding == Coding::Gzip {
        whole = body::inflate(whole, app.max_body).await?;
    }
    let Whole { bytes: body, mut reserved } = whole;
    let request = Request::parse(&body, app.max_inputs, &app.pass_parameters)?;
    let authorization = app.forward_authorization.then(|| client_key(&parts.headers)).flatten();
    let plan = app.service.plan(&request, authorization)?;
    // Room for the answer before the model is asked for it, where it is known how long it will be.
    if let Some(dimensions) = plan.dimensions() {
        let components = request.inputs.len().saturating_mul(dimensions);
        make_room(app, &request, components, body.len(), &mut reserved)?;
    }
    let embedded = app.service.embed(&plan, &request, &connection.suspect).await?;
    let Embedded { vectors, usage, misses } = embedded;
    let components = vectors.iter().map(|vector| vector.dimensions()).sum();
    make_room(app, &request, components, body.len(), &mut reserved)?;

    let bytes = answer::write(&request.model, &vectors, request.encoding, usage.tokens);
    let inputs = vectors.len();
    drop(request);
    drop(body);
    reserved.try_resize(bytes.capacity().min(reserved.bytes()));
    let held = Held { bytes, _permit: permit, _reserved: reserved };
    let mut response = Response::new(Body::from(Bytes::from_owner(held)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let cache = match misses {
        None => "none",
        Some(0) => "hit",
        Some(misses) if misses >= inputs => "miss",
        Some(_) => "partial",
    };
    headers.insert(X_CACHE, HeaderValue::from_static(cache));
    if let Some(misses) = misses {
        headers.insert(X_CACHE_HITS, HeaderValue::from(inputs.saturating_sub(misses)));
        headers.insert(X_CACHE_MISSES, HeaderValue::from(misses));
    }
    let counted = if usage.estimated == 0 { "exact" } else { "estimated" };
    headers.insert(X_USAGE, HeaderValue::from_static(counted));
    Ok((response, inputs))
}

/// Room for the body and for an answer of so many components.
fn make_room(
    app: &App,
    request: &Request<'_>,
    components: usize,
    body: usize,
    reserved: &mut Reserved,
) -> Result<(), ApiError> {
    let inputs = request.inputs.len();
    let bytes = answer::most_bytes(&request.model, inputs, components, request.encoding);
    if bytes > app.max_answer {
        return Err(ApiError::AnswerTooLarge { bytes, limit: app.max_answer });
    }
    if !reserved.try_resize(body + bytes) {
        return Err(ApiError::NoRoom);
    }
    Ok(())
}

/// An answer on its way to the client. It keeps its permit and its part of the budget until it is
/// written.
struct Held {
    bytes: Vec<u8>,
    _permit: OwnedSemaphorePermit,
    _reserved: Reserved,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The client's own Authorization, if it has one that can be passed on.
fn client_key(headers: &HeaderMap) -> Option<Secret> {
    let text = headers.get(AUTHORIZATION)?.to_str().ok()?;
    (!text.is_empty()).then(|| Secret(text.into()))
}
