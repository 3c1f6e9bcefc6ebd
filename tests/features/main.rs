//! What each set of features must keep by itself: run once for each feature alone, with none and with
//! all. Small, so that it is soon built so often.

mod contracts;
mod metrics;
#[cfg(feature = "metrics")]
#[path = "../support/scripted.rs"]
mod scripted;
#[path = "../support/mod.rs"]
mod support;
