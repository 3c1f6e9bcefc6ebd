# The benchmarks compile, and every cell of them runs once.
set -euo pipefail
cargo bench --bench contention -- --test
cargo bench --bench loading -- --test
