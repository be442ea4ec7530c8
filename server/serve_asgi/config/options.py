"""The options of the server, each defined once, here.

A field of `Config` carries its name, type, default, unit, help, group and environment variables; the command line,
the documentation and the packet that brings the configuration to a worker are all made from it. This module reads
nothing: `serve_asgi.config.sources` fills a `Config` in from command line, environment and file. It must not import the
rest of the server.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from typing import Any, Final

ENV_PREFIX: Final = "SERVE_"
APP_LOG_WORDS: Final = ("auto", "json", "text", "off")
"""What --app-log takes besides a path."""
MOST_WORKERS: Final = 500
"""So that two generations fit into the scoreboard, and a typo does not exhaust the machine's memory."""


@dataclasses.dataclass(frozen=True, slots=True)
class Option:
    """What help and documentation show of one option, and its limits."""

    help: str
    group: str
    unit: str = ""  # shown as the metavariable: SECONDS, BYTES, PATH …
    choices: tuple[str, ...] = ()
    one_per_line: bool = False  # of several values in an environment variable: they hold spaces
    env: tuple[str, ...] = ()  # further environment variables, besides SERVE_<NAME>
    minimum: float | None = None
    maximum: float | None = None
    live: bool = True  # a reload applies a changed value; where it cannot, a changed value refuses the reload
    separated: bool = False  # its text is several values with commas between them: a file may give an array
    short: str = ""  # the one-letter form: -w
    former: str = ""  # an old spelling (of a boolean: of --no-<name>): accepted on the command line, not shown
    shown_default: str = ""  # what the help shows where the field's own default would not help
    secret: bool = False  # a password: shown nowhere, and kept from every other process
    alone: str = ""  # one of `choices`: what it means without a value, and what true means; false is the first of them


APPLICATION: Final = "Application"
LISTENING: Final = "Listening"
TLS: Final = "TLS"
PROCESSES: Final = "Processes"
DEPLOY: Final = "Deploys and health"
HTTP: Final = "HTTP"
WEBSOCKET: Final = "WebSocket"
PROXIES: Final = "Behind proxies"
MONITORING: Final = "Metrics and traces"
LOGGING: Final = "Logging"
DEVELOPMENT: Final = "Development"
GROUPS: Final = (
    APPLICATION,
    LISTENING,
    TLS,
    PROCESSES,
    DEPLOY,
    HTTP,
    PROXIES,
    WEBSOCKET,
    MONITORING,
    LOGGING,
    DEVELOPMENT,
)


