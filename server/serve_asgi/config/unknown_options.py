"""Options that this server does not have: those of other servers, and misspelt environment variables.

Options of other servers are neither ignored nor guessed: the error says what to write instead.

A wrong key of the configuration file is an error, since the file is only for this server. The environment is shared: an
application may have variables of its own that begin with SERVE_, and Kubernetes sets some in every pod if there is a
service called `serve` or `serve-…`. So only a name that is similar to one of ours is reported, and only as a warning.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Final

from serve_asgi.config.options import ENV_PREFIX, environment_names, options

HTTP2_FIXED: Final = "{option} is not offered: windows, frames and buffers of HTTP/2 are fixed (docs/guides/http2.md)"
HINTS: Final = {
    **dict.fromkeys(("--ssl-certfile", "--ssl-certificate", "--certfile"), "{option} is --tls-cert here"),
    **dict.fromkeys(("--ssl-keyfile", "--keyfile"), "{option} is --tls-key here"),
    "--ssl-keyfile-password": "{option} is --tls-key-password-file here, the name of a file that holds it",
    **dict.fromkeys(("--ssl-ca-certs", "--ca-certs"), "{option} is --tls-client-ca here"),
    **dict.fromkeys(
        ("--ssl-cert-reqs", "--cert-reqs"), "{option} is --tls-client-auth here: none, optional or required"
    ),
    "--ssl-version": "{option} is --tls-min-version here: 1.2 or 1.3",
    **dict.fromkeys(("--ssl-ciphers", "--ciphers"), "{option} is --tls-ciphers here"),
    **dict.fromkeys(("--ssl", "--tls"), "{option} is not needed: --tls-cert and --tls-key turn TLS on"),
    "--insecure-bind": "{option} is written --bind http://HOST:PORT here",
    "--quic-bind": "{option} is not offered: there is no HTTP/3; a proxy in front (nginx, HAProxy, Caddy) can speak it",
    "--http-protocols": "{option} is --http2 on or off here; HTTP/1.1 is always spoken",
    "--http2-cleartext": "{option} is not needed: --http2 on takes prior knowledge in clear text too",
    "--http1": "{option} is not needed: HTTP/1.1 is always spoken",
    "--no-http1": "{option} is not offered: HTTP/1.1 is always spoken, and --http2 on adds HTTP/2",
    **dict.fromkeys(
        ("--http2-max-concurrent-streams", "--max-concurrent-streams"), "{option} is --h2-max-streams here"
    ),
    **dict.fromkeys(
        (
            "--h2-max-header-block-size",
            "--h2-max-header-list-size",
            "--http2-max-header-list-size",
            "--http2-max-headers-size",
        ),
        "{option} is --max-head-size here, for HTTP/1.1 and HTTP/2 alike",
    ),
    **dict.fromkeys(
        ("--h2-timeout-response-stall", "--h2-timeout-write"), "{option} is --write-timeout here, of HTTP/1.1 as well"
    ),
    **dict.fromkeys(
        (
            "--h2-initial-connection-window-size",
            "--h2-initial-stream-window-size",
            "--h2-max-inbound-frame-size",
            "--http2-adaptive-window",
            "--http2-initial-connection-window-size",
            "--http2-initial-stream-window-size",
            "--http2-initial-window-size",
            "--http2-keep-alive-interval",
            "--http2-keep-alive-timeout",
            "--http2-max-frame-size",
            "--http2-max-send-buffer-size",
        ),
        HTTP2_FIXED,
    ),
    "--uds": "{option} is written --bind unix:PATH here",
    "--timeout": "{option} is --graceful-timeout here (how long requests may take to finish when a worker retires)",
    "--timeout-keep-alive": "{option} is --keep-alive here",
    "--timeout-graceful-shutdown": "{option} is --graceful-timeout here",
    "--limit-max-requests": "{option} is --max-requests here",
    "--worker-class": "{option} is not needed: choose the event loop with --loop, and --interface wsgi for WSGI",
    "-k": "{option} is not needed: choose the event loop with --loop, and --interface wsgi for WSGI",
    "--pythonpath": "{option} is --app-dir here",
    "--pid": "{option} is --pid-file here",
    "--pidfile": "{option} is --pid-file here",
    "-p": "{option} is --pid-file here for a pid file, and --port for a port",
    "--daemon": "{option} is not offered: run `serve` under a service manager, or in the background with &",
    "-D": "{option} is not offered: run `serve` under a service manager, or in the background with &",
    "--access-logfile": "{option} is --access-log-file here",
    "--error-logfile": "{option} is --log-file here",
    "--log-config": "{option} is not offered: use --log-level, --log-file and --access-log-format",
}
"""The errors for the options of other servers."""


def of_another_server(option: str) -> str:
    """The error for an option of another server, by its long form; "" if none is known."""
    return HINTS.get(option, "").format(option=option)


def key_of_another_server(written: str) -> str:
    """The same for a key of a configuration file, without leading dashes."""
    told = of_another_server("--" + written.replace("_", "-")).replace("--" + written.replace("_", "-"), written)
    told = re.sub(r"--bind (\S+)", r'bind = "\1"', told)
    return re.sub(r"(?<!\S)--(?=[a-z])", "", told)


OTHERS: Final = ("SERVE_APP", "SERVE_CONTROL", "SERVE_EVENT", "SERVE_LISTENER_PID", "SERVE_RE_EXEC")
"""Variables of ours that are not options: the application, and those for hooks and for a re-exec."""
NEAR: Final = 0.75
"""The similarity (`difflib`, 0 to 1) from which on a name is considered a misspelling of another."""
_OF_KUBERNETES: Final = re.compile(r".*_(?:SERVICE_HOST|SERVICE_PORT(?:_.*)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_.*)?)")


def told_of(environ: Mapping[str, str]) -> list[str]:
    """A sentence about each variable of `environ` that does nothing and was probably meant for this server."""
    meant = misspelt(environ)
    told = []
    for name in sorted(environ):
        option = "--" + name.removeprefix(ENV_PREFIX).lower().replace("_", "-")
        if name.startswith(ENV_PREFIX) and (instead := of_another_server(option)):
            told.append(f"the environment variable {name} does nothing: {instead}")
        elif name in meant:
            told.append(f"the environment variable {name} does nothing: did you mean {meant[name]}?")
    return told


def misspelt(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of `environ` that do nothing, and the names that were probably meant."""
    known = {name for option, (_, defined) in options().items() for name in environment_names(option, defined)}
    known |= set(OTHERS)
    meant = {}
    for name in sorted(environ):
        ours = name.upper().startswith(ENV_PREFIX) and name not in known and not name.startswith("SERVE_EVENT_")
        if not ours or environ[name].startswith(("tcp://", "udp://", "sctp://")) or _OF_KUBERNETES.fullmatch(name):
            continue
        wanted = {each.removeprefix(ENV_PREFIX): each for each in known if each.startswith(ENV_PREFIX)}
        rest = re.sub(r"[^A-Z]", "_", name.upper().removeprefix(ENV_PREFIX))
        if near := difflib.get_close_matches(rest, sorted(wanted), 1, NEAR):
            meant[name] = wanted[near[0]]
    return meant
