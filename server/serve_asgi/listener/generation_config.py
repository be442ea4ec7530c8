"""What each generation runs with: its settings and what they resolve to on this machine, known before it begins.

Resolving reads files and follows links, possibly on a disk that hangs: in a reload it happens in a thread, with a
deadline, so that the listener never waits for a disk. The latest result becomes the next generation's when it begins,
and the server's own (`settings`) when it serves.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import anyio

from serve_asgi.config import release
from serve_asgi.config.options import Config
from serve_asgi.config.release import Release
from serve_asgi.config.sources import Settings
from serve_asgi.config.tls_files import TlsFiles
from serve_asgi.errors import UsageError
from serve_asgi.ipc.signals import LISTENER_SIGNALS
from serve_asgi.ipc.untrusted_input import sayable
from serve_asgi.listener.certificate_watch import CertificateWatch
from serve_asgi.listener.deploy_history import LONGEST_PATH, DeployedVersion
from serve_asgi.listener.event_history import Record
from serve_asgi.listener.helper_processes import HelperProcesses
from serve_asgi.listener.hooks import Hooks, trouble_at_reload
from serve_asgi.listener.previous_releases import PreviousReleases
from serve_asgi.supervisor import events as e
from serve_asgi.supervisor.lifecycles import Generation, Policy

READ_TIME: Final = 10.0
"""Seconds that reading the configuration may take in a reload; then the reload is refused."""

log = logging.getLogger("serve")


@dataclasses.dataclass(frozen=True, slots=True)
class GenerationConfig:
    """What one generation runs with."""

    settings: Settings
    release: Release

    def to_state(self) -> dict[str, Any]:
        """All of it, JSON-compatible, for a program that replaces this one."""
        return {"settings": self.settings.to_state(), "release": dataclasses.asdict(self.release)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> GenerationConfig:
        """The reverse; ignores options of another version that this one does not know."""
        known = {field.name for field in dataclasses.fields(Release)}
        found = {name: value for name, value in state["release"].items() if name in known}
        return cls(Settings.from_state(state["settings"]), Release(**found))

    @property
    def tls_files(self) -> TlsFiles | None:
        """What its TLS options name."""
        return TlsFiles.of(self.settings.config, self.settings.directory)

    def version(self, generation: int) -> DeployedVersion:
        """What is deployed when this generation serves."""
        app, directory, python = (
            sayable(text)[:LONGEST_PATH]
            for text in (self.settings.config.app, self.release.code or self.release.directory, self.release.python)
        )
        return DeployedVersion(generation, app, directory, python, self.release.commit)

    @property
    def policy(self) -> Policy:
        """The supervisor's numbers."""
        return policy_of(self.settings.config)


def policy_of(config: Config) -> Policy:
    """The supervisor's numbers, from the configuration."""
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
        agent_restart=config.agent_restart,
        agent_in_fleet=config.agent_scope == "cluster",
        agent_required=config.agent_required,
        auto_rollback=config.auto_rollback,
        canary=config.canary,
        canary_share=config.canary_share / 100,
        canary_time=config.canary_time,
        canary_latency=config.canary_latency,
        canary_hold=config.canary_inconclusive == "hold",
        keep_previous=max(config.keep_previous, config.canary_time if config.auto_rollback else 0.0),
    )


def resolve_config(settings: Settings, start_directory: str) -> GenerationConfig:
    """Resolve `settings`. Reads files; raises UsageError for what does not exist."""
    return GenerationConfig(settings, release.resolve(settings.config, start_directory, settings.file))


async def resolve_anew(settings: Settings, start_directory: str) -> GenerationConfig:
    """What the next generation runs with: reads the configuration and follows links again.

    Raises UsageError if it is invalid, if it changes what cannot change while the server runs, and if it takes longer
    than `READ_TIME`.
    """

    def resolve() -> GenerationConfig:
        fresh = settings.again()
        if trouble := settings.not_live(fresh):
            raise UsageError(trouble)
        if bool(settings.config.tls_cert) is not bool(fresh.config.tls_cert):
            raise UsageError(
                "a reload cannot turn TLS on or off, since each address keeps what it speaks: put tls-cert back, or "
                "restart the server"
            )
        return resolve_config(fresh, start_directory)

    return await _in_time(resolve)


