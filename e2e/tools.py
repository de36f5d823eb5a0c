"""The governed tools of `aegis mcp`, as a stock MCP client meets them, over a real daemon.

Allowed, refused by the pack for coding agents, held for a person; ways out of the workspace, also by a folder that is
swapped for a link while a person thinks; a daemon that is away, hangs or talks nonsense; an agent that is
quarantined while its command runs. In the end there are as many decisions as calls, and one outcome for each that was allowed.

    tools.py --aegis PATH        with the `mcp` library
"""

import argparse
import asyncio
import contextlib
import http.server
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

from mcp import Client, StdioServerParameters

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = r"""
apiVersion: aegis.dev/v1alpha1
kind: AgentIdentity
metadata: {name: coder}
spec: {sponsor: ada@acme.example, selector: {unix: {uid: %d}}}
---
apiVersion: aegis.dev/v1alpha1
kind: ClusterTrustThreshold
metadata: {name: default}
spec: {sensitiveAt: 750, approvalsAtL3: 1, tMin: 1, tau: 1000}
---
apiVersion: aegis.dev/v1alpha1
kind: AgentPolicy
metadata: {name: more}
spec:
  scopes: [kernel]
  match: {servers: [aegis]}
  rules:
    - name: migrations
      effect: require_approval
      reason: A person looks at migrations.
      when:
        - {field: action.kind, operator: equals, value: file_write}
        - {field: action.resource, operator: matches, value: '/migrations/'}
    - name: web
      effect: allow
      when: [{field: action.kind, operator: equals, value: http_request}]
"""
TOOLS = ["edit_file", "http_request", "list_directory", "read_file", "run_command", "write_file"]


def wait_until(what, condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"timed out: {what}")
        time.sleep(0.05)


def expect(what, holds, detail=""):
    if not holds:
        sys.exit(f"FAILED: {what} {detail}")
    print(f"ok: {what}", flush=True)


class Domain:
    def __init__(self, aegis, folder):
        self.aegis, self.folder = aegis, folder
        (folder / "aegis.d").mkdir()
        (folder / "aegis.d" / "all.yaml").write_text(CONFIG % os.getuid())
        (folder / "aegis.d" / "pack.yaml").write_text((ROOT / "policies/coding-agents/policy.yaml").read_text())
        self.state = folder / "state"
        os.environ.update(AEGIS_STATE=str(self.state), AEGIS_SOCKET=str(self.state / "control.sock"))
        self.start()

    def start(self):
        self.daemon = subprocess.Popen(
            [self.aegis, "up", "--config", self.folder / "aegis.d", "--admin", "127.0.0.1:0"],
            stdout=subprocess.DEVNULL, stderr=open(self.folder / "daemon.log", "ab"))
        wait_until("the daemon answers", lambda: self.run("status", check=False).returncode == 0)

    def stop(self):
        self.daemon.send_signal(signal.SIGTERM)
        self.daemon.wait()

    def run(self, *arguments, check=True):
        done = subprocess.run([self.aegis, *arguments, "-o", "json"], capture_output=True, text=True)
        if check and done.returncode != 0:
            sys.exit(f"aegis {' '.join(arguments)}: {done.stderr}")
        return done

    def entries(self, kind):
        lines = self.run("audit", "query", "--kind", kind, "--limit", "100000").stdout.splitlines()
        return [json.loads(line)["entry"] for line in lines]

    def pending(self):
        listed = json.loads(self.run("approvals", "list").stdout)
        return [approval["id"] for approval in listed if approval["state"] == "pending"]

    def server(self, *more):
        return StdioServerParameters(
            command=self.aegis, env=dict(os.environ), args=["mcp", "--root", str(self.folder / "work"), *more])


class Agent:
    """A client's session, which counts what it calls."""

    calls = 0

    def __init__(self, client):
        self.client = client

    async def __call__(self, tool, **arguments):
        Agent.calls += 1
        result = await self.client.call_tool(tool, arguments)
        return result.is_error, "\n".join(part.text for part in result.content), result.structured_content or {}


@contextlib.asynccontextmanager
async def session(server):
    async with Client(server) as client:
        yield Agent(client)


