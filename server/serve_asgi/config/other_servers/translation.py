"""Writes a serve.toml of what another server was told: lines for what has a counterpart, comments for the rest.

Pure: it is given the settings, whichever file or command line they came from (`serve_asgi.cli.import_config`), and
returns text. A value that this server would refuse becomes a comment with the reason.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from serve_asgi.config.options import key, kind, options, several
from serve_asgi.config.other_servers.counterpart import FALSE, Counterpart, Written, as_toml
from serve_asgi.config.other_servers.lookup import settings
from serve_asgi.config.other_servers.setting_table import GUNICORN_HOOKS
from serve_asgi.config.values import Source, SourcePriority, from_toml
from serve_asgi.errors import UsageError

APPLICATIONS: Final = {"gunicorn": ("wsgi_app",), "hypercorn": ("application_path",), "h2corn": ("target",)}
"""The settings that name the application."""
ATTRIBUTES: Final = {"gunicorn": "application", "granian": "app", "hypercorn": "app"}
"""What is taken of a module that is named alone."""
DIFFERENT_DEFAULTS: Final = {
    "uvicorn": "keep-alive is 75 s (there 5 s)",
    "gunicorn": "keep-alive is 75 s (there 2 s); the access log is on (there off: access-log = false)",
    "granian": "the access log is on (there off: access-log = false)",
    "hypercorn": "keep-alive is 75 s (there 5 s), graceful-timeout 30 s (there 3 s); the access log is on (there off: "
    "access-log = false)",
    "h2corn": "keep-alive is 75 s (there 120 s)",
}
GUNICORN_TIMEOUT: Final = "30"
"""Of gunicorn's --timeout, where nothing is written."""
SYNC_WORKERS: Final = "gunicorn's worker is sync if -k says nothing, for WSGI: leave this line out for ASGI"


@dataclasses.dataclass(frozen=True, slots=True)
class Told:
    """One setting of the other server."""

    name: str
    """As in its file: `timeout`."""
    values: tuple[str | None, ...]
    """As its command line would have them; None for a flag, and for what is no text."""
    note: str = ""
    """More about where the value came from."""
    row: Counterpart | None = None
    """Where the name alone does not tell it: `--no-log` is another row than `--log`."""


@dataclasses.dataclass(slots=True)
class _Translation:
    """The parts of the file that is being written."""

    found: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    """Values in TOML by field name."""
    notes: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    by_hand: list[str] = dataclasses.field(default_factory=list)
    needless: list[str] = dataclasses.field(default_factory=list)
    hooks: list[str] = dataclasses.field(default_factory=list)

    def take(self, name: str, text: str | bool, note: str) -> None:
        """One value of an option of ours; a comment if it is refused, or the option has one already."""
        written = as_toml(name, text)
        try:
            from_toml(name, options()[name][1], _plain(name, text), Source(SourcePriority.FILE, key(name)))
        except UsageError as error:
            self.by_hand.append(f"{key(name)} = {written}  # {note}{'; ' if note else ''}refused: {error}")
            return
        held = self.found.setdefault(name, [])
        if written in held:
            return
        if held and not several(name):
            self.by_hand.append(f"{key(name)} = {held.pop()}  # a later one counts")
        held.append(written)
        self.notes.setdefault(name, []).append(note)


def _plain(name: str, text: str | bool) -> object:
    """A value as TOML parses it."""
    wanted = kind(name)
    if isinstance(text, bool) or wanted is str:
        return text
    try:
        return wanted(text)
    except ValueError:
        return text


def serve_toml(server: str, told: Sequence[Told], head: str) -> tuple[str, int]:
    """The text of the file, which begins with the comment `head`, and how many settings it has only as comments."""
    made = _Translation()
    app = ""
    rows = settings(server)
    for each in told:
        if each.name in (*APPLICATIONS.get(server, ()), "app"):
            app = each.values[0] or ""
        elif server == "gunicorn" and each.name in GUNICORN_HOOKS:
            made.hooks.append(each.name)
        elif (row := each.row or rows.get(each.name)) is not None:
            for value in each.values:
                _translate(made, row, each, value)
    _application(made, server, app)
    if server == "gunicorn" and "worker_class" not in {each.name for each in told} and "interface" not in made.found:
        made.take("interface", "wsgi", SYNC_WORKERS)
    if server == "gunicorn" and made.found.get("interface") == ['"wsgi"']:
        _concurrency_of_gunicorn(made, told)
    if "bind" in made.found:  # it excludes the two others; elsewhere a socket wins over them
        for name in ("host", "port"):
            if values := made.found.pop(name, None):
                made.by_hand.append(f"{key(name)} = {values[0]}  # bind takes its place")
    comments = len(made.by_hand) + len(made.hooks)
    return "\n".join(_lines(made, server, head)) + "\n", comments


