"""The call of a WebSocket's application. It stays plain Python where the rest is compiled: a frame of its own is what
stack dumps and debuggers find the request by.
"""

from __future__ import annotations

from serve_asgi.ipc import forked_children as forks
from serve_asgi.logs.exceptions import is_from_outside
from serve_asgi.websocket.session import WebSocketSession


async def call_application(session: WebSocketSession) -> None:
    """Run the application to its end and see that the connection ends with it."""
    app, scope = session.begin()
    try:
        await app(scope, session.receive, session.send)
    except BaseException as error:
        forks.leave(error)
        if is_from_outside(error, session.task):  # the loop is closed, and this coroutine with it
            raise
        session.failed(error)
    else:
        session.returned()
