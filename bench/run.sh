#!/usr/bin/env bash
# Every benchmark, in turn, with the machine and the method printed. Numbers from a busy machine say
# little: it prints the load before each.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
export AEGIS_CACHE=${AEGIS_CACHE:-$HOME/.cache/aegis}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$AEGIS_CACHE/target}
export AEGIS_OPA="$AEGIS_CACHE/bin/opa" AEGIS_BENCH_CACHE=${AEGIS_BENCH_CACHE:-$AEGIS_CACHE/bench}
mkdir -p -m 700 "$AEGIS_BENCH_CACHE"
../e2e/setup.sh opa
# A peer that cannot be installed is left out, and bench-policy says so.
if ../e2e/setup.sh agent-toolkit; then
  AEGIS_BENCH_TOOLKIT=$(../e2e/setup.sh where agent-toolkit)/bin/python
  export AEGIS_BENCH_TOOLKIT
fi
echo "machine: $(nproc) cores, $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1), $(uname -sr), $(rustc --version)"
cargo build --quiet --release --bins
for bench in bench-policy bench-ledger bench-ca; do
  printf '\n== %s (load %s)\n' "$bench" "$(cut -d' ' -f1-3 /proc/loadavg)"
  "$CARGO_TARGET_DIR/release/$bench"
done
