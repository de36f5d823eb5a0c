#!/usr/bin/env bash
# Everything that must hold, phase by phase, each with its time. Installs what it needs first and
# says so. AEGIS_PHASES="setup nextest …" runs some phases only.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PHASES=${AEGIS_PHASES:-setup format build lints nextest doctests generated policies approval mcp sdk a2a extension console deny up cluster}
export AEGIS_CACHE=${AEGIS_CACHE:-$HOME/.cache/aegis}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$AEGIS_CACHE/target}
export PATH="$AEGIS_CACHE/bin:$PATH"
export AEGIS_OPA="$AEGIS_CACHE/bin/opa"
export CARGO_TERM_COLOR=never CARGO_INCREMENTAL=0
TIMES=()

phase() {
  local name=$1 start=$SECONDS
  shift
  [[ " $PHASES " == *" $name "* ]] || return 0
  printf '\n== %s\n' "$name"
  "$@"
  TIMES+=("$(printf '%-10s %5d s' "$name" $((SECONDS - start)))")
}

setup() {
  local targets=(node24 mcp-node mcp-python sdk-node sdk-python sdk-crewai a2a extension console opa nextest cargo-deny)
  if [[ $(id -u) == 0 ]]; then targets+=(postgres kubernetes containerd coredns helm prometheus); fi
  ./e2e/setup.sh "${targets[@]}"
}
# Every cargo command takes the whole workspace: a part of it would have other features, and build its
# dependencies once more.
build() { cargo build --workspace --all-targets; }
lints() { cargo clippy --workspace --all-targets -- -D warnings; }
nextest() {
  export AEGIS_BIN="$CARGO_TARGET_DIR/debug/aegis"
  cargo nextest run --workspace
}
policies() { "$CARGO_TARGET_DIR/debug/aegis" policy test policies; }
doctests() { cargo test --quiet --doc --workspace; }
# What is generated from the sources is committed as it would be generated now.
generated() {
  local fresh
  fresh=$(mktemp -d)
  "$CARGO_TARGET_DIR/debug/aegis" reference "$fresh"
  diff -ru docs/reference "$fresh" || { echo "docs/reference is not what the sources say; run \`make gen\`" >&2; return 1; }
  "$CARGO_TARGET_DIR/debug/xtask" crds "$fresh/crds"
  diff -ru crds "$fresh/crds" || { echo "crds is not what the sources say; run \`make gen\`" >&2; return 1; }
  rm -rf "$fresh"
}
# A stock client times out, the daemon is killed, the approval arrives, the client retries: once.
approval() {
  "$(./e2e/setup.sh where mcp-python)/bin/python" e2e/approval.py --aegis "$CARGO_TARGET_DIR/debug/aegis" \
    --sqlite-server "$(./e2e/setup.sh where mcp-sqlite)/bin/mcp-server-sqlite"
}
# Governed tools, by a stock client.
mcp() { "$(./e2e/setup.sh where mcp-python)/bin/python" e2e/tools.py --aegis "$CARGO_TARGET_DIR/debug/aegis"; }
# The SDKs with the frameworks whose tools they govern, and one action at every enforcement point.
sdk() { AEGIS_BIN="$CARGO_TARGET_DIR/debug/aegis" ./e2e/sdk/test.sh; }
# Agents and clients of others, straight and through Aegis, in both bindings and versions.
a2a() {
  "$(./e2e/setup.sh where a2a-python)/bin/python" e2e/a2a/direct_and_proxied.py --aegis "$CARGO_TARGET_DIR/debug/aegis" \
    --node "$(./e2e/setup.sh where node24)/bin/node" --modules "$(./e2e/setup.sh where a2a-node)/node_modules"
}
# The VS Code extension: its checks, its tests and its package. In a real editor it runs by `make editor`.
extension() {
  ./e2e/editor.sh package
  echo "NOT RUN: a real editor; \`make editor\` installs one and runs that part"
}
# The console: its checks, its tests, and that the committed files are what its sources build.
console() {
  ./e2e/console.sh check
  echo "NOT RUN: a real browser; \`make console\` installs one and runs that part"
}
deny() { cargo deny --log-level error check bans licenses sources; }
# The quick start itself, as its reader runs it: without a terminal, and ended once it has shown all.
up() { AEGIS_BIN="$CARGO_TARGET_DIR/debug/aegis" AEGIS_DEMO=once ./e2e/up.sh; }
# Two agent pods on a real Kubernetes node, the charts on it, and ways round the sidecars.
cluster() {
  if [[ $(id -u) != 0 ]]; then
    echo "NOT RUN: a Kubernetes node needs root; \`sudo -E make e2e\` runs this part"
    [[ -z ${CI:-} ]]
    return
  fi
  AEGIS_BINARIES="$CARGO_TARGET_DIR/debug" ./e2e/cluster/agents.sh
}

phase setup setup
phase format cargo fmt --all --check
phase build build
phase lints lints
phase nextest nextest
phase doctests doctests
phase generated generated
phase policies policies
phase approval approval
phase mcp mcp
phase sdk sdk
phase a2a a2a
phase extension extension
phase console console
phase deny deny
phase up up
phase cluster cluster

printf '\n== times\n'
printf '%s\n' "${TIMES[@]}"
