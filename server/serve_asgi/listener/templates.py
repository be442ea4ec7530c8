"""The listener's templates: for each generation with `--preload`, the process from which its workers are forked.

A template is started when a worker of its generation is to be, and there is none; it imports the application, reports
what its import guard has found, and then forks a worker whenever it is asked to. So a template that has died is started
again by the next worker that needs it, with the slots' back-off, and bad code on disk then costs that worker, as it
costs a fresh interpreter. Workers that wait for a template have no process yet; those that it has been asked for have
one whose PID is not known yet (`serve_asgi.listener.children`).

Rules. A forked worker is this process's child (PR_SET_CHILD_SUBREAPER, prctl(2)) before its PID is reported; it may
die, and be reaped, before that. Nothing waits for a template: one that does not respond is killed when a worker's time
to start is over (`--startup-timeout`), and all that waited for it have failed. A template whose generation is forgotten
is killed: it holds nothing that could be finished. It is not trusted, as no child is.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import anyio
from anyio.abc import TaskGroup

from serve_asgi.config.options import Config
from serve_asgi.config.release import BEGAN
from serve_asgi.errors import ChannelError
from serve_asgi.ipc import packets
from serve_asgi.ipc.channel import PROTOCOL, speaks
from serve_asgi.listener import protocol_violations
from serve_asgi.listener.child import Child
from serve_asgi.listener.exit_status import describe
from serve_asgi.listener.spawning import start_interpreter
from serve_asgi.listener.template import StartRequest, Template, TemplateState
from serve_asgi.supervisor import actions
from serve_asgi.supervisor.lifecycles import Generation, Worker

PR_SET_CHILD_SUBREAPER: Final = 36  # linux/prctl.h
END_TIME: Final = 5.0
"""Seconds that a template has to exit by itself when it has reported that it cannot be used."""
MOST_STRANGERS: Final = 1000
"""Processes that have been reaped and may be workers whose PIDs have not been reported yet."""

STRICT: Final = "the application must not be forked (--preload=strict):"
REFUSED: Final = (
    "the application must not be forked, so --preload has no effect and every worker imports it; start these later "
    "(docs/guides/preload.md):"
)

log = logging.getLogger("serve")


class TemplateUser(Protocol):
    """What starts workers (`serve_asgi.listener.children`)."""

    tasks: TaskGroup

    def knows(self, pid: int) -> bool:
        """Whether this child of the listener's is a worker, an agent, or a helper process."""

    def start_forked(self, request: StartRequest, template: Template) -> None:
        """The template is ready: have it fork this worker."""

    def start_fresh(self, request: StartRequest) -> None:
        """The generation's workers are to be fresh interpreters after all."""

    def born(self, child: Child, pid: int, ended: int | None) -> None:
        """A worker has been forked, and has this PID; `ended` is its wait status, if it has been reaped already."""

    def not_born(self, child: Child, message: str) -> None:
        """A worker could not be forked."""

    def not_started(self, worker: Worker, message: str, detail: str = "", usage: bool = False) -> None:
        """A worker that waited for its template is not started."""


