"""Finding the application: what is named wrongly gets a sentence, what fails by itself keeps its traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_asgi.app.loading import load, parse
from serve_asgi.errors import UsageError
from serve_asgi.logs.tracebacks import application_traceback

SHOP = """
async def asgi(scope, receive, send): ...
def make(): return asgi
def make_with(settings): return asgi
class Application:
    async def __call__(self, scope, receive, send): ...
obj = Application()
class Holder:
    api = obj
number = 3
def asgi2(scope): ...
def wsgi(environ, start_response): ...
async def make_later(): ...
def make_nothing(): return None
class Anything:
    def __call__(self, *arguments): ...
anything = Anything()
"""


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The first entry of the import path, with a module `shop`; what was imported from it is forgotten."""
    (tmp_path / "shop.py").write_text(SHOP)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def why_not(specification: str, factory: bool = False) -> str:
    with pytest.raises(UsageError) as caught:
        load(specification, factory)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_forms() -> None:
    assert parse("a.b:c.d") == ("a.b", ["c", "d"])
    for wrong in ("a", "a:", ":a", "a b:c", "a:b()", "a/b:c", "a..b:c", "a.py:b:c"):
        with pytest.raises(UsageError, match="write module:attribute"):
            parse(wrong)


@pytest.mark.parametrize(
    ("specification", "factory"),
    [
        ("shop:asgi", False),
        ("shop:obj", False),
        ("shop:Holder.api", False),
        ("shop:anything", False),
        ("shop:make", True),
        ("shop:Application", True),
    ],
)
def test_applications(specification: str, factory: bool) -> None:
    assert callable(load(specification, factory))


@pytest.mark.parametrize(
    ("specification", "factory", "sentence"),
    [
        ("shop:asgy", False, "has no attribute 'asgy'; did you mean 'asgi'?"),
        ("shop:zzz", False, "what looks like an application there: asgi, obj"),
        ("shop:Holder.zzz", False, "shop.Holder has no attribute 'zzz'"),
        ("shop:number", False, "shop:number is of type int, which cannot be called"),
        ("shop:asgi2", False, "as ASGI 2 applications do: add --interface asgi2"),
        ("shop:wsgi", False, "as WSGI applications do: add --interface wsgi"),
        ("shop:make", False, "if it returns the application, add --factory"),
        ("shop:make_with", True, "shop:make_with needs arguments, so it is not a factory"),
        ("shop:make_later", True, "is an async function, so it is not a factory"),
        ("shop:make_nothing", True, "what shop:make_nothing returned is None"),
        ("shop:number", True, "shop:number is of type int, not a function: leave --factory out"),
        ("shopp:asgi", False, "there is no module shopp in {directory}; did you mean shop?"),
        ("zzz:asgi", False, "there is no module zzz in {directory}; name the directory that holds it with --app-dir"),
        ("zzz.web:asgi", False, "there is no module zzz (for zzz.web) in {directory}"),
        ("shop.web:asgi", False, "there is no module shop.web: what is before its last dot is a single file"),
    ],
)
def test_what_is_not_there_is_said(directory: Path, specification: str, factory: bool, sentence: str) -> None:
    assert sentence.format(directory=directory) in why_not(specification, factory)


def failure(specification: str) -> str:
    """The traceback of a failing import, as the worker sees it: caught by this server's own code."""
    outer = {"load": load}
    code = compile(f"load({specification!r}, False)", sys.modules["serve_asgi"].__path__[0] + "/worker/x.py", "exec")
    with pytest.raises(Exception, match=r".") as caught:
        exec(code, outer)
    assert not isinstance(caught.value, UsageError)
    assert caught.value.__traceback__ is not None
    caught.value.__traceback__ = caught.value.__traceback__.tb_next  # the frame of this test
    return application_traceback(caught.value)


def test_a_failing_import_shows_the_applications_frames_alone(directory: Path) -> None:
    (directory / "broken.py").write_text("import missing_dependency\n")
    assert failure("broken:app") == (
        "Traceback (most recent call last):\n"
        f'  File "{directory}/broken.py", line 1, in <module>\n'
        "    import missing_dependency\n"
        "ModuleNotFoundError: No module named 'missing_dependency'\n"
    )


def test_an_exception_at_import(directory: Path) -> None:
    (directory / "helper.py").write_text("def fail():\n    raise RuntimeError('no database')\n")
    (directory / "broken2.py").write_text("import helper\nhelper.fail()\n")
    text = failure("broken2:app")
    assert text.count("  File ") == 2
    assert text.endswith("RuntimeError: no database\n")


def test_a_syntax_error_shows_its_line_and_no_frames(directory: Path) -> None:
    (directory / "broken3.py").write_text("app = (\n")
    text = failure("broken3:app")
    assert text.count("  File ") == 1
    assert f'File "{directory}/broken3.py", line 1' in text


def test_a_factory_that_fails_keeps_its_traceback(directory: Path) -> None:
    (directory / "broken4.py").write_text("def make():\n    return {}['key']\n")
    with pytest.raises(KeyError) as caught:
        load("broken4:make", True)
    assert application_traceback(caught.value).count("in make") == 1


def test_the_demonstration_is_found_from_a_directory_that_holds_a_copy_of_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "serve_asgi").mkdir()
    (tmp_path / "serve_asgi" / "__init__.py").write_text("")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert callable(load("serve_asgi.demo:asgi", False))
