"""The head of a request, and what makes one refusable.

It owns `Head`, the verdict `BadRequest`, and the rules of RFC 9110 and RFC 9112 (and of RFC 3986 for the Host) that
hold whichever parser read the bytes, so that every parser gives the same result for the same bytes. It is pure: no
sockets, no clock, no parser library.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any, Final
from urllib.parse import unquote

CHUNKED: Final = -1
"""`Head.body` of a message in chunked transfer coding."""

# fmt: off
METHODS: Final = {
    name.encode(): name
    for name in (
        "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "QUERY",
        "COPY", "LOCK", "UNLOCK", "MKCOL", "MOVE", "PROPFIND", "PROPPATCH", "SEARCH", "BIND", "REBIND", "UNBIND", "ACL",
        "REPORT", "MKACTIVITY", "CHECKOUT", "MERGE", "MKCALENDAR", "LINK", "UNLINK",
        "M-SEARCH", "NOTIFY", "SUBSCRIBE", "UNSUBSCRIBE", "PURGE", "SOURCE",
    )
}
# fmt: on
"""The methods that both parsers know. Any other is answered 501 (RFC 9110 9.1), if it could be one."""

# What the rules below look at; every other field is the application's business.
_WATCHED: Final = frozenset(
    (b"host", b"content-length", b"transfer-encoding", b"connection", b"expect", b"upgrade", b"te")
)
_MAX_LENGTH_DIGITS: Final = 18
_EXPECTATIONS: Final = frozenset((b"100-continue", b""))

TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
"""RFC 9110 5.6.2, as a pattern."""

REQUEST_LINE: Final = re.compile(rb"(" + TOKEN + rb") ([!-~]++) HTTP/([0-9])\.([0-9])\r\n")
"""RFC 9112 3; the target is looked at later."""

FIELD_LINE: Final = re.compile(rb"(" + TOKEN + rb"):([\t -~\x80-\xff]*+)\r\n")
"""RFC 9112 5, with the white space around the value; never folded."""

_LINE_START: Final = re.compile(TOKEN + rb"(?: [!-~]*+(?: [HTP/0-9.]*\r?)?)?")
_REQUEST_START: Final = re.compile(rb"(" + TOKEN + rb") ([!-~]*+)")
# Every visible ASCII character but those that some reader on the way takes for the end of the path or for its "/", and
# no other byte. RFC 3986 has fewer; what else there is (`"<>[]^`{|}` and a "%" without its two digits) browsers, curl
# and people send, and every program takes for itself (docs/reference/http.md).
_ORIGIN_FORM: Final = re.compile(rb"/[!\x22$->@-\[\]-~]*+(?:\?[!\x22$-~]*+)?")
PLAIN_TARGET: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,;=:@%/?[]^|"
"""Bytes of which targets nearly always are; one of others is looked at more closely."""
_ABSOLUTE: Final = re.compile(rb"(?i:https?)://([^/?#]+)(.*)")
_CODING: Final = re.compile(TOKEN + rb"(?:[ \t]*;.*)?")
_LINE_REST: Final = re.compile(rb"[ -~\r]*+")
PRIOR_KNOWLEDGE: Final = b"PRI * HTTP/2.0\r\n\r\n"
"""What the preface of HTTP/2 looks like to HTTP/1.1 (RFC 9113, 3.4)."""
_START_CHECKED: Final = 64
"""No method has this many characters: what begins with as many is not HTTP."""
_LONG_METHOD: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{64}")
_VERSION_ROOM: Final = len(b" HTTP/1.1\r")
"""What follows the target while the line has no end yet."""

_HOST_FIELDS: Final = {"1.1": "a Host header", "2": "the field :authority or host"}

valid_hosts: set[bytes] = set()
"""Hosts that were looked at before."""
_MAX_VALID_HOSTS: Final = 256

_MAX_PORT: Final = 65535

# RFC 3986: unreserved / pct-encoded / sub-delims, without the comma: a comma may be the seam of two Host fields that
# something on the way has joined (RFC 9110 5.3). User information has no place here (RFC 9110 4.2.4), nor has a zone
# (RFC 3986 has none; it means nothing to another machine).
_CHARACTER: Final = rb"(?:[A-Za-z0-9\-._~!$&'()*+;=]|%[0-9A-Fa-f]{2})"
_AUTHORITY: Final = re.compile(
    rb"(?:\[(?:(?P<six>[0-9A-Fa-f:.]+)|[vV][0-9A-Fa-f]+\.[A-Za-z0-9\-._~!$&'()*+;=:]+)\]|" + _CHARACTER + rb"+)"
    rb"(?::(?P<port>[0-9]{0,5}))?"
)


class BadRequest(Exception):
    """The client's bytes are refused with this `status`; `reason` is a sentence for whoever runs the client."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(status, reason)
        self.status = status
        self.reason = reason


