"""From the fields of a header block to a request head, or what is wrong with them (RFC 9113 8.2, 8.3, RFC 8441). Pure.

It owns the rules that HTTP/2 has for fields: names in lower case, pseudo-header fields, the fields of a connection that
have no meaning here. What else a head has to obey is what `serve_asgi.http.request_head` makes of it, so that both
protocols give the same verdict where both have the case. Rules: a field is looked at byte by byte when it is spelled
out, not each time that it is taken from the table; a head that comes out is as one from HTTP/1.1 would be (`host`
instead of `:authority`, one `cookie`). It must not know streams or compression.
"""

from __future__ import annotations

import re
from typing import Final

from serve_asgi.http.h2.header_decoder import Field
from serve_asgi.http.request_head import (
    CHUNKED,
    METHODS,
    PLAIN_TARGET,
    TOKEN,
    BadRequest,
    Head,
    raise_for_line,
    split_target,
    understand,
    valid_hosts,
)

# RFC 9113 8.2.1: no upper case in a name. A value may begin or end with no white space, and hold what it may over
# HTTP/1.1 (RFC 9110 5.5): not only NUL, CR and LF are refused, but every control character except the tab.
_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]++")
_TOKEN: Final = re.compile(TOKEN)
_VALUE_BYTES: Final = bytes((0x09, *range(0x20, 0x7F), *range(0x80, 0x100)))
_COMPILED: Final = not __file__.endswith((".py", ".pyc"))
_IN_VALUE: Final = bytes(byte in _VALUE_BYTES for byte in range(256))
_IN_TARGET: Final = bytes(byte in PLAIN_TARGET for byte in range(256))
_WHITE: Final = 0x20
_PSEUDO: Final = frozenset((b":method", b":scheme", b":authority", b":path", b":protocol", b":status"))
_MAX_NAMES: Final = 1024
_names: set[bytes] = set(_PSEUDO)
"""Valid names that were looked at before."""

_ORDINARY: Final = -1
_METHOD, _SCHEME, _AUTHORITY, _PATH, _PROTOCOL = range(5)
_FORBIDDEN: Final = 5
_COOKIE: Final = 6
_WATCHED: Final = 7
_TE: Final = 8
_PRIORITY: Final = 9
_KINDS: Final = {
    b":method": _METHOD,
    b":scheme": _SCHEME,
    b":authority": _AUTHORITY,
    b":path": _PATH,
    b":protocol": _PROTOCOL,
    b":status": _FORBIDDEN,  # a response's; the static table has it
    # RFC 9113 8.2.2: of one connection, which HTTP/2 has its own means for
    b"connection": _FORBIDDEN,
    b"keep-alive": _FORBIDDEN,
    b"proxy-connection": _FORBIDDEN,
    b"transfer-encoding": _FORBIDDEN,
    b"upgrade": _FORBIDDEN,
    b"cookie": _COOKIE,
    b"host": _WATCHED,
    b"content-length": _WATCHED,
    b"expect": _WATCHED,
    b"te": _TE,
    b"priority": _PRIORITY,
}
_NOT_IN_TRAILERS: Final = frozenset((b"content-length", b"host", b"te"))
_SCHEMES: Final = frozenset((b"https", b"http"))
_SLASH: Final = 0x2F


class MalformedRequest(BadRequest):
    """What RFC 9113 8.1.1 calls malformed: answered 400, and the stream is reset (PROTOCOL_ERROR)."""

    def __init__(self, reason: str) -> None:
        super().__init__(400, reason)


def check_fields(fields: list[Field]) -> None:
    """The bytes of names and values (RFC 9113 8.2.1). Raises MalformedRequest."""
    for name, value in fields:
        if name not in _names:
            _check_name(name)
        if value and (
            value[0] <= _WHITE
            or value[-1] <= _WHITE
            or (not consists_of(value, _IN_VALUE) if _COMPILED else value.translate(None, _VALUE_BYTES) != b"")
        ):
            raise MalformedRequest(
                f"The value of the field {_shown(name)} has white space around it or a control character."
            )


def consists_of(text: bytes, allowed: bytes) -> bool:
    """Whether all bytes are such for which `allowed` has a 1. Compiled a few instructions a byte, where `translate`
    takes a thousand before it begins; which else is what is fast.
    """
    for byte in text:  # noqa: SIM110 (`all` makes a generator)
        if not allowed[byte]:
            return False
    return True


def _check_name(name: bytes) -> None:
    if not _NAME.fullmatch(name):
        if name.startswith(b":"):
            raise MalformedRequest(f"There is no pseudo-header field {_shown(name)}.")
        raise MalformedRequest(f"{_shown(name)} is not the name of a field in lower case.")
    if len(_names) >= _MAX_NAMES:
        _names.clear()
        _names.update(_PSEUDO)
    _names.add(name)


def _shown(name: bytes) -> str:
    return ascii(name[:64].decode("latin-1"))


