#!/usr/bin/env bash
# The inner loop: format, lints and the tests of the crates without I/O. Under five minutes warm.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cargo fmt --all --check
cargo test --quiet -p aegis-core -p aegis-resources -p aegis-protocol -p aegis-kernel