def option(default: Any, help: str, group: str, **more: Any) -> Any:
    """A dataclass field that is an option; `more` are the further fields of `Option`."""
    defined = Option(help, group, **more)
    return dataclasses.field(default=default, repr=not defined.secret, metadata={"option": defined})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The configuration of one server. Paths are as they were given; they are resolved for each generation."""

    app: str = ""
    """The application as `module:attribute`."""

    # Application
    config: str = option(
        "",
        "File to read options from: TOML, or the table [tool.serve] of a pyproject.toml; read again at each reload.",
        APPLICATION,
        unit="PATH",
        shown_default="serve.toml, else pyproject.toml, if there",
        live=False,
    )
    factory: bool = option(False, "APP is a function that returns the application.", APPLICATION)
    app_dir: str = option(
        "",
        "Directory put first on the import path; resolved again at each reload.",
        APPLICATION,
        unit="PATH",
        shown_default="the working directory, or src below it",
    )
    chdir: str = option(
        "", "Working directory of the workers; resolved again at each reload.", APPLICATION, unit="PATH"
    )
    env_file: str = option(
        "",
        "File of NAME=value lines for the workers' environment, where they override the server's own; read again "
        "at each reload.",
        APPLICATION,
        unit="PATH",
    )
    environment: str = option(
        "",
        "Name of the environment, such as production or staging, that schedules with env= are for.",
        APPLICATION,
        unit="NAME",
    )
    python: str = option(
        "",
        "Interpreter of the workers; resolved again at each reload.",
        APPLICATION,
        unit="PATH",
        shown_default="the one that runs the listener",
    )
    loop: str = option(
        "auto",
        "Event loop; auto takes uvloop where it is installed.",
        APPLICATION,
        choices=("auto", "uvloop", "asyncio"),
    )
    lifespan: str = option(
        "auto",
        "Whether to run the ASGI lifespan; auto runs it where the application supports it.",
        APPLICATION,
        choices=("auto", "on", "off"),
    )

    interface: str = option(
        "auto",
        "How the application is called; auto means ASGI 3, wsgi runs it in threads (package a2wsgi).",
        APPLICATION,
        choices=("auto", "asgi", "asgi3", "asgi2", "wsgi"),
    )
    wsgi_threads: int = option(10, "Threads of each worker that run a WSGI application.", APPLICATION, minimum=1)

    # Listening
    bind: tuple[str, ...] = option(
        (),
        "Address to listen on: HOST:PORT, [IPV6]:PORT, :PORT (every interface), unix:/path, or unix:@name (abstract: "
        "anybody on this machine may connect); with TLS, http://HOST:PORT is a plain one; may be repeated.",
        LISTENING,
        unit="ADDRESS",
        short="-b",
        shown_default="127.0.0.1:8000",
        live=False,
    )
    host: str = option(
        "",
        "Host to listen on, with --port; in place of --bind.",
        LISTENING,
        unit="HOST",
        shown_default="127.0.0.1",
        live=False,
    )
    port: int | None = option(
        None,
        "Port to listen on, together with --host; 0 lets the kernel choose, and the choice is printed.",
        LISTENING,
        env=("PORT",),
        minimum=0,
        maximum=65535,
        live=False,
    )
    fd: tuple[int, ...] = option(
        (), "Inherited descriptor of a socket to listen on; may be repeated.", LISTENING, minimum=0, live=False
    )
    backlog: int = option(
        2048, "Connections that the kernel queues.", LISTENING, minimum=1, maximum=2**31 - 1, live=False
    )
    unix_mode: str = option("0660", "Mode of unix sockets, octal.", LISTENING, unit="MODE", live=False)
    unix_group: str = option(
        "",
        "Group (name or number) of unix sockets, such as the proxy's; --group, or the listener's own, if not given.",
        LISTENING,
        unit="GROUP",
        live=False,
    )
    admin: str = option(
        "",
        "Address of the metrics and of the page that shows them: HOST:PORT or unix:/path; it asks for no password.",
        LISTENING,
        unit="ADDRESS",
        live=False,
    )
    bind_timeout: float = option(
        5.0, "How long to try again while the port is in use.", LISTENING, unit="SECONDS", minimum=0, live=False
    )

    # TLS
    tls_cert: tuple[str, ...] = option(
        (),
        "PEM file with a certificate and its chain; may be repeated: clients get the one for the name they ask for.",
        TLS,
        unit="PATH",
        former="--ssl-certfile",
    )
    tls_key: tuple[str, ...] = option(
        (),
        "PEM file with the private key of the --tls-cert at the same place; may be repeated.",
        TLS,
        unit="PATH",
        shown_default="the certificate's file",
        former="--ssl-keyfile",
    )
    tls_key_password: str = option(
        "",
        "Password of encrypted private keys; every user of the machine can read it on a command line.",
        TLS,
        unit="PASSWORD",
        secret=True,
        former="--ssl-keyfile-password",
    )
    tls_key_password_file: str = option("", "File whose first line is that password.", TLS, unit="PATH")
    tls_client_ca: str = option(
        "",
        "PEM file with the authorities that clients' certificates may be from.",
        TLS,
        unit="PATH",
        former="--ssl-ca-certs",
    )
    tls_client_auth: str = option(
        "",
        "Whether clients are asked for a certificate: none; optional, those that have one show it; or required.",
        TLS,
        choices=("none", "optional", "required"),
        shown_default="required with --tls-client-ca, else none",
    )
    tls_crl: str = option(
        "",
        "PEM file with revocation lists of the --tls-client-ca; clients with revoked certificates are refused.",
        TLS,
        unit="PATH",
    )
    tls_min_version: str = option("1.2", "Oldest version of TLS that is spoken.", TLS, choices=("1.2", "1.3"))
    tls_ciphers: str = option(
        "",
        "Cipher suites of TLS 1.2, as openssl-ciphers(1) writes them; those of TLS 1.3 are all offered.",
        TLS,
        unit="LIST",
        shown_default="ECDHE with AES-GCM or ChaCha20",
        former="--ssl-ciphers",
    )
    tls_handshake_timeout: float = option(
        10.0, "How long a TLS handshake may take; then the connection is closed.", TLS, unit="SECONDS", minimum=0.1
    )
    https_redirect: bool = option(
        False,
        "Answer requests on the plain TCP addresses with 308 and the https:// URL; but not the health path and "
        "/.well-known/acme-challenge/.",
        TLS,
    )

    # Processes
    workers: int = option(
        1, "Worker processes.", PROCESSES, env=("WEB_CONCURRENCY",), minimum=1, maximum=MOST_WORKERS, short="-w"
    )
    start_concurrency: int = option(
        0, "Workers that start at the same time; 0 means half the cores.", PROCESSES, minimum=0
    )
    max_generations: int = option(
        3, "Generations alive at once; a further reload waits for the oldest to end.", PROCESSES, minimum=2
    )
    keep_previous: float = option(
        0.0,
        "How long the generation before a reload stays ready for `serve rollback`, without connections; 0 means not "
        "at all.",
        PROCESSES,
        unit="SECONDS",
        minimum=0,
    )
    startup_timeout: float = option(
        60.0, "How long a worker may take to become ready.", PROCESSES, unit="SECONDS", minimum=0.1
    )
    graceful_timeout: float = option(
        30.0,
        "How long a retiring worker may take to finish its requests; then they are cut.",
        PROCESSES,
        unit="SECONDS",
        minimum=0,
    )
    shutdown_timeout: float = option(
        10.0, "How long lifespan shutdown may take after that.", PROCESSES, unit="SECONDS", minimum=0
    )
    survive_timeout: float = option(
        5.0,
        "How long the application has to end its part in a connection that survives; then the client sees it end.",
        PROCESSES,
        unit="SECONDS",
        minimum=0.1,
    )
    survive_window: float = option(
        2.0,
        "Window over which a retiring worker spreads the connections that survive, so that not all wake at once.",
        PROCESSES,
        unit="SECONDS",
        minimum=0,
    )
    max_requests: int = option(0, "Replace a worker after this many requests; 0 means never.", PROCESSES, minimum=0)
    max_requests_jitter: int = option(
        0, "Add up to this many requests, at random, to --max-requests.", PROCESSES, minimum=0
    )
    max_lifetime: float = option(
        0.0,
        "Replace a worker after this time (up to a tenth less, at random); 0 means never.",
        PROCESSES,
        unit="SECONDS",
        minimum=0,
    )
    max_rss: int = option(
        0, "Replace a worker whose resident memory is larger; 0 means never.", PROCESSES, unit="MIB", minimum=0
    )
    block_warning: float = option(
        1.0,
        "How long an event loop may be blocked until the stack that blocks it is logged; 0 logs none.",
        PROCESSES,
        unit="SECONDS",
        minimum=0,
        former="--block-warn",
    )
    worker_timeout: float = option(
        60.0,
        "How long an event loop may be blocked until its worker is replaced; 0 means for ever.",
        PROCESSES,
        unit="SECONDS",
        minimum=0,
    )
    preload: str = option(
        "off",
        "Import the application once per generation, in a process from which the workers are forked (--preload means "
        "on): less memory, and faster reloads; strict refuses an application that must not be forked.",
        PROCESSES,
        choices=("off", "on", "strict"),
        alone="on",
    )
    agent: str = option(
        "",
        "What one process per server runs outside the requests, as module:attribute: an async function, or one that "
        "makes an async context manager.",
        PROCESSES,
        unit="MODULE:ATTRIBUTE",
    )
    agent_timeout: float = option(
        10.0,
        "How long the agent may take to finish; then it is killed.",
        PROCESSES,
        unit="SECONDS",
        minimum=0,
    )
    agent_scope: str = option(
        "server",
        "How many agents there are: one on each server, or one among all servers that share --state (cluster).",
        PROCESSES,
        choices=("server", "cluster"),
        live=False,
    )
    agent_restart: str = option(
        "on-failure",
        "When the agent is started again, with growing delays: after a failure (it raises, dies or blocks), always "
        "(also when its function returns), or never before the next reload.",
        PROCESSES,
        choices=("never", "on-failure", "always"),
    )
    agent_required: bool = option(
        False,
        "Have the health path say no while the agent is missing: it has failed, or its function has returned.",
        PROCESSES,
    )
    state: str = option(
        "",
        "Where the shared state is kept over restarts: a file (SQLite), or for several servers redis://HOST:PORT/DB or "
        "postgresql://HOST:PORT/DATABASE.",
        PROCESSES,
        unit="PATH or URL",
        live=False,
    )
    fleet_orders: bool = option(
        False,
        "Take orders from the store that --state names: `serve fleet reload` and `serve fleet rollback` reload this "
        "server, too. Whoever may write to that store may then do so.",
        PROCESSES,
    )
    state_value_limit: int = option(
        64 * 1024,
        "Largest value in the shared state.",
        PROCESSES,
        unit="BYTES",
        minimum=64,
        maximum=128 * 1024,
        live=False,
    )
    state_limit: int = option(
        16 * 1024 * 1024, "Largest shared state as a whole.", PROCESSES, unit="BYTES", minimum=1024, live=False
    )
    user: str = option(
        "", "User (name or number) that the workers run as; the listener binds first.", PROCESSES, live=False
    )
    group: str = option("", "Group (name or number) that the workers run as.", PROCESSES, live=False)
    umask: str = option("", "File mode mask of the workers, octal.", PROCESSES, unit="MODE")
    pid_file: str = option(
        "",
        "File to write the listener's PID to; it is locked while the server lives.",
        PROCESSES,
        unit="PATH",
        live=False,
    )
    control: str = option(
        "",
        "Path of the control socket.",
        PROCESSES,
        unit="PATH",
        shown_default="one in the runtime directory",
        live=False,
    )
    control_socket: bool = option(True, "Open a control socket.", PROCESSES, former="--no-control", live=False)

    # Deploys and health
    health_path: str = option(
        "/ping",
        "Path that the worker answers itself: 200, or --drain-status while the node drains; PATH?live is always 200.",
        DEPLOY,
        unit="PATH",
    )
    health: bool = option(True, "Answer the health path.", DEPLOY)
    drain_status: int = option(
        503, "Status of the health path while the node drains.", DEPLOY, unit="STATUS", minimum=400, maximum=599
    )
    drain_close_after: float = option(
        10.0, "Time of draining after which responses carry Connection: close.", DEPLOY, unit="SECONDS", minimum=0
    )
    drain_delay: float = option(
        0.0, "How long TERM drains the node before it shuts out new connections.", DEPLOY, unit="SECONDS", minimum=0
    )

    canary: bool = option(
        False,
        "Begin every reload with a trial: a canary, some of the new workers, serves a share of the traffic, and is "
        "taken back if it fails more requests than the others.",
        DEPLOY,
    )
    canary_share: int = option(
        0,
        "Percentage of the traffic that a canary serves; 0 means as much as one of the others.",
        DEPLOY,
        unit="PERCENT",
        minimum=0,
        maximum=50,
    )
    canary_time: float = option(60.0, "How long a trial lasts.", DEPLOY, unit="SECONDS", minimum=1)
    canary_latency: float = option(
        0.0,
        "Take a canary back that is this many times slower than the others; 0: slower ones are only reported.",
        DEPLOY,
        unit="FACTOR",
        minimum=0,
    )
    canary_inconclusive: str = option(
        "promote",
        "What follows a trial with too few requests to tell: promote the canary, or hold it until `serve promote` "
        "or `serve rollback`.",
        DEPLOY,
        choices=("promote", "hold"),
    )
    auto_rollback: bool = option(
        False,
        "Watch a new generation for --canary-time after the switch, as a canary is watched, and roll back if it is "
        "bad; the previous one is kept for that time.",
        DEPLOY,
    )
    canary_header: str = option(
        "",
        "Response header that says which generation answered, such as x-serve-generation.",
        DEPLOY,
        unit="NAME",
        shown_default="none",
    )

    hook: tuple[str, ...] = option(
        (),
        "Run a command at an event: EVENT=COMMAND, or EVENT=MODULE:CALLABLE; may be repeated (docs/guides/hooks.md).",
        DEPLOY,
        unit="EVENT=COMMAND",
        one_per_line=True,
    )
    hook_timeout: float = option(
        10.0, "How long a hook may take; then it is ended.", DEPLOY, unit="SECONDS", minimum=0.1
    )

    # HTTP
    http: str = option(
        "auto",
        "HTTP/1.1 parser; auto takes httptools where it is installed.",
        HTTP,
        choices=("auto", "httptools", "h11"),
    )
    keep_alive: float = option(
        75.0, "How long an idle connection is kept; advertised to the client.", HTTP, unit="SECONDS", minimum=0
    )
    first_byte_timeout: float = option(
        75.0, "How long a new connection may be silent.", HTTP, unit="SECONDS", minimum=0.1
    )
    head_timeout: float = option(
        15.0, "How long a request head may take from its first byte (longer: 408).", HTTP, unit="SECONDS", minimum=0.1
    )
    min_body_rate: int = option(
        100,
        "Slowest arrival of a request body, averaged over 15 s (slower: 408); 0 allows any.",
        HTTP,
        unit="BYTES/S",
        minimum=0,
    )
    write_timeout: float = option(
        60.0,
        "How long a client may accept no byte of what is written to it (longer: cut).",
        HTTP,
        unit="SECONDS",
        minimum=1,
    )
    request_timeout: tuple[str, ...] = option(
        (),
        "Total time of a request (longer: 503, or cut if the response has begun), or PATH=SECONDS for a path and all "
        "below it, 0 for no limit; event streams only if their path is named; may be repeated.",
        HTTP,
        unit="SECONDS",
        shown_default="no limit",
    )
    max_head_size: int = option(65536, "Largest request head (larger: 431).", HTTP, unit="BYTES", minimum=1024)
    max_headers: int = option(128, "Most headers in a request (more: 431).", HTTP, minimum=1)
    max_target_size: int = option(16384, "Longest request target (longer: 414).", HTTP, unit="BYTES", minimum=64)
    max_body_size: int = option(0, "Largest request body (larger: 413); 0 means any.", HTTP, unit="BYTES", minimum=0)
    max_concurrency: int = option(
        0,
        "Requests in progress in one worker, WebSockets not counted (more: 503 with Retry-After); 0 means any.",
        HTTP,
        minimum=0,
    )
    max_connections: int = option(
        0, "Connections open at a time in one worker (more wait to be accepted); 0 means any.", HTTP, minimum=0
    )
    early_hints: bool = option(
        False, "Offer http.response.early_hint (103), which some HTTP/1.1 clients take for the response.", HTTP
    )
    http2: str = option(
        "on",
        "Speak HTTP/2 as well: with TLS where the client offers it (ALPN), in clear text by prior knowledge.",
        HTTP,
        choices=("off", "on"),
        alone="on",
    )
    h2_max_streams: int = option(
        100, "Requests in progress at once on an HTTP/2 connection (more are refused).", HTTP, minimum=1, maximum=65535
    )
    h2_hold: float = option(
        0.2,
        "How long a retiring worker holds back new requests of an HTTP/2 connection while the open ones end, so that "
        "it can move; after that the client is told to open another (GOAWAY).",
        HTTP,
        unit="SECONDS",
        minimum=0,
    )
    static: tuple[str, ...] = option(
        (),
        "Serve the files of a directory below a path, before the application is asked; a relative directory starts in "
        "--chdir; may be repeated.",
        HTTP,
        unit="PREFIX=DIR",
        one_per_line=True,
    )
    static_max_age: tuple[str, ...] = option(
        (),
        "How long browsers and proxies may use files of --static without asking again, or immutable; of names with a "
        "hash, as in app.3f2a9c1b.js, that is the default, and of others 0. PREFIX=… decides for all files below a "
        "path; may be repeated.",
        HTTP,
        unit="[PREFIX=]SECONDS",
    )
    server_header: bool = option(True, "Send a Server header.", HTTP)
    date_header: bool = option(True, "Send a Date header.", HTTP)

    # Behind proxies
    forwarded_allow_ips: str = option(
        "127.0.0.1,::1,unix",
        "Proxies that are believed about the client's address and scheme: addresses, networks (10.0.0.0/8), unix for "
        "the peers of unix sockets, or * for every peer; separated by commas.",
        PROXIES,
        separated=True,
        unit="ADDRESSES",
        env=("FORWARDED_ALLOW_IPS",),
    )
    forwarded_headers: str = option(
        "x-forwarded-for,x-forwarded-proto",
        "Headers that are believed; name those that your proxy sets itself: some of x-forwarded-for, "
        "x-forwarded-proto, x-forwarded-host and x-forwarded-prefix, or forwarded (RFC 7239), or none.",
        PROXIES,
        separated=True,
        unit="NAMES",
    )
    proxy_protocol: bool = option(
        False, "Expect the PROXY protocol, version 1 or 2, at the beginning of every connection.", PROXIES
    )
    proxy_protocol_allow_ips: str = option(
        "127.0.0.1,::1,unix",
        "Balancers that may connect with the PROXY protocol, written as in --forwarded-allow-ips; others are closed.",
        PROXIES,
        separated=True,
        unit="ADDRESSES",
    )
    proxy_protocol_timeout: float = option(
        5.0, "How long the PROXY protocol's header may take to arrive.", PROXIES, unit="SECONDS", minimum=0.1
    )
    root_path: str = option("", "Path under which the application is mounted (ASGI root_path).", PROXIES, unit="PATH")

    # WebSocket
    ws_max_size: int = option(
        16 * 1024 * 1024, "Largest incoming message (larger: close code 1009).", WEBSOCKET, unit="BYTES", minimum=1
    )
    ws_ping_interval: float = option(
        20.0, "Time between pings to the client; 0 sends none.", WEBSOCKET, unit="SECONDS", minimum=0
    )
    ws_ping_timeout: float = option(
        20.0, "How long the client may take to answer a ping.", WEBSOCKET, unit="SECONDS", minimum=0.1
    )
    ws_deflate: bool = option(True, "Offer permessage-deflate.", WEBSOCKET)
    ws_retire: str = option(
        "late",
        "When a retiring worker closes WebSockets (code 1012): early, at once; late, towards the graceful timeout.",
        WEBSOCKET,
        choices=("early", "late"),
    )
    ws_retire_window: float = option(
        5.0, "Window over which these closes are spread.", WEBSOCKET, unit="SECONDS", minimum=0
    )

    # Metrics and traces
    metrics_series: int = option(
        10_000,
        "Time series that each process may have in the application's metrics; 0 leaves them to the application.",
        MONITORING,
        minimum=0,
        maximum=1_000_000,
    )

    statsd: str = option(
        "",
        "Address of a statsd server that is sent metrics under gunicorn's names: HOST:PORT (UDP) or unix:/path.",
        MONITORING,
        unit="ADDRESS",
        live=False,
    )
    statsd_prefix: str = option(
        "", "What those names begin with, before `gunicorn.`.", MONITORING, unit="TEXT", live=False
    )

    opentelemetry: str = option(
        "off",
        "Make a span of each request, WebSocket and reload with opentelemetry-api; the application sets up the SDK.",
        MONITORING,
        choices=("off", "on"),
        alone="on",
    )

    # Logging
    log_level: str = option(
        "info", "Lowest level of the server's own log lines.", LOGGING, choices=("debug", "info", "warning", "error")
    )
    log_format: str = option(
        "auto",
        "Format of the server's own log: lines for people or JSON lines; auto is text on a terminal, JSON elsewhere.",
        LOGGING,
        choices=("auto", "text", "json"),
        live=True,
    )
    log_file: str = option(
        "", "File for the server's own log instead of stderr; opened again on USR1.", LOGGING, unit="PATH"
    )
    app_log: str = option(
        "auto",
        "The application's own log lines (logging): json or text, with request ids, beside the server's own; a file; "
        "off; or auto, which takes only those for which the application has no handler.",
        LOGGING,
        unit="json|text|off|PATH",
    )
    log_config: str = option(
        "",
        "File with what logging.config.dictConfig takes, as TOML, YAML or JSON, for workers and the agent.",
        LOGGING,
        unit="PATH",
    )
    access_log: bool = option(True, "Write an access log.", LOGGING)
    access_log_file: str = option(
        "", "File for the access log instead of stdout; opened again on USR1.", LOGGING, unit="PATH"
    )
    access_log_format: str = option(
        "auto",
        "Format of the access log: common, combined, json, a line with gunicorn's atoms such as "
        "'%(h)s \"%(r)s\" %(s)s', or json:FIELD,FIELD,…; auto is common where --log-format means text, else json.",
        LOGGING,
        unit="FORMAT",
    )
    request_id: str = option(
        "accept",
        "What is done about request ids: accept logs the one that a request carries; generate gives one to a request "
        "that carries none; echo also sends it with the response.",
        LOGGING,
        choices=("off", "accept", "generate", "echo"),
    )
    request_id_header: str = option("x-request-id", "Header that carries a request's id.", LOGGING, unit="NAME")

    # Development
    reload: bool = option(
        False,
        "Reload when a file of the application changes (noticed at once with the package watchfiles); requests then "
        "have 1 s to finish.",
        DEVELOPMENT,
        live=False,
    )
    reload_dir: tuple[str, ...] = option(
        (),
        "Directory to watch, with all below it; may be repeated.",
        DEVELOPMENT,
        unit="PATH",
        shown_default="that of --app-dir",
        live=False,
    )
    reload_include: tuple[str, ...] = option(
        (),
        "Further files that count, besides *.py and the server's own files: a pattern such as *.html; may be repeated.",
        DEVELOPMENT,
        unit="PATTERN",
        live=False,
    )
    reload_exclude: tuple[str, ...] = option(
        (),
        "Files and directories that do not count, besides hidden ones and installed packages; may be repeated.",
        DEVELOPMENT,
        unit="PATTERN",
        live=False,
    )

    def to_json(self, *, secrets: bool = False) -> dict[str, Any]:
        """The configuration as JSON-compatible values, for the packet that a process receives.

        Passwords are left out unless `secrets` says otherwise: only the listener's own program needs them.
        """
        values = dataclasses.asdict(self)
        return values if secrets else {**values, **dict.fromkeys(SECRETS, "")}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Config:
        """The reverse of `to_json`; ignores unknown names, which are another minor version's."""
        known = {field.name for field in dataclasses.fields(cls)}
        read: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items() if n in known}
        return cls(**read)


