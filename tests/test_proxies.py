"""Behind real proxies: what applications see through HAProxy and nginx, and reloads amid a balancer's header."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.running import PATIENCE, ROOT, RunningServer, connect, request, running, until

TELL = """
import json


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close"})
        return
    told = {name: scope[name] for name in ("client", "server", "scheme", "path", "root_path")}
    told["generation"] = scope["extensions"]["serve"]["generation"]
    told["host"] = dict(scope["headers"]).get(b"host", b"").decode()
    data = json.dumps(told).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(data))]})
    await send({"type": "http.response.body", "body": data})
"""
HERE = "127.0.0.3"
"""Where the clients of these tests come from: not from where the proxies do, which are trusted."""
SPOOFED = {
    "X_Forwarded_For": "6.6.6.6",
    "X_Forwarded_Proto": "https",
    "X_Forwarded_Host": "evil.example",
    "X_Forwarded_Prefix": "/evil",
    "Forwarded": "for=6.6.6.6;proto=https;host=evil.example",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "tell.py").write_text(TELL)
    return tmp_path


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def client_of(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE, source_address=(HERE, 0))


def told(connection: socket.socket, path: str = "/", **headers: str) -> dict[str, Any]:
    status, body = request(connection, path, None, **headers)
    assert status == 200, (status, body)
    found: dict[str, Any] = json.loads(body)
    return found


@contextlib.contextmanager
def program(port: int, *command: str) -> Iterator[None]:
    """Run a program until the block ends; it listens on `port` when the block begins."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            assert process.poll() is None, f"{command[0]} ended"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=PATIENCE):
                break
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# ---- the PROXY protocol and reloads


def line(address: str, port: int) -> bytes:
    return f"PROXY TCP4 {address} 198.51.100.1 {port} 443\r\n".encode()