async def allowed(agent, work):
    tools = sorted(tool.name for tool in (await agent.client.list_tools()).tools)
    expect("the tools are listed", tools == TOOLS, str(tools))
    expect("a file is written, with its folders", await agent("write_file", path="src/a.txt", content="one two") == (False, "written", {}))
    expect("and is there", (work / "src/a.txt").read_text() == "one two")
    expect("it is changed in one place", (await agent("edit_file", path="/workspace/src/a.txt", old_text="two", new_text="three"))[0] is False)
    expect("and read", (await agent("read_file", path="src/a.txt"))[:2] == (False, "one three"))
    expect("its folder is listed", (await agent("list_directory", path="src"))[:2] == (False, "a.txt"))
    error, text, _ = await agent("run_command", command=["cat", "a.txt"], directory="src")
    expect("a command runs in a folder", not error and "one three" in text and text.endswith("[exit code 0]"), text)
    error, text, _ = await agent("run_command", command=["sh", "-c", "exit 3"])
    expect("a command that fails says so", error and text.endswith("[exit code 3]"), text)
    expect("what is not there is told", (await agent("read_file", path="src/none"))[:2] == (True, "there is no such file or folder"))


async def remembered(agent, domain):
    await agent("write_file", path="/mem/notes.md", content="tea at five")
    expect("what is remembered is read again", (await agent("read_file", path="/mem/notes.md"))[1] == "tea at five")
    kept = list((domain.state / "memory").glob("*/notes.md"))
    expect("it is kept in the state folder, for its user alone",
           len(kept) == 1 and kept[0].parent.stat().st_mode & 0o077 == 0, str(kept))


async def governed(agent):
    names = (await agent("list_directory", path="/policy"))[1].split()
    expect("the policies in force are there", names == ["coding-agents.json", "default/"], str(names))
    told = json.loads((await agent("read_file", path="/policy/default/more.json"))[1])
    expect("with their rules", {"name": "migrations", "effect": "require_approval", "reason": "A person looks at migrations."} in told["rules"], str(told))
    expect("and are not for writing", (await agent("write_file", path="/policy/x.json", content="{}"))[2]["reason"] == "outside_root")


async def refused(agent, work):
    (work / "build").mkdir()
    error, text, parts = await agent("run_command", command=["rm", "-rf", "build"])
    expect("the pack refuses a command, with reason, decision and entry",
           error and "deleting whole folders is not allowed" in text and parts["reason"] == "policy_denied"
           and parts["decision_id"] in text and f"entry {parts['index']}" in text, text)
    expect("and it did not run", (work / "build").is_dir())
    error, text, _ = await agent("run_command", command=["sh", "-c", "r''m -rf build"])
    expect("nor in other words, by a shell", error and (work / "build").is_dir(), text)
    (work / ".env").write_text("PASSWORD=x")
    expect("credentials are not read", (await agent("read_file", path=".env"))[2].get("reason") == "policy_denied")
    (work / "link").symlink_to(".env")
    expect("nor through a link, whose target is what is judged",
           (await agent("read_file", path="link"))[2].get("reason") == "policy_denied")
    os.environ["AEGIS_E2E_SECRET"] = "hidden"
    error, text, _ = await agent("run_command", command=["env"])
    expect("commands see no more of the environment than they need", not error and "AEGIS" not in text, text)


async def escapes(agent, folder, work):
    (folder / "outside").mkdir()
    (folder / "outside" / "secret").write_text("secret")
    (work / "out").symlink_to("../outside")
    (work / "absolute").symlink_to(folder / "outside")
    for path in ("out/secret", "absolute/secret", "../outside/secret", "/etc/passwd", "/workspace/../../etc/passwd",
                 "src/../../outside/secret", "a\0b", "/mem/../secret", "/proc/self/environ"):
        error, text, parts = await agent("read_file", path=path)
        expect(f"{path!r} leads nowhere", error and parts["reason"] == "outside_root" and "secret" not in text.replace(path, ""), text)
        error, _, parts = await agent("write_file", path=path, content="planted")
        expect(f"nothing is written to {path!r}", error and parts["reason"] == "outside_root")
    expect("no command runs out there", (await agent("run_command", command=["ls"], directory="out"))[2]["reason"] == "outside_root")
    os.mkfifo(work / "pipe")
    expect("a pipe is no file", (await agent("read_file", path="pipe"))[2]["reason"] == "outside_root")
    expect("an unknown tool is recorded too", (await agent("erase", path="x"))[2]["reason"] == "tool_unknown")
    expect("and malformed arguments", (await agent("read_file", paths="x"))[2]["reason"] == "malformed_message")
    expect("what is outside is as it was", [p.name for p in (folder / "outside").iterdir()] == ["secret"]
           and (folder / "outside/secret").read_text() == "secret")


