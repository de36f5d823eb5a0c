#!/usr/bin/env python3
"""Two agent pods on a real Kubernetes with both charts installed, and what Aegis makes of them, line by line.

    agents.py REPORT.md        writes REPORT.md and REPORT.json; ends with 1 if anything is not as it must be

KUBECONFIG names the cluster. One of `cluster.sh` (AEGIS_CLUSTER) is given the images; another must have them already.
AEGIS_BINARIES lists folders with built programs, separated by `:`; the first that holds a program gives it.

Each line of the report is `ok`, `FAILED`, or `not shown` with the reason: what needs a program that has not been
built is never ok. Where there is no aegis-sidecar, a stand-in takes its place that catches connections and forwards
nothing: with it only injection, admission and the redirect are shown, and the report says so.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import control_plane

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NAMESPACE, SYSTEM, OUTSIDE, RESTRICTED = "shop", "aegis-system", "outside", "strict"
DOMAIN = "acme.example"
# The shortest that there is: every SVID is renewed within half of it.
SVID_SECONDS = 60
FOLDERS = [Path(folder) for folder in os.environ["AEGIS_BINARIES"].split(":")]


def program(name):
    return next((folder / name for folder in FOLDERS if (folder / name).is_file()), None)


def run(*command, given=None, seconds=120, check=False):
    try:
        done = subprocess.run(
            [str(one) for one in command], input=given, capture_output=True, text=True, check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        done = subprocess.CompletedProcess(command, 124, "", "it took too long")
    if check and done.returncode:
        raise Failed(f"{' '.join(str(one) for one in command[:6])}: {done.stdout}{done.stderr}")
    return done


def kubectl(*arguments, **options):
    return run("kubectl", *arguments, **options)


def shop(*arguments, **options):
    return kubectl("-n", NAMESPACE, *arguments, **options)


def apply(*objects, namespace=NAMESPACE, check=True):
    given = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
    return kubectl("-n", namespace, "apply", "-f", "-", given=given, check=check)


def get(*arguments, namespace=NAMESPACE):
    return json.loads(kubectl("-n", namespace, "get", *arguments, "-o", "json", check=True).stdout)


def within(seconds, what, condition):
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise Failed(f"{what} did not happen in {seconds} s")
        time.sleep(0.2)


class Failed(Exception):
    """Something is not as it must be."""


class NotShown(Exception):
    """Something that cannot be shown here, and why."""


class Report:
    """One line for each thing."""

    def __init__(self):
        self.lines = []

    def tell(self, state, what, detail=""):
        self.lines.append({"state": state, "what": what, "detail": detail})
        print(f"{state:<10} {what}" + (f": {detail}" if detail else ""), flush=True)

    def check(self, what, shown, *arguments):
        try:
            detail = shown(*arguments)
            self.tell("ok", what, detail if isinstance(detail, str) else "")
            return True
        except NotShown as why:
            self.tell("not shown", what, str(why))
        except (Failed, AssertionError, KeyError, ValueError, subprocess.SubprocessError) as error:
            self.tell("FAILED", what, f"{type(error).__name__}: {error}".strip()[:600])
        return False

    def failed(self):
        return any(line["state"] == "FAILED" for line in self.lines)

    def write(self, path):
        counts = {state: sum(line["state"] == state for line in self.lines) for state in ("ok", "FAILED", "not shown")}
        told = [f"# Two agents on Kubernetes\n\n{counts['ok']} ok, {counts['FAILED']} failed, {counts['not shown']} not shown\n"]
        told += ["| | what | seen |\n|---|---|---|"]
        for line in self.lines:
            detail = line["detail"].replace("|", "\\|").replace("\n", " ")
            told.append(f"| {line['state']} | {line['what']} | {detail} |")
        Path(path).write_text("\n".join(told) + "\n")
        Path(path).with_suffix(".json").write_text(json.dumps({"counts": counts, "lines": self.lines}, indent=1) + "\n")


# --- what is put into the cluster


def python_image(scratch, name, *added):
    base, packages = os.path.realpath(sys.executable), run(ROOT / "e2e/setup.sh", "where", "mcp-python", check=True).stdout.strip()
    asked = "import os, sys, sysconfig; print(os.path.realpath(sys.executable), sysconfig.get_path('stdlib', vars={'base': sys.base_prefix}), sys.version_info.minor)"
    base, library, minor = run(f"{packages}/bin/python", "-c", asked, check=True).stdout.split()
    target = f"usr/local/lib/python3.{minor}"
    entry = Path(scratch) / "python3"
    entry.write_bytes(Path(base).read_bytes())
    entry.chmod(0o755)
    adds = [f"{library}:{target}", f"{packages}/lib/python3.{minor}/site-packages:{target}/site-packages", f"{HERE}/agent:app", *added]
    command = [HERE / "image.py", f"{scratch}/{name}.tar", "--name", f"aegis.dev/e2e/{name}:1", "--entrypoint", entry]
    for one in adds:
        command += ["--add", one]
    run(*command, "--skip", "test", "--skip", "dist-packages", "--skip", "site-packages", "--skip", "idlelib", check=True, seconds=300)
    return f"{scratch}/{name}.tar"


def image(scratch, name, entrypoint, *added):
    command = [HERE / "image.py", f"{scratch}/{name}.tar", "--name", f"aegis.dev/e2e/{name}:1", "--entrypoint", entrypoint]
    for one in added:
        command += ["--add", one]
    run(*command, check=True, seconds=300)
    return f"{scratch}/{name}.tar"


def spiffe_client(scratch):
    """go-spiffe in a program of its own, for the application's container; nothing without Go."""
    built = Path(scratch) / "spiffe"
    command = ["go", "build", "-C", ROOT / "e2e/spiffe", "-o", built, "."]
    return [f"{built}:usr/local/bin/spiffe"] if shutil.which("go") and run("env", "CGO_ENABLED=0", *command, seconds=300).returncode == 0 else []


