"""What gunicorn's and hypercorn's configuration files may hold besides the options of their command lines.

Data alone, as in `option_table`; and gunicorn's hooks, which are functions in its file.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from serve_asgi.config.other_servers.counterpart import NOT_NEEDED, NOT_OFFERED, Counterpart, row
from serve_asgi.config.other_servers.option_table import HTTP2_FIXED, LOGGING, SERVER_METRICS, WHOLE_HEAD
from serve_asgi.config.other_servers.value_conversions import CLIENT_CERTIFICATES

SETTINGS: Final[tuple[Counterpart, ...]] = (
    row(
        "gunicorn",
        "",
        why=NOT_NEEDED + "requests are handed to the application as they arrive",
        also="tmp_upload_dir",
    ),
    row(
        "gunicorn",
        "",
        "--forwarded-headers NAMES",
        "the scheme is believed from x-forwarded-proto, or from forwarded (RFC 7239)",
        also="secure_scheme_headers",
        by_hand=True,
    ),
    row("gunicorn", "", why=NOT_NEEDED + "processes are named after what they are", also="default_proc_name"),
    row(
        "hypercorn",
        "",
        why=NOT_NEEDED + "HTTP/2 and HTTP/1.1 are offered; --http2 off leaves HTTP/1.1",
        also="alpn_protocols",
    ),
    row(
        "hypercorn",
        "",
        why=NOT_OFFERED + "add the header alt-svc in a middleware of the application",
        also="alt_svc_headers",
    ),
    row("hypercorn", "", "--max-head-size {}", also="h11_max_incomplete_size"),
    row("hypercorn", "", why=NOT_NEEDED + "names of headers are in small letters (ASGI)", also="h11_pass_raw_headers"),
    row("hypercorn", "", "--h2-max-streams {}", also="h2_max_concurrent_streams"),
    row("hypercorn", "", "--max-head-size {}", WHOLE_HEAD, also="h2_max_header_list_size"),
    row("hypercorn", "", why=HTTP2_FIXED, also="h2_max_inbound_frame_size"),
    row("hypercorn", "", "--date-header", also="include_date_header", is_flag=True),
    row("hypercorn", "", "--server-header", also="include_server_header", is_flag=True),
    row(
        "hypercorn",
        "",
        why=NOT_OFFERED + "a connection has no greatest number of requests",
        also="keep_alive_max_requests",
    ),
    row("hypercorn", "", why=LOGGING, also="logger_class"),
    row(
        "gunicorn hypercorn",
        "",
        "--log-config PATH",
        "a file, with the same table",
        also="logconfig_dict",
        by_hand=True,
    ),
    row(
        "hypercorn",
        "",
        why=NOT_NEEDED + "what the application has not taken is bounded in bytes",
        also="max_app_queue_size",
    ),
    row("hypercorn", "", "--pid-file {}", also="pid_path"),
    row("hypercorn", "", "--shutdown-timeout {}", also="shutdown_timeout"),
    row("hypercorn", "", "--startup-timeout {}", also="startup_timeout"),
    row("hypercorn", "", "--tls-handshake-timeout {}", also="ssl_handshake_timeout"),
    row(
        "hypercorn",
        "",
        "--tls-crl PATH",
        "a file with revocation lists turns their check on",
        also="verify_flags",
        by_hand=True,
    ),
    row("hypercorn", "", "--tls-client-auth {}", also="verify_mode", cases=CLIENT_CERTIFICATES),
    row("hypercorn", "", "--ws-max-size {}", also="websocket_max_message_size"),
    row("hypercorn", "", "--max-body-size {}", also="wsgi_max_body_size"),
    row("hypercorn", "", "--admin HOST:PORT", SERVER_METRICS, also="dogstatsd_tags", by_hand=True),
)


@dataclasses.dataclass(frozen=True, slots=True)
class GunicornHook:
    """A hook of gunicorn, which is a function in its configuration file, and the place for that code here."""

    event: str = ""
    """The event whose hook takes its place (`serve_asgi.config.hook_events`); "" if code of the application does."""
    where: str = ""
    """In words."""


_LIFESPAN_START: Final = GunicornHook(where="the start of the application's lifespan, in each worker")
_LIFESPAN_END: Final = GunicornHook(where="the end of the application's lifespan, in each worker")
_MIDDLEWARE: Final = GunicornHook(where="a middleware of the application")
_AGENT: Final = GunicornHook(where="the agent, for work that must happen once (docs/guides/agent.md)")

GUNICORN_HOOKS: Final = {
    "on_starting": GunicornHook(where="the service manager before the server starts, such as ExecStartPre= of systemd"),
    "on_reload": GunicornHook("pre_reload", "its failure refuses the reload"),
    "when_ready": GunicornHook("server_started"),
    "pre_fork": GunicornHook("worker_started", "the process has been started by then"),
    "post_fork": GunicornHook(
        where='@after_fork of serve_asgi with preload = "on"; without that a worker imports the application anew, and '
        "nothing has to be opened again: what every worker needs belongs to the import, or to the lifespan of ASGI"
    ),
    "post_worker_init": _LIFESPAN_START,
    "worker_int": _LIFESPAN_END,
    "worker_abort": GunicornHook("worker_blocked"),
    "pre_exec": GunicornHook("listener_replaced", "after `serve reload --listener`"),
    "pre_request": _MIDDLEWARE,
    "post_request": _MIDDLEWARE,
    "child_exit": GunicornHook(
        "worker_finished",
        "or worker_died, if nobody has asked for it; not needed for mark_process_dead of prometheus_client: take "
        "PROMETHEUS_MULTIPROC_DIR away, prometheus_client's metrics are summed up without it",
    ),
    "worker_exit": _LIFESPAN_END,
    "nworkers_changed": GunicornHook("workers_scaled"),
    "on_exit": GunicornHook("post_stop"),
    "ssl_context": GunicornHook(where="tls-cert, tls-key, tls-client-ca, tls-min-version and tls-ciphers"),
    "on_dirty_starting": _AGENT,
    "dirty_post_fork": _AGENT,
    "dirty_worker_init": _AGENT,
    "dirty_worker_exit": _AGENT,
}
"""Of gunicorn 26, docs/source/settings.rst, "Server Hooks"."""
