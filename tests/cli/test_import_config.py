"""`serve import-config`: what it prints is a file that this server reads, and says what is left to do."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from serve_asgi.cli.main import run_command_line
from serve_asgi.config.sources import read

GUNICORN = """
import os
print("starting")
bind = ["0.0.0.0:8000", "unix:/run/app.sock", "fd://3"]
workers = len("ab") * 2 + 1
worker_class = "uvicorn.workers.UvicornWorker"
timeout = 120
keepalive = 5
umask = 0o022
accesslog = "-"
loglevel = "WARNING"
preload_app = True
daemon = False
raw_env = ["DATABASE=postgres://secret"]
proc_name = "shop"
wsgi_app = "shop.web:create_app()"
limit_request_line = 0
def on_starting(server): ...
def post_fork(server, worker): ...
def when_ready(server): ...
"""


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[dict[str, Any], str, str]:
    """The values of the file that is printed, its text, and what is on stderr."""
    assert run_command_line(["import-config", *words]) == 0
    captured = capsys.readouterr()
    values = tomllib.loads(captured.out)
    Path("serve.toml").write_text(captured.out)
    if "app" in values and "tls-client-ca" not in values:  # a.pem is no certificate
        read("", {}, {})  # as a start reads it
    return values, captured.out, captured.err


def test_gunicorns_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("gunicorn.conf.py").write_text(GUNICORN)
    values, text, error = printed(capsys, "gunicorn.conf.py")
    assert values == {
        "app": "shop.web:create_app",
        "factory": True,
        "bind": ["0.0.0.0:8000", "unix:/run/app.sock"],
        "fd": [3],
        "workers": 5,
        "worker-timeout": 120,
        "keep-alive": 5,
        "umask": "0022",
        "access-log": True,
        "log-level": "warning",
        "preload": "on",
    }
    assert "workers = 5  # computed: len('ab') * 2 + 1" in text
    assert "secret" not in text
    assert '# env-file = "PATH"  # raw_env; of DATABASE; ' in text
    assert "# max-target-size = 0  # limit_request_line; refused: " in text
    assert "# worker_class is not needed: " in text
    assert "# proc_name is not offered: " in text
    assert "daemon" not in text
    assert '# server_started = "MODULE:CALLABLE"  # when_ready' in text
    assert "# post_fork: its code belongs to @after_fork of serve_asgi" in text
    assert "# on_starting: its code belongs to the service manager" in text
    assert error == "starting\nserve: 5 settings cannot be taken over as written: see the comments\n"


def test_gunicorns_default_worker_is_for_wsgi(capsys: pytest.CaptureFixture[str]) -> None:
    Path("gunicorn.conf.py").write_text("workers = 2\n")
    values, text, _ = printed(capsys, "gunicorn.conf.py")
    assert values == {"workers": 2, "interface": "wsgi", "wsgi-threads": 1}
    assert "leave this line out for ASGI" in text
    assert "# request-timeout = 30  # timeout also ended a request that took longer" in text
    assert "# app = " in text


@pytest.mark.parametrize(
    ("lines", "threads", "ended_after"),
    [
        ('worker_class = "sync"\ntimeout = 90\n', 1, "90"),
        ('worker_class = "sync"\ntimeout = 0\n', 1, None),
        ('worker_class = "gthread"\ntimeout = 90\n', 1, None),
        ("threads = 4\ntimeout = 90\n", 4, None),
        ('worker_class = "gevent"\ntimeout = 90\n', None, None),
        ('worker_class = "uvicorn_worker.UvicornWorker"\ntimeout = 90\n', None, None),
    ],
)
def test_as_many_requests_at_once_as_in_gunicorn(
    capsys: pytest.CaptureFixture[str], lines: str, threads: int | None, ended_after: str | None
) -> None:
    Path("gunicorn.conf.py").write_text(lines)
    values, text, _ = printed(capsys, "gunicorn.conf.py")
    assert values.get("wsgi-threads") == threads
    comment = re.search(r"# request-timeout = (\d+)", text)
    assert (comment[1] if comment else None) == ended_after


@pytest.mark.parametrize(
    ("name", "text", "values"),
    [
        (
            "hypercorn.toml",
            'bind = "0.0.0.0"\nworkers = 2\nkeep_alive_timeout = 9\nuse_reloader = false\nquic_bind = "x:1"\n'
            'application_path = "app"\nverify_mode = "CERT_REQUIRED"\nca_certs = "a.pem"\n'
            "h2_max_concurrent_streams = 9\ninclude_server_header = false\n",
            {
                "app": "app:app",
                "bind": ["0.0.0.0:8000"],
                "workers": 2,
                "keep-alive": 9,
                "tls-client-ca": "a.pem",
                "tls-client-auth": "required",
                "h2-max-streams": 9,
                "server-header": False,
            },
        ),
        (
            "hypercorn.py",
            'bind = ["x:1"]\ninsecure_bind = ["x:2"]\nkeep_alive_timeout = 3.5\nworker_class = "uvloop"\n',
            {"bind": ["x:1", "http://x:2"], "keep-alive": 3.5, "loop": "uvloop"},
        ),
        (
            "h2corn.toml",
            'timeout_handshake = 3\nforwarded_fields = "for,proto"\numask = "022"\nlimit_concurrency = 7\n',
            {
                "tls-handshake-timeout": 3,
                "proxy-protocol-timeout": 3,
                "forwarded-headers": "x-forwarded-for,x-forwarded-proto",
                "umask": "0022",
                "max-concurrency": 7,
            },
        ),
    ],
)
def test_files_of_the_others(capsys: pytest.CaptureFixture[str], name: str, text: str, values: dict[str, Any]) -> None:
    Path(name).write_text(text)
    assert printed(capsys, name)[0] == values


@pytest.mark.parametrize(
    ("line", "values"),
    [
        (
            "uvicorn app:app --host 0.0.0.0 --port=80 --workers 4 --proxy-headers --no-access-log --ws websockets",
            {"app": "app:app", "host": "0.0.0.0", "port": 80, "workers": 4, "access-log": False},
        ),
        (
            "python3.13 -m uvicorn app:app --uds /a --host 0.0.0.0 --ws-per-message-deflate false --header a:b",
            {"app": "app:app", "bind": ["unix:/a"], "ws-deflate": False},
        ),
        (
            "fastapi run shop/main.py --app api --port 80",
            {"app": "shop.main:api", "host": "0.0.0.0", "port": 80},
        ),
        ("fastapi dev -e shop:app", {"app": "shop:app", "reload": True}),
        (
            "/venv/bin/gunicorn shop.wsgi -w4 -b :80 -b [::1]:81 --threads 8 -t 30 -e A=secret",
            {
                "app": "shop.wsgi:application",
                "workers": 4,
                "bind": [":80", "[::1]:81"],
                "wsgi-threads": 8,
                "worker-timeout": 30,
                "interface": "wsgi",
            },
        ),
        (
            "granian --interface asginl app:app --workers-lifetime 1h30m --no-log --backpressure 9 --metrics",
            {
                "app": "app:app",
                "interface": "asgi",
                "lifespan": "off",
                "max-lifetime": 5400,
                "log-level": "error",
                "max-concurrency": 9,
                "admin": "127.0.0.1:9090",
            },
        ),
        (
            "hypercorn wsgi:app:app --insecure-bind localhost:80 --certfile a.pem --keyfile-password secret",
            {"app": "app:app", "interface": "wsgi", "bind": ["http://localhost:80"], "tls-cert": ["a.pem"]},
        ),
    ],
)
def test_command_lines(capsys: pytest.CaptureFixture[str], line: str, values: dict[str, Any]) -> None:
    Path("a.pem").write_text("")
    assert run_command_line(["import-config", "--", *line.split()]) == 0
    text = capsys.readouterr().out
    assert tomllib.loads(text) == values
    assert "secret" not in text


def test_a_command_line_may_be_one_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "uvicorn app:app --workers 3 --header 'a: b'")[0] == {"app": "app:app", "workers": 3}


def test_a_command_line_wins_over_the_file_that_it_names(capsys: pytest.CaptureFixture[str]) -> None:
    Path("gunicorn.conf.py").write_text("workers = 2\nkeepalive = 9\n")
    words = ["gunicorn", "-c", "gunicorn.conf.py", "-k", "uvloop", "-w", "3", "app:app"]
    assert printed(capsys, "--", *words)[0] == {"app": "app:app", "workers": 3, "keep-alive": 9, "loop": "uvloop"}


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        ([], 2, "which file, or which command line? For example: serve import-config gunicorn.conf.py"),
        (["nowhere.py"], 2, "there is no file nowhere.py: name gunicorn.conf.py"),
        (["nowhere.toml"], 2, "the file nowhere.toml cannot be read: No such file or directory; name another one"),
        (["a", "b"], 2, "'a' is no command of uvicorn, gunicorn, granian, hypercorn or h2corn: name one file"),
        (["--from", "granian", "uvicorn", "a:b"], 2, "the command line is that of uvicorn, and --from says granian"),
        (["uvicorn", "a:b", "--zzz"], 2, "uvicorn has no option --zzz that is known here: leave it out"),
        (["uvicorn", "a:b", "--port"], 2, "--port is the last word, and uvicorn's takes a value: add it"),
        (["broken.py"], 1, "broken.py could not be executed: ModuleNotFoundError: No module named 'no_such_module'; "),
        (["leaving.py"], 1, "leaving.py could not be executed: SystemExit: 3; "),
        (["syntax.py"], 1, "syntax.py could not be executed: SyntaxError: "),
        (["other.py"], 2, "other.py sets nothing that gunicorn knows: name its file"),
    ],
)
def test_what_cannot_be_imported(
    capfd: pytest.CaptureFixture[str], words: list[str], status: int, sentence: str
) -> None:
    Path("broken.py").write_text("import no_such_module\n")
    Path("leaving.py").write_text("raise SystemExit(3)\n")
    Path("syntax.py").write_text("workers = = 3\n")
    Path("other.py").write_text("x = 1\n")
    assert run_command_line(["import-config", *words]) == status
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1].startswith(f"serve: {sentence}")
    if status == 1:
        assert captured.err.startswith(("Traceback", "  File", "SystemExit"))


@pytest.mark.parametrize(
    ("line", "values", "comment"),
    [
        ("gunicorn app:app --workers many", {}, 'workers = "many"  # refused: '),
        ("gunicorn app:app -b :8000 -b :8000", {"bind": [":8000"]}, ""),
        ("uvicorn app:app --workers 2 --workers 3", {"workers": 3}, "workers = 2  # a later one counts"),
        ("gunicorn app:app --max-requests 5 --max-requests-jitter x", {"max-requests": 5}, "refused: "),
        ("granian --interface asgi app:app --http 1 --loop uvloop", {"loop": "uvloop"}, ""),
    ],
)
def test_values_that_are_refused_or_given_twice(
    capsys: pytest.CaptureFixture[str], line: str, values: dict[str, Any], comment: str
) -> None:
    assert run_command_line(["import-config", line]) in (0, 1)
    text = capsys.readouterr().out
    found = tomllib.loads(text)
    assert {name: found.get(name) for name in values} == values
    assert comment in text
