# The peer benchmarks compile, and every section of them runs on small sizes, with a trace made here.
# Nothing is measured: an unoptimised build shows as well that it runs, and is made sooner.
set -euo pipefail
cargo test -p peers
cargo build -p peers
target=${CARGO_TARGET_DIR:-target}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

"$target/debug/peers" sample-trace --out "$out/traces"
"$target/debug/peers" all --quick --traces "$out/traces" --out "$out" > "$out/printed"
for section in throughput latency memory hit-ratio growth; do
    for file in "$section.csv" "$section-medians.csv"; do
        # More than the header.
        (($(wc -l < "$out/$file") > 1)) || { echo "$file holds no figures"; exit 1; }
    done
    drawn=("$out/$section"*.svg)
    for file in "${drawn[@]}"; do
        [[ -s $file ]] || { echo "$section has no plot"; exit 1; }
        grep -q '</svg>' "$file" || { echo "$file is no SVG"; exit 1; }
    done
done
grep -q '^public,sample,' "$out/hit-ratio.csv" || { echo "the trace was not replayed"; exit 1; }
grep -q '^## Targets' "$out/report.md" || { echo "the report has no targets"; exit 1; }
cmp --silent "$out/report.md" <(head -c -1 "$out/printed") || { echo "printed is not what was written"; exit 1; }

# The report can be made again from the files.
mv "$out/report.md" "$out/before.md"
"$target/debug/peers" report --out "$out" > /dev/null
cmp "$out/before.md" "$out/report.md"
