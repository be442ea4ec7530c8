"""Holds WebSockets open on which nothing happens: `python -m loadtest.surviving_holder PORT COUNT PATH [return]`.

PATH has `{id}` where the number of the connection belongs; the application's first message says that it stands. Once
all stand it prints a line. Then it obeys its stdin: `check` sends a message on each and prints what came of it, as one
line of JSON; `events` prints when connections were opened and ended; at its end it leaves. With `return` a client whose
connection has ended opens another one at once, as many do. It is a process of its own, so that client and server each
have their own open-files limit.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import resource
import sys
import time
from collections import Counter
from typing import cast

import uvloop

PER_ADDRESS = 10_000
"""Connections from one source address: there are some 28,000 ports for each."""
AT_ONCE = 50
"""Handshakes that are under way at the same time while the connections are opened."""
PATIENCE = 60.0
AGAIN = 0.05
"""Seconds until a client whose attempt was refused tries again."""
MASK = bytes(4)
"""A mask that changes nothing (RFC 6455 5.3 asks for an unpredictable one, which is of no matter here)."""
TEXT, CLOSE, PING, PONG = 1, 8, 9, 10


def frame(opcode: int, data: bytes) -> bytes:
    """One masked frame of at most 125 bytes."""
    return bytes((0x80 | opcode, 0x80 | len(data))) + MASK + data


class Held(asyncio.Protocol):
    """One connection."""

    def __init__(self, holder: Holder, number: int) -> None:
        self._holder = holder
        self._number = number
        self._data = b""
        self._upgraded = False
        self._transport: asyncio.Transport
        self.stands: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        """True when its first message has come, False if it has ended before."""
        self.answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """The second message; empty if it has ended before."""

    def ask(self) -> None:
        """Send a message, which the application answers."""
        text = f"1 {self._number} 0 0 " if self._holder.survives else f"{self._number} x"
        self._transport.write(frame(TEXT, text.encode()))

    # what the loop does

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        key = base64.b64encode(os.urandom(16)).decode()
        self._transport.write(
            f"GET {self._holder.path.format(id=self._number)} HTTP/1.1\r\nhost: loadtest\r\nupgrade: websocket\r\n"
            f"connection: upgrade\r\nsec-websocket-key: {key}\r\nsec-websocket-version: 13\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self._upgraded:
            head, end, rest = self._data.partition(b"\r\n\r\n")
            if not end:
                return
            if b" 101 " not in head:
                self._transport.close()
                return
            self._upgraded, self._data = True, rest
        while len(self._data) >= 2:
            opcode, size, begin = self._data[0] & 15, self._data[1] & 127, 2
            if size == 126:
                begin, size = 4, int.from_bytes(self._data[2:4])
            if len(self._data) < begin + size:
                return
            content, self._data = self._data[begin : begin + size], self._data[begin + size :]
            self._frame(opcode, content)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.stands.done() and self.stands.result():
            self._holder.ended(self)
        for future, value in ((self.stands, False), (self.answer, "")):
            if not future.done():
                cast("asyncio.Future[object]", future).set_result(value)

    def _frame(self, opcode: int, content: bytes) -> None:
        if opcode == PING:
            self._transport.write(frame(PONG, content))
        elif opcode == CLOSE:
            self._transport.write(frame(CLOSE, content[:2]))
            self._transport.close()
        elif opcode == TEXT and not self.stands.done():
            self.stands.set_result(True)
            self._holder.opened(self)
        elif opcode == TEXT and not self.answer.done():
            self.answer.set_result(content.decode())


class Holder:
    """All of them."""

    def __init__(self, port: int, count: int, path: str, *, returns: bool) -> None:
        self.path = path
        self.survives = path.startswith("/surviving")
        self._port = port
        self._count = count
        self._returns = returns
        self._held: set[Held] = set()
        self._numbers = 0
        self._leaving = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.events: list[tuple[float, int]] = []
        """When (monotonic, s) a connection stood (1), ended (-1), or was asked for anew (0)."""

    async def open(self) -> None:
        """Open all. Raises SystemExit if one does not come to stand."""
        free = asyncio.Semaphore(AT_ONCE)

        async def one() -> bool:
            async with free:
                return await self._connect()

        if not all(await asyncio.gather(*(one() for _ in range(self._count)))):
            sys.exit("not all connections could be opened")

    async def check(self) -> dict[str, object]:
        """Which connections still stand, and what lives they have had."""
        before = len(self._held)
        asked = list(self._held)
        for each in asked:
            each.ask()
        if asked:
            await asyncio.wait([each.answer for each in asked], timeout=PATIENCE)
        answers = [each.answer.result() for each in asked if each.answer.done() and each.answer.result()]
        lives = Counter(answer.split(" ")[5] if self.survives else "1" for answer in answers)
        return {"held": before, "answered": len(answers), "lives": dict(lives)}

    def opened(self, held: Held) -> None:
        """It stands."""
        self._held.add(held)
        self.events.append((time.monotonic(), 1))

    def ended(self, held: Held) -> None:
        """The server has ended it."""
        self._held.discard(held)
        self.events.append((time.monotonic(), -1))
        if self._returns and not self._leaving:
            task = asyncio.ensure_future(self._come_back())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def leave(self) -> None:
        """No client comes back any more."""
        self._leaving = True

    async def _come_back(self) -> None:
        while not self._leaving:
            self.events.append((time.monotonic(), 0))
            if await self._connect():
                return
            await asyncio.sleep(AGAIN)

    async def _connect(self) -> bool:
        self._numbers += 1
        number = self._numbers
        source = f"127.0.0.{2 + number // PER_ADDRESS % 200}"
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(PATIENCE):
                _, held = await loop.create_connection(
                    lambda: Held(self, number), "127.0.0.1", self._port, local_addr=(source, 0)
                )
                return await held.stands
        except (OSError, TimeoutError):
            return False


async def main(port: int, count: int, path: str, *, returns: bool) -> None:
    """Open them, and obey."""
    holder = Holder(port, count, path, returns=returns)
    await holder.open()
    print(f"{count} connections are held", flush=True)
    loop = asyncio.get_running_loop()
    while command := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
        print(json.dumps(await holder.check() if command == "check" else holder.events), flush=True)
    holder.leave()


if __name__ == "__main__":
    port_, count_, path_, *rest = sys.argv[1:]
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(int(port_), int(count_), path_, returns=rest == ["return"]))
