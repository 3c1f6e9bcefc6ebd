# Format, lints, documentation, file lengths.
set -euo pipefail
cargo fmt --all --check
cargo clippy --workspace --all-targets --all-features -- -D warnings
cargo clippy --all-targets -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --all-features --document-private-items

long=$(git ls-files '*.rs' | xargs wc -l | awk '$2 != "total" && $1 > 600 {print "  " $2 ": " $1 " lines"}')
[[ -z $long ]] || { printf 'files over 600 lines:\n%s\n' "$long"; exit 1; }

# Every relative link in the documents leads somewhere.
broken=0
while IFS=: read -r file link; do
    target=$(dirname "$file")/${link%%#*}
    [[ -e $target ]] || { echo "$file: broken link to $link"; broken=1; }
done < <(git ls-files '*.md' | xargs grep -oHE '\]\([^)#][^)]*\)' | sed -E 's/\]\((.*)\)$/\1/' | grep -vE ':https?://' || true)

# So does every test that they name.
while IFS=: read -r file path; do
    [[ -e $path ]] || { echo "$file: there is no $path"; broken=1; }
done < <(git ls-files '*.md' | grep -v CHANGELOG | xargs grep -oHE '`tests/[^`]*`' | tr -d '`' || true)
exit $broken
