//! The server over real sockets, in this process. One binary, as linking takes longer than testing.

#[path = "../support/mod.rs"]
mod support;

mod answers;
mod connections;
mod errors;
mod isolation;
mod options;
mod protocol;
mod refusals;
mod sharing;
mod tiers;
mod upstream;