def images(has):
    nft = run("sh", "-c", "command -v nft || echo /usr/sbin/nft").stdout.strip() + ":usr/local/bin/nft"
    opa = run(ROOT / "e2e/setup.sh", "where", "opa", check=True).stdout.strip() + ":usr/local/bin/opa"
    with tempfile.TemporaryDirectory() as scratch:
        files = [image(scratch, "operator", program("aegis-operator"), opa)]
        files.append(python_image(scratch, "python", nft, *spiffe_client(scratch)))
        files.append(image(scratch, "curl", Path(run("sh", "-c", "command -v curl").stdout.strip())))
        for name in ("sidecar", "ca", "ledger"):
            if has[name]:
                files.append(image(scratch, name, program(f"aegis-{name}"), *([nft] if name == "sidecar" else [])))
        files.append(image(scratch, "node", program("aegis-node"), nft))
        run(HERE / "cluster.sh", "import-image", *files, check=True, seconds=300)
    return f"{len(files)} images"


def values(has):
    own = {"repository": "aegis.dev/e2e/", "tag": "1"}
    named = {name: {**own, "repository": own["repository"] + name} for name in ("operator", "sidecar", "ca", "ledger", "node")}
    injection = {}
    if not has["sidecar"]:
        named["sidecar"]["repository"] = own["repository"] + "python"
        injection = {"args": ["/app/stand_in.py"]}
    return {
        "trustDomain": DOMAIN,
        "images": named,
        "injection": injection,
        "ca": {"enabled": has["ca"]},
        "ledger": {"enabled": has["ca"] and has["ledger"], "volume": {"size": "1Gi"}},
        "dashboards": {"enabled": True},
        "test": {"image": "aegis.dev/e2e/curl:1"},
    }


def install(has):
    kubectl("create", "namespace", SYSTEM)
    kubectl("label", "namespace", SYSTEM, "pod-security.kubernetes.io/enforce=restricted", "--overwrite", check=True)
    run("helm", "upgrade", "--install", "aegis-crds", ROOT / "charts/aegis-crds", "-n", SYSTEM, check=True)
    run(
        "helm", "upgrade", "--install", "aegis", ROOT / "charts/aegis", "-n", SYSTEM, "-f", "-", "--wait", "--timeout", "120s",
        given=json.dumps(values(has)), seconds=180, check=True,
    )  # fmt: skip
    return run("helm", "list", "-n", SYSTEM, "-o", "json", check=True).stdout.count('"status":"deployed"') == 2 or None


def helm_test():
    run("helm", "test", "aegis", "-n", SYSTEM, "--timeout", "60s", check=True)


def aegis(kind, name, spec):
    return {"apiVersion": "aegis.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


IDENTITIES = [
    aegis("AgentIdentity", name, {
        "sponsor": "kubernetes-admin@acme.example", "serviceAccount": name, "svidTTLSeconds": SVID_SECONDS,
        "selector": {"kubernetes": {"podLabels": {"app": name}}},
    }) for name in ("client", "server")
]  # fmt: skip
NOTES = aegis("AgentPolicy", "notes", {
    "rules": [
        {"name": "read", "effect": "allow", "tools": ["read_note"]},
        {"name": "write", "effect": "require_approval", "tools": ["write_note"], "reason": "Changes to notes need a human."},
        {"name": "never-delete", "effect": "deny", "tools": ["delete_note"], "reason": "Notes are never deleted."},
    ],
})  # fmt: skip


def pod(name, script, *arguments, port=None, labels=None, user=1000, account=None):
    container = {
        "name": "app", "image": "aegis.dev/e2e/python:1", "imagePullPolicy": "IfNotPresent",
        "args": [f"/app/{script}", *arguments],
        "securityContext": {"runAsUser": user, "runAsGroup": user},
    }  # fmt: skip
    if script == "sleep":
        container["args"] = ["-c", "import signal; signal.signal(15, lambda *_: exit()); signal.pause()"]
    if port:
        container["ports"] = [{"name": "mcp", "containerPort": port}]
        container["readinessProbe"] = {"tcpSocket": {"port": port}, "periodSeconds": 1}
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels or {"app": name}},
        "spec": {"serviceAccountName": account or "default", "containers": [container], "terminationGracePeriodSeconds": 2},
    }  # fmt: skip


