//! What can be set, on the command line or in the environment.

mod check;
mod secret;
mod values;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use check::OptionError;
pub use secret::{ApiKey, QueryParameter, RedisSecret, RedisUrl, UpstreamUrl};
pub(crate) use values::MOST_DIMENSIONS;
use values::duration;
pub use values::{Alias, Model};

const ABOUT: &str = "An OpenAI-compatible embedding server with a cache in front of the model";

/// The options of a server.
///
/// ```
/// use clap::Parser as _;
/// use embedding_cache_server::Options;
///
/// let options = Options::try_parse_from(["embedding-cache-server", "--listen", "127.0.0.1:0"])?;
/// assert_eq!(options.cache_mb, 512);
/// # Ok::<(), clap::Error>(())
/// ```
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "embedding-cache-server", version, about = ABOUT, long_about = ABOUT)]
#[non_exhaustive]
pub struct Options {
    /// Address to listen on; port 0 takes a free one, which is printed.
    #[arg(long, env = "EMBEDDING_CACHE_SERVER_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,

    /// Models served, as NAME or NAME=DIMENSIONS, separated by commas or by repeating the option.
    /// Without it: the built-in embedder under its own name, or every model of the upstream.
    #[arg(long = "model", env = "EMBEDDING_CACHE_SERVER_MODELS", value_delimiter = ',')]
    pub models: Vec<Model>,

    /// Other names of models, as ALIAS=NAME, separated by commas or by repeating the option. They
    /// share the vectors in the cache.
    #[arg(long = "alias", env = "EMBEDDING_CACHE_SERVER_ALIASES", value_delimiter = ',')]
    pub aliases: Vec<Alias>,

    /// Mebibytes that the cache may hold.
    #[arg(long, env = "EMBEDDING_CACHE_SERVER_CACHE_MB", default_value_t = 512,
          value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    pub cache_mb: u64,

    /// How long a vector is served from the cache; for ever by default.
    #[arg(long, env = "EMBEDDING_CACHE_SERVER_TTL", value_parser = duration)]
    pub ttl: Option<Duration>,

