"""Files that the server serves itself (`--static PREFIX=DIR`), before the application is asked.

It owns which requests are answered from a directory, and how. An ASGI application around the one that is served, which
is not there unless it is asked for: so that its responses have what all have (limits, log, metrics, HTTP/2, TLS), and a
request of a server without static files pays nothing. Rules: nothing outside the directory is opened
(`serve_asgi.http.open_beneath`), no name that begins with a dot, no directory is listed; what is not there is the
application's to answer. Files are opened on the event loop, as proxies do: a directory belongs on a local disk.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import mimetypes
import os
import re
import stat
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import quote

from serve_asgi.config.values import IMMUTABLE, REVALIDATE, read_max_age, read_static
from serve_asgi.errors import UsageError
from serve_asgi.http.conditional_requests import ConditionVerdict, acceptable_codings, evaluate, http_date, wanted_range
from serve_asgi.http.open_beneath import DirectoryTree
from serve_asgi.http.worker_context import ASGIApplication, Receive, Scope, Send
from serve_asgi.logs.server_log import about

INDEX: Final = b"index.html"
CODINGS: Final = {b"br": b".br", b"zstd": b".zst", b"gzip": b".gz"}
"""Content codings that files may be there in, and how their names then end; the first is taken if all are equal."""
METHODS: Final = ("GET", "HEAD")
HASHED_NAME: Final = re.compile(r"[/._-](?=[0-9a-f]*[0-9])(?=[0-9a-f]*[a-f])[0-9a-f]{8,64}\.[^/]+$")
"""The last part of a path with a hash of the content in it, as Django, webpack and others write it: at least eight
hexadecimal digits, among them a digit and a letter, so that no date or word is taken for one."""
NO_DATE: Final = 400_000_000
"""Unix time (1982), s: files that are older than that have no date of their own. Reproducible builds give them all the
same, such as 0, 1 or 1980-01-01."""
NOT_SERVED: Final = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EXDEV, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.EISDIR, errno.EINVAL}
)
"""What opening fails with if no such file is there; the rest is trouble (errno(3))."""

UNREADABLE: Final = 20
"""Most files that this process says it may not read."""

log = logging.getLogger("serve")
_unreadable: set[str] = set()

_TYPES: Final = mimetypes.MimeTypes()  # Python's own table, the same on every machine
for _suffix, _type in {
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".map": "application/json",
    ".md": "text/markdown",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
    ".woff": "font/woff",
    ".woff2": "font/woff2",
    ".webp": "image/webp",
    ".avif": "image/avif",
    ".svg": "image/svg+xml",
}.items():
    _TYPES.add_type(_type, _suffix)
_COMPRESSED: Final = {"gzip": "application/gzip", "br": "application/x-brotli", "compress": "application/x-compress"}
_COMPRESSIBLE: Final = frozenset({"application/json", "application/wasm", "application/xml", "application/javascript"})

Fields = list[tuple[bytes, bytes]]


class OpenFile:
    """A regular file that is open for reading, and what HTTP says of it. A context manager that closes it."""

    __slots__ = ("fd", "modified", "size", "tag")

    def __init__(self, fd: int, status: os.stat_result, coding: bytes = b"") -> None:
        self.fd = fd
        self.size = status.st_size
        self.modified = int(status.st_mtime) if status.st_mtime > NO_DATE else None
        """Unix time, s; None if it says nothing."""
        changed = status.st_mtime_ns if self.modified is not None else status.st_ctime_ns
        self.tag = b'"%x-%x%b"' % (changed, status.st_size, coding and b"-" + coding)
        """A strong ETag: the time is the kernel's, of a few milliseconds. Without a date it is the time at which the
        file was put there, which two releases on one machine do not have in common."""

    @property
    def validators(self) -> Fields:
        """What a client needs to ask whether it is still the same."""
        dated = [] if self.modified is None else [(b"last-modified", http_date(self.modified))]
        return [(b"etag", self.tag), *dated]

    def fileno(self) -> int:
        """For http.response.zerocopysend."""
        return self.fd

    def __enter__(self) -> OpenFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


class StaticFiles:
    """The application behind some directories of files."""

    __slots__ = ("_age", "_ages", "_app", "_mounts", "_root")

    def __init__(
        self, app: ASGIApplication, rules: Sequence[str], root_path: str = "", max_ages: Sequence[str] = ()
    ) -> None:
        """Opens the directories; relative ones start in the working directory. Raises UsageError."""
        self._app = app
        ages = dict(map(read_max_age, max_ages))
        self._age = ages.pop("", REVALIDATE)
        self._ages = sorted(ages.items(), key=lambda rule: len(rule[0]), reverse=True)
        self._root = root_path
        self._mounts: list[tuple[str, DirectoryTree]] = []
        for prefix, directory in sorted(map(read_static, rules), key=lambda rule: len(rule[0]), reverse=True):
            try:
                self._mounts.append((prefix + "/", DirectoryTree(directory)))
            except OSError as error:
                self.close()
                raise UsageError(
                    f"--static: the directory {directory} (in {os.getcwd()}) cannot be opened: {error.strerror}"
                ) from None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer from a directory, or call the application."""
        if scope["type"] == "http":
            path = scope["path"].removeprefix(self._root)
            for prefix, tree in self._mounts:
                if path.startswith(prefix):
                    if await _answered(tree, path[len(prefix) :], self.cache_control(path), scope, send):
                        return
                    break
        await self._app(scope, receive, send)

    def cache_control(self, path: str) -> bytes:
        """How long a file may be used without asking, by the path of its URL: the longest prefix counts."""
        for prefix, value in self._ages:
            if path.startswith(prefix + "/"):
                return value
        return IMMUTABLE if HASHED_NAME.search(path, path.rfind("/")) else self._age

    def close(self) -> None:
        """Close the directories."""
        for _, tree in self._mounts:
            tree.close()