def block(address: str, port: int) -> bytes:
    signature = b"\r\n\r\n\0\r\nQUIT\n"
    ends = socket.inet_aton(address) + socket.inet_aton("198.51.100.1") + struct.pack("!HH", port, 443)
    return signature + struct.pack("!BBH", 0x21, 0x11, len(ends)) + ends


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_reload_amid_headers_loses_none_and_keeps_addresses(project: Path, loop: str) -> None:
    arguments = ("--proxy-protocol", "--proxy-protocol-timeout", "60", "--workers", "2", "--loop", loop)
    with running("tell:app", *arguments, directory=project) as server:
        headers = [make("192.0.2.1", 1000 + index) for index in range(10) for make in (line, block)]
        connections = [connect(server) for _ in headers]
        cuts = [index * len(header) // len(headers) for index, header in enumerate(headers)]
        for connection, header, cut in zip(connections, headers, cuts, strict=True):
            connection.sendall(header[:cut])
        idle = [connect(server) for _ in range(6)]
        for index, connection in enumerate(idle):
            connection.sendall(block("203.0.113.5", 2000 + index))
            told(connection)
        server.signal(signal.SIGHUP)
        wanted = [(2, "serving")] * 2
        server.wait_until(lambda status: [(w["generation"], w["state"]) for w in status["workers"]] == wanted)
        for index, connection in enumerate(idle):
            found = told(connection)
            assert found["client"] == ["203.0.113.5", 2000 + index]
            assert found["server"] == ["198.51.100.1", 443]
            assert found["generation"] == 2
        for index, (connection, header, cut) in enumerate(zip(connections, headers, cuts, strict=True)):
            connection.sendall(header[cut:])
            found = told(connection)
            assert found["client"] == ["192.0.2.1", 1000 + index // 2]
            assert found["generation"] == 2
        for connection in (*connections, *idle):
            connection.close()


def test_a_stop_still_serves_a_connection_whose_header_is_on_its_way(project: Path) -> None:
    with running("tell:app", "--proxy-protocol", "--proxy-protocol-timeout", "60", directory=project) as server:
        with connect(server) as connection:
            connection.sendall(line("192.0.2.1", 7)[:20])
            server.wait_until(lambda status: sum(worker["connections"] for worker in status["workers"]) == 1)
            server.signal(signal.SIGTERM)
            server.notices.wait("STOPPING=1")
            connection.sendall(line("192.0.2.1", 7)[20:])
            assert told(connection)["client"] == ["192.0.2.1", 7]
        assert server.wait() == 0


def test_who_is_closed_is_in_the_log_and_the_rest_are_served(project: Path) -> None:
    arguments = ("--proxy-protocol", "--proxy-protocol-allow-ips", "127.0.0.1")
    with running("tell:app", *arguments, directory=project) as server:
        host, port = server.address()
        with socket.create_connection((host, port), timeout=PATIENCE, source_address=(HERE, 0)) as stranger:
            assert ended(stranger)
        with connect(server) as connection:
            connection.sendall(line("192.0.2.1", 7))
            assert told(connection)["client"] == ["192.0.2.1", 7]
        assert f"closed a connection from {HERE}: its address is not in --proxy-protocol-allow-ips" in server.log()
        assert '192.0.2.1 - - ["' not in server.log()


def ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


# ---- HAProxy


def haproxy(project: Path, name: str, body: str, port: int) -> contextlib.AbstractContextManager[None]:
    config = project / f"{name}.cfg"
    config.write_text(
        "global\n  stats socket " + str(project / "stats") + " mode 600 level admin\n"
        "defaults\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n" + body
    )
    return program(port, "haproxy", "-db", "-q", "-f", str(config))


def checked(project: Path) -> str:
    """Wait for the first result of HAProxy's health check, and return it (L7OK is good)."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        text = b""
        with contextlib.suppress(FileNotFoundError), socket.socket(socket.AF_UNIX) as stats:
            stats.connect(str(project / "stats"))  # which it makes about when it listens
            stats.sendall(b"show stat\n")
            while data := stats.recv(65536):
                text += data
        rows = [row.split(",") for row in text.decode().lstrip("# ").splitlines() if row]
        column = rows[0].index("check_status") if rows else 0
        found = [row[column] for row in rows[1:] if row[1] == "app"]
        if found and found[0] and not found[0].startswith(("*", "INI")):
            return found[0]
        time.sleep(0.05)
    raise AssertionError("HAProxy has not checked the server")


@pytest.mark.needs("haproxy")
@pytest.mark.parametrize("how", ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c"])
def test_haproxy_tells_the_client_by_the_proxy_protocol(project: Path, how: str) -> None:
    with running("tell:app", "--proxy-protocol", directory=project) as server:
        port = free_port()
        check = "check check-send-proxy inter 100ms"
        body = (
            f"listen l\n  mode tcp\n  bind 127.0.0.1:{port}\n  option httpchk GET /ping\n"
            f"  server app 127.0.0.1:{server.address()[1]} {how} {check}\n"
        )
        with haproxy(project, "tcp", body, port):
            assert checked(project) == "L7OK"
            with client_of(port) as connection:
                for _ in range(3):
                    found = told(connection, **SPOOFED)
                    assert found["client"] == list(connection.getsockname())
                    assert found["server"] == ["127.0.0.1", port]
                    assert (found["scheme"], found["host"], found["path"]) == ("http", "test", "/")
            server.signal(signal.SIGHUP)
            server.notices.wait("RELOADING=1")
            server.notices.wait("READY=1")
            assert checked(project) == "L7OK"


@pytest.mark.needs("haproxy")
@pytest.mark.needs("openssl")
def test_haproxy_tells_of_tls(project: Path) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run(
        [*command, "-days", "2", "-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "certificate.pem"],
        cwd=project,
        check=True,
        capture_output=True,
    )
    together = project / "both.pem"
    together.write_bytes((project / "certificate.pem").read_bytes() + (project / "key.pem").read_bytes())
    with running("tell:app", "--proxy-protocol", directory=project) as server:
        port = free_port()
        body = (
            f"listen l\n  mode tcp\n  bind 127.0.0.1:{port} ssl crt {together}\n"
            f"  server app 127.0.0.1:{server.address()[1]} send-proxy-v2-ssl\n"
        )
        context = ssl.create_default_context(cafile=str(project / "certificate.pem"))
        context.check_hostname = False
        with haproxy(project, "tls", body, port), client_of(port) as plain, context.wrap_socket(plain) as connection:
            found = told(connection)
            assert (found["scheme"], found["client"]) == ("https", list(connection.getsockname()))


@pytest.mark.needs("haproxy")
def test_haproxy_tells_the_client_by_its_fields(project: Path) -> None:
    with running("tell:app", directory=project) as server:
        port = free_port()
        body = (
            f"listen l\n  mode http\n  bind 127.0.0.1:{port}\n  option forwardfor\n"
            "  http-request set-header X-Forwarded-Proto http\n"
            f"  server app 127.0.0.1:{server.address()[1]}\n"
        )
        with haproxy(project, "http", body, port), client_of(port) as connection:
            found = told(connection, **SPOOFED)
            assert (found["client"], found["scheme"], found["host"]) == ([HERE, 0], "http", "test")
            assert (found["path"], found["root_path"]) == ("/", "")


# ---- nginx


def nginx(project: Path, location: str, port: int) -> contextlib.AbstractContextManager[None]:
    return nginx_with(project, f"server {{\n  listen 127.0.0.1:{port};\n  {location}\n}}\n", port)


def nginx_with(project: Path, http: str, port: int) -> contextlib.AbstractContextManager[None]:
    config = project / "nginx.conf"
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"{kind}_temp_path {project}/{kind};\n" for kind in kinds)
    config.write_text(
        f"daemon off;\nmaster_process off;\npid {project}/nginx.pid;\nerror_log {project}/nginx.log;\nevents {{}}\n"
        f"http {{\n{paths}access_log off;\n{http}}}\n"
    )
    return program(port, "nginx", "-p", str(project), "-c", str(config), "-e", str(project / "nginx.log"))


FIELDS = """
      proxy_http_version 1.1;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto $scheme;
"""
HOST = "      proxy_set_header Host $host;\n"


@pytest.mark.needs("nginx")
@pytest.mark.parametrize("bind", ["127.0.0.1:0", "unix"])
def test_nginx_tells_the_client_and_the_scheme(project: Path, bind: str) -> None:
    path = project / "app.sock"
    with running("tell:app", directory=project, bind=f"unix:{path}" if bind == "unix" else bind) as server:
        port = free_port()
        to = f"http://unix:{path}" if bind == "unix" else f"http://127.0.0.1:{server.address()[1]}"
        location = "location / {" + FIELDS + HOST + f"      proxy_pass {to};\n    }}"
        with nginx(project, location, port):
            with client_of(port) as connection:
                for spoofed in (SPOOFED, {}):
                    found = told(connection, "/a%20b", **spoofed)
                    assert (found["client"], found["scheme"], found["host"]) == ([HERE, 0], "http", "test")
                    assert (found["path"], found["root_path"]) == ("/a b", "")
            assert f"{HERE} - - [" in wait_for_log(server, HERE)


@pytest.mark.needs("nginx")
def test_nginx_tells_host_and_prefix_where_they_are_believed(project: Path) -> None:
    believed = "x-forwarded-for,x-forwarded-proto,x-forwarded-host,x-forwarded-prefix"
    with running("tell:app", "--forwarded-headers", believed, directory=project) as server:
        port = free_port()
        location = (
            "location /api/ {" + FIELDS + "      proxy_set_header Host inner;\n"
            "      proxy_set_header X-Forwarded-Host $http_host;\n      proxy_set_header X-Forwarded-Prefix /api;\n"
            f"      proxy_pass http://127.0.0.1:{server.address()[1]}/;\n    }}"
        )
        with nginx(project, location, port), client_of(port) as connection:
            found = told(connection, "/api/x", **SPOOFED)
            assert (found["host"], found["path"], found["root_path"]) == ("test", "/api/x", "/api")


@pytest.mark.needs("nginx")
def test_two_proxies_are_seen_through(project: Path) -> None:
    """nginx before HAProxy's place: a second nginx whose address is trusted too."""
    with running("tell:app", "--forwarded-allow-ips", "127.0.0.1", directory=project) as server:
        inner, outer = free_port(), free_port()
        (project / "inner").mkdir()
        (project / "outer").mkdir()
        first = "location / {" + FIELDS + HOST + f"      proxy_pass http://127.0.0.1:{server.address()[1]};\n    }}"
        second = "location / {" + FIELDS + HOST + f"      proxy_pass http://127.0.0.1:{inner};\n    }}"
        with (
            nginx(project / "inner", first, inner),
            nginx(project / "outer", second, outer),
            client_of(outer) as connection,
        ):
            assert told(connection, **SPOOFED)["client"] == [HERE, 0]


def wait_for_log(server: RunningServer, text: str) -> str:
    """The log, once it has the text: the access log is written once per second."""
    until(lambda: text in server.log(), lambda: f"{text!r} in the log:\n{server.log()}")
    return server.log()


# ---- the documentation


def documented(language: str) -> str:
    text = (ROOT / "docs" / "guides" / "proxies.md").read_text()
    return text.partition(f"```{language}\n")[2].partition("```")[0]


@pytest.mark.needs("nginx")
def test_the_documented_nginx_serves(project: Path) -> None:
    path, port = project / "app.sock", free_port()
    with running("tell:app", directory=project, bind=f"unix:{path}") as server:
        block = documented("nginx").replace("/run/app.sock", str(path)).replace("server {", f"server {{ listen {port};")
        with nginx_with(project, block, port), client_of(port) as connection:
            found = told(connection, **SPOOFED)
            assert (found["client"], found["scheme"], found["host"]) == ([HERE, 0], "http", "test")
            upgrade = {"Upgrade": "websocket", "Connection": "upgrade", "Sec_WebSocket_Version": "13"}
            key = "dGhlIHNhbXBsZSBub25jZQ=="
            assert request(connection, "/", None, **upgrade, Sec_WebSocket_Key=key, **SPOOFED)[0] == 403
        assert len(re.findall(f"^{HERE} - - ", wait_for_log(server, " 403 "), re.MULTILINE)) == 2


@pytest.mark.needs("haproxy")
def test_the_documented_haproxy_is_valid(project: Path) -> None:
    config = project / "haproxy.cfg"
    before = "defaults\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n"
    before += f"frontend f\n  mode http\n  bind 127.0.0.1:{free_port()}\n  default_backend app\n"
    config.write_text(before + documented("haproxy"))
    subprocess.run(["haproxy", "-c", "-q", "-f", str(config)], check=True)


# ---- the command line


def test_the_variable_of_others_is_read(project: Path) -> None:
    with running("tell:app", directory=project, environment={"FORWARDED_ALLOW_IPS": f"{HERE}/32"}) as server:
        with connect(server) as connection:
            assert told(connection, **SPOOFED)["client"] == list(connection.getsockname())
        with client_of(server.address()[1]) as connection:
            assert told(connection, **SPOOFED)["client"] == ["6.6.6.6", 0]


def test_a_wrong_network_is_refused_at_the_start(project: Path) -> None:
    server = RunningServer("tell:app", "--forwarded-allow-ips", "10.0.0.1/8", directory=project)
    try:
        assert server.wait() != 0
        assert "--forwarded-allow-ips: '10.0.0.1/8' is an address within a network: write 10.0.0.0/8" in server.log()
    finally:
        server.close()
