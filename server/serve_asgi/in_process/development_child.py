"""The process that serves for development: set up as a worker would be, with the server in process.

It is started anew for each version of the code (`serve_asgi.in_process.development`), and its standard input is the
terminal, so that a breakpoint can be used.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any, Final

from serve_asgi.app import loading
from serve_asgi.config.options import Config
from serve_asgi.errors import ServeError
from serve_asgi.in_process.run import run_configured
from serve_asgi.logs.nonblocking_sink import say

VARIABLE: Final = "SERVE_ASGI_IN_PROCESS"
"""The environment variable that brings the configuration, and is gone before the application is imported."""


def serve_here(state: Mapping[str, Any]) -> None:
    """Move to where the application is, import it, and serve it until a signal. Raises ServeError."""
    config = Config.from_json(state["config"])
    os.chdir(state["directory"])
    sys.path.insert(0, state["app_dir"])
    os.environ.update(state["environment"])
    run_configured(loading.load_for(config), adapted(config))


def adapted(config: Config) -> Config:
    """The configuration of an application that has been made what it is to be already."""
    values = config.to_json(secrets=True) | {"factory": False, "interface": "auto"}
    return Config.from_json(values)


def main() -> None:
    """Serve what the environment says."""
    state = json.loads(os.environ.pop(VARIABLE))
    try:
        serve_here(state)
    except ServeError as error:
        detail: str = getattr(error, "detail", "")
        say(2, f"{detail.rstrip()}\nserve: {error}\n".lstrip("\n"))
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
