#!/usr/bin/env python3
"""The CA and the ledger of a real cluster: who gets an SVID and who gets none, what a restart keeps, what is recorded.

    control_plane.py       on a cluster where both charts are installed with `ca.enabled` and `ledger.enabled`; ends
                           with 1 if anything is not as it must be. agents.py asks the same as a part of its report.

KUBECONFIG names the cluster. AEGIS_IDLE_IMAGE names an image whose pods just run (default: the node's own pause image).
It asks the CA as a sidecar does: a token that names a pod, and a request for a certificate that names nobody.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SYSTEM, NAMESPACE = "aegis-system", "plane"
IMAGE = os.environ.get("AEGIS_IDLE_IMAGE", "aegis.dev/e2e/pause:1")
UNAUTHENTICATED, DENIED = 16, 7


def kubectl(*arguments, given=None, check=True):
    done = subprocess.run(["kubectl", *arguments], input=given, capture_output=True, text=True, check=False, timeout=120)
    assert not check or done.returncode == 0, f"kubectl {' '.join(arguments[:6])}: {done.stdout}{done.stderr}"
    return done.stdout


def own(*arguments, **options):
    return kubectl("-n", NAMESPACE, *arguments, **options)


def system(*arguments, **options):
    return kubectl("-n", SYSTEM, *arguments, **options)


def within(seconds, what, condition):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen in {seconds} s"
        time.sleep(0.2)
    return found


def replicas(name):
    """The pods of a component that run and are not on their way out."""
    pods = json.loads(system("get", "pods", "-l", f"app.kubernetes.io/name={name}", "-o", "json"))["items"]
    return [one["metadata"]["name"] for one in pods if "deletionTimestamp" not in one["metadata"]]


def raw(kind, name, port, path):
    return kubectl("get", "--raw", f"/api/v1/namespaces/{SYSTEM}/{kind}/http:{name}:{port}/proxy{path}")


def counted(metric, **labels):
    """A counter of the CA, over its replicas."""
    wanted = metric + ("{" + ",".join(f'{key}="{value}"' for key, value in labels.items()) + "}" if labels else "")
    total = 0
    for name in replicas("aegis-ca"):
        lines = dict(line.rsplit(" ", 1) for line in raw("pods", name, 9491, "/metrics").splitlines() if not line.startswith("#"))
        total += float(lines.get(wanted, 0))
    return total


def entries(**filters):
    asked = "&".join(f"{key}={value}" for key, value in {"limit": 500, **filters}.items())
    return [one["entry"] for one in json.loads(raw("services", "aegis-ledger", 9480, f"/v1/entries?{asked}"))["entries"]]


# --- asking the CA


def field(number, data):
    """A field of a protobuf message: bytes, with their length."""
    length, count = b"", len(data)
    while count > 0x7F:
        length, count = length + bytes([count & 0x7F | 0x80]), count >> 7
    return bytes([number << 3 | 2]) + length + bytes([count]) + data


@contextlib.contextmanager
def forwarded(pod, port):
    command = ["kubectl", "-n", SYSTEM, "port-forward", f"pod/{pod}", f":{port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as forwarding:
        try:
            found = re.search(r"127\.0\.0\.1:(\d+)", forwarding.stdout.readline())
            assert found, f"{pod} cannot be reached"
            yield found.group(1)
        finally:
            forwarding.terminate()


def ask(pod, token):
    """Has one replica of the CA issue for a token. Returns the gRPC status, 0 for an SVID."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        asked = ["openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        asked += ["-keyout", folder / "key", "-subj", "/", "-outform", "DER", "-out", folder / "request"]
        subprocess.run(asked, check=True, capture_output=True)
        message = field(1, token.encode()) + field(2, (folder / "request").read_bytes())
        (folder / "message").write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
        with forwarded(pod, 9442) as port:
            # Who the CA is, sidecars check; here only its answer is looked at.
            command = ["curl", "--silent", "--show-error", "--insecure", "--tlsv1.3", "--http2", "--dump-header", folder / "head"]
            command += ["--header", "content-type: application/grpc", "--header", "te: trailers", "--data-binary", f"@{folder}/message"]
            command += ["--output", folder / "answer", f"https://127.0.0.1:{port}/aegis.authority.v1.Authority/Issue"]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        head = (folder / "head").read_text() if (folder / "head").exists() else ""
        status = re.search(r"^grpc-status: (\d+)", head, re.M | re.I)
        assert status, f"no answer: {done.stderr} {head}"
        if status.group(1) == "0":
            assert b"spiffe://" in (folder / "answer").read_bytes(), "an answer without an SVID"
        return int(status.group(1))


