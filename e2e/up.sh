#!/usr/bin/env bash
# `make up`: Aegis in front of two MCP servers that nobody here wrote, and one short visit by a stock
# client. Needs no root. AEGIS_DEMO=once ends after the visit.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export AEGIS_CACHE=${AEGIS_CACHE:-$HOME/.cache/aegis}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$AEGIS_CACHE/target}
export PATH="$AEGIS_CACHE/bin:$PATH"
export AEGIS_OPA="$AEGIS_CACHE/bin/opa"
SCRATCH=${AEGIS_SCRATCH:-$PWD/scratch}
DAEMON=

say() { printf '\n== %s\n' "$*"; }
die() { echo "make up: $*" >&2; exit 1; }
finish() {
  local status=$?
  if [[ -n $DAEMON ]] && kill -0 "$DAEMON" 2>/dev/null; then
    kill "$DAEMON"
    wait "$DAEMON" || true
  fi
  exit "$status"
}
trap finish EXIT
trap 'exit 0' INT TERM

for tool in cargo go python3 cc make; do
  command -v "$tool" >/dev/null || die "\`$tool\` is missing; Aegis is built with Rust, Go, Node, make and a C compiler"
done

say "installing what is missing into $AEGIS_CACHE (pinned: opa by go, Node 24 and Python servers by pip, Node servers by npm)"
./e2e/setup.sh node24 mcp-node mcp-python opa

AEGIS=${AEGIS_BIN:-$CARGO_TARGET_DIR/debug/aegis}
if [[ -z ${AEGIS_BIN:-} ]]; then
  say "building aegis (the first time takes some minutes)"
  cargo build --quiet -p aegis
fi

rm -rf "$SCRATCH"
mkdir -p -m 700 "$SCRATCH" "$SCRATCH/files" "$SCRATCH/aegis.d"
echo "hello from a governed file" >"$SCRATCH/files/hello.txt"
python3 - "$SCRATCH/shop.db" <<'PY'
import sqlite3, sys
shop = sqlite3.connect(sys.argv[1])
shop.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, item TEXT, credit_card TEXT)")
shop.executemany("INSERT INTO orders (item, credit_card) VALUES (?, ?)", [("tea", "4111"), ("cups", "4222")])
shop.commit()
PY
sed "s/@UID@/$(id -u)/" e2e/demo/aegis.d.yaml >"$SCRATCH/aegis.d/demo.yaml"

say "starting: aegis up --config $SCRATCH/aegis.d --state $SCRATCH/state"
export AEGIS_STATE=$SCRATCH/state
"$AEGIS" up --config "$SCRATCH/aegis.d" --admin 127.0.0.1:0 &
DAEMON=$!
for ((i = 0; i < 300; i++)); do
  "$AEGIS" status >/dev/null 2>&1 && break
  kill -0 "$DAEMON" 2>/dev/null || die "the daemon ended; see above"
  sleep 0.2
done

say "a stock MCP client visits two governed servers"
NODE=$(./e2e/setup.sh where node24)/bin/node
FILES=$(./e2e/setup.sh where mcp-node)/node_modules/@modelcontextprotocol/server-filesystem/dist/index.js
SQLITE=$(./e2e/setup.sh where mcp-sqlite)/bin/mcp-server-sqlite
CLIENT=$(./e2e/setup.sh where mcp-python)/bin/python
"$CLIENT" e2e/demo/visit.py --aegis "$AEGIS" --scratch "$SCRATCH" \
  --files "$NODE $FILES $SCRATCH/files" --sqlite "$SQLITE --db-path $SCRATCH/shop.db"

cat <<TEXT

== what to try next (in another terminal; first: export AEGIS_STATE=$AEGIS_STATE PATH="$(dirname "$AEGIS"):\$PATH")
  aegis console                                  a link to all of it in a browser
  aegis status                                   how everything stands, and what is not covered
  aegis audit query --result deny                what was refused, and why
  aegis explain --server shop --tool write_query --arguments '{"query":"DROP TABLE orders"}'
  aegis approvals list                           what waits for you
  aegis trust show                               what the agent is trusted, and why
  \$EDITOR $SCRATCH/aegis.d/demo.yaml             change a policy; it takes effect by itself
  aegis init aegis.d                             start a configuration of your own
TEXT
[[ ${AEGIS_DEMO:-} == once ]] && exit 0
say "up until Ctrl-C"
wait "$DAEMON"
