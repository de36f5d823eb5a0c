"""One visit of a stock MCP client to two governed servers.

Shows a call that passes, one that is refused before it reaches its server, and one that waits for
a human; then proves each of the three from the ledger, offline. Uses the official Python client
(`mcp`) as it is; everything about Aegis goes through the `aegis` command.
"""

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

parser = argparse.ArgumentParser()
parser.add_argument("--aegis", required=True)
parser.add_argument("--scratch", required=True)
parser.add_argument("--files", required=True)
parser.add_argument("--sqlite", required=True)
options = parser.parse_args()


def aegis(*arguments):
    """Runs the command and returns the JSON that it prints."""
    done = subprocess.run([options.aegis, *arguments, "-o", "json"], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"aegis {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def governed(name, command):
    arguments = ["wrap", "--server", name, "--", *command.split(" ")]
    return StdioServerParameters(command=options.aegis, args=arguments, env=dict(os.environ))


def text_of(result):
    return " ".join(part.text for part in result.content if part.type == "text").strip()


def newest_decision(tool):
    """The newest decision about a tool: (index, entry)."""
    found = json.loads(aegis("audit", "query", "--kind", "decision", "--tool", tool, "--limit", "1"))
    return found["index"], found["entry"]


def show(title, tool, answer, seen):
    index, entry = newest_decision(tool)
    seen.append(index)
    print(f"\n{title}")
    print(f"  verdict    {entry['result']}   reason {entry['reason']}   log index {index}")
    print(f"  answer     {answer[:110]}")


async def human(pending):
    """The human's side: sees the open approval and answers it."""
    while not pending.done():
        waiting = [a for a in json.loads(aegis("approvals", "list")) if a["state"] == "pending"]
        if waiting:
            one = waiting[0]
            print(f"\na sensitive call waits: approval {one['id']}: {one['tool']} {json.dumps(one['arguments'])}")
            if sys.stdin.isatty():
                answer = await asyncio.to_thread(input, "  approve it? [y/N] ")
            else:
                print("  there is no terminal to ask; answering y")
                answer = "y"
            verb = "approve" if answer.strip().lower() == "y" else "deny"
            await asyncio.to_thread(aegis, "approvals", verb, one["id"], "--comment", "asked by make up")
            return
        await asyncio.sleep(0.2)


async def visit():
    seen = []
    async with stdio_client(governed("files", options.files)) as streams, ClientSession(*streams) as files:
        await files.initialize()
        tools = [tool.name for tool in (await files.list_tools()).tools]
        print(f"files offers this agent {len(tools)} tools: {', '.join(tools)}")
        read = await files.call_tool("read_text_file", {"path": f"{options.scratch}/files/hello.txt"})
        show("an ordinary call passes: read_text_file", "read_text_file", text_of(read), seen)
    async with stdio_client(governed("shop", options.sqlite)) as streams, ClientSession(*streams) as shop:
        await shop.initialize()
        await shop.list_tools()
        drop = await shop.call_tool("write_query", {"query": "DROP TABLE orders"})
        show("a dangerous call is refused: DROP TABLE", "write_query", text_of(drop), seen)
        rows = await shop.call_tool("read_query", {"query": "SELECT count(*) AS n FROM orders"})
        print(f"  the table is still there: {text_of(rows)}")
        update = {"query": "UPDATE orders SET item = 'green tea' WHERE id = 1"}
        call = asyncio.ensure_future(shop.call_tool("write_query", update))
        await human(call)
        changed = await call
        show("and once decided, goes on: UPDATE", "write_query", text_of(changed), seen)
    return seen


def prove(seen):
    """Proves each decision against the log's key, without the daemon."""
    key = json.loads(aegis("status"))["ledger"]["verifier_key"]
    with tempfile.TemporaryDirectory() as folder:
        print("\nproofs, checked offline")
        for index in seen:
            proof = f"{folder}/{index}.tlog-proof"
            # A checkpoint is signed every second; the newest entries wait for the next one.
            deadline = time.monotonic() + 30
            while subprocess.run([options.aegis, "audit", "prove", str(index), "-O", proof], capture_output=True).returncode:
                if time.monotonic() > deadline:
                    sys.exit(f"entry {index} cannot be proven")
                time.sleep(0.2)
            subprocess.run([options.aegis, "audit", "check-proof", proof, "--key", key], check=True, capture_output=True)
            print(f"  entry {index}: included, {proof.rsplit('/', 1)[1]} verifies")
        for suffix in ("", "-wal", "-shm", ".redo0", ".redo1"):
            if os.path.exists(f"{options.scratch}/state/ledger.db{suffix}"):
                shutil.copy(f"{options.scratch}/state/ledger.db{suffix}", f"{folder}/copy.db{suffix}")
        subprocess.run([options.aegis, "audit", "verify", "--database", f"{folder}/copy.db", "--key", key], check=True, capture_output=True)
        print("  a copy of the whole ledger verifies")


prove(asyncio.run(visit()))
