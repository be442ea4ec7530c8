"""Every option of the other servers has its counterpart here, or a sentence; and the page that says so is right."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from serve_asgi.config.config_file import HOOKS
from serve_asgi.config.hook_events import read_hook
from serve_asgi.config.options import flag, flag_off, kind, options
from serve_asgi.config.other_servers import value_conversions
from serve_asgi.config.other_servers.counterpart import NOT_NEEDED, NOT_OFFERED, Counterpart, parse
from serve_asgi.config.other_servers.lookup import SERVERS, about_flag, about_value, named, settings
from serve_asgi.config.other_servers.option_table import OPTIONS
from serve_asgi.config.other_servers.setting_table import GUNICORN_HOOKS, SETTINGS
from serve_asgi.config.unknown_options import all_of_other_servers, key_of_another_server, of_another_server, told_of
from tests.config import peer_options

RECORDED = json.loads(Path(__file__).with_name("peer_options.json").read_text())
PAGE = (Path(__file__).parent.parent.parent / "docs/get-started/from-other-servers.md").read_text()
NEWER = {"--websocket-max-message-size"}
"""Of gunicorn 27, which came after the one that was read."""


@pytest.mark.parametrize("server", SERVERS)
def test_every_option_of_the_others_has_a_row_and_every_row_is_one_of_theirs(server: str) -> None:
    recorded = RECORDED[server]["options"]
    spelled = {name for names in recorded.values() for name in names}
    assert spelled - {name for row in OPTIONS if server in row.servers for name in row.names} == set()
    assert {name for row in OPTIONS if server in row.servers for name in row.names} - spelled - NEWER == set()


@pytest.mark.parametrize("server", ["gunicorn", "hypercorn"])
def test_every_setting_of_a_file_has_a_row(server: str) -> None:
    known = {*settings(server), *GUNICORN_HOOKS, "wsgi_app"}
    assert set(RECORDED[server]["options"]) - known == set()


def test_what_was_read_of_them_is_what_they_have() -> None:
    """Of those that are installed here, in the version that was read."""
    for server in SERVERS:
        if importlib.util.find_spec(server) is not None:
            found = peer_options.read(server)
            assert found["version"] != RECORDED[server]["version"] or found == RECORDED[server]


ROWS = [(row, case) for row in (*OPTIONS, *SETTINGS) for case in (row, *row.cases.values())]


@pytest.mark.parametrize(("row", "case"), ROWS, ids=lambda row: " ".join(row.names or row.settings) or row.ours)
def test_each_counterpart_is_an_option_of_ours_or_a_reason(row: Counterpart, case: Counterpart) -> None:
    if case.ours:
        pairs = parse(case.ours)
        assert pairs
        for name, text in pairs:
            assert isinstance(text, bool) == (kind(name) is bool)
            choices = options()[name][1].choices
            assert not choices or text in ("{}", *choices)
    else:
        assert case.why.startswith((NOT_NEEDED, NOT_OFFERED))
    own = {*map(flag, options()), *map(flag_off, options())} | {defined.former for _, defined in options().values()}
    for said in re.findall(r"(?<![\w-])--[a-z][\w-]*", case.why):
        assert said in own | {"--listener"}


def test_gunicorns_hooks_are_told_by_events_that_exist() -> None:
    assert HOOKS == "hooks"
    for hook in GUNICORN_HOOKS.values():
        assert hook.event or hook.where
        if hook.event:
            read_hook(f"{hook.event}=true")


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--timeout", "120", "--timeout is --worker-timeout 120 here (how long an event loop may be blocked; "),
        ("--uds", "/run/app.sock", "--uds is --bind unix:/run/app.sock here"),
        ("--uds", None, "--uds is --bind unix:PATH here"),
        ("-k", "uvicorn.workers.UvicornWorker", "-k is not needed: every worker runs ASGI"),
        ("-k", "gthread", "-k is --interface wsgi here"),
        ("-k", "trio", "-k is not offered: "),
        ("-p", "9", "-p of h2corn is --port 9 here; -p of gunicorn and hypercorn is --pid-file 9 here"),
        ("--limit-concurrency", "9", "--limit-concurrency is --max-concurrency 9 here"),
        ("--limit-concurrency", "app:app", "--limit-concurrency is --max-concurrency NUMBER here"),
        ("--ws-per-message-deflate", "false", "--ws-per-message-deflate is --no-ws-deflate here"),
        ("--no-proxy-headers", None, "--no-proxy-headers is --forwarded-headers none here"),
        ("--http1-header-read-timeout", "30000", "--http1-header-read-timeout is --head-timeout 30 here"),
        ("--workers-lifetime", "1h30m", "--workers-lifetime is --max-lifetime 5400 here"),
        ("--workers-lifetime", "long", "--workers-lifetime is --max-lifetime SECONDS here"),
        ("--uds-permissions", "384", "--uds-permissions of granian is --unix-mode 0600 here; "),
        ("--cert-reqs", "2", "--cert-reqs is --tls-client-auth required here"),
        ("--keyfile-password", "secret", "--keyfile-password is --tls-key-password-file PATH here"),
        ("--no-http1-keep-alive", None, "--no-http1-keep-alive is --keep-alive 0 here"),
        ("--access-logfile", "-", "--access-logfile is --access-log here"),
        ("--error-logfile", "-", "--error-logfile is not needed: it goes to stderr"),
        ("--error-logfile", "/var/log/e", "--error-logfile is --log-file /var/log/e here"),
        ("--daemon", None, "--daemon is not offered: "),
    ],
)
def test_the_sentence_has_the_converted_value(option: str, value: str | None, said: str) -> None:
    assert of_another_server(option, value).startswith(said)


def test_all_of_a_command_line_are_told_at_once() -> None:
    line = "app:app -w 4 -k uvicorn.workers.UvicornWorker --timeout=120 -t30 --daemon --bind :80 --accesslog -"
    said = all_of_other_servers(line.split(), "-k").split("; -")
    assert len([each for each in said if " is " in each]) == 4
    assert "--worker-timeout 120" in said[1]
    assert "--worker-timeout 30" in said[2]
    assert all_of_other_servers(["app:app", "--zzz"], "--zzz") == ""


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("timeout", 120, "timeout is worker-timeout = 120 here (how long"),
        ("ssl_certfile", "a.pem", 'ssl_certfile is tls-cert = "a.pem" here'),
        ("uds", "/a", 'uds is bind = "unix:/a" here'),
        ("preload_app", True, 'preload_app is preload = "on" here'),
        ("preload_app", False, 'preload_app is preload = "off" here'),
        ("proxy-headers", True, "proxy-headers is not needed: headers of the forwarded-allow-ips are believed"),
        ("include_server_header", False, "include_server_header is server-header = false here"),
        ("accesslog", "-", "accesslog is access-log = true here"),
    ],
)
def test_a_key_of_a_file_is_told_in_its_grammar(key: str, value: object, said: str) -> None:
    assert key_of_another_server(key, value).startswith(said)


def test_variables_of_the_others_are_told() -> None:
    told = told_of(
        {
            "UVICORN_WORKERS": "4",
            "UVICORN_PORT": "tcp://10.0.0.1:80",
            "UVICORN_SSL_KEYFILE_PASSWORD": "secret",
            "GRANIAN_BACKPRESSURE": "64",
            "GUNICORN_CMD_ARGS": "--timeout 3",
            "SERVE_TIMEOUT": "30",
            "SERVE_ENV": "production",
        }
    )
    assert [text.removeprefix("the environment variable ").partition(" does nothing: ")[::2] for text in told] == [
        (
            "GRANIAN_BACKPRESSURE",
            "GRANIAN_BACKPRESSURE is SERVE_MAX_CONCURRENCY=64 here (of one worker; more get 503 with Retry-After)",
        ),
        ("GUNICORN_CMD_ARGS", "`serve import-config -- gunicorn $GUNICORN_CMD_ARGS` makes serve.toml of it"),
        (
            "SERVE_TIMEOUT",
            of_another_server("--timeout", "30")
            .replace("--timeout", "SERVE_TIMEOUT", 1)
            .replace("--worker-timeout 30", "SERVE_WORKER_TIMEOUT=30"),
        ),
        (
            "UVICORN_SSL_KEYFILE_PASSWORD",
            "UVICORN_SSL_KEYFILE_PASSWORD is SERVE_TLS_KEY_PASSWORD_FILE=PATH here (the name of a file that holds it)",
        ),
        ("UVICORN_WORKERS", "UVICORN_WORKERS is SERVE_WORKERS=4 here"),
    ]


# The page

TABLES = {part.partition("\n")[0]: part for part in re.split(r"^## ", PAGE, flags=re.M)}


def cells(server: str, number: int) -> str:
    """A column of the table of one server, as text."""
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in TABLES[server].splitlines() if line.startswith("| ")]
    return "\n".join(row[number] for row in rows[1:])


@pytest.mark.parametrize("server", SERVERS)
def test_the_page_names_every_option(server: str) -> None:
    said = re.findall(r"--[a-z][\w-]*…?", cells(server, 0))
    families = tuple(each.removesuffix("…") for each in said if each.endswith("…"))
    for row in OPTIONS:
        if server in row.servers:
            for name in row.names:
                on = name.replace("--no-", "--", 1)
                shown = name in said or on in said or on.startswith(families or ("\0",))
                assert shown or not name.startswith("--"), name


@pytest.mark.parametrize("server", SERVERS)
def test_what_the_page_says_to_write_is_what_the_hints_say(server: str) -> None:
    own = {*map(flag, options()), *map(flag_off, options()), "--listener"}
    assert set(re.findall(r"--[a-z][\w-]*", cells(server, 1))) - own == set()
    for left, right in zip(cells(server, 0).split("\n"), cells(server, 1).split("\n"), strict=True):
        names = re.findall(r"`(--[a-z][\w-]*)", left)
        if len(names) == 1 and (found := [row for row in named(names[0]) if server in row.servers]):
            for name, _ in parse(found[0].ours):
                assert re.search(f"the same|import-config|{flag(name)}|{flag_off(name)}", right), (left, right)


def test_values_that_only_others_know() -> None:
    assert about_value("log_level", "critical") == "--log-level error here"
    assert about_value("log_level", "info") == ""
    said = "--proxy-protocol v2 is --proxy-protocol here (it takes both versions)"
    assert about_flag(["--workers", "2", "--proxy-protocol", "v2"]) == said
    assert about_flag(["--proxy-protocol", "app:asgi"]) == ""


@pytest.mark.parametrize(
    ("convert", "text", "ours"),
    [
        (value_conversions.seconds_of_duration, "1h30m", "5400"),
        (value_conversions.seconds_of_duration, "90", "90"),
        (value_conversions.octal_text, "22", "0022"),
        (value_conversions.octal_mode, "18", "0022"),
        (value_conversions.octal_mode, "022", "0022"),
        (value_conversions.first_directory, "a,b", "a"),
        (value_conversions.listen_address, "tcp://0.0.0.0", "0.0.0.0:8000"),
        (value_conversions.forwarded_headers, "for, proto forwarded", "x-forwarded-for,x-forwarded-proto,forwarded"),
    ],
)
def test_conversions_of_values(convert: Any, text: str, ours: str) -> None:
    assert convert(text) == ours


def test_what_is_no_duration() -> None:
    with pytest.raises(ValueError, match="'soon' is not a duration"):
        value_conversions.seconds_of_duration("soon")
