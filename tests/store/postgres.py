"""A PostgreSQL of the test's own, and how it is made to fail."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

from tests.running import PATIENCE


class Postgres:
    """A PostgreSQL on a unix socket; it refuses to run as root, so that root runs it as the user of Debian's package.

    Its data lie in a directory of its own, since that user may not enter those that pytest makes.
    """

    def __init__(self, *, durable: bool = False, connections: int = 60, primary: Postgres | None = None) -> None:
        """`durable`: with fsync(2), which a test needs not, since the machine does not crash.

        With a `primary` it is a standby of that one, which follows it (streaming replication) until it is promoted.
        """
        self._fsync = "on" if durable else "off"
        self._connections = str(connections)
        self.directory = Path(tempfile.mkdtemp(prefix="serve-postgres-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(self.directory, user.pw_uid, user.pw_gid)
            self._user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        order = ["initdb", "-D", "data", "-U", "serve", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"]
        if primary is not None:
            order = ["pg_basebackup", "-h", str(primary.directory), "-U", "serve", "-D", "data", "-R", "-c", "fast"]
        subprocess.run(order, cwd=self.directory, check=True, stdout=subprocess.DEVNULL, **self._user)
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql://serve@/postgres?host={self.directory}"

    @property
    def pid(self) -> int:
        """Of the process that has all others as its children."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, and wait until it answers."""
        own = {"listen_addresses": "", "unix_socket_directories": str(self.directory), "fsync": self._fsync}
        own |= {"max_connections": self._connections, "shared_buffers": "16MB", "logging_collector": "off"}
        options = [each for name, value in own.items() for each in ("-c", f"{name}={value}")]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["postgres", "-D", "data", *options],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **self._user,
            )
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.url):
                return
            assert time.monotonic() < deadline
            assert self._process.poll() is None, (self.directory / "log").read_text()
            time.sleep(0.02)

    @contextlib.contextmanager
    def client(self) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        """A connection that commits each statement, unless it has begun a transaction."""
        with contextlib.closing(psycopg.connect(self.url, autocommit=True)) as connection:
            yield connection

    def run(self, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """Run one statement; its rows, if it has any."""
        with self.client() as client:
            cursor = client.execute(statement.encode(), arguments or None)
            return cursor.fetchall() if cursor.description else []

    def signal(self, number: signal.Signals) -> None:
        """To all its processes, each of which is a session of its own."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for pid in [self._process.pid, *map(int, children)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def confirm_by_standby(self) -> None:
        """From now on COMMIT returns when a standby has it; wait until there is one."""
        self.run("ALTER SYSTEM SET synchronous_standby_names = '*'")
        self.run("SELECT pg_reload_conf()")
        deadline = time.monotonic() + PATIENCE
        while not self.run("SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def promote(self) -> None:
        """From now on this standby takes writes."""
        assert self.run("SELECT pg_promote()") == [(True,)]

    def kill(self) -> None:
        """As a crash: nothing is finished, and the next start recovers from the log."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait()

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.signal(signal.SIGCONT)
            self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


@contextlib.contextmanager
def own_postgres(**more: Any) -> Iterator[Postgres]:
    """A PostgreSQL, ended with the block."""
    server = Postgres(**more)
    try:
        yield server
    finally:
        server.close()


def own_place(server: Postgres, *more: str) -> str:
    """The URL of a schema that nobody else uses."""
    return "&".join([server.url, f"prefix=t{uuid.uuid4().hex}", *more])
