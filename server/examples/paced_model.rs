//! An OpenAI-compatible server whose model takes time and no processor, as one on another machine
//! does: a call takes `--call` and `--text` for each of its inputs, one call at a time. For
//! measurements; prints its address. `GET /calls` says how often it was asked.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use clap::Parser;
use serde_json::{Value, json};
use tokio::sync::Mutex;

/// A model that takes time.
#[derive(Debug, Parser)]
struct Options {
    /// Address to listen on; port 0 takes a free one, which is printed.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Microseconds that a call takes.
    #[arg(long, default_value_t = 5000)]
    call: u64,
    /// Microseconds that each input of a call takes.
    #[arg(long, default_value_t = 500)]
    text: u64,
    /// Components of a vector.
    #[arg(long, default_value_t = 384)]
    dimensions: usize,
}

#[derive(Debug)]
struct Model {
    options: Options,
    /// The device that computes: one call at a time.
    device: Mutex<()>,
    calls: AtomicU64,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let listener = tokio::net::TcpListener::bind(options.listen).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let model = Model { options, device: Mutex::new(()), calls: AtomicU64::new(0) };
    let router = Router::new()
        .route("/v1/embeddings", post(embed))
        .route("/calls", get(calls))
        .with_state(Arc::new(model));
    axum::serve(listener, router).await?;
    Ok(())
}

async fn calls(State(model): State<Arc<Model>>) -> Json<Value> {
    Json(json!({ "calls": model.calls.load(Relaxed) }))
}

async fn embed(State(model): State<Arc<Model>>, Json(question): Json<Value>) -> Json<Value> {
    let inputs = match &question["input"] {
        Value::Array(inputs) => inputs.clone(),
        one => vec![one.clone()],
    };
    {
        let _turn = model.device.lock().await;
        model.calls.fetch_add(1, Relaxed);
        let inputs = inputs.len() as u64 * model.options.text;
        tokio::time::sleep(Duration::from_micros(model.options.call + inputs)).await;
    }
    let base64 = question["encoding_format"] == "base64";
    let item = |(index, input): (usize, &Value)| {
        let vector = vector(&input.to_string(), model.options.dimensions);
        let embedding = if base64 {
            let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
            json!(base64::engine::general_purpose::STANDARD.encode(bytes))
        } else {
            json!(vector)
        };
        json!({ "object": "embedding", "index": index, "embedding": embedding })
    };
    let data: Vec<Value> = inputs.iter().enumerate().map(item).collect();
    let usage = json!({ "prompt_tokens": inputs.len(), "total_tokens": inputs.len() });
    Json(json!({ "object": "list", "data": data, "model": question["model"], "usage": usage }))
}

/// Components that look like those of a model, and differ by text.
fn vector(text: &str, dimensions: usize) -> Vec<f32> {
    let mut state = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
        ((state >> 40) as f32 / (1 << 24) as f32 - 0.5) / 10.0
    };
    (0..dimensions).map(|_| next()).collect()
}
