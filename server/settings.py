"""Building a `Config` from what the command line and the environment say.

It owns the precedence (command line, then SERVE_<NAME>, then the variables that platforms set, such as PORT, then the
default) and the reading of each value; it must not know click. Every value comes as text, so that the command line
and the environment are read by the same few functions, and each error names the place that the value came from.
"""

from __future__ import annotations

import dataclasses
import grp
import math
import os
import pwd
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final

from server.config import ENV_PREFIX, Config, Option, flag, options
from server.errors import UsageError
from server.listener.addresses import parse_address
from server.protocol.forwarded import Networks, believed

Given = str | bool | tuple[str, ...]
"""What the command line gives for an option: its text, its texts where it takes several, or a flag."""

TRUE: Final = frozenset({"1", "true", "yes", "on"})
FALSE: Final = frozenset({"0", "false", "no", "off"})
ADDRESSES: Final = frozenset({"bind", "host", "port"})


@dataclasses.dataclass(frozen=True, slots=True)
class _Value:
    """A value that was read, and where it was found: `tier` 0 is the command line, 1 SERVE_<NAME>, 2 a platform's."""

    value: Any
    tier: int
    source: str


def kind(name: str) -> type:
    """The type of one option's value: bool, int, float or str (of each item, where the option takes several)."""
    annotation = typing.get_type_hints(Config)[name]
    for argument in typing.get_args(annotation):
        if argument not in (types.NoneType, Ellipsis):
            annotation = argument
            break
    return typing.cast(type, annotation)


def several(name: str) -> bool:
    """Whether the option takes several values."""
    return typing.get_origin(typing.get_type_hints(Config)[name]) is tuple


def build(app: str, given: Mapping[str, Given], environ: Mapping[str, str]) -> Config:
    """The configuration of one server; `given` holds, by field name, what the command line says.

    Raises UsageError, which names the option or variable at fault.
    """
    found: dict[str, _Value] = {}
    for name, (_, defined) in options().items():
        if name in given:
            found[name] = _Value(_read(name, defined, given[name], flag(name)), 0, flag(name))
        else:
            value = _from_environment(name, defined, environ)
            if value is not None:
                found[name] = value
    _settle_addresses(found, environ)
    _check(found)
    if "root_path" in found:
        found["root_path"] = dataclasses.replace(found["root_path"], value=found["root_path"].value.rstrip("/"))
    return Config(app=app, **{name: value.value for name, value in found.items()})


def _from_environment(name: str, defined: Option, environ: Mapping[str, str]) -> _Value | None:
    own = ENV_PREFIX + name.upper()
    for tier, variable in enumerate((own, *defined.env), start=1):
        text = environ.get(variable, "").strip()
        # Kubernetes sets SERVE_PORT=tcp://… in every pod beside a service that is called "serve".
        if text and not (variable == "SERVE_PORT" and text.startswith("tcp://")):
            raw: Given = tuple(t for t in re.split(r"[\s,]+", text) if t) if several(name) else text
            return _Value(_read(name, defined, raw, variable), min(tier, 2), variable)
    return None


def _read(name: str, defined: Option, raw: Given, source: str) -> Any:
    """Turn text into the option's type and check it by itself."""
    if isinstance(raw, bool):
        return raw
    if isinstance(raw, tuple):
        return tuple(_read_one(name, defined, text, source) for text in raw)
    return _read_one(name, defined, raw, source)


def _read_one(name: str, defined: Option, text: str, source: str) -> Any:
    wanted = kind(name)
    if wanted is bool:
        return _boolean(text, source)
    if wanted in (int, float):
        return _number(text, wanted, defined, source)
    if defined.choices and text not in defined.choices:
        raise UsageError(f"{source}: {text!r} is not one of {', '.join(defined.choices)}")
    if "\0" in text:
        raise UsageError(f"{source} holds a NUL character, which no name or path may")
    return text


def _boolean(text: str, source: str) -> bool:
    if text.lower() in TRUE | FALSE:
        return text.lower() in TRUE
    raise UsageError(f"{source}: {text!r} is neither true nor false; write 1 or 0")