def token(pod=None, audience="aegis-ca"):
    bound = ["--bound-object-kind=Pod", f"--bound-object-name={pod}"] if pod else []
    return own("create", "token", "default", f"--audience={audience}", *bound).strip()


def pod(name, app):
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": app}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "app", "image": IMAGE, "imagePullPolicy": "IfNotPresent"}]},
    }  # fmt: skip


def identity():
    return {
        "apiVersion": "aegis.dev/v1alpha1", "kind": "AgentIdentity", "metadata": {"name": "buyer"},
        "spec": {"sponsor": "kubernetes-admin@acme.example", "selector": {"kubernetes": {"podLabels": {"app": "buyer"}}}},
    }  # fmt: skip


def apply(*objects):
    own("apply", "-f", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))


def running(name):
    own("wait", "--for=jsonpath={.status.phase}=Running", f"pod/{name}", "--timeout=60s")


# --- what must hold


def ready():
    system("rollout", "status", "deployment/aegis-ca", "--timeout=90s")
    system("rollout", "status", "statefulset/aegis-ledger", "--timeout=90s")
    told = json.loads(raw("services", "aegis-ledger", 9480, "/readyz"))
    assert told == {"ready": True, "role": "writing"}, told


def bundle():
    data = json.loads(system("get", "configmap", "aegis-trust-bundle", "-o", "json"))["data"]
    assert data["roots.pem"].count("BEGIN CERTIFICATE") >= 1, data
    assert json.loads(data["bundle.json"])["keys"], data
    return data


def told_bundle():
    return f"sequence {json.loads(bundle()['bundle.json'])['spiffe_sequence']}"


def recorded():
    """The CA's journal is in the ledger: its own SVID and the ledger's, each under the CA's source."""

    def both():
        ids = {one["agent_id"] for one in entries(kind="identity_issued") if one["source"].startswith("spiffe://acme.example/aegis/ca#")}
        return ids if {"spiffe://acme.example/aegis/ca", "spiffe://acme.example/aegis/ledger"} <= ids else None

    return ", ".join(sorted(within(30, "both entries", both)))


def actors():
    kubectl("create", "namespace", NAMESPACE, check=False)
    within(30, "a ServiceAccount", lambda: own("get", "serviceaccount", "default", check=False))
    apply(identity(), pod("buyer", "buyer"), pod("nobody", "nobody"))
    for name in ("buyer", "nobody"):
        running(name)


def issued():
    """The pod of an AgentIdentity gets an SVID, from every replica."""
    before = counted("aegis_ca_issued_svids_total", kind="x509")
    names = replicas("aegis-ca")
    for name in names:
        within(10, "an SVID", lambda name=name: ask(name, token("buyer")) == 0)
    assert counted("aegis_ca_issued_svids_total", kind="x509") >= before + len(names)
    agent = f"spiffe://acme.example/ns/{NAMESPACE}/sa/default/agent/buyer"
    within(20, "its entry in the ledger", lambda: entries(kind="identity_issued", agent=agent))
    return f"by {len(names)} replicas"


def refused(what, asked, status, *reasons):
    """Refused, counted under one of these reasons, and recorded under it."""
    before = {reason: counted("aegis_ca_refused_requests_total", reason=reason) for reason in reasons}
    told = ask(replicas("aegis-ca")[0], asked)
    assert told == status, f"{what}: {told}"
    grown = [reason for reason in reasons if counted("aegis_ca_refused_requests_total", reason=reason) > before[reason]]
    assert grown, f"{what} is not counted under any of {reasons}"
    within(20, "its entry in the ledger", lambda: any(one["detail"]["refusal"] in grown for one in entries(kind="refusals")))
    return grown[0]


