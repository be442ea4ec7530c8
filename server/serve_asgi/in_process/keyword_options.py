"""The options of a server in process, as keywords: which there are, their defaults, and what is said of the others.

They are the options of the command line with underscores, and mean the same. The environment and configuration files
are not read: what a test or a program does must not depend on them. Values are checked as those of a file are.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Mapping
from typing import Any, Final, TypedDict

from serve_asgi.config.options import Config, options
from serve_asgi.config.unknown_options import key_of_another_server
from serve_asgi.config.validation import Found, check, settle_addresses
from serve_asgi.config.values import FoundValue, Source, SourcePriority, from_toml

PathLike = str | os.PathLike[str]


class ServerOptions(TypedDict, total=False):
    """What `Server` takes besides the application; docs/reference/options.md has the meanings."""

    factory: bool
    lifespan: str
    interface: str
    wsgi_threads: int
    bind: str | list[str] | tuple[str, ...]
    host: str
    port: int
    fd: int | list[int] | tuple[int, ...]
    backlog: int
    unix_mode: str
    tls_cert: PathLike | list[PathLike] | tuple[PathLike, ...]
    tls_key: PathLike | list[PathLike] | tuple[PathLike, ...]
    tls_key_password: str
    tls_key_password_file: PathLike
    tls_client_ca: PathLike
    tls_client_auth: str
    tls_crl: PathLike
    tls_min_version: str
    tls_ciphers: str
    tls_handshake_timeout: float
    https_redirect: bool
    startup_timeout: float
    graceful_timeout: float
    shutdown_timeout: float
    health_path: str
    health: bool
    http: str
    keep_alive: float
    first_byte_timeout: float
    head_timeout: float
    min_body_rate: int
    write_timeout: float
    request_timeout: str | float | list[str | float] | tuple[str | float, ...]
    max_head_size: int
    max_headers: int
    max_target_size: int
    max_body_size: int
    max_concurrency: int
    max_connections: int
    early_hints: bool
    http2: str | bool
    h2_max_streams: int
    static: str | list[str] | tuple[str, ...]
    static_max_age: str | int | list[str | int] | tuple[str | int, ...]
    server_header: bool
    date_header: bool
    forwarded_allow_ips: str | list[str]
    forwarded_headers: str | list[str]
    proxy_protocol: bool
    proxy_protocol_allow_ips: str | list[str]
    proxy_protocol_timeout: float
    root_path: str
    ws_max_size: int
    ws_ping_interval: float
    ws_ping_timeout: float
    ws_deflate: bool
    ws_retire: str
    ws_retire_window: float
    access_log: bool
    access_log_file: PathLike
    access_log_format: str
    request_id: str
    request_id_header: str
    # as uvicorn calls them
    ssl_certfile: PathLike
    ssl_keyfile: PathLike
    ssl_keyfile_password: str
    ssl_ca_certs: PathLike
    ssl_ciphers: str


class RunOptions(ServerOptions, total=False):
    """What `run` takes besides the application: it owns the process, so it may set up the event loop and the log."""

    loop: str
    log_level: str
    log_format: str
    log_file: PathLike


DEFAULTS: Final[Mapping[str, Any]] = {
    "access_log": False,
    "graceful_timeout": 5.0,
    "shutdown_timeout": 5.0,
    "ws_retire": "early",
    "ws_retire_window": 0.0,
}
"""Where they differ from those of `serve`: nobody waits for half a minute until a test ends."""

OTHER_PROCESSES: Final = (
    "{name} is for a server with processes of its own, and this one is a part of the calling process: start it with "
    "`serve`, or leave {name} out"
)
THE_CALLERS: Final = "{name} is the calling program's own to decide: leave it out"
REFUSED: Final[Mapping[str, str]] = {
    "app_dir": "app_dir is not taken: put the directory on sys.path, or pass the application itself",
    "config": "config is not taken: no file is read here; pass its options as keywords",
    "loop": "loop is not taken: the server runs in the event loop that is running; serve_asgi.run takes it",
    "reload": "reload is not taken: start `serve APP --reload`, which restarts the process on changes",
    "state": "state is not taken: the shared state of a server in process ends with it",
    "agent": "agent is not taken: run it beside the server with `async with agent.running(…)`",
    "workers": "workers is not taken: this is one worker, in the calling process; start `serve APP --workers N`",
    **dict.fromkeys(("chdir", "env_file", "environment", "python", "umask", "user", "group"), THE_CALLERS),
    **dict.fromkeys(("app_log", "log_config"), "{name} is not taken: the calling program sets up logging for itself"),
    **dict.fromkeys(("log_level", "log_format", "log_file"), "{name} is not taken: logging.getLogger('serve') is it"),
}
"""Why an option is none here, by its name; `OTHER_PROCESSES` is why the rest are none."""


def read_options(options_given: Mapping[str, Any], *, runs: bool = False) -> Config:
    """The configuration that the keywords make; `runs` if they are those of `run`.

    Raises TypeError for a name that is no keyword here, UsageError for a value that cannot be.
    """
    known = (RunOptions if runs else ServerOptions).__annotations__
    found: Found = {
        name: FoundValue(value, Source(SourcePriority.DEFAULT, "in process")) for name, value in DEFAULTS.items()
    }
    aliases = {former_keyword(defined.former): name for name, (_, defined) in options().items() if defined.former}
    for given, value in options_given.items():
        name = aliases.get(given, given)
        if name not in known:
            raise TypeError(_unknown(given, value, known))
        found[name] = from_toml(name, options()[name][1], _as_in_a_file(value), Source(SourcePriority.FILE, given))
    settle_addresses(found, {})
    check(found, os.getcwd())
    if "root_path" in found:
        found["root_path"] = dataclasses.replace(found["root_path"], value=found["root_path"].value.rstrip("/"))
    return Config(**{name: each.value for name, each in found.items()})


def former_keyword(flag: str) -> str:
    """The keyword of an old or foreign spelling of an option: --ssl-certfile is ssl_certfile."""
    return flag.removeprefix("--").replace("-", "_")


def _as_in_a_file(value: Any) -> Any:
    """A value in the types that a configuration file has."""
    if isinstance(value, (list, tuple)):
        return [_as_in_a_file(each) for each in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _as_keyword(found: re.Match[str]) -> str:
    """An option that a sentence about a file names, as a keyword."""
    name = former_keyword(found[0])
    return name if name in options() else found[0]


def _unknown(name: str, value: object, known: Mapping[str, Any]) -> str:
    """Why a name is no keyword, and what to write instead."""
    if name in REFUSED:
        return REFUSED[name].format(name=name)
    if name in options():
        return OTHER_PROCESSES.format(name=name)
    if told := key_of_another_server(name, value):
        return re.sub(r"[a-z0-9]+(?:-[a-z0-9]+)+", _as_keyword, told)
    near = difflib.get_close_matches(name, known, 1)
    return f"there is no option {name!r}" + (f": did you mean {near[0]!r}?" if near else "")
