"""Writes docs/reference/options.md from the definitions in `serve_asgi.config.options`.

Run it as `python -m serve_asgi.cli.options_page > docs/reference/options.md`.
"""

from __future__ import annotations

import sys

from serve_asgi.cli.main import default_text, metavar
from serve_asgi.config.options import GROUPS, Option, environment_names, flag, flag_off, key, kind, options, several

HEAD = """# Options

Made by `python -m serve_asgi.cli.options_page` from `server/serve_asgi/config/options.py`; change them there.

`serve APP [OPTIONS]`, where APP is `module:attribute`. Each option may come from the command line, from an
environment variable, from a [configuration file](../get-started/configuration.md) or from its default; the first
that is there wins. A variable that holds several values separates them by spaces or commas. APP itself may come from
`SERVE_APP` or, in the file, from `app = "module:attribute"`.

The last column says what a reload does about a value that has changed in the file: `yes`, it is in force once the new
generation serves; `restart`, the reload is refused and says so.
"""


def document() -> str:
    """The whole of docs/reference/options.md."""
    parts = [HEAD]
    for group in GROUPS:
        rows = [_row(name, defined) for name, (_, defined) in options().items() if defined.group == group]
        head = "| option | meaning | default | environment | file | reload |\n| --- | --- | --- | --- | --- | --- |\n"
        parts.append(f"## {group}\n\n{head}" + "\n".join(rows))
    return "\n".join([parts[0], "\n\n".join(parts[1:])]) + "\n"


def _row(name: str, defined: Option) -> str:
    if kind(name) is bool:
        written = f"`{flag(name)}`, `{flag_off(name)}`"
    else:
        short = f"`{defined.short}`, " if defined.short else ""
        written = f"{short}`{flag(name)} {metavar(name, defined)}`"
    variables = ", ".join(f"`{variable}`" for variable in environment_names(name, defined))
    default = default_text(name) or ("off" if kind(name) is bool else "")
    if several(name):
        written += ", repeatable"
    in_file = "" if name == "config" else f"`{key(name)} = {_example(name, defined)}`"
    cells = (written, defined.help, default, variables, in_file, "yes" if defined.live else "restart")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _example(name: str, defined: Option) -> str:
    """What a value looks like in TOML: the default, where that shows it."""
    default = options()[name][0].default
    if kind(name) is bool:
        return "true" if default else "false"
    if kind(name) in (int, float):
        return "[3]" if several(name) else f"{default or (8000 if name == 'port' else defined.minimum or 0):.15g}"
    if several(name) or defined.separated:
        return '["…"]'
    return f'"{default or "…"}"'


if __name__ == "__main__":
    sys.stdout.write(document())
