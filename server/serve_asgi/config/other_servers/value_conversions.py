"""How the values of other servers' options are written here: conversions, and values that are another option here.

Pure; used by `option_table` and `setting_table`.
"""

from __future__ import annotations

import re
from typing import Final

from serve_asgi.config.other_servers.counterpart import NOT_NEEDED, NOT_OFFERED, case


def seconds_of_milliseconds(text: str) -> str:
    """`30000` is `30`. Raises ValueError."""
    return f"{float(text) / 1000:.15g}"


def seconds_of_duration(text: str) -> str:
    """granian's durations: `90`, `1h30m`, `2d`. Raises ValueError."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return text
    parts = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    if parts is None or not text:
        raise ValueError(f"{text!r} is not a duration")
    days, hours, minutes, seconds = (int(part or 0) for part in parts.groups())
    return str(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def listen_address(text: str) -> str:
    """`0.0.0.0` is `0.0.0.0:8000` there."""
    address = text.removeprefix("tcp://")
    return address if address.startswith(("unix:", "fd://")) or re.search(r":\d+\Z", address) else f"{address}:8000"


def octal_text(text: str) -> str:
    """An octal mode with or without a leading zero. Raises ValueError."""
    return f"{int(text, 8):04o}"


def octal_mode(text: str) -> str:
    """Python's text of an integer is decimal (`18`), one that begins with a zero octal (`022`). Raises ValueError."""
    return f"{int(text, 8) if text.startswith('0') else int(text):04o}"


def log_level(text: str) -> str:
    """`WARNING`, `warn`. Raises ValueError."""
    level = text.lower()
    return {"critical": "error", "fatal": "error", "trace": "debug", "notset": "debug", "warn": "warning"}.get(
        level, level
    )


def forwarded_headers(text: str) -> str:
    """h2corn's `for,proto`, as our header names."""
    return ",".join("forwarded" if each == "forwarded" else f"x-forwarded-{each}" for each in re.split(r"[\s,]+", text))


def first_directory(text: str) -> str:
    """The first of several, with commas between them."""
    return text.split(",")[0]


LEVELS: Final = {
    "critical": case("--log-level error"),
    "fatal": case("--log-level error"),
    "trace": case("--log-level debug"),
    "notset": case("--log-level debug"),
    "warn": case("--log-level warning"),
}
CLIENT_CERTIFICATES: Final = {
    **dict.fromkeys(("0", "none", "cert_none", "verifymode.cert_none"), case("--tls-client-auth none")),
    **dict.fromkeys(("1", "optional", "cert_optional", "verifymode.cert_optional"), case("--tls-client-auth optional")),
    **dict.fromkeys(("2", "required", "cert_required", "verifymode.cert_required"), case("--tls-client-auth required")),
}
BINDS: Final = {f"fd://{number}": case(f"--fd {number}") for number in range(3, 33)}
LOGS_TO_STDERR: Final = {"-": case(why=NOT_NEEDED + "it goes to stderr")}
ACCESS_LOG_TARGETS: Final = {
    "-": case("--access-log", "it goes to stdout"),
    "none": case("--no-access-log"),
}
WSGI_WORKER: Final = case("--interface wsgi", "it runs in threads: --wsgi-threads; an ASGI application needs nothing")
ASGI_WORKER: Final = case(why=NOT_NEEDED + "every worker runs ASGI; the event loop is chosen with --loop")
WORKER_CLASSES: Final = {
    **dict.fromkeys(("sync", "gthread", "gevent", "eventlet"), WSGI_WORKER),
    **dict.fromkeys(("asgi", "uvicorn.workers.uvicornworker", "uvicorn_worker.uvicornworker"), ASGI_WORKER),
    **dict.fromkeys(
        ("uvicorn.workers.uvicornh11worker", "uvicorn_worker.uvicornh11worker"), case("--http h11 --loop asyncio")
    ),
    "asyncio": case("--loop asyncio"),
    "uvloop": case("--loop uvloop"),
    "trio": case(why=NOT_OFFERED + "the event loop is asyncio's or uvloop; an application on anyio runs on both"),
    "tornado": case(why=NOT_OFFERED + "serve runs ASGI and WSGI applications"),
}
"""By the value in small letters."""
LOOPS: Final = {
    "zuvloop": case("--loop uvloop"),
    "rloop": case("--loop auto"),
    "winloop": case("--loop auto"),
}
PARSERS: Final = {
    "zttp": case("--http auto"),
    "fast": case("--http httptools"),
    "python": case("--http h11"),
    "1": case("--http2 off"),
    "2": case("--http2 on", "HTTP/1.1 is spoken as well"),
}
INTERFACES: Final = {
    "asginl": case("--interface asgi --lifespan off"),
    "rsgi": case(why=NOT_OFFERED + "most frameworks speak ASGI as well: --interface asgi"),
}
PROXY_PROTOCOL: Final = {
    **dict.fromkeys(("off", "false"), case("--no-proxy-protocol")),
    **dict.fromkeys(("v1", "v2", "auto", "on", "true"), case("--proxy-protocol", "it takes both versions")),
}
