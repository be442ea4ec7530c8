"""What a person sees who types a command: help that reads well, and one sentence for each mistake."""

from __future__ import annotations

import fcntl
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import serve_asgi
from serve_asgi import compiled_core
from serve_asgi.cli.main import run_command_line
from serve_asgi.config.options import GROUPS, flag, options

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SERVE_") or name in ("PORT", "WEB_CONCURRENCY")]:
        monkeypatch.delenv(name)


def said(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr; exit status 2 is checked."""
    status = run_command_line(arguments)
    captured = capfd.readouterr()
    assert (status, captured.out) == (2, "")
    assert captured.err.startswith("serve: ")
    assert captured.err.endswith("\n")
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("serve: ").rstrip("\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "which application? Write it as module:attribute, for example: serve app:asgi --workers 4"),
        (["app"], "'app' is not an application: write module:attribute, for example app:app"),
        (["src/app.py"], "'src/app.py' is a path: name the module and what is in it, for example app:app"),
        (
            ["app:asgi", "--worker", "3"],
            "there is no option --worker: did you mean --workers or --worker-timeout or --ws-retire?",
        ),
        (["app:asgi", "--zzz"], "there is no option --zzz: `serve --help` lists all of them"),
        (["app:asgi", "-w", "many"], "--workers: 'many' is not a whole number"),
        (
            ["-w", "2", "app:asgi", "--bind", "here"],
            "the address 'here' has no port: write HOST:PORT, for example here:8000",
        ),
        (["app:asgi", "--bind"], "option '--bind' requires an argument: `serve --help` shows how it is written"),
        (["app:asgi", "b:asgi"], "got unexpected extra argument (b:asgi): `serve --help` shows how it is written"),
        (["reload", "--now"], "there is no option --now: did you mean --no-wait or --for?"),
    ],
)
def test_each_mistake_is_one_sentence(capfd: pytest.CaptureFixture[str], arguments: list[str], sentence: str) -> None:
    assert said(capfd, *arguments) == sentence


def test_a_misspelt_command_is_told_from_an_application(capfd: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'reload'?" in said(capfd, "relaod")


@pytest.mark.parametrize("word", ["main", "example", "plain", "web", "nosuch"])
def test_a_word_that_is_no_command_is_not_taken_for_one(capfd: pytest.CaptureFixture[str], word: str) -> None:
    assert said(capfd, word) == f"{word!r} is not an application: write module:attribute, for example {word}:app"


def test_a_module_of_a_misspelt_commands_name_is_a_module(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "drian.py").write_text("app = Application()")
    monkeypatch.chdir(tmp_path)
    assert said(capfd, "drian").endswith("for example drian:app")


@pytest.mark.parametrize("path", ["main.py:app", "src/main.py", "./main.py:app"])
def test_the_path_of_a_file_is_told_from_a_module(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said(capfd, path) == f"{path!r} is a path: name the module and what is in it, for example main:app"


def test_http3_is_refused_with_a_way_out(capfd: pytest.CaptureFixture[str]) -> None:
    sentence = said(capfd, "app:asgi", "--quic-bind", "localhost:4433")
    assert sentence.startswith("--quic-bind is not offered: there is no HTTP/3")
    assert "a proxy in front" in sentence


@pytest.mark.parametrize(
    ("option", "instead"),
    [
        ("--http2-max-concurrent-streams", "is --h2-max-streams 1 here"),
        ("--http2-max-headers-size", "is --max-head-size 1 here (that is for the whole head"),
        ("--http2-initial-window-size", "is not offered: windows, frames and buffers of HTTP/2 are fixed"),
        ("--http2-cleartext", "is not needed: --http2 on takes prior knowledge in clear text too"),
        ("--no-http1", "is not offered: HTTP/1.1 is always spoken, and --http2 on adds HTTP/2"),
    ],
)
def test_options_of_http2_of_other_servers(capfd: pytest.CaptureFixture[str], option: str, instead: str) -> None:
    assert said(capfd, "app:asgi", option, "1").startswith(f"{option} {instead}")


@pytest.mark.parametrize(
    ("option", "ours"), [("--certfile", "--tls-cert"), ("--keyfile", "--tls-key"), ("--ca-certs", "--tls-client-ca")]
)
def test_the_tls_options_of_others_are_told(capfd: pytest.CaptureFixture[str], option: str, ours: str) -> None:
    assert said(capfd, "app:asgi", option, "x.pem") == f"{option} is {ours} x.pem here"


def test_the_tls_options_of_uvicorn_are_understood(capfd: pytest.CaptureFixture[str]) -> None:
    told = said(
        capfd, "app:asgi", "--ssl-certfile", "missing.pem", "--ssl-keyfile", "k", "--ssl-keyfile-password", "pw"
    )
    assert "missing.pem" in told
    assert "pw" not in told


@pytest.mark.parametrize(
    ("option", "hint"),
    [("--uds", "--bind unix:PATH"), ("-k", "--loop")],
)
def test_options_of_other_servers_are_recognised(capfd: pytest.CaptureFixture[str], option: str, hint: str) -> None:
    assert hint in said(capfd, "app:asgi", option)


def test_a_command_line_of_gunicorn_is_told_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    line = "app:app -w 4 -k uvicorn.workers.UvicornWorker --timeout 120 --access-logfile - --preload"
    assert said(capfd, *line.split()) == (
        "-k is not needed: every worker runs ASGI; the event loop is chosen with --loop; --timeout is --worker-timeout "
        "120 here (how long an event loop may be blocked; how long a request may take is --request-timeout, and how "
        "long a retiring worker has for its requests --graceful-timeout); --access-logfile is --access-log here "
        "(it goes to stdout)"
    )


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--log-level critical", "one of debug, info, warning, error: critical is --log-level error here"),
        ("--http 2", "one of auto, httptools, h11: 2 is --http2 here"),
        ("--interface asginl", ": asginl is --interface asgi --lifespan off here"),
        ("--proxy-protocol v2", "--proxy-protocol v2 is --proxy-protocol here"),
    ],
)
def test_values_of_other_servers_are_told(capfd: pytest.CaptureFixture[str], line: str, sentence: str) -> None:
    assert sentence in said(capfd, "app:app", *line.split())


@pytest.mark.parametrize("columns", [80, 100, 140])
def test_help_is_grouped_and_fits(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert run_command_line(["--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= min(columns, 100)
    places = [text.index(f"\n{group}:\n") for group in GROUPS]
    assert places == sorted(places)
    for name in options():
        assert flag(name) in text or flag(name).replace("--", "--[no-]") in text
    assert "-w, --workers NUMBER" in text
    assert "[default: 1; env: WEB_CONCURRENCY]" in text
    assert "\u00a0" not in text


@pytest.mark.parametrize("command", ["reload", "drain", "status"])
def test_commands_have_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line([command, "-h"]) == 0
    assert f"Usage: serve {command} [OPTIONS]" in capsys.readouterr().out


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "serve_asgi", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_a_former_name_is_understood_and_not_shown(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "serve_asgi"]
    found = subprocess.run(
        [*command, "--block-warn", "x", "app:app"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert found.returncode == 2
    assert "--block-warning" in found.stderr  # the sentence on its value
    shown = subprocess.run([*command, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "--block-warn " not in shown.stdout
    assert "--no-control" not in shown.stdout


def test_version(tmp_path: Path) -> None:
    done = run("--version", cwd=tmp_path)
    python = f"{platform.python_implementation()} {platform.python_version()}"
    core = compiled_core.core(compiled_core.installed_modules())
    assert (done.returncode, done.stdout) == (0, f"serve {serve_asgi.__version__}, {python}, {core} core\n")


def test_a_mistake_of_a_real_process_has_no_traceback(tmp_path: Path) -> None:
    done = run("app:asgi", "--workers", "0", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "serve: --workers: 0 is too small; the least is 1\n"


def test_nobody_reads_the_mistake(tmp_path: Path) -> None:
    """A full pipe behind stderr does not hold the command up."""
    read_end, write_end = os.pipe()
    try:
        os.write(write_end, b"x" * fcntl.fcntl(write_end, fcntl.F_GETPIPE_SZ))
        command = [sys.executable, "-m", "serve_asgi", "app"]
        child = subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=write_end)
        assert child.wait(30) == 2
    finally:
        os.close(read_end)
        os.close(write_end)


def test_signals_are_held_back_before_anything_else_is_loaded(tmp_path: Path) -> None:
    """At the moment when the command line is imported, the mask stands and no event loop has been loaded."""
    code = (
        "import sys, signal\n"
        "from serve_asgi.__main__ import main\n"
        "from serve_asgi.ipc.signals import LISTENER_SIGNALS\n"
        "assert not {'asyncio', 'click', 'typing'} & sys.modules.keys()\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'serve_asgi.cli.main':\n"
        "            assert LISTENER_SIGNALS <= signal.pthread_sigmask(signal.SIG_BLOCK, ())\n"
        "            sys.exit(7)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "main()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, timeout=60, check=False)
    assert done.returncode == 7


def test_what_is_held_back_covers_all_signals_that_mean_something() -> None:
    from serve_asgi.ipc.signals import LISTENER_SIGNALS

    named = ("HUP", "USR1", "USR2", "TERM", "INT", "QUIT", "TTIN", "TTOU", "WINCH", "CHLD")
    assert {signal.Signals[f"SIG{name}"] for name in named} == LISTENER_SIGNALS
