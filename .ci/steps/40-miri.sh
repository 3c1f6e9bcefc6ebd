# The core's own tests under Miri, with small sizes. The crate has no unsafe code; this looks for
# undefined behaviour in how it uses that of others, for leaks, and for data races.
set -euo pipefail
export CARGO_TARGET_DIR=target/miri
cargo +nightly miri setup
# The wall clock is read; parking_lot keeps the addresses of waiting threads in integers.
export MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-permissive-provenance"
cargo +nightly miri test --lib --test miri --no-run
# Miri runs on one processor, so one half beside the other.
cargo +nightly miri test --lib -- core:: >"$CARGO_TARGET_DIR/half.log" 2>&1 &
half=$!
cargo +nightly miri test --lib -- --skip core::
cargo +nightly miri test --test miri
wait $half || { cat "$CARGO_TARGET_DIR/half.log"; exit 1; }
grep "test result" "$CARGO_TARGET_DIR/half.log"