def resources():
    for name in (NAMESPACE, OUTSIDE):
        kubectl("create", "namespace", name)
        within(30, "a ServiceAccount", lambda name=name: kubectl("-n", name, "get", "serviceaccount", "default").returncode == 0)
    kubectl("label", "namespace", NAMESPACE, "aegis.dev/inject=enabled", "--overwrite", check=True)
    for name in ("client", "server"):
        apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}})
    for one in [*IDENTITIES, NOTES]:
        done = apply(one, check=False)
        if done.returncode:
            # A sponsor is the user who asks; the admin of this cluster has no address, and may name others.
            raise Failed(done.stderr)
    for one in [*IDENTITIES, NOTES]:
        name = f"{one['kind'].lower()}/{one['metadata']['name']}"
        shop("wait", "--for=condition=Ready", name, "--timeout=30s", check=True)
    return "kubectl wait --for=condition=Ready on both AgentIdentities and the AgentPolicy"


def columns():
    told = shop("get", "aegis", check=True).stdout
    assert "notes" in told and "client" in told, told
    told = shop("describe", "agentpolicy", "notes", check=True).stdout
    assert "Ready" in told and "Digest" in told, told
    assert "FIELDS" in kubectl("explain", "agentpolicy.spec.rules", check=True).stdout


def broken_policy():
    broken = json.loads(json.dumps(NOTES))
    broken["spec"]["rego"] = "package shop.notes\nallow if nonsense("
    apply(broken)

    def told():
        status = get("agentpolicy", "notes").get("status", {})
        found = [one for one in status.get("conditions", []) if one["type"] == "Compiled" and one["status"] == "False"]
        return found and (found[0]["message"], status)

    message, status = within(30, "Compiled=False", told)
    ready = next(one for one in status["conditions"] if one["type"] == "Ready")
    assert ready["reason"] == "LastGoodInForce", ready
    kubectl("-n", NAMESPACE, "apply", "-f", "-", given=json.dumps(NOTES), check=True)
    within(30, "a good policy", lambda: shop("wait", "--for=condition=Ready", "agentpolicy/notes", "--timeout=1s").returncode == 0)
    return message.splitlines()[0][:160]


def shapes():
    """Every shape of a pod that the operator's golden file knows, on the real API server."""
    golden = (ROOT / "operator/tests/it/pods.golden").read_text().split("\n{\n")[0]
    refused, name = set(), None
    for line in golden.splitlines():
        if not line.startswith(" "):
            name = line.strip()
        elif line.startswith("  refused"):
            refused.add(name)
    told = []
    pods = (ROOT / "operator/tests/it/pods.yaml").read_text().split("\n---\n# ")[1:]
    for text in pods:
        name, yaml = text.split("\n", 1)
        done = shop("create", "--dry-run=server", "-f", "-", given=yaml)
        if "aegis" not in done.stderr and done.returncode:
            # What the API server refuses for reasons of its own shows nothing.
            continue
        told.append(name)
        assert (done.returncode != 0) == (name in refused), f"{name}: {done.stdout}{done.stderr}"
    assert len(told) > 40, f"only {len(told)}"
    return f"{len(told)} of {len(pods)} shapes, {sum(name in refused for name in told)} of them refused, as the golden file says"


def start_pods():
    far = pod("far", "plain.py", port=8080, labels={"app": "far"})
    apply(far, pod("client", "sleep", account="client"), pod("rooted", "sleep", user=0, labels={"app": "client"}, account="client"))
    apply(pod("server", "server.py", port=8080, account="server"))
    apply(pod("stranger", "sleep"), pod("target", "plain.py", port=8080), namespace=OUTSIDE)
    for namespace, name in [(NAMESPACE, "client"), (NAMESPACE, "rooted"), (OUTSIDE, "stranger"), (OUTSIDE, "target")]:
        kubectl("-n", namespace, "wait", "--for=condition=Ready", f"pod/{name}", "--timeout=90s", check=True)
    names = [one["name"] for one in get("pod", "client")["spec"]["initContainers"]]
    assert names == ["aegis-proxy", "aegis-redirect"], names
    shop("exec", "client", "-c", "app", "--", "/usr/local/bin/python3", "-c", "print(1)", check=True)
    return "no pod names Aegis; each has the sidecar first"


def token_read():
    """The stand-in says so itself; a sidecar that cannot read its token has no SVID."""
    told = shop("logs", "client", "-c", "aegis-proxy", check=True).stdout
    assert "its token can be read" in told, told


def address(name, namespace=OUTSIDE):
    return get("pod", name, namespace=namespace)["status"]["podIP"]


def inside(name, *arguments, namespace=NAMESPACE, seconds=150):
    command = ["kubectl", "-n", namespace, "exec", name, "-c", "app", "--", "/usr/local/bin/python3", *arguments]
    return run(*command, seconds=seconds)


def ways_round(report, name, standing_in, namespace=NAMESPACE):
    """Each way from inside, as its own line. `target` is in no enrolled namespace, so that only the client's own side is tried."""
    control = inside("stranger", "/app/bypass.py", address("target"), "8080", namespace=OUTSIDE)
    reachable = {one["way"] for one in map(json.loads, control.stdout.splitlines()) if one["through"]}
    report.check(
        "a pod without a sidecar gets through, so the ways are ways",
        lambda: None if "TCP to the other pod's address and port" in reachable else fail(control.stdout + control.stderr),
    )
    done = inside(name, "/app/bypass.py", address("target"), "8080", namespace=namespace)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    who = "root" if name == "rooted" else "the agent" if namespace == NAMESPACE else "the restricted agent"
    for one in told:
        line = f"{who} inside: {one['way']}"
        if one["through"]:
            report.tell("FAILED", line, f"it got through: {one['seen']}")
        else:
            report.tell("ok", line, " ".join(one["seen"].split()) + (" (stand-in)" if standing_in and "CAUGHT" in one["seen"] else ""))
    if len(told) < 32:
        report.tell("FAILED", f"{who} inside: all ways were tried", f"{len(told)}: {done.stderr[:300]}")


