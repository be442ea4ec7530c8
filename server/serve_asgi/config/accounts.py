"""Looks up the user and the group that an option names, by name or number, by one rule.

A user must be known to this machine, since a process that switches to it needs its groups and its home; a group may be
any number that setgid(2) accepts.
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
    """The user with this name or number. Raises KeyError or OverflowError if it does not exist."""
    return pwd.getpwuid(int(name)) if _NUMBER.fullmatch(name) else pwd.getpwnam(name)


def find_group(name: str) -> int:
    """The number of this group. Raises KeyError if it does not exist."""
    number = int(name) if _NUMBER.fullmatch(name) else grp.getgrnam(name).gr_gid
    if number >= _NO_GROUP:
        raise KeyError(name)
    return number
