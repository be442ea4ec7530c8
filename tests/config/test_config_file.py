"""The configuration file: where it is found, how its values count beside the others, and what each mistake is told."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from serve_asgi.config.options import Config
from serve_asgi.config.release import resolve
from serve_asgi.config.sources import Settings, read
from serve_asgi.config.values import Given
from serve_asgi.errors import UsageError


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own, entered by its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PWD", str(tmp_path))
    return tmp_path


def settings(given: dict[str, Given] | None = None, app: str = "app:asgi", **environ: str) -> Settings:
    return read(app, given or {}, environ)


def refused(given: dict[str, Given] | None = None, app: str = "app:asgi", **environ: str) -> str:
    with pytest.raises(UsageError) as caught:
        settings(given, app, **environ)
    return str(caught.value)


def own(text: str, name: str = "serve.toml") -> Path:
    Path(name).write_text(text)
    return Path(name)


# Where it is


def test_no_file_is_no_mistake(directory: Path) -> None:
    assert settings().config == Config(app="app:asgi")
    assert settings().file == ""


def test_serve_toml_comes_before_pyproject_toml(directory: Path) -> None:
    own("[project]\nname = 'x'\n[tool.serve]\nworkers = 3\n", "pyproject.toml")
    assert settings().config.workers == 3
    own("workers = 4\n")
    assert settings().config.workers == 4
    assert settings().file == str(directory / "serve.toml")
    assert settings(SERVE_CONFIG="pyproject.toml").config.workers == 3
    assert settings({"config": "/dev/null"}).config.workers == 1


def test_a_pyproject_without_the_table_is_passed_over(directory: Path) -> None:
    own("[tool.ruff]\nline-length = 100\n", "pyproject.toml")
    assert settings().file == ""
    assert refused({"config": "pyproject.toml"}) == (
        f"the file {directory}/pyproject.toml has no table [tool.serve]: add it, or give --config another file"
    )


def test_a_link_is_followed_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "serve.toml").write_text(f"workers = {number}\n")
    current = tmp_path / "current"
    current.symlink_to("1")
    monkeypatch.chdir(current)
    monkeypatch.setenv("PWD", str(current))
    first = settings()
    assert (first.config.workers, first.file) == (1, str(current / "serve.toml"))
    (tmp_path / "next").symlink_to("2")
    os.replace(tmp_path / "next", current)
    assert first.again().config.workers == 2


# What counts


def test_the_file_comes_before_the_default_and_after_all_else() -> None:
    own("workers = 5\n")
    assert settings().config.workers == 5
    assert settings(WEB_CONCURRENCY="4").config.workers == 4
    assert settings(SERVE_WORKERS="3", WEB_CONCURRENCY="4").config.workers == 3
    assert settings({"workers": "2"}, SERVE_WORKERS="3").config.workers == 2


def test_values_of_all_types() -> None:
    own("""
        bind = [":1", "unix:/a"]
        fd = 3
        workers = 2
        graceful-timeout = 5        # a whole number is a number
        drain_delay = 1.5           # both spellings
        access-log = false
        unix-mode = "0600"
        forwarded-allow-ips = ["10.0.0.0/8", "unix"]
        log-level = "debug"
    """)
    assert settings().config == Config(
        app="app:asgi",
        bind=(":1", "unix:/a"),
        fd=(3,),
        workers=2,
        graceful_timeout=5.0,
        drain_delay=1.5,
        access_log=False,
        unix_mode="0600",
        forwarded_allow_ips="10.0.0.0/8,unix",
        log_level="debug",
    )
    assert isinstance(settings().config.graceful_timeout, float)


def test_the_application_may_stand_in_the_file() -> None:
    own("app = 'from_file:asgi'\n")
    assert settings(app="").config.app == "from_file:asgi"
    assert settings(app="", SERVE_APP="variable:asgi").config.app == "variable:asgi"
    assert settings(app="typed:asgi").config.app == "typed:asgi"


@pytest.mark.parametrize(
    ("file", "given", "environ", "expected"),
    [
        ("bind = ':1'", {}, {"PORT": "9"}, {"port": 9}),
        ("bind = ':1'", {"port": "9"}, {}, {"port": 9}),
        ("port = 1", {}, {"SERVE_BIND": ":9"}, {"bind": (":9",)}),
        ("host = 'h'", {}, {"PORT": "9"}, {"host": "h", "port": 9}),
        ("host = 'h'\nport = 1", {"bind": (":9",)}, {}, {"bind": (":9",)}),
        ("fd = 3", {}, {"PORT": "9"}, {"fd": (3,)}),
    ],
)
def test_the_nearer_address_wins(
    file: str, given: dict[str, Given], environ: dict[str, str], expected: dict[str, Any]
) -> None:
    own(file)
    assert settings(given, **environ).config == Config(app="app:asgi", **expected)


# What is told


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("workers = 0", ":1: workers: 0 is too small; the least is 1"),
        ("\n# two\nworkers = '2'", ':3: workers: "2" is text and not a whole number; write it without quotes'),
        ("workers = 2.0", ":1: workers: 2.0 is not a whole number"),
        ("workers = true", ":1: workers: true is not a whole number"),
        ("workers = [2]", ":1: workers takes one value, not an array"),
        ("keep-alive = '1m'", ':1: keep-alive: "1m" is text and not a number of seconds; write it without quotes'),
        ("keep-alive = nan", ":1: keep-alive: nan is not a number of seconds"),
        ("max-rss = 1" + "0" * 400, ":1: max-rss: 1"),
        ("keep-alive = 1" + "0" * 400, ":1: keep-alive: 1"),
        ("access-log = 'no'", ':1: access-log: "no" is neither true nor false; write true or false, without quotes'),
        ("user = 1000", ':1: user: 1000 is not text; put it in quotes: "1000"'),
        ("unix-mode = 0o660", ':1: unix-mode: 432 is not text; put it in quotes: "0660"'),
        ("umask = 'rw'", ":1: umask: 'rw' is not an octal mode; write one such as 0660"),
        ("log-level = 'loud'", ":1: log-level: 'loud' is not one of debug, info, warning, error"),
        ("bind = [':1', 'here']", ":1: bind: the address 'here' has no port: write HOST:PORT, for example here:8000"),
        ("bind = [1]", ':1: bind: 1 is not text; put it in quotes: "1"'),
        ("worker = 2", ":1: there is no option 'worker': did you mean 'workers'?"),
        ("ap = 'a:b'", ":1: there is no option 'ap': did you mean 'app'?"),
        ("colour = 'red'", ":1: there is no option 'colour': `serve --help` lists all of them"),
        ("no-access-log = true", ":1: no-access-log is written access-log = false here"),
        ("no-control-socket = true", ":1: no-control-socket is written control-socket = false here"),
        ("no-control = true", ":1: no-control is written control-socket = false here"),
        ("config = 'x'", ":1: a file cannot name the file to read; use --config or SERVE_CONFIG"),
        ("keep_alive = 1\nkeep-alive = 1", ":2: keep-alive and keep_alive are the same; leave one out"),
        ("[listening]\nport = 1", ":1: there is no table 'listening': all options stand in one table"),
        (
            "[tool.serve]\nport = 1",
            ": options stand at the top here, without [tool.serve], which is for pyproject.toml",
        ),
        ("app = 'app'", ":1: app: 'app' is not an application: write module:attribute, for example app:app"),
        ("app = 3", ":1: app: 3 is not an application: write module:attribute, for example app:app"),
        ("chdir = 'nowhere'", ":1: chdir: there is no directory nowhere"),
        ("env-file = 'nowhere'", ":1: env-file: the file nowhere cannot be read"),
        ("port = 1\nhost = 'h'\nbind = ':1'", ":3: bind and "),
        ("workers = 30000000", ":1: workers: 30000000 is too large; the most is 500"),
        ("backlog = 1" + "0" * 30, ":1: backlog: 1"),
        ("unix-mode = 'o7'", ":1: unix-mode: 'o7' is not an octal mode"),
        ("user = '\u00b2'", ":1: user: this machine knows no user"),
        ("user = '4294967295'", ":1: user: this machine knows no user"),
        ("group = '4294967295'", ":1: group: this machine knows no group"),
        ("keep-alive = '''a\nb" + "c" * 5000 + "'''", f':1: keep-alive: "a b{"c" * 96}… is text and not a number'),
        ("# \u2028\nworkers = 0", ":2: workers: "),
    ],
)
def test_mistakes_name_file_line_and_key(directory: Path, text: str, sentence: str) -> None:
    own(text)
    assert refused(app="").startswith(f"{directory}/serve.toml{sentence}")


def test_a_mistake_is_told_where_another_value_would_win(directory: Path) -> None:
    own("workers = 'many'")
    assert "serve.toml:1: workers" in refused({"workers": "2"})


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[project]\nport = 1\n[tool.serve]\nport = 'x'\n[tool.other]\nport = 2\n", ":4"),
        ("[tool.serve]  # ours\n\n  'port' = 'x'\n", ":3"),
        ("tool.serve.port = 'x'\n", ""),
        ("[tool]\nserve = { port = 'x' }\n", ""),
    ],
)
def test_the_line_is_told_where_it_is_cheap(directory: Path, text: str, line: str) -> None:
    own(text, "pyproject.toml")
    assert refused().startswith(f"{directory}/pyproject.toml{line}: port: ")


def test_a_time_for_all_paths_is_a_number_and_one_for_a_path_is_text() -> None:
    own('request-timeout = [30, "/reports=300"]\nstatic-max-age = 60\n')
    config = settings().config
    assert (config.request_timeout, config.static_max_age) == (("30", "/reports=300"), ("60",))
    own("static-max-age = true\n")
    assert "static-max-age: true is not text; put it in quotes" in refused()


def test_what_is_no_toml(directory: Path) -> None:
    own("workers 3\n")
    start = f"the configuration file {directory}/serve.toml is not valid TOML: expected '=' after a key"
    assert refused().startswith(start)
    assert refused().endswith("(at line 1, column 9); correct it")
    Path("serve.toml").write_bytes(b"# \xff\n")
    assert refused().endswith("serve.toml cannot be read: it is not UTF-8")
    own("tool.serve = 3", "pyproject.toml")
    Path("serve.toml").unlink()
    assert refused().endswith("pyproject.toml: tool.serve is not a table: write [tool.serve] and the options below it")


def test_what_cannot_be_read(directory: Path) -> None:
    sentence = f"the configuration file {directory}/nowhere cannot be read: No such file or directory"
    assert refused({"config": "nowhere"}) == sentence
    Path("serve.toml").symlink_to("nowhere")
    assert "serve.toml cannot be read" in refused()


def test_what_would_be_waited_for_or_never_ends_is_not_read(directory: Path) -> None:
    os.mkfifo("pipe")
    assert refused({"config": "pipe"}).endswith("pipe cannot be read: it is not a regular file")
    assert refused({"config": "/dev/zero"}).endswith("/dev/zero cannot be read: it is larger than 1 MiB")
    assert refused({"config": "."}).endswith("cannot be read: it is not a regular file")
    for name in ("pipe", "/dev/zero"):
        with pytest.raises(UsageError, match=r"environment file .* cannot be read: it is "):
            resolve(Config(env_file=name), str(directory))


def test_a_byte_order_mark_and_the_line_ends_of_windows_are_no_mistake() -> None:
    Path("serve.toml").write_bytes(b"\xef\xbb\xbfworkers = 2\r\nport = 1\r\n")
    assert (settings().config.workers, settings().config.port) == (2, 1)


# Reading again


def test_the_same_words_are_read_again() -> None:
    own("workers = 2\nkeep-alive = 9\n")
    first = settings({"keep_alive": "7"}, SERVE_LOG_LEVEL="debug")
    own("workers = 3\nkeep-alive = 8\nmax-requests = 5\n")
    second = first.again()
    assert (second.config.workers, second.config.keep_alive, second.config.max_requests) == (3, 7, 5)
    assert second.config.log_level == "debug"
    assert first.changed(second) == ["workers", "max_requests"]
    assert first.not_live(second) == ""
    assert second.again().changed(second) == []


def test_settings_survive_the_replacement_of_the_listeners_program(directory: Path) -> None:
    own("workers = 2\n")
    first = settings({"bind": (":1", ":2"), "access_log": False}, SERVE_LOG_LEVEL="debug")
    state = json.loads(json.dumps(first.to_state()))
    state["sources"]["of_a_later_version"] = [0, "--later", "", 0]
    second = Settings.from_state(state)
    assert second == first
    own("workers = 3\n")
    assert second.again().changed(first) == ["workers"]


def test_hooks_may_have_a_table_of_their_own(directory: Path) -> None:
    own("[hooks]\npost_reload = 'notify'\nworker_died = ['page', 'app.hooks:died']\n")
    assert settings().config.hook == ("post_reload=notify", "worker_died=page", "worker_died=app.hooks:died")
    own("[hooks]\npost_reload = ['notify', 3]\n")
    assert refused().endswith('the hook post_reload is not text; write post_reload = "command"')
    own("hook = ['']\n")
    assert refused().endswith("hook holds an empty value: take it out, or write what was meant")


def test_a_table_with_another_name_is_told(directory: Path) -> None:
    own("[tool.serve-asgi]\nworkers = 2\n", "pyproject.toml")
    assert refused().endswith("pyproject.toml: the table is called [tool.serve], not [tool.serve-asgi]")


def test_a_broken_or_lost_file_is_told(directory: Path) -> None:
    own("workers = 2\n")
    first = settings()
    own("workers = 'two'\n")
    with pytest.raises(UsageError, match="without quotes"):
        first.again()
    Path("serve.toml").unlink()
    with pytest.raises(UsageError, match=r"serve\.toml is gone: put it back, or restart the server without"):
        first.again()
    own("[tool.serve]\nworkers = 2\n", "pyproject.toml")
    assert first.again().config == first.config


def test_a_file_that_appears_is_read() -> None:
    first = settings()
    own("workers = 2\n")
    assert first.again().config.workers == 2


def test_what_cannot_change_is_told_with_both_values(directory: Path) -> None:
    own("bind = ':1'\nport = 3\n".splitlines()[0])
    first = settings()
    own("\nbind = [':1', ':2']\n")
    assert first.not_live(first.again()) == (
        f'{directory}/serve.toml:2: bind would change from [":1"] to [":1", ":2"], which a reload cannot do: put it '
        "back, or restart the server"
    )
    own("bind = ':1'\ncontrol-socket = false\n")
    assert "control-socket would change from true to false" in first.not_live(first.again())
    own("backlog = 5\npid-file = 'p'\n")
    assert first.not_live(first.again()) == (
        f'{directory}/serve.toml: bind would change from [":1"] to [] and {directory}/serve.toml:1: backlog would '
        f'change from 2048 to 5 and {directory}/serve.toml:2: pid-file would change from nothing to "p", which a '
        "reload cannot do: put them back, or restart the server"
    )


def test_where_each_value_came_from(directory: Path) -> None:
    own("app = 'a:b'\nworkers = 2\nkeep-alive = 9\n")
    told = settings({"access_log": False}, app="", PORT="9", SERVE_KEEP_ALIVE="8").told({"python": "/usr/bin/python3"})
    rows = {row["name"]: row for row in told["options"]}
    assert (told["file"], told["directory"]) == (str(directory / "serve.toml"), str(directory))
    assert rows["workers"] == {
        "name": "workers",
        "value": 2,
        "default": 1,
        "source": "file",
        "place": f"{directory}/serve.toml:2",
        "live": True,
    }
    picked = {name: (rows[name]["value"], rows[name]["source"], rows[name]["place"]) for name in rows}
    assert picked["app"] == ("a:b", "file", f"{directory}/serve.toml:1")
    assert picked["access-log"] == (False, "command line", "--no-access-log")
    assert picked["keep-alive"] == (8.0, "environment", "SERVE_KEEP_ALIVE")
    assert picked["port"] == (9, "environment", "PORT")
    assert picked["backlog"] == (2048, "default", "")
    assert rows["python"]["resolved"] == "/usr/bin/python3"
    assert rows["port"]["live"] is False
    assert rows["bind"]["value"] == []


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('ssl-keyfile = "k"', 'ssl-keyfile is tls-key = "k" here'),
        ('ssl_certfile = "k"', 'ssl_certfile is tls-cert = "k" here'),
        ("ssl-cert-reqs = 2", 'ssl-cert-reqs is tls-client-auth = "required" here'),
        ("http2-max-concurrent-streams = 9", "http2-max-concurrent-streams is h2-max-streams = 9 here"),
        ('uds = "/a"', 'uds is bind = "unix:/a" here'),
        ("timeout-keep-alive = 5", "timeout-keep-alive is keep-alive = 5 here"),
    ],
)
def test_options_of_other_servers_are_told_as_on_the_command_line(directory: Path, line: str, sentence: str) -> None:
    own("app = 'a:b'\n" + line + "\n")
    with pytest.raises(UsageError) as caught:
        settings(app="")
    assert str(caught.value).startswith(f"{directory}/serve.toml:2: {sentence}")
    assert "--" not in str(caught.value)