HEAR = "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.settimeout(6); s.bind(('0.0.0.0', 9999)); print('HEARD', s.recv(99))"
SAY = "import socket, time; s = socket.socket(type=socket.SOCK_DGRAM)\nfor _ in range(40): s.sendto(b'hello', ('{}', 9999)); time.sleep(0.1)"


def heard(name, namespace):
    """Whether a datagram of a stranger reaches this pod."""
    command = ["kubectl", "-n", namespace, "exec", name, "-c", "app", "--", "/usr/local/bin/python3", "-c", HEAR]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as hearing:
        inside("stranger", "-c", SAY.format(address(name, namespace)), namespace=OUTSIDE)
        return "HEARD" in hearing.communicate(timeout=30)[0]


def datagrams():
    """UDP carries no identity: it must not reach an agent, and reaches others."""
    assert heard("target", OUTSIDE), "nothing is heard where nothing is in the way"
    assert not heard("client", NAMESPACE), "a datagram has reached the agent"


def borrowed_token():
    """Whoever may make tokens in the namespace, as Kubernetes' own role `edit` may, gets none for the CA."""
    shop("create", "rolebinding", "mallory", "--clusterrole=edit", "--user=mallory", check=True)
    ask = ["create", "token", "client", "--as=mallory", "--bound-object-kind=Pod", "--bound-object-name=client"]
    done = shop(*ask, "--audience=other")
    assert done.returncode == 0, done.stderr
    done = shop(*ask, "--audience=aegis-ca")
    assert done.returncode and "aegis-tokens" in done.stderr, done.stdout[:20] + done.stderr
    return done.stderr.strip()[-120:]


def fail(text):
    raise Failed(text)


def operator_away():
    """Nothing new without the operator, only in enrolled namespaces, and what runs goes on."""
    kubectl("-n", SYSTEM, "scale", "deployment/aegis-operator", "--replicas=0", check=True)
    within(60, "the operator's end", lambda: not get("pods", "-l", "app.kubernetes.io/name=aegis-operator", namespace=SYSTEM)["items"])
    try:
        done = apply(pod("late", "sleep"), check=False)
        assert done.returncode and "pods.aegis.dev" in done.stderr, done.stdout + done.stderr
        apply(pod("late", "sleep"), namespace=OUTSIDE)
        assert get("pod", "client")["status"]["phase"] == "Running", "what ran has stopped"
    finally:
        kubectl("-n", SYSTEM, "scale", "deployment/aegis-operator", "--replicas=1", check=True)
    kubectl("-n", SYSTEM, "rollout", "status", "deployment/aegis-operator", "--timeout=60s", check=True)
    begun = time.monotonic()
    within(60, "injection", lambda: apply(pod("later", "sleep"), check=False).returncode == 0)
    return f"pods are taken again {time.monotonic() - begun:.1f} s after it is ready"


def webhook_gone():
    """Without the webhook altogether, the API server's own policies still refuse."""
    saved = kubectl("get", "mutatingwebhookconfiguration", "aegis-webhooks", "-o", "json", check=True).stdout
    kubectl("delete", "mutatingwebhookconfiguration", "aegis-webhooks", check=True)
    try:
        within(20, "a refusal", lambda: "has no sidecar" in shop("run", "bare", "--image=x", "--dry-run=server").stderr)
    finally:
        one = json.loads(saved)
        for name in ("resourceVersion", "uid", "managedFields", "creationTimestamp", "generation"):
            one["metadata"].pop(name, None)
        kubectl("create", "-f", "-", given=json.dumps(one), check=True)
    within(30, "injection", lambda: shop("run", "bare", "--image=x", "--dry-run=server").returncode == 0)


def call(name, tool, arguments, namespace=NAMESPACE):
    url = f"http://{address('server', NAMESPACE)}:8080/mcp"
    return inside(name, "/app/client.py", url, tool, json.dumps(arguments), namespace=namespace).stdout.strip()


def allowed():
    told = call("client", "read_note", {"name": "one"})
    assert told.startswith("ok "), told


def denied():
    told = call("client", "delete_note", {"name": "one"})
    assert told.startswith("refused") and "never deleted" in told, told
    assert "delete_note" not in shop("logs", "server", "-c", "app").stdout, "the server saw it"
    return told[:160]


def ledger(path):
    return json.loads(control_plane.raw("services", "aegis-ledger", "http", path))


def trust_status():
    return get("agentidentity", "client").get("status", {}).get("trust")


