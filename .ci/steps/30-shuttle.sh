# The schedules that a real machine seldom makes: the same code on shuttle's locks and atomics.
set -euo pipefail
RUSTFLAGS="--cfg shuttle" CARGO_TARGET_DIR=target/shuttle cargo test --release --test shuttle
