"""`python -m tests.fuzzing.fuzz_children --seconds 1800`: a real listener hears its children, and what none may say.

The listener is the real one (`rogue_listener`); here are its workers, agent, store and admin process: each begins as a
real one would, so that it gets into every state, and says mutated things from time to time, attaches descriptors,
floods, or reads nothing. The listener is told to reload, and to drain, meanwhile; hooks print garbage; and somebody
speaks on the control socket. What must hold: the listener lives, no callback of its loop takes 50 ms of CPU time or
waits that long, its memory and its descriptors do not grow, and its log has no traceback.
"""

from __future__ import annotations

import argparse
import array
import contextlib
import dataclasses
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgpack

from serve_asgi.ipc.frames import decode, encode
from tests.fuzzing import grammar

ROOT: Final = Path(__file__).resolve().parents[2]
WRONG: Final = 0.02
"""How much of what a child says is mutated: it ends of it, so that more would let it get nowhere."""
WARM_UP: Final = 0.3
"""The part of the run after which the memory is taken for what it is to stay."""


@dataclasses.dataclass
class Result:
    """What came of a run."""

    seconds: float
    said: int
    children: int
    report: dict[str, Any]
    memory: list[int]
    descriptors: list[int]
    died: str
    tracebacks: list[str]
    killed: dict[str, int]

    def grown(self) -> tuple[int, int]:
        """KiB and descriptors that the listener has more than after the warm-up, in the medians of both times."""
        start = int(len(self.memory) * WARM_UP)

        def growth(values: list[int]) -> int:
            third = max(1, (len(values) - start) // 3)
            early, late = sorted(values[start : start + third]), sorted(values[-third:])
            return late[len(late) // 2] - early[len(early) // 2] if early and late else 0

        return growth(self.memory), growth(self.descriptors)


class Child:
    """One child of the listener's: what it has, and where it is in its life."""

    def __init__(self, draw: random.Random, kind: str, id: int, end: socket.socket, *, wild: bool) -> None:
        end.setblocking(False)
        self.draw = draw
        self.wild = wild  # it may say what it must not before it is ready
        self.kind = kind
        self.id = id
        self.channel = end
        self.link: socket.socket | None = None
        self.reads = draw.random() < 0.9
        self.honest = draw.random() < 0.3
        self.asked: list[Any] = []
        self.said = 0
        self.gone = False

    def close(self) -> None:
        self.gone = True
        self.channel.close()
        if self.link is not None:
            self.link.close()

    # What it says

    def send(self, end: socket.socket, data: bytes, descriptors: list[int] | None = None) -> None:
        self.said += 1
        try:
            if descriptors:
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
                end.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
            else:
                end.send(data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            pass
        except OSError:
            if end.fileno() >= 0:
                self.gone = self.gone or end is self.channel

    def say(self, **values: Any) -> None:
        """As a real one does."""
        self.send(self.channel, json.dumps(values).encode())

    def tell(self, kind: str, head: dict[str, Any], body: bytes = b"") -> None:
        if self.link is not None:
            self.send(self.link, encode(kind, head, body))

    def misbehave(self) -> None:
        """Say something that is drawn."""
        draw, wrong = self.draw, 0.0 if self.honest else WRONG
        if self.kind == "store":
            if not self.honest:
                self.send(self.channel, grammar.store_frame(draw, 0.3))
            return
        if self.kind == "admin":
            self.send(self.channel, draw.randbytes(draw.choice((0, 1, 5_000))))
            return
        if self.link is None or (not self.honest and draw.random() < 0.01):
            made = draw.choice(grammar.channel_packets(draw, agent=self.kind == "agent"))()
            some = [0, 1, 2] * draw.choice((1, 80)) if draw.random() < 0.1 else None
            self.send(self.channel, grammar.packet(draw, made, 0.3), some)
            return
        times = draw.choice((200, 2_000)) if not self.honest and draw.random() < 0.003 else 1
        data = grammar.link_frame(draw, self.id, wrong)
        for _ in range(times):
            self.send(self.link, data)

    # What it hears

    def hear(self) -> None:
        """Take what the listener says, and answer as a real child would, most of the time."""
        with contextlib.suppress(BlockingIOError, OSError):
            while True:
                data, descriptors, _, _ = socket.recv_fds(self.channel, 300_000, 253)
                if not data:
                    self.gone = True
                    return
                if self.kind == "store":
                    self._asked_of_store(data)
                elif self.kind != "admin":
                    self._told(json.loads(data), descriptors)
                    continue
                _close(descriptors)

    def _told(self, packet: dict[str, Any], descriptors: list[int]) -> None:
        match packet["type"]:
            case "welcome":
                names = packet["given"]
                given = dict(zip(names, descriptors[len(descriptors) - len(names) :], strict=True))
                self.link = socket.socket(fileno=given.pop("link"))
                self.link.setblocking(False)
                _close([each for each in descriptors if each != self.link.fileno()])
                self._begin()
                return
            case "serve":
                self.say(type="accepts")
                self.tell("up", {})
            case "enter":
                self.tell("up", {})
                self.say(type="entered")
            case "retire" | "finish" | "quit" if self.draw.random() < 0.9:
                self.tell("msg.return", {"m": [], "all": True})
                self.say(type="finished", cut=0, handed_over=0)
        _close(descriptors)

    def _begin(self) -> None:
        self.say(type="hello", protocol=[0, 1], window={"signal": 10, "loop_thread": 1})
        self.tell("msg.topics", {"topics": dict.fromkeys("abc", self.draw.choice((1, 10, 1_000)))})
        for _ in range(self.draw.randrange(4) if self.wild else 0):
            self.tell(*grammar._define(self.draw, self.id))
        if self.kind == "agent":
            self.say(type="prepared")
        else:
            self.tell("up", {})
            self.say(type="ready")

    def hear_link(self) -> None:
        """Take what the hub says, and acknowledge some of it."""
        if self.link is None:
            return
        with contextlib.suppress(BlockingIOError, OSError):
            while data := self.link.recv(300_000):
                frame = decode(data)
                if frame.kind == "state.changes" and not frame.head.get("more"):
                    self.tell("state.seen", {"seq": frame.head["seq"]})
                elif frame.kind == "msg.deliver" and self.draw.random() < 0.95:
                    for entry in frame.head["m"]:
                        self.tell("msg.done", {"m": [[entry[0], True, 0]]})
                elif frame.kind == "schedule.run":
                    told = {"run": frame.head["run"], "outcome": "ok", "seconds": 0.1, "text": ""}
                    self.tell("schedule.ended", told)

    # A store process

    def _asked_of_store(self, data: bytes) -> None:
        frame = decode(data)
        head = frame.head

        def answer(kind: str, body: bytes = b"", **more: Any) -> None:
            if self.draw.random() < 0.98:
                made = grammar.frame(self.draw, kind, more, body, 0.0 if self.honest else 0.02)
                self.send(self.channel, made)

        match frame.kind:
            case "store.open":
                self.send(self.channel, encode("store.snapshot", {"first": True}, msgpack.packb([["a", 1, b"\x01"]])))
                self.send(self.channel, encode("store.up", {"server": "s", "shared": False}))
            case "store.write":
                self.asked.append(head["id"])
                version = int(time.monotonic() * 1e6)
                gone = head["op"] == "delete"
                answer(
                    "store.written",
                    frame.body or b"\x01",
                    id=head["id"],
                    key=head["key"],
                    version=version,
                    deleted=gone,
                )
            case "store.read":
                answer("store.value", b"\x01", id=head["id"], key=head["key"], version=1, exists=True)
            case "store.send":
                answer("store.sent", id=head["id"])
            case "store.grant":
                answer("store.granted", id=head["id"], token=int(time.monotonic() * 1e6), renewed_until=1e7)


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


class Fuzzer:
    """A listener, and all its children."""

    def __init__(self, seed: int, directory: Path) -> None:
        self.draw = random.Random(seed)
        self.directory = directory
        self.children: list[Child] = []
        self.said = 0
        self.begun = False
        self.report = directory / "report.json"
        self.log = directory / "log.txt"
        self.control = directory / "control.sock"
        (directory / "hook.sh").write_text(
            "cat > /dev/null; head -c $((RANDOM * 4)) /dev/urandom; exit $((RANDOM % 3))\n"
        )
        self.hand, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        arguments = ["app:x", "--bind", "127.0.0.1:0", "--workers", "3", "--agent", "agent:X", "--state", "state.db"]
        arguments += ["--admin", f"unix:{directory}/admin.sock", "--control", str(self.control), "--log-format", "json"]
        arguments += ["--hook", "worker_died=bash hook.sh", "--hook", "reload_refused=bash hook.sh"]
        arguments += [
            "--graceful-timeout",
            "1",
            "--shutdown-timeout",
            "1",
            "--agent-timeout",
            "1",
            "--startup-timeout",
            "3",
        ]
        arguments += ["--worker-timeout", "0", "--log-level", "info"]
        command = [
            sys.executable,
            "-m",
            "tests.fuzzing.rogue_listener",
            str(theirs.fileno()),
            str(self.report),
            *arguments,
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=directory, env=environment, pass_fds=[theirs.fileno()], stdout=log, stderr=log
            )
        theirs.close()
        self.hand.setblocking(False)

    def close(self) -> None:
        for child in self.children:
            self.said += child.said
            child.close()
        for _ in range(2):  # the second one kills
            self.process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.hand.close()

    # One round

    def round(self, *, quiet: bool = False) -> None:
        """Everybody hears, and says something unless `quiet`."""
        self._take_in()
        watched = [c.channel for c in self.children if c.reads or quiet]
        watched += [c.link for c in self.children if c.link is not None and (c.reads or quiet)]
        readable = set(select.select(watched, [], [], 0.001 if self.children else 0.05)[0])
        for child in self.children:
            if child.channel in readable:
                child.hear()
            if child.link in readable:
                child.hear_link()
        if not quiet and self.children:
            for _ in range(8):
                self.draw.choice(self.children).misbehave()
            if self.draw.random() < 0.001:
                self._order()
            if self.draw.random() < 0.01:
                self._ask()
        for child in [child for child in self.children if child.gone]:
            self.said += child.said
            child.close()
            self.children.remove(child)

    def _take_in(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                data, found, _, _ = socket.recv_fds(self.hand, 4096, 1)
                if not data:
                    return
                told = json.loads(data)
                draw = random.Random(self.draw.getrandbits(64))
                self.children.append(
                    Child(draw, told["kind"], told["id"], socket.socket(fileno=found[0]), wild=self.begun)
                )

    def _order(self) -> None:
        self.process.send_signal(self.draw.choice((signal.SIGHUP, signal.SIGHUP, signal.SIGUSR2, signal.SIGUSR1)))

    def _ask(self) -> None:
        """Say something on the control socket, and perhaps stay for the answer."""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(0.02)
            peer.connect(str(self.control))
            peer.sendall(grammar.control_line(self.draw, 0.5))
            if self.draw.random() < 0.5:
                peer.recv(1_000)

    def begin(self) -> None:
        """Be as children should be until the server runs, since it would end if it could not start."""
        deadline = time.monotonic() + 60
        while '"sockets_opened"' not in self.log.read_text(errors="replace"):
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError(f"it did not start: {self.log.read_text(errors='replace')[-3000:]}")
            self.round(quiet=True)
        self.begun = True

    # What is seen

    def seen(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self.report.read_text())
        except (OSError, ValueError):
            return {}
        return found

    def records(self) -> Iterator[dict[str, Any]]:
        with self.log.open(errors="replace") as lines:
            for line in lines:
                with contextlib.suppress(ValueError):
                    yield json.loads(line)


def run(seconds: float, seed: int, directory: Path) -> Result:
    """Fuzz for so long."""
    fuzzer = Fuzzer(seed, directory)
    memory: list[int] = []
    descriptors: list[int] = []
    began = time.monotonic()
    died = ""
    try:
        fuzzer.begin()
        began = time.monotonic()
        looked = 0.0
        while time.monotonic() - began < seconds and not died:
            fuzzer.round()
            if (now := time.monotonic()) - looked > 1.0:
                looked = now
                if found := fuzzer.seen():
                    memory.append(found["rss"])
                    descriptors.append(found["descriptors"])
                if fuzzer.process.poll() is not None:
                    died = f"exit status {fuzzer.process.returncode}"
        report = fuzzer.seen()
    finally:
        fuzzer.close()
    tracebacks, killed = [], dict[str, int]()
    for record in fuzzer.records():
        text, shown, event = record.get("text", ""), record.get("exception", ""), record.get("event", "")
        reported = "please report" in text and event != "schedule_refused"  # whose expression nobody can read
        if reported or "Traceback (most recent call last)" in shown:
            tracebacks.append(f"{text}\n{shown}"[-3000:])
        if event in ("worker_killed", "agent_killed", "store_died"):
            why = record["reason"][:100]
            killed[why] = killed.get(why, 0) + 1
    took = time.monotonic() - began
    return Result(took, fuzzer.said, report.get("children", 0), report, memory, descriptors, died, tracebacks, killed)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--keep", default="", help="a directory for the log")
    options = parser.parse_args()
    seed = random.SystemRandom().getrandbits(32) if options.seed is None else options.seed
    with tempfile.TemporaryDirectory() as made:
        directory = Path(options.keep or made)
        directory.mkdir(exist_ok=True)
        result = run(options.seconds, seed, directory)
    grown, more = result.grown()
    print(f"seed {seed}, {result.seconds:.0f} s: {result.said} packets and frames of {result.children} children")
    print(f"the listener: {'died: ' + result.died if result.died else 'lives'}")
    print(f"longest callback: {result.report.get('worst_cpu', 0) * 1000:.1f} ms of CPU time")
    collected = result.report.get("worst_collection", 0) * 1000
    print(f"of which the collector of cycles took {collected:.1f} ms at most")
    stalls = [stall for stall in result.report.get("stalls", []) if stall["kind"] != "starts"]
    started = len(result.report.get("stalls", [])) - len(stalls)
    print(f"stalls over 50 ms: {len(stalls)}, besides {started} of starting processes")
    for stall in stalls[:10]:
        print("  ", stall)
    print(
        f"memory: {min(result.memory)} to {max(result.memory)} KiB, grown by {grown} KiB; descriptors grown by {more}"
    )
    print(f"tracebacks: {len(result.tracebacks)}")
    for text in dict.fromkeys(result.tracebacks):
        print(text)
    for why, count in sorted(result.killed.items(), key=lambda each: -each[1])[:40]:
        print(f"{count:6} {why}")
    bad = result.died or result.tracebacks or stalls or grown > 8_192 or more > 20
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