def trusted():
    """What was refused moves the client's trust: the same in the ledger, in its AgentIdentity, and by a fold that is not Aegis'."""
    who = f"spiffe://{DOMAIN}/ns/{NAMESPACE}/sa/client/agent/client"
    before = trust_status() or {"score": 500, "asOf": 0}
    for _ in range(3):
        denied()
    shown = within(30, "a lower score", lambda: (now := trust_status()) and now["asOf"] > before["asOf"] and now["score"] < 500 and now)
    # The status may be some seconds behind; nobody calls now, so it catches up with the ledger.
    def agree():
        told = next(one for one in ledger("/v1/trust")["agents"] if one["agent"] == who)
        return trust_status()["score"] == told["score"] and told
    told = within(30, "a status that agrees with the ledger", agree)
    lines, after = [], None
    while True:
        page = ledger("/v1/entries?order=oldest&limit=500" + (f"&after={after}" if after is not None else ""))
        lines += [json.dumps(one) for one in page["entries"] if one["index"] < told["as_of"]]
        after = page["next"]
        if after is None or after >= told["as_of"]:
            break
    folded = run(ROOT / "e2e/trust_fold.py", given="\n".join(lines), seconds=60, check=True).stdout
    own = json.loads(folded)[who]
    assert (own["a"], own["b"], own["score"]) == (told["a"], told["b"], told["score"]), (own, told)
    column = shop("get", "agid", "client").stdout
    assert str(shown["score"]) in column or str(told["score"]) in column, column
    seen = within(30, "an own entry of that trust", lambda: [
        one["entry"] for one in ledger("/v1/entries?kind=decision&limit=50")["entries"]
        if one["entry"].get("agent_id") == who and one["entry"].get("trust_as_of", 0) > before["asOf"] and denied()
    ])  # fmt: skip
    return f"score {told['score']} ({shown['standing']}) from {told['as_of']} entries, and a decision as of {seen[0]['trust_as_of']}"


def waiting(*states):
    return [one for one in get("approvalrequests")["items"] if one.get("status", {}).get("state") in states]


def answer(name, verdict, *who, check=True):
    return shop("patch", "agapr", name, "--type=merge", "-p", json.dumps({"spec": {"answer": verdict}}), *who, check=check)


def asking(name, answered):
    """One call that needs a human; every request that it makes is answered, the caller's sidecar's and the server's."""
    url = f"http://{address('server', NAMESPACE)}:8080/mcp"
    before = {one["metadata"]["name"] for one in get("approvalrequests")["items"]}
    command = ["kubectl", "-n", NAMESPACE, "exec", "client", "-c", "app", "--", "/usr/local/bin/python3", "/app/client.py", url]
    with subprocess.Popen([*command, "write_note", json.dumps({"name": name, "text": "x"})], stdout=subprocess.PIPE, text=True) as asked:
        enforced = []
        within(20, "a request", lambda: [one for one in waiting("Pending") if one["metadata"]["name"] not in before])
        assert asked.poll() is None and f"write_note {name}" not in shop("logs", "server", "-c", "app").stdout, "it did not wait"
        deadline = time.monotonic() + 20
        while asked.poll() is None and time.monotonic() < deadline:
            for one in waiting("Pending"):
                if one["metadata"]["name"] not in before:
                    before.add(one["metadata"]["name"])
                    enforced.append(one["spec"]["enforcedBy"].rsplit("/", 1)[1])
                    answered(one)
            time.sleep(0.1)
        return asked.communicate(timeout=30)[0].strip(), enforced


def approved():
    def agree(one):
        name, spec = one["metadata"]["name"], one["spec"]
        assert spec["tool"] == "write_note" and spec["reason"] == "Changes to notes need a human.", spec
        assert "text" not in json.dumps(spec), spec
        # Who may change the object at all may not answer for that alone, nor type who has answered.
        for refused, why in [
            (answer(name, "approve", "--as=mallory@acme.example", "--as-group=editors", check=False), "approve"),
            (shop("patch", "agapr", name, "--type=merge", "-p", '{"spec":{"tool":"read_note"}}', check=False), "ask again"),
            (shop("patch", "agapr", name, "--type=merge", "-p", json.dumps({"spec": {"answers": [
                {"by": "ada@acme.example", "verdict": "approve", "at": "2026-01-01T00:00:00Z"}]}}), check=False), "cannot be written"),
        ]:  # fmt: skip
            assert refused.returncode and why in refused.stderr, refused.stdout + refused.stderr
        answer(name, "approve", "--as=grace@acme.example")
        given = get("approvalrequest", name)["spec"]
        assert [one["by"] for one in given["answers"]] == ["grace@acme.example"] and "answer" not in given, given

    editors = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "editors"},
               "rules": [{"apiGroups": ["aegis.dev"], "resources": ["approvalrequests"], "verbs": ["get", "patch", "update"]}]}  # fmt: skip
    apply(editors)
    shop("create", "rolebinding", "editors", "--role=editors", "--group=editors", check=True)
    shop("create", "rolebinding", "approvers", "--clusterrole=aegis-approver", "--user=grace@acme.example", check=True)
    told, enforced = asking("yes", agree)
    assert told.startswith("ok "), told
    within(20, "its use", lambda: len(waiting("Used")) == len(enforced))
    for one in waiting("Used"):
        shop("wait", "--for=condition=Approved", f"agapr/{one['metadata']['name']}", "--timeout=5s", check=True)
    columns = shop("get", "agapr", check=True).stdout
    assert "Used" in columns and "write_note" in columns, columns
    return f"asked at the sidecar of {' and of '.join(enforced)}; who answered cannot be typed, and takes the verb `approve`"


def refused_by_a_human():
    told, enforced = asking("no", lambda one: answer(one["metadata"]["name"], "deny", "--as=grace@acme.example"))
    assert told.startswith("refused"), told
    assert "write_note no" not in shop("logs", "server", "-c", "app").stdout, "the server saw it"
    within(20, "the refusal", lambda: len(waiting("Denied")) == len(enforced) == 1)
    return told[:160]


