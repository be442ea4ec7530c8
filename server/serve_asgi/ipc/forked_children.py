"""Makes a process that the application forks give up everything that makes its parent a worker or an agent.

A child of fork(2) has a copy of everything: the listening sockets, which keep the port from the next server; clients'
connections, which stay open for their clients; the channel, whose end is how others notice a death; signal handlers
that ignore SIGTERM; and the stack of our event loop, to which it returns unless its code exits. So it gives all of that
up before `os.fork` returns in it (os.register_at_fork), whichever code forks, in whatever thread, at whatever time.

Rules. Descriptors that are open when the application's first code runs are ours, except those that this process was
started with (`claim`); owners of later ones register (`own`). A descriptor is not closed but replaced by one on which
everything fails as on a closed one (O_PATH, open(2)): its number stays taken, so that whatever still knows it, such as
the finaliser of a socket, cannot hit a file of the child's. Only this process's table is touched: no shutdown(2), no
epoll_ctl(2), which would affect the parent. Signals are blocked during the fork, so that none is lost between the
parent's handlers and the child's defaults.

A fork that bypasses Python (in a C library) goes unnoticed. New programs (subprocess, posix_spawn, the methods spawn
and forkserver of multiprocessing) inherit nothing, since all our descriptors are close-on-exec.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import gc
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any, Final, NoReturn

from serve_asgi.logs.server_log import about

HIGHEST: Final = 4096
"""Without /proc, descriptors below this number are tried."""
EPOLL: Final = "anon_inode:[eventpoll]"
"""What /proc shows of an epoll descriptor (proc_pid_fd(5))."""
STANDARD: Final = 3
"""Descriptors below this number are stdin, stdout and stderr."""

log = logging.getLogger("serve")

Identity = tuple[int, int]
"""An open file's st_dev and st_ino (stat(3type))."""


class _ForkState:
    """What a forked child must give up."""

    def __init__(self) -> None:
        self.registered = False
        self.foreign: frozenset[int] = frozenset()
        self.claimed: dict[int, Identity] = {}
        self.owners: list[Callable[[], Iterable[int]]] = []
        self.farewells: list[Callable[[], object]] = []
        self.handlers: dict[int, tuple[Any, Any]] = {}
        self.epolls: set[int] = set()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.loop_thread = 0
        self.forked = False
        self.expected = False
        """The next fork makes a worker, not a child of the application's."""


_state: Final = _ForkState()
_blocked: Final = threading.local()


def begin(own: Iterable[int] = ()) -> None:
    """At the start of a process that will run the application: open descriptors are not ours, except `own`.

    A worker that was forked from a template starts here as well, and has nothing of what the template had registered
    but the signal handlers.
    """
    if sys.platform != "linux":
        raise NotImplementedError
    _state.foreign = frozenset(_open_descriptors()) - set(own)
    _state.claimed, _state.owners, _state.farewells, _state.epolls = {}, [], [], set()
    _state.loop, _state.expected = None, False
    if not _state.registered:
        _state.registered = True
        os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=_in_child)


def handles(number: int, handler: Any, before: Any) -> None:
    """Declare a signal handler as ours; a child gets `before` instead, unless the application has set its own."""
    _state.handlers[number] = (handler, before)


def expect() -> None:
    """The next fork of this process makes a worker, which keeps what it has (`serve_asgi.template_process`)."""
    _state.expected = True


def claim(loop: asyncio.AbstractEventLoop | None) -> None:
    """Before the application's first code runs: descriptors opened since `begin` are ours, and so is `loop`."""
    claim_opened_since(_state.foreign)
    _state.loop, _state.loop_thread = loop, threading.get_ident()


def claim_opened_since(before: Iterable[int]) -> None:
    """Descriptors are ours that are open now and are not among those `before`: the loop has just opened them."""
    for number in set(_open_descriptors()).difference(before):
        if number >= STANDARD and (identity := _identity(number)) is not None:
            _state.claimed[number] = identity
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/self/fd/{number}") == EPOLL:
                    _state.epolls.add(number)


def open_descriptors() -> frozenset[int]:
    """The descriptors of this process that are open now."""
    return frozenset(_open_descriptors())


def own(descriptors: Callable[[], Iterable[int]]) -> None:
    """Register `descriptors`, which returns further descriptors of ours when called in a child."""
    _state.owners.append(descriptors)


def in_child(do: Callable[[], object]) -> None:
    """Register a call in a child, before the descriptors are given up."""
    _state.farewells.append(do)


def forked() -> bool:
    """Whether this process is a fork of one that was a worker or an agent."""
    return _state.forked


class Ended:
    """Stands for loop and transports in a child: any use means that the child has returned to our code."""

    kept: object = None
    """What it stands for, so that no finaliser runs."""

    def __getattr__(self, name: str) -> Any:
        come_back()


