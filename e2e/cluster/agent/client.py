"""A real MCP client in a pod: the official Python SDK as it is. It knows nothing of Aegis.

    client.py URL TOOL [JSON]           one call; prints `ok TEXT`, `refused TEXT` or `unreachable TEXT`
    client.py URL --mixed SECONDS       calls what is allowed and what is denied in turn; prints nothing
    client.py URL --load SECONDS        calls read_note until it works and prints `working`; then over and over, and prints
                                        how many worked, when the last did, and what failed
"""

import asyncio
import json
import sys
import time

from mcp import Client


async def call(url, tool, arguments):
    try:
        async with asyncio.timeout(20), Client(url) as client:
            result = await client.call_tool(tool, arguments)
            text = " ".join(part.text for part in result.content if part.type == "text")
            return ("refused" if result.is_error else "ok"), text
    except BaseExceptionGroup as group:
        return "unreachable", "; ".join(repr(one) for one in group.exceptions)
    except Exception as error:
        kind = "refused" if type(error).__name__ == "MCPError" else "unreachable"
        return kind, f"{type(error).__name__}: {error}"


async def load(url, seconds):
    worked, last, failed = 0, 0, {}
    patience = time.monotonic() + 60
    while (await call(url, "read_note", {"name": "load"}))[0] != "ok":
        if time.monotonic() > patience:
            break
    else:
        # The first one counts: what is changed from here on may stop the second.
        worked, last = 1, time.time()
        print("working", flush=True)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        kind, text = await call(url, "read_note", {"name": "load"})
        if kind == "ok":
            worked, last = worked + 1, time.time()
        else:
            failed[f"{kind} {text}"[:200]] = failed.get(f"{kind} {text}"[:200], 0) + 1
        await asyncio.sleep(0.05)
    print(json.dumps({"worked": worked, "last": last, "failed": failed}))


async def mixed(url, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for tool in ("read_note", "delete_note"):
            await call(url, tool, {"name": "mixed"})


def main():
    url, what, *rest = sys.argv[1:]
    if what == "--mixed":
        return asyncio.run(mixed(url, float(rest[0])))
    if what == "--load":
        asyncio.run(load(url, float(rest[0])))
    else:
        print(*asyncio.run(call(url, what, json.loads(rest[0]) if rest else {})))


main()
