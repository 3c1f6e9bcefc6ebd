//! Routes, start and shutdown.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{RawQuery, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::http::{Method, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::serve::ListenerExt as _;
use embedding_cache::CacheError;
use reqwest::Url;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};

use crate::embeddings;
use crate::error::ApiError;
use crate::monitor::{self, Monitor};
use crate::options::Options;
use crate::service::Service;

/// What the routes share.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) service: Service,
    pub(crate) monitor: Monitor,
    pub(crate) permits: Arc<Semaphore>,
    pub(crate) max_concurrency: usize,
    pub(crate) max_body: usize,
    pub(crate) max_inputs: usize,
    pub(crate) read_timeout: Duration,
}

impl App {
    fn in_flight(&self) -> usize {
        self.max_concurrency.saturating_sub(self.permits.available_permits())
    }
}

/// Why a server cannot start, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The runtime cannot be made.
    #[error("the runtime cannot be started: {0}")]
    Runtime(io::Error),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The server ended with an error.
    #[error("serving failed: {0}")]
    Serve(io::Error),
    /// The cache cannot be made as configured.
    #[error("the cache cannot be made: {0}")]
    Cache(#[from] CacheError),
    /// The client for the upstream cannot be made.
    #[error("the client for the upstream cannot be made: {0}")]
    Client(reqwest::Error),
    /// The histogram of latencies cannot be made.
    #[error("the histogram of latencies cannot be made: {0}")]
    Histogram(#[from] hdrhistogram::CreationError),
    /// A model is listed twice.
    #[error("the model {0:?} is listed twice")]
    ModelTwice(String),
    /// The built-in embedder has fewer dimensions than were asked for.
    #[error("{asked} dimensions were asked for; the built-in embedder has {limit}")]
    Dimensions {
        /// The dimensions asked for.
        asked: usize,
        /// The most that it has.
        limit: usize,
    },
}

/// A server that listens, and serves once it is [run](Self::run).
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    app: Arc<App>,
    write_timeout: Duration,
    grace: Duration,
}

impl Server {
    /// Makes the cache and listens on the address. Must be called in a tokio runtime.
    ///
    /// # Errors
    ///
    /// The address is taken, or the options cannot be satisfied.
    pub async fn bind(options: Options) -> Result<Self, StartError> {
        monitor::prometheus();
        let max_concurrency = options.max_concurrency as usize;
        let app = Arc::new(App {
            service: Service::new(&options)?,
            monitor: Monitor::new()?,
            permits: Arc::new(Semaphore::new(max_concurrency)),
            max_concurrency,
            max_body: options.max_body_bytes as usize,
            max_inputs: options.max_batch as usize,
            read_timeout: options.read_timeout,
        });
        let refused = |source| StartError::Listen { address: options.listen, source };
        let listener = TcpListener::bind(options.listen).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        tracing::info!(
            backend = options.upstream.as_ref().map_or("built in", Url::as_str),
            cache_mb = options.cache_mb,
            cached = !options.no_cache,
            "ready"
        );
        let (write_timeout, grace) = (options.write_timeout, options.shutdown_grace);
        Ok(Self { listener, address, app, write_timeout, grace })
    }

    /// The address that is listened on, with the port that was taken.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is ready; then takes no more connections, lets requests end within the
    /// configured grace, and returns.
    ///
    /// # Errors
    ///
    /// The listener failed.
    pub async fn run(
        self,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), StartError> {
        let Self { listener, app, write_timeout, grace, .. } = self;
        let stopping = Arc::new(Notify::new());
        let told = Arc::clone(&stopping);
        let stop = async move {
            stop.await;
            tracing::info!("stopping");
            told.notify_one();
        };
        let listener = listener.tap_io(move |stream| configure(stream, write_timeout));
        let serve = axum::serve(listener, router(app)).with_graceful_shutdown(stop);
        let too_long = async {
            stopping.notified().await;
            tokio::time::sleep(grace).await;
        };
        tokio::select! {
            result = serve.into_future() => result.map_err(StartError::Serve),
            () = too_long => {
                tracing::warn!("requests were still running and are cut off");
                Ok(())
            }
            () = monitor::keep_up() => Ok(()),
        }
    }
}

/// A connection whose answer is in one buffer gains nothing from waiting for more to send. One whose
/// client does not read is cut by the kernel, as it would keep its permit.
fn configure(stream: &mut TcpStream, write_timeout: Duration) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection without TCP_NODELAY");
    }
    #[cfg(target_os = "linux")]
    if let Err(error) = socket2::SockRef::from(&*stream).set_tcp_user_timeout(Some(write_timeout)) {
        tracing::debug!(%error, "a connection without a write timeout");
    }
    #[cfg(not(target_os = "linux"))]
    let _ = write_timeout;
}

fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/embeddings", post(embeddings::handle))
        .route("/cache", delete(forget))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/stats", get(stats))
        .route("/", get(page))
        .fallback(unknown_path)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(app)
}

async fn health() -> Response {
    ([(CONTENT_TYPE, "application/json")], r#"{"status":"ok"}"#).into_response()
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    let text = app.monitor.metrics(&app.service, app.in_flight());
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn stats(State(app): State<Arc<App>>) -> Response {
    let stats = app.monitor.stats(&app.service, app.in_flight());
    ([(CACHE_CONTROL, "no-store")], axum::Json(stats)).into_response()
}

async fn page() -> Response {
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
async fn forget(
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
    Ok(axum::Json(serde_json::json!({ "model": model, "removed": removed })).into_response())
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
