# The benchmarks compile, and every cell of them runs once. Nothing is measured: an unoptimised build
# shows as well that it runs, and most of it is there from the tests.
set -euo pipefail
cargo bench --profile dev -p contention --bench contention -- --test
# It says what it measured: for a while it ran as an empty set of tests, which passed.
cargo bench --profile dev -p contention --bench loading -- --test | grep 'get_or_embed_many / get_many'
