#!/usr/bin/env bash
# A real Kubernetes node for tests: etcd, API server, controllers, scheduler, kubelet, containerd and DNS, in
# a network and a mount namespace of their own.
#
#   e2e/cluster/cluster.sh up                    start it, and wait until pods can run
#   e2e/cluster/cluster.sh status                say what runs; ends with 1 unless everything does
#   e2e/cluster/cluster.sh kubeconfig            print the path of the kubeconfig, valid inside and outside
#   e2e/cluster/cluster.sh exec COMMAND…         run COMMAND in the cluster's network, as its admin
#   e2e/cluster/cluster.sh import-image FILE…    give the node images, as docker archives (see image.py)
#   e2e/cluster/cluster.sh down                  end every process of it, pods too, and remove what it made
#
# AEGIS_CLUSTER names its folder (default /tmp/aegis-cluster); clusters in different folders do not meet.
# It needs root, and the targets kubernetes, containerd and coredns of e2e/setup.sh. Pods reach each
# other, Services and the node, and nothing else. NetworkPolicies are stored and not enforced: the bridge does not know them.
#
# Every process of the cluster, pods included, is in one control group, which is how `down` finds them also when
# this script was killed. Mounts and network vanish with the last process. An interrupted `up` takes itself down.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SETUP=$HERE/../setup.sh
STATE=${AEGIS_CLUSTER:-/tmp/aegis-cluster}
ID=aegis-$(sha256sum <<<"$STATE" | cut -c1-8)
NODE_ADDRESS=10.244.0.1
SERVICE_ADDRESS=10.96.0.1
DNS_ADDRESS=10.96.0.10
VOLUMES=8
# Folders of the machine into which containerd and kubelet write by names of their own; in the cluster they are empty and its own.
HIDDEN="/run /var/lib /var/log"

say() { printf '%-24s %s\n' "$1" "$2"; }
die() { echo "e2e/cluster/cluster.sh: $*" >&2; exit 1; }

# within SECONDS WHAT COMMAND…: waits until COMMAND succeeds.
within() {
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || die "$what did not happen in time; see $STATE/logs"
    sleep 0.1
  done
}

# --- control groups: the list of everything that belongs to the cluster