async def _in_time(resolve: Callable[[], GenerationConfig]) -> GenerationConfig:
    """Call `resolve`, which reads the disk, in a thread. Raises what it raises; UsageError if it takes too long."""

    def resolved() -> GenerationConfig:
        # A thread must not receive signals: one received there just before execve(2) would be lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, LISTENER_SIGNALS)
        return resolve()

    with anyio.move_on_after(READ_TIME):
        return await anyio.to_thread.run_sync(resolved, abandon_on_cancel=True)
    raise UsageError(f"the configuration could not be read within {READ_TIME:g} s; is the disk all right?")


class GenerationConfigs:
    """What each living generation runs with, and what the next one will."""

    def __init__(
        self,
        first: GenerationConfig,
        start_directory: str,
        begun: Mapping[Generation, GenerationConfig],
        previous: Sequence[GenerationConfig] = (),
    ) -> None:
        """`first` is for the generation that begins, or already serves; `begun` are all that have begun before.

        `previous` are the releases before, as an earlier program of this process knew them.
        """
        self.settings = first.settings
        """The current generation's settings."""
        self.all = dict(begun)
        self.previous = PreviousReleases(previous)
        self._serving = first if begun else None
        self._next = first
        self._start_directory = start_directory

    def of(self, generation: Generation | None) -> GenerationConfig | None:
        """What a living generation runs with."""
        return self.all.get(generation) if generation is not None else None

    def release_of(self, current: Generation | None) -> Release | None:
        """What the current generation runs on, or will."""
        found = self.of(current) if current is not None else self._next
        return found.release if found is not None else None

    def begin(self, generation: Generation) -> None:
        """Note that a generation begins, with what was resolved last."""
        self.all[generation] = self._next

    def adopt(self, generation: Generation) -> Settings:
        """The generation serves: its settings become the server's; return the previous ones."""
        before, self.settings = self.settings, self.all[generation].settings
        replaced, self._serving = self._serving, self.all[generation]
        if generation.is_rollback:
            self.previous.returned(self._serving)
        elif replaced is not None:
            self.previous.succeeded(replaced, self._serving)
        return before

    def forget(self, generation: Generation) -> bool:
        """Forget a generation without processes; return whether it was to have an agent."""
        found = self.all.pop(generation, None)
        return found is not None and bool(found.settings.config.agent)

    def tls_files(self, generation: Generation) -> TlsFiles | None:
        """What the TLS options of a living generation name."""
        return self.all[generation].tls_files

    def all_tls_files(self) -> list[TlsFiles | None]:
        """The same of all that live, and of the one that is to begin."""
        return [each.tls_files for each in (*self.all.values(), self._next)]

    async def prepare(
        self,
        by: str,
        current: Generation | None,
        hooks: Hooks,
        processes: HelperProcesses,
        certificates: CertificateWatch,
        *,
        previous: bool = False,
    ) -> e.ReloadPrepared:
        """Read the configuration and run the pre_reload hooks, each within its deadline; say whether the reload may
        begin. With `previous` it is the previous release that is to be deployed again."""
        trouble, detail = "", ""
        try:
            if previous:
                config = await _in_time(self.previous.newest)
            else:
                config = await resolve_anew(self.settings, self._start_directory)
            if config.settings.config.hook:
                trouble, detail = await _ask_before_reload(config, by, current, hooks, processes)
            if not trouble:
                await certificates.prepare(config.tls_files)
                self._next = config
                return e.ReloadPrepared(config.policy)
        except UsageError as error:
            trouble = str(error)
        except Exception as error:
            log.exception("the reload could not be prepared")
            trouble = f"it could not be prepared: {error!r}"
        return e.ReloadPrepared(None, trouble, detail)


async def _ask_before_reload(
    found: GenerationConfig, by: str, current: Generation | None, hooks: Hooks, processes: HelperProcesses
) -> tuple[str, str]:
    """Check that the new configuration's hooks exist, and run pre_reload."""
    config = found.settings.config
    trouble, detail = await trouble_at_reload(config, found.release, processes)
    if trouble:
        return trouble, detail
    record: Record = {"at": round(time.time(), 3), "level": "info", "event": "pre_reload", "by": by}
    record |= {"text": "the server is about to reload", "generation": current.number if current else 0}
    return await hooks.before("pre_reload", record, config, found.release)
