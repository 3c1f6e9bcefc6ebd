# The library builds, with all features, with the oldest toolchain that it says it does. In a target of
# its own: half a minute from an empty one.
set -euo pipefail
stated=$(cargo metadata --format-version 1 --no-deps --locked |
    python3 -c 'import json, sys
print(next(p["rust_version"] for p in json.load(sys.stdin)["packages"] if p["name"] == "embedding-cache"))')
rustup toolchain list | grep -q "^$stated" || rustup toolchain install "$stated" --profile minimal
CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/msrv cargo "+$stated" check --locked -p embedding-cache --all-features
