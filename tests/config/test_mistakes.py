"""Whatever a person writes wrongly is a sentence that names the place and what would be right; nothing is passed over.

Tables for the sources of options: the command line, variables, files; each mistake as the start has it, those of files
as a reload has them, too. --env-file, hooks and schedules are tested beside what reads them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serve_asgi.cli.control_client import RequestRefused
from serve_asgi.config.sources import Given, read
from serve_asgi.errors import UsageError
from tests.applications import info
from tests.running import ROOT, running

LINES = {
    "x = 1": "there is no option 'x'",
    "worker = 2": "did you mean 'workers'?",
    "WORKERS = 2": "did you mean 'workers'?",
    "a.b = 1": "there is no table 'a'",
    "[workers]\na = 1": "workers takes one value, not a table",
    "[other]\na = 1": "there is no table 'other'",
    "workers = '2'": "is text and not a whole number; write it without quotes",
    "workers = 2.0": "2.0 is not a whole number",
    "workers = true": "true is not a whole number",
    "workers = [1]": "takes one value, not an array",
    "workers = 0": "0 is too small; the least is 1",
    "bind = 8000": 'put it in quotes: "8000"',
    "bind = ['']": "holds an empty value",
    "bind = [':80', 8]": 'put it in quotes: "8"',
    "access-log = 'no'": "write true or false, without quotes",
    "keep-alive = '5'": "is text and not a number of seconds",
    "keep-alive = nan": "nan is not a number of seconds",
    "keep-alive = inf": "inf is not a number of seconds",
    "keep-alive = -1": "-1 is too small; the least is 0",
    "max-rss = '64M'": "is text and not a whole number of MiB",
    "umask = 0o27": "put it in quotes",
    "umask = '9'": "is not an octal mode",
    "keep_alive = 1\nkeep-alive = 2": "are the same; leave one out",
    "config = 'x'": "a file cannot name the file to read",
    "[hooks]\nfoo = 'x'": "hooks know no event 'foo'",
    "[hooks]\npost_reload = 1": "the hook post_reload is not text",
    "hook = ['x']": "is not a hook: write EVENT=COMMAND",
    "hook = ['post_reload=a \"b']": "cannot be read: no closing quotation",
    "forwarded-allow-ips = ['10.0.0.0/33']": "is not an address",
    "forwarded-allow-ips = ['']": "holds an empty value",
    "forwarded-headers = 'x-real-ip'": "is not a header that this server knows",
    "reload-dir = ['']": "holds an empty value",
    "loop = 'uv'": "is not one of auto, uvloop, asyncio",
    "log-level = 'INFO'": "is not one of debug, info, warning, error",
    "log-format = 'xml'": "is not one of auto, text, json",
    "access-log-format = '%(zz)s'": "is not a field of the access log",
    "access-log-format = 'json:a,'": "is not a field of the access log",
    "access-log-format = ''": "is not a format of the access log",
    "request-id-header = 'x y'": "is not the name of a header",
    "health-path = ''": "is empty: write health = false",
    "health-path = 'ping'": "must begin with a slash",
    "health-path = '/a?b'": "cannot be requested by a client",
    "root-path = 'api'": "must begin with a slash",
    "drain-status = 200": "the least is 400",
    "port = 70000": "the most is 65535",
    "host = '127.0.0.1:80'": "is not a host: write a name or an address alone; its port is given by port",
    "agent = 'a b:c'": "is not an agent",
    "user = 'nobody-of-that-name'": "this machine knows no user",
    "state = 'reds://h'": "names no known store",
    "state = 'redis://h:x'": "a host is a name or an address",
    "control = 'unix:/a'": "is not a path",
}
"""What stands in serve.toml by itself, and what is said about it, beginning with file and line."""

TLS: dict[str, Given] = {"tls_cert": ("c",)}
GIVEN: list[tuple[dict[str, Given], str]] = [
    ({"workers": "2x"}, "--workers: '2x' is not a whole number"),
    ({"workers": ""}, "--workers: '' is not a whole number"),
    ({"keep_alive": "10x"}, "--keep-alive: '10x' is not a number of seconds"),
    ({"keep_alive": "nan"}, "--keep-alive: 'nan' is not a number of seconds"),
    ({"keep_alive": "1e400"}, "--keep-alive: '1e400' is not a number of seconds"),
    ({"max_body_size": "64k"}, "--max-body-size: '64k' is not a whole number of bytes"),
    ({"bind": ("",)}, "--bind holds an empty value"),
    ({"bind": ("ftp://a:80",)}, "is not HOST:PORT"),
    ({"bind": ("https://a:80",)}, "it needs --tls-cert and --tls-key to speak TLS; plain is a:80"),
    ({"admin": "https://a:80", **TLS}, "the metrics and their page speak no TLS"),
    ({"tls_key": ("k",)}, "--tls-key does nothing without a certificate: give --tls-cert as well"),
    ({"https_redirect": True}, "--https-redirect does nothing without a certificate"),
    ({"tls_cert": ("a", "b"), "tls_key": ("k",)}, "--tls-key: there are 1 keys and 2 certificates"),
    ({**TLS, "tls_key_password": "x", "tls_key_password_file": "f"}, "were both given: leave one out"),
    ({**TLS, "tls_client_auth": "required"}, "--tls-client-auth needs to know the authorities"),
    ({**TLS, "tls_crl": "c"}, "--tls-crl needs to know the authorities"),
    ({**TLS, "tls_min_version": "1.1"}, "is not one of 1.2, 1.3"),
    ({"bind": ("fd:3",)}, "is a descriptor: write --fd 3"),
    ({"bind": ("fd://3",)}, "is a descriptor: write --fd 3"),
    ({"bind": ("unix:@",)}, "has no name"),
    ({"bind": ("[::1]",)}, "ambiguous"),
    ({"admin": "9180"}, "has no host"),
    ({"host": "a b"}, "--host: 'a b' is not a host"),
    ({"host": "http://x"}, "--host: 'http://x' is not a host"),
    ({"host": "[::1]:80"}, "--host: '[::1]:80' is not a host"),
    ({"reload_include": (" ",)}, "--reload-include holds an empty value"),
    ({"fd": ("x",)}, "--fd: 'x' is not a whole number"),
]

VARIABLES = {
    "SERVE_BIND": (" , ", "SERVE_BIND holds separators and no value"),
    "SERVE_WORKERS": ("2 3", "SERVE_WORKERS: '2 3' is not a whole number"),
    "WEB_CONCURRENCY": ("auto", "WEB_CONCURRENCY: 'auto' is not a whole number"),
    "PORT": ("http", "PORT: 'http' is not a whole number"),
    "SERVE_RELOAD": ("maybe", "SERVE_RELOAD: 'maybe' is neither true nor false"),
    "SERVE_HOOK": ("x", "SERVE_HOOK: 'x' is not a hook"),
    "FORWARDED_ALLOW_IPS": ("x", "FORWARDED_ALLOW_IPS: 'x' is not an address"),
    "SERVE_CONFIG": ("/no/such", "the configuration file /no/such cannot be read"),
    "SERVE_AGENT": ("x", "SERVE_AGENT: 'x' is not an agent"),
}

APPLICATIONS = {
    "app": "write module:attribute, for example app:app",
    "app:": "write module:attribute",
    ":app": "write module:attribute",
    "a b:c": "write module:attribute",
    "app:a b": "write module:attribute",
    "app::x": "write module:attribute",
    "app:x:y": "write module:attribute",
    "app.:x": "write module:attribute",
    ".app:x": "write module:attribute",
    "app:x.": "write module:attribute",
    "1a:x": "write module:attribute",
    "app/x:y": "is a path: name the module and what is in it, for example app.x:y",
    "app:make()": "is a call: write app:make, and --factory",
}


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PWD", raising=False)
    return tmp_path


def refused(app: str = "app:app", given: dict[str, Given] | None = None, **environ: str) -> str:
    with pytest.raises(UsageError) as caught:
        read(app, given or {}, environ)
    return str(caught.value)


@pytest.mark.parametrize("line", LINES)
def test_a_line_of_the_file(directory: Path, line: str) -> None:
    (directory / "serve.toml").write_text("# a comment\n" + line + "\n")
    told = refused()
    assert told.startswith((f"{directory}/serve.toml:2: ", f"{directory}/serve.toml:3: "))
    assert LINES[line] in told


@pytest.mark.parametrize("line", ["worker = 2", "[tool.serve.hooks]\nfoo = 'x'", "[tool.serve.other]\na = 1"])
def test_a_line_of_a_projects_file(directory: Path, line: str) -> None:
    (directory / "pyproject.toml").write_text("[project]\nworker = 1\n[tool.serve]\n" + line + "\n")
    assert refused().startswith(f"{directory}/pyproject.toml:4: ")


@pytest.mark.parametrize("name", ["serve-asgi", "serve_asgi"])
def test_a_table_that_is_called_as_the_distribution(directory: Path, name: str) -> None:
    (directory / "pyproject.toml").write_text(f"[tool.{name}]\nworkers = 2\n")
    assert refused() == f"{directory}/pyproject.toml: the table is called [tool.serve], not [tool.{name}]"


@pytest.mark.parametrize(("given", "sentence"), GIVEN)
def test_the_command_line(directory: Path, given: dict[str, Given], sentence: str) -> None:
    assert sentence in refused(given=given)


@pytest.mark.parametrize("name", VARIABLES)
def test_a_variable(directory: Path, name: str) -> None:
    text, sentence = VARIABLES[name]
    assert sentence in refused("app:app", None, **{name: text})


@pytest.mark.parametrize("app", APPLICATIONS)
def test_an_application(directory: Path, app: str) -> None:
    assert APPLICATIONS[app] in refused(app)
    assert APPLICATIONS[app] in refused("", SERVE_APP=app)
    (directory / "serve.toml").write_text(f"app = '{app}'\n")
    told = refused("")
    assert told.startswith(f"{directory}/serve.toml:1: app: ")
    assert APPLICATIONS[app] in told


@pytest.mark.parametrize(
    "arguments",
    [
        ["app:make()"],
        ["app:app", "--agent", "a b:c"],
        ["app:app", "--keep-alive", "10x"],
        ["app:app", "--bind", "fd://3"],
        ["app:app", "--state", "redis://:hunter2@h:x"],
        ["app:app", "--hook", "x=y"],
        ["app:app", "--workrs", "2"],
        ["app:app", "--env-file", "/"],
        ["app:app", "--python", "/no/such"],
    ],
)
def test_a_start_ends_with_one_line(directory: Path, arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "serve_asgi", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("serve: ")
    assert done.stderr.count("\n") == 1
    assert "hunter2" not in done.stderr


def test_a_reload_is_refused_and_the_old_configuration_stays(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info())
    file = tmp_path / "serve.toml"
    file.write_text("workers = 1\n")
    with running("app:app", directory=tmp_path) as server:
        # Those two are given on the command line, which wins.
        lines = {line: sentence for line, sentence in LINES.items() if not line.startswith(("host", "control"))}
        for number, (line, sentence) in enumerate(lines.items(), start=1):
            file.write_text("# a comment\n" + line + "\n")
            with pytest.raises(RequestRefused) as refused:
                server.reload()
            told = str(refused.value)
            assert f"refused, generation 1 serves on: {file}:" in told
            assert sentence in told
            assert server.status()["failed_reloads"] == number
        file.write_text("workers = 1\n")
        server.reload()
        assert "Traceback" not in server.log()
        assert server.stop() == 0
