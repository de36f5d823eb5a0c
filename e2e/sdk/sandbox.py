"""The same forbidden action through the MCP proxy, `aegis wrap`, and the SDKs for Python and TypeScript.

One policy, one verdict and reason at each, as many records as calls, and no effect anywhere. Beside
it an action that is allowed: it has its effect, and one outcome, at each. Then how long a question takes
at each SDK is measured and printed, and never asserted.

    sandbox.py --aegis PATH --node PATH        with the `mcp` library
"""

import argparse
import asyncio
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "sdk" / "python" / "src"))

CONFIG = r"""
apiVersion: aegis.dev/v1alpha1
kind: AgentIdentity
metadata: {name: visitor}
spec: {sponsor: ada@acme.example, selector: {unix: {uid: %(uid)d}}}
---
apiVersion: aegis.dev/v1alpha1
kind: AgentUpstream
metadata: {name: shop-http}
spec: {url: "http://127.0.0.1:%(port)d/mcp"}
---
apiVersion: aegis.dev/v1alpha1
kind: AgentPolicy
metadata: {name: shop}
spec:
  match: {servers: ["shop*"]}
  rules:
    - {name: read, effect: allow, tools: [read_query]}
    - name: never-drop
      effect: deny
      reason: Tables of the shop are never dropped.
      when: [{argument: $.query, operator: matches, value: '(?i)\b(drop|truncate)\s+(table|database)\b'}]
"""
FORBIDDEN, ALLOWED = "DROP TABLE orders", "SELECT 1"


def serve(log, port):
    """An MCP server whose one tool leaves a trace; on standard streams without a port."""
    from mcp.server import MCPServer

    server = MCPServer("shop")

    @server.tool()
    def read_query(query: str) -> str:
        trace(log, query)
        return "1 row"

    if port:
        server.run(transport="streamable-http", port=port)
    else:
        server.run(transport="stdio")


def trace(log, query):
    with open(log, "a") as file:
        file.write(query + "\n")


def free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


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


async def by_mcp(server):
    """A stock client's calls; what it was told of each."""
    from mcp import Client

    told = []
    async with Client(server) as client:
        for query in (FORBIDDEN, ALLOWED):
            try:
                result = await client.call_tool("read_query", {"query": query})
                told.append(" ".join(part.text for part in result.content if part.type == "text"))
            except Exception as error:  # Whatever form the refusal has, the model hears it.
                told.append(str(error))
    return told


def by_python(socket, log):
    from aegis_sdk import Aegis, AegisError, govern

    told = []
    with Aegis(socket) as aegis:

        def read_query(query):
            trace(log, query)
            return "1 row"

        read_query = govern(read_query, server="shop-python", client=aegis)
        for query in (FORBIDDEN, ALLOWED):
            try:
                told.append(read_query(query))
            except AegisError as error:
                told.append(str(error))
    return told


def by_typescript(node, socket, log):
    done = subprocess.run([node, HERE / "call.mjs", socket, log, FORBIDDEN, ALLOWED], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"call.mjs: {done.stderr}")
    return json.loads(done.stdout)


class Domain:
    def __init__(self, aegis, folder, port):
        self.aegis, self.folder = aegis, pathlib.Path(folder)
        (self.folder / "aegis.d").mkdir()
        (self.folder / "aegis.d" / "all.yaml").write_text(CONFIG % {"uid": os.getuid(), "port": port})
        self.state = self.folder / "state"
        os.environ.update(AEGIS_STATE=str(self.state), AEGIS_SOCKET=str(self.state / "control.sock"))
        self.daemon = subprocess.Popen(
            [aegis, "up", "--config", self.folder / "aegis.d", "--admin", "127.0.0.1:0"],
            stdout=subprocess.DEVNULL, stderr=open(self.folder / "daemon.log", "wb"))
        wait_until("the daemon answers", lambda: self.run("status", check=False).returncode == 0)

    def run(self, *arguments, check=True):
        done = subprocess.run([self.aegis, *arguments, "-o", "json"], capture_output=True, text=True)
        if check and done.returncode != 0:
            sys.exit(f"aegis {' '.join(arguments)}: {done.stderr}")
        return done

    def entries(self, kind):
        """What is recorded about the tool."""
        lines = self.run("audit", "query", "--kind", kind, "--limit", "100000").stdout.splitlines()
        entries = [json.loads(line)["entry"] for line in lines]
        return [entry for entry in entries if entry["action"].get("tool") == "read_query"]


