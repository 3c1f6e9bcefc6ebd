//! An OpenAI-compatible upstream that does what a test tells it to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// How the upstream behaves.
#[derive(Debug, Clone)]
pub enum Mode {
    Good,
    /// Good, but the answer is base64.
    Base64,
    /// Good, the items in reverse order, told apart by their index.
    Reversed,
    /// Never answers.
    Stall,
    /// Answers after a while.
    Slow(Duration),
    /// Answers with this status, and with this header if there is one.
    Status(u16, Option<&'static str>),
    /// Fails so many times, then is good.
    FailFirst(usize),
    TooFew,
    TooMany,
    /// The text `NaN`, as Python writes it.
    NanLiteral,
    /// A vector of base64 with a NaN in it, for inputs that contain "bad".
    NanBase64,
    /// null in the place of a component, for inputs that contain "bad".
    Null,
    /// Vectors of 3 dimensions.
    WrongDimensions,
    Empty,
    NoJson,
    /// Closes the connection in the middle of the answer.
    BreakOff,
    /// Good, unless an input contains "bad".
    Bad(Fault),
    /// Good, but never answers for models whose names begin so.
    StallModel(&'static str),
    /// Good, and says that every input has as many tokens as bytes.
    Counting,
}

/// What a batch with a bad input meets.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    Status(u16),
    /// A batch whose every vector is `[NaN]`.
    NanLiteral,
    /// The bad inputs are left out of the answer.
    LeftOut,
    Stall,
    BreakOff,
    /// Status 200 and an error in the body.
    ErrorObject,
}

/// What the inputs of a question have in common with a bad one.
pub fn is_bad(input: &Value) -> bool {
    input.to_string().contains("bad")
}

pub struct Upstream {
    pub address: SocketAddr,
    state: Arc<Told>,
}

struct Told {
    mode: Mutex<Mode>,
    calls: AtomicUsize,
    in_flight: AtomicUsize,
    most_in_flight: AtomicUsize,
    asked: Mutex<Vec<(Value, HeaderMap)>>,
    query: Mutex<String>,
}

/// A call under way.
struct Call<'a>(&'a Told);

