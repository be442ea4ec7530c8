"""One option of another server, and what is written here instead: converting its value, writing it down.

The grammar of a row; the rows are in `option_table` and `setting_table`. Pure. It knows names and texts of values;
whether a value is right is decided where values are read (`serve_asgi.config.values`).
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any, Final

from serve_asgi.config.options import ENV_PREFIX, SECRETS, flag, flag_off, key, kind, options

Written = list[tuple[str, str | bool]]
"""Options of ours by field name, each with the text of its value or the state of a flag."""
TRUE: Final = frozenset({"1", "true", "yes", "on", "enabled"})
FALSE: Final = frozenset({"0", "false", "no", "off", "disabled"})
NOT_NEEDED: Final = "not needed: "
NOT_OFFERED: Final = "not offered: "
"""What `why` begins with where there is nothing to write instead."""


@dataclasses.dataclass(frozen=True, slots=True)
class Counterpart:
    """One option of other servers (or one value of it, in `cases`), and what is written here instead."""

    servers: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    """Its spellings on the command line: `--timeout`, `-t`."""
    settings: tuple[str, ...] = ()
    """Its names in a configuration file and in variables: `timeout`."""
    ours: str = ""
    """What to write on the command line, `{}` being the value: `--bind unix:{}`; "" if nothing."""
    why: str = ""
    """What is different. Where `ours` is "" it begins with NOT_NEEDED or NOT_OFFERED."""
    convert: Callable[[str], str] | None = None
    """Makes our value of theirs; raises ValueError where it cannot."""
    cases: Mapping[str, Counterpart] = dataclasses.field(default_factory=dict)
    """Values that are something else here."""
    is_flag: bool = False
    """Whether it takes no value on the command line."""
    by_hand: bool = False
    """Whether `ours` names the option only, since the value cannot be made from theirs."""

    def of(self, value: str | None) -> Counterpart:
        """The row for this value: one of the `cases`, or itself."""
        return self if value is None else self.cases.get(value, self.cases.get(value.lower(), self))

    def written(self, value: str | None) -> Written | None:
        """Our options with their values; None if a value cannot be made of this one."""
        row = self.of(value)
        if value is not None and row is self:
            if self.is_flag and value.lower() in FALSE:
                return _reversed(self.ours)
            if "{}" not in self.ours and value.lower() in FALSE and _boolean(self.ours):
                return _reversed(self.ours)
        if row.by_hand or ("{}" in row.ours and value is None):
            return None
        try:
            text = row.convert(value) if row.convert is not None and value is not None else value or ""
        except ValueError:
            return None
        return [(name, t.replace("{}", text) if isinstance(t, str) else t) for name, t in parse(row.ours)]

    def shown(self, value: str | None) -> Written:
        """The same to be read: a placeholder where the value is not known or is a secret."""
        made = self.written(value)
        if made is not None and all(_is_number(text) for name, text in made if kind(name) in (int, float)):
            return [(name, HIDDEN if name in SECRETS and text else text) for name, text in made]
        row = self.of(value)
        return [
            (name, t.replace("{}", _placeholder(name, t)) if isinstance(t, str) else t) for name, t in parse(row.ours)
        ]


HIDDEN: Final = "PASSWORD"


def _is_number(text: str | bool) -> bool:
    return isinstance(text, str) and re.fullmatch(r"[+-]?\d+(\.\d+)?", text) is not None


def _placeholder(name: str, template: str) -> str:
    if template != "{}":
        return "PATH"
    defined = options()[name][1]
    return defined.unit or ("NUMBER" if kind(name) in (int, float) else "NAME")


def parse(ours: str) -> Written:
    """The options of a template by field name, each with the template of its value, or the state of a flag.

    Raises KeyError if one of them is no option of this server.
    """
    found: Written = []
    for word in shlex.split(ours):
        if not word.startswith("--"):
            name, _ = found.pop()
            found.append((name, word))
            continue
        name = word[2:].replace("-", "_")
        off = name not in options() and name.startswith("no_")
        name = name.removeprefix("no_") if off else name
        alone = options()[name][1].alone
        found.append((name, alone if alone and not off else not off))
    return found


def _boolean(ours: str) -> bool:
    return bool(ours) and all(isinstance(text, bool) or options()[name][1].alone for name, text in parse(ours))


def _reversed(ours: str) -> Written:
    """A flag that is false there: turns off what is on here, else says nothing."""
    if not _boolean(ours):
        return []
    found: Written = []
    for name, text in parse(ours):
        if isinstance(text, bool):
            if options()[name][0].default is text:
                found.append((name, not text))
        else:
            found.append((name, options()[name][1].choices[0]))
    return found


# How it is written


def on_command_line(pairs: Written) -> str:
    """`--bind unix:/run/app.sock --no-access-log`."""
    return " ".join(
        (flag(name) if text else flag_off(name))
        if isinstance(text, bool)
        else flag(name)
        if options()[name][1].alone == text
        else f"{flag(name)} {text if text.isupper() else shlex.quote(text)}"
        for name, text in pairs
    )


def in_file(pairs: Written) -> str:
    """`bind = "unix:/run/app.sock" and access-log = false`."""
    return " and ".join(f"{key(name)} = {as_toml(name, text)}" for name, text in pairs)


def in_environment(pairs: Written) -> str:
    """`SERVE_BIND=unix:/run/app.sock SERVE_ACCESS_LOG=0`."""
    return " ".join(
        f"{ENV_PREFIX}{name.upper()}={int(text) if isinstance(text, bool) else shlex.quote(text)}"
        for name, text in pairs
    )


def as_toml(name: str, text: str | bool) -> str:
    """A value in TOML, by the type of the option."""
    if isinstance(text, bool):
        return "true" if text else "false"
    wanted = kind(name)
    if wanted is bool and text.lower() in TRUE | FALSE:
        return "true" if text.lower() in TRUE else "false"
    if wanted in (int, float) and re.fullmatch(r"[+-]?\d+(\.\d+)?", text):
        return text
    return '"' + text.translate(_ESCAPED) + '"'


_ESCAPED: Final = {
    **{code: f"\\u{code:04x}" for code in (*range(0x20), 0x7F)},
    ord("\\"): "\\\\",
    ord('"'): '\\"',
    ord("\n"): "\\n",
    ord("\t"): "\\t",
}


def row(servers: str, names: str, ours: str = "", why: str = "", *, also: str = "", **more: Any) -> Counterpart:
    """A row; `also` are further names of the setting in files, the others are made from the long options."""
    spelled = tuple(names.split())
    made = tuple(name[2:].replace("-", "_") for name in spelled if name.startswith("--"))
    return Counterpart(tuple(servers.split()), spelled, (*made, *also.split()), ours, why, **more)


def case(ours: str = "", why: str = "", **more: Any) -> Counterpart:
    return Counterpart(ours=ours, why=why, **more)
