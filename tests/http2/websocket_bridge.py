"""Lets a client that speaks WebSockets over HTTP/1.1 reach a server over HTTP/2 (RFC 8441), byte for byte.

What a test says and asserts over HTTP/1.1 holds over HTTP/2 as well, with this in between: each connection of a client
becomes one stream of a connection of its own, by the library h2. It passes on what each side sends and how it ends, and
takes from either no more than the other has taken: back-pressure reaches through it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import http
import socket
import ssl
import struct
import threading
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    Event,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.settings import SettingCodes

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 1.3
OF_HTTP1 = frozenset(("host", "connection", "upgrade", "sec-websocket-key"))
GOAWAY = 7
TIMEOUT = 10.0


class WebSocketBridge:
    """Listens on `port`, in a thread with a loop of its own, until `stop`."""

    def __init__(self, server: int, secure: ssl.SSLContext | None = None) -> None:
        """`server` is the port of the server; `secure` is for one that speaks TLS, and offers h2 alone."""
        self._server_port = server
        self._secure = secure
        self.port = 0
        self._loop: asyncio.AbstractEventLoop
        self._stopping: asyncio.Event
        self._tasks: set[asyncio.Task[None]] = set()
        self._transports: list[asyncio.WriteTransport] = []
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._listen()))
        self._thread.start()
        assert self._started.wait(TIMEOUT)

    async def _listen(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        listening = await asyncio.start_server(self._connected, "127.0.0.1", 0, limit=4096)
        self.port = listening.sockets[0].getsockname()[1]
        self._started.set()
        await self._stopping.wait()
        listening.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for transport in self._transports:
            transport.abort()
        await asyncio.sleep(0.01)  # they are told in turns of the loop

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(ConnectionError):
                name = None if self._secure is None else "localhost"
                to_server = await asyncio.open_connection(
                    "127.0.0.1", self._server_port, limit=4096, ssl=self._secure, server_hostname=name
                )
                self._transports += [writer.transport, to_server[1].transport]
                await _Bridged((reader, writer), to_server).run()
        finally:
            self._tasks.discard(task)

    def stop(self) -> None:
        """End, and all connections with it."""

        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()


Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Bridged:
    """One connection of a client, and its stream."""

    def __init__(self, client: Ends, server: Ends) -> None:
        self.from_client, self.to_client = client
        self.from_server, self.to_server = server
        self.to_client.transport.set_write_buffer_limits(0)  # `drain` returns when the kernel has all
        self.http2 = H2Connection(
            H2Configuration(client_side=True, header_encoding="utf-8", validate_inbound_headers=False)
        )
        self.stream_id = 1
        self.accept = b""
        self.unread = b""
        self.ready = asyncio.Event()
        self.widened = asyncio.Event()
        self.client_ended = self.over = False
        self.events: asyncio.Queue[Event | None] = asyncio.Queue()

    async def run(self) -> None:
        self.http2.initiate_connection()
        await self.flush()
        tasks = [asyncio.create_task(each) for each in (self.read_server(), self.answer_client(), self.read_client())]
        try:
            await tasks[1]
        finally:
            for task in tasks:
                task.cancel()
            self.to_server.close()
            self.to_client.close()

    async def flush(self) -> None:
        if data := self.http2.data_to_send():
            self.to_server.write(data)
            await self.to_server.drain()

    async def read_server(self) -> None:
        """What the server sends goes to whoever waits for it."""
        with contextlib.suppress(ConnectionError):
            while frames := await self.read_frames():
                for event in self.http2.receive_data(frames):
                    if isinstance(event, RemoteSettingsChanged):
                        assert event.changed_settings[SettingCodes.ENABLE_CONNECT_PROTOCOL].new_value == 1
                        self.ready.set()
                    if isinstance(event, (RemoteSettingsChanged, WindowUpdated)):
                        self.widened.set()
                    if isinstance(event, StreamReset) and event.error_code != ErrorCodes.NO_ERROR:
                        self.reset_client()  # also where it does not take what came before
                    self.events.put_nowait(event)
                await self.flush()
        self.over = True
        self.events.put_nowait(None)

    async def read_frames(self) -> bytes:
        """Some whole frames; without GOAWAY, behind which the library would take and send nothing any more."""
        while data := await self.from_server.read(65536):
            self.unread += data
            frames = []
            while len(self.unread) >= 9 and len(self.unread) >= (end := 9 + int.from_bytes(self.unread[:3], "big")):
                if self.unread[3] != GOAWAY:
                    frames.append(self.unread[:end])
                self.unread = self.unread[end:]
            if frames:
                return b"".join(frames)
        return b""

    async def read_client(self) -> None:
        """The client's request becomes the stream's, and what follows is its DATA."""
        try:
            head = await self.from_client.readuntil(b"\r\n\r\n")
            await self.ready.wait()
            self.http2.send_headers(self.stream_id, self.request(head.decode()))
            await self.flush()
            while data := await self.from_client.read(16384):
                while data:
                    room = self.http2.local_flow_control_window(self.stream_id)
                    if room:
                        self.http2.send_data(self.stream_id, data[:room])
                        data = data[room:]
                        await self.flush()
                    else:
                        self.widened.clear()
                        await self.widened.wait()
            self.http2.end_stream(self.stream_id)
        except asyncio.IncompleteReadError:
            return
        except ConnectionResetError:
            self.http2.reset_stream(self.stream_id, ErrorCodes.CANCEL)
            self.over = True
        await self.flush()
        self.events.put_nowait(None)

    def request(self, head: str) -> list[tuple[str, str]]:
        line, *lines = head.split("\r\n")[:-2]
        fields = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        given = dict(fields)
        key = given.get("sec-websocket-key", "").encode()
        self.accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
        pseudo = [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http")]
        pseudo += [(":path", line.split(" ")[1]), (":authority", given["host"])]
        return pseudo + [field for field in fields if field[0] not in OF_HTTP1]

    async def answer_client(self) -> None:
        """The response becomes one of HTTP/1.1, and what follows is passed on; the client's window grows by that."""
        ended = False
        try:
            while True:
                event = await self.events.get()
                if event is None:
                    if ended or self.over:
                        break
                    self.client_ended = True
                if isinstance(event, ResponseReceived):
                    self.to_client.write(self.response(event.headers))
                elif isinstance(event, DataReceived):
                    self.to_client.write(event.data)
                    await self.to_client.drain()
                    with contextlib.suppress(Exception):  # the stream may have ended meanwhile
                        self.http2.acknowledge_received_data(event.flow_controlled_length, self.stream_id)
                    await self.flush()
                elif isinstance(event, StreamEnded):
                    ended = True
                    if self.client_ended:
                        break
                    with contextlib.suppress(OSError):  # it may be gone
                        self.to_client.write_eof()
                elif isinstance(event, StreamReset):
                    break
        except ConnectionError:
            with contextlib.suppress(Exception):
                self.http2.reset_stream(self.stream_id, ErrorCodes.CANCEL)
                await self.flush()
            return
        if not ended:
            self.reset_client()

    def reset_client(self) -> None:
        if not self.to_client.is_closing():
            raw: socket.socket = self.to_client.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.to_client.transport.abort()

    def response(self, fields: Any) -> bytes:
        given = dict(fields)
        status = int(given[":status"])
        lines = [b"%b: %b" % (name.encode(), value.encode()) for name, value in fields if not name.startswith(":")]
        if status == 200 and "content-length" not in given:
            lines = [b"upgrade: websocket", b"connection: Upgrade", b"sec-websocket-accept: " + self.accept, *lines]
            status = 101
        else:
            lines.append(b"connection: close")
        line = b"HTTP/1.1 %d %b" % (status, http.HTTPStatus(status).phrase.encode())
        return b"\r\n".join([line, *lines, b"", b""])
