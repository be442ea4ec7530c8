"""The user and the group that an option names, by name or by number: one rule for all who look one up.

A user must be one that this machine knows, since a process that becomes it needs its groups and its home; a group may
be any number that setgid(2) takes.
"""

from __future__ import annotations

import grp
import pwd
import re
from typing import Final

_NUMBER: Final = re.compile("[0-9]{1,10}")
_NO_GROUP: Final = 2**32 - 1
"""Means "none" to setgid(2) and chown(2)."""


def find_user(name: str) -> pwd.struct_passwd:
    """The user with this name or number. Raises KeyError or OverflowError if there is none."""
    return pwd.getpwuid(int(name)) if _NUMBER.fullmatch(name) else pwd.getpwnam(name)


def find_group(name: str) -> int:
    """The number of this group. Raises KeyError if there is none."""
    number = int(name) if _NUMBER.fullmatch(name) else grp.getgrnam(name).gr_gid
    if number >= _NO_GROUP:
        raise KeyError(name)
    return number
