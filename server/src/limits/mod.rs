//! What bounds the server beside the cache's own limits: places shared among models, and bytes.

mod bytes;
mod shares;

pub(crate) use bytes::{ByteBudget, Reserved};
pub(crate) use shares::Shares;
