"""The options of other servers, read out of the packages that are installed.

`python -m tests.config.peer_options > tests/config/peer_options.json`, with a Python that has the optional group
`peers` of pyproject.toml; a server that is not installed is left out.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import sys
from typing import Any

import click

Names = dict[str, list[str]]
"""The spellings of each option on the command line, by the name of its setting; [] if a file alone may set it."""


def uvicorn() -> Names:
    return _of_click(importlib.import_module("uvicorn.main"))


def granian() -> Names:
    return _of_click(importlib.import_module("granian.cli"))


def gunicorn() -> Names:
    settings = importlib.import_module("gunicorn.config").KNOWN_SETTINGS
    return {setting.name: list(setting.cli or []) for setting in settings}


def hypercorn() -> Names:
    found = _of_argparse(importlib.import_module("hypercorn.__main__").main, [])
    config = vars(importlib.import_module("hypercorn.config").Config)
    plain = (str, int, float, list, type, type(None))  # and not its properties and methods
    in_file = [name for name, value in config.items() if not name.startswith("_") and isinstance(value, plain)]
    names = {dest.removesuffix("s") if dest.endswith("_binds") or dest == "binds" else dest: dest for dest in found}
    return {name: found[dest] for name, dest in names.items()} | {n: found.get(n, []) for n in in_file}


def h2corn() -> Names:
    main = importlib.import_module("h2corn.__main__").main
    arguments, sys.argv = sys.argv, ["h2corn"]
    try:
        return _of_argparse(main)
    finally:
        sys.argv = arguments


def _of_click(module: Any) -> Names:
    """The parameters of the command in this module."""
    commands = [each for each in vars(module).values() if isinstance(each, click.Command)]
    return {
        parameter.name or "": [*parameter.opts, *parameter.secondary_opts]
        for command in commands
        for parameter in command.params
        if isinstance(parameter, click.Option)
    }


def _of_argparse(main: Any, *arguments: Any) -> Names:
    """The options of the parser that `main` makes."""
    found: Names = {}

    def parse_args(parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        found.update({each.dest: list(each.option_strings) for each in parser._actions if each.option_strings})
        raise SystemExit

    original = argparse.ArgumentParser.parse_args
    argparse.ArgumentParser.parse_args = parse_args  # type: ignore[method-assign,assignment]
    try:
        main(*arguments)
    except SystemExit:
        pass
    finally:
        argparse.ArgumentParser.parse_args = original  # type: ignore[method-assign]
    return found


PEERS = {each.__name__: each for each in (uvicorn, gunicorn, granian, hypercorn, h2corn)}
OURS_AS_WELL = frozenset({"--help", "-h", "--version", "-v"})


def read(server: str) -> dict[str, Any]:
    """Version and options of one server. Raises ImportError where it is not installed."""
    names = PEERS[server]()
    return {
        "version": importlib.metadata.version(server),
        "options": {name: names[name] for name in sorted(names) if not OURS_AS_WELL & set(names[name])},
    }


def main() -> None:
    found = {}
    for server in PEERS:
        try:
            found[server] = read(server)
        except ImportError as error:
            print(f"{server} is left out: {error}", file=sys.stderr)
    json.dump(found, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
