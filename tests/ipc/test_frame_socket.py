"""One end of a link as a socket: no frame is lost in silence, whatever the kernel says."""

from __future__ import annotations

import logging
import socket

import pytest

from serve_asgi.ipc import frame_socket as link_socket
from serve_asgi.ipc.channel import pair
from serve_asgi.ipc.frame_socket import FrameSocket
from serve_asgi.ipc.frames import MAX_FRAME


def _narrow() -> tuple[socket.socket, socket.socket]:
    """As where net.core.wmem_default is small."""
    ours, theirs = pair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 10_000)
    return ours, theirs


def test_the_largest_frame_passes_where_the_kernels_default_is_small() -> None:
    ours, theirs = _narrow()
    end = FrameSocket(ours)
    with theirs:
        theirs.settimeout(10)
        assert end.send(b"x" * MAX_FRAME)
        assert len(theirs.recv(MAX_FRAME + 1)) == MAX_FRAME
    end.close()


def test_a_frame_that_the_kernel_never_takes_is_told_and_holds_up_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(link_socket, "SEND_BUFFER", 10_000)  # as where net.core.wmem_max is small
    ours, theirs = _narrow()
    end = FrameSocket(ours)
    with theirs, caplog.at_level(logging.ERROR, "serve"):
        theirs.settimeout(10)
        assert end.send(b"x" * MAX_FRAME)
        assert end.send(b"later")
        assert theirs.recv(MAX_FRAME + 1) == b"later"
    (record,) = caplog.records
    assert "net.core.wmem_max" in record.message
    end.close()
