//! An OpenAI-compatible caching server for embeddings: [`embedding_cache::EmbeddingCache`] in front
//! of any model server.
//!
//! The binary is `main.rs`; this library exists so that tests can start the same server in their own
//! process, on a free port. What it answers and refuses is described in `docs/server.md`.
//!
//! ```text
//! server.rs   start and shutdown
//! options/    what can be set, and what is wrong with it
//! net/        connections: accepted, bounded in time and number, ended so that answers arrive
//! api/        the routes: bodies in, JSON out
//! service/    from inputs to vectors: models by name, the cache, who may share a call with whom
//! backend/    what computes a vector: the built-in embedder, or another server
//! limits/     places shared among models, and a budget of bytes
//! monitor/    counts and durations, /stats and /metrics
//! error.rs    every refusal as a JSON object with its status
//! ```
//!
//! `net` and `api` know no model, `service` knows no HTTP, `backend` knows no cache.

#![forbid(unsafe_code)]

mod api;
mod backend;
mod error;
mod limits;
mod monitor;
mod net;
mod options;
mod server;
mod service;

pub(crate) use api::request;

pub use options::{
    Alias, ApiKey, Model, OptionError, Options, QueryParameter, RedisSecret, RedisUrl, UpstreamUrl,
};
pub use server::{Server, StartError};