def _translate(made: _Translation, row: Counterpart, told: Told, value: str | None) -> None:
    case = row.of(value)
    pairs: Written | None = row.written("true" if value is None and row.is_flag else value)
    notes = "; ".join(filter(None, (told.name, told.note, case.why)))
    if pairs is None:
        shown = " and ".join(f"{key(name)} = {as_toml(name, text)}" for name, text in row.shown(None) if text)
        made.by_hand.append(f"{shown}  # {notes}")
    elif pairs:
        for name, text in pairs:
            made.take(name, text, notes.removeprefix(told.name).removeprefix("; ") if name == told.name else notes)
    elif not (row.is_flag and (value or "").lower() in FALSE):
        reason = f"{told.name} is {case.why}" if case.why else ""
        if reason and reason not in made.needless:
            made.needless.append(reason)


def _concurrency_of_gunicorn(made: _Translation, told: Sequence[Told]) -> None:
    """As many requests at once as there; and its timeout, which ends a request as well in a worker without threads."""
    said = {each.name: each.values[-1] for each in told if each.values}
    kind_of_worker = (said.get("worker_class") or "sync").lower()
    if kind_of_worker not in ("sync", "gthread"):
        return
    if "wsgi_threads" not in made.found:
        made.take("wsgi_threads", "1", f"gunicorn's {kind_of_worker} worker: one request at a time")
    if kind_of_worker == "sync" and made.found["wsgi_threads"] == ["1"]:
        timeout = said.get("timeout", GUNICORN_TIMEOUT)
        text = "timeout also ended a request that took longer (a sync worker's)"
        if re.fullmatch(r"0*[1-9]\d*", timeout or ""):
            made.by_hand.append(f"request-timeout = {timeout}  # {text}")


def _application(made: _Translation, server: str, written: str) -> None:
    """Add `app`, and what else its notation means to that server."""
    kind_of, _, rest = written.partition(":")
    if server == "hypercorn" and kind_of in ("asgi", "wsgi") and ":" in rest:
        written = rest
        made.take("interface", kind_of, "of the application's name")
    call = re.fullmatch(r"([\w.]+:[\w.]+)\(\)", written)
    if call is not None:
        written = call[1]
        made.take("factory", True, "the application was written as a call")
    if written and ":" not in written and server in ATTRIBUTES:
        written = f"{written}:{ATTRIBUTES[server]}"
    if written:
        made.found = {"app": ['"' + written.replace('"', "") + '"'], **made.found}


def _lines(made: _Translation, server: str, head: str) -> Iterator[str]:
    yield from (f"# {line}" for line in head.splitlines())
    yield ""
    if "app" not in made.found:
        yield '# app = "module:attribute"  # the application, unless the command line names it'
    for name, values in made.found.items():
        note = _joined(made.notes.get(name, ()))
        said = f"[{', '.join(values)}]" if name != "app" and several(name) else values[0]
        yield f"{key(name)} = {said}" + (f"  # {note}" if note else "")
    for title, comments in (
        ("To be completed by hand:", made.by_hand),
        ("What needs no line, and what has no counterpart:", [_in_file(each) for each in made.needless]),
    ):
        if comments:
            yield f"\n# {title}"
            yield from ("# " + _in_file(each).replace("\n", " ") for each in comments)
    if made.hooks:
        yield "\n# Hooks are commands or MODULE:CALLABLE here and get the event (docs/guides/hooks.md):"
        yield from _hooks(made.hooks)
    yield f"\n# Where nothing is written the defaults hold: {DIFFERENT_DEFAULTS[server]}."


def _hooks(names: Sequence[str]) -> Iterator[str]:
    events: Mapping[str, str] = {name: GUNICORN_HOOKS[name].event for name in names}
    for name in names:
        if not events[name]:
            yield f"# {name}: its code belongs to {GUNICORN_HOOKS[name].where}"
    if any(events.values()):
        yield "# [hooks]"
    for name in names:
        if events[name]:
            where = GUNICORN_HOOKS[name].where
            yield f'# {events[name]} = "MODULE:CALLABLE"  # {name}' + (f"; {where}" if where else "")


def _joined(notes: Sequence[str]) -> str:
    return _in_file("; ".join(dict.fromkeys(notes)))


def _in_file(text: str) -> str:
    return re.sub(r"(?<![\w-])--(?=[a-z])", "", text)