def stranger():
    told = call("stranger", "read_note", {"name": "stranger"}, namespace=OUTSIDE)
    assert not told.startswith("ok"), told
    assert "stranger" not in shop("logs", "server", "-c", "app").stdout, "the server saw it"
    return told[:160]


def loading(seconds):
    url = f"http://{address('server', NAMESPACE)}:8080/mcp"
    command = ["kubectl", "-n", NAMESPACE, "exec", "client", "-c", "app", "--", "/usr/local/bin/python3", "/app/client.py", url]
    return subprocess.Popen([*command, "--load", str(seconds)], stdout=subprocess.PIPE, text=True)


def under_way(load):
    """Waits for the first call that works; the seconds of the load count from there."""
    told = load.stdout.readline()
    assert told == "working\n", told


def result(load):
    return json.loads(load.stdout.read())


def revoked():
    """Calls go on while the identity is deleted: when the last one worked is told by the client itself."""
    with loading(14) as load:
        under_way(load)
        begun = time.time()
        shop("delete", "agentidentity", "client", check=True)
        told = result(load)
    apply(IDENTITIES[0])
    took = max(0, told["last"] - begun)
    assert told["worked"] and told["failed"] and took < 5, f"the last call worked {took:.1f} s after: {told}"
    within(60, "the identity's return", lambda: call("client", "read_note", {"name": "again"}).startswith("ok "))
    return f"the last call worked {took:.2f} s after `kubectl delete` began; registered again, calls work again"


def suspended():
    """The kill switch of one agent: the same, without taking its identity away."""
    with loading(12) as load:
        under_way(load)
        begun = time.time()
        shop("patch", "agentidentity", "client", "--type=merge", "-p", '{"spec":{"suspended":true}}', check=True)
        told = result(load)
    shop("patch", "agentidentity", "client", "--type=merge", "-p", '{"spec":{"suspended":false}}', check=True)
    took = max(0, told["last"] - begun)
    assert told["worked"] and told["failed"] and took < 5, f"the last call worked {took:.1f} s after: {told}"
    within(20, "the agent's return", lambda: call("client", "read_note", {"name": "again"}).startswith("ok "))
    return f"the last call worked {took:.2f} s after `kubectl patch` began"


def flipped():
    """A policy is changed to and fro under load: no call fails that both versions allow."""
    other = json.loads(json.dumps(NOTES))
    other["spec"]["rules"].append({"name": "other", "effect": "deny", "tools": ["nobody"]})

    def flip():
        for one in [other, NOTES] * 3:
            apply(one)
            time.sleep(2)

    return under_load("policy", flip)


def under_load(what, disturb, seconds=30):
    """Calls go on while something restarts, and none fails."""
    with loading(seconds) as load:
        under_way(load)
        disturb()
        told = result(load)
    assert told["worked"] > 20 and not told["failed"], f"{what}: {told}"
    return f"{told['worked']} calls, none failed"


def restart(name):
    kind = "statefulset" if name == "ledger" else "deployment"
    kubectl("-n", SYSTEM, "rollout", "restart", f"{kind}/aegis-{name}", check=True)
    kubectl("-n", SYSTEM, "rollout", "status", f"{kind}/aegis-{name}", "--timeout=60s", check=True)


def workload(*commands):
    """What go-spiffe in the client's container is told on the socket that injection names."""
    if not shutil.which("go"):
        raise NotShown("there is no Go to build the SPIFFE client with")
    found = inside("client", "-c", "import os; print(os.environ['SPIFFE_ENDPOINT_SOCKET'])").stdout.strip()
    told = shop("exec", "-i", "client", "-c", "app", "--", "/usr/local/bin/spiffe", found, given="\n".join(commands) + "\n")
    lines = told.stdout.splitlines()
    assert len(lines) == len(commands) and all(line.startswith("ok ") for line in lines), told.stdout + told.stderr
    return [line.removeprefix("ok ") for line in lines]


def application():
    x509, jwt = workload("fetch", "jwt ledger")
    own = f"spiffe://{DOMAIN}/ns/{NAMESPACE}/sa/client/agent/client/workload"
    assert x509.split()[0] == own and jwt == own, (x509, jwt)
    done = inside("client", "-c", "import os; os.unlink('/run/aegis/workload.sock')")
    assert "Read-only file system" in done.stderr, done.stdout + done.stderr
    return own


TURNED_AWAY = """
import base64, socket, ssl, sys, tempfile
with tempfile.NamedTemporaryFile() as file:
    file.write(base64.b64decode(sys.argv[2])); file.flush()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(file.name)
context.set_alpn_protocols(["aegis-mesh/2"])
with context.wrap_socket(socket.create_connection((sys.argv[1], 8080), 10)) as stream:
    print("connected", stream.selected_alpn_protocol())
    try:
        stream.sendall(b"GET /given-away HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n")
        print("answered" if stream.recv(1) else "closed")
    except ssl.SSLError as error:
        print("refused", error.reason)
"""


def given_away():
    """The application's SVID, given to somebody elsewhere, opens no door of the mesh."""
    svid, = workload("export")
    told = inside("stranger", "-c", TURNED_AWAY, address("server", NAMESPACE), svid, namespace=OUTSIDE)
    lines = told.stdout.splitlines()
    assert lines[:1] == ["connected aegis-mesh/2"] and lines[1].startswith("refused "), told.stdout + told.stderr
    assert "given-away" not in shop("logs", "server", "-c", "app").stdout, "the server saw it"
    return lines[1]


