# README's example on a small directory of text, and on what it must refuse.
set -euo pipefail
command=$(sed -n 's/^\(cargo run --release -p embed-corpus\)$/\1/p' README.md | head -n 1)
[[ -n $command ]] || { echo "README.md does not name the example's command"; exit 1; }
cargo build --release -p embed-corpus
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

$command -- --help > /dev/null
$command -- --batches 200 --tasks 1,8 src | tee "$out/report"
for words in 'bit for bit' 'single lock' 'sharded'; do
    grep -q "$words" "$out/report" || { echo "the report does not say: $words"; exit 1; }
done

fails_with() { # STATUS ARGUMENTS...
    local status=0
    $command -- "${@:2}" > "$out/refusal" 2>&1 || status=$?
    [[ $status == "$1" ]] ||
        { echo "expected status $1 for ${*:2}, got $status:"; cat "$out/refusal"; exit 1; }
}
fails_with 1 --batches 200 --tasks 8 --sabotage src # one wrong bit is found
mkdir "$out/empty"
fails_with 2 "$out/empty"         # no paragraph
fails_with 2 "$out/empty/missing" # no such directory
fails_with 2 Cargo.toml           # a file
fails_with 2 --tasks 0 src        # a wrong option
fails_with 2 --disk "$out/disk" src # what this build does not have

# What measures lock holds builds and starts.
cargo run -p contention --example lock_hold -- --help > /dev/null