class Templates:
    """The templates of one listener."""

    def __init__(self, user: TemplateUser, record: Callable[[actions.LogEvent], object]) -> None:
        self._user = user
        self._record = record
        self.by_pid: dict[int, Template] = {}
        """Those that have not been reaped."""
        self.refused: set[int] = set()
        """The numbers of generations whose application must not be forked: their workers are fresh interpreters."""
        self._ended = anyio.Event()
        """Set when one of them has been reaped."""
        self._strangers: dict[int, int] = {}
        """Wait statuses of reaped processes that may be workers whose PIDs have not been reported yet, by PID."""

    # State

    def _of(self, generation: int) -> Template | None:
        usable = (t for t in self.by_pid.values() if t.generation == generation)
        return next((t for t in usable if t.state is not TemplateState.ENDING), None)

    def _of_worker(self, worker: Worker) -> Template | None:
        """The template that the start of this worker depends on, until its PID is known."""
        for template in self.by_pid.values():
            if worker.id in template.asked or any(each.worker is worker for each in template.waiting):
                return template
        return None

    @property
    def busy(self) -> bool:
        """Whether some worker waits for its template."""
        return any(template.waiting or template.asked for template in self.by_pid.values())

    def wanted(self, generation: Generation, config: Config) -> bool:
        """Whether the workers of this generation are to be forked from a template."""
        return config.preload != "off" and generation.number not in self.refused

    def status(self) -> list[dict[str, Any]]:
        """For `serve status --json`: the templates, by generation."""
        return [
            {"generation": each.generation, "state": each.state.value, "rss": each.resident()}
            for each in sorted(self.by_pid.values(), key=lambda each: each.generation)
        ]

    # Starting

    def start(self, request: StartRequest) -> None:
        """Have a worker forked, now or when the template has imported the application. Raises OSError."""
        generation = request.worker.generation
        template = self._of(generation.number) or self._start(generation.number, request)
        if template.state is TemplateState.READY:
            self._user.start_forked(request, template)
        else:
            template.waiting.append(request)

    def _start(self, generation: int, request: StartRequest) -> Template:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed, which --preload needs")
        pid, channel, output = start_interpreter(request.release, "serve_asgi.template_process", generation)
        template = self.by_pid[pid] = Template(generation, pid, channel, output)
        log.debug("the template of generation %d has PID %d", generation, pid)
        self.attend(template)
        template.send_queue.put(
            {
                "type": "welcome",
                "protocol": PROTOCOL,
                "generation": generation,
                "config": request.release.resolved(request.config).to_json(),
                "directory": request.release.directory,
                "app_dir": request.release.app_dir,
                "since": BEGAN,
            }
        )
        return template

    def attend_all(self) -> None:
        """Serve the channels of those that were taken over."""
        for template in self.by_pid.values():
            self.attend(template)

    def attend(self, template: Template) -> None:
        """Serve the template's channel from here on."""
        self._user.tasks.start_soon(self._send_to, template)
        self._user.tasks.start_soon(self._listen_to, template)

    def withdraw(self, worker: Worker, kill: bool = False) -> list[Child] | None:
        """Start a worker no more; return its Child, if it has one already, or None if it depends on no template.

        `kill`: its time is over, and the template is killed, if it was to act.
        """
        if (template := self._of_worker(worker)) is None:
            return None
        child = template.asked.pop(worker.id, None)
        template.waiting = [each for each in template.waiting if each.worker is not worker]
        if child is not None:
            template.withdrawn.add(worker.id)
        if kill and (child is not None or not template.waiting):
            self._kill(template, "it did not respond in time" if child is not None else "its import took too long")
        elif template.state is TemplateState.IMPORTING and not template.waiting:
            self._kill(template, "no worker waits for it", logging.DEBUG)
        return [] if child is None else [child]

    async def _send_to(self, template: Template) -> None:
        """Send what is in its send queue, until it is closed."""
        try:
            await template.send_queue.run()
        except Exception:
            log.exception("%s cannot be reached over its channel", template)
            self._kill(template, "it cannot be reached", logging.ERROR)

    # From templates

    async def _listen_to(self, template: Template) -> None:
        """Handle its packets until its end of the channel closes; SIGCHLD reports its death."""
        try:
            while template.state is not TemplateState.ENDING:
                data, _ = await template.channel.receive_data()
                self._take(template, data)
                await anyio.lowlevel.checkpoint()
        except (EOFError, OSError, anyio.ClosedResourceError):
            pass
        except Exception as error:
            self._kill(template, protocol_violations.reason(template, "channel", error), logging.ERROR)

    def _take(self, template: Template, data: bytes) -> None:
        if not template.allowance.use():
            raise ChannelError("more packets than a template sends")
        match packets.FROM_TEMPLATE.decode(data):
            case packets.Hello(protocol):
                if not speaks(protocol):
                    text = f"its template speaks version {protocol} of the channel, this listener {PROTOCOL}"
                    self._fail(template, f"{text}; restart the server to change to that version")
            case packets.Failed(message, detail, usage):
                self._fail(template, message, detail, usage)
            case packets.Imported(findings) if template.state is TemplateState.IMPORTING:
                self._imported(template, findings)
            case packets.Forked(number, pid):
                self._forked(template, number, pid)
            case packets.NotForked(number, reason):
                if (child := self._answered(template, number)) is not None:
                    self._user.not_born(child, f"it could not be forked: {reason}")
            case _:
                pass
        if not self._in_use():
            self._strangers.clear()

    def _imported(self, template: Template, findings: Sequence[str]) -> None:
        waiting, template.waiting = template.waiting, []
        seconds = round(time.monotonic() - template.began, 3)
        about: dict[str, Any] = {"generation": template.generation}
        if not findings:
            template.state = TemplateState.READY
            text = f"{template} has imported the application in {seconds:.2f} s"
            self._say(logging.DEBUG, "template_imported", text, **about, seconds=seconds)
            for request in waiting:
                self._user.start_forked(request, template)
            return
        self._let_leave(template)
        found = "; ".join(findings)
        if any(each.config.preload == "strict" for each in waiting):
            for request in waiting:
                self._user.not_started(request.worker, f"{STRICT} {found}", usage=True)
            return
        self.refused.add(template.generation)
        self._say(
            logging.WARNING, "preload_refused", f"{REFUSED} {found}", **about, findings=list(findings), seconds=seconds
        )
        for request in waiting:
            self._user.start_fresh(request)

    def _forked(self, template: Template, number: int, pid: int) -> None:
        child = self._answered(template, number)
        if child is None:
            return  # its channel is closed, so it exits
        ended = self._strangers.pop(pid, None)
        if ended is None and not self._can_be_worker(pid):
            self._user.not_born(child, f"its template reported PID {pid}, which cannot be a worker's")
            raise ChannelError(f"PID {pid} cannot be a worker's")
        self._user.born(child, pid, ended)

    def _can_be_worker(self, pid: int) -> bool:
        """Whether this is the PID of a child of the listener's that is not known as another one."""
        if pid in self.by_pid or self._user.knows(pid):
            return False
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return True

    def _answered(self, template: Template, number: int) -> Child | None:
        """The worker with this number that it was asked for; None if that has been withdrawn. Raises ChannelError."""
        if (child := template.asked.pop(number, None)) is not None:
            return child
        if number not in template.withdrawn:
            raise ChannelError(f"it was not asked to fork a worker {number}")
        template.withdrawn.discard(number)
        return None

    # The end of a template

    def _fail(self, template: Template, message: str, detail: str = "", usage: bool = False) -> None:
        """It has reported that it cannot be used, and exits."""
        waiting, template.waiting = template.waiting, []
        self._let_leave(template)
        for request in waiting:
            self._user.not_started(request.worker, message, detail, usage)

    def _let_leave(self, template: Template) -> None:
        """It exits by itself; it is killed if it does not."""
        template.state = TemplateState.ENDING
        self._user.tasks.start_soon(self._kill_later, template)

    async def _kill_later(self, template: Template) -> None:
        await anyio.sleep(END_TIME)
        if template.pid in self.by_pid:
            os.kill(template.pid, signal.SIGKILL)

    def _kill(self, template: Template, why: str, level: int = logging.WARNING) -> None:
        """SIGKILL; what depended on it has failed."""
        if template.state is not TemplateState.ENDING:
            template.state = TemplateState.ENDING
            text = f"{template} is killed: {why}"
            self._say(level, "template_killed", text, generation=template.generation, reason=why)
        if template.pid in self.by_pid:
            os.kill(template.pid, signal.SIGKILL)
        self._give_up(template, f"its template was killed: {why}")

    def _give_up(self, template: Template, why: str) -> None:
        """Fail all that depended on a template."""
        waiting, template.waiting = template.waiting, []
        asked, template.asked = template.asked, {}
        for request in waiting:
            self._user.not_started(request.worker, why)
        for child in asked.values():
            self._user.not_born(child, why)

    def reaped(self, pid: int, wait_status: int) -> bool:
        """Handle the end of a process; return False if it is none of these, nor can become a worker."""
        template = self.by_pid.pop(pid, None)
        if template is None:
            if self._in_use() and len(self._strangers) < MOST_STRANGERS:
                self._strangers[pid] = wait_status
            return False
        self._read_rest(template)
        before, template.state = template.state, TemplateState.ENDING
        how = describe(wait_status)
        if before is TemplateState.READY:
            text = f"{template} died: {how}; its workers serve on, and the next one starts another"
            self._say(logging.WARNING, "template_died", text, generation=template.generation, how=how)
        self._give_up(template, f"its template died: {how}")
        template.close()
        self._ended.set()
        return True

    def _read_rest(self, template: Template) -> None:
        """Handle what it reported before its death."""
        try:
            while template.state is not TemplateState.ENDING and (rest := template.channel.try_receive_data()):
                self._take(template, rest[0])
        except (EOFError, OSError):
            pass
        except Exception as error:
            log.debug("%s: %s", template, error)

    def _in_use(self) -> bool:
        return any(template.asked or template.withdrawn for template in self.by_pid.values())

    def forget(self, generation: Generation) -> None:
        """No process of this generation is left: end its template."""
        self.refused.discard(generation.number)
        for template in list(self.by_pid.values()):
            if template.generation == generation.number:
                self._end(template)

    async def end(self) -> None:
        """The server has ended: end all of them, and wait until they have been reaped."""
        for template in list(self.by_pid.values()):
            self._end(template)
        with anyio.move_on_after(END_TIME):
            while self.by_pid:
                self._ended = anyio.Event()
                await self._ended.wait()

    def _end(self, template: Template) -> None:
        template.state = TemplateState.ENDING
        with contextlib.suppress(ProcessLookupError):
            os.kill(template.pid, signal.SIGKILL)

    def reopen(self) -> None:
        """Have them reopen their log file, which their workers inherit."""
        for template in self.by_pid.values():
            template.send_queue.put({"type": "reopen"})

    # Besides

    def to_state(self, descriptors: list[int]) -> dict[str, Any]:
        """What `take` needs in a program that replaces this one; no worker waits for a template then."""
        return {
            "templates": [each.to_state(descriptors) for each in self.by_pid.values()],
            "refused": sorted(self.refused),
        }

    def take(self, state: dict[str, Any]) -> None:
        """Take over those of an earlier program of this process."""
        self.refused.update(state["refused"])
        self.by_pid |= {each.pid: each for each in map(Template.from_state, state["templates"])}

    def _say(self, level: int, event: str, text: str, **about: Any) -> None:
        self._record(actions.LogEvent(level, event, text, "", about))
