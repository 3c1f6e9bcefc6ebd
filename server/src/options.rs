//! What can be set, on the command line or in the environment.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use reqwest::Url;

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

    /// How long the body of a request may take to arrive.
    #[arg(long, env = "EMBEDDING_CACHE_SERVER_READ_TIMEOUT", default_value = "10s", value_parser = duration)]
    pub read_timeout: Duration,

    /// How long a client may leave an answer unread before its connection is cut.
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

    /// Calls of the model at a time.
    #[arg(long, env = "EMBEDDING_CACHE_SERVER_MODEL_CONCURRENCY", default_value_t = 4,
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
    /// it the built-in embedder computes them.
    #[arg(long, env = "EMBEDDING_CACHE_SERVER_UPSTREAM", value_parser = base_url)]
    pub upstream: Option<Url>,

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
}

/// A model that is served, and the dimensions of its vectors if they are known.
///
/// ```
/// use embedding_cache_server::Model;
///
/// let model: Model = "text-embedding-3-small=1536".parse()?;
/// assert_eq!((model.name.as_str(), model.dimensions), ("text-embedding-3-small", Some(1536)));
/// # Ok::<(), String>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Model {
    /// The name that requests call it by.
    pub name: String,
    /// The dimensions of a vector when a request asks for none.
    pub dimensions: Option<usize>,
}

/// The most dimensions that a vector may have here: several times what models have.
pub(crate) const MOST_DIMENSIONS: usize = 65_536;

impl FromStr for Model {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, dimensions) = match text.split_once('=') {
            None => (text, None),
            Some((name, digits)) => {
                let number = digits.parse().ok().filter(|n| (1..=MOST_DIMENSIONS).contains(n));
                let complaint = || format!("{digits:?} is no number from 1 to {MOST_DIMENSIONS}");
                (name, Some(number.ok_or_else(complaint)?))
            }
        };
        if name.is_empty() {
            return Err("the name of a model is empty".into());
        }
        Ok(Self { name: name.into(), dimensions })
    }
}

/// A secret that debug output does not show.
#[derive(Clone)]
pub struct ApiKey(pub(crate) String);

impl FromStr for ApiKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("a key is visible ASCII characters without spaces".into());
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// A number with a unit: ms, s, m or h; seconds without one.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let milliseconds = match &text[digits.len()..] {
        "ms" => 1.0,
        "" | "s" => 1e3,
        "m" => 60e3,
        "h" => 3600e3,
        unit => return Err(format!("{unit:?} is none of the units ms, s, m, h")),
    };
    let number = digits.parse::<f64>().map_err(|_| format!("{digits:?} is no number"))?;
    // A century: no sensible setting is longer, and timers cannot count much further.
    const LONGEST: f64 = 100.0 * 365.0 * 24.0 * 3600.0;
    let seconds = number * milliseconds / 1e3;
    if !(0.0..=LONGEST).contains(&seconds) {
        return Err(format!("{text:?} is not between 0 and a hundred years"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// The URL that `/embeddings` is appended to, as the OpenAI clients take it.
fn base_url(text: &str) -> Result<Url, String> {
    let mut url = Url::parse(text).map_err(|error| error.to_string())?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err("an http:// or https:// URL is needed".into());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("a base URL has no query and no fragment".into());
    }
    if url.path() == "/" {
        url.set_path("/v1");
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units_and_bounds() {
        assert_eq!(duration("250ms").unwrap(), Duration::from_millis(250));
        assert_eq!(duration("1.5").unwrap(), Duration::from_millis(1500));
        assert_eq!(duration("2m").unwrap(), Duration::from_secs(120));
        for wrong in ["", "s", "-1s", "1d", "NaN", "inf", "1e300h", "1 s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_bare_host_gets_the_usual_path() {
        assert_eq!(base_url("http://h:1").unwrap().as_str(), "http://h:1/v1");
        assert_eq!(base_url("https://h/api/").unwrap().as_str(), "https://h/api/");
        for wrong in ["h", "ftp://h", "http://h/v1?a=b", "unix:/x"] {
            assert!(base_url(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_key_is_not_shown() {
        assert!(!format!("{:?}", "sk-secret".parse::<ApiKey>().unwrap()).contains("secret"));
        assert!("two words".parse::<ApiKey>().is_err());
    }

    #[test]
    fn models_have_names_and_dimensions_in_range() {
        for wrong in ["", "=1", "m=0", "m=x", "m=65537"] {
            assert!(wrong.parse::<Model>().is_err(), "{wrong}");
        }
    }
}
