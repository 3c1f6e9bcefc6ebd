//! An OpenAI-compatible upstream that does what a test tells it to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
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
    /// Refuses with 400 any batch with an input that contains "bad".
    RefuseBad,
}

pub struct Upstream {
    pub address: SocketAddr,
    state: Arc<Told>,
}

struct Told {
    mode: Mutex<Mode>,
    calls: AtomicUsize,
    asked: Mutex<Vec<(Value, HeaderMap)>>,
}

impl Upstream {
    pub async fn start(mode: Mode) -> Self {
        let state = Arc::new(Told {
            mode: Mutex::new(mode),
            calls: AtomicUsize::new(0),
            asked: Mutex::default(),
        });
        let router =
            Router::new().route("/v1/embeddings", post(answer)).with_state(Arc::clone(&state));
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

async fn answer(State(told): State<Arc<Told>>, headers: HeaderMap, body: String) -> Response {
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
    let bad = |input: &Value| input.to_string().contains("bad");
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
        Mode::BreakOff => {
            let broken = futures_util::stream::iter([
                Ok("{\"data\":["),
                Err(std::io::Error::other("broken off")),
            ]);
            return axum::body::Body::from_stream(broken).into_response();
        }
        Mode::RefuseBad if inputs.iter().any(bad) => return refuse(400, None),
        Mode::RefuseBad => all(&good),
    };
    axum::Json(json!({"object": "list", "data": data, "model": question["model"]})).into_response()
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
