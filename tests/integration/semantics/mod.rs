//! Each promise of `docs/semantics.md`.

mod expiry;
mod invalidate;
mod limits;
mod lives;
mod locks;
mod many;
mod one_key;
mod removals;
mod stats;