async def web(agent, other):
    address, port = other
    error, text, _ = await agent("http_request", url=f"http://localhost:{port}/x")
    expect("a private address is not reached", error and "not of the public internet" in text, text)
    expect("an address that is none is refused",
           (await agent("http_request", url="http://user@x.example/"))[2].get("reason") == "malformed_message")
    expect("a host that was named is", (await agent("http_request", url=f"http://127.0.0.1:{port}/x"))[1] == "HTTP 200 OK\n\nGET /x")


async def held(domain, agent, work):
    """Without and with waiting; the second time the folder is swapped for a link meanwhile."""
    (work / "migrations").mkdir()
    call = {"path": "migrations/1.sql", "content": "CREATE TABLE t"}
    error, text, parts = await agent("write_file", **call)
    approval = parts["approval"]
    expect("what needs a person is held back", error and f"aegis approvals approve {approval}" in text
           and parts["verdict"] == "require_approval", text)
    expect("and not done", not (work / "migrations/1.sql").exists())
    domain.run("approvals", "approve", approval, "--comment", "looked")
    expect("the same call is done once it is approved", (await agent("write_file", **call))[0] is False)
    expect("once", (await agent("write_file", **call))[2].get("verdict") == "require_approval")
    domain.run("approvals", "deny", domain.pending()[0], "--comment", "no more")
    async with session(domain.server("--wait", "60")) as patient:
        waiting = asyncio.create_task(patient("write_file", path="migrations/2.sql", content="DROP"))
        await asyncio.to_thread(wait_until, "it waits", domain.pending)
        (work / "migrations").rename(work / "was")
        (work / "migrations").symlink_to("../outside")
        await asyncio.to_thread(domain.run, "approvals", "approve", domain.pending()[0], "--comment", "looked")
        error, text, _ = await waiting
        # It was decided on when it came, and again when a person had answered.
        Agent.calls += 1
    expect("a folder that was swapped for a link while a person thought is not written through",
           error and not (work.parent / "outside/2.sql").exists() and not (work / "was/2.sql").exists(), text)
    (work / "migrations").unlink()


async def astray(domain, work):
    """Daemons that are away, hang, or are none."""
    domain.stop()
    async with session(domain.server()) as agent:
        for tool, arguments in (("write_file", {"path": "x", "content": "x"}), ("run_command", {"command": ["touch", "x"]})):
            error, text, parts = await agent(tool, **arguments)
            expect(f"{tool}: without a daemon nothing is allowed", error and "aegis up" in text and parts["reason"] == "unavailable", text)
            Agent.calls -= 1
    domain.start()
    lies = {
        "hangs": None,
        "is none": b"SSH-2.0-x\r\n",
        "says less than a permission": answer({"decision": True, "context": {"verdict": "allow", "reason": "x", "message": "x"}}),
        "contradicts itself": answer({"decision": True, "context": {"verdict": "deny", "reason": "x", "message": "x", "decision_id": "1"}}),
        "says yes in another way": answer({"decision": "true", "context": {"verdict": "allow", "reason": "x", "message": "x", "decision_id": "1"}}),
    }
    for number, (what, said) in enumerate(lies.items()):
        path = str(domain.folder / f"{number}.sock")
        with impostor(path, said):
            async with session(domain.server("--kernel-socket", path)) as agent:
                error, text, parts = await agent("write_file", path="x", content="x")
        expect(f"a daemon that {what} permits nothing", error and parts["reason"] == "unavailable", text)
        Agent.calls -= 1
    expect("and nothing was done", not (work / "x").exists())


def answer(document):
    body = json.dumps(document).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


