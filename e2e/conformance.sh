#!/usr/bin/env bash
# Runs the official MCP conformance suite against the fixture server, directly and through Aegis,
# in both eras of MCP, and demands the same result of every single check. Through Aegis, the audit
# log must also hold one allowing decision and one outcome per request that reached the fixture.
#
#   e2e/conformance.sh                        the direct half
#   AEGIS_BIN=target/debug/aegis e2e/conformance.sh    both halves
#
# MCP_FIXTURE names a built fixture; without it, cargo builds one. Results stay in
# ${AEGIS_CONFORMANCE_OUT:-a temporary folder} when something fails.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(dirname "$HERE")
# Revision and the number of checks that a conforming server passes.
ERAS=("2026-07-28 197" "2025-11-25 83")
# How long Aegis may take to listen, and to stop. Seconds.
PATIENCE=30

OUT=${AEGIS_CONFORMANCE_OUT:-$(mktemp -d "${TMPDIR:-/tmp}/aegis-conformance.XXXXXX")}
mkdir -p "$OUT"
PIDS=()
FAILED=0

finish() {
  local status=$? pid
  for pid in "${PIDS[@]}"; do kill "$pid" 2>/dev/null || true; done
  if [[ $status == 0 && -z ${AEGIS_CONFORMANCE_OUT:-} ]]; then
    rm -rf "$OUT"
  else
    echo "results and logs are in $OUT"
  fi
}
trap finish EXIT

die() { echo "e2e/conformance.sh: $*" >&2; exit 1; }

report() { python3 "$HERE/conformance_report.py" "$@" || FAILED=1; }

# wait_until SECONDS COMMAND…: until COMMAND succeeds.
wait_until() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@"; do
    ((SECONDS < deadline)) || return 1
    sleep 0.1
  done
}

ended() { ! kill -0 "$1" 2>/dev/null; }
listens() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# start_fixture NAME: starts one and sets URL.
start_fixture() {
  "$MCP_FIXTURE" 0 >"$OUT/$1.url" 2>"$OUT/$1.log" &
  PIDS+=($!)
  wait_until "$PATIENCE" test -s "$OUT/$1.url" || die "the fixture did not start; see $OUT/$1.log"
  URL=$(<"$OUT/$1.url")
}

# suite NAME URL: runs both eras against URL into $OUT/NAME-REVISION.
suite() {
  local era revision start
  for era in "${ERAS[@]}"; do
    revision=${era% *}
    start=$SECONDS
    "$NODE" "$SUITE" server --url "$2" --requirements "$revision" -o "$OUT/$1-$revision" >"$OUT/$1-$revision.log" 2>&1 || true
    echo "$1, $revision: $(sed -n 's/^Total: //p' "$OUT/$1-$revision.log") in $((SECONDS - start)) s"
  done
}

# The allow-all configuration: every agent of this user may do everything, nothing is sensitive,
# and provoking Aegis with bad headers, which the suite does, quarantines nobody.
write_config() {
  mkdir -p "$OUT/config"
  cat >"$OUT/config/conformance.yaml" <<YAML
apiVersion: aegis.dev/v1alpha1
kind: AgentIdentity
metadata: { name: conformance }
spec:
  sponsor: ada@acme.example
  selector: { unix: { uid: $(id -u) } }
---
apiVersion: aegis.dev/v1alpha1
kind: AgentUpstream
metadata: { name: fixture }
spec:
  url: $1
  listen: 127.0.0.1:$2
---
apiVersion: aegis.dev/v1alpha1
kind: AgentPolicy
metadata: { name: allow-all }
spec:
  rules:
    - name: everything
      effect: allow
---
apiVersion: aegis.dev/v1alpha1
kind: ClusterTrustThreshold
metadata: { name: unconcerned }
spec: { tMin: 1, tau: 1000, sensitiveAt: 1000, criticalScore: 0, fileLimit: 100000 }
YAML
}

through_aegis() {
  local port aegis era revision
  [[ -x $AEGIS_BIN ]] || die "AEGIS_BIN=$AEGIS_BIN is no program; build it with \`cargo build -p aegis\`"
  start_fixture fixture-governed
  port=$(free_port)
  write_config "$URL" "$port"
  "$AEGIS_BIN" up --config "$OUT/config" --state "$OUT/state" --admin 127.0.0.1:0 >"$OUT/aegis.log" 2>&1 &
  aegis=$!
  PIDS+=("$aegis")
  wait_until "$PATIENCE" listens "$port" || die "aegis does not listen on 127.0.0.1:$port; see $OUT/aegis.log"
  suite aegis "http://127.0.0.1:$port/mcp"
  # What arrived is read before Aegis stops, what was recorded after: its journal is closed then.
  python3 -c 'import sys, urllib.request as r; sys.stdout.buffer.write(r.urlopen(sys.argv[1]).read())' "${URL%/mcp}/calls" >"$OUT/calls.json"
  kill "$aegis"
  wait_until "$PATIENCE" ended "$aegis" || die "aegis did not stop within $PATIENCE s; see $OUT/aegis.log"
  "$AEGIS_BIN" audit export --database "$OUT/state/ledger.db" --jsonl >"$OUT/entries.json" || die "the audit log cannot be queried"
  for era in "${ERAS[@]}"; do
    revision=${era% *}
    echo "direct and through Aegis, $revision:"
    report compare "$OUT/direct-$revision" "$OUT/aegis-$revision"
  done
  echo "audit log against calls:"
  report records "$OUT/calls.json" "$OUT/entries.json"
}

"$HERE/setup.sh" node24 mcp-node
NODE=$("$HERE/setup.sh" where node24)/bin/node
SUITE=$("$HERE/setup.sh" where mcp-node)/node_modules/@modelcontextprotocol/conformance/dist/index.js
if [[ -z ${MCP_FIXTURE:-} ]]; then
  (cd "$ROOT" && cargo build -q -p aegis-e2e --bin mcp-fixture)
  MCP_FIXTURE=${CARGO_TARGET_DIR:-$ROOT/target}/debug/mcp-fixture
fi

start_fixture fixture-direct
suite direct "$URL"
for era in "${ERAS[@]}"; do
  report direct "$OUT/direct-${era% *}" "${era#* }"
done
if [[ -n ${AEGIS_BIN:-} ]]; then
  through_aegis
else
  echo "AEGIS_BIN is not set: the half through Aegis was not run"
fi
((FAILED == 0)) || exit 1
echo "conformance: as it should be"