_MEMBERS: Final = (
    *("asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path"),
    *("headers", "client", "server", "state", "extensions"),
)
_SCOPE: Final[dict[str, Any]] = {"type": "http", **dict.fromkeys(_MEMBERS)}
"""What a scope is copied from: to set a member that is there costs less than to add one."""


class Head:
    """A valid request head."""

    __slots__ = (
        "_asked",
        "_scope",
        "body",
        "expect_continue",
        "forwarding",
        "headers",
        "keep_alive",
        "logged",
        "method",
        "path",
        "query",
        "target",
        "te_trailers",
        "text",
        "version",
        "websocket",
    )

    def __init__(
        self, method: str, target: bytes, version: str, headers: list[tuple[bytes, bytes]], path: bytes, query: bytes
    ) -> None:
        self.method = method
        """As sent; methods are case-sensitive (RFC 9110 9.1)."""
        self.target = target
        """The request-target as sent (RFC 9112 3.2)."""
        self.version = version
        """"1.0"; "1.1", which higher minor versions count as; or "2"."""
        self.headers = headers
        """Names in lower case, in the order received; repeated names stay repeated."""
        self.path = path
        """The target's path, still percent-encoded; `b"*"` for the asterisk-form."""
        text = path.decode("ascii")
        self.text = unquote(text) if "%" in text else text
        """The same decoded: ASGI's `path`."""
        self.query = query
        """The target's query without the question mark, still percent-encoded."""
        self.body = 0
        """Bytes of body announced (Content-Length), 0 for none, or `CHUNKED`."""
        self.keep_alive = version != "1.0"
        """Whether the client lets the connection persist (RFC 9112 9.3)."""
        self.expect_continue = False
        """Whether the client waits for 100 (RFC 9110 10.1.1)."""
        self.te_trailers = False
        """Whether the client takes trailer fields (`TE: trailers`, RFC 9110 10.1.4)."""
        self.websocket = False
        """Whether this asks to become a WebSocket: a GET by `Upgrade`, or a CONNECT by `:protocol` (RFC 8441)."""
        self.forwarding = False
        """Whether there are fields of proxies that the server believes where the connection is trusted."""
        self.logged: tuple[str, ...] | None = None
        """The access log's own note of what it writes of this request."""
        self._scope: dict[str, Any] | None = None
        self._asked = False

    def scope(self) -> dict[str, Any]:
        """A new scope (ASGI, HTTP) with what the head says in it; the other members are there and None.

        What is asked for more than once, because the head is shared by equal requests, is copied.
        """
        known = self._scope
        if known is not None:
            return known.copy()
        scope = _SCOPE.copy()
        scope["http_version"] = self.version
        scope["method"] = self.method
        scope["path"] = self.text
        scope["raw_path"] = self.path
        scope["query_string"] = self.query
        if self._asked:
            self._scope = scope.copy()
        self._asked = True
        return scope


def mentions(headers: list[tuple[bytes, bytes]], names: frozenset[bytes]) -> bool:
    """Whether a field with one of these names is there."""
    for name, _ in headers:  # noqa: SIM110 (four times as fast as any())
        if name in names:
            return True
    return False


def make_head(method: str, target: bytes, version: str, headers: list[tuple[bytes, bytes]]) -> Head:
    """The head made of what a parser has read, checked and interpreted.

    `method` is one of METHODS' values, `version` is "1.0" or "1.1", names are in lower case, values without white space
    around them. Raises BadRequest.
    """
    if target[0] == 47 and not target.translate(None, PLAIN_TARGET):  # "/": the origin-form, nearly always
        path, _, query = target.partition(b"?")
        head = Head(method, target, version, headers, path, query)
        if method == "CONNECT":
            raise _connect()
        authority = None
    else:
        path, query, authority = split_target(method, target)
        head = Head(method, target, version, headers, path, query)
    if not _is_plain(head, headers, version):
        understand(head, [field for field in headers if field[0] in _WATCHED])
    if authority is not None:  # RFC 9112 3.2.2: the target's authority wins over Host
        head.headers = _with_host(headers, authority)
    return head


def _is_plain(head: Head, headers: list[tuple[bytes, bytes]], version: str) -> bool:
    """Whether the head holds nothing unusual: one Host seen before, perhaps keep-alive and a Content-Length (then set).

    A short cut for nearly all requests; what it does not know goes through `understand`, which does not rely on it.
    """
    if version != "1.1":
        return False
    hosts = 0
    length = -1
    for name, value in headers:
        if name in _WATCHED:
            if name == b"host" and value in valid_hosts:
                hosts += 1
            elif name == b"content-length" and length < 0 and value.isdigit() and len(value) <= _MAX_LENGTH_DIGITS:
                length = int(value)
            elif name != b"connection" or (value != b"keep-alive" and value != b"Keep-Alive"):
                return False
    if hosts != 1:
        return False
    if length > 0:
        head.body = length
    return True


