"""The client of the control socket: find the server, send a request, read its response.

It turns every failure into a one-line error; what is done with the responses is up to the commands. Only servers of
root or of the same user are trusted (SO_PEERCRED, unix(7)), unless root asks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import shlex
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from serve_asgi.config import config_file
from serve_asgi.config.accounts import name_of
from serve_asgi.config.invoker import invoker
from serve_asgi.errors import StartError, UsageError
from serve_asgi.ipc import control_protocol

PATIENCE: Final = 15.0
"""Seconds that a listener has to respond to a request that it can handle at once."""
HOOK_PATIENCE: Final = 75.0
"""The same where hooks may run first."""
SERVICES: Final = Path("/run")
"""Where a service manager makes directories for services (RuntimeDirectory=, systemd.exec(5))."""
LOOK_TIME: Final = 2.0
"""Seconds that each server has to identify itself when several are running."""


class RequestRefused(StartError):
    """The server refused the request; `detail` is the new code's traceback, if that was the reason."""


class ServerEnded(RequestRefused):
    """The server ended, or closed the connection, before it responded."""


class ServerSilent(RequestRefused):
    """The server did not respond in time."""


class ControlConversation:
    """One request to a server and its response, line by line; a context manager."""

    pid: int
    """The listener's PID, from the kernel; 0 if it is in another PID namespace."""

    def __init__(self, path: Path, command: str, **parameters: Any) -> None:
        """Send the request. Raises UsageError if the server cannot be reached."""
        self._buffer = b""
        self._connection = socket.socket(socket.AF_UNIX)
        request = {"version": control_protocol.VERSION, "command": command, **parameters}
        if command in control_protocol.DEPLOYING:
            request["who"] = invoker()
        try:
            self._connection.settimeout(PATIENCE)
            self._connection.connect(str(path))
            self.pid, uid = _peer(self._connection)
            if os.geteuid() not in (0, uid) and uid != 0:
                raise UsageError(f"{path} belongs to another user's process; name the server's own socket")
            with contextlib.suppress(
                BrokenPipeError, ConnectionResetError
            ):  # what it sent before it closed still counts
                self._connection.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            self._connection.close()
            hint = "; is it running?" if isinstance(error, FileNotFoundError | ConnectionRefusedError) else ""
            hint = f"; {_whose(path)}" if isinstance(error, PermissionError) else hint
            raise UsageError(f"the server at {path} cannot be reached: {error.strerror or error}{hint}") from None
        except UsageError:
            self._connection.close()
            raise

    def fileno(self) -> int:
        return self._connection.fileno()

    def __enter__(self) -> ControlConversation:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def receive(self, timeout: float | None = PATIENCE) -> dict[str, Any] | None:
        """The next line; None if none has come after `timeout` seconds. Raises ServerEnded at the end."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (line := self._line()) is None:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not _readable(self._connection, left):
                return None
            try:
                piece = self._connection.recv(65536)
            except OSError:
                piece = b""
            if not piece or len(self._buffer) > control_protocol.LINE_LIMIT:
                raise ServerEnded("the server ended before it responded; look at its log")
            self._buffer += piece
        try:
            message: dict[str, Any] = json.loads(line)
            if "record" not in message and not isinstance(message["ok"], bool):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise UsageError("that is not a server's control socket; name it with --control") from None
        return message

    def outcome(self, timeout: float | None = None) -> dict[str, Any]:
        """The response, skipping records. Raises RequestRefused if the request failed, or no response comes in time."""
        while True:
            message = self.receive(timeout)
            if message is None:
                raise ServerSilent(
                    f"the server (PID {self.pid}) has not responded for {timeout:g} s; is its process stopped?"
                )
            if "record" not in message:
                return checked(message)

    def _line(self) -> bytes | None:
        line, end, rest = self._buffer.partition(b"\n")
        if not end:
            return None
        self._buffer = rest
        return line


def checked(response: dict[str, Any]) -> dict[str, Any]:
    """The response, if the request succeeded; raises RequestRefused otherwise."""
    if not response["ok"]:
        raise RequestRefused(response["text"], response.get("detail", ""))
    return response


def ask(path: Path, command: str, *, patience: float | None = None, **parameters: Any) -> dict[str, Any]:
    """Send one command and wait for its outcome, at most `patience` seconds, or without limit.

    Raises UsageError if the server cannot be reached, RequestRefused if the command failed, or the server ended or did
    not respond in time.
    """
    with ControlConversation(path, command, **parameters) as conversation:
        response = conversation.outcome(patience)
        with contextlib.suppress(ServerEnded):
            conversation.receive(1.0)  # its end: the listener no longer has this connection
        return response


def look(path: Path) -> dict[str, Any]:
    """The server's status (`serve_asgi.listener.status`). Raises UsageError, RequestRefused (no response)."""
    with ControlConversation(path, "status") as conversation:
        found: dict[str, Any] = conversation.outcome(PATIENCE)["status"]
        return found


