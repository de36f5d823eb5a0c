#!/usr/bin/env python3
"""Asks the API server which pods it takes in a namespace that is enrolled, with the chart's policies in force.

    enrolled_pods.py NAMESPACE              KUBECONFIG names the cluster, whose webhook for pods is not there
    enrolled_pods.py NAMESPACE --guards     also takes each guard out and shows that what it refused is taken then

The first pod is one that the operator has made (the end of operator/tests/it/pods.golden), and must be taken. Every
other one differs from it in one way with which it could go round its sidecar, and must be refused by the guard whose
words are given. Changes and ways in are tried on two pods that must be there: `pause`, an injected one, and `plain`, one
from before the namespace was enrolled, which runs. Only a RuntimeClass `gvisor` is made.
"""

import argparse
import copy
import json
import subprocess
import sys
import time
from pathlib import Path

PROXY_USER = 62620
GOLDEN = Path(__file__).resolve().parents[2] / "operator/tests/it/pods.golden"


def injected():
    """The pod that ends the file, as JSON."""
    text = GOLDEN.read_text()
    return json.loads(text[text.rindex("\n{\n") :])


POD = injected()


def kubectl(*arguments, given=None):
    command = ["kubectl", *arguments]
    try:
        return subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=20)
    except subprocess.TimeoutExpired:
        # A connection that is let through stays open.
        return subprocess.CompletedProcess(command, 124, "", "it stayed open")


# --- how a pod is changed


def spec(**fields):
    return lambda pod: pod["spec"].update(fields)


def pod_security(**fields):
    return lambda pod: pod["spec"].setdefault("securityContext", {}).update(fields)


def app(**fields):
    return lambda pod: pod["spec"]["containers"][0].update(fields)


def security(**fields):
    return lambda pod: pod["spec"]["containers"][0]["securityContext"].update(fields)


def init(number, **fields):
    return lambda pod: pod["spec"]["initContainers"][number].update(fields)


def init_security(number, **fields):
    return lambda pod: pod["spec"]["initContainers"][number]["securityContext"].update(fields)


def mount(number, name, path, **fields):
    def change(pod):
        pod["spec"]["initContainers"][number].setdefault("volumeMounts", []).append({"name": name, "mountPath": path, **fields})
        if not name.startswith("aegis-"):
            volume({"name": name, "emptyDir": {}})(pod)

    return change


def variable(name, value):
    def change(pod):
        env = pod["spec"]["initContainers"][0]["env"]
        env[:] = [one for one in env if one["name"] != name] + [{"name": name, "value": value}]

    return change


def volume(one):
    return lambda pod: pod["spec"]["volumes"].append(one)


def replace_volume(one):
    def change(pod):
        volumes = pod["spec"]["volumes"]
        volumes[:] = [one if old["name"] == one["name"] else old for old in volumes]

    return change


def own(name="own", **fields):
    """A container of the author's, confined as injection confines it."""
    return {"name": name, "image": "app", "securityContext": copy.deepcopy(POD["spec"]["containers"][0]["securityContext"]), **fields}


def rules(change):
    def changed(pod):
        args = pod["spec"]["initContainers"][1]["args"]
        args[0] = change(args[0])

    return changed


def added(capability):
    return security(capabilities={"add": [capability], "drop": ["ALL"]})


def added_in_init(capability):
    def change(pod):
        one = own()
        one["securityContext"]["capabilities"]["add"] = [capability]
        pod["spec"]["initContainers"].append(one)

    return change


def all_of(*changes):
    def change(pod):
        for one in changes:
            one(pod)

    return change


def bare(pod):
    """What an author writes, with labels and annotations as if it had been injected."""
    pod["metadata"]["labels"] = {"aegis.dev/inject": "false", "aegis.dev/injected": "true", "sidecar.istio.io/inject": "false"}
    pod["spec"] = {"containers": [{"name": "app", "image": "app"}]}


def token(name):
    source = {"serviceAccountToken": {"audience": "aegis-ca", "expirationSeconds": 600, "path": "token"}}
    return {"name": name, "projected": {"sources": [source]}}


SIDECAR, REDIRECT, RUN = "has no sidecar", "nothing redirects", "the sidecar is not run as"
MOUNTED, TOLD = "mounted into the sidecar", "the sidecar's environment"
REDIRECTS, RULES, NAMES = "what redirects the pod's traffic is not run as", "rules that redirect", "names that begin with"
HOST, RUNTIME, FILES, KERNEL = "hostNetwork", "a runtime or an operating system", "a hostPath volume", "a kernel setting"
PRIVILEGED, CAPABILITY, KEPT = "a privileged container", "adds a capability", "keeps NET_RAW"
ESCALATES, OWN, VOLUME, TOKEN = "may escalate", "is the sidecar's own; choose", "mounts a volume of the sidecar's own", "projects a token"

