#!/bin/sh
# Runs every test: with nextest where it is installed, else with cargo's own runner.

set -eu
cd "$(dirname "$0")/.."

# Servers and clients share the processors with the tests: too many at once only run into deadlines.
jobs=$(nproc 2>/dev/null || echo 2)

# The services are processes of their own in the end-to-end tests, so they are built first.
cargo build --workspace --locked --bins
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --workspace --locked --no-fail-fast --test-threads "$jobs"
    # nextest leaves the examples in comments out.
    cargo test --workspace --locked --doc
else
    cargo test --workspace --locked --no-fail-fast -- --test-threads "$jobs"
fi