def compare(domain, node, log):
    from mcp import StdioServerParameters

    address = next(u["address"] for u in json.loads(domain.run("status").stdout)["upstreams"] if u["name"] == "shop-http")
    wrapped = StdioServerParameters(
        command=domain.aegis, env=dict(os.environ),
        args=["wrap", "--server", "shop-stdio", "--", sys.executable, __file__, "--serve", str(log)])
    socket = str(domain.state / "kernel.sock")
    told = {
        "proxy": asyncio.run(by_mcp(address)),
        "wrap": asyncio.run(by_mcp(wrapped)),
        "python": by_python(socket, log),
        "typescript": by_typescript(node, socket, log),
    }
    for point, (refused, answered) in told.items():
        expect(f"{point}: the refusal gives the policy's reason", "Tables of the shop are never dropped." in refused, refused)
        expect(f"{point}: the allowed action is answered", answered == "1 row", answered)
    expect("the forbidden action had no effect, the allowed one had its own at each point",
           log.read_text().splitlines() == [ALLOWED] * len(told), log.read_text())
    wait_until("every outcome is recorded", lambda: len(domain.entries("outcome")) >= len(told))
    decisions = domain.entries("decision")
    expect("there are as many records as calls", len(decisions) == 2 * len(told), str(len(decisions)))
    refused = [entry for entry in decisions if entry["result"] == "deny"]
    verdicts = {(e["result"], e["reason"], json.dumps(e["policies"]), json.dumps(e["arguments"])) for e in refused}
    expect("each point gave one verdict, for one reason, by one policy", (len(refused), len(verdicts)) == (len(told), 1),
           str(verdicts))
    outcomes = domain.entries("outcome")
    allowed = {entry["decision_id"] for entry in decisions if entry["result"] == "allow"}
    expect("each allowed action has one outcome", len(outcomes) == len(told)
           and {(e["decision_id"], e["result"]) for e in outcomes} == {(id, "success") for id in allowed}, str(outcomes))


def measure(domain, node):
    """Microseconds of a question, and of a governed call with its report; one caller, the daemon's ledger durable."""
    from aegis_sdk import Aegis, govern

    with Aegis(str(domain.state / "kernel.sock")) as aegis:
        def timed(call, times=1000):
            samples = []
            for number in range(times + 100):
                start = time.perf_counter_ns()
                call(f"SELECT {number}")
                samples.append((time.perf_counter_ns() - start) / 1000)
            return sorted(samples[100:])

        governed = govern(lambda query: None, tool="read_query", server="shop-python", client=aegis)
        shown("python, question", timed(lambda query: aegis.evaluate("read_query", {"query": query}, server="shop-python")))
        shown("python, governed call", timed(governed))
    done = subprocess.run([node, HERE / "latency.mjs", domain.state / "kernel.sock"], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"latency.mjs: {done.stderr}")
    for name, samples in json.loads(done.stdout).items():
        shown(f"typescript, {name}", samples)


def shown(name, samples):
    at = lambda share: samples[min(len(samples) - 1, int(len(samples) * share))]
    print(f"measured: {name:28} p50 {at(0.50):6.0f} µs   p99 {at(0.99):6.0f} µs", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--aegis")
    parser.add_argument("--node")
    parser.add_argument("--serve", metavar="LOG")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    if options.serve:
        return serve(options.serve, options.port)
    with tempfile.TemporaryDirectory() as folder:
        port, log = free_port(), pathlib.Path(folder) / "effects"
        log.touch()
        server = subprocess.Popen(
            [sys.executable, __file__, "--serve", str(log), "--port", str(port)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        domain = Domain(options.aegis, folder, port)
        try:
            wait_until("the server listens", lambda: listens(port))
            compare(domain, options.node, log)
            measure(domain, options.node)
        finally:
            for process in (domain.daemon, server):
                process.send_signal(signal.SIGTERM)
                process.wait()


def listens(port):
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    main()