# What is asked, what it changes, and the words of the guard that refuses it.
REFUSED = [
    ("another image as the sidecar", init(0, image="other"), SIDECAR),
    ("a sidecar that ends", all_of(init(0, restartPolicy=None, startupProbe=None, readinessProbe=None)), SIDECAR),
    ("a sidecar that does something else", init(0, command=["sleep"]), RUN),
    ("a sidecar with other arguments", init(0, args=["--help"]), RUN),
    ("a sidecar with a hook", init(0, lifecycle={"postStart": {"exec": {"command": ["nft"]}}}), RUN),
    ("a sidecar that is probed by a command", init(0, startupProbe={"exec": {"command": ["nft"]}}), RUN),
    ("a sidecar that is root", init_security(0, runAsUser=0, runAsNonRoot=False), RUN),
    ("a sidecar with NET_ADMIN", init_security(0, capabilities={"add": ["NET_ADMIN"], "drop": ["ALL"]}), RUN),
    ("a privileged sidecar", init_security(0, privileged=True, allowPrivilegeEscalation=True), RUN),
    ("a volume over the sidecar's program", mount(0, "mine", "/usr/local/bin"), MOUNTED),
    ("a volume over the sidecar's libraries", mount(0, "mine", "/lib"), MOUNTED),
    ("a preloaded library", variable("LD_PRELOAD", "/var/lib/aegis/mine.so"), TOLD),
    ("another CA", variable("AEGIS_CA_ADDRESS", "mine:9442"), TOLD),
    ("another operator", variable("AEGIS_OPERATOR_ADDRESS", "mine:9444"), TOLD),
    ("another trust domain", variable("AEGIS_TRUST_DOMAIN", "mine.example"), TOLD),
    ("a sidecar that listens elsewhere", variable("AEGIS_OUTBOUND_PORT", "15002"), TOLD),
    ("another pod's name", variable("POD_UID", "other"), TOLD),
    ("an environment from elsewhere", init(0, envFrom=[{"configMapRef": {"name": "mine"}}]), TOLD),
    ("no redirect", lambda pod: pod["spec"]["initContainers"].pop(1), REDIRECT),
    ("a redirect that comes later", lambda pod: pod["spec"]["initContainers"].insert(1, own()), REDIRECT),
    ("another image as the redirect", init(1, image="other"), REDIRECT),
    ("a redirect that does something else", init(1, command=["true"]), REDIRECT),
    ("a redirect that stays", init(1, restartPolicy="Always"), REDIRECTS),
    ("a privileged redirect", init_security(1, privileged=True, allowPrivilegeEscalation=True), REDIRECTS),
    ("a redirect with more capabilities", init_security(1, capabilities={"add": ["NET_ADMIN", "SYS_ADMIN"]}), REDIRECTS),
    ("a volume over nft", mount(1, "mine", "/usr/sbin"), REDIRECTS),
    ("a redirect with a preloaded library", init(1, env=[{"name": "LD_PRELOAD", "value": "/mine.so"}]), REDIRECTS),
    ("no rules", init(1, args=["list ruleset"]), RULES),
    ("rules that are taken back", rules(lambda text: text + "delete table inet aegis\n"), RULES),
    ("rules that let another user through", rules(lambda text: text.replace("skuid 62620 return", "skuid 0 return")), RULES),
    ("rules that leave out a port", rules(lambda text: text.replace("meta l4proto tcp", "tcp dport != 8080")), RULES),
    ("rules without IPv6", rules(lambda text: text.replace("table inet", "table ip")), RULES),
    ("rules that let all UDP through", rules(lambda text: text.replace("udp dport 53 accept", "meta l4proto udp accept")), RULES),
    ("a file of rules", init(1, args=["-f", "/mine"]), RULES),
    ("a container with a name of Aegis'", lambda pod: pod["spec"]["containers"].append(own("aegis-other")), NAMES),
    ("another volume under the name of the token's", replace_volume({"name": "aegis-token", "emptyDir": {}}), NAMES),
    (
        "sockets in a volume that other pods have",
        replace_volume({"name": "aegis-socket", "persistentVolumeClaim": {"claimName": "mine"}}),
        NAMES,
    ),
    ("the node's network", spec(hostNetwork=True), HOST),
    ("the node's processes", spec(hostPID=True), HOST),
    ("the node's IPC", spec(hostIPC=True), HOST),
    ("one process namespace", spec(shareProcessNamespace=True), HOST),
    ("a runtime with a network stack of its own", spec(runtimeClassName="gvisor"), RUNTIME),
    ("a hostPath with the kubelet's files", volume({"name": "node", "hostPath": {"path": "/var/lib/kubelet"}}), FILES),
    ("a hostPath that nobody mounts", volume({"name": "node", "hostPath": {"path": "/tmp"}}), FILES),
    ("a kernel setting", pod_security(sysctls=[{"name": "net.ipv4.conf.all.route_localnet", "value": "1"}]), KERNEL),
    ("forwarding", pod_security(sysctls=[{"name": "net.ipv4.ip_forward", "value": "1"}]), KERNEL),
    ("an unmasked /proc", all_of(security(procMount="Unmasked"), spec(hostUsers=False)), PRIVILEGED),
    *((capability, added(capability), CAPABILITY) for capability in ["NET_ADMIN", "NET_RAW", "SETUID", "CAP_SETUID", "SETGID"]),
    *((capability, added(capability), CAPABILITY) for capability in ["SYS_PTRACE", "BPF", "DAC_READ_SEARCH", "SYS_MODULE"]),
    ("NET_ADMIN in an init container", added_in_init("NET_ADMIN"), CAPABILITY),
    ("capabilities that were not dropped", security(capabilities={}), KEPT),
    ("a kept SETUID", security(capabilities={"drop": ["NET_RAW", "SETGID"]}), KEPT),
    ("a setuid program", security(allowPrivilegeEscalation=True), ESCALATES),
    ("nothing said of escalation", security(allowPrivilegeEscalation=None), ESCALATES),
    ("the sidecar's user", security(runAsUser=PROXY_USER), OWN),
    ("the sidecar's group", security(runAsGroup=PROXY_USER), OWN),
    ("the sidecar's user for the pod", pod_security(runAsUser=PROXY_USER), OWN),
    ("the sidecar's group for the pod", pod_security(runAsGroup=PROXY_USER), OWN),
    ("the sidecar's group for volumes", pod_security(fsGroup=PROXY_USER), OWN),
    ("the sidecar's group beside others", pod_security(supplementalGroups=[1, PROXY_USER]), OWN),
    ("the sidecar's token", app(volumeMounts=[{"name": "aegis-token", "mountPath": "/token"}]), VOLUME),
    ("the sidecar's state", app(volumeMounts=[{"name": "aegis-state", "mountPath": "/state"}]), VOLUME),
    ("sockets that can be replaced", app(volumeMounts=[{"name": "aegis-socket", "mountPath": "/run/aegis"}]), VOLUME),
    ("a token for the CA", volume(token("own")), TOKEN),
]
# What two guards refuse, so that it is not taken when one is out.
DOUBLY = [
    ("a sidecar that starts later", lambda pod: pod["spec"]["initContainers"].insert(0, own()), SIDECAR),
    ("a pod that only looks injected by labels and annotations", bare, SIDECAR),
    ("a privileged container", security(privileged=True, allowPrivilegeEscalation=True), PRIVILEGED),
    ("SYS_ADMIN", all_of(added("SYS_ADMIN"), security(allowPrivilegeEscalation=True)), CAPABILITY),
]

