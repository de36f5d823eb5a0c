#!/usr/bin/env bash
# Two agent pods on a real Kubernetes, with both charts installed: brings a node up, runs agents.py and asks Prometheus
# every query of the dashboards, and takes the node down.
#
#   e2e/cluster/agents.sh       KUBECONFIG names a cluster that is taken as it is; without it a node is started (root).
#                               AEGIS_BINARIES: folders with the built programs; AEGIS_REPORTS: where the reports go
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export AEGIS_CACHE=${AEGIS_CACHE:-$HOME/.cache/aegis}
export AEGIS_BINARIES=${AEGIS_BINARIES:-${CARGO_TARGET_DIR:-$AEGIS_CACHE/target}/debug}
REPORTS=${AEGIS_REPORTS:-/tmp/aegis-e2e}
CLUSTER=e2e/cluster/cluster.sh
mkdir -p "$REPORTS"
FAILED=0

if [[ -n ${KUBECONFIG:-} ]]; then
  unset AEGIS_CLUSTER
  e2e/setup.sh helm mcp-python opa
else
  e2e/setup.sh kubernetes containerd coredns helm prometheus mcp-python opa
  export AEGIS_CLUSTER=${AEGIS_CLUSTER:-$(mktemp -d)/cluster}
  trap '"$CLUSTER" down' EXIT
  trap 'exit 130' INT TERM
  "$CLUSTER" up
  KUBECONFIG=$("$CLUSTER" kubeconfig)
  export KUBECONFIG
  PATH=$(e2e/setup.sh where kubernetes):$PATH
fi
PATH=$(e2e/setup.sh where helm):$PATH
export PATH
e2e/cluster/agents.py "$REPORTS/e2e-report.md" || FAILED=1

# Who has metrics: components by their Services' ports, and every sidecar.
targets() {
  kubectl get pods -A -o json | python3 -c '
import json, sys
ports = {"aegis-operator": 9490, "aegis-ca": 9491, "aegis-ledger": 9480}
for pod in json.load(sys.stdin)["items"]:
    meta, address = pod["metadata"], pod["status"].get("podIP")
    name = meta.get("labels", {}).get("app.kubernetes.io/name")
    sidecar = any(one["name"] == "aegis-proxy" for one in pod["spec"].get("initContainers", []))
    port = ports.get(name) or (15021 if sidecar and sys.argv[1] == "sidecars" else None)
    if address and port and pod["status"]["phase"] == "Running":
        print("{}={}:{},namespace={},pod={}".format(name or "sidecar", address, port, meta["namespace"], meta["name"]))
' "$1"
}
if [[ -n ${AEGIS_CLUSTER:-} ]]; then
  # The stand-in has no metrics.
  real=none
  for folder in ${AEGIS_BINARIES//:/ }; do [[ ! -x $folder/aegis-sidecar ]] || real=sidecars; done
  # What a dashboard shows has to happen while Prometheus looks.
  if [[ $real == sidecars ]]; then
    server=$(kubectl -n shop get pod server -o jsonpath='{.status.podIP}')
    kubectl -n shop exec client -c app -- /usr/local/bin/python3 /app/client.py "http://$server:8080/mcp" --mixed 40 >/dev/null 2>&1 &
  fi
  # shellcheck disable=SC2046
  "$CLUSTER" exec e2e/cluster/queries.py "$REPORTS/queries.json" $(targets "$real") || FAILED=1
else
  echo "not shown  the queries of the dashboards: Prometheus must stand in the cluster's network, and this cluster is not ours"
fi
echo "the reports are in $REPORTS"
exit "$FAILED"