def svid_expiry(name):
    """What the sidecar of a pod says, to one who asks as Prometheus does."""
    asked = f"import urllib.request as u; print(u.urlopen('http://{address(name, NAMESPACE)}:15021/metrics', timeout=5).read().decode())"
    told = inside("stranger", "-c", asked, namespace=OUTSIDE).stdout
    return next(int(line.split()[1]) for line in told.splitlines() if line.startswith("aegis_sidecar_svid_expiry_timestamp_seconds "))


def rotate():
    """Both replicas of the CA see the annotation, and one rotates; then every SVID comes from the new authority."""
    published = lambda: json.loads(control_plane.bundle()["bundle.json"])["spiffe_sequence"]  # noqa: E731
    secret = lambda: get("secret", "aegis-ca-state", namespace=SYSTEM)["metadata"].get("annotations", {})  # noqa: E731
    before, roots = published(), control_plane.bundle()["roots.pem"].count("BEGIN CERTIFICATE")
    kubectl("-n", SYSTEM, "annotate", "secret", "aegis-ca-state", "aegis.dev/rotate=x509", "--overwrite", check=True)
    within(10, "the annotation's end", lambda: "aegis.dev/rotate" not in secret())
    at = int(time.time())
    within(10, "the new bundle", lambda: published() > before)
    for name in ("client", "server"):
        within(45, f"a new SVID of {name}", lambda name=name: svid_expiry(name) >= at + SVID_SECONDS)
    assert published() == before + 1, f"sequence {published()} after {before}: it was rotated more than once"
    assert control_plane.bundle()["roots.pem"].count("BEGIN CERTIFICATE") == roots + 1
    events = get("events.events.k8s.io", namespace=SYSTEM)["items"]
    told = [one["note"] for one in events if one.get("reason") == "Rotated" and one["regarding"]["name"] == "aegis-ca-state"]
    assert len(told) == 1, told


def rotated():
    control_plane.two()
    try:
        return under_load("rotation", rotate, seconds=75)
    finally:
        kubectl("-n", SYSTEM, "scale", "deployment/aegis-ca", "--replicas=1", check=True)


def joins_later():
    """Its sidecar is given the new root, and talks with pods that were injected with the old one alone."""
    apply(pod("joined", "sleep", labels={"app": "client"}, account="client"))
    shop("wait", "--for=condition=Ready", "pod/joined", "--timeout=60s", check=True)
    told = call("joined", "read_note", {"name": "joined"})
    assert told.startswith("ok "), told
    shop("delete", "pod", "joined", "--wait=false", check=True)


def restricted(name, script, *arguments, account=None, **more):
    """A pod as pod security `restricted` wants it."""
    one = pod(name, script, *arguments, account=account or name, labels={"app": account or name}, **more)
    one["spec"]["securityContext"] = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    one["spec"]["containers"][0]["securityContext"] |= {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    return one


def waiting_for_redirect(name):
    """Whether the pod's sidecar is up, and nothing of the author's has started."""
    status = get("pod", name, namespace=RESTRICTED)["status"]
    inits = {one["name"]: one for one in status.get("initContainerStatuses", [])}
    up = inits.get("aegis-proxy", {}).get("started") and inits["aegis-await"]["state"].get("running")
    return up and all("waiting" in one["state"] for one in status["containerStatuses"])


def node_agent(has):
    """Where pod security forbids NET_ADMIN, an agent on the node redirects; pods wait for it."""
    told = values(has)
    told["injection"]["redirect"] = "node"
    run("helm", "upgrade", "aegis", ROOT / "charts/aegis", "-n", SYSTEM, "-f", "-", "--wait", "--timeout", "120s",
        given=json.dumps(told), seconds=180, check=True)  # fmt: skip
    agent = ["-n", "aegis-node", "rollout", "status", "daemonset/aegis-node", "--timeout=60s"]
    kubectl(*agent, check=True)
    kubectl("create", "namespace", RESTRICTED, check=True)
    kubectl("label", "namespace", RESTRICTED, "aegis.dev/inject=enabled", "pod-security.kubernetes.io/enforce=restricted", check=True)
    for name in ("client", "server"):
        apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}, namespace=RESTRICTED)
    apply(*IDENTITIES, NOTES, namespace=RESTRICTED)
    apply(restricted("client", "sleep"), restricted("server", "server.py", port=8080), namespace=RESTRICTED)
    for name in ("client", "server"):
        kubectl("-n", RESTRICTED, "wait", "--for=condition=Ready", f"pod/{name}", "--timeout=60s", check=True)
    names = [one["name"] for one in get("pod", "client", namespace=RESTRICTED)["spec"]["initContainers"]]
    assert names == ["aegis-proxy", "aegis-await"], names
    url = f"http://{address('server', RESTRICTED)}:8080/mcp"
    told = inside("client", "/app/client.py", url, "read_note", '{"name": "one"}', namespace=RESTRICTED).stdout
    assert told.startswith("ok "), told
    told = inside("client", "/app/client.py", url, "delete_note", '{"name": "one"}', namespace=RESTRICTED).stdout
    assert told.startswith("refused") and "never deleted" in told, told