IMAGE, MARK = "the image of Aegis' own", "this annotation of Aegis"
DEBUG, FORWARD, ENTER = "a debug container", "a forwarded port", "nobody enters the sidecar"


class Run:
    """Counts what is shown and what is not."""

    def __init__(self, namespace):
        self.namespace = namespace
        self.wrong = 0
        self.shown = 0

    def tell(self, right, what, answer):
        self.shown += 1
        if not right:
            self.wrong += 1
            print(f"FAILED  {what}\n        {answer.stdout}{answer.stderr}")

    def ask(self, change):
        pod = copy.deepcopy(POD)
        pod["metadata"].update(name="asked", namespace=self.namespace)
        change(pod)
        return kubectl("create", "--dry-run=server", "-f", "-", given=json.dumps(pod))

    def refused(self, what, change, words):
        answer = self.ask(change)
        self.tell(answer.returncode and words in answer.stderr, f"{what} is refused", answer)

    def changes(self):
        """Ways to change a pod that is there, and ways into it: what is asked, and the words of the guard."""
        image = POD["spec"]["initContainers"][0]["image"]

        def patch(path, value):
            operation = json.dumps([{"op": "add", "path": path, "value": value}])
            return ["patch", "pod", "pause", "--dry-run=server", "--type=json", "-p", operation]

        raw = f"/api/v1/namespaces/{self.namespace}/pods/pause"
        other = image + "-other"
        return [
            ("another image for the sidecar", patch("/spec/initContainers/0/image", other), IMAGE),
            ("another image for the redirect", patch("/spec/initContainers/1/image", other), IMAGE),
            ("a changed mark", patch("/metadata/annotations/aegis.dev~1injected", "{}"), MARK),
            ("ports declared later", patch("/metadata/annotations/aegis.dev~1mcp-ports", "1"), MARK),
            ("a debug container", ["debug", "pause", "--image=app", "--target=app", "--profile=sysadmin"], DEBUG),
            ("a debug container without a profile", ["debug", "plain", "--image=app"], DEBUG),
            ("a command in the sidecar", ["exec", "pause", "-c", "aegis-proxy", "--", "nft"], ENTER),
            ("a command in the redirect", ["exec", "pause", "-c", "aegis-redirect", "--", "nft"], ENTER),
            ("attaching to the sidecar", ["attach", "pause", "-c", "aegis-proxy"], ENTER),
            ("exec by GET", ["get", "--raw", f"{raw}/exec?container=aegis-proxy&command=nft"], ENTER),
            ("a forwarded port", ["port-forward", "plain", "0:80"], FORWARD),
        ]

    def change(self, what, arguments, words):
        answer = kubectl("-n", self.namespace, *arguments)
        self.tell(answer.returncode and words in answer.stderr, f"{what} is refused", answer)


