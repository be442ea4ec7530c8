"""Nothing is left of a request or a connection: no memory that grows, and no cycle that waits for the collector."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable

import pytest

from serve_asgi.http.h2 import frames
from tests.http.http_server import echo
from tests.http2.http2_server import Http2Server
from tests.http2.two_workers import History

Serve = Callable[..., Http2Server]


def ask(history: History, count: int, manner: bytes, has_body: bool, resets: bool = False) -> None:
    """Ask for it so often, one after another."""
    client = history.client
    for _ in range(count):
        number = len(history.requests)
        path = b"/%d/%b" % (number, manner)
        stream_id = client.post(path, b"abc") if has_body else client.get(path)
        history.requests[stream_id] = number, "", b""
        if resets:
            client.reset(stream_id)
        for _ in range(2):
            history._deliver(everything=True)
            history.loop.settle()
            for waiting in list(history.application.waiting):
                history._release(waiting)
            history.loop.settle()
        history._read()
        assert resets or client.answers[stream_id].ended
    history.requests.clear()
    history.requests[0] = 0, "", b""
    client.answers.clear()
    client.frames.clear()
    history.log.clear()
    history.application.calls.clear()


def garbage_of(act: Callable[[], None]) -> Counter[str]:
    """The kinds of what only the collector would free, after this."""
    for _ in range(3):  # what other tests have left may have finalizers, which let go of more
        gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        act()
        gc.collect()
        return Counter(type(each).__name__ for each in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize("has_body", [False, True])
@pytest.mark.parametrize("manner", [b"now", b"wait", b"stream", b"deaf", b"late", b"large"])
def test_a_request_is_freed_without_the_collector(manner: bytes, has_body: bool) -> None:
    history = History(1)
    history.client.send(frames.settings_frame({4: 1 << 30}))
    ask(history, 5, manner, has_body)
    assert garbage_of(lambda: ask(history, 20, manner, has_body)) == {}
    assert history.connection.streams._handlers == {}
    history.close()


@pytest.mark.parametrize("manner", [b"now", b"wait", b"stream"])
def test_a_request_that_is_reset_is_freed_without_the_collector(manner: bytes) -> None:
    history = History(1)
    ask(history, 5, manner, True, resets=True)
    assert garbage_of(lambda: ask(history, 20, manner, True, resets=True)) == {}
    history.close()


def test_many_requests_leave_nothing_behind() -> None:
    history = History(1)
    ask(history, 200, b"now", True)
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(20):
        ask(history, 100, b"now", True)
    gc.collect()
    assert len(gc.get_objects()) - before < 50
    core = history.connection.core
    assert core.receiver.streams.by_id == {}
    assert core.receiver.streams.busy == set()
    assert len(core.receiver.streams.ended._reset) <= 256
    assert list(history.workers[0].numbered.values()) == [history.connection]
    history.close()


@pytest.mark.parametrize("end", ["close", "goaway", "fault", "request in progress"])
def test_a_connection_is_freed_without_the_collector(serve2: Serve, end: str) -> None:
    server = serve2(echo)

    def connect(count: int) -> None:
        for _ in range(count):
            client = server.client()
            client.wait(client.post(b"/", b"abc"))
            if end == "goaway":
                client.send(frames.go_away_frame(0, 0, ""))
                client.read_to_end()
            elif end == "fault":
                client.send(frames.frame(frames.PING, 0, 0, b"123"))
                client.read_to_end()
            elif end != "close":
                client.post(b"/")
                client.sync()
            client.close()
        server._clients.clear()
        server.until(lambda: not server.worker.connections and not server.worker.tasks)
        server.connections.clear()

    connect(3)
    found = garbage_of(lambda: connect(10))
    assert not {"CheckedHttp2Connection", "Exchange", "Request", "ConnectionCore", "FrameReceiver"} & found.keys()
    assert server.worker.numbered == {}
