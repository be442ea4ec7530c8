"""Whatever an application calls its modules, they are its own: the server's package is named as its distribution."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.running import connect, request, running

ANSWER = """
async def app(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": TEXT})
"""
OWN = "TEXT = b'mine'\n" + ANSWER


@pytest.mark.parametrize(
    ("application", "files"),
    [
        ("server:app", {"server.py": OWN}),
        ("server:app", {"server/__init__.py": "from server.main import app\n", "server/main.py": OWN}),
        ("server.main:app", {"server/__init__.py": "", "server/main.py": OWN}),
        ("server.main:app", {"server/main.py": OWN}),
        ("app:app", {"app.py": OWN}),
        ("serve:app", {"serve.py": OWN}),
        ("main:app", {"server.py": "TEXT = b'mine'\n", "main.py": "from server import TEXT\n" + ANSWER}),
        ("main:app", {"server/db.py": "TEXT = b'mine'\n", "main.py": "from server.db import TEXT\n" + ANSWER}),
        ("listener:app", {"worker.py": "TEXT = b'mine'\n", "listener.py": "from worker import TEXT\n" + ANSWER}),
        ("shop:app", {"shop/__init__.py": "from shop.server import app\n", "shop/server/__init__.py": OWN}),
    ],
)
def test_an_application_may_call_its_modules_what_it_likes(
    tmp_path: Path, application: str, files: dict[str, str]
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    with running(application, directory=tmp_path) as server:
        with connect(server) as connection:
            assert request(connection) == (200, b"mine")
            server.reload()
            assert request(connection) == (200, b"mine")
        assert server.stop() == 0
