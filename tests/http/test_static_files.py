"""Files that the server serves itself: what is answered, what is left to the application, and what never leaves."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_asgi.config import sources
from serve_asgi.config.values import IMMUTABLE, REVALIDATE, read_static
from serve_asgi.errors import UsageError
from serve_asgi.http.conditional_requests import http_date
from serve_asgi.http.open_beneath import DirectoryTree
from serve_asgi.http.static_files import StaticFiles, content_type, is_compressible, open_file
from serve_asgi.http.worker_context import Receive, Scope, Send
from serve_asgi.ipc.scoreboard import Cell
from tests.http.http_server import HttpServer, respond, serving
from tests.http2.http2_server import serving as serving2

LARGE = bytes(range(256)) * 4096
"""More than is read at once: it goes by sendfile."""


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    await respond(send, b"the application's")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory beside a secret."""
    top = tmp_path_factory.mktemp("static")
    (top / "secret").write_text("secret")
    tree = top / "public"
    (tree / "docs").mkdir(parents=True)
    (tree / "empty").mkdir()
    (tree / ".git").mkdir()
    for name, content in {
        "a.txt": b"0123456789",
        "large.bin": LARGE,
        "page.html": b"plain",
        "page.html.br": b"as br",
        "page.html.gz": b"as gzip",
        "only.css": b"plain",
        "only.css.zst": b"as zstd",
        "photo.png": b"png",
        "photo.png.gz": b"no",
        "nothing": b"",
        "sp ace é.txt": b"name",
        "docs/index.html": b"index",
        ".env": b"secret",
        ".git/config": b"secret",
    }.items():
        (tree / name).write_bytes(content)
    (tree / "inside").symlink_to("a.txt")
    (tree / "outside").symlink_to("../secret")
    (tree / "absolute").symlink_to(top / "secret")
    (tree / "up").symlink_to("..")
    (tree / "device").symlink_to("/dev/tty")
    (tree / "app.3f2a9c1b.js").write_text("hashed")
    (tree / "old.txt").write_text("1234")
    os.utime(tree / "old.txt", (1, 1))
    os.mkfifo(tree / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(tree / "socket"))
    return tree


@pytest.fixture(scope="module")
def server(tree: Path) -> Iterator[HttpServer]:
    rules, ages = (f"/s/={tree}", f"/s/deeper={tree / 'docs'}"), ("60", "/s/deeper=immutable")
    front = StaticFiles(application, rules, "", ages)
    with serving(front, "uvloop") as server:
        yield server


