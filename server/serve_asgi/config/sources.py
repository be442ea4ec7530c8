"""Builds a `Config` from the command line, the environment and a file, at the start and again at a reload.

It owns the precedence: command line, then SERVE_<NAME>, then the variables that platforms set (PORT, WEB_CONCURRENCY),
then the configuration file, then the default; and it remembers where each value came from. It must not know click.
Single values are read by `serve_asgi.config.values`, the file by `serve_asgi.config.config_file`;
`serve_asgi.config.validation` refuses invalid combinations.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Final

from serve_asgi.config import config_file
from serve_asgi.config.options import (
    SECRETS,
    Config,
    Option,
    environment_names,
    flag,
    flag_off,
    key,
    kind,
    options,
    several,
)
from serve_asgi.config.release import logical_directory
from serve_asgi.config.state_location import shown
from serve_asgi.config.validation import Found, check, check_application, settle_addresses
from serve_asgi.config.values import FoundValue, Given, Source, SourcePriority, from_given, from_toml, from_variable
from serve_asgi.errors import UsageError

__all__ = ["Given", "Settings", "Source", "SourcePriority", "build", "kind", "read", "several"]

NO_APPLICATION: Final = "which application? Write it as module:attribute, for example: serve app:asgi --workers 4"
DEFAULT: Final = Source(SourcePriority.DEFAULT, "default")
HIDDEN: Final = "***"
"""What is shown of a password."""
RELOAD_DEFAULTS: Final = {
    "graceful_timeout": 1.0,
    "shutdown_timeout": 5.0,
    "max_generations": 16,
    "worker_timeout": 0.0,
}
"""Defaults of `--reload`, by field name: streams that browsers hold open end soon, and none of them delays the reload
after a change."""


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """A configuration, where each of its values came from, and what is needed to read it again."""

    config: Config
    sources: Mapping[str, Source]
    """By field name, for all fields of `Config`."""
    file: str
    """Path of the configuration file; "" if there is none."""
    directory: str
    """The working directory by the name under which it was entered: relative paths start there."""
    _app: str = dataclasses.field(repr=False)
    _given: Mapping[str, Given] = dataclasses.field(repr=False)
    _environ: Mapping[str, str] = dataclasses.field(repr=False)

    def again(self) -> Settings:
        """Read the file again, together with the same command line and environment.

        It reads files, which may block. Raises UsageError, a sentence, and changes nothing: also if the file is gone,
        since that is more often an accident than intended.
        """
        fresh = _read(self._app, self._given, self._environ, self.directory)
        if self.file and not fresh.file:
            raise UsageError(f"the configuration file {self.file} is gone: put it back, or restart the server without")
        return fresh

    def to_state(self) -> dict[str, Any]:
        """All of it, JSON-compatible, for a program that replaces this one."""
        return {
            "config": self.config.to_json(secrets=True),
            "sources": {name: dataclasses.astuple(source) for name, source in self.sources.items()},
            "file": self.file,
            "directory": self.directory,
            "app": self._app,
            "given": dict(self._given),
            "environ": dict(self._environ),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Settings:
        """The reverse of `to_state`; ignores options of another version that this one does not know."""
        names = {field.name for field in dataclasses.fields(Config)}
        sources = {
            name: Source(SourcePriority(tier), *rest)
            for name, (tier, *rest) in state["sources"].items()
            if name in names
        }
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in state["given"].items()}
        return cls(
            config=Config.from_json(state["config"]),
            sources=dict.fromkeys(names, DEFAULT) | sources,
            file=state["file"],
            directory=state["directory"],
            _app=state["app"],
            _given={name: value for name, value in given.items() if name in names},
            _environ=state["environ"],
        )

    def changed(self, other: Settings) -> list[str]:
        """The fields whose values differ between this and `other`, in the order of their definition."""
        names = (field.name for field in dataclasses.fields(Config))
        return [name for name in names if getattr(self.config, name) != getattr(other.config, name)]

    def changes_to(self, other: Settings) -> list[str]:
        """What differs in `other`, each as an option with its value there, without passwords."""
        return [f"{flag(name)} {written(other.config, name)}" for name in self.changed(other)]

    def not_live(self, other: Settings) -> str:
        """Why `other` cannot replace this one while the server runs; "" if it can."""
        fixed = [name for name in self.changed(other) if name in options() and not options()[name][1].live]
        if not fixed:
            return ""
        told = " and ".join(self._change(other, name) for name in fixed)
        back = "it" if len(fixed) == 1 else "them"
        return f"{told}, which a reload cannot do: put {back} back, or restart the server"

    def _change(self, other: Settings, name: str) -> str:
        now, then = self.sources[name], other.sources[name]
        if then.tier is SourcePriority.FILE:
            where = str(then)
        elif now.tier is SourcePriority.FILE:  # the line is gone, or another source now wins
            where = f"{now.path}: {now.name}"
        else:
            where = key(name)
        return f"{where} would change from {written(self.config, name)} to {written(other.config, name)}"

    def told(self, resolved: Mapping[str, str] | None = None) -> dict[str, Any]:
        """What `serve config` shows, JSON-compatible; `resolved` are values resolved by the listener, by field name.

        `source` is "command line", "environment", "file" or "default", `place` names the option, the variable or the
        line of the file, `resolved` what the value means on this machine, where that is known.
        """
        return {
            "file": self.file,
            "directory": self.directory,
            "options": [self._told(name, (resolved or {}).get(name)) for name in ("app", *options())],
        }

    def _told(self, name: str, resolved: str | None) -> dict[str, Any]:
        source = self.sources[name]
        defined = options()[name][1] if name in options() else None
        row: dict[str, Any] = {
            "name": key(name),
            "value": _plain(_public(self.config, name)),
            "default": _plain(getattr(_DEFAULTS, name)),
            "source": _TIERS[source.tier],
            "place": "" if source == DEFAULT else source.place,
            "live": defined is None or defined.live,
        }
        if defined is not None and defined.shown_default and row["value"] == row["default"]:
            row["meaning"] = defined.shown_default
        if resolved is not None:
            row["resolved"] = resolved
        return row


_DEFAULTS: Final = Config()
_TIERS: Final = {
    SourcePriority.COMMAND_LINE: "command line",
    SourcePriority.ENVIRONMENT: "environment",
    SourcePriority.PLATFORM: "environment",
    SourcePriority.FILE: "file",
    SourcePriority.DEFAULT: "default",
}


def read(app: str, given: Mapping[str, Given], environ: Mapping[str, str]) -> Settings:
    """The settings of one server; `given` holds, by field name, what the command line says, `app` the application.

    Raises UsageError, which names the option, the variable, or the file, line and key at fault.
    """
    return _read(app, dict(given), dict(environ), logical_directory())


def build(app: str, given: Mapping[str, Given], environ: Mapping[str, str]) -> Config:
    """The configuration alone; see `read`."""
    return read(app, given, environ).config


PLACES: Final = ("chdir", "app_dir")
"""The options that say where the application is looked for, in their order."""


def _read(app: str, given: Mapping[str, Given], environ: Mapping[str, str], directory: str) -> Settings:
    found: Found = {}
    for name, (_, defined) in options().items():
        value = _from_near(name, defined, given, environ)
        if value is not None:
            found[name] = value
    file = config_file.load(found["config"].value if "config" in found else "", directory)
    for name, entry in file.entries.items() if file is not None else ():
        if name != config_file.APP:  # also those that are not used: a mistake is reported before it matters
            from_file = from_toml(name, options()[name][1], entry.value, entry.source)
            found.setdefault(name, from_file)
    if "reload" in found and found["reload"].value:
        for name, number in RELOAD_DEFAULTS.items():
            found.setdefault(name, FoundValue(number, Source(SourcePriority.DEFAULT, "--reload")))
    settle_addresses(found, environ)
    for name in ("log_file", "access_log_file"):
        if name in found and found[name].value == "-":  # as other servers write stderr and stdout, which they are here
            found[name] = dataclasses.replace(found[name], value="")
    check(found, directory)
    if "root_path" in found:
        found["root_path"] = dataclasses.replace(found["root_path"], value=found["root_path"].value.rstrip("/"))
    if "log_config" in found and found["log_config"].value:  # workers read it, wherever they run
        path = os.path.join(directory, found["log_config"].value)
        found["log_config"] = dataclasses.replace(found["log_config"], value=path)
    found["app"] = _application(app, environ, file)
    check_application(found["app"], os.path.join(directory, *(found[n].value for n in PLACES if n in found)))
    names = [field.name for field in dataclasses.fields(Config)]
    return Settings(
        config=Config(**{name: value.value for name, value in found.items()}),
        sources={name: found[name].source if name in found else DEFAULT for name in names},
        file=file.path if file is not None else "",
        directory=directory,
        _app=app,
        _given=given,
        _environ=environ,
    )


def _from_near(name: str, defined: Option, given: Mapping[str, Given], environ: Mapping[str, str]) -> FoundValue | None:
    """The option's value from the command line or the environment."""
    if name in given:
        said = flag_off(name) if given[name] is False else flag(name)
        return from_given(name, defined, given[name], Source(SourcePriority.COMMAND_LINE, said))
    for number, variable in enumerate(environment_names(name, defined)):
        text = environ.get(variable, "").strip()
        # Kubernetes sets SERVE_PORT=tcp://… in every pod beside a service that is called "serve".
        if text and not (variable == "SERVE_PORT" and text.startswith("tcp://")):
            source = Source(SourcePriority.PLATFORM if number else SourcePriority.ENVIRONMENT, variable)
            return from_variable(name, defined, text, source)
    return None


def _application(app: str, environ: Mapping[str, str], file: config_file.ConfigFile | None) -> FoundValue:
    if app:
        value = FoundValue(app, Source(SourcePriority.COMMAND_LINE, "APP"))
    elif variable := environ.get("SERVE_APP", "").strip():
        value = FoundValue(variable, Source(SourcePriority.ENVIRONMENT, "SERVE_APP"))
    elif file is not None and config_file.APP in file.entries:
        entry = file.entries[config_file.APP]
        value = FoundValue(entry.value, entry.source)
    else:
        raise UsageError(NO_APPLICATION)
    return value


def written(config: Config, name: str) -> str:
    """A value as written in a configuration file, without passwords; "nothing" for an empty one."""
    value = _plain(_public(config, name))
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(f'"{item}"' if isinstance(item, str) else str(item) for item in value) + "]"
    if value in ("", None):
        return "nothing"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _public(config: Config, name: str) -> object:
    """A value as it may be shown."""
    value = getattr(config, name)
    if name in SECRETS:
        return HIDDEN if value else ""
    return shown(value) if name == "state" else value


def _plain(value: object) -> Any:
    """A value as a JSON type."""
    return list(value) if isinstance(value, tuple) else value
