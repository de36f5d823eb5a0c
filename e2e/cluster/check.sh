#!/usr/bin/env bash
# Shows that the test cluster is a real one and leaves nothing behind: pods with native sidecars, Services by
# address and by name, logs, exec, volumes, tokens, admission policies, and the charts on the real API server.
#
#   e2e/cluster/check.sh        needs root; AEGIS_BIN names a built `aegis` (default: the debug build)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

[[ $(id -u) == 0 ]] || { echo "e2e/cluster/check.sh: this needs root: it starts a Kubernetes node" >&2; exit 1; }
export AEGIS_CACHE=${AEGIS_CACHE:-$HOME/.cache/aegis}
AEGIS_BIN=${AEGIS_BIN:-${CARGO_TARGET_DIR:-$AEGIS_CACHE/target}/debug/aegis}
CLUSTER=e2e/cluster/cluster.sh
SCRATCH=$(mktemp -d)
export AEGIS_CLUSTER=$SCRATCH/cluster
FAILED=0

finish() {
  local status=$?
  "$CLUSTER" down || status=1
  rm -rf "$SCRATCH"
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

# within SECONDS COMMAND…: waits until COMMAND succeeds.
within() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || return 1
    sleep 0.2
  done
}

# check WHAT COMMAND…: one line for each thing shown.
check() {
  local what=$1
  shift
  # In the background, where the first command that fails ends it; within `if`, bash would go on.
  (set -e; "$@") >"$SCRATCH/output" 2>&1 &
  if wait $!; then echo "ok      $what"; else
    echo "FAILED  $what"
    sed 's/^/        /' "$SCRATCH/output"
    FAILED=1
  fi
}

# fails COMMAND…: whether COMMAND fails.
fails() { if "$@"; then return 1; fi; }
k() { kubectl -n proof "$@"; }
# client PYTHON: runs it in the client's pod.
client() { k exec client -c client -- python3 -c "$1"; }
get() { client "import urllib.request as r; print(r.urlopen('$1', timeout=5).read().decode())"; }

import_images() {
  local python library target
  python3 - <<'PY' >"$SCRATCH/python"
import os, sys, sysconfig
print(os.path.realpath(sys.executable), sysconfig.get_path("stdlib"), f"usr/local/lib/python3.{sys.version_info.minor}")
PY
  read -r python library target <"$SCRATCH/python"
  install -m 755 "$python" "$SCRATCH/python3"
  e2e/cluster/image.py "$SCRATCH/python.tar" --name aegis.dev/e2e/python:1 --entrypoint "$SCRATCH/python3" \
    --add "$library:$target" --skip test --skip site-packages --skip dist-packages
  e2e/cluster/image.py "$SCRATCH/aegis.tar" --name aegis.dev/e2e/aegis:1 --entrypoint "$AEGIS_BIN"
  "$CLUSTER" import-image "$SCRATCH/python.tar" "$SCRATCH/aegis.tar"
}

runs_a_dynamic_binary() {
  k wait --for=condition=Complete job/aegis --timeout=60s
  k logs job/aegis | grep -q '^aegis '
}

answers_by_address() {
  local address seen
  address=$(k get service server -o jsonpath='{.spec.clusterIP}')
  seen=$(get "http://$address/")
  # The server sees the client and not the node.
  [[ $seen == "$(k get pod client -o jsonpath='{.status.podIP}')" ]]
}

