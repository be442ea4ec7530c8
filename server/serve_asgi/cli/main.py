"""The command line: `serve APP …` runs a server, `serve reload|drain|status …` controls a running one.

It owns the syntax, the help and the exit statuses, and nothing else: options are defined in
`serve_asgi.config.options`, their values read by `serve_asgi.config.sources`, and the work is done by
`serve_asgi.listener` and `serve_asgi.cli.control_client`. Every invalid input ends as one line "serve: …" on stderr and
exit status 2, without a traceback.
"""

from __future__ import annotations

import difflib
import io
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final

import click

from serve_asgi import __version__, compiled_core
from serve_asgi.cli import MODULES, WITHOUT_SERVER, load
from serve_asgi.cli.command import CONTEXT, INTERRUPTED, WIDTH, harmless
from serve_asgi.config.application_name import holds, suggested
from serve_asgi.config.options import GROUPS, Option, flag, flag_off, options
from serve_asgi.config.other_servers.lookup import about_flag
from serve_asgi.config.sources import Given, kind, read, several
from serve_asgi.config.unknown_options import all_of_other_servers
from serve_asgi.errors import ServeError, UsageError
from serve_asgi.logs.nonblocking_sink import say

COMPLETE: Final = "_SERVE_COMPLETE"  # set by shells that ask for completions (click, "Shell Completion")
ON_LINUX: Final = (
    "`serve {}` controls a server with workers, which needs Linux: deploy there, and develop here with `serve APP "
    "--reload`"
)
LIKENESS: Final = 0.75
"""How alike a word and a command must be for a slip of the keyboard (difflib): "drian" and "drain", not "main"."""
UNBROKEN: Final = "\u00a0"  # holds a note such as [default: 5] on one line; shown as a space


class RunCommand(click.Command):
    """`serve APP`: its help shows the options in their groups."""

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage("serve", "APP [OPTIONS]")
        formatter.write_usage("serve", "COMMAND [OPTIONS]", prefix="       ")

    def get_help(self, ctx: click.Context) -> str:
        return super().get_help(ctx).replace(UNBROKEN, " ")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands for a running server"):
            formatter.write_dl(_command_rows(name for name in MODULES if name not in WITHOUT_SERVER))
        with formatter.section("Commands without one"):
            formatter.write_dl(_command_rows(WITHOUT_SERVER))
        for group in GROUPS:
            rows = [_help_row(name, defined) for name, (_, defined) in options().items() if defined.group == group]
            with formatter.section(group):
                formatter.write_dl(rows, col_max=34)
        with formatter.section("Other"):
            formatter.write_dl([("--version", "Show the version."), ("-h, --help", "Show this text.")], col_max=34)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_paragraph()
        formatter.write_text(
            "Each option can be set by an environment variable as well: SERVE_ and its name, as in "
            "SERVE_BIND_TIMEOUT=10 (several values of SERVE_BIND are separated by spaces), or in serve.toml or the "
            "table [tool.serve] of pyproject.toml: bind-timeout = 10, and app for APP. The command line wins, then the "
            "environment."
        )


def _command_rows(names: Iterable[str]) -> list[tuple[str, str]]:
    """Both columns of commands in the help."""
    return [(name, load(name).get_short_help_str(WIDTH)) for name in names]


def metavar(name: str, defined: Option) -> str:
    """The placeholder for the option's value in the help; "" for a flag."""
    if kind(name) is bool:
        return ""
    if defined.choices:
        return "[" + "|".join(defined.choices) + "]"
    return defined.unit or ("NUMBER" if kind(name) in (int, float) else "NAME")


def default_text(name: str) -> str:
    """The option's default as it would be written; "" if it has none worth showing."""
    field, defined = options()[name]
    if defined.shown_default:
        return defined.shown_default
    if kind(name) is bool:
        return "on" if field.default else ""
    if field.default in ("", (), None):
        return ""
    return f"{field.default:.15g}" if isinstance(field.default, float) else str(field.default)


