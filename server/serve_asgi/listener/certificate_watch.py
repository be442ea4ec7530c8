"""The certificates and ticket keys of a running server: looked at again and again, and sent to the workers.

It owns what was made of the files that each living generation's configuration names, and the keys of tickets. Rules:

- Files are read in a thread, with a deadline: the listener never waits for a disk. One look at a time.
- What cannot be used changes nothing and is said once. A certificate and its key are two files, and whoever replaces
  both does so one after the other: so what does not fit is looked at again a moment later, before anything is said.
- Workers get everything in memory (`serve_asgi.tls.material`), say what they use, and are sent it again if it got lost.
- What has been loaded is carried over to the program that takes this one's place, in memory: the files may be broken
  by then, and a reload of the listener must not end the tickets of all clients.

Without a certificate nothing of TLS is imported.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import anyio
import msgspec

from serve_asgi.config.tls_files import TlsFiles
from serve_asgi.errors import UsageError
from serve_asgi.ipc.channel import Packet
from serve_asgi.ipc.lifecycle_states import WorkerState
from serve_asgi.ipc.signals import LISTENER_SIGNALS
from serve_asgi.supervisor import actions
from serve_asgi.supervisor.lifecycles import Worker

if TYPE_CHECKING:
    from serve_asgi.listener.certificate_loading import LoadedTls
    from serve_asgi.tls.certificates import Certificate
    from serve_asgi.tls.material import TlsMaterial
    from serve_asgi.tls.tickets import TicketKeys

LOOK: Final = 60.0
"""Seconds between two looks at the files."""
READ_TIME: Final = 10.0
"""Seconds that reading them may take."""
SETTLE_TIME: Final = 2.0
"""Seconds until files that do not fit each other are looked at again, before that is said."""
TAKE_TIME: Final = 5.0
"""Seconds that `serve tls-reload` waits for the workers to say that they use what is new."""
RENEW_BEFORE: Final = 14 * 86400.0
"""Seconds before the end of a certificate from which a warning is logged, once a day."""
DAY: Final = 86400.0

log = logging.getLogger("serve")


class StuckDiskError(UsageError):
    """The files cannot be read in time."""


@dataclasses.dataclass(slots=True)
class ServedTls:
    """What was made of one set of files."""

    loaded: LoadedTls
    trouble: str = ""
    """Why what the files have become since cannot be used."""


class CertificateWatch:
    """The certificates of one server. Without any it does nothing."""

    def __init__(
        self,
        first: tuple[TlsFiles, LoadedTls] | None,
        workers: Callable[[], Iterable[Worker]],
        files_of: Callable[[Worker], TlsFiles | None],
        tell: Callable[[Worker, Packet, tuple[int, ...]], None],
        record: Callable[[actions.LogEvent], None],
        inherited: Mapping[str, Any] | None = None,
    ) -> None:
        """`first` is what the server begins with, `inherited` what an earlier program of this process had.

        `workers` are the living ones, `files_of` what the configuration of one names; `tell` sends a packet with
        descriptors.
        """
        self._workers = workers
        self._files_of = files_of
        self._tell = tell
        self._record = record
        self._served: dict[TlsFiles, ServedTls] = {}
        self._keys: TicketKeys | None = None
        self._rotated = time.monotonic()
        self._version = 1
        self._sent: dict[int, int] = {}  # by the number of a worker that serves, the version that it was sent
        self._taken: dict[int, int] = {}  # and the one that it uses
        self._taken_news = anyio.Event()
        self._warned: dict[str, float] = {}  # by fingerprint, when it was last said that a certificate ends
        self._looking = anyio.Lock()
        self._read_all = threading.Event()  # of the last read: it has come to its end
        self._read_all.set()
        self._begins = inherited is None
        self._state = -1  # a memfd that holds all of this
        if inherited is not None:
            self._load_state(inherited)
        elif first is not None:
            from serve_asgi.tls.tickets import TicketKeys

            files, loaded = first
            self._served[files] = ServedTls(loaded)
            self._keys = TicketKeys()

    # What workers get

    def descriptor_for(self, worker: Worker) -> int | None:
        """What a worker that is started needs; the caller closes it. Raises OSError."""
        files = self._files_of(worker)
        return None if files is None else self._material(self._served[files]).to_memfd()

    def _material(self, served: ServedTls) -> TlsMaterial:
        assert self._keys is not None
        return msgspec.structs.replace(served.loaded.material, ticket_keys=self._keys.keys, version=self._version)

    def taken(self, worker: Worker, version: int, trouble: str) -> None:
        """A worker uses this version, or cannot."""
        self._taken[worker.id] = version
        if trouble:
            text = f"{worker} goes on with the certificate that it had: {trouble}"
            about = {"worker": worker.id, "generation": worker.generation.number, "slot": worker.slot}
            self._record(actions.LogEvent(logging.ERROR, "tls_update_refused", text, "", {**about, "reason": trouble}))
        self._taken_news.set()
        self._taken_news = anyio.Event()

    def lost(self, worker: Worker) -> None:
        """A worker has not got what was sent."""
        self._send(only=worker)

    def _send(self, only: Worker | None = None) -> None:
        """Send everything to the workers that there are."""
        made: dict[TlsFiles, int] = {}
        living = {worker.id for worker in self._workers()}
        self._sent = {number: version for number, version in self._sent.items() if number in living}
        self._taken = {number: version for number, version in self._taken.items() if number in living}
        try:
            for worker in self._workers() if only is None else [only]:
                files = self._files_of(worker)
                if files is None or (served := self._served.get(files)) is None:
                    continue
                if files not in made:
                    made[files] = self._material(served).to_memfd()
                self._tell(worker, {"type": "tls", "version": self._version}, (os.dup(made[files]),))
                if worker.state is WorkerState.SERVING:  # others take it when they begin, or need it no more
                    self._sent[worker.id] = self._version
        except OSError as error:  # EMFILE: what workers have stays in force, and the next rotation brings it
            text = f"the workers cannot be sent certificates and ticket keys for the moment: {error.strerror}"
            self._record(actions.LogEvent(logging.ERROR, "descriptors_lost", text))
        finally:
            for descriptor in made.values():
                os.close(descriptor)

    def _changed(self) -> None:
        """What workers are to have is another: it gets a new version, and they get it."""
        self._version += 1
        self._forget_state()
        self._send()

    # What changes

    async def run(self) -> None:
        """Look at the files, replace ticket keys, warn of certificates that end; until cancelled."""
        if not self._served:
            return
        if self._begins:
            for served in self._served.values():
                self._tell_remarks(served.loaded)
            self._tell_tickets()
        while True:
            try:
                self._rotate_when_due()
                self._warn_of_ends()
            except Exception:  # the server goes on with what it has
                log.exception("certificates could not be looked after; please report this")
            await anyio.sleep(LOOK)
            await self.look()

    def _rotate_when_due(self) -> None:
        from serve_asgi.tls.tickets import ROTATION

        if self._keys is not None and time.monotonic() - self._rotated >= ROTATION:
            self._keys.rotate()
            self._rotated = time.monotonic()
            self._changed()
            text = "session tickets are made with a new key; the one before is still accepted"
            self._record(actions.LogEvent(logging.DEBUG, "tls_ticket_keys_rotated", text))

    async def look(self) -> list[tuple[bool, str]]:
        """Read the files again; for each set of them whether all is well, and a sentence."""
        async with self._looking:
            return [await self._look_at(files) for files in list(self._served)]

    async def prepare(self, files: TlsFiles | None) -> None:
        """A generation is to begin whose configuration names these: read them, or look whether they have changed.

        Raises UsageError if ones that were not known before cannot be used.
        """
        if files is None:
            return
        async with self._looking:
            if files in self._served:
                await self._look_at(files)
                return
            loaded = await self._read(files, b"")
            assert loaded is not None
            self._served[files] = ServedTls(loaded)
            self._forget_state()
            self._tell_remarks(loaded)

    def keep(self, living: Iterable[TlsFiles | None]) -> None:
        """Only these are still named by a configuration that is in use."""
        kept = set(living)
        for files in [each for each in self._served if each not in kept]:
            del self._served[files]
            self._forget_state()

    async def _look_at(self, files: TlsFiles) -> tuple[bool, str]:
        served = self._served[files]
        try:
            try:
                loaded = await self._read(files, served.loaded.digest)
            except StuckDiskError:
                raise
            except UsageError as error:
                if str(error) == served.trouble:
                    return False, served.trouble
                await anyio.sleep(SETTLE_TIME)
                loaded = await self._read(files, served.loaded.digest)
        except UsageError as error:
            return False, self._refuse(served, str(error))
        except Exception as error:  # such as no room for a thread: the server goes on with what it has
            log.exception("the files of certificates could not be looked at")
            return False, f"the files could not be looked at: {error!r}"
        served.trouble = ""
        if loaded is None:
            return True, f"no file has changed: {_described(served.loaded.certificates)}"
        served.loaded = loaded
        self._changed()
        text = f"new connections use what the files hold now: {_described(loaded.certificates)}"
        about = {"certificates": [_told(each) for each in loaded.certificates]}
        self._record(actions.LogEvent(logging.INFO, "tls_certificate_changed", text, "", about))
        self._tell_remarks(loaded)
        self._warn_of_ends()
        return True, text

    def _refuse(self, served: ServedTls, reason: str) -> str:
        """What the files are now changes nothing."""
        if reason != served.trouble:
            served.trouble = reason
            text = f"the certificates in use stay as they were: {reason}"
            self._record(actions.LogEvent(logging.ERROR, "tls_certificate_refused", text, "", {"reason": reason}))
        return reason

    async def _read(self, files: TlsFiles, known: bytes) -> LoadedTls | None:
        """What the files are by now, None if their digest is `known`. Raises UsageError."""
        where = files.pairs[0][0]
        if not self._read_all.is_set():
            raise StuckDiskError(f"{where} and what belongs to it cannot be read: the disk has not answered since")
        outcome: list[LoadedTls | Exception | None] = []
        loop, done, read_all = asyncio.get_running_loop(), anyio.Event(), threading.Event()

        def read() -> None:
            from serve_asgi.listener.certificate_loading import make, read_files

            # A thread may take no signal: one taken there just before execve(2) would be lost.
            signal.pthread_sigmask(signal.SIG_BLOCK, LISTENER_SIGNALS)
            try:
                contents, digest = read_files(files)
                outcome.append(None if digest == known else make(files, contents, digest))
            except Exception as error:
                outcome.append(error)
            read_all.set()
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
                loop.call_soon_threadsafe(done.set)

        # Not a thread of anyio's: one that is stuck would keep the server from ending.
        threading.Thread(target=read, name="certificates", daemon=True).start()
        self._read_all = read_all
        with anyio.move_on_after(READ_TIME):
            await done.wait()
            if isinstance(found := outcome[0], Exception):
                raise found
            return found
        raise StuckDiskError(
            f"{where} and what belongs to it could not be read within {READ_TIME:g} s; is the disk all right?"
        )

    async def reload(self) -> tuple[bool, str]:
        """What `serve tls-reload` asks for: look now, and wait until the workers use what is new.

        Whether all is well, and a sentence.
        """
        if not self._served:
            return False, "this server speaks no TLS: it was started without --tls-cert"
        found = await self.look()
        with anyio.move_on_after(TAKE_TIME):
            while self._behind():
                await self._taken_news.wait()
        text = "; ".join(dict.fromkeys(text for _, text in found))
        if behind := self._behind():
            return False, f"{text}; but {behind} of the workers have not taken it within {TAKE_TIME:g} s"
        return all(ok for ok, _ in found), text

    def _behind(self) -> int:
        """Workers that were sent something and have not said that they use it."""
        living = {worker.id for worker in self._workers()}
        return sum(self._taken.get(number, 0) < version for number, version in self._sent.items() if number in living)

    # What is said

    def _tell_remarks(self, loaded: LoadedTls) -> None:
        for remark in loaded.remarks:
            self._record(actions.LogEvent(logging.WARNING, "tls_certificate_doubted", remark))

    def _tell_tickets(self) -> None:
        from serve_asgi.tls.tickets import unavailable

        if why := unavailable():
            text = f"a TLS session can be resumed with the worker that began it only: {why}"
            self._record(actions.LogEvent(logging.WARNING, "tls_resumption_limited", text))

    def _warn_of_ends(self) -> None:
        """Of each certificate that ends soon, once a day."""
        now = time.time()
        for each in self._certificates():
            left = each.not_after - now
            if left > RENEW_BEFORE or now - self._warned.get(each.fingerprint, 0.0) < DAY:
                continue
            self._warned[each.fingerprint] = now
            what = "revocation list of" if each.kind == "CRL" else "certificate for"
            when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(each.not_after))
            span = f"{left / DAY:.0f} days" if left > DAY else f"{left / 3600:.0f} hours"
            told = f"expires in {span}, on {when}" if left > 0 else f"expired on {when}"
            text = f"the {what} {each.names[0]} in {each.path} {told}: renew it"
            level = logging.WARNING if left > DAY else logging.ERROR
            self._record(actions.LogEvent(level, "tls_renewal_needed", text, "", {"certificate": _told(each)}))

    def _certificates(self) -> list[Certificate]:
        found = (each for served in self._served.values() for each in served.loaded.certificates)
        return list({each.fingerprint: each for each in found}.values())

    def status(self) -> dict[str, Any] | None:
        """What `serve status --json` shows; None if the server speaks no TLS."""
        if not self._served:
            return None
        return {
            "certificates": [_told(each) for each in self._certificates()],
            "trouble": "; ".join(dict.fromkeys(each.trouble for each in self._served.values() if each.trouble)),
            "client_auth": [*self._served][-1].client_auth,
            "ticket_keys_age": round(time.monotonic() - self._rotated, 3),
            "behind": self._behind(),
        }

    def ends(self) -> list[tuple[str, str, float]]:
        """Of each certificate its first name, its file and its end (Unix time), for the metrics."""
        return [(each.names[0], each.path, each.not_after) for each in self._certificates() if each.kind != "CRL"]

    # Over the replacing of the listener's program

    def to_state(self, descriptors: list[int]) -> dict[str, Any] | None:
        """Names the memory that holds it all; `descriptors` gets what must stay open."""
        if not self._served:
            return None
        if self._state < 0:
            from serve_asgi.tls.material import sealed

            assert self._keys is not None
            served = [
                (dataclasses.asdict(files), each.loaded.as_values(), each.trouble)
                for files, each in self._served.items()
            ]
            state = {"served": served, "keys": self._keys.keys, "rotated": self._rotated, "version": self._version}
            self._state = sealed(msgspec.msgpack.encode({**state, "warned": self._warned}), "serve-tls-state")
        descriptors.append(self._state)
        return {"fd": self._state}

    def _load_state(self, state: Mapping[str, Any]) -> None:
        from serve_asgi.listener.certificate_loading import LoadedTls
        from serve_asgi.tls.material import contents
        from serve_asgi.tls.tickets import TicketKeys

        self._state = state["fd"]
        held = msgspec.msgpack.decode(contents(self._state))
        known = {field.name for field in dataclasses.fields(TlsFiles)}
        for files, loaded, trouble in held["served"]:
            named = {name: value for name, value in files.items() if name in known}
            named["pairs"] = tuple((one, other) for one, other in named["pairs"])
            self._served[TlsFiles(**named)] = ServedTls(LoadedTls.from_values(loaded), trouble)
        self._keys = TicketKeys(held["keys"])
        self._rotated, self._version, self._warned = held["rotated"], held["version"], held["warned"]
        self._forget_state()

    def _forget_state(self) -> None:
        """What the memory holds is no longer all."""
        if self._state >= 0:
            with contextlib.suppress(OSError):
                os.close(self._state)
            self._state = -1


def _told(certificate: Certificate) -> dict[str, Any]:
    """JSON-compatible."""
    told = dataclasses.asdict(certificate)
    if certificate.not_after == float("inf"):
        told["not_after"] = None
    return {**told, "names": list(certificate.names)}


def _described(certificates: Iterable[Certificate]) -> str:
    """In a sentence: for whom, until when."""
    told = [
        f"{', '.join(each.names[:3])}{' …' if len(each.names) > 3 else ''} "
        f"(until {time.strftime('%Y-%m-%d', time.gmtime(each.not_after))})"
        for each in certificates
        if each.kind != "CRL"
    ]
    return "; ".join(told)
