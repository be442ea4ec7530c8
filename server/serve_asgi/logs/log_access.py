"""Whether the log files can be opened again by the account that the workers run as, before they try.

Asked after a rotation, so that `serve logs-reopen` can say what is wrong: a worker that cannot open the new file goes
on with the old one, and a later reload is refused. Nothing is opened, created or changed here, so that the answer is by
the mode of the file alone where the workers have another account than the listener (--user); where an access control
list decides (acl(5)) no trouble is found.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from typing import Final

from serve_asgi.config.accounts import find_group, find_user, own_name

ACCESS_LIST: Final = "system.posix_acl_access"


def trouble(paths: Iterable[str], user: str = "", group: str = "") -> str:
    """Which of the log files ("": none) `user` and `group` ("": those of this process) may not write; "" if none."""
    for path in dict.fromkeys(filter(None, paths)):
        path = os.path.abspath(path)
        if why := _trouble(path, user, group):
            who = user or own_name()
            return (
                f"the log file {path} cannot be reopened: {why}; the old one stays in use. Let user {who} write it "
                "(logrotate: `create` and `su`), then run `serve logs-reopen` again"
            )
    return ""


def _trouble(path: str, user: str, group: str) -> str:
    try:
        found = os.stat(path)
    except FileNotFoundError:  # it will be made
        path = os.path.dirname(path)
        try:
            found = os.stat(path)
        except OSError as error:
            return error.strerror or str(error)
    except OSError as error:
        return error.strerror or str(error)
    else:
        if stat.S_ISDIR(found.st_mode):
            return "Is a directory"
    if not _may_write(path, found, user, group):
        return "Permission denied"
    return ""


def _may_write(path: str, found: os.stat_result, user: str, group: str) -> bool:
    account = find_user(user) if user else None
    if account is None or account.pw_uid == os.geteuid():
        return os.access(path, os.W_OK, effective_ids=True)
    if account.pw_uid == 0 or ACCESS_LIST in os.listxattr(path):
        return True
    if found.st_uid == account.pw_uid:
        return bool(found.st_mode & stat.S_IWUSR)
    if found.st_gid in os.getgrouplist(account.pw_name, find_group(group) if group else account.pw_gid):
        return bool(found.st_mode & stat.S_IWGRP)
    return bool(found.st_mode & stat.S_IWOTH)
