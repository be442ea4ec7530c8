"""What an application may import from the server that runs it. Kept light: an import here delays every start."""

from __future__ import annotations

from server.app.draining import draining

__all__ = ["__version__", "draining"]
__version__ = "0.1.0"