@contextlib.contextmanager
def impostor(path, said):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    kept = []

    def serve():
        with contextlib.suppress(OSError):
            while True:
                stream, _ = listener.accept()
                kept.append(stream)
                if said is not None:
                    stream.recv(65536)
                    stream.sendall(said)

    threading.Thread(target=serve, daemon=True).start()
    yield
    listener.close()


async def left(domain, work):
    """A client that goes away while its command runs, and a server that is told to end."""
    script = "sleep 600 & echo $! >pid.new; mv pid.new pid; wait"
    for how in ("its client goes away", "`aegis mcp` is told to end"):
        (work / "pid").unlink(missing_ok=True)
        process = await asyncio.create_subprocess_exec(
            domain.aegis, "mcp", "--root", work, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        said = [
            {"id": 1, "method": "initialize", "params": {
                "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}},
            {"method": "notifications/initialized"},
            {"id": 2, "method": "tools/call", "params": {
                "name": "run_command", "arguments": {"command": ["sh", "-c", script], "timeout_seconds": 600}}},
        ]
        for message in said:
            process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
        Agent.calls += 1
        await asyncio.to_thread(wait_until, "the command runs", (work / "pid").exists)
        pid = (work / "pid").read_text().strip()
        if "told" in how:
            process.terminate()
        else:
            process.stdin.close()
        await process.wait()
        wait_until("what it started ends", lambda: not alive(pid))
        expect(f"a command ends when {how}", True)
    (work / "pid").unlink()


async def stopped(domain, work):
    """An agent is quarantined while its command runs."""
    async with session(domain.server()) as agent:
        script = "sleep 600 & echo $! >pid.new; mv pid.new pid; wait"
        running = asyncio.create_task(agent("run_command", command=["sh", "-c", script], timeout_seconds=600))
        await asyncio.to_thread(wait_until, "the command runs", (work / "pid").exists)
        await asyncio.to_thread(domain.run, "agents", "quarantine", "coder", "--reason", "it went too far")
        error, text, _ = await running
        expect("a command ends when its agent is quarantined", error and "ended by Aegis" in text, text)
        pid = (work / "pid").read_text().strip()
        wait_until("what it started ends", lambda: not alive(pid))
        expect("and so does what it started", True)
        expect("nothing else is allowed then", (await agent("read_file", path="src/a.txt"))[2]["reason"] == "agent_quarantined")


def alive(pid):
    try:
        return ") Z " not in pathlib.Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def recorded(domain):
    decisions = domain.entries("decision")
    expect(f"there are as many decisions as calls: {Agent.calls}", len(decisions) == Agent.calls, str(len(decisions)))
    permitted = sorted(entry["decision_id"] for entry in decisions if entry["result"] == "allow")
    # The daemon waits half a minute for whoever has gone away.
    wait_until("every outcome is recorded", lambda: len(domain.entries("outcome")) >= len(permitted), 90)
    outcomes = domain.entries("outcome")
    expect(f"each of the {len(permitted)} that were allowed has one outcome",
           sorted(entry["decision_id"] for entry in outcomes) == permitted)
    unknown = [entry for entry in outcomes if entry["result"] == "unknown"]
    expect("it is known, but of the two whose client or server had gone", len(unknown) == 2, str(len(unknown)))
    ended = [entry["decision_id"] for entry in decisions if "sleep 600" in json.dumps(entry)]
    expect("the command that was ended has failed, and the quarantine is there",
           sorted(e["result"] for e in outcomes if e["decision_id"] in ended) == ["failure", "unknown", "unknown"]
           and "it went too far" in domain.run("audit", "query", "--limit", "100000").stdout)


class Echo(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"GET {self.path}".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


async def visit(domain, folder):
    work = folder / "work"
    other = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    async with session(domain.server("--reach", f"127.0.0.1:{other.server_port}")) as agent:
        await allowed(agent, work)
        await remembered(agent, domain)
        await governed(agent)
        await refused(agent, work)
        await escapes(agent, folder, work)
        await web(agent, other.server_address)
        await held(domain, agent, work)
    await astray(domain, work)
    await left(domain, work)
    await stopped(domain, work)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--aegis", required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder).resolve()
        (folder / "work").mkdir()
        domain = Domain(options.aegis, folder)
        try:
            asyncio.run(visit(domain, folder))
            recorded(domain)
        finally:
            domain.stop()


if __name__ == "__main__":
    main()