async def _answered(tree: DirectoryTree, name: str, cache: bytes, scope: Scope, send: Send) -> bool:
    """Whether there is such a file, or directory with an index; then it has been answered."""
    path = _safe(name)
    if path is None:
        return False
    file = open_file(tree, path + INDEX if not path or path.endswith(b"/") else path)
    if file is None:
        if path and not path.endswith(b"/") and (index := open_file(tree, path + b"/" + INDEX)) is not None:
            with index:
                await _send_to_directory(scope, send)
            return True
        return False
    kind = content_type(name)
    with contextlib.ExitStack() as opened:
        opened.enter_context(file)
        if scope["method"] not in METHODS:
            await _plain(send, 405, b"This is a file: use GET or HEAD.\n", [(b"allow", b"GET, HEAD")])
            return True
        headers = _joined(scope["headers"])
        fields = [(b"content-type", kind.encode()), (b"cache-control", cache)]
        if is_compressible(kind):
            fields.append((b"vary", b"accept-encoding"))
            base = path + INDEX if not path or path.endswith(b"/") else path
            for coding in acceptable_codings(headers.get(b"accept-encoding", b""), tuple(CODINGS)):
                if (other := open_file(tree, base + CODINGS[coding], coding)) is not None:
                    file = opened.enter_context(other)
                    fields.append((b"content-encoding", coding))
                    break
        await _send(file, fields, headers, scope["method"], send)
    return True


def _safe(name: str) -> bytes | None:
    """The name as a path of the file system; None for one that is not served, whatever is there."""
    parts = name.split("/")
    if "\0" in name or any(part.startswith(".") for part in parts) or "" in parts[:-1]:
        return None
    return name.encode("utf-8", "surrogateescape")


