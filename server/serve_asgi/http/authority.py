"""The host and port that a request names, in its Host field or in an absolute target.

It owns the grammar of RFC 3986 3.2.2 and 3.2.3 and what this server refuses beyond it. It is pure.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

_MAX_PORT: Final = 65535

# RFC 3986: unreserved / pct-encoded / sub-delims, without the comma: a comma may be the seam of two Host fields that
# something on the way has joined (RFC 9110 5.3). User information has no place here (RFC 9110 4.2.4), nor has a zone
# (RFC 3986 has none; it means nothing to another machine).
_CHARACTER: Final = rb"(?:[A-Za-z0-9\-._~!$&'()*+;=]|%[0-9A-Fa-f]{2})"
_AUTHORITY: Final = re.compile(
    rb"(?:\[(?:(?P<six>[0-9A-Fa-f:.]+)|[vV][0-9A-Fa-f]+\.[A-Za-z0-9\-._~!$&'()*+;=:]+)\]|" + _CHARACTER + rb"+)"
    rb"(?::(?P<port>[0-9]{0,5}))?"
)


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
