//! Start and shutdown.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use embedding_cache::CacheError;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::api;
use crate::limits::ByteBudget;
use crate::monitor::{self, InUse, Monitor};
use crate::net::{self, Drain, Limits, Stage};
use crate::options::{OptionError, Options};
use crate::service::Service;

/// How much is read and thrown away of a client that still sends when it was answered: several times
/// the longest body, at least this.
const LEAST_DISCARDED: usize = 16 << 20;
const DISCARDED_BODIES: usize = 4;

/// How long that may take.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections that may wait to be accepted. The system may allow fewer.
const BACKLOG: u32 = 4096;

/// What the routes share.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) service: Service,
    pub(crate) monitor: Arc<Monitor>,
    pub(crate) permits: Arc<Semaphore>,
    pub(crate) places: Arc<Semaphore>,
    pub(crate) buffers: Arc<ByteBudget>,
    pub(crate) drain: Arc<Drain>,
    pub(crate) stopping: AtomicBool,
    pub(crate) max_concurrency: usize,
    pub(crate) max_connections: usize,
    pub(crate) max_body: usize,
    pub(crate) max_answer: usize,
    pub(crate) max_inputs: usize,
    pub(crate) read_timeout: Duration,
    pub(crate) pass_parameters: Vec<String>,
    pub(crate) forward_authorization: bool,
    pub(crate) cors_origins: Vec<String>,
}

impl App {
    pub(crate) fn in_use(&self) -> InUse {
        let requests = self.max_concurrency.saturating_sub(self.permits.available_permits());
        let connections = self.max_connections.saturating_sub(self.places.available_permits());
        InUse { requests, connections, buffer_bytes: self.buffers.held() }
    }
}

/// Why a server cannot start.
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
    /// An option is wrong.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// The cache cannot be made as configured.
    #[error("the cache cannot be made: {0}")]
    Cache(#[from] CacheError),
    /// The client for the upstream cannot be made.
    #[error("the client for the upstream cannot be made: {0}")]
    Client(reqwest::Error),
    /// A model is listed twice.
    #[error("--model, --alias: {0:?} is listed twice")]
    ModelTwice(String),
    /// An alias stands for a model that is not listed.
    #[error("--alias: {alias:?} stands for {model:?}, which --model does not list")]
    AliasOfNothing {
        /// The alias.
        alias: String,
        /// What it stands for.
        model: String,
    },
    /// The built-in embedder has fewer dimensions than were asked for.
    #[error("--model: {asked} dimensions were asked for; the built-in embedder has {limit}")]
    Dimensions {
        /// The dimensions asked for.
        asked: usize,
        /// The most that it has.
        limit: usize,
    },
}

impl StartError {
    /// Whether another command line would help.
    #[must_use]
    pub fn is_option(&self) -> bool {
        !matches!(self, Self::Runtime(_) | Self::Listen { .. })
    }
}

/// A server that listens, and serves once it is [run](Self::run).
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    app: Arc<App>,
    limits: Limits,
    grace: Duration,
}

impl Server {
    /// Makes the cache and listens on the address. Must be called in a tokio runtime.
    ///
    /// # Errors
    ///
    /// The address is taken, or the options cannot be satisfied.
    pub async fn bind(options: Options) -> Result<Self, StartError> {
        options.check()?;
        monitor::prometheus();
        let max_concurrency = options.max_concurrency as usize;
        let max_connections = options.max_connections as usize;
        let places = Arc::new(Semaphore::new(max_connections));
        let max_body = options.max_body_bytes as usize;
        let app = Arc::new(App {
            service: Service::new(&options).await?,
            monitor: Monitor::new(),
            permits: Arc::new(Semaphore::new(max_concurrency)),
            places: Arc::clone(&places),
            buffers: ByteBudget::new(options.buffer_bytes()),
            drain: Drain::new(),
            stopping: AtomicBool::new(false),
            max_concurrency,
            max_connections,
            max_body,
            max_answer: options.max_answer_bytes(),
            max_inputs: options.max_batch as usize,
            read_timeout: options.read_timeout,
            pass_parameters: options.pass_parameters.clone(),
            forward_authorization: options.forward_authorization,
            cors_origins: options.cors_origins.clone(),
        });
        let limits = Limits {
            max_connections,
            places,
            header_timeout: options.header_timeout,
            idle_timeout: options.idle_timeout,
            write_timeout: options.write_timeout,
            discard_bytes: LEAST_DISCARDED.max(max_body.saturating_mul(DISCARDED_BODIES)),
            discard_timeout: DISCARD_TIMEOUT,
        };
        let refused = |source| StartError::Listen { address: options.listen, source };
        let listener = listen(options.listen).map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        tracing::info!(
            backend = options.upstream.as_ref().map_or("built in".into(), ToString::to_string),
            cache_mb = options.cache_mb,
            cached = !options.no_cache,
            "ready"
        );
        Ok(Self { listener, address, app, limits, grace: options.shutdown_grace })
    }

    /// The address that is listened on, with the port that was taken.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is ready; then refuses new requests, waits until those that have come
    /// whole are answered, for the configured grace at most, and saves the snapshot. What waits to be
    /// written to the second tier has what is left of the grace.
    pub async fn run(self, stop: impl Future<Output = ()> + Send + 'static) {
        let Self { listener, app, limits, grace, .. } = self;
        let (stage, told) = watch::channel(Stage::Serving);
        let router = api::router(Arc::clone(&app));
        let stopped = async {
            stop.await;
            let began = Instant::now();
            tracing::info!("stopping");
            // Relaxed: a request that just misses it is served.
            app.stopping.store(true, Ordering::Relaxed);
            stage.send_replace(Stage::Stopping);
            if tokio::time::timeout(grace, app.drain.idle()).await.is_err() {
                tracing::warn!("requests were still running and are cut off");
            }
            app.service.finish(grace.saturating_sub(began.elapsed())).await;
        };
        tokio::select! {
            () = net::serve(listener, router, Arc::new(limits), told) => {}
            () = stopped => {}
            () = monitor::keep_up() => {}
        }
    }
}

/// As tokio's listener, but with a longer queue: a thousand clients may come at once.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
        SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
    };
    // On Windows it would let another process take the address.
    #[cfg(not(windows))]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
