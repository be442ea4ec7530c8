"""Environment variables that look like options of this server and are none: most likely they were misspelt.

A wrong key of the configuration file is an error, since the file is this server's alone. The environment is
everybody's: an application may have names of its own that begin with SERVE_, and Kubernetes sets some in every pod
beside a service that is called `serve` or `serve-…`. So only a name that is near to one of ours is told, and it is no
error.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Final

from serve_asgi.config.options import ENV_PREFIX, environment_names, options
from serve_asgi.config.other_servers import of_another_server

OTHERS: Final = ("SERVE_APP", "SERVE_CONTROL", "SERVE_EVENT", "SERVE_LISTENER_PID", "SERVE_ESTATE")
"""Names of ours that are no options: the application, and what hooks and a listener's new program are given."""
NEAR: Final = 0.75
"""From which likeness on (`difflib`, 0 to 1) a name was meant to be another one."""
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
