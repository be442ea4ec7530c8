"""A Model Context Protocol server whose clients listen for changes on one stream, which goes on in new code."""

import os

from mcp.server.mcpserver import Context, MCPServer

from serve_asgi import survive

server = MCPServer("surviving")


@server.tool()
async def change(context: Context, number: int) -> int:
    """Tell those who listen."""
    await context.notify_resource_updated(f"test://{number}")
    return os.getpid()


class Listening:
    """Asks in each life for what the client has asked in the first one, and keeps the acknowledgement from it."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        listens = scope["type"] == "http" and (b"mcp-method", b"subscriptions/listen") in scope["headers"]
        kept = survive(scope) if listens else None
        if kept is None:
            await self.app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if not kept.resumed:
            kept.state["body"] = body.decode()
        bodies = [kept.state["body"].encode()]
        acknowledged = not kept.resumed

        async def receive_again():
            return {"type": "http.request", "body": bodies.pop()} if bodies else await receive()

        async def send_on(message):
            nonlocal acknowledged
            if acknowledged or message["type"] != "http.response.body":
                await send(message)
            acknowledged = acknowledged or message["type"] == "http.response.body"

        await self.app(scope, receive_again, send_on)


app = Listening(server.streamable_http_app(stateless_http=True))