def options() -> dict[str, tuple[dataclasses.Field[Any], Option]]:
    """All options by field name, in the order of their definition."""
    return {f.name: (f, f.metadata["option"]) for f in dataclasses.fields(Config) if "option" in f.metadata}


@functools.cache
def _annotations() -> dict[str, Any]:
    return typing.get_type_hints(Config)


def kind(name: str) -> type:
    """The type of one option's value: bool, int, float or str (of each item, where the option takes several)."""
    annotation = _annotations()[name]
    for argument in typing.get_args(annotation):
        if argument not in (types.NoneType, Ellipsis):
            annotation = argument
            break
    return typing.cast(type, annotation)


def several(name: str) -> bool:
    """Whether the option takes several values."""
    return typing.get_origin(_annotations()[name]) is tuple


def key(name: str) -> str:
    """The option's name in a configuration file: `bind_timeout` is `bind-timeout`, as on the command line."""
    return name.replace("_", "-")


def flag(name: str) -> str:
    """The option's long form on the command line: `bind_timeout` is `--bind-timeout`."""
    return "--" + name.replace("_", "-")


def flag_off(name: str) -> str:
    """The long form that turns a boolean option off: `access_log` is `--no-access-log`."""
    return "--no-" + name.replace("_", "-")


def environment_names(name: str, defined: Option) -> tuple[str, ...]:
    """The environment variables that set the option; the first one found wins."""
    return (ENV_PREFIX + name.upper(), *defined.env)


SECRETS: Final = tuple(name for name, (_, defined) in options().items() if defined.secret)
"""The fields that hold passwords."""
SECRET_VARIABLES: Final = tuple(each for name in SECRETS for each in environment_names(name, options()[name][1]))
"""The environment variables that do: they are the listener's alone."""


def dump(config: Config) -> str:
    """The configuration as one line of JSON."""
    return json.dumps(config.to_json(), separators=(",", ":"))
