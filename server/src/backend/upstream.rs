//! Another OpenAI-compatible server that computes the vectors.

mod answer;

use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, Url, redirect};
use serde::Serialize;

use crate::options::Options;

use super::{Content, Embed, EmbedError, Job, Vectors};

/// The most bytes of an answer: ten times what 64 vectors of 4,096 dimensions take as text.
const ANSWER_LIMIT: usize = 64 << 20;

/// The most bytes of an error that are read, and the most characters of it that are passed on.
const ERROR_LIMIT: usize = 64 << 10;
const MESSAGE_LIMIT: usize = 300;

/// The first pause before a call is tried again; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause. An upstream that asks for a longer one is left alone, and so is told the client.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Calls that may be spent on finding out which inputs of a batch the upstream refuses.
const SEARCH_CALLS: usize = 32;

/// The client for one upstream.
#[derive(Debug)]
pub(crate) struct Upstream {
    client: Client,
    url: Url,
    timeout: Duration,
    retries: u32,
}

impl Upstream {
    /// # Errors
    ///
    /// The client cannot be made.
    pub(crate) fn new(base: &Url, options: &Options) -> Result<Self, reqwest::Error> {
        // The provider of the whole process; a second server in it finds it there.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut headers = HeaderMap::new();
        if let Some(key) = &options.api_key {
            // Checked to be visible ASCII where it was parsed.
            if let Ok(mut value) = HeaderValue::from_str(&format!("Bearer {}", key.0)) {
                value.set_sensitive(true);
                headers.insert(AUTHORIZATION, value);
            }
        }
        let client = Client::builder()
            .default_headers(headers)
            // A redirect would send the key to wherever it points.
            .redirect(redirect::Policy::none())
            .connect_timeout(options.upstream_timeout)
            .timeout(options.upstream_timeout)
            .build()?;
        let mut url = base.clone();
        let path = format!("{}/embeddings", base.path().trim_end_matches('/'));
        url.set_path(&path);
        let (timeout, retries) = (options.upstream_timeout, options.upstream_retries);
        Ok(Self { client, url, timeout, retries })
    }

    /// The vectors of jobs that one request can ask for together.
    async fn embed_group(&self, jobs: &[&Job]) -> Vectors {
        let mut results: Vec<Option<_>> = vec![None; jobs.len()];
        let mut calls = SEARCH_CALLS;
        // Parts still to be asked for; the whole, and halves of what was refused.
        let whole = 0..jobs.len();
        let mut parts = vec![whole];
        while let Some(part) = parts.pop() {
            match self.call_with_retries(&jobs[part.clone()]).await {
                Ok(vectors) => {
                    for (slot, vector) in results[part].iter_mut().zip(vectors) {
                        *slot = Some(vector);
                    }
                }
                // One input that the model cannot take must not fail those of other requests that
                // it happens to share the batch with.
                Err(error) if refuses_input(&error) && part.len() > 1 && calls >= 2 => {
                    calls -= 2;
                    let middle = part.start + part.len() / 2;
                    parts.extend([middle..part.end, part.start..middle]);
                }
                Err(error) => results[part].fill(Some(Err(error))),
            }
        }
        // Every part ended in one of the arms above.
        results.into_iter().map(|result| result.unwrap_or(Err(EmbedError::Panicked))).collect()
    }