def open_file(tree: DirectoryTree, path: bytes, coding: bytes = b"") -> OpenFile | None:
    """The regular file at this path, or None. Raises OSError if that cannot be told: a full table of files, a bad
    disk."""
    try:
        fd = tree.open(path)
    except OSError as error:
        if error.errno == errno.EACCES:
            _say_unreadable(path.decode(errors="replace"))
        elif error.errno not in NOT_SERVED:
            raise
        return None
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode):
        return OpenFile(fd, status, coding)
    os.close(fd)
    return None


def _say_unreadable(path: str) -> None:
    """Warn of a file that this user may not read, each once."""
    if len(_unreadable) < UNREADABLE and path not in _unreadable:
        _unreadable.add(path)
        text = "--static: %s is asked for, and this user may not read it: it is left to the application"
        log.warning(text, path, extra=about("static_file_refused", path=path))


def content_type(name: str) -> str:
    """The media type of a file with this name; a directory's is its index's."""
    kind, coding = _TYPES.guess_type(name if name and not name.endswith("/") else "index.html")
    if coding is not None:
        kind = _COMPRESSED.get(coding)
    if kind is None:
        return "application/octet-stream"
    return kind + "; charset=utf-8" if kind.startswith("text/") else kind


def is_compressible(kind: str) -> bool:
    """Whether a file of this type may lie there in compressed forms as well."""
    kind = kind.partition(";")[0]
    return kind.startswith("text/") or kind in _COMPRESSIBLE or kind.endswith(("+xml", "+json"))


def _joined(fields: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    joined: dict[bytes, bytes] = {}
    for name, value in fields:
        joined[name] = joined[name] + b", " + value if name in joined else value
    return joined


async def _send(file: OpenFile, fields: Fields, headers: dict[bytes, bytes], method: str, send: Send) -> None:
    """Send the file, a part of it, or that there is nothing new."""
    validators = file.validators
    verdict = evaluate(headers, file.tag, file.modified)
    if verdict is ConditionVerdict.NOT_MODIFIED:
        kept = [field for field in fields if field[0] in (b"vary", b"cache-control")]
        await _start(send, 304, [*kept, *validators])
        await send({"type": "http.response.body", "body": b""})
        return
    if verdict is ConditionVerdict.FAILED:
        await _plain(send, 412, b"The file has changed.\n", validators)
        return
    status, first, end = 200, 0, file.size
    if method == "GET" and b"range" in headers:
        try:
            part = wanted_range(headers, file.tag, file.modified, file.size)
        except ValueError:
            await _plain(send, 416, b"", [(b"content-range", b"bytes */%d" % file.size), *validators])
            return
        if part is not None:
            status, (first, end) = 206, part
            fields.append((b"content-range", b"bytes %d-%d/%d" % (first, end - 1, file.size)))
    length = (b"content-length", b"%d" % (end - first))
    nosniff = (b"x-content-type-options", b"nosniff")
    await _start(send, status, [*fields, *validators, (b"accept-ranges", b"bytes"), nosniff, length])
    if method == "HEAD" or first == end:
        await send({"type": "http.response.body", "body": b""})
    else:
        await send({"type": "http.response.zerocopysend", "file": file, "offset": first, "count": end - first})


async def _send_to_directory(scope: Scope, send: Send) -> None:
    """A directory is asked for without its slash, against which links in its index would go wrong."""
    query = b"?" + scope["query_string"] if scope["query_string"] else b""
    target = quote(scope["path"], safe="/:@!$&'()*+,;=", errors="surrogateescape").encode() + b"/" + query
    await _plain(send, 307, b"", [(b"location", target)])


async def _plain(send: Send, status: int, text: bytes, fields: Fields) -> None:
    length = (b"content-length", b"%d" % len(text))
    await _start(send, status, [(b"content-type", b"text/plain; charset=utf-8"), *fields, length])
    await send({"type": "http.response.body", "body": text})


async def _start(send: Send, status: int, fields: Fields) -> None:
    message: dict[str, Any] = {"type": "http.response.start", "status": status, "headers": fields}
    await send(message)
