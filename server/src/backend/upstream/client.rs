//! One HTTP call of the upstream.

use std::error::Error as _;
use std::time::{Duration, SystemTime};

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Response, StatusCode, Url, redirect};
use serde::Serialize;

use crate::options::Options;

use super::super::{BatchKind, Content, EmbedError};
use super::answer::{self, Answered};

/// The most bytes of an answer: ten times what 64 vectors of 4,096 dimensions take as text.
const ANSWER_LIMIT: usize = 64 << 20;

/// The most bytes of a list of models.
const LIST_LIMIT: usize = 1 << 20;

/// The most bytes of an error that are read, and the most characters of it that are passed on.
const ERROR_LIMIT: usize = 64 << 10;
const MESSAGE_LIMIT: usize = 300;

#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    /// Without credentials: those are in the headers.
    url: Url,
    models: Option<Url>,
    timeout: Duration,
}

impl Client {
    /// # Errors
    ///
    /// The client cannot be made.
    pub(super) fn new(options: &Options, url: Url) -> Result<Self, reqwest::Error> {
        // The provider of the whole process; a second server in it finds it there.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut headers = HeaderMap::new();
        if let Some(authorization) = options.upstream_authorization() {
            // Checked to be visible ASCII where it was parsed.
            if let Ok(mut value) = HeaderValue::from_str(&authorization) {
                value.set_sensitive(true);
                headers.insert(AUTHORIZATION, value);
            }
        }
        let http = reqwest::Client::builder()
            .default_headers(headers)
            // A redirect would send the key to wherever it points.
            .redirect(redirect::Policy::none())
            .connect_timeout(options.upstream_timeout)
            .timeout(options.upstream_timeout)
            .build()?;
        let (models, timeout) = (options.upstream_url("models"), options.upstream_timeout);
        Ok(Self { http, url, models, timeout })
    }

    /// # Errors
    ///
    /// There is no such list, or it did not come.
    pub(super) async fn list_models(&self) -> Result<serde_json::Value, EmbedError> {
        let missing = || EmbedError::Answer { reason: "there is no list of models".into() };
        let url = self.models.clone().ok_or_else(missing)?;
        let mut response = self.http.get(url).send().await.map_err(|error| self.failed(&error))?;
        let status = response.status();
        let text = self.read(&mut response, LIST_LIMIT).await?;
        if status != StatusCode::OK {
            let message = answer::error_message(&text, MESSAGE_LIMIT);
            return Err(EmbedError::Status { status: status.as_u16(), message, retry_after: None });
        }
        serde_json::from_slice(&text)
            .map_err(|error| EmbedError::Answer { reason: error.to_string() })
    }

    /// # Errors
    ///
    /// No answer came, or none that has a vector for each content.
    pub(super) async fn embed(
        &self,
        kind: &BatchKind,
        contents: &[&Content],
    ) -> Result<Answered, EmbedError> {
        let question = Question {
            model: &kind.model,
            input: contents.iter().map(|content| Input::from(*content)).collect(),
            dimensions: kind.asked,
            // What every server offers. The shortest text of a float gives back the same float.
            encoding_format: "float",
            extra: kind.extra.as_ref().map(|extra| &*extra.parameters),
        };
        let unexpected =
            |error: serde_json::Error| EmbedError::Answer { reason: error.to_string() };
        let body = serde_json::to_vec(&question).map_err(unexpected)?;
        let mut request = self.http.post(self.url.clone()).header(CONTENT_TYPE, "application/json");
        if let Some(secret) = &kind.authorization
            && let Ok(mut value) = HeaderValue::from_str(&secret.0)
        {
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let mut response = request.body(body).send().await.map_err(|error| self.failed(&error))?;

        let status = response.status();
        if status != StatusCode::OK {
            let retry_after = retry_after(&response, SystemTime::now());
            // What was read before the connection broke off is message enough.
            let text = self.read(&mut response, ERROR_LIMIT).await.unwrap_or_default();
            let message = answer::error_message(&text, MESSAGE_LIMIT);
            return Err(EmbedError::Status { status: status.as_u16(), message, retry_after });
        }
        let text = self.read(&mut response, ANSWER_LIMIT).await?;
        let mut answered = answer::read(&text, contents.len(), MESSAGE_LIMIT)?;
        for vector in &mut answered.vectors {
            if let Ok(components) = vector
                && let Err(error) = answer::check(components, kind.expected)
            {
                *vector = Err(error);
            }
        }
        Ok(answered)
    }

    async fn read(&self, response: &mut Response, limit: usize) -> Result<Vec<u8>, EmbedError> {
        let mut text = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.failed(&error))? {
            if text.len() + chunk.len() > limit {
                return Err(EmbedError::Answer { reason: format!("it is over {limit} bytes") });
            }
            text.extend_from_slice(&chunk);
        }
        Ok(text)
    }

    fn failed(&self, error: &reqwest::Error) -> EmbedError {
        if error.is_timeout() {
            return EmbedError::Timeout { limit: self.timeout };
        }
        let refused = error.is_connect();
        // The innermost cause says most ("connection refused"); the outer ones repeat the URL, which
        // is nobody's business outside.
        let mut cause: &dyn std::error::Error = error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        // A cause that is reqwest's own error names the URL in its text.
        let reason = match error.source() {
            None => "the request cannot be made".to_owned(),
            Some(_) => cause.to_string(),
        };
        if refused { EmbedError::Unreachable { reason } } else { EmbedError::Broken { reason } }
    }
}

/// The header in seconds from now. It is a number of them or a date (RFC 9110, section 10.2.3);
/// what is neither is read as "later than we would wait".
fn retry_after(response: &Response, now: SystemTime) -> Option<u64> {
    let value = response.headers().get(RETRY_AFTER)?.to_str().ok()?;
    Some(seconds_until(value.trim(), now))
}

fn seconds_until(value: &str, now: SystemTime) -> u64 {
    const UNREADABLE: u64 = 60;
    if let Ok(seconds) = value.parse() {
        return seconds;
    }
    match httpdate::parse_http_date(value) {
        Ok(date) => {
            let wait = date.duration_since(now).unwrap_or_default();
            wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
        }
        Err(_) => UNREADABLE,
    }
}

#[derive(Serialize)]
struct Question<'a> {
    model: &'a str,
    input: Vec<Input<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dimensions: Option<usize>,
    encoding_format: &'a str,
    #[serde(flatten)]
    extra: Option<&'a serde_json::Map<String, serde_json::Value>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Input<'a> {
    Text(&'a str),
    Tokens(&'a [u32]),
}

impl<'a> From<&'a Content> for Input<'a> {
    fn from(content: &'a Content) -> Self {
        match content {
            Content::Text(text) => Self::Text(text),
            Content::Tokens(tokens) => Self::Tokens(tokens),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_a_number_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(784_111_777_500);
        assert_eq!(seconds_until("7", now), 7);
        assert_eq!(seconds_until("Sun, 06 Nov 1994 08:49:47 GMT", now), 10);
        // In the past: at once.
        assert_eq!(seconds_until("Sun, 06 Nov 1994 08:49:37 GMT", now), 0);
        for nonsense in ["", "soon", "-3", "1.5"] {
            assert_eq!(seconds_until(nonsense, now), 60, "{nonsense:?}");
        }
    }
}