def _connect() -> BadRequest:
    return BadRequest(501, "This server is not a proxy: it does not support CONNECT.")


def split_target(method: str, target: bytes) -> tuple[bytes, bytes, bytes | None]:
    """Path, query and authority of a target that is not plainly in origin-form (RFC 9112 3.2.1 to 3.2.4).

    Raises BadRequest.
    """
    if method == "CONNECT":
        raise _connect()
    if target == b"*" and method == "OPTIONS":
        return target, b"", None
    found = _ABSOLUTE.fullmatch(target)
    authority = None
    if found is not None:
        authority, target = found[1], found[2]
        if not is_authority(authority):
            raise BadRequest(400, "The authority in the request target is not a host with an optional port.")
        if target[:1] != b"/":
            target = b"/" + target
    if not _ORIGIN_FORM.fullmatch(target):
        raise BadRequest(400, "The request target is neither a path nor an absolute http URL without fragment.")
    path, _, query = target.partition(b"?")
    return path, query, authority


def _with_host(headers: list[tuple[bytes, bytes]], authority: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"host", authority), *(field for field in headers if field[0] != b"host")]


def understand(head: Head, watched: list[tuple[bytes, bytes]]) -> None:
    """Set what the watched fields say about framing and persistence. Raises BadRequest."""
    fields: dict[bytes, list[bytes]] = {}
    for name, value in watched:
        fields.setdefault(name, []).append(value)
    _check_host(head.version, fields.get(b"host", []))
    if len(watched) == 1 and b"host" in fields:
        return
    head.body = _body(head.version, fields.get(b"content-length"), fields.get(b"transfer-encoding"))
    connection = _tokens(fields.get(b"connection", ()))
    if head.version == "1.0":  # such a client's Expect, Upgrade and TE are ignored (RFC 9110 7.8, 10.1.1)
        head.keep_alive = b"keep-alive" in connection and b"close" not in connection
        return
    head.keep_alive = b"close" not in connection
    expectations = _tokens(fields.get(b"expect", ()))
    if expectations - _EXPECTATIONS:
        raise BadRequest(417, "The only expectation that this server meets is 100-continue.")
    head.expect_continue = head.body != 0 and b"100-continue" in expectations
    head.te_trailers = b"trailers" in _tokens(fields.get(b"te", ()))
    head.websocket = (
        head.method == "GET" and b"upgrade" in connection and b"websocket" in _tokens(fields.get(b"upgrade", ()))
    )


def _tokens(values: list[bytes] | tuple[()]) -> set[bytes]:
    """The members of a comma-separated list over one or several lines, in lower case (RFC 9110 5.6.1)."""
    return {token.strip(b" \t") for value in values for token in value.lower().split(b",")}


def _check_host(version: str, hosts: list[bytes]) -> None:
    """RFC 9112 3.2: exactly one, valid Host in HTTP/1.1; at most one in HTTP/1.0."""
    if not hosts:
        if version == "1.0":
            return
        raise BadRequest(400, f"An HTTP/{version} request needs {_HOST_FIELDS[version]}.")
    if len(hosts) > 1:
        raise BadRequest(400, "The request has more than one Host header.")
    host = hosts[0]
    if host in valid_hosts:
        return
    if not is_authority(host):
        raise BadRequest(400, "The Host header is not a host with an optional port.")
    if len(valid_hosts) >= _MAX_VALID_HOSTS:
        valid_hosts.clear()
    valid_hosts.add(host)


def _body(version: str, lengths: list[bytes] | None, codings: list[bytes] | None) -> int:
    """How long the body is (RFC 9112 6.3): a number of bytes, or CHUNKED."""
    if codings is not None:
        if lengths is not None:
            raise BadRequest(400, "The request has both Content-Length and Transfer-Encoding.")
        if version == "1.0":
            raise BadRequest(400, "An HTTP/1.0 request cannot have a Transfer-Encoding.")
        _raise_for_coding(codings)
        return CHUNKED
    if lengths is None:
        return 0
    if len(lengths) > 1:
        raise BadRequest(400, "The request has more than one Content-Length header.")
    digits = lengths[0]
    if not digits.isdigit() or len(digits) > _MAX_LENGTH_DIGITS:
        raise BadRequest(400, "The Content-Length is not a decimal number of bytes.")
    return int(digits)


