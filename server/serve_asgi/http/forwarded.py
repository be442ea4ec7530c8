"""What proxies say of a request in its head: the client's address, its scheme, its host, and the path in front.

It owns the networks that are trusted, the reading of X-Forwarded-For, -Proto, -Host and -Prefix and of Forwarded (RFC
7239), and what becomes of a scope. Rules:

- Only what a trusted peer sends is looked at, and only the fields that the operator has named: a proxy passes the
  others through as the client wrote them.
- A list is read from its right end, where the nearest proxy has written. An address is believed if all those to its
  right are trusted; what lies to the left of the first that is not, anybody may have written.
- A value that is not valid counts as absent; it never refuses a request.

It is pure but for a line in the debug log. It must not know connections or requests in progress.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

from serve_asgi.config.trusted_proxies import (
    FORWARDED,
    KEPT_NODES,
    X_FOR,
    X_HOST,
    X_PREFIX,
    X_PROTO,
    TrustedNetworks,
    believed,
    plain,
)
from serve_asgi.http.request_head import is_authority, mentions
from serve_asgi.ipc.peer_address import Address
from serve_asgi.logs.server_log import about

MAX_NODE: Final = 64
"""Bytes of an address with its port; a longer one is none."""
MAX_PREFIX: Final = 1024
"""Bytes of a path in front; a longer one is ignored."""

_SECURE: Final = {b"http": False, b"ws": False, b"https": True, b"wss": True}

# RFC 7239 6: an IPv6 address stands in brackets, a port may be obfuscated. X-Forwarded-For has no grammar; there, an
# IPv6 address also comes without brackets, and then without a port.
_NODE: Final = re.compile(rb"(?:\[([0-9A-Fa-f:.]{2,45})\]|([0-9]{1,3}(?:\.[0-9]{1,3}){3}))(?::([0-9]{1,5}|_[\w.\-]+))?")
_BARE_IPV6: Final = re.compile(rb"[0-9A-Fa-f:.]{2,45}")

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_QUOTED: Final = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
_PAIR: Final = rb"(" + _TOKEN + rb")=(" + _TOKEN + rb"|" + _QUOTED + rb")"
_PAIRS: Final = re.compile(_PAIR)
# Nothing matches in two ways, so that no text takes more than linear time; groups are not possessive: see chunked_body.
# White space around semicolons is not in the grammar but seen.
_ELEMENT: Final = re.compile(rb"[ \t]*+(?:" + _PAIR + rb")?(?:[ \t]*+;[ \t]*+(?:" + _PAIR + rb")?)*[ \t]*+")
_ESCAPE: Final = re.compile(rb"\\(.)", re.DOTALL)

# RFC 3986 3.3 without the comma, which separates the values of a list.
_PREFIX: Final = re.compile(rb"(?:/(?:[A-Za-z0-9\-._~!$&'()*+;=:@]|%[0-9A-Fa-f]{2})+)*/?")
_UNFIT: Final = re.compile(r"[\x00-\x1f\x7f\\]|//|/\.\.?(?:/|\Z)")

_log: Final = logging.getLogger("serve.error")
_IGNORED: Final = about("forwarded_ignored")


class Node(NamedTuple):
    """An address in a header."""

    address: tuple[str, int]
    """Port 0 where none is given."""
    trusted: bool


class Forwarded(NamedTuple):
    """What the trusted proxies say of a request."""

    client: Address
    secure: bool | None
    """Whether the client's side is encrypted: https, wss. None where nobody says so."""
    host: bytes
    """In place of the Host field; empty where nobody says so."""
    prefix: bytes
    """The path, percent-encoded, that a proxy has taken off the front of the target; empty for none."""

    def apply(self, scope: dict[str, Any]) -> None:
        """Make the scope of a request (ASGI www) tell what the client has asked for.

        The Host field is replaced, since that is what frameworks make addresses of; the fields that said so stay.
        """
        scope["client"] = self.client
        if self.secure is not None:
            scheme = "ws" if scope["type"] == "websocket" else "http"
            scope["scheme"] = scheme + "s" if self.secure else scheme
        if self.host:
            scope["headers"] = with_host(scope["headers"], self.host)
        if self.prefix:
            self._put_in_front(scope)

    def _put_in_front(self, scope: dict[str, Any]) -> None:
        """`root_path` becomes the prefix and --root-path; a prefix that ends with --root-path has it in it."""
        root_path, prefix = scope["root_path"], unquote(self.prefix.decode())
        if root_path and (prefix == root_path or prefix.endswith(root_path)):
            scope["path"] = prefix + scope["path"].removeprefix(root_path)
            scope["raw_path"] = self.prefix + scope["raw_path"].removeprefix(root_path.encode())
            scope["root_path"] = prefix
        else:
            scope["path"] = prefix + scope["path"]
            scope["raw_path"] = self.prefix + scope["raw_path"]
            scope["root_path"] = prefix + root_path