impl<'a> Call<'a> {
    fn begin(told: &'a Told) -> Self {
        let now = told.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        told.most_in_flight.fetch_max(now, Ordering::SeqCst);
        Self(told)
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Upstream {
    pub async fn start(mode: Mode) -> Self {
        let state = Arc::new(Told {
            mode: Mutex::new(mode),
            calls: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            most_in_flight: AtomicUsize::new(0),
            asked: Mutex::default(),
            query: Mutex::default(),
        });
        let models = || async {
            axum::Json(json!({"object": "list", "data": [{"id": "theirs", "object": "model"}]}))
        };
        let router = Router::new()
            .route("/v1/embeddings", post(answer))
            .route("/v1/models", axum::routing::get(models))
            .with_state(Arc::clone(&state));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, state }
    }

    pub fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    pub fn set(&self, mode: Mode) {
        *self.state.mode.lock().unwrap() = mode;
    }

    pub fn calls(&self) -> usize {
        self.state.calls.load(Ordering::SeqCst)
    }

    /// The most calls that were under way at a time.
    pub fn most_in_flight(&self) -> usize {
        self.state.most_in_flight.load(Ordering::SeqCst)
    }

    /// The query of the last question.
    pub fn query(&self) -> String {
        self.state.query.lock().unwrap().clone()
    }

    /// The questions so far, with their headers.
    pub fn asked(&self) -> Vec<(Value, HeaderMap)> {
        self.state.asked.lock().unwrap().clone()
    }
}

/// The vector of an input: 4 components that tell inputs apart.
pub fn vector(input: &Value, dimensions: usize) -> Vec<f32> {
    let text = input.to_string();
    let sum: u32 = text.bytes().map(u32::from).sum();
    (0..dimensions).map(|i| text.len() as f32 + sum as f32 / 1024.0 + i as f32 / 3.0).collect()
}

async fn answer(
    State(told): State<Arc<Told>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: String,
) -> Response {
    let _under_way = Call::begin(&told);
    *told.query.lock().unwrap() = query.unwrap_or_default();
    let call = told.calls.fetch_add(1, Ordering::SeqCst);
    let question: Value = serde_json::from_str(&body).unwrap();
    told.asked.lock().unwrap().push((question.clone(), headers));
    let mode = told.mode.lock().unwrap().clone();
    let inputs = question["input"].as_array().unwrap().clone();
    let dimensions = question["dimensions"].as_u64().unwrap_or(4) as usize;
    let good = |input: &Value| json!(vector(input, dimensions));
    let base64 = |input: &Value, nan: bool| {
        use base64::Engine as _;
        let mut floats = vector(input, dimensions);
        if nan {
            floats[1] = f32::NAN;
        }
        let bytes: Vec<u8> = floats.iter().flat_map(|x| x.to_le_bytes()).collect();
        json!(base64::engine::general_purpose::STANDARD.encode(bytes))
    };
    let bad = is_bad;
    let item = |(index, embedding): (usize, Value)| json!({"object": "embedding", "index": index, "embedding": embedding});
    let list = |embeddings: Vec<Value>| -> Vec<Value> {
        embeddings.into_iter().enumerate().map(item).collect()
    };
    let all = |make: &dyn Fn(&Value) -> Value| list(inputs.iter().map(make).collect());
    let data = match mode {
        Mode::Good => all(&good),
        Mode::Base64 => all(&|input| base64(input, false)),
        Mode::Reversed => all(&good).into_iter().rev().collect(),
        Mode::Stall => {
            std::future::pending::<()>().await;
            Vec::new()
        }
        Mode::Slow(pause) => {
            tokio::time::sleep(pause).await;
            all(&good)
        }
        Mode::Status(status, retry_after) => return refuse(status, retry_after),
        Mode::FailFirst(times) if call < times => return refuse(500, None),
        Mode::FailFirst(_) => all(&good),
        Mode::TooFew => list(inputs.iter().skip(1).map(good).collect()),
        Mode::TooMany => list(inputs.iter().chain(inputs.first()).map(good).collect()),
        Mode::NanLiteral => {
            return text(r#"{"data":[{"index":0,"embedding":[1.0,NaN]}]}"#);
        }
        Mode::NanBase64 => all(&|input| base64(input, bad(input))),
        Mode::Null => all(&|input| if bad(input) { json!([1.0, null]) } else { good(input) }),
        Mode::WrongDimensions => all(&|input| json!(vector(input, 3))),
        Mode::Empty => all(&|_| json!([])),
        Mode::NoJson => return text("<html>login</html>"),
        Mode::BreakOff => return break_off(),
        Mode::Bad(fault) if inputs.iter().any(bad) => match fault {
            Fault::Status(status) => return refuse(status, None),
            Fault::NanLiteral => return text(r#"{"data":[{"index":0,"embedding":[NaN]}]}"#),
            Fault::LeftOut => list(inputs.iter().filter(|input| !bad(input)).map(good).collect()),
            Fault::Stall => {
                std::future::pending::<()>().await;
                Vec::new()
            }
            Fault::BreakOff => return break_off(),
            Fault::ErrorObject => return text(r#"{"error":{"message":"told to fail"}}"#),
        },
        Mode::Bad(_) => all(&good),
        Mode::StallModel(name) => {
            if question["model"].as_str().unwrap().starts_with(name) {
                std::future::pending::<()>().await;
            }
            all(&good)
        }
        Mode::Counting => {
            let tokens: usize = inputs.iter().map(|input| input.as_str().unwrap().len()).sum();
            let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
            let data = all(&good);
            let answer = json!({"object": "list", "data": data, "model": "m", "usage": usage});
            return axum::Json(answer).into_response();
        }
    };
    axum::Json(json!({"object": "list", "data": data, "model": question["model"]})).into_response()
}

/// An answer that ends in its middle.
fn break_off() -> Response {
    let broken =
        futures_util::stream::iter([Ok("{\"data\":["), Err(std::io::Error::other("broken off"))]);
    axum::body::Body::from_stream(broken).into_response()
}

fn refuse(status: u16, retry_after: Option<&'static str>) -> Response {
    let body = json!({"error": {"message": format!("told to answer {status}"), "type": "test"}});
    let status = StatusCode::from_u16(status).unwrap();
    let mut response = (status, axum::Json(body)).into_response();
    if let Some(value) = retry_after {
        response.headers_mut().insert("retry-after", value.parse().unwrap());
    }
    response
}

fn text(body: &'static str) -> Response {
    ([("content-type", "application/json")], body).into_response()
}
