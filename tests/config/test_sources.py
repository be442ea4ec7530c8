"""Command line, environment and default: which of them counts, and what each error says."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from serve_asgi.config.options import Config, dump, environment_names, options
from serve_asgi.config.sources import Given, build, kind, several
from serve_asgi.errors import UsageError

NO_TIME = "is no time: write seconds, as in 30, or a path and seconds, as in /reports=300"


def configured(given: dict[str, Given] | None = None, **environ: str) -> Config:
    return build("app:asgi", given or {}, environ)


def test_defaults_are_those_of_the_definitions() -> None:
    assert configured() == Config(app="app:asgi")


def test_the_command_line_wins_over_the_environment_and_that_over_the_platform() -> None:
    assert configured({"workers": "2"}, SERVE_WORKERS="3", WEB_CONCURRENCY="4").workers == 2
    assert configured(SERVE_WORKERS="3", WEB_CONCURRENCY="4").workers == 3
    assert configured(WEB_CONCURRENCY="4").workers == 4
    assert configured(WEB_CONCURRENCY="").workers == 1


@pytest.mark.parametrize("name", options())
def test_every_option_is_read_from_its_variable(name: str, tmp_path: Any) -> None:
    defined = options()[name][1]
    texts: dict[str, tuple[str, Any]] = {
        "app_dir": (str(tmp_path), str(tmp_path)),
        "chdir": (str(tmp_path), str(tmp_path)),
        "env_file": (__file__, __file__),
        "config": (os.devnull, os.devnull),
        "access_log_format": ("combined", "combined"),
        "user": (str(os.geteuid()), str(os.geteuid())),
        "group": (str(os.getegid()), str(os.getegid())),
        "unix_group": ("12345", "12345"),
        "admin": ("127.0.0.1:9180", "127.0.0.1:9180"),
        "bind": (":1, unix:/a  [::1]:2", (":1", "unix:/a", "[::1]:2")),
        "hook": ("post_reload=a b\n server_started=c:d", ("post_reload=a b", "server_started=c:d")),
        "app_log": ("./log", "./log"),
        "log_config": (str(tmp_path / "log.json"), str(tmp_path / "log.json")),
        "health_path": ("/up", "/up"),
        "static": ("/static=some dir\n/=b", ("/static=some dir", "/=b")),
        "static_max_age": ("60 /a=immutable", ("60", "/a=immutable")),
        "request_timeout": ("30 /a=5", ("30", "/a=5")),
        "agent": ("app:consume", "app:consume"),
        "root_path": ("/api", "/api"),
        "forwarded_allow_ips": ("10.0.0.0/8, unix", "10.0.0.0/8, unix"),
        "forwarded_headers": ("Forwarded x-forwarded-prefix", "Forwarded x-forwarded-prefix"),
        "proxy_protocol_allow_ips": ("*", "*"),
        "drain_status": ("410", 410),
        "statsd": ("localhost:8125", "localhost:8125"),
        "unix_mode": ("600", "600"),
        "umask": ("027", "027"),
        "tls_client_auth": ("none", "none"),
    }
    (tmp_path / "log.json").write_text("{}")
    needed = {
        "tls_key": {"SERVE_TLS_CERT": "c"},
        "tls_client_ca": {"SERVE_TLS_CERT": "c"},
        "tls_crl": {"SERVE_TLS_CERT": "c", "SERVE_TLS_CLIENT_CA": "a"},
        "https_redirect": {"SERVE_TLS_CERT": "c"},
        "agent_scope": {"SERVE_STATE": "redis://127.0.0.1/0"},
        "fleet_orders": {"SERVE_STATE": "redis://127.0.0.1/0"},
    }
    if name in texts:
        text, expected = texts[name]
    elif kind(name) is bool:
        text, expected = ("no", False) if options()[name][0].default else ("yes", True)
    elif defined.choices:
        text = expected = defined.choices[-1]
    elif kind(name) is str:
        text, expected = "word", ("word",) if several(name) else "word"
    else:
        value = max(defined.minimum or 0, 7)
        text, expected = f"{value:g}", (kind(name)(value),) if several(name) else kind(name)(value)
    for variable in environment_names(name, defined):
        assert getattr(configured(None, **needed.get(name, {}), **{variable: text}), name) == expected


@pytest.mark.parametrize(
    ("given", "environ", "sentence"),
    [
        ({"workers": "two"}, {}, "--workers: 'two' is not a whole number"),
        ({"workers": "0"}, {}, "--workers: 0 is too small; the least is 1"),
        ({}, {"WEB_CONCURRENCY": "x"}, "WEB_CONCURRENCY: 'x' is not a whole number"),
        ({"port": "65536"}, {}, "--port: 65536 is too large; the most is 65535"),
        ({"max_head_size": str(1 << 63)}, {}, f"--max-head-size: {1 << 63} is too large; the most is {(1 << 63) - 1}"),
        (
            {"max_concurrency": "9" * 400},
            {},
            f"--max-concurrency: {'9' * 100}… is too large; the most is {(1 << 63) - 1}",
        ),
        ({"keep_alive": "nan"}, {}, "--keep-alive: 'nan' is not a number of seconds"),
        ({"keep_alive": "1m"}, {}, "--keep-alive: '1m' is not a number of seconds"),
        ({"http": "h3"}, {}, "--http: 'h3' is not one of auto, httptools, h11"),
        ({}, {"SERVE_HEALTH": "maybe"}, "SERVE_HEALTH: 'maybe' is neither true nor false; write 1 or 0"),
        ({"unix_mode": "rw"}, {}, "--unix-mode: 'rw' is not an octal mode; write one such as 0660"),
        ({"health_path": "ping"}, {}, "--health-path: 'ping' must begin with a slash"),
        ({"request_timeout": ("soon",)}, {}, f"--request-timeout: 'soon' {NO_TIME}"),
        ({"request_timeout": ("a=1",)}, {}, f"--request-timeout: 'a=1' {NO_TIME}"),
        ({}, {"SERVE_REQUEST_TIMEOUT": "/a=5 /a/=6"}, "SERVE_REQUEST_TIMEOUT: /a is given twice: leave one out"),
        (
            {},
            {"SERVE_REQUEST_TIMEOUT": "5 6"},
            "SERVE_REQUEST_TIMEOUT: the time for all paths is given twice: leave one out",
        ),
        (
            {"static": ("public",)},
            {},
            "--static: 'public' is not PREFIX=DIR: write a path and a directory, as in /static=public",
        ),
        (
            {"app_log": "all"},
            {},
            "--app-log: 'all' is none of auto, json, text, off; a file is written with its directory, as in ./all",
        ),
        (
            {"log_config": "/nowhere.json"},
            {},
            "--log-config: the file /nowhere.json cannot be read: No such file or directory",
        ),
        (
            {"request_id_header": "a b"},
            {},
            "--request-id-header: 'a b' is not the name of a header; write one: x-request-id",
        ),
        (
            {"canary_header": "a b"},
            {},
            "--canary-header: 'a b' is not the name of a header; write one: x-serve-generation",
        ),
        (
            {"agent_scope": "cluster"},
            {},
            "--agent-scope: one agent among several servers needs a state that they share: add --state "
            "redis://HOST:PORT/DB or postgresql://HOST/DATABASE, or leave --agent-scope out",
        ),
        (
            {"fleet_orders": True},
            {"SERVE_STATE": "state.db"},
            "--fleet-orders: orders come through a state that servers share: add --state redis://HOST:PORT/DB or "
            "postgresql://HOST/DATABASE, or leave --fleet-orders out",
        ),
        (
            {"statsd": "localhost"},
            {},
            "--statsd: the address 'localhost' has no port: write HOST:PORT, for example localhost:8000",
        ),
        ({"root_path": "/a/../b"}, {}, "--root-path: '/a/../b' is not a path to mount at; write one such as /api"),
        (
            {"forwarded_allow_ips": "10.0.0.1/8"},
            {},
            "--forwarded-allow-ips: '10.0.0.1/8' is an address within a network: write 10.0.0.0/8 for the network",
        ),
        (
            {},
            {"FORWARDED_ALLOW_IPS": "127.0.0.1,lb"},
            "FORWARDED_ALLOW_IPS: 'lb' is not an address; write addresses, networks such as 10.0.0.0/8, unix for unix "
            "sockets, or * for all, separated by commas",
        ),
        (
            {"proxy_protocol_allow_ips": "1.2.3"},
            {},
            "--proxy-protocol-allow-ips: '1.2.3' is not an address; write addresses, networks such as 10.0.0.0/8, unix "
            "for unix sockets, or * for all, separated by commas",
        ),
        (
            {"forwarded_headers": "x-real-ip"},
            {},
            "--forwarded-headers: 'x-real-ip' is not a header that this server knows; write some of x-forwarded-for, "
            "x-forwarded-proto, x-forwarded-host and x-forwarded-prefix, or forwarded, or none",
        ),
        (
            {"forwarded_headers": "forwarded,x-forwarded-for"},
            {},
            "--forwarded-headers: forwarded cannot be believed together with x-forwarded-for, -proto or -host: name "
            "those that the proxy sets itself, since the others come from the client",
        ),
        ({"app_dir": "/no/such"}, {}, "--app-dir: there is no directory /no/such"),
        ({"hook": ("post_relaod=x",)}, {}, "--hook: hooks know no event 'post_relaod': did you mean post_reload?"),
        (
            {"hook": ("x",)},
            {},
            "--hook: 'x' is not a hook: write EVENT=COMMAND, for example post_reload=/usr/local/bin/tell-chat",
        ),
        (
            {"hook": ("server_started=a 'b",)},
            {},
            "--hook: the command of the hook server_started cannot be read: no closing quotation",
        ),
        ({"env_file": "/no/such"}, {}, "--env-file: the file /no/such cannot be read"),
        ({"user": "no-such-user"}, {}, "--user: this machine knows no user 'no-such-user'"),
        ({"unix_group": "no-such"}, {}, "--unix-group: this machine knows no group 'no-such'"),
        (
            {"bind": (":1",), "port": "3"},
            {},
            "--bind and --port were both given: use either --bind HOST:PORT or host and port",
        ),
        (
            {},
            {"SERVE_BIND": ":1", "SERVE_HOST": "a"},
            "SERVE_BIND and SERVE_HOST were both given: use either SERVE_BIND HOST:PORT or host and port",
        ),
        ({"bind": ("x",)}, {}, "the address 'x' has no port: write HOST:PORT, for example x:8000"),
        (
            {"bind": ("unix:@a",), "unix_mode": "0600"},
            {},
            "--unix-mode: unix:@a is an abstract socket, which has no mode, so that anybody on this machine may "
            "connect: name a path, as in unix:/run/app.sock, or leave the mode out",
        ),
        (
            {"control": "@a"},
            {},
            "--control: '@a' is not a path, and the control socket is a file, whose mode keeps others out: write a "
            "path, such as /run/app/control.sock",
        ),
        ({"log_file": "a\0b"}, {}, "--log-file holds a NUL character, which no name or path may"),
        (
            {"access_log_format": "plain"},
            {},
            "--access-log-format: 'plain' is not a format of the access log: write auto, common, combined, json, a "
            "line such as '%(h)s %(s)s', or json:FIELD,FIELD,… (docs/guides/logs.md has the fields)",
        ),
        (
            {"agent": "consume"},
            {},
            "--agent: 'consume' is not an agent: write module:attribute, for example app:agent",
        ),
        (
            {"host": "localhost:80"},
            {},
            "--host: 'localhost:80' is not a host: write a name or an address alone; its port is given by --port",
        ),
        (
            {"host": "a b"},
            {},
            "--host: 'a b' is not a host: write a name or an address alone; its port is given by --port",
        ),
        ({"health_path": ""}, {}, "--health-path is empty: write --no-health to answer no such path"),
        (
            {"health_path": "/p?live"},
            {},
            "--health-path: '/p?live' cannot be requested by a client: write a path of ASCII characters, without "
            "spaces, ? and #, as in /ping",
        ),
        (
            {"request_id_header": "x y"},
            {},
            "--request-id-header: 'x y' is not the name of a header; write one: x-request-id",
        ),
        ({}, {"SERVE_BIND": " , "}, "SERVE_BIND holds separators and no value: leave it out, or write one"),
        ({"hook": ("",)}, {}, "--hook holds an empty value: take it out, or write what was meant"),
    ],
)
def test_wrong_values_are_named_with_their_source(
    given: dict[str, Given], environ: dict[str, str], sentence: str
) -> None:
    with pytest.raises(UsageError) as caught:
        configured(given, **environ)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("app", "sentence"),
    [
        ("app", "'app' is not an application: write module:attribute, for example app:app"),
        ("a b:x", "'a b:x' is not an application: write module:attribute, for example app:app"),
        ("src/shop.py", "'src/shop.py' is a path: name the module and what is in it, for example shop:app"),
        (
            "shop:make()",
            "'shop:make()' is a call: write shop:make, and --factory (in a file, factory = true) if it returns the "
            "application",
        ),
    ],
)
def test_what_names_no_application_is_told_how(app: str, sentence: str) -> None:
    for given, environ, where in ((app, {}, ""), ("", {"SERVE_APP": app}, "SERVE_APP: ")):
        with pytest.raises(UsageError) as caught:
            build(given, {}, environ)
        assert str(caught.value) == where + sentence


def test_the_application_may_come_from_the_environment_and_has_to_come_from_somewhere() -> None:
    assert build("", {}, {"SERVE_APP": " shop:app "}).app == "shop:app"
    with pytest.raises(UsageError, match=r"^which application\? Write it as module:attribute"):
        build("", {}, {})


def test_only_root_can_have_workers_run_as_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    monkeypatch.setattr(os, "getegid", lambda: 12345)
    for name in ("user", "group"):
        with pytest.raises(UsageError, match=f"^--{name}: only root can change to another {name}"):
            configured({name: "root"})
    assert configured({"user": "", "group": "12345"}).group == "12345"


def test_the_nearer_address_wins() -> None:
    assert configured({"bind": (":1",)}, PORT="9", SERVE_HOST="h") == Config(app="app:asgi", bind=(":1",))
    assert configured({"port": "5"}, SERVE_BIND=":1") == Config(app="app:asgi", port=5)
    assert configured(None, SERVE_BIND=":1", PORT="9") == Config(app="app:asgi", bind=(":1",))
    assert configured({"host": "h"}, PORT="9") == Config(app="app:asgi", host="h", port=9)


def test_a_platforms_port_yields_to_inherited_sockets() -> None:
    assert configured({"fd": ("3",)}, PORT="9") == Config(app="app:asgi", fd=(3,))
    assert configured(None, LISTEN_PID=str(os.getpid()), PORT="9").port is None
    assert configured(None, LISTEN_PID=str(os.getpid()), SERVE_PORT="9").port == 9


def test_a_kubernetes_service_called_serve_is_no_port() -> None:
    assert configured(None, SERVE_PORT="tcp://10.0.0.7:80").port is None


def test_a_configuration_survives_its_packet() -> None:
    config = configured({"bind": (":1", ":2"), "workers": "3", "fd": ("3",), "health": False})
    assert Config.from_json(config.to_json() | {"of_a_later_version": 1}) == config
    assert Config.from_json(json.loads(dump(config))) == config


def test_a_slash_at_the_end_of_the_root_path_is_not_part_of_it() -> None:
    assert configured({"root_path": "/api/"}).root_path == "/api"
    assert configured(SERVE_ROOT_PATH="/").root_path == ""


@pytest.mark.parametrize(
    ("text", "value"), [("on", "on"), ("off", "off"), ("true", "on"), ("False", "off"), ("1", "on"), ("no", "off")]
)
def test_http2_is_on_or_off_however_that_is_written(text: str, value: str) -> None:
    assert configured({"http2": text}).http2 == value
    assert configured(SERVE_HTTP2=text).http2 == value


def test_a_dash_is_the_standard_stream_that_a_log_goes_to_anyway() -> None:
    config = build("app:asgi", {"log_file": "-", "access_log_file": "-"}, {})
    assert (config.log_file, config.access_log_file) == ("", "")
