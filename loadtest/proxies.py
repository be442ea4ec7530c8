"""nginx or HAProxy in front of a server under test, with the files of deploy/ and a pool of kept connections to it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from loadtest.servers import PROJECT, free_port

PATIENCE = 20.0
DEPLOY = PROJECT / "deploy"


def nginx(directory: Path, port: int, backend: str, further: Mapping[str, str] = {}) -> list[str]:
    """Its command, once its files are written, with `further` changes of them.

    It never ends a client's connection for having had many requests.
    """
    upstream = directory / "app-upstream.conf"
    nodes = {"10.0.0.11:8000": backend, "    server 10.0.0.12:8000;\n": ""}
    upstream.write_text(_adapted("nginx/app-upstream.conf", nodes))
    here = {
        "listen 80;": f"listen 127.0.0.1:{port};\n    keepalive_requests 1000000;\n    access_log off;",
        "/etc/nginx/app-upstream.conf": str(upstream),
        **further,
    }
    temporary = "".join(
        f"    {kind}_temp_path {directory}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;\n" if os.geteuid() == 0 else ""
    configuration = directory / "nginx.conf"
    configuration.write_text(
        f"{user}daemon off;\npid {directory}/nginx.pid;\nworker_processes 2;\nevents {{}}\n"
        f"http {{\n{temporary}{_adapted('nginx/app.conf', here)}}}\n"
    )
    return ["nginx", "-p", str(directory), "-c", str(configuration), "-e", str(directory / "nginx.log")]


def nginx_http2(directory: Path, port: int, backend: str) -> list[str]:
    """The same, but it speaks HTTP/2 to the server, and no WebSocket: nginx from 1.29.4 on."""
    version = "proxy_http_version "
    return nginx(directory, port, backend, {f"{version}1.1;": f"{version}2;"})


def haproxy(directory: Path, port: int, backend: str, further: Mapping[str, str] = {}) -> list[str]:
    """Its command, once its file is written, with `further` changes of it."""
    here = {
        "bind :80": f"bind 127.0.0.1:{port}",
        "10.0.0.11:8000": backend,
        "    server b 10.0.0.12:8000\n": "",
        "/run/haproxy/admin.sock": str(directory / "haproxy.sock"),
        **further,
    }
    configuration = directory / "haproxy.cfg"
    configuration.write_text(_adapted("haproxy/haproxy.cfg", here))
    return ["haproxy", "-db", "-f", str(configuration)]


def haproxy_http2(directory: Path, port: int, backend: str) -> list[str]:
    """The same, but it speaks HTTP/2 to the server; its check has to name a host then."""
    check = "http-check send meth GET uri /ping"
    return haproxy(directory, port, f"{backend} proto h2", {check: f"{check} ver HTTP/2 hdr Host app"})


PROXIES: dict[str, Callable[[Path, int, str], list[str]]] = {
    "nginx": nginx,
    "nginx-http2": nginx_http2,
    "haproxy": haproxy,
    "haproxy-http2": haproxy_http2,
}


@contextlib.contextmanager
def behind(name: str, directory: Path, backend: int) -> Iterator[int]:
    """The port of a proxy before the server at port `backend`; ended when the block ends. Raises RuntimeError."""
    port = free_port()
    command = PROXIES[name](directory, port, f"127.0.0.1:{backend}")
    with (directory / "proxy.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=PATIENCE):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} did not start:\n{(directory / 'proxy.log').read_text()}")
            time.sleep(0.02)
        yield port
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _adapted(name: str, changes: dict[str, str]) -> str:
    """A file of deploy/ with what has to be different here. Raises RuntimeError if that is not in it."""
    text = (DEPLOY / name).read_text()
    for documented, here in changes.items():
        if documented not in text:
            raise RuntimeError(f"deploy/{name} has no {documented!r}")
        text = text.replace(documented, here)
    return text
