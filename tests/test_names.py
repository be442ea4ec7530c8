"""A class is found by its name alone: no two of the package have the same."""

from __future__ import annotations

import ast
import collections
from pathlib import Path

import serve_asgi

PACKAGE = Path(serve_asgi.__file__).parent
KNOWN: frozenset[str] = frozenset()
"""Names that stand more than once and are still to be changed: this list only gets shorter."""


def modules_of_classes() -> dict[str, list[str]]:
    found = collections.defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(str(path.relative_to(PACKAGE)))
    return found


def test_no_two_classes_have_one_name() -> None:
    repeated = {name: modules for name, modules in modules_of_classes().items() if len(modules) > 1}
    assert {name: modules for name, modules in repeated.items() if name not in KNOWN} == {}
    assert frozenset(repeated) == KNOWN, "take what has been changed off the list"
