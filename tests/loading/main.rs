//! Loads: what `get_or_embed` and `get_or_embed_many` promise, each fault seen in the field among it.

mod batches;
mod failures;
mod flights;
mod model;
