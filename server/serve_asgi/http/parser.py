"""The narrow seam between an HTTP/1.1 connection and the library that reads its heads.

A parser is pure: it is given bytes and returns what they mean; it knows no socket, no clock and no application. It is
given only whole request heads (a head ends at the first CRLFCRLF); content with a Content-Length the connection counts
itself, and chunked content is `serve_asgi.http.chunked_body`'s for every parser. So no parser ever sees a byte that it
might have to give back, a half-sent head stays raw bytes that can travel to another worker, and the bytes after a
message are always known.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Protocol

from serve_asgi.http.request_head import Head


class Parser(Protocol):
    """Reads heads, one after another; nothing of one, valid or not, shows in the next."""

    def parse_head(self, data: bytes) -> Head:
        """Read one whole request head, from the request line up to and including CRLFCRLF. Raises BadRequest."""


def parser_factory(name: str) -> Callable[[], Parser]:
    """What makes the parsers of the option --http: "httptools", "h11", or "auto" (httptools where it is installed)."""
    if name == "auto":
        name = "h11" if importlib.util.find_spec("httptools") is None else "httptools"
    if name == "httptools":
        from serve_asgi.http.parser_httptools import HttptoolsParser

        return HttptoolsParser
    from serve_asgi.http.parser_h11 import H11Parser

    return H11Parser