def with_host(headers: Iterable[tuple[bytes, bytes]], host: bytes) -> list[tuple[bytes, bytes]]:
    """A copy of the fields with this one Host, in the old one's place."""
    made = [(name, host) if name == b"host" else (name, value) for name, value in headers]
    if (b"host", host) not in made:
        made.insert(0, (b"host", host))
    return made


class Forwarding:
    """Whom this server believes, and which fields. `networks` and `fields` are as in `Config`; raises ValueError."""

    __slots__ = ("_host", "_networks", "_node", "fields", "trusts")

    def __init__(self, networks: str, fields: str) -> None:
        self._networks = TrustedNetworks(networks)
        self.fields = believed(fields)
        """The names of those that are believed, in lower case."""
        self.trusts = self._networks.trusts if self.fields else _nobody
        """Whether what this peer says is believed: asked once for each connection."""
        self._node = functools.lru_cache(KEPT_NODES)(self._read_node)

    def mentioned(self, headers: list[tuple[bytes, bytes]]) -> bool:
        """Whether a believed field is there."""
        return mentions(headers, self.fields)

    def understand(self, headers: list[tuple[bytes, bytes]], peer: Address) -> Forwarded | None:
        """What the request's fields say, sent by the trusted `peer`; None if none of the believed ones is there.

        It depends on nothing but its arguments.
        """
        fields = self.fields
        found: dict[bytes, list[bytes]] = {}
        for name, value in headers:
            if name in fields:
                if name in found:
                    found[name].append(value)
                else:
                    found[name] = [value]
        return self._understand(found, peer) if found else None

    def _understand(self, found: dict[bytes, list[bytes]], peer: Address) -> Forwarded:
        client, scheme, host = peer, b"", b""
        if FORWARDED in found:
            client, scheme, host = self._walk_elements(found[FORWARDED], peer)
        elif X_FOR in found:
            client = self._walk_addresses(found[X_FOR], peer)
        if X_PROTO in found:
            scheme = _last(found[X_PROTO])
        if X_HOST in found:
            host = _last(found[X_HOST])
        secure = _SECURE.get(scheme.lower())
        if secure is None and scheme:
            _ignore("scheme", scheme)
        if host and not is_authority(host):
            _ignore("host", host)
            host = b""
        prefix = _prefix(_last(found[X_PREFIX])) if X_PREFIX in found else b""
        return Forwarded(client, secure, host, prefix)

    def _walk_addresses(self, lines: list[bytes], peer: Address) -> Address:
        """The right-most address of X-Forwarded-For that is not trusted, or the last good one before what is none."""
        if len(lines) == 1:  # nearly always, and with one address that is kept
            node = self._node(lines[0], True) if len(lines[0]) <= MAX_NODE else None
            if node is not None:
                return node.address
        client = peer
        for text in _from_the_right(lines):
            node = self._node(text, True) if len(text) <= MAX_NODE else None
            if node is None:
                _ignore("address", text)
                break
            client = node.address
            if not node.trusted:
                break
        return client

    def _walk_elements(self, lines: list[bytes], peer: Address) -> tuple[Address, bytes, bytes]:
        """Client, scheme and host of Forwarded (RFC 7239 4): each element is believed that a trusted proxy wrote."""
        client, scheme, host = peer, b"", b""
        for element in _elements_from_the_right(lines):
            scheme, host = element.get(b"proto", b""), element.get(b"host", b"")
            text = element.get(b"for", b"")
            node = self._node(text, False) if len(text) <= MAX_NODE else None
            if node is None:  # missing, `unknown`, obfuscated, or garbage
                break
            client = node.address
            if not node.trusted:
                break
        return client, scheme, host

    def _read_node(self, text: bytes, bare: bool) -> Node | None:
        found = _NODE.fullmatch(text)
        if found is None:
            if not bare or not _BARE_IPV6.fullmatch(text):
                return None
            host, port = text, b""
        else:
            host, port = found[1] or found[2], found[3] or b""
        number = int(port) if port.isdigit() else 0
        try:
            if number > 65535 or (found is not None and found[1] and b":" not in host):
                return None
            address = str(plain(host.decode()))
        except ValueError:
            return None
        return Node((address, number), self._networks.among(address))


