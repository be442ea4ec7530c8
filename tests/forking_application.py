"""An application that forks in every way there is; each child writes down what it holds and then waits to be ended.

`/WAY?FILE` has a child write to FILE.tmp, renamed to FILE once it is whole. With `FORKS_AT` it forks at `import`,
`startup` or `shutdown` as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

TELL = (
    "import json, os, sys, time\n"
    "file = sys.argv[1]\n"
    "links = {}\n"
    "for number in os.listdir('/proc/self/fd'):\n"
    "    try: links[number] = os.readlink('/proc/self/fd/' + number)\n"
    "    except OSError: pass\n"
    "signals = {}\n"
    "for line in open('/proc/self/status'):\n"
    "    if line[:6] in ('SigBlk', 'SigIgn', 'SigCgt'): signals[line[:6]] = int(line.split()[1], 16)\n"
    "told = {'pid': os.getpid(), 'descriptors': links, 'signals': signals}\n"
    "print('a child of', file, 'prints', flush=True)\n"
    "open(file + '.tmp', 'w').write(json.dumps(told))\n"
    "os.rename(file + '.tmp', file)\n"
    "while True:\n"
    "    time.sleep(0.2)\n"
    "    print(os.getpid(), 'lives', flush=True)\n"
)


def tell(file: str) -> None:
    """Be a child."""
    sys.argv[1:] = [file]
    exec(TELL, {})


def fork(file: str) -> None:
    """The plainest way."""
    if os.fork() == 0:
        tell(file)
        os._exit(0)


def double_fork(file: str) -> None:
    """A daemon's way."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        fork(file)
        os._exit(0)
    os.waitpid(pid, 0)


def forkpty(file: str) -> None:
    """With a terminal of its own."""
    pid, terminal = os.forkpty()
    if pid == 0:
        tell(file)
        os._exit(0)
    threading.Thread(target=os.read, args=(terminal, 100), daemon=True).start()


def process(method: str, daemon: bool = False) -> Callable[[str], None]:
    """By multiprocessing."""

    def start(file: str) -> None:
        context: Any = multiprocessing.get_context(method)
        context.Process(target=tell, args=(file,), daemon=daemon).start()

    return start


def popen(**options: Any) -> Callable[[str], None]:
    """By subprocess."""

    def start(file: str) -> None:
        KEPT.append(subprocess.Popen([sys.executable, "-c", TELL, file], **options))

    return start


def spawn(file: str) -> None:
    """Without any help by Python."""
    os.posix_spawn(sys.executable, [sys.executable, "-c", TELL, file], os.environ)


def nothing() -> None:
    """What preexec_fn calls."""


KEPT: list[Any] = []
WAYS: dict[str, Callable[[str], None]] = {
    "fork": fork,
    "double": double_fork,
    "forkpty": forkpty,
    "process": process("fork"),
    "daemon": process("fork", daemon=True),
    "spawn": process("spawn"),
    "forkserver": process("forkserver"),
    "popen": popen(),
    "popen-open": popen(close_fds=False),
    "popen-preexec": popen(preexec_fn=nothing, close_fds=False),
    "posix_spawn": spawn,
}


def unseen_fork() -> int:
    """As a C library forks, of which Python hears nothing."""
    library = ctypes.PyDLL(None)
    pid = int(library.fork())
    if pid == 0:
        library.sleep(600)
        library._exit(0)
    return pid


async def come_back(how: str) -> bytes:
    """Fork, and have the child come back to the server in one of the ways there are; its exit status."""
    if how.startswith("late-"):
        await asyncio.sleep(0.01)
    pid = os.fork()
    if pid == 0:
        match how.removeprefix("late-"):
            case "await":
                await asyncio.sleep(0)
            case "raise":
                raise ValueError("in the child")
            case "exit":
                sys.exit(7)
            case "loop":
                asyncio.run(asyncio.sleep(0.01))  # one of its own
        return b"of the child"
    _, status = await asyncio.to_thread(os.waitpid, pid, 0)
    return b"%d" % os.waitstatus_to_exitcode(status)


def come_back_in_thread() -> bytes:
    """The same in a thread, as a WSGI application or a synchronous view would."""
    pid = os.fork()
    if pid == 0:
        return b"of the child"
    return b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def terminated() -> bytes:
    """How a child that is terminated at once ends, ten times over."""
    codes = set()
    for _ in range(10):
        each = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
        each.start()
        each.terminate()
        each.join(20)
        codes.add(each.exitcode)
        each.kill()
    pool = multiprocessing.get_context("fork").Pool(2)
    pool.apply_async(time.sleep, (600,))
    pool.terminate()
    pool.join()
    return repr(codes).encode()


def inheritable() -> list[int]:
    """Descriptors that a program which this process executes would have."""
    found = []
    for number in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            if number > 2 and os.get_inheritable(number):
                found.append(number)
    return found


def end_unseen() -> None:
    """End the children of `unseen_fork`."""
    for each in KEPT:
        if isinstance(each, int):
            os.kill(each, signal.SIGKILL)
            os.waitpid(each, 0)


async def respond(send: Any, content: bytes, *, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": headers or []})
    await send({"type": "http.response.body", "body": content})


def at(moment: str) -> None:
    """Fork if this is the moment for it."""
    if os.environ.get("FORKS_AT") == moment:
        fork(os.environ["FORKS_FILE"])


at("import")


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        at("startup")
        await send({"type": "lifespan.startup.complete"})
        await receive()
        at("shutdown")
        await send({"type": "lifespan.shutdown.complete"})
        return
    way, file = scope["path"].strip("/"), scope["query_string"].decode()
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        WAYS[way](file) if way in WAYS else KEPT.append(unseen_fork())
        await send({"type": "websocket.close"})
        return
    if way == "back":
        await respond(send, await come_back(file))
    elif way == "back-in-thread":
        await respond(send, await asyncio.to_thread(come_back_in_thread))
    elif way == "terminated":
        await respond(send, await asyncio.to_thread(terminated))
    elif way == "pid":
        await respond(send, b"%d" % os.getpid())
    elif way == "own":
        await respond(send, json.dumps(inheritable()).encode())
    elif way == "cut" or way == "unseen":
        KEPT.append(unseen_fork())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        if way == "cut":
            raise ValueError("cut")
        await send({"type": "http.response.body", "body": b"two"})
    elif way == "unseen-fork":
        KEPT.append(unseen_fork())
        await respond(send, b"forked")
    elif way == "end":
        end_unseen()
        await respond(send, b"ended")
    elif file.startswith("thread:"):
        await asyncio.to_thread(WAYS[way], file.removeprefix("thread:"))
        await respond(send, b"forked")
    else:
        WAYS[way](file)
        await respond(send, b"forked")


def hook(event: object) -> None:
    """Fork, and end when the child has told."""
    file = os.environ["FORKS_FILE"]
    process("fork", daemon=True)(file)
    while not os.path.exists(file):
        time.sleep(0.02)


async def async_hook(event: object) -> None:
    """The same in an event loop."""
    await asyncio.to_thread(hook, event)


class Agent:
    """Forks while it is active, and at its end."""

    async def __aenter__(self) -> Agent:
        at("agent")
        return self

    async def __aexit__(self, *_: object) -> None:
        at("agent-end")
