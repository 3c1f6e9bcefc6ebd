# README's test command, then every feature alone and all together.
set -euo pipefail
command=$(sed -n 's/^\(cargo test\)$/\1/p' README.md | head -n 1)
[[ -n $command ]] || { echo "README.md names no test command"; exit 1; }
$command
for features in --no-default-features "--features serde" "--features metrics" "--features tracing" "--features tier"; do
    printf -- '--- cargo test %s\n' "$features"
    # shellcheck disable=SC2086
    cargo test $features --lib --test features --test spans
done
printf -- '--- cargo test --all-features\n'
cargo test --all-features --lib --test features --test spans
# What a feature may change; the other modules have run above.
cargo test --all-features --test integration -- semantics:: keys:: loading:: snapshot:: tier::
cargo test --all-features --doc
printf -- '--- cargo test -p baseline -p embed-corpus\n'
cargo test -p baseline -p embed-corpus
