"""A Model Context Protocol server over streamable HTTP: without sessions (`app`) and with them (`sessions`)."""

import os

import anyio
from mcp.server.mcpserver import Context, MCPServer

server = MCPServer("reloaded")


@server.tool()
async def pid() -> int:
    """Who answers."""
    return os.getpid()


@server.tool()
async def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
async def long(context: Context) -> str:
    """Report progress until the file `enough` is there: one answer as a stream of events."""
    step = 0
    while not os.path.exists("enough"):
        step += 1
        await context.report_progress(step, 1_000_000, f"step {step}")
        await anyio.sleep(0.02)
    return f"done by {os.getpid()} after {step}"


app = server.streamable_http_app(stateless_http=True)