def node_agent_away():
    """A pod that was made while the agent was away has not begun, and begins once the agent is back."""
    nowhere = '{"spec":{"template":{"spec":{"nodeSelector":{"nowhere":"%s"}}}}}'
    kubectl("-n", "aegis-node", "patch", "daemonset", "aegis-node", "-p", nowhere % "yes", check=True)
    within(30, "the agent's end", lambda: not get("pods", namespace="aegis-node")["items"])
    apply(restricted("late", "sleep", account="client"), namespace=RESTRICTED)
    within(60, "waiting for the agent", lambda: waiting_for_redirect("late"))
    patch = '[{"op":"remove","path":"/spec/template/spec/nodeSelector"}]'
    kubectl("-n", "aegis-node", "patch", "daemonset", "aegis-node", "--type=json", "-p", patch, check=True)
    begun = time.monotonic()
    kubectl("-n", RESTRICTED, "wait", "--for=condition=Ready", "pod/late", "--timeout=60s", check=True)
    return f"ready {time.monotonic() - begun:.1f} s after the agent was let back"


def needs(has, *names):
    missing = [f"aegis-{name}" for name in names if not has[name]]
    if missing:
        raise NotShown(f"needs {' and '.join(missing)}, which AEGIS_BINARIES does not hold")


def calls(report, has):
    """What needs a sidecar that forwards."""

    def after(shown, *arguments, parts=("sidecar", "ca")):
        def checked():
            needs(has, *parts)
            return shown(*arguments)

        return checked

    def ready():
        needs(has, "sidecar", "ca")
        shop("wait", "--for=condition=Ready", "pod/server", "--timeout=60s", check=True)

    report.check("the server's pod is ready: probes pass the sidecar", ready)
    report.check("an allowed call", after(allowed))
    report.check("a denied tool is refused on the wire with its reason, and the server never saw it", after(denied))
    report.check("denied calls lower the client's trust, in the ledger, its AgentIdentity and an independent fold alike", after(trusted, parts=("sidecar", "ca", "ledger")))
    report.check("a call that needs a human waits, is approved with kubectl, and goes through", after(approved))
    report.check("one that a human denies is refused, and the server never saw it", after(refused_by_a_human))
    report.check("a plain client in a pod without a sidecar is refused", after(stranger))
    report.check("the application gets its own SVIDs from the SPIFFE Workload API", after(application))
    report.check("the server's sidecar takes the application's SVID for nobody's", after(given_away))
    report.check("deleting the AgentIdentity ends what the client may do, within 5 s", after(revoked))
    report.check("suspending the AgentIdentity ends what the client may do, within 5 s", after(suspended))
    report.check("a policy is flipped under load", after(flipped))
    for name in ("operator", "ca", "ledger"):
        report.check(f"a restart of the {name} under load", after(lambda name=name: under_load(name, lambda: restart(name)), parts=("sidecar", "ca", "ledger")))
    report.check("the CA's authority is rotated under load: no call fails", after(rotated))
    report.check("a pod that starts after the rotation joins", after(joins_later))


def main():
    report = Report()
    has = {name: program(f"aegis-{name}") is not None for name in ("operator", "sidecar", "ca", "ledger")}
    for name in ("ca", "ledger"):
        # The programs of one machine have the same names; those of a cluster have these commands.
        command = {"ca": "kubernetes", "ledger": "serve"}[name]
        has[name] = has[name] and command in run(program(f"aegis-{name}"), "--help").stdout
    standing_in = not has["sidecar"]
    if standing_in:
        report.tell("not shown", "the sidecar", "AEGIS_BINARIES holds no aegis-sidecar; a stand-in catches connections and governs nothing")
    for name in ("ca", "ledger"):
        if not has[name]:
            report.tell("not shown", f"aegis-{name} in the cluster", "AEGIS_BINARIES holds none that knows the cluster")
    try:
        if os.environ.get("AEGIS_CLUSTER"):
            report.check("images of what is built are given to the node", images, has)
        if report.check("helm install of both charts, in a restricted namespace", install, has):
            report.check("helm test", helm_test)
            if has["ca"] and has["ledger"]:
                control_plane.check(report)
            report.check("a labelled namespace, identities and a policy", resources)
            report.check("kubectl get, describe and explain tell about them", columns)
            report.check("a policy that does not compile says where, and the last good one stays", broken_policy)
            report.check("pods of every shape, through the webhook and the API server's policies", shapes)
            if report.check("agent pods come up injected", start_pods):
                if standing_in:
                    report.check("the sidecar's user can read the token for the CA", token_read)
                ways_round(report, "client", standing_in)
                ways_round(report, "rooted", standing_in)
                report.check("a datagram from outside does not reach an agent", datagrams)
                report.check("a token for the CA cannot be made by hand", borrowed_token)
            calls(report, has)
            if has["sidecar"] and report.check("agents in a namespace of pod security `restricted`, redirected by the node agent", node_agent, has):
                ways_round(report, "client", standing_in, RESTRICTED)
                report.check("without the node agent a pod waits before anything of its author's starts", node_agent_away)
            report.check("without the operator nothing new starts in enrolled namespaces, and others are untouched", operator_away)
            report.check("without the webhook the API server itself refuses", webhook_gone)
    finally:
        report.write(sys.argv[1])
    sys.exit(1 if report.failed() else 0)


main()
