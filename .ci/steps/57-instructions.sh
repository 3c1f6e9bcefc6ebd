# The instructions of each operation are within their limits. Valgrind counts them, driven by the
# runner of gungraun, which must be of exactly the version that the benchmarks link.
set -euo pipefail
if ! command -v valgrind > /dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends valgrind > /dev/null
fi
wanted=$(grep -A 1 -x 'name = "gungraun-runner"' Cargo.lock | sed -n 's/^version = "\(.*\)"/\1/p')
installed=$(gungraun-runner --version 2> /dev/null | cut -d' ' -f2 || true)
# Unoptimised, as it only starts valgrind and reads what that wrote: half the time to install it.
[[ $installed == "$wanted" ]] ||
    CARGO_PROFILE_DEV_DEBUG=0 cargo install gungraun-runner --version "$wanted" --locked --debug
cargo run -p instructions
