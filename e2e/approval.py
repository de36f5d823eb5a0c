"""The test of approvals that counts.

A stock client calls a tool that needs a human, times out by its own clock and goes away; the daemon
is killed with -9 and started again; the approval arrives; the client retries. The side effect, a row
in somebody else's SQLite server, must happen exactly once, and a further retry must wait again.

    approval.py --aegis PATH --sqlite-server PATH
"""

import argparse
import asyncio
import json
import os
import pathlib
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

CONFIG = """
apiVersion: aegis.dev/v1alpha1
kind: AgentIdentity
metadata: {name: visitor}
spec: {sponsor: ada@acme.example, selector: {unix: {uid: %d}}}
---
apiVersion: aegis.dev/v1alpha1
kind: AgentPolicy
metadata: {name: shop}
spec:
  rules:
    - {name: change, effect: require_approval, tools: [write_query]}
    - {name: look, effect: allow, tools: [list_tables]}
"""
INSERT = {"query": "INSERT INTO orders (item) VALUES ('tea')"}


class Domain:
    """One daemon over a temporary folder, which can be killed and started again."""

    def __init__(self, aegis, folder):
        self.aegis, self.folder = aegis, pathlib.Path(folder)
        (self.folder / "aegis.d").mkdir()
        (self.folder / "aegis.d" / "all.yaml").write_text(CONFIG % os.getuid())
        os.environ["AEGIS_STATE"] = str(self.folder / "state")
        self.daemon = None

    def start(self):
        self.daemon = subprocess.Popen(
            [self.aegis, "up", "--config", str(self.folder / "aegis.d"), "--admin", "127.0.0.1:0"],
            stdout=subprocess.DEVNULL, stderr=open(self.folder / "daemon.log", "ab"))
        wait_until("the daemon answers", lambda: self.run("status", check=False).returncode == 0)

    def kill(self):
        self.daemon.send_signal(signal.SIGKILL)
        self.daemon.wait()

    def run(self, *arguments, check=True):
        done = subprocess.run([self.aegis, *arguments, "-o", "json"], capture_output=True, text=True)
        if check and done.returncode != 0:
            sys.exit(f"aegis {' '.join(arguments)}: {done.stderr}")
        return done

    def approvals(self, state):
        return [a for a in json.loads(self.run("approvals", "list").stdout) if a["state"] == state]


def wait_until(what, condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"timed out: {what}")
        time.sleep(0.1)


def expect(what, holds):
    if not holds:
        sys.exit(f"FAILED: {what}")
    print(f"ok: {what}", flush=True)


async def call(server, timeout):
    """One visit of the stock client; None if it timed out."""
    async with stdio_client(server) as streams, ClientSession(*streams) as session:
        await session.initialize()
        try:
            result = await session.call_tool("write_query", INSERT, read_timeout_seconds=timeout)
            return None if result.is_error else result
        except Exception as error:
            print(f"the client gave up: {error}", flush=True)
            return None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--aegis", required=True)
    parser.add_argument("--sqlite-server", required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        database = f"{folder}/shop.db"
        with sqlite3.connect(database) as shop:
            shop.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, item TEXT)")
        rows = lambda: sqlite3.connect(database).execute("SELECT count(*) FROM orders").fetchone()[0]
        domain = Domain(options.aegis, folder)
        domain.start()
        server = StdioServerParameters(
            command=options.aegis, env=dict(os.environ),
            args=["wrap", "--server", "shop", "--", options.sqlite_server, "--db-path", database])
        try:
            expect("the stock client times out while the call is held", asyncio.run(call(server, 3)) is None)
            waiting = domain.approvals("pending")
            expect("one approval is open", len(waiting) == 1)
            expect("nothing has happened", rows() == 0)
            domain.kill()
            domain.start()
            expect("the approval is still open after kill -9",
                   [a["id"] for a in domain.approvals("pending")] == [waiting[0]["id"]])
            domain.run("approvals", "approve", waiting[0]["id"], "--comment", "after the crash")
            expect("approving alone does nothing", rows() == 0)
            expect("the retry goes through", asyncio.run(call(server, 30)) is not None)
            expect("the side effect happened once", rows() == 1)
            expect("the approval is used up", [a["state"] for a in json.loads(domain.run("approvals", "list").stdout)] == ["consumed"])
            expect("a further retry waits again", asyncio.run(call(server, 3)) is None)
            expect("and has no effect", rows() == 1)
            fold = pathlib.Path(__file__).with_name("trust_fold.py")
            exported = subprocess.run([options.aegis, "audit", "export", "--jsonl"], capture_output=True, check=True).stdout
            folded = subprocess.run([sys.executable, fold], input=exported, capture_output=True, check=True).stdout
            told = {t["agent"]: {key: t[key] for key in ("a", "b", "score")}
                    for t in json.loads(domain.run("trust", "show").stdout)}
            expect(f"an independent fold of the exported entries gives the daemon's integers: {told}",
                   told == json.loads(folded) and told)
            domain.kill()
            ledger = f"{os.environ['AEGIS_STATE']}/ledger.db"
            expect("the ledger verifies after both kills", domain.run("audit", "verify", "--database", ledger).returncode == 0)
        finally:
            if domain.daemon.poll() is None:
                domain.kill()
    print("1 passed, 0 failed")


main()
