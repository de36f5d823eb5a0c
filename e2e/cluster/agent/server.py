"""A real MCP server over Streamable HTTP, for a pod: the official Python SDK, three tools. It says on standard output
which of them were called, so that a test can see what reached it."""

from mcp.server import MCPServer
from mcp.server.transport_security import TransportSecuritySettings

server = MCPServer("notes")


@server.tool()
def read_note(name: str) -> str:
    """Read a note."""
    print(f"called read_note {name}", flush=True)
    return f"the note {name}"


@server.tool()
def write_note(name: str, text: str) -> str:
    """Write a note."""
    print(f"called write_note {name}", flush=True)
    return f"wrote {len(text)} characters to {name}"


@server.tool()
def delete_note(name: str) -> str:
    """Delete a note."""
    print(f"called delete_note {name}", flush=True)
    return f"deleted {name}"


# Who may call is for the sidecar to say; the server takes every Host.
server.run(
    "streamable-http",
    host="0.0.0.0",
    port=8080,
    transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
)
