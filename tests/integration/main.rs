//! What the cache promises, checked from outside: a module for each kind of promise.
//!
//! One binary, so that it is linked once. Apart are only tests that need a process, an allocator or a
//! build of their own: `allocations`, `memory`, `spans`, `miri`, `shuttle`, and `features`, which is
//! built once for each set of features.

mod compute;
mod concurrency;
mod deadlines;
mod errors;
mod inspect;
mod keys;
mod loading;
mod model;
mod panics;
mod policy;
mod runtimes;
mod seed;
mod semantics;
mod snapshot;
#[path = "../support/mod.rs"]
mod support;
mod tier;
