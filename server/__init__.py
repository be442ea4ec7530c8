"""What an application may import from the server that runs it.

Kept light, since it runs before anything else: what is offered here is loaded when it is first asked for (PEP 562), so
that the command can block its signals before the event loop's modules are imported.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from server.app.draining import draining

__all__ = ["__version__", "draining"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Load what an application asks for."""
    if name == "draining":
        from server.app.draining import draining

        return draining
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