def _number(text: str, wanted: type, defined: Option, source: str) -> int | float:
    what = "a whole number" if wanted is int else "a number"
    unit = f" of {defined.unit.lower() if defined.unit != 'MIB' else 'MiB'}" if defined.unit in UNITS else ""
    try:
        value: int | float = int(text) if wanted is int else float(text)
    except ValueError:
        raise UsageError(f"{source}: {text!r} is not {what}{unit}") from None
    if not math.isfinite(value):
        raise UsageError(f"{source}: {text!r} is not {what}{unit}")
    if defined.minimum is not None and value < defined.minimum:
        raise UsageError(f"{source}: {text} is too small; the least is {defined.minimum:g}")
    if defined.maximum is not None and value > defined.maximum:
        raise UsageError(f"{source}: {text} is too large; the most is {defined.maximum:g}")
    return value


UNITS: Final = frozenset({"SECONDS", "BYTES", "MIB"})


def _settle_addresses(found: dict[str, _Value], environ: Mapping[str, str]) -> None:
    """--bind stands against --host and --port: the nearer source wins, and both from one source is an error.

    A platform's PORT also yields to sockets that were inherited, since nobody asked for it by hand.
    """
    bind = found.get("bind")
    by_hand = [found[name] for name in ("host", "port") if name in found]
    if bind is not None:
        rival = min(by_hand, key=lambda value: value.tier, default=None)
        if rival is not None and rival.tier == bind.tier:
            raise UsageError(
                f"{bind.source} and {rival.source} were both given: use either {bind.source} HOST:PORT or host and port"
            )
        if rival is not None and rival.tier < bind.tier:
            del found["bind"]
        else:
            found.pop("host", None)
            found.pop("port", None)
    inherits = "fd" in found or environ.get("LISTEN_PID") == str(os.getpid())
    port = found.get("port")
    if inherits and port is not None and port.tier == 2 and "host" not in found:
        del found["port"]


def _check(found: Mapping[str, _Value]) -> None:
    """What a value must be beyond its type, and what can be found out before anything is started."""
    for text in found["bind"].value if "bind" in found else ():
        parse_address(text)
    for name in ("unix_mode", "umask"):
        if name in found and not re.fullmatch("0?o?[0-7]{1,4}", found[name].value):
            raise UsageError(
                f"{found[name].source}: {found[name].value!r} is not an octal mode; write one such as 0660"
            )
    for name in ("health_path", "root_path"):
        if name in found and found[name].value and not found[name].value.startswith("/"):
            raise UsageError(f"{found[name].source}: {found[name].value!r} must begin with a slash")
    _check_proxies(found)
    _check_paths(found)
    _check_account(found)


def _check_proxies(found: Mapping[str, _Value]) -> None:
    read: dict[str, Callable[[str], object]] = {
        "forwarded_allow_ips": Networks,
        "forwarded_headers": believed,
        "proxy_protocol_allow_ips": Networks,
    }
    for name, reader in read.items():
        if name in found:
            try:
                reader(found[name].value)
            except ValueError as error:
                raise UsageError(f"{found[name].source}: {error}") from None
    mount = found.get("root_path")
    if mount is not None and re.search(r"[\x00-\x1f\x7f?#\\]|//|/\.\.?(?:/|\Z)", mount.value):
        raise UsageError(f"{mount.source}: {mount.value!r} is not a path to mount at; write one such as /api")


def _check_paths(found: Mapping[str, _Value]) -> None:
    for name in ("chdir", "app_dir"):
        # A relative --app-dir is looked for in --chdir, when the workers start.
        if name in found and not (name == "app_dir" and "chdir" in found) and not os.path.isdir(found[name].value):
            raise UsageError(f"{found[name].source}: there is no directory {found[name].value}")
    if "env_file" in found and not os.access(found["env_file"].value, os.R_OK):
        raise UsageError(f"{found['env_file'].source}: the file {found['env_file'].value} cannot be read")


def _check_account(found: Mapping[str, _Value]) -> None:
    for name, look_up in (("user", _user), ("group", _group)):
        value = found.get(name)
        if value is None or not value.value:
            continue
        try:
            number, own = look_up(value.value)
        except KeyError:
            raise UsageError(f"{value.source}: this machine knows no {name} {value.value!r}") from None
        if os.geteuid() != 0 and number != own:
            raise UsageError(f"{value.source}: only root can change to another {name}; leave it out, or start as root")


def _user(name: str) -> tuple[int, int]:
    return int(name) if name.isdigit() else pwd.getpwnam(name).pw_uid, os.geteuid()


def _group(name: str) -> tuple[int, int]:
    return int(name) if name.isdigit() else grp.getgrnam(name).gr_gid, os.getegid()
