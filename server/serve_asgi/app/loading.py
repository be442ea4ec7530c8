"""Loads the application: from `module:attribute` to a callable, with errors that help.

Runs only in a worker, or in the template from which workers are forked, after directory and import path are set. If
what the command line names is missing, that is a UsageError, one sentence. Exceptions from the application's own code
are passed on, and `serve_asgi.logs.tracebacks` shows them without this server's frames. It must not know about
processes or protocols.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, cast

from serve_asgi.errors import StartError, UsageError
from serve_asgi.ipc import forked_children as forks
from serve_asgi.logs.tracebacks import application_traceback

if TYPE_CHECKING:
    from serve_asgi.config.options import Config
    from serve_asgi.http.worker_context import ASGIApplication

MOST_NAMED: Final = 3


def parse(specification: str, what: str = "an application", example: str = "app:asgi") -> tuple[str, list[str]]:
    """Module and attribute path of `module.sub:attribute.sub`. Raises UsageError if it is not of that form."""
    module, colon, attribute = specification.partition(":")
    parts = attribute.split(".")
    if not colon or not all(part.isidentifier() for part in [*module.split("."), *parts]):
        raise UsageError(f"{specification!r} is not {what}: write module:attribute, for example {example}")
    return module, parts


def load(specification: str, factory: bool, interface: str = "auto", threads: int = 10) -> ASGIApplication:
    """Import the application that `specification` names; with `factory`, call it to get the application.

    `interface` says how the application is called (`--interface`; auto: as ASGI 3), `threads` in how many threads, if
    it is WSGI. Raises UsageError if module or attribute is missing or cannot be such an application; exceptions of the
    application's own code are passed on.
    """
    name, path = parse(specification)
    found, _ = find(name, path, _looks_like_application, "an application")
    return adapted(found, specification, factory, interface, threads)


def adapted(
    found: Any, specification: str, factory: bool, interface: str = "auto", threads: int = 10
) -> ASGIApplication:
    """What was found as the application, as ASGI 3; `specification` names it in errors, and the rest is as for `load`.

    Raises UsageError if it cannot be such an application; exceptions of the application's own code are passed on.
    """
    if factory:
        found = _call_factory(found, specification)
    _check_callable(found, specification, factory, interface)
    if interface in ("wsgi", "asgi2"):
        from serve_asgi.app.wsgi import asgi_from_asgi2, asgi_from_wsgi

        return asgi_from_wsgi(found, threads) if interface == "wsgi" else asgi_from_asgi2(found)
    return cast("ASGIApplication", found)


def load_for(config: Config) -> ASGIApplication:
    """The application that `config` names. Raises UsageError, and StartError for an exception of its own code."""
    try:
        return load(config.app, config.factory, config.interface, config.wsgi_threads)
    except UsageError:
        raise
    except BaseException as error:  # there is no wait that could be cancelled
        forks.leave(error)
        raise StartError(
            f"the application {config.app} cannot be imported{needs_loop(error)}", application_traceback(error)
        ) from None


def needs_loop(error: BaseException) -> str:
    """What to add to a sentence about `error`, if the application's code wanted a running event loop at its import."""
    if type(error) is RuntimeError and str(error).startswith("no running event loop"):
        return ": no event loop runs yet when it is; make in the lifespan what needs one"
    return ""


def find(name: str, path: list[str], likely: Callable[[Any, str], bool], what: str) -> tuple[Any, ModuleType]:
    """Import the module `name` and follow `path` from there; return what is found, and the module.

    `likely` says whether a value of that module looks like what is wanted (`what`), for suggestions in the error.
    Raises UsageError if it is missing; exceptions of the application's own code are passed on.
    """
    module = _import(name)
    found: Any = module
    for index, part in enumerate(path):
        try:
            found = getattr(found, part)
        except AttributeError:
            where = ".".join([name, *path[:index]]) if index else f"the module {name} ({_file(module)})"
            instead = _instead(found, part, lambda value: likely(value, name), what)
            raise UsageError(f"{where} has no attribute {part!r}{instead}") from None
    return found, module


