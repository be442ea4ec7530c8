"""Output through pipes, terminals, sockets and files that are read, full, closed or gone. Real processes."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serve_asgi.logs.child_output import ChildOutput
from serve_asgi.logs.nonblocking_sink import LIMIT, Sink
from serve_asgi.logs.stdio_guard import GuardedStream, OutputGuard
from tests.logs.output_process import LINES

PROCESS = Path(__file__).with_name("output_process.py")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
PATIENCE = 60


def start(*arguments: str, stdout: int, stderr: int, keep: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(PROCESS), *arguments]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=stdout, stderr=stderr, pass_fds=keep)


def read_all(fd: int) -> bytes:
    data = b""
    try:
        while piece := os.read(fd, 65536):
            data += piece
    except OSError:  # EIO: the last holder of a terminal has gone
        pass
    os.close(fd)
    return data


def run_into_pipes(*arguments: str) -> tuple[bytes, bytes]:
    done = subprocess.run(
        [sys.executable, str(PROCESS), *arguments], env=ENVIRONMENT, capture_output=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_pipes_that_are_read_get_everything() -> None:
    assert run_into_pipes("alone") == (b"to stdout\n", b"to stderr\n")


def test_order_is_kept_where_both_are_one() -> None:
    read_end, write_end = os.pipe()
    child = start("alone", stdout=write_end, stderr=write_end)
    os.close(write_end)
    assert read_all(read_end) == b"to stdout\nto stderr\n"
    assert child.wait(PATIENCE) == 0


def test_a_file_is_left_alone(tmp_path: Path) -> None:
    with open(tmp_path / "out", "wb") as file:
        assert start("parent", "well", stdout=file.fileno(), stderr=file.fileno()).wait(PATIENCE) == 0
    assert (tmp_path / "out").read_bytes() == b"the child speaks\nthe parent is done\n"


def test_a_terminal() -> None:
    ours, theirs = pty.openpty()
    child = start("parent", "well", stdout=theirs, stderr=theirs)
    os.close(theirs)
    assert read_all(ours) == b"the child speaks\r\nthe parent is done\r\n"
    assert child.wait(PATIENCE) == 0


@pytest.mark.parametrize("at_start", [True, False])
def test_a_vanished_terminal_stops_nobody(at_start: bool) -> None:
    ours, theirs = pty.openpty()
    read_end, write_end = os.pipe()
    if at_start:
        os.close(ours)
    child = start("much", str(write_end), stdout=theirs, stderr=theirs, keep=(write_end,))
    os.close(theirs)
    os.close(write_end)
    if not at_start:
        assert os.read(ours, 100).startswith(b"000")
        os.close(ours)
    assert child.wait(PATIENCE) == 0
    assert int(read_all(read_end).removeprefix(b"dropped ")) > 0


def much(stdout: int) -> int:
    """Run a process that writes more than anything holds to `stdout`; the bytes that it says it dropped."""
    read_end, write_end = os.pipe()
    child = start("much", str(write_end), stdout=stdout, stderr=subprocess.DEVNULL, keep=(write_end,))
    os.close(write_end)
    assert child.wait(PATIENCE) == 0
    return int(read_all(read_end).removeprefix(b"dropped "))


def test_a_closed_pipe_stops_nobody() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    assert much(write_end) > 0
    os.close(write_end)


def test_a_full_pipe_blocks_nobody_and_what_is_dropped_is_counted() -> None:
    read_end, write_end = os.pipe()
    capacity = fcntl.fcntl(write_end, fcntl.F_GETPIPE_SZ)
    dropped = much(write_end)
    os.close(write_end)
    lines = read_all(read_end).splitlines()
    assert 0 < len(lines) * 100 <= capacity
    assert all(len(line) == 99 for line in lines)  # whole lines alone
    assert dropped >= LINES * 100 - capacity - 3 * LIMIT  # the rest was in flight: two buffers and the other pipe


def test_the_other_holders_of_the_pipe_keep_their_mode() -> None:
    """O_NONBLOCK belongs to the open file, which a shell or a sibling may share."""
    read_end, write_end = os.pipe()
    assert start("alone", stdout=write_end, stderr=write_end).wait(PATIENCE) == 0
    assert os.get_blocking(write_end)
    os.close(write_end)
    assert read_all(read_end) == b"to stdout\nto stderr\n"


def test_a_socket_that_nobody_reads() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert much(theirs.fileno()) > 0
        assert theirs.getblocking()


def test_closed_descriptors_are_filled(tmp_path: Path) -> None:
    """Or else the first socket that is opened would be taken for stdout."""
    command = f"exec {sys.executable} {PROCESS} parent well 0>&- 1>&- 2>&-"
    assert subprocess.run(["/bin/sh", "-c", command], env=ENVIRONMENT, timeout=PATIENCE).returncode == 0


def test_last_words_of_a_crashed_child_are_kept() -> None:
    out, err = run_into_pipes("parent", "crash", "well")
    lines = out.splitlines()
    assert sorted(lines[:2]) == [b"last words", b"the child speaks"]
    assert lines[2:] == [b"the child speaks", b"the parent is done"]
    assert b"Fatal Python error: Segmentation fault" in err


def test_a_sink_keeps_what_fits_and_drops_the_oldest_whole_lines() -> None:
    read_end, write_end = os.pipe()
    sink = Sink.onto(write_end)
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
    total = 0
    for number in range(2 * LIMIT // 1000):
        sink.write(b"%0999d\n" % number)
        total += 1000
    assert sink.waiting
    assert sink.dropped >= total - LIMIT - 8192
    os.set_blocking(read_end, False)
    seen = b""
    deadline = time.monotonic() + PATIENCE
    while sink.waiting and time.monotonic() < deadline:
        seen += os.read(read_end, 65536)
        sink.pump()
    seen += os.read(read_end, 65536)
    assert len(seen) + sink.dropped == total
    numbers = [int(line) for line in seen.splitlines()]
    assert numbers == sorted(numbers)
    assert numbers[-1] == 2 * LIMIT // 1000 - 1
    sink.close()
    os.close(read_end)
    os.close(write_end)


@pytest.mark.parametrize("gone", [True, False])
def test_a_sink_never_raises(gone: bool) -> None:
    read_end, write_end = os.pipe()
    sink = Sink.onto(write_end)
    if gone:
        os.close(read_end)
    for _ in range(300):
        sink.write(b"x" * 9999 + b"\n")
    sink.finish(time.monotonic())
    assert not sink.waiting
    assert sink.dropped > 0
    sink.close()
    os.close(write_end)
    if not gone:
        os.close(read_end)


FULL_DISK = """
import os, sys, time
from serve_asgi.config.options import Config
from serve_asgi.logs.access_log import AccessLog
from serve_asgi.logs.log_file import LogFile

