# The reader of snapshots under a fuzzer, for a short while: that the target builds, and finds nothing
# at once.
set -euo pipefail
cargo fuzz --version > /dev/null 2>&1 || cargo install cargo-fuzz --locked --debug
cargo +nightly fuzz run snapshot --target-dir "${CARGO_TARGET_DIR:-target}/fuzz" -- -max_total_time=20 -max_len=65536
