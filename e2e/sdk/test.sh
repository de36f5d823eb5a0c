#!/usr/bin/env bash
# The SDKs against a real daemon: their own tests, the adapters with the real frameworks, and the same action
# at every enforcement point. AEGIS_BIN names the daemon's program.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

export AEGIS_BIN=${AEGIS_BIN:?name the program to test}
node=$(./e2e/setup.sh where node24)/bin
python=$(./e2e/setup.sh where sdk-python)/bin
crewai=$(./e2e/setup.sh where sdk-crewai)/bin

# The frameworks' dependencies are elsewhere: nothing of them is installed into the sources.
ln -sfn "$(./e2e/setup.sh where sdk-node)/node_modules" sdk/typescript/node_modules
(cd sdk/typescript && PATH="$node:$PATH" npm test --silent)

export PYTHONDONTWRITEBYTECODE=1
(cd sdk/python && "$python/mypy" --cache-dir /dev/null && "$python/pytest" -p no:cacheprovider)
(cd sdk/python && "$crewai/pytest" -p no:cacheprovider -W ignore::DeprecationWarning tests/test_crewai.py)

"$(./e2e/setup.sh where mcp-python)/bin/python" e2e/sdk/sandbox.py --aegis "$AEGIS_BIN" --node "$node/node"