answers_by_name() { get http://server.proof.svc.cluster.local/ && get http://server/; }
logs() { k logs client -c client | grep -q 'client is up' && k logs deployment/server | grep -q answered; }
keeps_data() { [[ $(client 'print(open("/data/written").read())') == kept ]] && grep -q kept "$AEGIS_CLUSTER"/volumes/*/written; }

refuses_what_a_policy_forbids() {
  # The API server takes a moment to have compiled it.
  within 30 fails k create configmap no --dry-run=server --from-literal=forbidden=1
  fails k create configmap no --dry-run=server --from-literal=forbidden=1 2>&1 | grep -q 'forbidden by the proof'
  k create configmap yes --dry-run=server --from-literal=allowed=1
}

reviews_tokens() {
  local token review
  token=$(client 'print(open("/token/token").read())')
  review=$(python3 -c 'import json, sys; print(json.dumps({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
    "spec": {"token": sys.argv[1], "audiences": sys.argv[2:]}}))' "$token" aegis-ca)
  kubectl create -o json -f - <<<"$review" >"$SCRATCH/review"
  python3 - "$SCRATCH/review" "$(k get pod client -o jsonpath='{.metadata.uid}')" <<'PY'
import json, sys
status = json.load(open(sys.argv[1]))["status"]
assert status["authenticated"] and status["audiences"] == ["aegis-ca"], status
assert status["user"]["extra"]["authentication.kubernetes.io/pod-uid"] == [sys.argv[2]], status
PY
  kubectl create -o json -f - <<<"${review/\"aegis-ca\"/\"other\"}" >"$SCRATCH/review"
  fails grep -q '"authenticated": true' "$SCRATCH/review"
}

answers_inside_as_outside() { "$CLUSTER" exec kubectl get --raw /readyz; }
is_up_once() { "$CLUSTER" up | grep -q 'is up'; }

charts() {
  local helm
  helm=$(e2e/setup.sh where helm)/helm
  kubectl create namespace aegis-system
  for chart in charts/*/; do
    "$helm" lint --strict "$chart" --set trustDomain=acme.example
    "$helm" package "$chart" --destination "$SCRATCH"
  done
  "$helm" template aegis-crds "$SCRATCH"/aegis-crds-*.tgz | kubectl apply --server-side --dry-run=server -f -
  "$helm" template aegis "$SCRATCH"/aegis-[0-9]*.tgz -n aegis-system --set trustDomain=acme.example --no-hooks |
    kubectl apply --server-side --dry-run=server -f -
  "$helm" template aegis "$SCRATCH"/aegis-[0-9]*.tgz -n aegis-system --set trustDomain=acme.example -f charts/aegis/values-ha.yaml \
    --set ledger.enabled=true,ledger.postgres.secretName=ledger | kubectl apply --server-side --dry-run=server -f -
}

leaves_nothing() {
  "$CLUSTER" down
  fails compgen -G "/sys/fs/cgroup/*/aegis-$ID"
  fails compgen -G "/sys/fs/cgroup/aegis-$ID"
  fails test -e "$AEGIS_CLUSTER"
  fails grep -qs "$AEGIS_CLUSTER" /proc/*/mounts
  "$CLUSTER" down
}

e2e/setup.sh kubernetes containerd coredns helm
[[ -x $AEGIS_BIN ]] || { echo "e2e/cluster/check.sh: there is no $AEGIS_BIN; build it: cargo build -p aegis" >&2; exit 1; }
ID=$(sha256sum <<<"$AEGIS_CLUSTER" | cut -c1-8)
"$CLUSTER" up
KUBECONFIG=$("$CLUSTER" kubeconfig)
PATH=$(e2e/setup.sh where kubernetes):$PATH
export KUBECONFIG PATH
check "images of dynamically linked programs are imported" import_images
check "objects are taken" kubectl apply -f e2e/cluster/proof.yaml
check "a Rust program runs with its shared libraries" runs_a_dynamic_binary
check "a Deployment becomes available" k wait --for=condition=Available deployment/server --timeout=60s
check "a pod with a native sidecar, a claim and a token becomes ready" k wait --for=condition=Ready pod/client --timeout=60s
check "a Service answers by its address, and sees its client" answers_by_address
check "a Service answers by its name" answers_by_name
check "kubectl logs" logs
check "a volume keeps what was written" keeps_data
check "a ValidatingAdmissionPolicy refuses" refuses_what_a_policy_forbids
check "a projected token is reviewed for its audience and pod" reviews_tokens
check "the same kubeconfig works in the cluster's network" answers_inside_as_outside
check "a second \`up\` changes nothing" is_up_once
check "the charts are valid for this API server" charts
check "\`down\` leaves nothing, and may be repeated" leaves_nothing
exit "$FAILED"
