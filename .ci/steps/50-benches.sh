# The benchmarks compile, and every cell of them runs once. Nothing is measured: an unoptimised build
# shows as well that it runs, and most of it is there from the tests.
set -euo pipefail
cargo bench --profile dev --bench contention -- --test
cargo bench --profile dev --bench loading -- --test