# Which server


def find(control: str = "", pid_file: str = "") -> Path:
    """The control socket: the given one, that of the pid file's server, or that of the server of this directory.

    If neither is given, the configuration file that a server would read here may name one; else it is the one server
    that was started in this directory or whose release lies there. A server elsewhere is only ever chosen by a person:
    on a terminal they are asked. Raises UsageError if there is none, or no choice.
    """
    if control:
        return Path(control)
    if pid_file:
        return _of_process(_pid_in(pid_file))
    if (configured := _of_configuration()) is not None:
        return configured
    servers = [FoundServer.at(path) for path in _sockets() if _answers(path)]
    if not servers:
        raise UsageError(
            "no server was found; name its socket with --control PATH or its pid file with --pid-file PATH (one with a "
            "`control` of its own is only found in the directory of the configuration file that says so)"
        )
    here = [server for server in servers if server.is_here()]
    if len(here) == 1:
        return here[0].path
    return _chosen(here or servers, "several servers run" if here else "no server runs")


@dataclasses.dataclass(frozen=True, slots=True)
class FoundServer:
    """A server that responds, or whose socket at least takes connections."""

    path: Path
    status: dict[str, Any]
    """Empty if it has not responded."""

    @classmethod
    def at(cls, path: Path) -> FoundServer:
        """The server that listens at `path`."""
        with contextlib.suppress(UsageError, RequestRefused), ControlConversation(path, "status") as conversation:
            return cls(path, conversation.outcome(LOOK_TIME)["status"])
        return cls(path, {})

    def is_here(self) -> bool:
        """Whether it runs in the working directory, or through a link there (`current -> releases/42`)."""
        if not (here := _working_directory()):
            return False
        code = [self.status[name] for name in ("release", "app_dir") if self.status.get(name)]
        places = [self.status["directory"]] if self.status.get("directory") else []
        places += code + [name for name, leads_to in self.status.get("places", {}).items() if leads_to in code]
        places += [os.path.dirname(place) for place in places if os.path.islink(place)]
        return any(os.path.realpath(place) == here for place in places)

    def __str__(self) -> str:
        found = self.status
        if not found:
            return f"PID {self.path.stem} (it does not respond)"
        place = f", in {found['directory']}" if found.get("directory") else ""
        return f"PID {found['pid']} ({found['app']} on {', '.join(found['listening'])}{place})"


def _working_directory() -> str:
    """Its real path; "" if it has been deleted, as an old release is."""
    try:
        return os.path.realpath(os.getcwd())
    except OSError:
        return ""


def _chosen(servers: list[FoundServer], what: str) -> Path:
    """The one that a person chooses; without a terminal, the error that lists them with the command for each."""
    what += f" in this directory, {_working_directory() or 'which is gone'}"
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        each = "; ".join(f"for {server}: {_command_for(server.path)}" for server in servers)
        raise UsageError(f"{what}. Name the one that you mean, {each}")
    click.echo(f"{what}:", err=True)
    for number, server in enumerate(servers, 1):
        click.echo(f"  {number}  {server}", err=True)
    numbers = click.Choice([str(number) for number in range(1, len(servers) + 1)])
    chosen = click.prompt("Which one? (Ctrl-C for none)", type=numbers, show_choices=False, err=True)
    return servers[int(chosen) - 1].path


