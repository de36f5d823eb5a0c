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

# valid CHART ARGUMENT…: with these values it lints, and its package holds all that it needs.
valid() {
  local chart=$1
  shift
  helm lint --strict "charts/$chart" "$@"
  helm package "charts/$chart" --destination "$SCRATCH/$chart"
}
# rendered CHART ARGUMENT…: its package with these values, asked of the API server.
rendered() {
  local chart=$1
  shift
  helm template "$chart" "$SCRATCH/$chart"/*.tgz -n aegis-system "$@" | kubectl apply --server-side --dry-run=server -f -
}

chart_of_kinds() {
  valid aegis-crds
  rendered aegis-crds
}

chart() {
  local all=trustDomain=acme.example
  valid aegis --set "$all"
  kubectl create namespace aegis-system
  # Where pods must be restricted, a Deployment whose pods are not gets a warning.
  kubectl label namespace aegis-system pod-security.kubernetes.io/{enforce,warn}=restricted
  rendered aegis --set "$all" 2>&1 | tee "$SCRATCH/taken"
  rendered aegis --set "$all",ca.enabled=false,ledger.enabled=false 2>&1 | tee -a "$SCRATCH/taken"
  rendered aegis --set "$all,ledger.postgres.trial=true,ledger.verifier.volume.size=16Mi" 2>&1 | tee -a "$SCRATCH/taken"
  rendered aegis --set "$all" -f charts/aegis/values-ha.yaml \
    --set ledger.postgres.secretName=ledger,dashboards.enabled=true 2>&1 | tee -a "$SCRATCH/taken"
  rendered aegis --set "$all,ca.enabled=false,ledger.mode=read,ledger.postgres.secretName=ledger" 2>&1 |
    tee -a "$SCRATCH/taken"
  fails grep -i warning "$SCRATCH/taken"
  fails helm template aegis charts/aegis
  fails helm template aegis charts/aegis --set trustDomain=acme.example,unknown=1
  fails helm template aegis charts/aegis --set "$all,ledger.replicas=2"
  fails helm template aegis charts/aegis --set "$all,ca.enabled=false"
  fails helm template aegis charts/aegis --set "$all,ledger.verifier.schedule=nightly"
  # A job of the verifier is told one log: the database, or where only the ledger's pod has it, the ledger.
  helm template aegis charts/aegis --set "$all" -s templates/ledger/verifier.yaml >"$SCRATCH/verifier"
  grep -q -- '--ledger=aegis-ledger.' "$SCRATCH/verifier" && fails grep -q AEGIS_VERIFY_STORE "$SCRATCH/verifier"
  helm template aegis charts/aegis --set "$all,ledger.postgres.secretName=db" -s templates/ledger/verifier.yaml >"$SCRATCH/verifier"
  grep -q AEGIS_VERIFY_STORE "$SCRATCH/verifier" && fails grep -q -- '--ledger=' "$SCRATCH/verifier"
  fails helm template aegis charts/aegis --set "$all,ledger.verifier.enabled=false" -s templates/ledger/verifier.yaml
}

# The chart's policies alone, without the webhook: as if the operator were down. The pods are from before that.
enrolled_pods() {
  kubectl create namespace shop
  within 30 kubectl -n shop get serviceaccount default
  kubectl -n shop run plain --image=aegis.dev/e2e/pause:1
  sed -n '/^{$/,$p' operator/tests/it/pods.golden | kubectl -n shop create -f - --dry-run=client -o json |
    python3 -c 'import json, sys; pod = json.load(sys.stdin); pod["metadata"]["name"] = "pause"; print(json.dumps(pod))' |
    kubectl -n shop create -f -
  kubectl -n shop wait --for=condition=Ready pod/plain --timeout=60s
  helm template aegis charts/aegis -n aegis-system --set trustDomain=acme.example,ca.enabled=false,ledger.enabled=false \
    --set images.sidecar.repository=registry.acme.example/aegis,'injection.args={sidecar}' \
    --set-string images.sidecar.tag=1 \
    -s templates/operator/enrolled-pods.yaml | kubectl apply --server-side -f -
  kubectl label namespace shop aegis.dev/inject=enabled
  # The API server takes a moment to have compiled them.
  within 30 fails kubectl -n shop run probe --image=app --dry-run=server
  e2e/cluster/enrolled_pods.py shop --guards
  kubectl -n proof run other --image=app --dry-run=server
}

alerts() {
  promtool check rules charts/aegis/alerts/rules.yaml
  promtool test rules charts/aegis/alerts/rules_test.yaml
}

leaves_nothing() {
  "$CLUSTER" down
  fails compgen -G "/sys/fs/cgroup/*/aegis-$ID"
  fails compgen -G "/sys/fs/cgroup/aegis-$ID"
  fails test -e "$AEGIS_CLUSTER"
  fails grep -qs "$AEGIS_CLUSTER" /proc/*/mounts
  "$CLUSTER" down
}

e2e/setup.sh kubernetes containerd coredns helm prometheus
[[ -x $AEGIS_BIN ]] || { echo "e2e/cluster/check.sh: there is no $AEGIS_BIN; build it: cargo build -p aegis" >&2; exit 1; }
ID=$(sha256sum <<<"$AEGIS_CLUSTER" | cut -c1-8)
"$CLUSTER" up
KUBECONFIG=$("$CLUSTER" kubeconfig)
PATH=$(e2e/setup.sh where kubernetes):$(e2e/setup.sh where helm):$PATH
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
# The kinds are generated; a tree without them has no chart of kinds to check.
[[ ! -d crds ]] || check "the chart aegis-crds is valid for this API server" chart_of_kinds
check "the chart aegis is valid for this API server" chart
check "each alert fires for its cause, and not without it" alerts
check "enrolled namespaces take injected pods only" enrolled_pods
check "\`down\` leaves nothing, and may be repeated" leaves_nothing
exit "$FAILED"
