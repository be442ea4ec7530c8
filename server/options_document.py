"""Writes docs/options.md from the definitions in `server.config`.

Run it as `python -m server.options_document > docs/options.md`.
"""

from __future__ import annotations

import sys

from server.cli import default_text, metavar
from server.config import GROUPS, Option, environment_names, flag, flag_off, options
from server.settings import kind, several

HEAD = """# Options

Made by `python -m server.options_document` from `server/config.py`; change them there.

`serve APP [OPTIONS]`, where APP is `module:attribute`. Each option may come from the command line, from an
environment variable or from its default; the first that is there wins. A variable that holds several values separates
them by spaces or commas.
"""


def document() -> str:
    """The whole of docs/options.md."""
    parts = [HEAD]
    for group in GROUPS:
        rows = [_row(name, defined) for name, (_, defined) in options().items() if defined.group == group]
        head = "| option | meaning | default | environment |\n| --- | --- | --- | --- |\n"
        parts.append(f"## {group}\n\n{head}" + "\n".join(rows))
    return "\n".join([parts[0], "\n\n".join(parts[1:])]) + "\n"


def _row(name: str, defined: Option) -> str:
    if kind(name) is bool:
        written = f"`{flag(name)}`, `{flag_off(name, defined)}`"
    else:
        short = f"`{defined.short}`, " if defined.short else ""
        written = f"{short}`{flag(name)} {metavar(name, defined)}`"
    variables = ", ".join(f"`{variable}`" for variable in environment_names(name, defined))
    default = default_text(name) or ("off" if kind(name) is bool else "")
    cells = (written + (", repeatable" if several(name) else ""), defined.help, default, variables)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    sys.stdout.write(document())