class Lines(AccessLog):
    def record(self, *given, **more): pass

path, ballast = sys.argv[1] + "/log", sys.argv[1] + "/ballast"
log = Lines(Config(app="a:a", access_log_file=path))
with open(ballast, "wb") as file:
    file.write(bytes(58_000))
for number in range(40):
    log._add(f"{number:0999d}\\n")
    log.flush()
assert log._sink.waiting and not log._sink.dropped
if sys.argv[2] == "reopen":
    os.rename(path, path + ".1")
os.unlink(ballast)
getattr(log, sys.argv[2])()
written = open(path).read()
if sys.argv[2] == "reopen":
    before = open(path + ".1").read()
    written = before[: before.rfind("\\n") + 1] + written
print([int(line) for line in written.splitlines()])
log.close()
with open(ballast, "wb", 0) as file:
    while True:
        try:
            file.write(bytes(4096))
        except OSError:
            break
log = LogFile(path).sink
log.write(b"x" * 9000)
begun = time.monotonic()
log.finish(begun + 300)
print(time.monotonic() - begun < 200)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
@pytest.mark.parametrize("then", ["flush", "reopen"])
def test_what_a_full_disk_does_not_take_is_written_when_there_is_room_again(tmp_path: Path, then: str) -> None:
    small = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=64k none "$0" && exec "$@"', str(tmp_path)]
    command = [*small, sys.executable, "-c", FULL_DISK, str(tmp_path), then]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    lines, ends = done.stdout.splitlines()[-2:] or pytest.fail(done.stderr)
    numbers = json.loads(lines)
    # At a rotation the rest of the line that the disk broke off stays behind.
    assert set(range(40)) - set(numbers) == set() if then == "flush" else len(set(range(40)) - set(numbers)) <= 1
    assert numbers == sorted(numbers)
    assert ends == "True"


