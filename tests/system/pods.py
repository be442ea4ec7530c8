"""What a container's probes mean for the server in it: how long it may take to start, and when it is killed."""

from __future__ import annotations

from typing import Any

from serve_asgi.config.options import Config
from serve_asgi.config.sources import build, several
from serve_asgi.config.values import Given
from serve_asgi.listener.blocked_workers import BEAT, LONGEST_PERIOD, ROUNDS, STACKS_TIME

Container = dict[str, Any]


def options_of(container: Container) -> Config:
    """The options that a container's arguments give; raises for what is wrong."""
    app, *options = container["args"]
    given: dict[str, Given] = {}
    for option in options:
        name, equals, text = option.removeprefix("--").partition("=")
        field = name.replace("-", "_")
        if several(field):
            before = given.get(field, ())
            assert isinstance(before, tuple)
            given[field] = (*before, text)
        else:
            given[field] = text if equals else True
    return build(app, given, {})


def started_within(container: Container) -> float:
    """Seconds that the server has from its start until it answers; then the kubelet kills it."""
    probe = container["startupProbe"]
    return float(probe["periodSeconds"] * probe["failureThreshold"])


def starts_within(config: Config) -> float:
    """Seconds that a server may take on one core: its workers start one after the other, after their template."""
    return config.startup_timeout * (config.workers + (config.preload != "off"))


def killed_after(container: Container) -> float:
    """Fewest seconds from the moment from which no worker answers until the kubelet kills the container."""
    probe = container["livenessProbe"]
    return float((probe["failureThreshold"] - 1) * probe["periodSeconds"] + probe["timeoutSeconds"])


def replaced_after(config: Config) -> float:
    """Most seconds from the moment from which every worker is blocked until another one answers."""
    timeout = config.worker_timeout
    return timeout + BEAT + min(LONGEST_PERIOD, timeout / ROUNDS) + STACKS_TIME + config.startup_timeout
