//! What is wrong with options that can be read, and what follows from those that are right.

use reqwest::Url;

use super::Options;

/// An option that cannot be had, by its name. Values that may hold a secret are not repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{option}: {problem}")]
pub struct OptionError {
    option: &'static str,
    problem: String,
}

impl OptionError {
    pub(crate) fn new(option: &'static str, problem: impl Into<String>) -> Self {
        Self { option, problem: problem.into() }
    }
}

/// The parameters that the server itself understands.
const OWN_PARAMETERS: [&str; 5] = ["model", "input", "encoding_format", "dimensions", "user"];

impl Options {
    /// Looks for options that contradict each other or cannot be had.
    ///
    /// # Errors
    ///
    /// The first that is wrong.
    ///
    /// ```
    /// use clap::Parser as _;
    /// use embedding_cache_server::Options;
    ///
    /// let upstream = ["embedding-cache-server", "--upstream", "http://user:s3cr3t@h", "--api-key", "k"];
    /// let error = Options::try_parse_from(upstream)?.check().unwrap_err().to_string();
    /// assert!(error.contains("--api-key") && !error.contains("s3cr3t"));
    /// # Ok::<(), clap::Error>(())
    /// ```
    pub fn check(&self) -> Result<(), OptionError> {
        let wrong = |option, problem: &str| Err(OptionError { option, problem: problem.into() });
        if let Some(problem) = self.upstream.as_ref().and_then(|url| url.problem()) {
            return wrong("--upstream", problem);
        }
        if let Some(problem) = self.api_key.as_ref().and_then(|key| key.problem()) {
            return wrong("--api-key", problem);
        }
        let in_url = self.upstream.as_ref().and_then(|url| url.authorization()).is_some();
        if in_url && self.api_key.is_some() {
            let problem = "the URL of --upstream has a user or a password too; give one of both";
            return wrong("--api-key", problem);
        }
        if self.upstream_query.iter().any(|parameter| parameter.pair().is_none()) {
            return wrong("--upstream-query", "a parameter is NAME=VALUE");
        }
        if self.upstream.is_none() {
            let needing = [
                ("--upstream-query", !self.upstream_query.is_empty()),
                ("--forward-authorization", self.forward_authorization),
                ("--pass-parameter", !self.pass_parameters.is_empty()),
            ];
            // A key is no mistake: it may be in the environment for other programs.
            if let Some((option, _)) = needing.iter().find(|(_, given)| *given) {
                return wrong(option, "it needs --upstream");
            }
        }
        if self.redis.is_empty() {
            let needing = [
                ("--redis-secret", self.redis_secret.is_some()),
                ("--redis-ca", self.redis_ca.is_some()),
            ];
            if let Some((option, _)) = needing.iter().find(|(_, given)| *given) {
                return wrong(option, "it needs --redis");
            }
        }
        if let Some(problem) = self.redis_secret.as_ref().and_then(|secret| secret.problem()) {
            return wrong("--redis-secret", &problem);
        }
        if self.disk.is_some() && !self.redis.is_empty() {
            return wrong("--disk", "--redis is given too, and there is one second tier");
        }
        if self.no_cache {
            let pointless = [
                ("--redis", !self.redis.is_empty()),
                ("--disk", self.disk.is_some()),
                ("--snapshot", self.snapshot.is_some()),
            ];
            if let Some((option, _)) = pointless.iter().find(|(_, given)| *given) {
                return wrong(option, "--no-cache is given too");
            }
        }
        for name in &self.pass_parameters {
            if name.is_empty() || OWN_PARAMETERS.contains(&name.as_str()) {
                let problem = format!("{name:?} is no parameter that can be passed on");
                return wrong("--pass-parameter", &problem);
            }
        }
        for origin in &self.cors_origins {
            let is_origin = Url::parse(origin)
                .is_ok_and(|url| url.has_host() && url.origin().ascii_serialization() == *origin);
            if origin != "*" && !is_origin {
                let problem = format!("{origin:?} is neither * nor like https://example.com");
                return wrong("--cors-origin", &problem);
            }
        }
        // One answer or body gets at most half of the buffers.
        if self.max_answer_mb > self.buffer_mb / 2 {
            let problem = format!(
                "{} is over half of the {} of --buffer-mb, so the largest answers could never be given",
                self.max_answer_mb, self.buffer_mb
            );
            return wrong("--max-answer-mb", &problem);
        }
        if self.max_body_bytes as usize > self.buffer_bytes() / 2 {
            let problem = format!("{} is over half of --buffer-mb", self.max_body_bytes);
            return wrong("--max-body-bytes", &problem);
        }
        Ok(())
    }

    /// What the upstream is sent as Authorization, unless the client's own is.
    pub(crate) fn upstream_authorization(&self) -> Option<String> {
        let in_url = self.upstream.as_ref().and_then(|url| url.authorization());
        let key = self.api_key.as_ref().map(|key| format!("Bearer {}", key.expose()));
        in_url.map(str::to_owned).or(key)
    }

    /// The upstream's URL with `path` appended, and the query that every call gets.
    pub(crate) fn upstream_url(&self, path: &str) -> Option<Url> {
        let mut url = self.upstream.as_ref()?.url()?.clone();
        let path = format!("{}/{path}", url.path().trim_end_matches('/'));
        url.set_path(&path);
        for (name, value) in self.upstream_query.iter().filter_map(|parameter| parameter.pair()) {
            url.query_pairs_mut().append_pair(name, value);
        }
        Some(url)
    }
}