    /// How long past its time a vector is still served when the model fails.
    #[arg(long, env = "EMBEDDING_CACHE_SERVER_STALE_IF_ERROR", default_value = "0s",
          value_parser = duration)]
    pub stale_if_error: Duration,

    /// Answer every request by the model, to compare.
    #[arg(long, env = "EMBEDDING_CACHE_SERVER_NO_CACHE")]
    pub no_cache: bool,

    /// A Redis or Valkey server that keeps the vectors too, for other servers and for a restart, as
    /// `redis://` or `rediss://` URL; several with commas are nodes of one cluster. A user and
    /// password in it are shown nowhere.
    #[arg(
        long = "redis",
        env = "EMBEDDING_CACHE_SERVER_REDIS",
        value_delimiter = ',',
        hide_env_values = true
    )]
    pub redis: Vec<RedisUrl>,

    /// Begins every key in Redis. Servers share vectors if they have the same, so those whose models
    /// answer differently under one name need different ones.
    #[arg(long, env = "EMBEDDING_CACHE_SERVER_REDIS_PREFIX", default_value = "emb")]
    pub redis_prefix: String,

    /// Signs every vector in Redis, and takes none that is not signed so: at least 16 characters, the
    /// same for all servers. Rather from the environment.
    #[arg(long, env = "EMBEDDING_CACHE_SERVER_REDIS_SECRET", hide_env_values = true)]
    pub redis_secret: Option<RedisSecret>,

    /// The certificates, as a PEM file, of who signs those of a `rediss://` server, in place of the
    /// ones that the web trusts.
    #[arg(long, env = "EMBEDDING_CACHE_SERVER_REDIS_CA")]
    pub redis_ca: Option<PathBuf>,

    /// A local directory that keeps the vectors too, for a restart; made if it is not there, and used
    /// by one server at a time. Instead of --redis.
    #[arg(long, env = "EMBEDDING_CACHE_SERVER_DISK")]
    pub disk: Option<PathBuf>,

    /// Mebibytes that the directory may take.
    #[arg(long, env = "EMBEDDING_CACHE_SERVER_DISK_MB", default_value_t = 4096,
          value_parser = clap::value_parser!(u64).range(512..=1 << 30))]
    pub disk_mb: u64,

    /// How long a request waits for Redis or the disk. What comes later is kept all the same.
    #[arg(long, env = "EMBEDDING_CACHE_SERVER_TIER_DEADLINE", default_value = "10ms",
          value_parser = duration)]
    pub tier_deadline: Duration,

    /// A file that the cache is loaded from at the start, and saved to at the end and from time to
    /// time.
    #[arg(long, env = "EMBEDDING_CACHE_SERVER_SNAPSHOT")]
    pub snapshot: Option<PathBuf>,

    /// How often the snapshot is saved; 0 saves it at the end only.
    #[arg(long, env = "EMBEDDING_CACHE_SERVER_SNAPSHOT_EVERY", default_value = "15m",
          value_parser = duration)]
    pub snapshot_every: Duration,

    /// Inputs that a request may have.
    #[arg(long, env = "EMBEDDING_CACHE_SERVER_MAX_BATCH", default_value_t = 2048,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub max_batch: u32,

    /// Bytes that the body of a request may have.
    #[arg(long, env = "EMBEDDING_CACHE_SERVER_MAX_BODY_BYTES", default_value_t = 4 << 20,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub max_body_bytes: u32,

    /// Requests worked on at a time; one more is answered with 429.
    #[arg(long, env = "EMBEDDING_CACHE_SERVER_MAX_CONCURRENCY", default_value_t = 1024,
          value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub max_concurrency: u32,

    /// Connections at a time; one more is told so and closed.
    #[arg(long, env = "EMBEDDING_CACHE_SERVER_MAX_CONNECTIONS", default_value_t = 10_000,
          value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub max_connections: u32,

    /// Mebibytes that bodies and answers may take, those of all requests together; one that does not
    /// fit is answered with 429. One of them gets at most half of what is free.
    #[arg(long, env = "EMBEDDING_CACHE_SERVER_BUFFER_MB", default_value_t = 1024,
          value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub buffer_mb: u32,

    /// Mebibytes that one answer may take; a request for more is refused.
    #[arg(long, env = "EMBEDDING_CACHE_SERVER_MAX_ANSWER_MB", default_value_t = 192,
          value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub max_answer_mb: u32,

    /// How long the headers of a request may take to arrive, from their first byte.
    #[arg(long, env = "EMBEDDING_CACHE_SERVER_HEADER_TIMEOUT", default_value = "10s",
          value_parser = duration)]
    pub header_timeout: Duration,

    /// How long a connection is kept open between requests, and before the first one.
    #[arg(long, env = "EMBEDDING_CACHE_SERVER_IDLE_TIMEOUT", default_value = "120s",
          value_parser = duration)]
    pub idle_timeout: Duration,

    /// How long the body of a request may take to arrive.
    #[arg(long, env = "EMBEDDING_CACHE_SERVER_READ_TIMEOUT", default_value = "10s", value_parser = duration)]
    pub read_timeout: Duration,

    /// How long a client may take to read an answer, all of it, before its connection is cut.
    #[arg(long, env = "EMBEDDING_CACHE_SERVER_WRITE_TIMEOUT", default_value = "30s",
          value_parser = duration)]
    pub write_timeout: Duration,

    /// How long a request may wait for its vectors.
    #[arg(long, env = "EMBEDDING_CACHE_SERVER_REQUEST_TIMEOUT", default_value = "30s",
          value_parser = duration)]
    pub request_timeout: Duration,

    /// How long requests that run may take to end once the server is told to stop.
    #[arg(long, env = "EMBEDDING_CACHE_SERVER_SHUTDOWN_GRACE", default_value = "10s",
          value_parser = duration)]
    pub shutdown_grace: Duration,

    /// Inputs in one call of the model.
    #[arg(long, env = "EMBEDDING_CACHE_SERVER_MODEL_BATCH", default_value_t = 64,
          value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub model_batch: u32,

    /// Calls at a time, of all models together, whatever they are for. Where several models can be
    /// asked for, one has at most half of them, and leaves the next one half of the rest.
    #[arg(long, env = "EMBEDDING_CACHE_SERVER_MODEL_CONCURRENCY", default_value_t = 8,
          value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub model_concurrency: u32,

    /// How long an input waits for others to share a call of the model with.
    #[arg(long, env = "EMBEDDING_CACHE_SERVER_MODEL_DELAY", default_value = "2ms",
          value_parser = duration)]
    pub model_delay: Duration,

    /// Inputs that may wait for the model; what is over it is answered with 429.
    #[arg(long, env = "EMBEDDING_CACHE_SERVER_MODEL_QUEUE", default_value_t = 16_384,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub model_queue: u32,

    /// An OpenAI-compatible server to ask for vectors, such as <https://api.openai.com/v1>; without
    /// it the built-in embedder computes them. A user and password in it are sent as such, and shown
    /// nowhere.
    #[arg(long, env = "EMBEDDING_CACHE_SERVER_UPSTREAM", hide_env_values = true)]
    pub upstream: Option<UpstreamUrl>,

    /// Query parameters that every call of the upstream gets, as NAME=VALUE (Azure's api-version),
    /// separated by commas or by repeating the option.
    #[arg(
        long = "upstream-query",
        env = "EMBEDDING_CACHE_SERVER_UPSTREAM_QUERY",
        value_delimiter = ',',
        hide_env_values = true
    )]
    pub upstream_query: Vec<QueryParameter>,

    /// How long one call of the upstream may take.
    #[arg(long, env = "EMBEDDING_CACHE_SERVER_UPSTREAM_TIMEOUT", default_value = "10s",
          value_parser = duration)]
    pub upstream_timeout: Duration,

    /// How often a call of the upstream that failed is tried again.
    #[arg(long, env = "EMBEDDING_CACHE_SERVER_UPSTREAM_RETRIES", default_value_t = 2,
          value_parser = clap::value_parser!(u32).range(..=10))]
    pub upstream_retries: u32,

    /// The key that the upstream is sent. Rather from the environment: arguments are seen by every
    /// user of the machine.
    #[arg(long, env = "UPSTREAM_API_KEY", hide_env_values = true)]
    pub api_key: Option<ApiKey>,

    /// Send the upstream each client's own Authorization, if it has one. Vectors are then shared only
    /// among requests with the same, as answers may differ by account.
    #[arg(long, env = "EMBEDDING_CACHE_SERVER_FORWARD_AUTHORIZATION")]
    pub forward_authorization: bool,

    /// Parameters of a request that are passed on to the upstream and made part of what a vector is
    /// stored under, separated by commas or by repeating the option. Others that are not known are
    /// refused, as they might change the vector.
    #[arg(
        long = "pass-parameter",
        env = "EMBEDDING_CACHE_SERVER_PASS_PARAMETERS",
        value_delimiter = ','
    )]
    pub pass_parameters: Vec<String>,

    /// Origins whose pages may ask this server from a browser, or `*` for any; none by default.
    #[arg(
        long = "cors-origin",
        env = "EMBEDDING_CACHE_SERVER_CORS_ORIGINS",
        value_delimiter = ','
    )]
    pub cors_origins: Vec<String>,
}

impl Options {
    pub(crate) fn cache_bytes(&self) -> u64 {
        self.cache_mb << 20
    }

    pub(crate) fn buffer_bytes(&self) -> usize {
        (self.buffer_mb as usize) << 20
    }

    pub(crate) fn max_answer_bytes(&self) -> usize {
        (self.max_answer_mb as usize) << 20
    }
}
