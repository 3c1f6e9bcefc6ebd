# The caching server: its tests; then the program itself, its page in a browser, 1,000 connections at
# once, bad connections and clients, and itself without a cache. The clients that people use are the
# next step.
set -euo pipefail
RUSTDOCFLAGS="-D warnings" cargo doc --no-deps -p embedding-cache-server
tools=()
command -v redis-server > /dev/null && command -v redis-cli > /dev/null || tools+=(redis-server redis-tools)
command -v openssl > /dev/null || tools+=(openssl)
command -v wrk > /dev/null || tools+=(wrk)
command -v chromium > /dev/null || tools+=(chromium)
if ((${#tools[@]} > 0)); then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${tools[@]}" > /dev/null
fi
# Without optimisation, whose build takes longer than all that follows: nothing here depends on it.
cargo test -p embedding-cache-server
binaries=${CARGO_TARGET_DIR:-target}/debug

# A thousand connections take a descriptor at each end.
(($(ulimit -n) >= 4096)) || ulimit -n 4096
here=server
out=$(mktemp -d)
servers=()
stop() {
    local server
    for server in "${servers[@]}"; do kill "$server" 2> /dev/null || true; done
    wait
    servers=()
}
trap 'stop; rm -rf "$out"' EXIT

start() { # NAME ARGUMENTS... ; sets `address`
    "$binaries/embedding-cache-server" --listen 127.0.0.1:0 "${@:2}" > "$out/$1" 2> "$out/$1.log" &
    servers+=($!)
    for _ in $(seq 100); do
        address=$(sed -n 's#^listening on http://##p' "$out/$1")
        [[ -z $address ]] || return 0
        sleep 0.1
    done
    echo "the server does not start:"
    cat "$out/$1.log"
    return 1
}
stat() { # ADDRESS PART NAME: a number of /stats
    python3 -c 'import json, sys, urllib.request as u
print(json.load(u.urlopen(sys.argv[1]))[sys.argv[2]][sys.argv[3]])' "http://$1/stats" "$2" "$3"
}

# The README's command starts this program.
command=$(sed -n 's/^\(cargo run --release -p embedding-cache-server\)$/\1/p' README.md docs/server.md | head -n 1)
[[ -n $command ]] || { echo "no document names the server's command"; exit 1; }
"$binaries/embedding-cache-server" --help > /dev/null

echo '--- the page'
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
redis-server --port "$port" --bind 127.0.0.1 --save '' --appendonly no --dir "$out" > /dev/null &
servers+=($!)
start page --redis "redis://127.0.0.1:$port" --tier-deadline 2s --snapshot "$out/snapshot" --snapshot-every 1s
python3 $here/tests/clients/page.py "http://$address" "$(command -v chromium)"
# It ends when it is told to, with what it was doing done.
kill -TERM "${servers[1]}"
wait "${servers[1]}" || { echo "the server ended with an error"; cat "$out/page.log"; exit 1; }
stop

echo '--- 1,000 connections'
start crowd
wrk -t2 -c1000 -d5s --timeout 20s -s $here/tests/clients/crowd.lua "http://$address/v1/embeddings" | tee "$out/wrk"
if grep -qE 'Non-2xx|Socket errors' "$out/wrk"; then
    cat "$out/crowd.log"
    exit 1
fi
answered=$(stat "$address" requests answered)
calls=$(stat "$address" model calls)
texts=$(stat "$address" cache entries)
echo "$answered answers, $texts distinct texts, $calls calls of the model"
((calls < texts && texts > 1000 && answered > texts))
stop

# For 5 seconds each; docs/server.md has what was seen in 60.
echo '--- bad connections, a bad client, a stalled model, a half-sent request'
python3 $here/tests/clients/rig.py "$binaries/embedding-cache-server" 5

# To see that the cache saves work: far under what docs/server.md measured.
echo '--- with and without the cache, before a model that takes 20 ms for 32 texts'
python3 $here/measure/ratios.py "$binaries" --rounds 1 --seconds 2 --connections 16 --at-least 3
