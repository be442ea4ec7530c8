"""Small applications that the tests serve. `info` answers with who it is; each test may write its own beside it."""

INFO = """
import json, os

VERSION = {version!r}


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            event = await receive()
            await send({{"type": event["type"] + ".complete"}})
            if event["type"] == "lifespan.shutdown":
                return
    more = True
    body = b""
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            return
        body += event["body"]
        more = event["more_body"]
    told = {{"pid": os.getpid(), "version": VERSION, "path": scope["path"], "size": len(body)}}
    told |= {{k: v for k, v in scope["extensions"].get("serve", {{}}).items() if isinstance(v, int)}}
    data = json.dumps(told).encode()
    await send({{"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(data))]}})
    await send({{"type": "http.response.body", "body": data}})
"""


def info(version: str = "1") -> str:
    """The source of a module whose `app` answers every request with its PID, generation and `version`."""
    return INFO.format(version=version)