def _raise_for_coding(codings: list[bytes]) -> None:
    """Refuse every Transfer-Encoding but one `chunked` (RFC 9112 6.1, 6.3, 7.1).

    Where `chunked` is not the last coding, nobody knows the length: 400. Where it is, after codings that this server
    does not understand: 501.
    """
    if len(codings) == 1 and codings[0].lower() == b"chunked":
        return
    *others, last = [coding.strip(b" \t") for coding in b",".join(codings).lower().split(b",")]
    if last != b"chunked":
        raise BadRequest(400, "The last transfer coding is not chunked, so the length of the body is unknown.")
    if any(not _CODING.fullmatch(other) or other == b"chunked" for other in others):
        raise BadRequest(400, "The Transfer-Encoding is malformed.")
    raise BadRequest(501, "The only transfer coding that this server understands is chunked.")


def raise_for_line(method: bytes, major: bytes, minor: bytes) -> None:
    """Refuse major versions other than 1 (HTTP/2 by prior knowledge is `PRI`, 2.0) and unknown methods.

    A higher minor version is served as HTTP/1.1 (RFC 9110 2.5).
    """
    if len(method) >= _START_CHECKED:  # as it is refused before the rest of its line has come
        raise bad_line(method)
    if major != b"1":
        raise BadRequest(505, "This server speaks HTTP/1.1 and HTTP/1.0.")
    if method not in METHODS:
        raise BadRequest(501, "This server does not know the request method.")


def bad_line(start: bytes | bytearray) -> BadRequest:
    """The verdict on a head that begins with no valid request line."""
    if _LONG_METHOD.match(start):
        return BadRequest(400, "The request line begins with more than any method: this is not an HTTP request.")
    return BadRequest(400, "The request line is malformed.")


def endless_target(start: bytes | bytearray, limit: int) -> BadRequest | None:
    """The verdict on a head, perhaps incomplete, whose target is longer than `limit` bytes (RFC 9112 3), or None.

    It comes before any other but that on a method that is no method, so that it does not depend on what of the head has
    arrived.
    """
    found = _REQUEST_START.match(start)
    if found is None or len(found[1]) >= _START_CHECKED or len(found[2]) <= limit:
        return None
    return BadRequest(414, f"The request target is longer than {limit} bytes.")


def hopeless(start: bytes | bytearray, known: int) -> BadRequest | None:
    """The refusal of an incomplete head that can never become a valid one, or None.

    A TLS ClientHello or other binary is answered at once, and so is a head that ends in bare line feeds. The first
    `known` bytes of `start` have been looked at before, so that slow senders cost no quadratic work; the verdict does
    not depend on where they were split.
    """
    if PRIOR_KNOWLEDGE.startswith(start):
        return None  # its request line alone would be refused, for its version
    if known < len(PRIOR_KNOWLEDGE) and PRIOR_KNOWLEDGE.startswith(start[:known]):
        known = 0  # it has turned out to be something else
    newline = start.find(b"\n", max(known - 1, 0))
    if newline < 0:
        line_known = start.find(b"\n", 0, known) >= 0  # looked at before, and whole
        if line_known:
            return None
        good = known >= _START_CHECKED or _LINE_START.fullmatch(start[:_START_CHECKED])
        if _LONG_METHOD.match(start):
            return bad_line(start)
        if not good or not _LINE_REST.fullmatch(start, max(known, _START_CHECKED)):
            return BadRequest(400, "This is not an HTTP request.")
        method_end = start.find(b" ", 0, _START_CHECKED)
        if method_end >= 0:
            target_end = start.find(b" ", max(method_end + 1, known - _VERSION_ROOM))
            if target_end >= 0 and len(start) - target_end > _VERSION_ROOM:
                return bad_line(start)
        return None
    if start.find(b"\n", 0, known) < 0:  # the request line is whole by now
        line = REQUEST_LINE.match(start)
        if line is None:
            return bad_line(start)
        try:
            raise_for_line(line[1], line[3], line[4])
        except BadRequest as refused:
            return refused
    if start.find(b"\n\n", max(known - 1, 0)) >= 0:
        return BadRequest(400, "Lines of the request head end without a carriage return.")
    return None


def is_authority(value: bytes) -> bool:
    """Whether the value is a host, not empty, and perhaps a port up to 65535 (RFC 9110 4.2.1, 4.2.2, 7.2).

    Names are not checked for being names of the DNS. A port may be empty, which RFC 3986 3.2.3 allows.
    """
    found = _AUTHORITY.fullmatch(value)
    if found is None:
        return False
    if found["port"] and int(found["port"]) > _MAX_PORT:
        return False
    return found["six"] is None or _is_ipv6(found["six"])


def _is_ipv6(value: bytes) -> bool:
    try:
        ipaddress.IPv6Address(value.decode("ascii"))
    except ValueError:
        return False
    return True
