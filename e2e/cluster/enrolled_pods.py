#!/usr/bin/env python3
"""Asks the API server which pods it takes in a namespace that is enrolled, with the chart's policy in force.

    enrolled_pods.py NAMESPACE IMAGE        KUBECONFIG names the cluster; nothing is created

The first pod is as the webhook makes it and must be taken. Every other one differs from it in one way with which it
could go round its sidecar, and must be refused with the words that tell so.
"""

import copy
import json
import subprocess
import sys

NAMESPACE, IMAGE = sys.argv[1:]
PROXY_USER = 62620
DROPPED = {"drop": ["NET_RAW", "SETGID", "SETUID"]}


def token(name):
    return {
        "name": name,
        "projected": {
            "sources": [{"serviceAccountToken": {"audience": "aegis-ca", "expirationSeconds": 600, "path": "token"}}]
        },
    }


INJECTED = {
    "automountServiceAccountToken": False,
    "initContainers": [
        {
            "name": "aegis-proxy",
            "image": IMAGE,
            "restartPolicy": "Always",
            "securityContext": {"runAsUser": PROXY_USER, "runAsGroup": PROXY_USER, "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": [{"name": "aegis-token", "mountPath": "/var/run/secrets/aegis"}],
        },
        {
            "name": "aegis-redirect",
            "image": IMAGE,
            "command": ["nft"],
            "securityContext": {"capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}},
        },
    ],
    "containers": [{"name": "app", "image": "app", "securityContext": {"capabilities": DROPPED}}],
    "volumes": [token("aegis-token")],
}


def field(**fields):
    return lambda spec: spec.update(fields)


def app(**fields):
    return lambda spec: spec["containers"][0].update(fields)


def security(**fields):
    return lambda spec: spec["containers"][0]["securityContext"].update(fields)


def init(number, **fields):
    return lambda spec: spec["initContainers"][number].update(fields)


def unmasked(spec):
    security(procMount="Unmasked")(spec)
    spec["hostUsers"] = False


def added(capability):
    return {"add": [capability], "drop": ["ALL"]}


SIDECAR, REDIRECT, HOST = "has no sidecar", "nothing redirects", "hostNetwork"
CAPABILITY, PRIVILEGED, OWN = "adds a capability", "privileged container", "is the sidecar's own"
REFUSED = [
    ("no sidecar", lambda spec: spec.pop("initContainers"), SIDECAR),
    ("a sidecar that starts later", lambda spec: spec["initContainers"].reverse(), SIDECAR),
    ("another image as the sidecar", init(0, image="other"), SIDECAR),
    ("a sidecar that ends", init(0, restartPolicy=None), SIDECAR),
    ("no redirect", lambda spec: spec["initContainers"].pop(1), REDIRECT),
    ("another image as the redirect", init(1, image="other"), REDIRECT),
    ("a redirect that does something else", init(1, command=["true"]), REDIRECT),
    ("the node's network", field(hostNetwork=True), HOST),
    ("the node's processes", field(hostPID=True), HOST),
    ("the node's IPC", field(hostIPC=True), HOST),
    ("one process namespace", field(shareProcessNamespace=True), HOST),
    ("a privileged container", security(privileged=True), PRIVILEGED),
    ("an unmasked /proc", unmasked, PRIVILEGED),
    ("NET_ADMIN", security(capabilities=added("NET_ADMIN")), CAPABILITY),
    ("CAP_SETUID", security(capabilities=added("CAP_SETUID")), CAPABILITY),
    (
        "SYS_ADMIN in an init container",
        lambda spec: spec["initContainers"].append(
            {"name": "own", "image": "app", "securityContext": {"capabilities": added("SYS_ADMIN")}}
        ),
        CAPABILITY,
    ),
    ("capabilities that were not dropped", app(securityContext={}), "keeps NET_RAW"),
    ("the sidecar's user", security(runAsUser=PROXY_USER), OWN),
    ("the sidecar's group", security(runAsGroup=PROXY_USER), OWN),
    ("the sidecar's user for the pod", field(securityContext={"runAsUser": PROXY_USER}), OWN),
    ("the sidecar's volume", app(volumeMounts=[{"name": "aegis-token", "mountPath": "/token"}]), "mounts a volume"),
    ("a token for the CA", lambda spec: spec["volumes"].append(token("own")), "projects a token"),
]


def ask(spec):
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "asked", "namespace": NAMESPACE}, "spec": spec}
    command = ["kubectl", "create", "--dry-run=server", "-f", "-"]
    return subprocess.run(command, input=json.dumps(pod), capture_output=True, text=True, check=False)


def main():
    taken = ask(INJECTED)
    wrong = [f"an injected pod is refused: {taken.stderr}"] if taken.returncode else []
    for what, change, words in REFUSED:
        spec = copy.deepcopy(INJECTED)
        change(spec)
        answer = ask(spec)
        if answer.returncode == 0 or words not in answer.stderr:
            wrong.append(f"{what}: {answer.stdout}{answer.stderr}")
    sys.exit("\n".join(wrong) or 0)


main()
