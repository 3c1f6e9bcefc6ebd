//! The tier on real servers, Redis and Valkey: single, frozen, killed, black-holed, and clusters.
//!
//! They fail where the servers are not installed: `.ci/run 67` installs them.

mod cluster;
mod faults;
mod sharing;
mod start;
mod support;
