# Installs what the other steps need and says what they run with.
set -euo pipefail
has() { rustup component list --installed "${@:2}" | grep -q "^$1"; }
has rustfmt || rustup component add rustfmt
has clippy || rustup component add clippy
has miri --toolchain nightly || rustup component add --toolchain nightly miri
has rust-src --toolchain nightly || rustup component add --toolchain nightly rust-src
rustc --version
rustc +nightly --version
# The stated minimum of the members is true: it is the toolchain that runs here, or an older one. That
# of the library is checked in 15-msrv.
stated=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml | sort -V | tail -n 1)
running=$(rustc --version | cut -d' ' -f2)
[[ $(printf '%s\n' "$stated" "$running" | sort -V | head -n 1) == "$stated" ]] ||
    { echo "Cargo.toml asks for Rust $stated, this is $running"; exit 1; }