def _help_row(name: str, defined: Option) -> tuple[str, str]:
    """Both columns of an option in the help."""
    term = ", ".join(part for part in (defined.short, flag(name)) if part)
    value = metavar(name, defined)
    if value:
        term += " " + value
    elif options()[name][0].default:
        term = flag(name).replace("--", "--[no-]")
    notes = [f"default: {text}" for text in (default_text(name),) if text]
    notes += [f"env: {variable}" for variable in defined.env]
    together = "; ".join(notes).replace(" ", UNBROKEN)
    return term, defined.help + (f"  [{together}]" if notes else "")


def _parameters(*, completing: bool = False) -> list[click.Parameter]:
    """One click option for each option of the configuration; values stay text, read by `serve_asgi.config.sources`.

    For the completion of shells (`completing`) they have types, which offer choices and the names of files.
    """
    made: list[click.Parameter] = [click.Argument(["app"], required=False)]
    for name, (_, defined) in options().items():
        if kind(name) is bool:
            declared = [name, f"{flag(name)}/{flag_off(name)}"]
            if defined.former:
                declared.append(f" /{defined.former}")  # click's way to declare a further form of the negation
            made.append(click.Option(declared, default=None))
        else:
            declared = [name, *filter(None, (flag(name), defined.short, defined.former))]
            values = _completed_type(defined) if completing else click.STRING
            made.append(click.Option(declared, type=values, multiple=several(name), default=None))
    return made


def _completed_type(defined: Option) -> Any:  # click.ParamType, which is generic in some of its versions
    """What shells complete the option's value from."""
    if defined.choices:
        return click.Choice(defined.choices)
    return click.Path() if defined.unit.startswith("PATH") else click.STRING


def with_values(arguments: Sequence[str]) -> list[str]:
    """The command line with a value for each option that may stand alone, so that APP is not taken for one."""
    alone = {flag(name): defined for name, (_, defined) in options().items() if defined.alone}
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return [
        f"{each}={alone[each].alone}"
        if each in alone and i < end and (i + 1 == len(arguments) or arguments[i + 1] not in alone[each].choices)
        else each
        for i, each in enumerate(arguments)
    ]


def _given(context: click.Context, values: dict[str, Any]) -> dict[str, Given]:
    """The options given on the command line, without click's own defaults."""
    said = click.core.ParameterSource.COMMANDLINE
    return {name: value for name, value in values.items() if context.get_parameter_source(name) is said}


@click.pass_context
def _run(context: click.Context, /, app: str | None, **values: Any) -> int:
    """Run an ASGI application so that nobody notices a deploy.

    APP is module:attribute, for example app:asgi. kill -HUP replaces every worker with fresh code and loses no
    request; kill -USR2 makes the health endpoint fail, so that a load balancer lets go first; kill -TERM stops
    gracefully.
    """
    if app and app.isidentifier() and not _is_module(app, values) and (near := _meant(app)):
        raise UsageError(f"there is no command {app!r}: did you mean {near!r}? (An application is module:attribute)")
    settings = read(app or "", _given(context, values), os.environ)
    if sys.platform != "linux":
        from serve_asgi.in_process.development import run as develop

        return develop(settings)
    from serve_asgi.listener.start import run

    return run(settings)


def _meant(word: str) -> str:
    """The command that a word is a slip of the keyboard for, or ""."""
    return next(iter(difflib.get_close_matches(word, MODULES, 1, LIKENESS)), "")


def _is_module(word: str, values: dict[str, Any]) -> bool:
    """Whether an application may be in it, so that its attribute is what is missing."""
    return holds(os.path.join(values.get("chdir") or "", values.get("app_dir") or ""), word)


def _run_command() -> RunCommand:
    command = RunCommand("serve", callback=_run, help=_run.__doc__, params=_parameters(), context_settings=CONTEXT)
    command.params.append(
        click.Option(["--version"], is_flag=True, expose_value=False, is_eager=True, callback=_show_version)
    )
    return command


