"""Looks up the user and the group that an option names, by name or number, by one rule.

A user must be known to this machine, since a process that switches to it needs its groups and its home; a group may be
any number that setgid(2) accepts.
"""

from __future__ import annotations

import re
import sys
from typing import Final, NoReturn

_NUMBER: Final = re.compile("[0-9]{1,10}")
_NO_GROUP: Final = 2**32 - 1
"""Means "none" to setgid(2) and chown(2)."""


if sys.platform != "win32":
    import grp
    import os
    import pwd

    def find_user(name: str) -> pwd.struct_passwd:
        """The user with this name or number. Raises KeyError or OverflowError if it does not exist."""
        return pwd.getpwuid(int(name)) if _NUMBER.fullmatch(name) else pwd.getpwnam(name)

    def find_group(name: str) -> int:
        """The number of this group. Raises KeyError if it does not exist."""
        number = int(name) if _NUMBER.fullmatch(name) else grp.getgrnam(name).gr_gid
        if number >= _NO_GROUP:
            raise KeyError(name)
        return number

    def name_of(number: int) -> str:
        """The name of the user with this number, or "number N" if it has none."""
        try:
            return pwd.getpwuid(number).pw_name
        except KeyError:
            return f"number {number}"

    def own_name() -> str:
        """The name of the user that this process runs as, or "number N" if it has none."""
        return name_of(os.geteuid())

else:  # where there are no such accounts
    import getpass

    own_name = getpass.getuser

    def name_of(number: int) -> str:
        return f"number {number}"

    def find_user(name: str) -> NoReturn:
        raise KeyError(name)

    def find_group(name: str) -> NoReturn:
        raise KeyError(name)