def _command_for(path: Path) -> str:
    """This command, with the server at `path` named."""
    if click.get_current_context(silent=True) is None:
        return f"--control {path}"
    return shlex.join(["serve", *sys.argv[1:], "--control", str(path)])


def _of_configuration() -> Path | None:
    """The socket named by this directory's configuration file, if a server responds there."""
    with contextlib.suppress(UsageError, OSError):
        file = config_file.load(os.environ.get("SERVE_CONFIG", ""), os.getcwd())
        named = {name: str(entry.value) for name, entry in file.entries.items()} if file is not None else {}
        if "control" in named and _answers(Path(named["control"])):
            return Path(named["control"])
        if "pid_file" in named:
            return _of_process(_pid_in(named["pid_file"]))
    return None


def _pid_in(pid_file: str) -> int:
    try:
        pid = int(Path(pid_file).read_text())
    except (OSError, ValueError):
        raise UsageError(f"the pid file {pid_file} cannot be read; is the server running?") from None
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass
    except (ProcessLookupError, OverflowError):
        raise UsageError(f"no process has the PID {pid} that {pid_file} names; is the server running?") from None
    return pid


def _of_process(pid: int) -> Path:
    """The control socket of the listener `pid`: in its usual place, or wherever the kernel says that it is bound."""
    for path in (*_usual(pid), *_bound_by(pid)):
        with contextlib.suppress(UsageError, RequestRefused), ControlConversation(path, "status") as conversation:
            if conversation.outcome(LOOK_TIME)["status"]["pid"] == conversation.pid:
                return path
    raise UsageError(f"the server with PID {pid} has no control socket that responds; name it with --control PATH")


def _usual(pid: int) -> Iterator[Path]:
    return (path for path in _sockets() if path.stem == str(pid))


def _bound_by(pid: int) -> list[Path]:
    """The paths of the listening unix sockets that the process holds (/proc/net/unix, proc(5))."""
    held = set()
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                held.add(os.readlink(link))
    found = []
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/net/unix").read_text(errors="surrogateescape").splitlines()[1:]:
            fields = line.split(maxsplit=7)
            if len(fields) == 8 and f"socket:[{fields[6]}]" in held and fields[7].startswith("/"):
                found.append(Path(fields[7]))
    return found


def _sockets() -> list[Path]:
    """Everything that may be a control socket, in the places that are searched."""
    return [path for directory in _directories() for path in sorted(directory.glob("*.sock"))]


def _directories() -> list[Path]:
    """Where sockets are searched: our own directories, and those created by a service manager (RuntimeDirectory=)."""
    places = dict.fromkeys([*control_protocol.runtime_directories(), *sorted(SERVICES.glob("*/serve"))])
    root = os.geteuid() == 0
    return [directory for directory in places if control_protocol.private(directory, any_owner=root)]


def _whose(path: Path) -> str:
    """Who may use a socket that this user may not: the owner of it, or of the directory that keeps others out."""
    for each in (path, *path.absolute().parents):
        with contextlib.suppress(OSError):
            name = name_of(each.stat().st_uid)
            way = "" if name == "root" else f"as that user (sudo -u {name.replace('number ', '#')} …) or "
            return f"{each} belongs to user {name}: run this {way}as root"
    return "run this as the server's user or as root"


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(LOOK_TIME)
        try:
            connection.connect(str(path))
        except TimeoutError:
            return True  # its queue is full: it is alive
        except OSError:
            return False
        return True


def _peer(connection: socket.socket) -> tuple[int, int]:
    """PID and user of the listening process."""
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


def _readable(connection: socket.socket, timeout: float | None) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(None if timeout is None else timeout * 1000))