def _show_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    """Print the version, and what would run here, and exit."""
    if wanted and not context.resilient_parsing:
        import platform

        python = f"{platform.python_implementation()} {platform.python_version()}"
        click.echo(f"serve {__version__}, {python}, {compiled_core.core(compiled_core.installed_modules())} core")
        context.exit()


def run_command_line(arguments: Sequence[str]) -> int:
    """Do what the command line says and return the exit status. All errors end here, as one line."""
    if COMPLETE in os.environ:  # asked by the shell, through what `_SERVE_COMPLETE=bash_source serve` prints
        from click.shell_completion import shell_complete

        _take_signals()
        return shell_complete(_everything(), {}, "serve", COMPLETE, os.environ[COMPLETE])
    name, rest = (arguments[0], list(arguments[1:])) if arguments else ("", [])
    if name in MODULES:
        if sys.platform != "linux":
            return _complain(UsageError(ON_LINUX.format(name)))
        _take_signals()
        _write_anything()
        try:
            return _main(load(name), f"serve {name}", rest)
        finally:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is left to do but exit
    if name == "dev" and rest and rest[0].endswith(".py"):
        app = suggested(rest[0], ".")
        return _complain(UsageError(f"`fastapi dev {rest[0]}` is `serve {app} --reload` here"))
    return _main(_run_command(), "serve", with_values(rest if name == "run" else list(arguments)))


def go_on() -> int:
    """Continue as the listener whose previous program this one has replaced; return the exit status."""
    from serve_asgi.listener.re_exec_resume import inherited, resume

    try:
        return resume(inherited())
    except ServeError as error:
        return _complain(error)


def _take_signals() -> None:
    """Let a command handle Ctrl-C; other signals end it, and the terminal is restored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.platform == "win32":
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # and not ignored, as by nohup(1)
            signal.signal(number, _end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())


def _end(number: int, _: object) -> None:
    sys.exit(128 + number)  # as shells report it


def _write_anything() -> None:
    """Print a question mark for characters that the terminal cannot show, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _everything() -> click.Group:
    """All commands and all options of `serve APP`, for the completion of shells."""
    return click.Group(
        "serve", commands={name: load(name) for name in MODULES}, params=_parameters(completing=True)[1:]
    )


def _main(command: click.Command, name: str, arguments: list[str]) -> int:
    try:
        status = command.main(arguments, prog_name=name, standalone_mode=False)
    except click.ClickException as error:
        _say(harmless(_sentence(error, name, arguments)))
        return UsageError.exit_status
    except ServeError as error:
        return _complain(error)
    except ModuleNotFoundError as error:
        if error.name != "rich":  # it is only needed for drawing
            raise
        return _complain(UsageError(f"`{name}` needs the package rich: pip install rich"))
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    return status if isinstance(status, int) else 0


def _complain(error: ServeError) -> int:
    detail: str = getattr(error, "detail", "")
    if detail:
        _write(harmless(detail).rstrip("\n") + "\n")
    _say(harmless(str(error)))
    return error.exit_status


def _sentence(error: click.ClickException, name: str, arguments: Sequence[str]) -> str:
    """click's error in one sentence, with what to do next."""
    if isinstance(error, click.NoSuchOption):
        if name == "serve" and (said := all_of_other_servers(arguments, error.option_name)):
            return said
        if error.possibilities:
            return f"there is no option {error.option_name}: did you mean {' or '.join(error.possibilities)}?"
        return f"there is no option {error.option_name}: `{name} --help` lists all of them"
    if name == "serve" and (said := about_flag(arguments)):
        return said
    text = " ".join(error.format_message().split()).rstrip(".")
    return f"{text[:1].lower()}{text[1:]}: `{name} --help` shows how it is written"


def _say(message: str) -> None:
    _write(f"serve: {message}\n")


def _write(text: str) -> None:
    """Write to stderr without waiting for a reader."""
    say(2, text)
