# What would be published builds on its own.
set -euo pipefail
cargo package --allow-dirty --quiet
cargo package --allow-dirty --list | grep -qx 'LICENSE-MIT'
cargo package --allow-dirty --list | grep -qx 'LICENSE-APACHE'
