//! An OpenAI-compatible embedding server in front of [`embedding_cache::EmbeddingCache`].
//!
//! The binary is `main.rs`; this library exists so that tests can start the same server in their own
//! process, on a free port. What it answers and refuses is described in `docs/server.md`.
//!
//! ```text
//! server.rs      routes, start and shutdown
//! embeddings.rs  POST /v1/embeddings, from the permit to the answer
//! request.rs     the body of a request, parsed without copying its texts
//! answer.rs      the body of an answer, written straight from the shared vectors
//! service.rs     the one place that knows the cache
//! backend/       what computes a vector: the built-in embedder, or another server
//! monitor.rs     counts and latencies, /stats and /metrics
//! error.rs       every refusal as a JSON object with its status
//! ```

#![forbid(unsafe_code)]

mod answer;
mod backend;
mod embeddings;
mod error;
mod monitor;
mod options;
mod request;
mod server;
mod service;

pub use options::{Model, Options};
pub use server::{Server, StartError};
