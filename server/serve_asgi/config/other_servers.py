"""What people who know other servers write, and what to tell them: their options are not skipped, nor guessed at."""

from __future__ import annotations

import re
from typing import Final

TLS: Final = (
    "{option} is not there yet: TLS and HTTP/2 come with a later version; until then, put a proxy that ends TLS "
    "(nginx, HAProxy, Caddy) in front and let it speak HTTP/1.1 to this server"
)
HINTS: Final = {
    **dict.fromkeys(
        ("--ssl-certfile", "--ssl-keyfile", "--ssl-keyfile-password", "--ssl-version", "--ssl-ciphers"), TLS
    ),
    **dict.fromkeys(
        ("--ssl-ca-certs", "--ssl-cert-reqs", "--ssl-certificate", "--certfile", "--keyfile", "--ca-certs"), TLS
    ),
    **dict.fromkeys(("--ssl", "--tls", "--ciphers", "--http2", "--quic-bind", "--insecure-bind"), TLS),
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
    "--preload": "{option} is not offered: the listener never imports the application, so that a reload can renew it",
    "--access-logfile": "{option} is --access-log-file here",
    "--error-logfile": "{option} is --log-file here",
    "--log-config": "{option} is not offered: use --log-level, --log-file and --access-log-format",
}
"""What to say to those who know the options of other servers."""


def of_another_server(option: str) -> str:
    """The sentence about an option that others have and this server has not, by its long form; "" if none is known."""
    told = HINTS.get(option, TLS if option.startswith(("--ssl", "--tls")) else "")
    return told.format(option=option)


def key_of_another_server(written: str) -> str:
    """The same about a key of a configuration file, in which options have no dashes in front."""
    told = of_another_server("--" + written.replace("_", "-")).replace("--" + written.replace("_", "-"), written)
    told = re.sub(r"--bind (\S+)", r'bind = "\1"', told)
    return re.sub(r"(?<!\S)--(?=[a-z])", "", told)
