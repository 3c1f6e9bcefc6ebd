//! The routes for whoever runs the server.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use reqwest::Url;
use serde_json::json;

use crate::error::ApiError;
use crate::server::App;

/// The process runs.
pub(crate) async fn health() -> Response {
    ([(CONTENT_TYPE, "application/json")], r#"{"status":"ok"}"#).into_response()
}

/// Requests are welcome: it is not stopping, and there is a model to ask.
pub(crate) async fn ready(State(app): State<Arc<App>>) -> Response {
    // Relaxed: a moment later is early enough.
    let status = if app.stopping.load(Ordering::Relaxed) {
        "stopping"
    } else if app.service.backend().is_down() {
        "upstream down"
    } else {
        return Json(json!({ "status": "ready" })).into_response();
    };
    (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "status": status }))).into_response()
}

pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let text = app.monitor.metrics(&app.service, app.in_use());
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

pub(crate) async fn stats(State(app): State<Arc<App>>) -> Response {
    let stats = app.monitor.stats(&app.service, app.in_use());
    ([(CACHE_CONTROL, "no-store")], Json(stats)).into_response()
}

pub(crate) async fn page() -> Response {
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (
            CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
             connect-src 'self'; img-src data:",
        ),
    ];
    (headers, include_str!("page.html")).into_response()
}

/// `DELETE /cache?model=NAME`. The name is needed: nobody empties a cache by a typing mistake.
pub(crate) async fn forget(
    State(app): State<Arc<App>>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let mut model = None;
    // The base is only there because a URL needs one.
    let url = Url::parse(&format!("http://h/?{}", query.unwrap_or_default()))
        .map_err(|error| ApiError::invalid("model", error.to_string()))?;
    for (name, value) in url.query_pairs() {
        if name != "model" {
            let message = format!("unknown parameter {name:?}; \"model\" is the only one");
            return Err(ApiError::invalid(&name, message));
        }
        model = Some(value.into_owned());
    }
    let Some(model) = model.filter(|model| !model.is_empty()) else {
        return Err(ApiError::invalid("model", "the parameter \"model\" is missing"));
    };
    let removed = app.service.forget(&model).await?;
    tracing::info!(model, removed, "a model was removed from the cache");
    Ok(Json(json!({ "model": model, "removed": removed })).into_response())
}
