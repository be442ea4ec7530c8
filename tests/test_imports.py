"""An import runs downwards only, never in a circle: the rooms of `server/serve_asgi`, from the top to the cellar."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import serve_asgi

SOURCE = Path(__file__).parents[1] / "server"
PACKAGE = "serve_asgi"
FLOORS = (
    {"__main__", "pytest_plugin"},
    {"cli", "demo"},
    {"in_process"},
    {"listener"},
    {"supervisor"},
    {"template_process", "agent_process", "admin"},
    {"worker", "store"},
    {"app"},
    {"hub"},
    {"http", "http2", "websocket", "tls"},
    {"logs", "ipc", "config"},
    {"compiled_core", "errors"},
)
"""From the top down; rooms on one floor may import each other, as long as no module comes back to itself."""
MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in SOURCE.rglob("*.py")
}


def imports(tree: ast.AST, later: bool) -> Iterator[str]:
    """The modules that are imported when this one runs; `later` includes what functions import when they are called.

    What only type checkers see does not count.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif later or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from imports(node, later)


def graph(later: bool) -> dict[str, set[str]]:
    """Of each module, what it imports of the package; not the public names, which are for applications."""
    return {
        module: {name for name in imports(ast.parse(path.read_text()), later) if name.startswith(PACKAGE + ".")}
        for module, path in MODULES.items()
        if module != PACKAGE
    }


def floor(module: str) -> int:
    room = module.split(".")[1]
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def test_an_import_runs_downwards() -> None:
    upward = [(module, name) for module, found in graph(True).items() for name in found if floor(name) < floor(module)]
    assert not upward


def test_no_module_comes_back_to_itself() -> None:
    try:
        TopologicalSorter(graph(False)).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_public_name_is_a_module_as_well() -> None:
    """`from serve_asgi import agent` would give the module as soon as anything had imported that."""
    assert not {name for name in serve_asgi.__all__ if f"{PACKAGE}.{name}" in MODULES}
