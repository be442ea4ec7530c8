"""The file of `--log-config`: a configuration of `logging`, as its `dictConfig` takes it, in TOML, YAML or JSON.

It owns what is read from such a file, and the names that files written for other servers have in it: their loggers are
taken for ours, their formatters for one that knows their fields. Applied in workers and the agent alone, where the
application's code runs: the listener never imports what a file may name.
"""

from __future__ import annotations

import json
import logging
import logging.config
import tomllib
from pathlib import Path
from typing import Any, Final

from serve_asgi.errors import UsageError

OUR_NAMES: Final = {
    "uvicorn": "serve",
    "uvicorn.error": "serve",
    "uvicorn.asgi": "serve",
    "gunicorn": "serve",
    "gunicorn.error": "serve",
    "hypercorn": "serve",
    "hypercorn.error": "serve",
    "_granian": "serve",
}
"""The loggers of other servers that have a counterpart here, by their names."""
ACCESS_NAMES: Final = frozenset({"uvicorn.access", "gunicorn.access", "hypercorn.access", "granian.access"})
"""Loggers of access logs: ours is not written through `logging` (`--access-log`, `--access-log-format`)."""
_FORMATTERS: Final = ("uvicorn.logging.", "gunicorn.glogging.")


class LevelPrefixFormatter(logging.Formatter):
    """Stands for uvicorn's formatters: it knows `%(levelprefix)s`. Never coloured."""

    def __init__(self, fmt: str | None = None, datefmt: str | None = None, style: Any = "%", **_: object) -> None:
        super().__init__(fmt, datefmt, style)

    def formatMessage(self, record: logging.LogRecord) -> str:
        """As in `logging.Formatter`."""
        record.__dict__.setdefault("levelprefix", f"{record.levelname}:".ljust(9))
        return super().formatMessage(record)


def read(path: str) -> dict[str, Any]:
    """The configuration in the file. Raises UsageError, a sentence, if it cannot be read or is none."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the file {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    suffix = Path(path).suffix.lower()
    try:
        if suffix == ".toml":
            found: Any = tomllib.loads(text)
        elif suffix == ".json":
            found = json.loads(text)
        elif suffix in (".yaml", ".yml"):
            found = _yaml(path, text)
        else:
            raise UsageError(
                f"the file {path} has no name that says what it is: TOML (.toml), YAML (.yaml) or JSON (.json), with "
                "what logging.config.dictConfig takes; the older .ini form is not read"
            )
    except ValueError as error:
        raise UsageError(f"the file {path} is no {suffix[1:].upper()}: {error}") from None
    if not isinstance(found, dict):
        raise UsageError(f"the file {path} does not hold a table of what logging.config.dictConfig takes")
    return {"version": 1, **found}


def _yaml(path: str, text: str) -> Any:
    try:
        import yaml
    except ImportError:
        raise UsageError(
            f"the file {path} is YAML, which needs the package PyYAML: install it, or write the file as TOML or JSON"
        ) from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(error) from None


def translated(config: dict[str, Any]) -> dict[str, Any]:
    """The same, with our names in place of other servers'; a name of ours that is there already is kept."""
    made = dict(config)
    loggers = config.get("loggers")
    if isinstance(loggers, dict):
        kept = {name: each for name, each in loggers.items() if name not in OUR_NAMES and name not in ACCESS_NAMES}
        for name in sorted(OUR_NAMES.keys() & loggers.keys(), key=len):  # "uvicorn.error" says more than "uvicorn"
            if OUR_NAMES[name] not in loggers:
                ours = {**kept.get(OUR_NAMES[name], {}), **loggers[name]}
                kept[OUR_NAMES[name]] = {**ours, "propagate": loggers[name].get("propagate", False)}
        made["loggers"] = kept
    formatters = config.get("formatters")
    if isinstance(formatters, dict):
        made["formatters"] = {name: _formatter(each) for name, each in formatters.items()}
    return made


def _formatter(formatter: Any) -> Any:
    if not isinstance(formatter, dict):
        return formatter
    for key in ("()", "class"):
        if str(formatter.get(key, "")).startswith(_FORMATTERS):
            given = {name: formatter[name] for name in ("fmt", "format", "datefmt", "style") if name in formatter}
            if "format" in given:
                given["fmt"] = given.pop("format")
            fields = ("client_addr", "request_line", "status_code")
            if any(f"%({field})" in str(given.get("fmt", "")) for field in fields):  # of its access log
                given["fmt"] = "%(levelprefix)s %(message)s"
            return {"()": LevelPrefixFormatter, **given}
    return formatter


def apply(path: str) -> None:
    """Configure `logging` as the file says. Raises UsageError if that is not possible."""
    config = translated(read(path))
    try:
        logging.config.dictConfig(config)
    except Exception as error:  # whatever a class that it names raises
        cause = f" ({error.__cause__})" if error.__cause__ is not None else ""
        raise UsageError(f"the file {path} is no configuration of logging: {error}{cause}") from None
