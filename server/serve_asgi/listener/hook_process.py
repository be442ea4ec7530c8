"""One hook's process: how it is started, its output, how it ended.

It owns the two descriptors that a hook is given (the event, and a pipe for its output) and its deadline: at which its
process group gets SIGTERM, and a little later SIGKILL. What it leaves behind in its group is killed with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Mapping
from typing import Any, Final

import anyio

from serve_asgi.config.hook_events import Hook
from serve_asgi.config.options import Config
from serve_asgi.config.release import BEGAN, Release
from serve_asgi.listener.exit_status import describe_code
from serve_asgi.listener.helper_processes import REAP_TIME, HelperProcess, HelperProcesses
from serve_asgi.listener.spawning import SAFE_PATH

TERM_TIME: Final = 2.0
"""Seconds between SIGTERM and SIGKILL."""
KEPT: Final = 32_768
"""The last bytes of a hook's output that are kept."""
READ: Final = 65_536


@dataclasses.dataclass(frozen=True, slots=True)
class HookOutcome:
    """How a hook ended: `trouble` says why it counts as failed, "" if it does not."""

    trouble: str
    output: str


def command_of(hook: Hook, release: Release, config: Config) -> list[str]:
    """The command to start. Raises LookupError, a sentence, if its program does not exist."""
    if hook.is_callable:
        who = [*(["--user", config.user] if config.user else []), *(["--group", config.group] if config.group else [])]
        place = ["--app-dir", release.app_dir, "--since", str(BEGAN)]
        return [release.python, *SAFE_PATH, "-m", "serve_asgi.worker.hook_runner", hook.command, *place, *who]
    program = hook.arguments[0]
    if os.sep in program:
        path = os.path.join(release.directory, program)
        found = path if os.path.isfile(path) and os.access(path, os.X_OK, effective_ids=True) else None
    else:
        found = shutil.which(program, path=environment_of(release)["PATH"])
    if found is None:
        where = os.path.join(release.directory, program) if os.sep in program else f"{program} (looked for in PATH)"
        raise LookupError(f"the {hook} cannot be run: there is no program {where}; name one that can be executed")
    return [found, *hook.arguments[1:]]


def environment_of(release: Release) -> dict[str, str]:
    """The environment of a hook: the workers', with the programs of the release's interpreter first in PATH.

    So `python` is the one that runs the application, and `serve` its server, also where a service manager has set PATH.
    """
    places = [os.path.dirname(release.python), release.environment.get("PATH", os.defpath)]
    return {**release.environment, "PATH": os.pathsep.join(filter(None, places))}


async def run(
    command: list[str],
    processes: HelperProcesses,
    release: Release,
    variables: Mapping[str, str],
    event: Mapping[str, Any] | None,
    timeout: float,
) -> HookOutcome:
    """Run a hook to its end, at most `timeout` (s), `TERM_TIME` and `REAP_TIME`.

    If this is cancelled, the hook is killed.
    """
    try:
        said = _HookOutput()
    except OSError as error:
        return HookOutcome(f"it cannot be started: {error.strerror}", "")
    with contextlib.closing(said):
        try:
            process = _start(command, processes, release, variables, event, said)
        except OSError as error:
            return HookOutcome(f"it cannot be started: {error.strerror or error}", "")
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(said.read)
                trouble = await _until_end(process, timeout)
                tasks.cancel_scope.cancel()
        finally:
            await _end(process)
        said.take()
        return HookOutcome(trouble, said.text())


def _start(
    command: list[str],
    processes: HelperProcesses,
    release: Release,
    variables: Mapping[str, str],
    event: Mapping[str, Any] | None,
    said: _HookOutput,
) -> HelperProcess:
    given = os.memfd_create("serve-event", os.MFD_CLOEXEC)  # not a pipe, which could block
    try:
        with open(os.dup(given), "wb") as file:
            file.write(json.dumps(event, default=str).encode() + b"\n")
        os.lseek(given, 0, os.SEEK_SET)
        descriptors = [(given, 0), (said.write_end, 1), (said.write_end, 2)]
        return processes.start(command, {**environment_of(release), **variables}, descriptors, release.directory)
    finally:
        os.close(given)
        said.given()


async def _until_end(process: HelperProcess, timeout: float) -> str:
    with anyio.move_on_after(timeout):
        status = await process.wait()
        return "" if status == 0 else describe_code(status)
    process.signal(signal.SIGTERM)
    with anyio.move_on_after(TERM_TIME):
        await process.wait()
    return f"it had not ended after {timeout:g} s (--hook-timeout)"


async def _end(process: HelperProcess) -> None:
    """Kill it and what is left of its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with anyio.move_on_after(REAP_TIME, shield=True):
        await process.wait()


class _HookOutput:
    """The last of what a hook writes to its standard output and error."""

    def __init__(self) -> None:
        self._read_end, self.write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._read_end, False)
        self._kept = bytearray()

    async def read(self) -> None:
        """Read until nobody holds the other end."""
        while True:
            await anyio.wait_readable(self._read_end)
            if not self._read():
                return

    def take(self) -> None:
        """Read what is in the pipe."""
        for _ in range(16):  # a pipe holds no more; whoever still writes is not ours
            if not self._read():
                return

    def _read(self) -> bool:
        try:
            data = os.read(self._read_end, READ)
        except BlockingIOError:
            return False
        self._kept += data
        del self._kept[:-KEPT]
        return bool(data)

    def text(self) -> str:
        """The output, as text."""
        return self._kept.decode(errors="replace").strip()

    def given(self) -> None:
        """Close the write end: the hook has it (or was not started)."""
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    def close(self) -> None:
        """Close the read end."""
        self.given()
        os.close(self._read_end)
