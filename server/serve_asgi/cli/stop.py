"""`serve stop`: take a node away, from draining to the last process, and report what was cut.

The listener performs the steps (drain, keep new connections out, let requests finish, cut the rest); this command
requests them, follows them on the control socket and watches the process by a pidfd, since the socket disappears with
the server. Only if the server has not ended in time does it kill, the workers as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import time
from pathlib import Path
from typing import Any, Final

from serve_asgi.cli import control_client
from serve_asgi.cli.command import (
    INTERRUPTED,
    as_json,
    command,
    complain,
    counted,
    failed_as_json,
    seconds,
    span,
    tell,
)
from serve_asgi.cli.control_client import PATIENCE, ControlConversation, RequestRefused, ServerEnded
from serve_asgi.cli.process_handle import ProcessHandle, children, kill_all
from serve_asgi.errors import UsageError
from serve_asgi.ipc.leftovers import remove_leftovers

PROGRESS: Final = 5.0
"""Seconds between two lines about what is still in progress."""
LAST_WORD: Final = 2.0
"""Seconds that a server that is about to be killed has to report its requests in flight."""
KILL_TIME: Final = 10.0
"""Seconds that the kernel has to end what was killed."""
MARGIN: Final = 15.0
"""Seconds beyond the server's own deadlines until it is killed, without --timeout."""
CUT: Final = 1
"""Exit status if something was cut."""


def stop(control: str, pid_file: str, delay: float | None, timeout: float | None, as_json: bool) -> int:
    """Stop the server as a deploy does: drain, wait, let requests finish, end.

    The health endpoint fails at once; after --delay seconds, in which everything is served and load balancers find
    out, new connections are kept out and requests in progress finish (--graceful-timeout of the server). What has not
    ended --timeout seconds after that is killed.

    Exit status 0: nothing was cut. 1: requests were cut, or the server was killed; the last line says how many.
    """
    try:
        path = control_client.find(control, pid_file)
        with ControlConversation(path, "follow") as following, contextlib.closing(_process(following)) as process:
            found = control_client.look(path)  # it responds, so the PID was still its own when the pidfd was opened
            return ServerStop(path, following, process, found, as_json=as_json).run(delay, timeout)
    except (RequestRefused, UsageError) as error:
        if as_json:
            return failed_as_json(error)
        raise


