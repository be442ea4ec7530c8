"""The bench's Starlette application: one route that answers with a small JSON document."""

from __future__ import annotations

import importlib
from typing import Any

# by name, so that the type checker does not need what only this comparison does
applications: Any = importlib.import_module("starlette.applications")
responses: Any = importlib.import_module("starlette.responses")
routing: Any = importlib.import_module("starlette.routing")


async def route(request: Any) -> Any:
    """A JSON document."""
    return responses.JSONResponse({"message": "Hello, World!"})


app = applications.Starlette(routes=[routing.Route("/", route)])
