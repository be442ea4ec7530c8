"""What a person means who names the application in another way than `module:attribute`."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve_asgi.config.application_name import import_directory, suggested

SOURCES = {
    "main.py": "from fastapi import FastAPI\n\nrouter = make()\nshop = FastAPI()\n",
    "plain.py": "async def asgi(scope, receive, send): ...\n",
    "two.py": "settings = Settings()\napp = make()\n",
    "broken.py": "def (",
    "raising.py": "raise SystemExit(1)\napp = App()\n",
    "src/pkg/__init__.py": "api = Api()\n",
    "src/pkg/web.py": "application = framework.Application()\n",
    "both/__init__.py": "",
    "src/both/__init__.py": "",
}


@pytest.fixture
def directory(tmp_path: Path) -> str:
    for name, text in SOURCES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("main", "main:shop"),
        ("main.py", "main:shop"),
        ("./main.py", "main:shop"),
        ("main.py:router", "main:router"),
        ("main.shop", "main:shop"),
        ("plain", "plain:asgi"),
        ("two", "two:app"),
        ("broken", "broken:app"),
        ("raising", "raising:app"),
        ("pkg", "pkg:api"),
        ("pkg.web", "pkg.web:application"),
        ("pkg/web.py", "pkg.web:application"),
        ("src/pkg/web.py", "pkg.web:application"),
        ("src/pkg/__init__.py:api", "pkg:api"),
        ("nothing", "nothing:app"),
        ("nothing.wsgi", "nothing.wsgi:application"),
        ("no such thing", "app:app"),
        ("/", "app:app"),
    ],
)
def test_what_is_meant(directory: str, text: str, meant: str) -> None:
    assert suggested(text, directory) == meant


def test_the_source_layout_is_found(directory: str) -> None:
    assert import_directory(directory, "pkg.web:application") == f"{directory}/src"
    for elsewhere in ("main:shop", "both:app", "nothing:app", ""):
        assert import_directory(directory, elsewhere) == directory
