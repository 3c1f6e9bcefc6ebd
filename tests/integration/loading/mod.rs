//! Loads: what `get_or_embed` and `get_or_embed_many` promise, each fault seen in the field among it.

mod background;
mod batcher;
mod batcher_faults;
mod batches;
mod doors;
mod failures;
mod flights;
mod hung;
mod model;
mod nested;
mod newer;
mod schedule;
mod stale;
