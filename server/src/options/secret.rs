//! Values that may hold a secret. Reading one never fails: whoever reads the command line would
//! repeat a value that is wrong in its message. What is wrong is said by `check`, without the value.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;
use reqwest::Url;

/// The base URL of an upstream, which `/embeddings` is appended to, as OpenAI's clients take it.
/// Debug output and logs show it without user and password.
///
/// ```
/// use embedding_cache_server::UpstreamUrl;
///
/// let url: UpstreamUrl = "http://user:word@models:8000".parse()?;
/// assert_eq!(url.to_string(), "http://models:8000/v1");
/// # Ok::<(), std::convert::Infallible>(())
/// ```
#[derive(Clone)]
pub struct UpstreamUrl(Result<Base, &'static str>);

#[derive(Clone)]
struct Base {
    url: Url,
    /// User and password as a header.
    authorization: Option<String>,
}

impl FromStr for UpstreamUrl {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(Base::parse(text)))
    }
}

impl Base {
    fn parse(text: &str) -> Result<Self, &'static str> {
        let mut url = Url::parse(text).map_err(|_| "it is no URL")?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err("an http:// or https:// URL is needed");
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err("a base URL has no query and no fragment; see --upstream-query");
        }
        if url.path() == "/" {
            url.set_path("/v1");
        }
        let mut authorization = None;
        if !url.username().is_empty() || url.password().is_some() {
            let decoded = |part: &str| {
                let text = percent_decode_str(part).decode_utf8().map(String::from);
                text.map_err(|_| "user and password are not UTF-8")
            };
            let user = decoded(url.username())?;
            let password = decoded(url.password().unwrap_or_default())?;
            let pair = STANDARD.encode(format!("{user}:{password}"));
            authorization = Some(format!("Basic {pair}"));
            // A URL with a host, of http or https, can have both removed.
            let _ = (url.set_username(""), url.set_password(None));
        }
        Ok(Self { url, authorization })
    }
}

impl UpstreamUrl {
    pub(super) fn problem(&self) -> Option<&'static str> {
        self.0.as_ref().err().copied()
    }

    pub(super) fn url(&self) -> Option<&Url> {
        self.0.as_ref().ok().map(|base| &base.url)
    }

    pub(super) fn authorization(&self) -> Option<&str> {
        self.0.as_ref().ok()?.authorization.as_deref()
    }
}

impl fmt::Display for UpstreamUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url().map_or("(unreadable)", Url::as_str).fmt(f)
    }
}

impl fmt::Debug for UpstreamUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UpstreamUrl({self})")
    }
}

/// A key that debug output does not show.
#[derive(Clone)]
pub struct ApiKey(String);

impl FromStr for ApiKey {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.into()))
    }
}

impl ApiKey {
    pub(super) fn problem(&self) -> Option<&'static str> {
        let visible = !self.0.is_empty() && self.0.bytes().all(|b| b.is_ascii_graphic());
        (!visible).then_some("a key is visible ASCII characters without spaces")
    }

    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// The URL of a Redis or Valkey server. Debug output shows nothing of it, as it may hold a password;
/// what is wrong with it is said when the server connects, without the password.
#[derive(Clone)]
pub struct RedisUrl(String);

impl FromStr for RedisUrl {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.into()))
    }
}

impl RedisUrl {
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RedisUrl(…)")
    }
}

/// What signs the vectors in Redis; debug output does not show it.
#[derive(Clone)]
pub struct RedisSecret(String);

impl FromStr for RedisSecret {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.into()))
    }
}

impl RedisSecret {
    /// The least bytes of a secret.
    const SHORTEST: usize = 16;

    pub(super) fn problem(&self) -> Option<String> {
        let short = self.0.len() < Self::SHORTEST;
        short.then(|| format!("{} bytes are fewer than {}", self.0.len(), Self::SHORTEST))
    }

    pub(crate) fn expose(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for RedisSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RedisSecret(…)")
    }
}

/// A query parameter, whose value debug output does not show: some upstreams take keys there.
#[derive(Clone)]
pub struct QueryParameter(Option<(String, String)>);

impl FromStr for QueryParameter {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
        Ok(Self(pair.map(|(name, value)| (name.into(), value.into()))))
    }
}

impl QueryParameter {
    pub(super) fn pair(&self) -> Option<(&str, &str)> {
        self.0.as_ref().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

impl fmt::Debug for QueryParameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.pair().map_or("", |(name, _)| name);
        write!(f, "QueryParameter({name}=…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(text: &str) -> UpstreamUrl {
        let Ok(url) = text.parse();
        url
    }

    #[test]
    fn a_bare_host_gets_the_usual_path() {
        assert_eq!(upstream("http://h:1").to_string(), "http://h:1/v1");
        assert_eq!(upstream("https://h/api/").to_string(), "https://h/api/");
        for wrong in ["h", "ftp://h", "http://h/v1?a=b", "unix:/x", ""] {
            assert!(upstream(wrong).problem().is_some(), "{wrong}");
        }
    }

    #[test]
    fn credentials_become_a_header_and_are_not_shown() {
        let url = upstream("http://us%40er:wo%3Ard%@h:1/v1");
        // "us@er:wo:rd%"
        assert_eq!(url.authorization(), Some("Basic dXNAZXI6d286cmQl"));
        for shown in [url.to_string(), format!("{url:?}")] {
            assert!(!shown.contains("er") && !shown.contains("wo"), "{shown}");
        }
        assert_eq!(upstream("http://token@h").authorization(), Some("Basic dG9rZW46"));
        let wrong = upstream("ftp://user:word@h");
        assert!(!format!("{wrong:?} {wrong}").contains("word"));
    }

    #[test]
    fn keys_are_not_shown() {
        let Ok(key) = "sk-secret".parse::<ApiKey>();
        assert!(!format!("{key:?}").contains("secret") && key.problem().is_none());
        let Ok(key) = "two words".parse::<ApiKey>();
        assert!(key.problem().is_some());
        let Ok(parameter) = "key=secret".parse::<QueryParameter>();
        assert!(!format!("{parameter:?}").contains("secret"));
        let Ok(url) = "redis://:secret@host".parse::<RedisUrl>();
        let Ok(short) = "secret".parse::<RedisSecret>();
        let shown = format!("{url:?} {short:?} {:?}", short.problem());
        assert!(!shown.contains("secret") && short.problem().is_some());
    }
}
