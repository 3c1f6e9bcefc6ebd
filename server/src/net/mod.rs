//! Between a socket and a request: connections, their limits and their ends. Knows HTTP, not what is
//! asked over it.
//!
//! HTTP/1.1 only. Over HTTP/2 one connection could hold as many requests as it has streams, and
//! leave their answers unread.

mod connection;
mod drain;
mod listener;
mod stream;
mod unreadable;

pub(crate) use connection::Connection;
pub(crate) use drain::{Active, Drain};
pub(crate) use listener::{Limits, Stage, serve};