class Streams(OutputGuard):
    """What a guarded process writes to, without the thread that empties its own pipes."""

    def __init__(self, streams: list[GuardedStream]) -> None:
        self._streams = streams


HOLDER = """
import os, sys, time
for fd in map(int, sys.argv[1:3]):
    os.set_blocking(fd, True)
print(flush=True)
while sys.argv[3] == "writes":
    os.write(int(sys.argv[2]), b"x" * 65536)
time.sleep(300)
"""


@pytest.mark.parametrize("does", ["nothing", "writes"])
def test_what_a_dead_child_has_left_behind_holds_nobody_up(does: str) -> None:
    """It holds both ends of the pipe, has cleared O_NONBLOCK, and perhaps goes on writing."""
    read_end, write_end = os.pipe()
    try:
        outputs = ChildOutput(Streams([GuardedStream((), read_end, Sink.onto(write_end))]))
        (stream,) = outputs._streams
        (theirs,) = outputs._write_ends
        os.write(theirs, b"last words\n")
        command = [sys.executable, "-c", HOLDER, str(stream.read_end), str(theirs), does]
        left = subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=(stream.read_end, theirs))
        assert left.stdout is not None
        assert left.stdout.readline() == b"\n"
        outputs.read_rest()
        assert b"last words\n" in os.read(read_end, 1 << 20)
    finally:
        left.kill()
        left.communicate()
        for fd in (read_end, write_end):
            os.close(fd)


def test_a_sink_waits_for_nobody_whoever_changes_the_mode() -> None:
    """Its own open file is set anew; one that it shares is written to in a way that needs no mode."""
    read_end, write_end = os.pipe()
    for sink in (Sink.onto(write_end), Sink(os.dup(write_end), shared=True)):
        os.set_blocking(sink.fileno(), True)
        for _ in range(3 * LIMIT // 10_000):
            sink.write(b"x" * 9_999 + b"\n")
        assert sink.waiting
        assert sink.dropped > 0
        assert os.get_blocking(write_end)
        sink.close()
    os.set_blocking(read_end, False)
    assert len(os.read(read_end, 1 << 20)) <= fcntl.fcntl(write_end, fcntl.F_GETPIPE_SZ)
    os.close(read_end)
    os.close(write_end)


def test_a_shared_pipe_that_is_read_gets_everything() -> None:
    read_end, write_end = os.pipe()
    sink = Sink(os.dup(write_end), shared=True)
    os.close(write_end)
    seen = b""
    for number in range(500):
        sink.write(b"%0999d\n" % number)
        while sink.waiting:
            seen += os.read(read_end, 65536)
            sink.pump()
    assert sink.dropped == 0
    sink.close()
    assert [int(line) for line in (seen + read_all(read_end)).splitlines()] == list(range(500))


def test_each_process_has_its_own_open_file_of_the_original() -> None:
    read_end, write_end = os.pipe()
    sink = Sink.onto(write_end)
    outputs = ChildOutput(Streams([GuardedStream((), read_end, sink)]))
    ((given, shared),) = outputs._given
    assert not shared
    os.set_blocking(given, True)
    assert not os.get_blocking(sink.fileno())
    outputs.read_rest()
    sink.close()
    os.close(write_end)
