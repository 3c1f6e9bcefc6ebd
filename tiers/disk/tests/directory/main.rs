//! The tier in real directories.

mod faults;
mod keeping;
mod start;
mod support;
