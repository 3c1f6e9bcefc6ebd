//! Keys made from a specification: what is hashed, that nothing is left out of it, and that a cache
//! never takes one key for another.

mod distinct;
mod faults;
mod forms;
mod known;
mod settings;
