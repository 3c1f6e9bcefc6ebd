//! The routes: what is asked over HTTP, and what is answered.

pub(crate) mod answer;
mod body;
mod embeddings;
mod models;
mod operations;
pub(crate) mod request;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderName, HeaderValue, Method, Uri};
use axum::routing::{delete, get, post};
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::error::ApiError;
use crate::server::App;

/// How long a browser may believe what it was told of other origins.
const CORS_AGE: Duration = Duration::from_secs(600);

/// Whether the cache had the vectors, and of how many inputs.
const X_CACHE: HeaderName = HeaderName::from_static("x-cache");
const X_CACHE_HITS: HeaderName = HeaderName::from_static("x-cache-hits");
const X_CACHE_MISSES: HeaderName = HeaderName::from_static("x-cache-misses");
/// Whether `usage` is the model's own count.
const X_USAGE: HeaderName = HeaderName::from_static("x-usage");

pub(crate) fn router(app: Arc<App>) -> Router {
    let router = Router::new()
        .route("/v1/embeddings", post(embeddings::handle))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .route("/cache", delete(operations::forget))
        .route("/health", get(operations::health))
        .route("/ready", get(operations::ready))
        .route("/metrics", get(operations::metrics))
        .route("/stats", get(operations::stats))
        .route("/", get(operations::page))
        .fallback(unknown_path)
        .method_not_allowed_fallback(method_not_allowed);
    let router = match cors(&app.cors_origins) {
        Some(layer) => router.layer(layer),
        None => router,
    };
    router.with_state(app)
}

fn cors(origins: &[String]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        // Checked to be origins, which are visible ASCII.
        AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    let layer = CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST])
        // What OpenAI's client sends beside these begins with x-stainless-, and differs.
        .allow_headers(tower_http::cors::AllowHeaders::mirror_request())
        .expose_headers([X_CACHE, X_CACHE_HITS, X_CACHE_MISSES, X_USAGE, RETRY_AFTER])
        .max_age(CORS_AGE);
    Some(layer)
}

async fn unknown_path(uri: Uri) -> ApiError {
    ApiError::UnknownPath { path: shown(&uri) }
}

async fn method_not_allowed(method: Method, request: Request) -> ApiError {
    ApiError::Method { method, path: shown(request.uri()) }
}

/// A path as it is repeated in an error: not more of it than helps.
fn shown(uri: &Uri) -> String {
    uri.path().chars().take(200).collect()
}
