"""WSGI applications, run in threads by a2wsgi (PEP 3333); ASGI 2 applications, called as ASGI 3.

It is a thin shell: a2wsgi passes messages between the loop and its threads. What PEP 3333 requires beyond that is here:
an input that reads like a file and does not take half a request for all of it, a `start_response` whose head is held
back until there is something to send, an environ with what the client sent, and an iterable that ends when the client
has gone. It must not know about workers or connections.
"""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote_to_bytes

from serve_asgi.errors import UsageError
from serve_asgi.http.dropped_messages import ClientDisconnected

if TYPE_CHECKING:
    from serve_asgi.http.worker_context import ASGIApplication, Message, Receive, Scope, Send

Environ = dict[str, Any]
ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]
Write = Callable[[bytes], object]

NO_CONTENT: Final = ("204", "304")
FRAMING: Final = frozenset(("content-length", "transfer-encoding"))
CALL: Final = "serve.wsgi"
"""The key in the scope under which the `_Call` passes through a2wsgi."""
NOT_FOR_WSGI: Final = b"proxy"
"""A request header of this name would become HTTP_PROXY, which programs use as their proxy (CVE-2016-5385)."""


def asgi_from_wsgi(application: Callable[..., Iterable[bytes]], threads: int) -> ASGIApplication:
    """The WSGI application as ASGI 3; at most `threads` of its calls run at a time.

    Raises UsageError if a2wsgi is not installed.
    """
    try:
        from a2wsgi import WSGIMiddleware
    except ImportError:
        raise UsageError("--interface wsgi needs the package a2wsgi: pip install 'serve-asgi[wsgi]'") from None
    middleware: Any = WSGIMiddleware  # its types are narrower than PEP 3333's
    bridge = middleware(_Wsgi(application), workers=threads)

    async def asgi(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # a2wsgi completes a lifespan and refuses a WebSocket
            await bridge(scope, receive, send)
            return
        call = _Call(receive, send)
        # Two names may become one in the environ: the one with a hyphen is meant, the other is an attack.
        headers = [(n, v) for n, v in scope["headers"] if b"_" not in n and n != NOT_FOR_WSGI]
        await bridge({**scope, "headers": headers, CALL: call}, receive, call.send)

    return asgi


def asgi_from_asgi2(application: Callable[[Scope], Any]) -> ASGIApplication:
    """An application of two calls (ASGI, "Legacy Applications") as one of a single call."""

    async def asgi(scope: Scope, receive: Receive, send: Send) -> None:
        await application(scope)(receive, send)

    return asgi


class _Call:
    """One request: what the loop and the thread share."""

    __slots__ = ("_send", "gone", "loop", "receive")

    def __init__(self, receive: Receive, send: Send) -> None:
        self.loop = asyncio.get_running_loop()
        self.receive = receive
        self._send = send
        self.gone = False
        """The client has left: written by the loop, read by the thread."""

    async def send(self, message: Message) -> None:
        """Send a message. It never raises if the client has left: a2wsgi's thread would wait forever for its queue."""
        try:
            await self._send(message)
        except ClientDisconnected:
            self.gone = True

    async def _receive(self) -> Message:
        return await self.receive()

    def wait_for_content(self) -> Message:
        """The next message, for the thread."""
        return asyncio.run_coroutine_threadsafe(self._receive(), self.loop).result()


class _Input(io.RawIOBase):
    """The request body as a file; read through a buffer."""

    def __init__(self, call: _Call) -> None:
        self._call = call
        self._rest = b""
        self._more = True

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Raises ConnectionError if the client left before the whole body had arrived."""
        while not self._rest and self._more:
            message = self._call.wait_for_content()
            if message["type"] == "http.disconnect":
                raise ConnectionError("the client has left before its request was whole")
            self._rest, self._more = message["body"], message["more_body"]
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


class _Response:
    """`start_response` and `write` of PEP 3333: the head may be replaced until the first byte is sent."""

    def __init__(self, start_response: Callable[[str, list[tuple[str, str]]], Write]) -> None:
        self._start_response = start_response
        self._head: tuple[str, list[tuple[str, str]]] | None = None
        self._write: Write | None = None
        self.length: int | None = None
        """Bytes of the body, if they are known before the head is sent."""

    def start(self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None) -> Write:
        """`start_response`. Raises the given error again if the head is sent; AssertionError for a second head."""
        if exc_info is not None:
            if self._write is not None:
                raise exc_info[1].with_traceback(exc_info[2])
        elif self._head is not None:
            raise AssertionError("start_response was called a second time without exc_info")
        self._head = (status if " " in status else status + " ", headers)
        return self.write

    def write(self, data: bytes) -> None:
        """The imperative way to send the body."""
        write = self.begin()
        if data:
            write(data)

    def begin(self) -> Write:
        """Send the head, if it has not been sent. Raises AssertionError if there is none."""
        if self._write is None:
            if self._head is None:
                raise AssertionError("the application sent content, or returned, without calling start_response")
            status, headers = self._head
            names = {name.strip().lower() for name, _ in headers}
            if self.length is not None and not names & FRAMING and status[:3] not in NO_CONTENT:
                headers = [*headers, ("Content-Length", str(self.length))]
            self._write = self._start_response(status, headers)
        return self._write


class _Wsgi:
    """The application as a2wsgi sees it."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self._application = application

    def __call__(self, environ: Environ, start_response: Callable[..., Write]) -> Iterator[bytes]:
        """Run in a thread. What it yields is sent; once nobody reads, the application is not asked for more."""
        call: _Call = environ["asgi.scope"].pop(CALL)
        _complete(environ, environ["asgi.scope"])
        environ["wsgi.input"] = io.BufferedReader(_Input(call), 65536)
        response = _Response(start_response)
        content = self._application(environ, response.start)
        try:
            single = _has_one_piece(content)
            for piece in content:
                if call.gone:
                    return
                if piece:
                    if single:  # PEP 3333, "Handling the Content-Length Header"
                        response.length = len(piece)
                    response.begin()
                    yield piece
            response.begin()
        finally:
            close = getattr(content, "close", None)
            if close is not None:
                close()


def _has_one_piece(content: Iterable[bytes]) -> bool:
    try:
        return len(content) == 1  # type: ignore[arg-type]
    except TypeError:
        return False


def _complete(environ: Environ, scope: Scope) -> None:
    """Set what a2wsgi leaves out or sets differently (PEP 3333, "environ Variables")."""
    script_name = scope["root_path"].encode().decode("latin-1")
    path = unquote_to_bytes(scope["raw_path"]).decode("latin-1")  # keeps bytes that are not UTF-8
    environ["PATH_INFO"] = path[len(script_name) :] if path.startswith(script_name) else path
    environ["wsgi.errors"] = sys.stderr
    environ["wsgi.input_terminated"] = True  # the input ends by itself, even without a CONTENT_LENGTH
    environ.setdefault("REMOTE_ADDR", "")  # a client on a unix socket has none
    server = scope["server"]
    if server is None or server[1] is None:
        host, _, port = environ.get("HTTP_HOST", "localhost").partition(":")
        environ["SERVER_NAME"] = host
        environ["SERVER_PORT"] = port or ("443" if scope["scheme"] == "https" else "80")
