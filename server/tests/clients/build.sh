# Sourced: one way to build for all that the checks do with the server, its tests included, as each
# other would build a hundred crates anew. Optimised, as ratios are looked at; with the assertions of
# a debug build.
export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16
export CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS=true
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}
binaries=$CARGO_TARGET_DIR/release
