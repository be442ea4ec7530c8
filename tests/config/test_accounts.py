"""Users and groups by name and by number, for whoever looks one up."""

from __future__ import annotations

import grp
import os
import pwd

import pytest

from serve_asgi.config.accounts import find_group, find_user, own_name


def test_the_name_of_this_process_user(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_name() == pwd.getpwuid(os.geteuid()).pw_name
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    assert own_name() == f"number {os.geteuid()}"


def test_by_name_or_by_number() -> None:
    me, mine = pwd.getpwuid(os.getuid()), grp.getgrgid(os.getgid())
    assert find_user(me.pw_name) == find_user(str(me.pw_uid)) == me
    assert find_group(mine.gr_name) == find_group(str(mine.gr_gid)) == mine.gr_gid
    assert find_group("54321") == 54321  # setgid(2) takes any number


@pytest.mark.parametrize("name", ["no-such-user", "4294967294", "٣", "-1"])
def test_a_user_must_be_known(name: str) -> None:
    with pytest.raises((KeyError, OverflowError)):
        find_user(name)


@pytest.mark.parametrize("name", ["no-such-group", "4294967295", "9999999999", "٣"])
def test_a_group_must_be_one_that_a_process_can_have(name: str) -> None:
    with pytest.raises(KeyError):
        find_group(name)
