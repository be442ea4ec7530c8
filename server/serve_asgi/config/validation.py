"""Checks of values beyond their types: which exclude each other, and what can be checked before a start.

It owns the errors about invalid values; each begins with the place that the value came from. Relative paths start in
the directory that the server was started in.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

from serve_asgi.config.accounts import find_group, find_user
from serve_asgi.config.application_name import suggested
from serve_asgi.config.hook_events import read_hook
from serve_asgi.config.listen_addresses import TcpAddress, UnixAddress, parse_address
from serve_asgi.config.options import APP_LOG_WORDS
from serve_asgi.config.state_location import is_url, store_address
from serve_asgi.config.trusted_proxies import TrustedNetworks, believed
from serve_asgi.config.values import FoundValue, SourcePriority, read_max_age, read_path_time, read_static
from serve_asgi.errors import UsageError
from serve_asgi.logs import log_config
from serve_asgi.logs.access_log_format import NAMED, compile_format
from serve_asgi.logs.request_ids import HEADER_NAME

IMPORTED: Final = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*(?:\.[^\W\d]\w*)*")
"""module.sub:attribute.sub."""

Found = dict[str, FoundValue]
"""The values that were found, by field name."""


def settle_addresses(found: Found, environ: Mapping[str, str]) -> None:
    """--bind excludes --host and --port: the source with priority wins, and both from one source is an error.

    A platform's PORT also yields to inherited sockets, since nobody has set it by hand.
    """
    bind = found.get("bind")
    by_hand = [found[name] for name in ("host", "port") if name in found]
    if bind is not None:
        rival = min(by_hand, key=lambda value: value.source.tier, default=None)
        if rival is not None and rival.source.tier == bind.source.tier:
            raise UsageError(
                f"{bind.source} and {rival.source} were both given: use either {bind.source.name} HOST:PORT or host "
                "and port"
            )
        if rival is not None and rival.source.tier < bind.source.tier:
            del found["bind"]
        else:
            found.pop("host", None)
            found.pop("port", None)
    inherits = "fd" in found or environ.get("LISTEN_PID") == str(os.getpid())
    port = found.get("port")
    if inherits and port is not None and port.source.tier is SourcePriority.PLATFORM and "host" not in found:
        del found["port"]


def check(found: Found, directory: str) -> None:
    """Raise UsageError for the first invalid value; `directory` is the one the server was started in."""
    _check_host(found)
    _check_addresses(found)
    _check_unix(found)
    _check_tls(found)
    for name in ("unix_mode", "umask"):
        if name in found and not re.fullmatch("(0o)?[0-7]{1,4}", found[name].value):
            raise UsageError(
                f"{found[name].source}: {found[name].value!r} is not an octal mode; write one such as 0660"
            )
    for name in ("health_path", "root_path"):
        if name in found and found[name].value and not found[name].value.startswith("/"):
            raise UsageError(f"{found[name].source}: {found[name].value!r} must begin with a slash")
    _check_health(found)
    _check_request_timeout(found)
    _check_static(found)
    _check_proxies(found)
    _check_logging(found, directory)
    _check_hooks(found)
    _check_canary(found)
    _check_state(found)
    _check_agent_scope(found)
    _check_fleet_orders(found)
    _check_paths(found, directory)
    _check_account(found)
    if "agent" in found and found["agent"].value:
        _check_agent(found["agent"])


def check_application(app: FoundValue, directory: str) -> None:
    """Raise UsageError for what cannot be the name of an application, which is looked for in `directory`."""
    text = str(app.value)
    module, _, attribute = text.partition(":")
    is_path = "/" in module or (module.endswith(".py") and not os.path.isdir(os.path.join(directory, module[:-3])))
    if IMPORTED.fullmatch(text) and not is_path:
        return
    where = "" if app.source.tier is SourcePriority.COMMAND_LINE else f"{app.source}: "
    example = suggested(text, directory)
    if is_path:
        raise UsageError(f"{where}{text!r} is a path: name the module and what is in it, for example {example}")
    if attribute.endswith("()") and IMPORTED.fullmatch(text.removesuffix("()")):
        raise UsageError(
            f"{where}{text!r} is a call: write {text.removesuffix('()')}, and --factory (in a file, factory = "
            "true) if it returns the application"
        )
    raise UsageError(f"{where}{app.value!r} is not an application: write module:attribute, for example {example}")


def _check_agent(agent: FoundValue) -> None:
    if not IMPORTED.fullmatch(agent.value):
        raise UsageError(
            f"{agent.source}: {agent.value!r} is not an agent: write module:attribute, for example app:agent"
        )


def _check_addresses(found: Found) -> None:
    given = [(found["bind"].source, text, "") for text in found["bind"].value] if "bind" in found else []
    if "admin" in found and found["admin"].value:
        given.append((found["admin"].source, found["admin"].value, "the metrics and their page speak no TLS"))
    if _value(found, "statsd"):
        given.append((found["statsd"].source, found["statsd"].value, "statsd is told in clear text"))
    if not _value(found, "tls_cert"):
        given = [(source, text, why or "it needs --tls-cert and --tls-key to speak TLS") for source, text, why in given]
    for source, text, not_secure in given:
        try:
            address = parse_address(text)
            if not_secure and isinstance(address, TcpAddress) and address.secure:
                raise UsageError(f"the address {text!r} is not possible: {not_secure}; plain is {address}")
        except UsageError as error:
            told = source.path or "bind" not in found or source is not found["bind"].source
            raise UsageError(f"{source}: {error}" if told else str(error)) from None


def _value(found: Found, name: str) -> Any:
    """The value of an option, or None if it was not given."""
    return found[name].value if name in found else None


def _check_tls(found: Found) -> None:
    certificates, keys = _value(found, "tls_cert") or (), _value(found, "tls_key") or ()
    if not certificates:
        for name in ("tls_key", "tls_client_ca", "tls_crl", "https_redirect"):
            if _value(found, name):
                raise UsageError(f"{found[name].source} does nothing without a certificate: give --tls-cert as well")
    if keys and len(keys) != len(certificates):
        raise UsageError(
            f"{found['tls_key'].source}: there are {len(keys)} keys and {len(certificates)} certificates: give one key "
            "for each, in the same order, or none, if each stands in its certificate's file"
        )
    if _value(found, "tls_key_password") and _value(found, "tls_key_password_file"):
        first, second = found["tls_key_password"].source, found["tls_key_password_file"].source
        raise UsageError(f"{first} and {second} were both given: leave one out")
    if not _value(found, "tls_client_ca"):
        for name, value in (("tls_client_auth", "optional"), ("tls_client_auth", "required"), ("tls_crl", None)):
            if (given := _value(found, name)) and value in (None, given):
                raise UsageError(
                    f"{found[name].source} needs to know the authorities of clients' certificates: give --tls-client-ca"
                )


def _check_host(found: Found) -> None:
    host = found.get("host")
    if host is None:
        return
    text = host.value.removeprefix("[").removesuffix("]")
    try:
        plain = ":" not in text or ipaddress.ip_address(text.partition("%")[0]).version == 6
    except ValueError:
        plain = False
    if not plain or re.search(r"[\s/\[\]]", text):
        raise UsageError(
            f"{host.source}: {host.value!r} is not a host: write a name or an address alone; its port is given by "
            f"{'port' if host.source.path else '--port'}"
        )


def _check_health(found: Found) -> None:
    path = found.get("health_path")
    if path is None:
        return
    if not path.value:
        off = "health = false" if path.source.path else "--no-health"
        raise UsageError(f"{path.source} is empty: write {off} to answer no such path")
    if re.search(r"[\x00-\x20\x7f-\U0010ffff?#]", path.value):
        raise UsageError(
            f"{path.source}: {path.value!r} cannot be requested by a client: write a path of ASCII characters, without "
            "spaces, ? and #, as in /ping"
        )


def _check_request_timeout(found: Found) -> None:
    _check_prefixes(found, "request_timeout", read_path_time, "the time for all paths")


def _check_prefixes(found: Found, name: str, read: Callable[[str], tuple[str, object]], of_all: str) -> None:
    """Each prefix has one rule; `of_all` names the one without a prefix."""
    rules = found.get(name)
    if rules is None:
        return
    prefixes = []
    for text in rules.value:
        try:
            prefixes.append(read(text)[0])
        except ValueError as error:
            raise UsageError(f"{rules.source}: {error}") from None
    for prefix in prefixes:
        if prefixes.count(prefix) > 1:
            raise UsageError(f"{rules.source}: {prefix or of_all} is given twice: leave one out")


def _check_static(found: Found) -> None:
    for text in found["static"].value if "static" in found else ():
        try:
            read_static(text)
        except ValueError as error:
            raise UsageError(f"{found['static'].source}: {error}") from None
    _check_prefixes(found, "static_max_age", read_max_age, "the lifetime of all files")


def _check_unix(found: Found) -> None:
    """Refuse options that would be ignored because the socket is not a file."""
    texts = [*(found["bind"].value if "bind" in found else ()), *([found["admin"].value] if "admin" in found else [])]
    unix = [address for address in map(parse_address, filter(None, texts)) if isinstance(address, UnixAddress)]
    mode, control = found.get("unix_mode"), found.get("control")
    if mode is not None and unix and all(address.is_abstract for address in unix):
        raise UsageError(
            f"{mode.source}: {unix[0]} is an abstract socket, which has no mode, so that anybody on this machine may "
            "connect: name a path, as in unix:/run/app.sock, or leave the mode out"
        )
    if control is not None and control.value.startswith(("@", "unix:")):
        raise UsageError(
            f"{control.source}: {control.value!r} is not a path, and the control socket is a file, whose mode keeps "
            "others out: write a path, such as /run/app/control.sock"
        )


def _check_state(found: Found) -> None:
    if "state" in found and is_url(found["state"].value):
        try:
            store_address(found["state"].value)
        except UsageError as error:
            raise UsageError(
                f"{found['state'].source}: {error}" if found["state"].source.path else str(error)
            ) from None


def _check_agent_scope(found: Found) -> None:
    scope = found.get("agent_scope")
    if scope is not None and scope.value == "cluster" and not ("state" in found and is_url(found["state"].value)):
        raise UsageError(
            f"{scope.source}: one agent among several servers needs a state that they share: add --state "
            "redis://HOST:PORT/DB or postgresql://HOST/DATABASE, or leave --agent-scope out"
        )


def _check_fleet_orders(found: Found) -> None:
    orders = found.get("fleet_orders")
    if orders is not None and orders.value and not ("state" in found and is_url(found["state"].value)):
        raise UsageError(
            f"{orders.source}: orders come through a state that servers share: add --state redis://HOST:PORT/DB or "
            "postgresql://HOST/DATABASE, or leave --fleet-orders out"
        )


def _check_proxies(found: Found) -> None:
    read: dict[str, Callable[[str], object]] = {
        "forwarded_allow_ips": TrustedNetworks,
        "forwarded_headers": believed,
        "proxy_protocol_allow_ips": TrustedNetworks,
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


def _check_hooks(found: Found) -> None:
    for text in found["hook"].value if "hook" in found else ():
        try:
            read_hook(text)
        except ValueError as error:
            raise UsageError(f"{found['hook'].source}: {error}") from None


def _check_logging(found: Found, directory: str) -> None:
    lines, file = found.get("app_log"), found.get("log_config")
    if lines is not None and lines.value not in APP_LOG_WORDS and not re.search(r"[./]", lines.value):
        raise UsageError(
            f"{lines.source}: {lines.value!r} is none of {', '.join(APP_LOG_WORDS)}; a file is written with its "
            f"directory, as in ./{lines.value or 'app.log'}"
        )
    if file is not None and file.value:
        try:
            log_config.read(os.path.join(directory, file.value))
        except UsageError as error:
            raise UsageError(f"{file.source}: {error}") from None
    style, name = found.get("access_log_format"), found.get("request_id_header")
    if style is not None and style.value not in NAMED:
        try:
            compile_format(style.value)
        except ValueError as error:
            raise UsageError(f"{style.source}: {error}") from None
    if name is not None and not HEADER_NAME.fullmatch(name.value):
        raise UsageError(f"{name.source}: {name.value!r} is not the name of a header; write one: x-request-id")


def _check_canary(found: Found) -> None:
    name = found.get("canary_header")
    if name is not None and name.value and not HEADER_NAME.fullmatch(name.value):
        raise UsageError(f"{name.source}: {name.value!r} is not the name of a header; write one: x-serve-generation")


def _check_paths(found: Found, directory: str) -> None:
    for name in ("chdir", "app_dir"):
        # A relative --app-dir starts in --chdir, when the workers start.
        if name not in found or (name == "app_dir" and "chdir" in found):
            continue
        if not os.path.isdir(os.path.join(directory, found[name].value)):
            raise UsageError(f"{found[name].source}: there is no directory {found[name].value}")
    if "env_file" in found and not os.access(os.path.join(directory, found["env_file"].value), os.R_OK):
        raise UsageError(f"{found['env_file'].source}: the file {found['env_file'].value} cannot be read")


def _check_account(found: Found) -> None:
    if sys.platform == "win32":
        return
    user: Callable[[str], int] = lambda text: find_user(text).pw_uid  # noqa: E731
    for name, look_up, own in (("user", user, os.geteuid()), ("group", find_group, os.getegid())):
        value = found.get(name)
        if value is None or not value.value:
            continue
        try:
            number = look_up(value.value)
        except (KeyError, OverflowError):
            raise UsageError(f"{value.source}: this machine knows no {name} {value.value!r}") from None
        if os.geteuid() != 0 and number != own:
            raise UsageError(f"{value.source}: only root can change to another {name}; leave it out, or start as root")
    if (given := found.get("unix_group")) is not None and given.value:
        try:
            find_group(given.value)
        except KeyError:
            raise UsageError(f"{given.source}: this machine knows no group {given.value!r}") from None
