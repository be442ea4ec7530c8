"""What a generation is made with, the settings and what they name on this machine: all of it is known before it begins.

Finding it out reads files and follows links, which may lie on a disk that does not answer: in a reload that happens in
a thread, with a deadline, so that the listener never waits for a disk.
"""

from __future__ import annotations

import dataclasses
import os
import signal
from typing import Final

import anyio

from serve_asgi.config import release
from serve_asgi.config.options import Config
from serve_asgi.config.release import Release
from serve_asgi.config.sources import Settings
from serve_asgi.errors import UsageError
from serve_asgi.ipc.signals import LISTENER_SIGNALS
from serve_asgi.supervisor.lifecycles import Policy

READ_TIME: Final = 10.0
"""Seconds that reading the configuration may take in a reload; then the reload is refused."""


@dataclasses.dataclass(frozen=True, slots=True)
class GenerationConfig:
    """What one generation is made with."""

    settings: Settings
    release: Release

    @property
    def policy(self) -> Policy:
        """The supervisor's numbers."""
        return policy_of(self.settings.config)


def policy_of(config: Config) -> Policy:
    """The supervisor's numbers out of the configuration."""
    return Policy(
        workers=config.workers,
        start_concurrency=config.start_concurrency or max(1, len(os.sched_getaffinity(0)) // 2),
        max_generations=config.max_generations,
        startup_timeout=config.startup_timeout,
        graceful_timeout=config.graceful_timeout,
        shutdown_timeout=config.shutdown_timeout,
        drain_delay=config.drain_delay,
        agent=bool(config.agent),
        agent_timeout=config.agent_timeout,
    )


def resolve_config(settings: Settings, start_directory: str) -> GenerationConfig:
    """The plan that `settings` make. Raises UsageError for what they name and is not there; reads files."""
    return GenerationConfig(settings, release.resolve(settings.config, start_directory))


async def resolve_anew(settings: Settings, start_directory: str) -> GenerationConfig:
    """The plan of the next generation: the configuration is read again, and links are followed anew.

    Raises UsageError for what is wrong with it, what cannot change while the server runs, and if it takes longer than
    `READ_TIME`.
    """

    def plan() -> GenerationConfig:
        # A thread may take no signal: one taken there just before execve(2) would be lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, LISTENER_SIGNALS)
        fresh = settings.again()
        if trouble := settings.not_live(fresh):
            raise UsageError(trouble)
        return resolve_config(fresh, start_directory)

    with anyio.move_on_after(READ_TIME):
        return await anyio.to_thread.run_sync(plan, abandon_on_cancel=True)
    raise UsageError(f"the configuration could not be read within {READ_TIME:g} s; is the disk all right?")