def come_back(*_: object, **__: object) -> NoReturn:
    """End a child whose code has returned, or raised, into the server's: the request and the loop are the parent's."""
    leave(sys.exception())
    text = "a process that the application forked returned to the server's code and is ended; end it with os._exit()"
    try:
        log.warning(text, extra=about("forked_process_ended"))
    finally:
        _exit(1)


def leave(error: BaseException | None) -> None:
    """If this is a child whose code has raised SystemExit, exit accordingly, without its parent's exit handlers."""
    if _state.forked and isinstance(error, SystemExit):
        if error.code is not None and not isinstance(error.code, int):
            print(error.code, file=sys.stderr)
            _exit(1)
        _exit(error.code or 0)


def _exit(status: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)


# At a fork


def _block() -> None:
    if sys.platform != "linux":
        raise NotImplementedError
    numbers = _state.handlers.keys()
    _blocked.mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers) if numbers else None


def _unblock() -> None:
    if sys.platform != "linux":
        raise NotImplementedError
    if (mask := getattr(_blocked, "mask", None)) is not None:
        _blocked.mask = None
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _in_child() -> None:
    state = _state
    if state.expected:
        _unblock()
        return
    steps: list[Callable[[], object]] = [_reset_signals]
    if not state.forked:
        state.forked = True
        steps += [_leave_loop, *state.farewells, _give_up]
    for step in steps:
        try:
            step()
        except Exception:  # the others still have to run
            sys.excepthook(*sys.exc_info())
    state.owners, state.farewells, state.claimed = [], [], {}
    _unblock()


def _reset_signals() -> None:
    """Reset our handlers, and those of the parent's event loop, which would swallow the child's signals."""
    if sys.platform != "linux":
        raise NotImplementedError
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        present = signal.getsignal(number)
        ours, before = _state.handlers.get(number, (None, None))
        if present is not None and (present is ours or _is_loops(present)):
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, usual if before is None else before)
    if signal.getsignal(signal.SIGCHLD) is None:  # libuv's handler, which writes to a pipe of the parent's
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _leave_loop() -> None:
    """End the child if it would continue the loop, before any other callback or task runs a second time."""
    loop: Any = _state.loop
    if loop is None:
        return
    if threading.get_ident() == _state.loop_thread:
        # The queue of callbacks, which one of the loops does not expose. The loop is iterating over its length while
        # this runs: so the length must not change.
        ready = getattr(loop, "_ready", None)
        if ready is None:
            ready = next((each for each in gc.get_referents(loop) if isinstance(each, collections.deque)), None)
        loop.call_soon(come_back)
        if ready is not None:
            handle, waiting = ready.pop(), len(ready)
            ready.clear()
            ready.extend([handle] * (waiting + 1))
    for name in ("run_forever", "run_until_complete", "call_soon_threadsafe"):
        setattr(loop, name, come_back)


def _give_up() -> None:
    if sys.platform != "linux":
        raise NotImplementedError
    state = _state
    numbers = {number for number, identity in state.claimed.items() if _identity(number) == identity}
    for descriptors in state.owners:
        with contextlib.suppress(Exception):
            numbers.update(descriptors())
    if sys.version_info < (3, 13):
        numbers |= _memory()
    numbers = {number for number in numbers if number >= STANDARD}
    for number in numbers & state.epolls:  # the loop may poll them once more before it reaches our callback
        with contextlib.suppress(OSError), select.epoll() as empty:
            os.dup2(empty.fileno(), number, inheritable=False)
            numbers.discard(number)
    if not numbers:
        return
    spare = numbers.pop()
    os.close(spare)  # so that there is room for the next one, even at the limit of open files
    placeholder = os.open("/", os.O_PATH | os.O_CLOEXEC)
    if placeholder != spare:
        numbers.add(spare)
    for number in numbers:
        if number != placeholder:
            os.dup2(placeholder, number, inheritable=False)
    if placeholder != spare:
        os.close(placeholder)


def _is_loops(handler: Any) -> bool:
    """Whether a signal handler belongs to an event loop, or to its runner."""
    if isinstance(handler, functools.partial):  # asyncio.Runner's handler of SIGINT
        handler = handler.func
    of = getattr(handler, "__self__", None)
    name = getattr(handler, "__qualname__", "")
    return isinstance(of, (asyncio.AbstractEventLoop, asyncio.Runner)) or name == "_sighandler_noop"


def _open_descriptors() -> list[int]:
    try:
        numbers: Iterable[int] = map(int, os.listdir("/proc/self/fd"))
    except OSError:
        numbers = range(HIGHEST)
    return [number for number in numbers if _identity(number) is not None]  # without the directory's own


def _memory() -> set[int]:
    """The descriptors of our shared memory: mmap.mmap does not expose the numbers of those that it holds."""
    found = set()
    for number in _open_descriptors():
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{number}").startswith("/memfd:serve-"):
                found.add(number)
    return found


def _identity(number: int) -> Identity | None:
    """The identity of the open file; None if the descriptor is not open."""
    try:
        status = os.fstat(number)
    except OSError:
        return None
    return status.st_dev, status.st_ino