def guards():
    """Each guard with its policy: (policy, index, message)."""
    for policy in ["pods", "changes", "access"]:
        told = kubectl("get", "validatingadmissionpolicy", f"aegis-enrolled-{policy}", "-o", "json")
        for index, guard in enumerate(json.loads(told.stdout)["spec"]["validations"]):
            yield policy, index, guard


def set_guard(policy, index, expression):
    operation = [{"op": "replace", "path": f"/spec/validations/{index}/expression", "value": expression}]
    name = f"aegis-enrolled-{policy}"
    done = kubectl("patch", "validatingadmissionpolicy", name, "--type=json", "-p", json.dumps(operation))
    if done.returncode:
        sys.exit(done.stderr)


def within(seconds, condition):
    """The API server takes a moment to have compiled a policy."""
    deadline = time.monotonic() + seconds
    while not (done := condition()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return done


def without(run, policy, index, guard):
    """Takes a guard out; everything that it refuses must be taken then."""
    message, expression = guard["message"], guard["expression"]
    mine = [(what, change) for what, change, words in REFUSED if words in message]
    ways = [(what, arguments) for what, arguments, words in run.changes() if words in message]
    run.tell(mine or ways, f"something is refused by the guard `{message}`", kubectl("version", "--client"))
    set_guard(policy, index, "true")
    try:
        first = True
        for what, change in mine:
            answer = run.ask(change)
            if first:
                within(20, lambda: run.ask(change).returncode == 0)
                answer, first = run.ask(change), False
            run.tell(answer.returncode == 0, f"without its guard, {what} is taken", answer)
        for what, arguments in ways:
            let = lambda: message not in kubectl("-n", run.namespace, *arguments, "--request-timeout=2s").stderr
            run.tell(within(20, let), f"without its guard, {what} is not refused by it", kubectl("version", "--client"))
    finally:
        set_guard(policy, index, expression)
        if mine:
            within(20, lambda: run.ask(mine[0][1]).returncode != 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("namespace")
    parser.add_argument("--guards", action="store_true")
    arguments = parser.parse_args()
    run = Run(arguments.namespace)
    # A class that exists; nothing is run in it.
    runtime = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "gvisor"}, "handler": "runsc"}
    kubectl("apply", "-f", "-", given=json.dumps(runtime))
    answer = run.ask(lambda pod: None)
    run.tell(answer.returncode == 0, "an injected pod is taken", answer)
    declared = lambda text: text.replace("62620 return\n", '62620 return\n    oifname "lo" tcp dport { 80, 8080 } redirect to :15001\n')
    answer = run.ask(rules(declared))
    run.tell(answer.returncode == 0, "an injected pod with declared ports is taken", answer)
    for what, change, words in REFUSED + DOUBLY:
        run.refused(what, change, words)
    for what, command, words in run.changes():
        run.change(what, command, words)
    if arguments.guards:
        for policy, index, guard in list(guards()):
            without(run, policy, index, guard)
    print(f"{run.shown - run.wrong} of {run.shown} shown")
    sys.exit(1 if run.wrong else 0)


main()