def _nobody(peer: Address) -> bool:
    return False


def _from_the_right(lines: list[bytes]) -> Iterator[bytes]:
    """The members of a list (RFC 9110 5.6.1) over several lines, the last first; empty ones are none."""
    for line in reversed(lines):
        end = len(line)
        while end > 0:
            comma = line.rfind(b",", 0, end)
            text = line[comma + 1 : end].strip(b" \t")
            if text:
                yield text
            end = comma


def _last(lines: list[bytes]) -> bytes:
    """The value that the nearest proxy has written (or passed on)."""
    if len(lines) == 1 and b"," not in lines[0]:  # nearly always
        return lines[0].strip(b" \t")
    return next(_from_the_right(lines), b"")


def _elements_from_the_right(lines: list[bytes]) -> Iterator[dict[bytes, bytes]]:
    """The elements of Forwarded, the last first, up to one that is malformed.

    From the right, so that what a client leaves malformed (a quote that it never closes) takes nothing from what a
    proxy appends to it: an element begins after the last comma after which it is well-formed.
    """
    for line in reversed(lines):
        end = len(line)
        while end > 0:
            comma = line.rfind(b",", 0, end)
            while _ELEMENT.fullmatch(line, comma + 1, end) is None:
                if comma < 0:
                    _ignore("element", line[:end])
                    return
                comma = line.rfind(b",", 0, comma)
            text = line[comma + 1 : end].strip(b" \t")
            if text:
                element = _pairs(text)
                if element is None:
                    return
                yield element
            end = comma


def _pairs(text: bytes) -> dict[bytes, bytes] | None:
    """The parameters of one well-formed element, by lower-case name; None if one is there twice (RFC 7239 4)."""
    pairs: dict[bytes, bytes] = {}
    for name, value in _PAIRS.findall(text):
        if name.lower() in pairs:
            _ignore("element", text)
            return None
        pairs[name.lower()] = _ESCAPE.sub(rb"\1", value[1:-1]) if value.startswith(b'"') else value
    return pairs


def _prefix(value: bytes) -> bytes:
    """The path in front without a slash at its end; empty if it is none that could be joined with a path."""
    if len(value) <= MAX_PREFIX and _PREFIX.fullmatch(value):
        try:
            path = unquote(value.decode(), errors="strict")
        except UnicodeDecodeError:
            path = "//"
        if not _UNFIT.search(path) and b"%2f" not in value.lower():
            return value.rstrip(b"/")
    _ignore("prefix", value)
    return b""


def _ignore(what: str, value: bytes) -> None:
    _log.debug("A forwarded %s is not valid and is ignored: %r", what, value[:MAX_NODE], extra=_IGNORED)