def read_request(fields: list[Field], ended: bool) -> tuple[Head, bytes]:
    """The head of a request, and what its field `priority` says (RFC 9218 5). `ended`: it has no body.

    The fields' bytes have been checked. Raises BadRequest, also MalformedRequest.
    """
    pseudo: list[bytes | None] = [None] * 5
    headers: list[Field] = []
    watched: list[Field] = []
    cookie = -1
    priority = b""
    te_trailers = False
    for field in fields:
        kind = _KINDS.get(field[0], _ORDINARY)
        if kind == _ORDINARY:
            headers.append(field)
        elif kind < _FORBIDDEN:  # RFC 9113 8.3: once, before all others
            if headers or pseudo[kind] is not None:
                raise MalformedRequest(
                    f"The pseudo-header field {_shown(field[0])} comes twice, or behind other fields."
                )
            pseudo[kind] = field[1]
        elif kind == _COOKIE:  # RFC 9113 8.2.3: they were one
            if cookie < 0:
                cookie = len(headers)
                headers.append(field)
            else:
                headers[cookie] = (b"cookie", headers[cookie][1] + b"; " + field[1])
        elif kind == _FORBIDDEN:
            raise MalformedRequest(f"The field {_shown(field[0])} has no place in a request over HTTP/2.")
        else:
            if kind == _WATCHED:
                watched.append(field)
            elif kind == _PRIORITY:
                priority = priority + b"," + field[1] if priority else field[1]
            elif field[1].lower() != b"trailers":
                raise MalformedRequest("The field te says something else than trailers.")
            else:
                te_trailers = True
            headers.append(field)
    method, scheme, authority, path, protocol = pseudo
    if method is None:
        raise MalformedRequest("The pseudo-header field :method is missing.")
    if protocol is not None or method == b"CONNECT":
        return _connect(method, scheme, path, authority, protocol, headers, watched), priority
    if scheme is None or path is None:
        raise MalformedRequest("The pseudo-header field :scheme or :path is missing.")
    if method not in METHODS:
        if not _TOKEN.fullmatch(method):
            raise MalformedRequest("The pseudo-header field :method is not a method.")
        raise_for_line(method, b"1", b"1")
    head = _head(METHODS[method], scheme, path, authority, headers, watched)
    head.te_trailers = te_trailers
    announced = head.body
    if ended:
        if announced:
            raise MalformedRequest("The content-length announces a body, and there is none.")
    elif not announced:
        _understand_unknown_length(head, watched)
    return head, priority


def _understand_unknown_length(head: Head, watched: list[Field]) -> None:
    """The request has a body, of a length that is 0 or not announced."""
    expects = False
    for name, value in watched:
        if name == b"content-length":
            return
        if name == b"expect" and b"100-continue" in value.lower():  # that it is nothing else was found with the head
            expects = True
    head.body = CHUNKED
    head.expect_continue = expects


def _head(
    method: str, scheme: bytes, path: bytes, authority: bytes | None, headers: list[Field], watched: list[Field]
) -> Head:
    if scheme not in _SCHEMES and scheme.lower() not in _SCHEMES:
        raise BadRequest(400, "The pseudo-header field :scheme is neither http nor https.")
    if path[:1] == b"/" and (consists_of(path, _IN_TARGET) if _COMPILED else path.translate(None, PLAIN_TARGET) == b""):
        raw_path, _, query = path.partition(b"?")
    else:
        if path[:1] != b"/" and not (path == b"*" and method == "OPTIONS"):  # RFC 9113 8.3.1
            raise MalformedRequest("The pseudo-header field :path does not begin with a slash.")
        raw_path, query, _ = split_target(method, path)
    if authority is not None and authority in valid_hosts and not watched:  # nearly always
        return Head(method, path, "2", [(b"host", authority), *headers], raw_path, query)
    authority = _one_authority(authority, [value for name, value in watched if name == b"host"])
    others = [field for field in headers if field[0] != b"host"]
    host = (b"host", authority)
    head = Head(method, path, "2", [host, *others], raw_path, query)
    understand(head, [host, *(field for field in watched if field[0] != b"host")])
    return head


def _one_authority(authority: bytes | None, hosts: list[bytes]) -> bytes:
    """RFC 9113 8.3.1: `:authority`, or `host`, or both if they are the same. Raises BadRequest."""
    if len(hosts) > 1:
        raise BadRequest(400, "The request has more than one Host header.")
    if authority is None:
        if not hosts:
            raise BadRequest(400, "An HTTP/2 request needs the field :authority or host.")
        return hosts[0]
    if hosts and hosts[0].lower() != authority.lower():
        raise MalformedRequest("The fields :authority and host are not the same.")
    return authority


def _connect(
    method: bytes,
    scheme: bytes | None,
    path: bytes | None,
    authority: bytes | None,
    protocol: bytes | None,
    headers: list[Field],
    watched: list[Field],
) -> Head:
    """RFC 9113 8.5, RFC 8441 4. Raises BadRequest."""
    if method != b"CONNECT":
        raise MalformedRequest("The pseudo-header field :protocol is for CONNECT.")
    if protocol is None:
        if scheme is not None or path is not None or authority is None:
            raise MalformedRequest("A CONNECT has :authority, and neither :scheme nor :path.")
        raise BadRequest(501, "This server is not a proxy: it does not support CONNECT.")
    if scheme is None or path is None:
        raise MalformedRequest("A CONNECT with :protocol has :scheme and :path.")
    if protocol != b"websocket":
        raise BadRequest(501, "The only protocol that CONNECT begins at this server is websocket.")
    head = _head("GET", scheme, path, authority, headers, [field for field in watched if field[0] == b"host"])
    head.method = "CONNECT"
    head.websocket = True
    return head


def check_trailers(fields: list[Field]) -> None:
    """RFC 9113 8.1, RFC 9110 6.5.1; the fields' bytes have been checked. Raises MalformedRequest."""
    for name, _ in fields:
        if name.startswith(b":"):
            raise MalformedRequest("There is a pseudo-header field among the trailers.")
        if _KINDS.get(name) == _FORBIDDEN or name in _NOT_IN_TRAILERS:
            raise MalformedRequest("A trailer frames or routes the message, which only the head may do.")