    async fn call_with_retries(&self, jobs: &[&Job]) -> Result<Vectors, EmbedError> {
        let mut pause = FIRST_PAUSE;
        for _ in 0..self.retries {
            let error = match self.call(jobs).await {
                Ok(vectors) => return Ok(vectors),
                Err(error) => error,
            };
            let wait = match &error {
                EmbedError::Unreachable { .. } | EmbedError::Timeout { .. } => pause,
                EmbedError::Status { status: 429 | 500..=599, retry_after, .. } => {
                    retry_after.map_or(pause, |seconds| pause.max(Duration::from_secs(seconds)))
                }
                _ => return Err(error),
            };
            if wait > LONGEST_PAUSE {
                return Err(error);
            }
            tracing::warn!(%error, ?wait, "the call of the upstream is tried again");
            tokio::time::sleep(wait.mul_f64(jitter())).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        self.call(jobs).await
    }

    async fn call(&self, jobs: &[&Job]) -> Result<Vectors, EmbedError> {
        let Some(first) = jobs.first() else { return Ok(Vec::new()) };
        let input = jobs.iter().map(|job| Input::from(&job.content)).collect();
        let question = Question {
            model: &first.model,
            input,
            dimensions: first.asked,
            // What every server offers. The shortest text of a float gives back the same float.
            encoding_format: "float",
        };
        let unexpected =
            |error: serde_json::Error| EmbedError::Answer { reason: error.to_string() };
        let body = serde_json::to_vec(&question).map_err(unexpected)?;
        let request = self.client.post(self.url.clone()).header(CONTENT_TYPE, "application/json");
        let mut response = request.body(body).send().await.map_err(|error| self.failed(&error))?;

        let status = response.status();
        if status != StatusCode::OK {
            let retry_after = retry_after(&response);
            // What was read before the connection broke off is message enough.
            let text = self.read(&mut response, ERROR_LIMIT).await.unwrap_or_default();
            let message = answer::error_message(&text, MESSAGE_LIMIT);
            return Err(EmbedError::Status { status: status.as_u16(), message, retry_after });
        }
        let text = self.read(&mut response, ANSWER_LIMIT).await?;
        let mut vectors = answer::vectors(&text, jobs.len())?;
        for (vector, job) in vectors.iter_mut().zip(jobs) {
            if let Ok(components) = vector
                && let Err(error) = answer::check(components, job.expected)
            {
                *vector = Err(error);
            }
        }
        Ok(vectors)
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
        // The innermost cause says most ("connection refused"); the outer ones repeat the URL, which
        // is nobody's business outside.
        let mut cause: &dyn std::error::Error = error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        EmbedError::Unreachable { reason: cause.to_string() }
    }
}

impl Embed for Upstream {
    async fn embed(&self, jobs: Vec<Job>) -> Vectors {
        // Requests of several clients meet in a batch; one question has one model, one number of
        // dimensions, and texts or tokens.
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for (place, job) in jobs.iter().enumerate() {
            match groups.iter_mut().find(|group| goes_with(&jobs[group[0]], job)) {
                Some(group) => group.push(place),
                None => groups.push(vec![place]),
            }
        }
        let mut results: Vec<Option<_>> = vec![None; jobs.len()];
        let answers = groups.iter().map(|group| async {
            let members: Vec<&Job> = group.iter().map(|place| &jobs[*place]).collect();
            self.embed_group(&members).await
        });
        for (group, vectors) in groups.iter().zip(join_all(answers).await) {
            for (place, vector) in group.iter().zip(vectors) {
                results[*place] = Some(vector);
            }
        }
        // Every place is in a group, and a group has as many results as members.
        results.into_iter().map(|result| result.unwrap_or(Err(EmbedError::Panicked))).collect()
    }
}

fn goes_with(a: &Job, b: &Job) -> bool {
    let kinds = (&a.content, &b.content);
    a.model == b.model
        && a.asked == b.asked
        && matches!(
            kinds,
            (Content::Text(_), Content::Text(_)) | (Content::Tokens(_), Content::Tokens(_))
        )
}

/// Whether the upstream refused what was asked, so that other inputs may fare better.
fn refuses_input(error: &EmbedError) -> bool {
    matches!(error, EmbedError::Status { status: 400 | 413 | 422, .. })
}

/// The header in seconds; its other form, a date, is read as "later than we would wait".
fn retry_after(response: &Response) -> Option<u64> {
    let value = response.headers().get(RETRY_AFTER)?.to_str().ok()?;
    Some(value.trim().parse().unwrap_or(60))
}

/// Between a half and one, so that those who failed together do not come back together.
fn jitter() -> f64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    0.5 + f64::from(now.subsec_nanos() % 1000) / 2000.0
}

#[derive(Serialize)]
struct Question<'a> {
    model: &'a str,
    input: Vec<Input<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dimensions: Option<usize>,
    encoding_format: &'a str,
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
