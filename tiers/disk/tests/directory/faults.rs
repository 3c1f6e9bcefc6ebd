//! Faults in operation.