def ask(server: HttpServer, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """One request: status, headers, content."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    answer = server.ask(f"{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{lines}\r\n".encode())
    head, _, content = answer.partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in rest), content


def test_a_file(server: HttpServer, tree: Path) -> None:
    status, headers, content = ask(server, "/s/a.txt")
    assert (status, content) == (200, b"0123456789")
    assert headers["content-type"] == "text/plain; charset=utf-8"
    assert headers["content-length"] == "10"
    assert headers["accept-ranges"] == "bytes"
    assert headers["etag"].startswith('"')
    assert headers["last-modified"].endswith(" GMT")
    assert ask(server, "/s/large.bin")[2] == LARGE
    assert ask(server, "/s/nothing")[::2] == (200, b"")
    assert ask(server, "/s/sp%20ace%20%C3%A9.txt")[2] == b"name"
    assert ask(server, "/s/%61.t%78t?v=1")[2] == b"0123456789"
    assert ask(server, "/s/inside")[2] == b"0123456789"
    assert ask(server, "/s/deeper/index.html")[2] == b"index"


def test_the_head_of_a_file(server: HttpServer) -> None:
    whole, head = ask(server, "/s/a.txt"), ask(server, "/s/a.txt", "HEAD", range="bytes=1-2")
    assert head == (200, whole[1], b"")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_other_methods(server: HttpServer, method: str) -> None:
    status, headers, _ = ask(server, "/s/a.txt", method)
    assert (status, headers["allow"]) == (405, "GET, HEAD")
    assert ask(server, "/s/none", method)[2] == b"the application's"


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/",
            "/s",
            "/sa.txt",
            "/s/",
            "/s/none",
            "/s/empty/",
            "/s/empty",
            "/s/a.txt/",
            "/s/a.txt/b",
            "/s/pipe",
            "/s/socket",
        ),
        *("/s/outside", "/s/absolute", "/s/up/secret", "/s/../secret", "/s/%2e%2e/secret", "/s/docs/../../secret"),
        *("/s//a.txt", "/s/./a.txt", "/s/.env", "/s/.git/config", "/s/..%2fsecret", "/s/a.txt%00", "/s/%ff"),
        *("/s/device", "/s/docs%5c..%5c..%5csecret", "/s/%2e%2e%5csecret", "/s/%252e%252e/secret", "/s//etc/passwd"),
        *("/s/%2fetc/passwd", "/s/docs/%2e%2e/%2e%2e/secret", "/s/none%00.html", "/s/%00", "/s/%c0%ae%c0%ae/secret"),
        f"/s/{'n' * 300}",
    ],
)
def test_what_is_not_there_is_the_applications(server: HttpServer, path: str) -> None:
    assert ask(server, path)[::2] == (200, b"the application's")


def test_a_directory_has_an_index_and_no_listing(server: HttpServer) -> None:
    assert ask(server, "/s/docs/")[2] == b"index"
    status, headers, _ = ask(server, "/s/docs?a=b")
    assert (status, headers["location"]) == (307, "/s/docs/?a=b")


def test_conditions_and_ranges(server: HttpServer) -> None:
    _, headers, _ = ask(server, "/s/a.txt")
    tag, modified = headers["etag"], headers["last-modified"]
    status, known, content = ask(server, "/s/a.txt", if_none_match=tag)
    assert (status, known["etag"], content) == (304, tag, b"")
    assert ask(server, "/s/a.txt", "HEAD", if_modified_since=modified)[0] == 304
    assert ask(server, "/s/a.txt", if_match='"x"')[0] == 412
    status, part, content = ask(server, "/s/a.txt", range="bytes=2-4", if_range=tag)
    assert (status, part["content-range"], content) == (206, "bytes 2-4/10", b"234")
    assert part["content-length"] == "3"
    assert ask(server, "/s/a.txt", range="bytes=2-4", if_range='"x"')[::2] == (200, b"0123456789")
    assert ask(server, "/s/large.bin", range="bytes=-100000")[2] == LARGE[-100_000:]
    status, part, _ = ask(server, "/s/a.txt", range="bytes=10-")
    assert (status, part["content-range"]) == (416, "bytes */10")


def test_how_long_caches_may_use_a_file(server: HttpServer) -> None:
    ages = {name: ask(server, f"/s/{name}")[1]["cache-control"] for name in ("a.txt", "app.3f2a9c1b.js", "deeper/")}
    immutable = "public, max-age=31536000, immutable"
    assert ages == {"a.txt": "public, max-age=60", "app.3f2a9c1b.js": immutable, "deeper/": immutable}
    status, headers, _ = ask(server, "/s/app.3f2a9c1b.js", if_none_match="*")
    assert (status, headers["cache-control"]) == (304, immutable)
    assert "cache-control" not in ask(server, "/s/a.txt", "POST")[1]
    assert "cache-control" not in ask(server, "/s/docs")[1]


@pytest.mark.parametrize(
    ("path", "is_hashed"),
    [
        ("/a/base.27e20196a850.css", True),  # Django
        ("/a/main.3f2a9c1b.js.map", True),
        ("/a/pages-3f2a9c1b8d7e6f5a.js", True),
        ("/a/3f2a9c1b8d7e6f5a.js", True),
        ("/a/app-2d4f0e1a.css.gz", True),
        ("/a/index.html", False),
        ("/a/photo-20240101.jpg", False),
        ("/a/facade-decade.js", False),
        ("/a/accede12", False),
        ("/a/app.3f2a9c1.js", False),  # seven
        ("/a/app3f2a9c1b.js", False),
        ("/a.3f2a9c1b.d/app.js", False),
        ("/a/index-BfKq9x2Z.js", False),  # Vite's: "Q4Fy2024" looks like it
        ("/a/", False),
    ],
)
def test_names_with_a_hash(tmp_path: Path, path: str, is_hashed: bool) -> None:
    files = StaticFiles(application, (f"/={tmp_path}",))
    assert files.cache_control(path) == (IMMUTABLE if is_hashed else REVALIDATE)
    files.close()


def test_the_longest_prefix_says_how_long(tmp_path: Path) -> None:
    files = StaticFiles(application, (f"/={tmp_path}",), "", ("/a=60", "/a/b/=0", "/c=immutable", "5"))
    found = [files.cache_control(path) for path in ("/a/3f2a9c1b.js", "/a/b/c", "/ab", "/c", "/c/d", "/x.3f2a9c1b.js")]
    five = b"public, max-age=5"
    assert found == [b"public, max-age=60", REVALIDATE, five, five, IMMUTABLE, IMMUTABLE]
    files.close()


@pytest.mark.parametrize("text", ["x", "-1", "1.5", "a=1", "/a=", "/a=never", "=5", "99999999999"])
def test_what_is_no_lifetime(text: str) -> None:
    with pytest.raises(
        UsageError, match=r"^--static-max-age: .* is no lifetime: write seconds, as in 60, or immutable"
    ):
        sources.read("a:a", {"static_max_age": (text,)}, {})


def test_a_lifetime_that_is_given_twice() -> None:
    with pytest.raises(UsageError, match=r"^--static-max-age: /a is given twice: leave one out"):
        sources.read("a:a", {"static_max_age": ("/a=1", "/a/=2")}, {})


def test_a_date_that_all_files_have_says_nothing(server: HttpServer, tree: Path) -> None:
    """As reproducible builds make them: another release's file may be as long."""
    _, before, _ = ask(server, "/s/old.txt")
    assert "last-modified" not in before
    (tree / "new.txt").write_text("5678")
    os.utime(tree / "new.txt", (1, 1))
    (tree / "new.txt").rename(tree / "old.txt")
    status, after, content = ask(
        server, "/s/old.txt", if_none_match=before["etag"], if_modified_since=http_date(1).decode()
    )
    assert (status, content) == (200, b"5678")
    assert ask(server, "/s/old.txt", if_none_match=after["etag"])[0] == 304


def test_a_file_that_cannot_be_opened_for_want_of_descriptors_is_not_called_missing(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    tree = DirectoryTree(str(tmp_path))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limit[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            open_file(tree, b"a")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert open_file(tree, b"b") is None
    tree.close()


def test_a_file_that_may_not_be_read_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "no")

    tree = DirectoryTree(str(tmp_path))
    monkeypatch.setattr(DirectoryTree, "open", refuse)
    assert [open_file(tree, b"refused.txt") for _ in range(3)] == [None] * 3
    assert [record.getMessage() for record in caplog.records] == [
        "--static: refused.txt is asked for, and this user may not read it: it is left to the application"
    ]
    tree.close()


def test_files_that_are_compressed_already(server: HttpServer) -> None:
    plain = ask(server, "/s/page.html")
    assert plain[2] == b"plain"
    assert plain[1]["vary"] == "accept-encoding"
    status, headers, content = ask(server, "/s/page.html", accept_encoding="gzip, br")
    assert (status, headers["content-encoding"], content) == (200, "br", b"as br")
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert headers["etag"] != plain[1]["etag"]
    assert ask(server, "/s/page.html", accept_encoding="gzip;q=1, br;q=0")[2] == b"as gzip"
    assert ask(server, "/s/only.css", accept_encoding="br, zstd")[2] == b"as zstd"
    assert ask(server, "/s/page.html", accept_encoding="br", range="bytes=3-4")[2] == b"br"
    photo = ask(server, "/s/photo.png", accept_encoding="gzip")
    assert photo[2] == b"png"
    assert "vary" not in photo[1]
    assert ask(server, "/s/page.html.gz")[1]["content-type"] == "application/gzip"


def test_over_http2(tree: Path) -> None:
    with serving2(StaticFiles(application, (f"/s={tree}",), ""), "uvloop") as server:
        client = server.client({4: 1 << 24})
        large, head, known = client.get(b"/s/large.bin"), client.get(b"/s/a.txt"), client.get(b"/none")
        assert client.wait(large).content == LARGE
        assert client.wait(head).fields[b"content-length"] == b"10"
        assert client.wait(known).content == b"the application's"
        part = client.get(b"/s/a.txt", (b"range", b"bytes=0-3"))
        assert (client.wait(part).status, client.wait(part).content) == (206, bytearray(b"0123"))
        assert server.cell(Cell.STATUS_2XX) == 4


def test_no_file_stays_open(server: HttpServer, tree: Path) -> None:
    def open_files() -> list[str]:
        found = []
        for each in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                found.append(os.readlink(f"/proc/self/fd/{each}"))
        return [path for path in found if path.startswith(f"{tree}/") and path != str(tree / "docs")]

    ask(server, "/s/page.html", accept_encoding="gzip")
    ask(server, "/s/docs")
    ask(server, "/s/pipe")
    ask(server, "/s/a.txt", "POST")
    ask(server, "/s/large.bin", if_none_match="*")
    server.until(lambda: open_files() == [])


@pytest.mark.parametrize("with_openat2", [True, False])
def test_nothing_outside_is_opened(tree: Path, with_openat2: bool) -> None:
    files = DirectoryTree(str(tree))
    if not with_openat2:
        files._syscall = None
    os.close(files.open(b"docs/index.html"))
    for name in (
        b"../secret",
        b"outside",
        b"up/secret",
        b"docs/../../secret",
        str(tree / "a.txt").encode(),
        b"absolute",
    ):
        with pytest.raises(OSError, match=r"\[Errno") as raised:
            files.open(name)
        assert raised.value.errno in (errno.EXDEV, errno.ELOOP, errno.ENOTDIR, errno.ENOENT)
    files.close()


def test_kinds_of_content() -> None:
    assert [content_type(name) for name in ("a.js", "a.tar.gz", "a.woff2", "unknown", "", "d/")] == [
        *("text/javascript; charset=utf-8", "application/gzip", "font/woff2", "application/octet-stream"),
        *("text/html; charset=utf-8", "text/html; charset=utf-8"),
    ]
    assert [is_compressible(content_type(name)) for name in ("a.svg", "a.json", "a.png", "a.gz")] == [
        *(True, True, False, False)
    ]


@pytest.mark.parametrize("text", ["", "static", "/a", "/a=", "a=b", "//=a", "/a//b=c", "/a?=b"])
def test_what_is_no_rule(text: str) -> None:
    with pytest.raises(ValueError, match="is not PREFIX=DIR: write a path and a directory"):
        read_static(text)
    if text:
        with pytest.raises(UsageError, match=r"^--static: .* is not PREFIX=DIR"):
            sources.read("a:a", {"static": (text,)}, {})


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--static: the directory .*none .* cannot be opened: No such file"):
        StaticFiles(application, (f"/={tmp_path / 'none'}",), "")