# The group's folder in each hierarchy: one with the second version of cgroups, one for each controller with the first.
groups() {
  local at
  if [[ -e /sys/fs/cgroup/cgroup.controllers ]]; then
    echo "/sys/fs/cgroup/$ID"
    return
  fi
  for at in /sys/fs/cgroup/*/; do
    [[ ! -e $at/cgroup.procs || -L ${at%/} ]] || echo "$at$ID"
  done
}

# The one group that is asked for processes.
roll() { if [[ -e /sys/fs/cgroup/cgroup.controllers ]]; then echo "/sys/fs/cgroup/$ID"; else echo "/sys/fs/cgroup/pids/$ID"; fi; }

make_groups() {
  local at
  for at in $(groups); do mkdir -p "$at"; done
  # The second version wants processes in leaves only.
  mkdir -p "$(roll)/node"
}

members() { find "$(roll)" -name cgroup.procs -exec cat {} + 2>/dev/null | sort -un; }
nobody_left() { [[ -z $(members) ]]; }

end_members() {
  local pid
  for pid in $(members); do kill -KILL "$pid" 2>/dev/null || true; done
  nobody_left
}

remove_groups() {
  local at
  for at in $(groups); do
    [[ ! -d $at ]] || find "$at" -depth -type d -exec rmdir {} + || return 1
  done
}

# --- processes

# daemon NAME COMMAND…: COMMAND in the background, in the group, with a log and a file that names its process.
daemon() {
  local name=$1
  shift
  setsid bash -c 'echo $$ >"$1/cgroup.procs"; echo $$ >"$2"; shift 2; exec "$@"' - \
    "$(roll)/node" "$STATE/$name.pid" "$@" >"$STATE/logs/$name.log" 2>&1 </dev/null &
  # Its end is told by `status` and not by bash.
  disown
}

# A process's number may belong to somebody else by now; the group tells.
runs() { [[ -e $STATE/$1.pid ]] && grep -qx "$(<"$STATE/$1.pid")" "$(roll)/node/cgroup.procs" 2>/dev/null; }

inside() { nsenter -t "$(<"$STATE/holder.pid")" --net --mount -- "$@"; }
# part NAME COMMAND…: a daemon in the cluster's namespaces.
part() { local name=$1; shift; daemon "$name" nsenter -t "$(<"$STATE/holder.pid")" --net --mount -- "$@"; }
kubectl() { inside "$KUBERNETES/kubectl" --kubeconfig "$STATE/pki/admin.kubeconfig" "$@"; }

PARTS="holder forward etcd containerd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy"

# --- up, step by step

require() {
  [[ $(id -u) == 0 ]] || die "this needs root: it makes namespaces, mounts and control groups"
  local target folder
  for target in kubernetes containerd coredns; do
    [[ -e $("$SETUP" where "$target")/.complete ]] || die "run \`e2e/setup.sh kubernetes containerd coredns\` first"
  done
  for folder in $HIDDEN; do
    [[ $STATE/ != "$folder"/* ]] || die "AEGIS_CLUSTER may not be in $folder, which the cluster does not see; choose another folder"
  done
  # The path of a unix socket has 107 characters at most.
  [[ $STATE == /* && ${#STATE} -le 80 ]] || die "AEGIS_CLUSTER must be an absolute path of at most 80 characters"
  KUBERNETES=$("$SETUP" where kubernetes)
  RUNTIME=$("$SETUP" where containerd)
  DNS=$("$SETUP" where coredns)
}

# Writes config/$1 with this cluster's values to standard output.
filled() {
  sed -e "s|@STATE@|$STATE|g" -e "s|@ID@|$ID|g" -e "s|@RUNTIME@|$RUNTIME|g" \
    -e "s|@NODE_ADDRESS@|$NODE_ADDRESS|g" -e "s|@DNS_ADDRESS@|$DNS_ADDRESS|g" "$HERE/config/$1"
}

# Whether the holder has started and left this namespace of the machine.
in_other_namespace() {
  local theirs
  theirs=$(readlink "/proc/$(<"$STATE/holder.pid")/ns/$1") && [[ $theirs != "$(readlink "/proc/self/ns/$1")" ]]
}

start_namespaces() {
  daemon holder unshare --net --mount --propagation slave sleep infinity
  within 10 "a network namespace" in_other_namespace net
  within 10 "a mount namespace" in_other_namespace mnt
  inside bash -euo pipefail <<SH
for folder in $HIDDEN; do mount -t tmpfs tmpfs \$folder; done
mount -t tmpfs tmpfs $STATE/kubelet
mount --make-rshared $STATE/kubelet
$(show_kernel_values)
ip link set lo up
ip link add cni0 type bridge
ip addr add $NODE_ADDRESS/24 dev cni0
ip link set cni0 up
ip route add default via $NODE_ADDRESS
sysctl -qw net.ipv4.ip_forward=1
SH
}

# kubelet wants some values in the kernel of the machine. It gets to see them, in its mounts, and the machine keeps its own.
show_kernel_values() {
  local value file
  for value in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
    kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
    file=$STATE/kernel/${value%=*}
    mkdir -p "${file%/*}"
    echo "${value#*=}" >"$file"
    echo "mount --bind $file /proc/sys/${value%=*}"
  done
}

start_forward() {
  daemon forward python3 "$HERE/forward.py" "$STATE/port" nsenter -t "$(<"$STATE/holder.pid")" --net --
  within 10 "a port of the machine" test -s "$STATE/port"
  PORT=$(<"$STATE/port")
}

start_etcd() {
  part etcd "$KUBERNETES/node" etcd --name node --data-dir "$STATE/etcd" --unsafe-no-fsync --log-level warn \
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 \
    --initial-cluster node=http://127.0.0.1:2380
}

start_apiserver() {
  local pki=$STATE/pki
  part kube-apiserver "$KUBERNETES/node" kube-apiserver --etcd-servers http://127.0.0.1:2379 \
    --secure-port "$PORT" --advertise-address "$NODE_ADDRESS" --service-cluster-ip-range 10.96.0.0/16 \
    --tls-cert-file "$pki/apiserver.crt" --tls-private-key-file "$pki/apiserver.key" --client-ca-file "$pki/ca.crt" \
    --service-account-issuer https://kubernetes.default.svc.cluster.local \
    --service-account-key-file "$pki/service-accounts.pub" --service-account-signing-key-file "$pki/service-accounts.key" \
    --kubelet-client-certificate "$pki/apiserver-kubelet.crt" --kubelet-client-key "$pki/apiserver-kubelet.key" \
    --kubelet-certificate-authority "$pki/ca.crt" --kubelet-preferred-address-types InternalIP \
    --authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction --allow-privileged
}

start_controllers() {
  local pki=$STATE/pki
  part kube-controller-manager "$KUBERNETES/node" kube-controller-manager --kubeconfig "$pki/controller-manager.kubeconfig" \
    --service-account-private-key-file "$pki/service-accounts.key" --root-ca-file "$pki/ca.crt" \
    --cluster-signing-cert-file "$pki/ca.crt" --cluster-signing-key-file "$pki/ca.key" \
    --use-service-account-credentials --leader-elect=false --bind-address 127.0.0.1
  part kube-scheduler "$KUBERNETES/node" kube-scheduler --kubeconfig "$pki/scheduler.kubeconfig" \
    --leader-elect=false --bind-address 127.0.0.1
}

start_containerd() {
  # containerd looks for its shim, and the shim for runc, on the PATH.
  part containerd env PATH="$RUNTIME:$PATH" "$RUNTIME/containerd" --config "$STATE/containerd.toml"
}

start_node() {
  part kubelet "$KUBERNETES/node" kubelet --config "$STATE/kubelet.yaml" --kubeconfig "$STATE/pki/kubelet.kubeconfig" \
    --root-dir "$STATE/kubelet" --hostname-override node --node-ip "$NODE_ADDRESS"
  part kube-proxy "$KUBERNETES/node" kube-proxy --kubeconfig "$STATE/pki/proxy.kubeconfig" --proxy-mode nftables \
    --hostname-override node --cluster-cidr 10.244.0.0/24 --bind-address "$NODE_ADDRESS" \
    --conntrack-max-per-core 0 --conntrack-tcp-timeout-established 0 --conntrack-tcp-timeout-close-wait 0
}

ctr() { "$RUNTIME/ctr" -a "$STATE/containerd.sock" -n k8s.io "$@"; }

own_images() {
  within 30 "containerd" ctr version
  "$HERE/image.py" "$STATE/pause.tar" --name aegis.dev/e2e/pause:1 --entrypoint "$RUNTIME/pause"
  "$HERE/image.py" "$STATE/coredns.tar" --name aegis.dev/e2e/coredns:1 --entrypoint "$DNS/dns"
  import_image "$STATE/pause.tar" "$STATE/coredns.tar"
  rm "$STATE/pause.tar" "$STATE/coredns.tar"
}

# What is in every cluster: names, and volumes for claims.
own_objects() {
  local number
  for ((number = 1; number <= VOLUMES; number++)); do mkdir -p "$STATE/volumes/$number"; done
  {
    filled dns.yaml
    echo ---
    filled storage.yaml
    for ((number = 1; number <= VOLUMES; number++)); do filled volume.yaml | sed "s|@NUMBER@|$number|g"; done
  } | kubectl apply -f - >"$STATE/logs/objects.log"
}

take_down_on_failure() {
  local status=$? name
  ((status)) || return 0
  for name in $PARTS; do
    [[ ! -e $STATE/$name.pid ]] || runs "$name" || { echo "--- $name ended:"; tail -n 5 "$STATE/logs/$name.log"; } >&2
  done
  rm -rf "$STATE.failed"
  mv "$STATE/logs" "$STATE.failed" 2>/dev/null && echo "e2e/cluster/cluster.sh: the logs are in $STATE.failed" >&2
  down
}

up() {
  local start=$SECONDS
  require
  if everything_runs; then
    say up "is up: $STATE/pki/admin.kubeconfig"
    return
  fi
  # What an earlier run left; nothing if there is nothing.
  down
  trap take_down_on_failure EXIT
  trap 'exit 130' INT TERM
  mkdir -p -m 700 "$STATE"
  mkdir -p "$STATE/logs" "$STATE/kubelet" "$STATE/cni" "$STATE/pods"
  filled kubelet.yaml >"$STATE/kubelet.yaml"
  filled containerd.toml >"$STATE/containerd.toml"
  filled bridge.conflist >"$STATE/cni/10-bridge.conflist"
  make_groups
  start_namespaces
  start_etcd
  start_containerd
  start_forward
  say up "network, etcd and containerd started; certificates"
  "$HERE/certificates.sh" "$STATE/pki" "https://127.0.0.1:$PORT" "$NODE_ADDRESS" "$SERVICE_ADDRESS"
  start_apiserver
  own_images
  within 60 "a ready API server" kubectl get --raw /readyz
  say up "API server ready after $((SECONDS - start)) s"
  start_controllers
  start_node
  own_objects
  within 60 "a ready node" kubectl wait --for=condition=Ready node/node --timeout=1s
  within 60 "the default ServiceAccount" kubectl get serviceaccount default
  say up "node ready after $((SECONDS - start)) s"
  within 60 "DNS" kubectl -n kube-system wait --for=condition=Available deployment/coredns --timeout=1s
  trap - EXIT INT TERM
  say up "cluster ready after $((SECONDS - start)) s: $STATE/pki/admin.kubeconfig"
}

# --- the other commands

down() {
  [[ $(id -u) == 0 ]] || die "this needs root: it ends processes and removes control groups"
  [[ ! -d $(roll) ]] || within 30 "the end of all processes" end_members
  within 30 "the removal of the control groups" remove_groups
  rm -rf --one-file-system "$STATE"
}

everything_runs() {
  local name
  for name in $PARTS; do runs "$name" || return 1; done
}

status() {
  local name missing=0
  for name in $PARTS; do
    if runs "$name"; then say "$name" "runs, process $(<"$STATE/$name.pid")"; else say "$name" "does not run"; missing=1; fi
  done
  return $missing
}

need_cluster() { everything_runs || die "the cluster in $STATE is not up; run \`e2e/cluster/cluster.sh up\`"; }

# run_inside COMMAND…: in the network of the cluster, with the files of the machine.
run_inside() {
  KUBECONFIG=$STATE/pki/admin.kubeconfig PATH=$KUBERNETES:$PATH \
    exec nsenter -t "$(<"$STATE/holder.pid")" --net -- "$@"
}

import_image() {
  local file
  for file in "$@"; do
    ctr images import --local "$file" >>"$STATE/logs/images.log" 2>&1 || die "$file is not imported: $(tail -n 1 "$STATE/logs/images.log")"
  done
}

command=${1:-}
[[ $# -eq 0 ]] || shift
case $command in
  up) up ;;
  down) down ;;
  status) status ;;
  kubeconfig) need_cluster; echo "$STATE/pki/admin.kubeconfig" ;;
  exec) [[ $# -gt 0 ]] || die "\`exec\` takes a command"; require; need_cluster; run_inside "$@" ;;
  import-image) [[ $# -gt 0 ]] || die "\`import-image\` takes files"; require; need_cluster; import_image "$@" ;;
  *) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; [[ $command == -h || $command == --help ]] ;;
esac
