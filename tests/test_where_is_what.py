"""The page on where what is: every file, class and function that it names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import serve_asgi

PAGE = Path(__file__).parents[1] / "docs" / "how-it-works" / "where-is-what.md"
PACKAGE = Path(serve_asgi.__file__).parent


def places() -> list[tuple[str, str]]:
    """Each file of the page, with each name that is said to be in it ("" for none)."""
    found = []
    for row in re.findall(r"^\|.*\| (.*) \|$", PAGE.read_text(), re.MULTILINE):
        path = ""
        for code in re.findall(r"`([^`]+)`", row):
            if code.endswith(".py"):
                path = code
                found.append((path, ""))
            else:
                found.append((path, code))
    return found


def defined(tree: ast.Module) -> set[str]:
    """The classes, their methods and the functions of a module."""
    names = set()
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            names.add(node.name)
            names |= {f"{node.name}.{each.name}" for each in node.body if hasattr(each, "name")}
    return names


def test_what_the_page_names_is_there() -> None:
    missing = []
    for path, name in places():
        file = PACKAGE / path
        if not file.is_file():
            missing.append(path)
        elif name and name not in defined(ast.parse(file.read_text())):
            missing.append(f"{path} {name}")
    assert not missing


def test_forty_questions_are_answered() -> None:
    assert len(re.findall(r"^\| .*\? \| `", PAGE.read_text(), re.MULTILINE)) >= 40
