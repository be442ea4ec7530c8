"""What a person means who names the application in another way than `module:attribute`.

It reads the source, and never imports it: a name that is not right must not run anything. It owns the suggestions, and
where a module is looked for: in the directory of `--app-dir`, or, where that is not given, in the working directory and
in `src` below it (the "src layout" of the Python Packaging User Guide). It must not know the options.
"""

from __future__ import annotations

import ast
import os
from typing import Final

SOURCE_LAYOUT: Final = "src"
USUAL: Final = ("app", "application", "asgi", "api", "server", "main")
"""What applications are called, the most frequent first."""
DJANGOS: Final = ("asgi", "wsgi")
"""Modules that `django-admin startproject` makes, in which it is called `application`."""
ASGI_ARGUMENTS: Final = ("scope", "receive", "send")
LARGEST: Final = 1 << 20
"""Bytes of a file that is read for a suggestion."""


def holds(directory: str, module: str) -> bool:
    """Whether the directory has this module, or the package that it begins with."""
    top = os.path.join(directory, module.partition(".")[0])
    return os.path.isfile(top + ".py") or os.path.isdir(top)


def import_directory(directory: str, application: str) -> str:
    """Where the application's module is imported from: `directory`, or `src` below it if only that has it."""
    below = os.path.join(directory, SOURCE_LAYOUT)
    module = application.partition(":")[0]
    return below if module and not holds(directory, module) and holds(below, module) else directory


def suggested(text: str, directory: str) -> str:
    """`module:attribute` for what somebody has written: a module, or the path of its file, with or without a name."""
    path, colon, attribute = text.partition(":")
    module = path.removesuffix(".py").removeprefix("./").strip("/").replace("/", ".")
    module = module.removesuffix(".__init__") or "app"
    where = import_directory(directory, module)
    package = os.path.join(directory, SOURCE_LAYOUT, "__init__.py")
    if module.startswith(SOURCE_LAYOUT + ".") and not os.path.isfile(package):
        module = module.removeprefix(SOURCE_LAYOUT + ".")
        where = os.path.join(directory, SOURCE_LAYOUT)
    if not all(part.isidentifier() for part in module.split(".")):
        return "app:app"
    if colon and all(part.isidentifier() for part in attribute.split(".")):
        return f"{module}:{attribute}"
    file, _, last = os.path.join(where, *module.split(".")).rpartition(os.sep)
    if os.path.isfile(file + ".py"):  # a dot instead of the colon
        return f"{module.rpartition('.')[0]}:{last}"
    return f"{module}:{_likely(os.path.join(file, last))}"


def _likely(path: str) -> str:
    """The name that the application most likely has in the module at this path, without its ending."""
    file = path + ".py" if os.path.isfile(path + ".py") else os.path.join(path, "__init__.py")
    try:
        with open(file, "rb") as source:
            names = _assigned(ast.parse(source.read(LARGEST)))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return "application" if os.path.basename(path) in DJANGOS else USUAL[0]
    usual = [name for name in USUAL if name in names]
    called = [name for name, by_call in names.items() if by_call]
    return (usual or called or [USUAL[0]])[0]


def _assigned(module: ast.Module) -> dict[str, bool]:
    """The public names that the module gives to what it calls or defines, and whether it was a call of a class."""
    names: dict[str, bool] = {}
    for statement in module.body:
        if isinstance(statement, ast.AsyncFunctionDef) and len(statement.args.args) == len(ASGI_ARGUMENTS):
            names[statement.name] = True
        elif isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Call):
            for target in statement.targets:
                if isinstance(target, ast.Name) and not target.id.startswith("_"):
                    names[target.id] = _is_class(statement.value.func)
    return names


def _is_class(called: ast.expr) -> bool:
    name = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
    return name[:1].isupper()