def _import(name: str) -> ModuleType:
    """Import the module. Raises UsageError only if this module itself is missing."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
            raise  # an import within the application fails
        if "is not a package" in str(error):
            raise UsageError(f"there is no module {name}: what is before its last dot is a single file") from None
        raise UsageError(_not_there(error.name, name)) from None


def _not_there(missing: str, wanted: str) -> str:
    import difflib  # for mistakes alone, as in `_instead`

    first = sys.path[0] or os.getcwd()
    inside = os.path.join(first, *missing.split(".")[:-1])
    near = difflib.get_close_matches(missing.rpartition(".")[2], _modules_in(inside), 1)
    hint = f"; did you mean {near[0]}?" if near else "; name the directory that holds it with --app-dir"
    of = f" (for {wanted})" if wanted != missing else ""
    return f"there is no module {missing}{of} in {inside}{hint}"


def _modules_in(directory: str) -> list[str]:
    try:
        entries = os.listdir(directory)
    except OSError:
        return []
    packages = [e for e in entries if e.isidentifier() and os.path.isdir(os.path.join(directory, e))]
    return sorted(packages + [e.removesuffix(".py") for e in entries if e.endswith(".py")])


def _instead(found: Any, missing: str, likely: Callable[[Any], bool], what: str) -> str:
    """Suggestions: names that look alike, or else values that look like what is wanted."""
    import difflib

    names = [n for n in dir(found) if not n.startswith("_")]
    near = difflib.get_close_matches(missing, names, 1)
    if near:
        return f"; did you mean {near[0]!r}?"
    alike = [n for n in names if likely(getattr(found, n, None))][:MOST_NAMED]
    if alike:
        return f"; what looks like {what} there: " + ", ".join(alike)
    return f"; name the attribute that holds {what.replace('an ', 'the ', 1)}"


def _looks_like_application(value: Any, module: str) -> bool:
    """Whether it is an async callable of (scope, receive, send), or an object whose class defines such a `__call__`."""
    if inspect.isclass(value) or not callable(value):
        return False
    if inspect.isfunction(value) and value.__module__ != module:
        return False
    call = value if inspect.isroutine(value) else type(value).__call__
    try:
        wanted = inspect.signature(value).parameters
    except (TypeError, ValueError):
        return False
    return inspect.iscoroutinefunction(call) and len(wanted) == 3


def _call_factory(factory: Any, specification: str) -> Any:
    if not callable(factory):
        raise UsageError(f"{specification} is {kind(factory)}, not a function: leave --factory out")
    if inspect.iscoroutinefunction(factory):
        raise UsageError(
            f"{specification} is an async function, so it is not a factory: leave --factory out, or use a plain def"
        )
    try:
        inspect.signature(factory).bind()
    except TypeError:
        raise UsageError(
            f"{specification} needs arguments, so it is not a factory: leave --factory out if it is the application"
        ) from None
    except ValueError:
        pass  # a builtin without a signature
    return factory()


def _check_callable(found: Any, specification: str, factory: bool, interface: str) -> None:
    """Refuse what certainly cannot be called by its interface; in case of doubt, accept it."""
    what = f"what {specification} returned" if factory else specification
    if not callable(found):
        raise UsageError(f"{what} is {kind(found)}, which cannot be called: name the application itself")
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*[None] * ARGUMENTS.get(interface, 3))
    except TypeError:
        raise UsageError(_why_not(signature, what, factory, interface)) from None


ARGUMENTS: Final = {"asgi2": 1, "wsgi": 2}
"""How many arguments the first call of an application takes, by interface; ASGI 3 takes three."""
LOOKS_LIKE: Final = {
    1: "takes one argument, as ASGI 2 applications do: add --interface asgi2",
    2: "takes two arguments, as WSGI applications do: add --interface wsgi",
    3: "takes three arguments, as ASGI applications do: leave --interface {interface} out",
}


def _why_not(signature: inspect.Signature, what: str, factory: bool, interface: str) -> str:
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in signature.parameters.values() if p.default is p.empty and p.kind in positional]
    if not needed and not factory:
        return f"{what} takes no arguments: if it returns the application, add --factory"
    if len(needed) in LOOKS_LIKE:
        return f"{what} {LOOKS_LIKE[len(needed)].format(interface=interface)}"
    return f"{what} does not take what an application takes (scope, receive and send): name the application itself"


def kind(value: Any) -> str:
    """What kind of value it is, for people to read."""
    if value is None:
        return "None"
    return "a module" if isinstance(value, ModuleType) else f"of type {type(value).__name__}"


def _file(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or "without a file"
