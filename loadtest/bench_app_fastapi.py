"""The bench's FastAPI application: one route that answers with a small JSON document."""

from __future__ import annotations

import importlib
from typing import Any

# by name, so that the type checker does not need what only this comparison does
fastapi: Any = importlib.import_module("fastapi")

app = fastapi.FastAPI(openapi_url=None)


@app.get("/")  # type: ignore[untyped-decorator,unused-ignore]
async def route() -> dict[str, str]:
    """A JSON document."""
    return {"message": "Hello, World!"}