class ServerStop:
    """One server that is being stopped."""

    def __init__(
        self,
        path: Path,
        following: ControlConversation,
        process: ProcessHandle,
        found: dict[str, Any],
        *,
        as_json: bool,
    ) -> None:
        self.path = path
        self.following = following
        self.process = process
        self.before = found
        self.cut: int | None = None
        """Requests cut since the server's start, once it has reported them."""
        self.held: int | None = 0
        """Requests in flight in killed processes, if they could still be counted."""
        self._as_json = as_json
        self._began = time.monotonic()
        self._deadline = self._began
        """When (CLOCK_MONOTONIC, s) the server is killed."""
        self._timeout = 0.0
        """How long (s) it has from the end of the drain."""
        self._timeout_is = ""
        """Where that number comes from."""
        self._told = False  # the server has sent everything
        self._left: tuple[str, list[str]] = ("", [])
        """Its pid file, if it has one, and its unix sockets."""
        self._opened = contextlib.ExitStack()
        self._next_progress = self._began + PROGRESS

    def run(self, delay: float | None, timeout: float | None) -> int:
        """Stop the server; return the exit status."""
        found = self.before
        self._step("stop_requested", f"{found['app']}, PID {found['pid']}, on {', '.join(found['listening'])}")
        try:
            with self._opened:
                self._ask(delay, timeout)
                self._follow_on()
                ended = self._wait()
        except KeyboardInterrupt:
            complain("the server continues to stop without this command; `serve status` shows the progress")
            return INTERRUPTED
        if not ended:
            self._kill()
        return self._outcome(killed=not ended)

    # The steps

    def _ask(self, delay: float | None, timeout: float | None) -> None:
        """Request the stop, and compute when the server is to be killed."""
        config = control_client.ask(self.path, "config", patience=PATIENCE)["config"]
        own = {option["name"]: option["value"] for option in config["options"]}
        resolved = {option["name"]: option.get("resolved", "") for option in config["options"]}
        paths = [name.removeprefix("unix:") for name in self.before["listening"] if name.startswith("unix:")]
        self._left = (
            resolved.get("pid-file", ""),
            [os.path.join(config["directory"], path) for path in paths if not path.startswith("@")],
        )
        patience = own["graceful-timeout"] + own["shutdown-timeout"] + MARGIN
        self._timeout = patience if timeout is None else timeout
        self._timeout_is = f"its own timeouts and {MARGIN:g} s" if timeout is None else "--timeout"
        with contextlib.suppress(ServerEnded, UsageError):  # it has ended meanwhile
            response = control_client.ask(self.path, "stop", delay=delay, patience=PATIENCE)
            if response["text"] != "stopping":
                self._step("stop_followed", response["text"])
        hooks = sum(hook.startswith("pre_stop=") for hook in own.get("hook", ()))
        hooks *= own.get("hook-timeout", 0.0) + MARGIN
        before = (own["drain-delay"] if delay is None else delay) + hooks
        self._deadline = time.monotonic() + before + self._timeout

    def _follow_on(self) -> None:
        """Follow the program that stops, in case the listener's was replaced before it was told to.

        What it has reported by now is in its history; the count of cut requests comes last.
        """
        if not self._take() and not self.process.ended():
            with contextlib.suppress(UsageError):  # it has ended meanwhile
                self.following = self._opened.enter_context(ControlConversation(self.path, "follow"))
                self._told = False

    def _wait(self) -> bool:
        """Print events until the server has ended, or until the deadline; return whether it has ended."""
        poll = select.poll()
        poll.register(self.process, select.POLLIN)
        poll.register(self.following, select.POLLIN)
        while (left := self._deadline - time.monotonic()) > 0:
            ready = {fd for fd, _ in poll.poll(min(left, PROGRESS) * 1000)}
            if self.following.fileno() in ready and not self._take():
                poll.unregister(self.following)
            if self.process.fd in ready:
                if not self._told:
                    self._take()
                return True
            self._progress()
        return self.process.ended()

    def _take(self) -> bool:
        """Read what the server has sent; return whether more may come."""
        try:
            while (message := self.following.receive(0.0)) is not None:
                if "record" in message:
                    self._happened(message["record"])
                else:
                    self.cut = int(message.get("cut", 0))
        except ServerEnded:
            self._told = True
        return not self._told

    def _happened(self, record: dict[str, Any]) -> None:
        if record["event"] == "stop_started" and "timeout" in record:  # drain and hooks are done: it begins now
            self._deadline = time.monotonic() + self._timeout
            if self._timeout < record["timeout"]:  # print the timeout that applies
                text = f"stopping: requests in progress have {self._timeout:g} s, then the server is killed (--timeout)"
                record = {**record, "text": text, "timeout": self._timeout}
        if self._as_json:
            tell(json.dumps(record))
        elif record["level"] != "debug":
            tell(record["text"])

    def _progress(self) -> None:
        """Print now and then how much is still in progress."""
        if time.monotonic() < self._next_progress or self._told:
            return
        self._next_progress = time.monotonic() + PROGRESS
        with contextlib.suppress(RequestRefused, UsageError):
            found = control_client.look(self.path)
            if found["state"] not in ("running", "draining"):
                held = in_progress(found)
                oldest = max((w.get("oldest") or 0.0 for w in found["workers"]), default=0.0)
                text = f"still in progress: {counted(held, 'request')}" + (
                    f", the oldest {span(oldest)}" if oldest else ""
                )
                self._step("progress_reported", text, in_progress=held)

    def _kill(self) -> None:
        """Kill what has not ended in time: the listener, then its workers, which would continue for a while."""
        self.held = None
        with contextlib.suppress(RequestRefused, UsageError), ControlConversation(self.path, "status") as asked:
            found = asked.outcome(LAST_WORD)["status"]
            self.held, self.cut = in_progress(found), found["lost"]
        workers = children(self.process)
        late = f"it had not ended {self._timeout:g} s after the stop began ({self._timeout_is})"
        text = f"{late}: killed, {counted(len(workers), 'worker')} as well"
        self._step("server_killed", text, held=self.held, timeout=self._timeout)
        try:
            left = kill_all([self.process, *workers], KILL_TIME)
        except PermissionError:
            raise RequestRefused(
                "the server has not ended in time, and only its own user or root may kill it"
            ) from None
        finally:
            for worker in workers:
                worker.close()
        if left:
            raise RequestRefused(f"{counted(left, 'process')} cannot be ended even by SIGKILL; the kernel holds them")
        if removed := remove_leftovers(self.process.pid, self._left[0], str(self.path), self._left[1]):
            self._step("leftovers_removed", f"removed what it left behind: {', '.join(removed)}", paths=removed)

    # Output

    def _outcome(self, *, killed: bool) -> int:
        known = self.held is not None and self.cut is not None
        cut = (self.held or 0) + max(0, (self.cut or 0) - self.before["lost"])
        took = time.monotonic() - self._began
        clean = known and not cut and not killed
        how = "killed" if killed else "stopped" if self.cut is not None else "ended without reporting"
        lost = (
            (f"{counted(cut, 'request')} cut" if cut else "nothing was cut") if known else "what was cut is not known"
        )
        self._step("outcome", f"{how} after {span(took)}; {lost}", cut=cut if known else None, ok=clean, killed=killed)
        return 0 if clean else CUT

    def _step(self, event: str, text: str, **about: Any) -> None:
        if self._as_json:
            tell(json.dumps({"at": round(time.time(), 3), "event": event, "text": text, **about}))
        else:
            tell(text)


def in_progress(found: dict[str, Any]) -> int:
    """Requests and WebSockets in flight in the workers of a status."""
    return sum(w["in_flight"] + w["websockets"] for w in found["workers"])


def _process(following: ControlConversation) -> ProcessHandle:
    """The listener's process. Raises UsageError if it cannot be watched from here."""
    try:
        return ProcessHandle(following.pid)
    except (OSError, ValueError):
        raise UsageError(
            "the server's process cannot be watched from here; run serve stop where the server runs (in its container)"
        ) from None


COMMANDS: Final = {
    "stop": command(
        "stop",
        stop,
        seconds("--delay", "How long to drain before the stop; by default the server's own --drain-delay."),
        seconds("--timeout", "From the stop until KILL; by default a little more than the server's own timeouts."),
        as_json("One JSON object per step."),
    ),
}
