"""Release directories behind a link, as `serve deploy` and `serve rollback` move it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from tests.running import RunningServer, connect, request

APPLICATION = """
VERSION = {version!r}


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            event = await receive()
            await send({{"type": event["type"] + ".complete"}})
            if event["type"] == "lifespan.shutdown":
                return
    await send({{"type": "http.response.start", "status": {status}, "headers": []}})
    await send({{"type": "http.response.body", "body": VERSION.encode()}})
"""


class Releases:
    """A directory with releases in it, and the link to the current one."""

    def __init__(self, directory: Path) -> None:
        self.link = directory / "current"
        self.directory = directory / "releases"
        self.directory.mkdir()

    def make(self, name: str, code: str | None = None, status: int = 200) -> Path:
        release = self.directory / name
        release.mkdir()
        (release / "app.py").write_text(APPLICATION.format(version=name, status=status) if code is None else code)
        return release

    @property
    def target(self) -> str:
        return os.readlink(self.link)


def version(server: RunningServer) -> str:
    with contextlib.closing(connect(server)) as client:
        return request(client, "/")[1].decode()
