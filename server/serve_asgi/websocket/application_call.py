"""The call of a WebSocket's application with its `receive` and `send`, which are `serve_asgi.websocket.session`'s.

It stays plain Python where the rest is compiled: a coroutine of Python's own costs an application that awaits it less
than a compiled one, and its frames are what stack dumps and debuggers find the request by.
"""

from __future__ import annotations

import asyncio

from serve_asgi.http.worker_context import Message, WorkerContext
from serve_asgi.ipc import forked_children as forks
from serve_asgi.logs.exceptions import is_from_outside
from serve_asgi.websocket.session import WebSocketSession


async def call_application(worker: WorkerContext, session: WebSocketSession) -> None:
    """Run the application to its end and see that the connection ends with it."""
    next_message, waiters, send_message = session.next_message, session.messages.waiters, session.send

    async def receive() -> Message:
        """ASGI `receive`: `websocket.connect`, then messages in order, then `websocket.disconnect` for ever."""
        while (message := next_message()) is None:  # `receive_queue.wait`, without a coroutine for each message
            waiter: asyncio.Future[None] = worker.loop.create_future()
            waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter in waiters:
                    waiters.remove(waiter)
                raise
        return message

    async def send(message: Message) -> None:
        """ASGI `send`. Returns when the transport is ready for more, and takes nothing before that from another task.

        Raises ClientDisconnected once the connection has ended; RuntimeError, TypeError or ValueError, with a
        sentence, for a message that is out of place or not as ASGI has it.
        """
        waits = send_message(message)
        if waits is not None:
            await waits

    try:
        await worker.app(session.scope(), receive, send)
    except BaseException as error:
        forks.leave(error)
        if is_from_outside(error, session.task):  # the loop is closed, and this coroutine with it
            raise
        session.failed(error)
    else:
        session.returned()