def refusals():
    told = [
        refused("another audience", token("buyer", "somebody-else"), UNAUTHENTICATED, "invalid_token", "other_audience"),
        refused("no AgentIdentity", token("nobody"), DENIED, "unregistered"),
        refused("no pod", token(), DENIED, "unbound_token"),
        refused("no token", "e30.e30.e30", UNAUTHENTICATED, "malformed_token"),
    ]
    # The pod of a token has gone, and another has its name.
    old = token("buyer")
    own("delete", "pod", "buyer", "--wait=true")
    apply(pod("buyer", "buyer"))
    running("buyer")
    told.append(refused("a pod that has gone", old, UNAUTHENTICATED, "invalid_token"))
    return ", ".join(told)


def revoked():
    """A deleted AgentIdentity is revoked by every replica, and comes back with the next one of its name."""
    own("delete", "agentidentity", "buyer")
    names = replicas("aegis-ca")
    within(10, "the revocation", lambda: counted("aegis_ca_revocations") == len(names))
    assert ask(names[-1], token("buyer")) == DENIED
    within(20, "its entry in the ledger", lambda: entries(kind="identity_revoked"))
    apply(identity())
    within(10, "its end", lambda: counted("aegis_ca_revocations") == 0)
    return f"by {len(names)} replicas"


def restarted(kind, name, kept):
    def shown():
        before = kept()
        system("rollout", "restart", f"{kind}/{name}")
        system("rollout", "status", f"{kind}/{name}", "--timeout=90s")
        assert kept() == before, "it is another now"
        return None

    return shown


def sources():
    return {one["source"] for one in entries(kind="journal_opened") if "/aegis/ca#" in one["source"]}


def another_journal():
    """Each start of the CA has a journal of its own, and what it ends with arrives too."""
    found = within(30, "a second journal", lambda: len(sources()) >= 2 and sources())
    within(30, "the end of one", lambda: [one for one in entries(kind="journal_closed") if one["source"] in found])
    return f"{len(found)} journals"


def two():
    system("scale", "deployment/aegis-ca", "--replicas=2")
    system("rollout", "status", "deployment/aegis-ca", "--timeout=90s")
    within(30, "two replicas", lambda: len(replicas("aegis-ca")) == 2)


def republished():
    """Who deletes the bundle, or puts other roots into it, does so for a moment."""
    good = bundle()["roots.pem"]
    system("patch", "configmap", "aegis-trust-bundle", "-p", '{"data":{"roots.pem":"somebody else"}}')
    within(45, "the CA's own roots", lambda: "BEGIN" in json.loads(system("get", "configmap", "aegis-trust-bundle", "-o", "json"))["data"]["roots.pem"])
    assert bundle()["roots.pem"] == good


def check(report):
    """Each thing as a line of a report, which has `check(what, shown)`."""
    if not report.check("the CA and the ledger are ready, under pod security `restricted`", ready):
        return
    roots = lambda: bundle()["roots.pem"]  # noqa: E731
    key = lambda: raw("services", "aegis-ledger", 9480, "/v1/key")  # noqa: E731
    report.check("the trust bundle is a ConfigMap", told_bundle)
    report.check("the ledger has the CA's journal", recorded)
    if report.check("a pod with an AgentIdentity, and one without", actors):
        report.check("the pod of an AgentIdentity gets an SVID, which is recorded", issued)
        report.check("other tokens are refused, counted and recorded", refusals)
    report.check("a restart of the CA keeps its roots", restarted("deployment", "aegis-ca", roots))
    report.check("each start of the CA has a journal of its own in the ledger", another_journal)
    if report.check("two replicas of the CA", two):
        report.check("both issue", issued)
        report.check("both revoke a deleted identity", revoked)
    report.check("a restart of the ledger keeps its key", restarted("statefulset", "aegis-ledger", key))
    report.check("and it takes journals again", issued)
    report.check("a trust bundle that somebody changed is put right", republished)
    kubectl("delete", "namespace", NAMESPACE, "--wait=false", check=False)
    system("scale", "deployment/aegis-ca", "--replicas=1", check=False)


class Told:
    """A report for a terminal."""

    failed = False

    def check(self, what, shown):
        begun = time.monotonic()
        try:
            detail = shown()
        except (AssertionError, KeyError, ValueError, subprocess.SubprocessError) as error:
            self.failed = True
            print(f"FAILED     {what}: {type(error).__name__}: {error}", flush=True)
            return False
        print(f"ok         {what}" + (f": {detail}" if detail else "") + f" ({time.monotonic() - begun:.1f} s)", flush=True)
        return True


if __name__ == "__main__":
    terminal = Told()
    check(terminal)
    sys.exit(terminal.failed)
