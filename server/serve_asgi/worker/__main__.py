"""A worker as a fresh interpreter: `serve_asgi.worker.main` does the rest."""

from __future__ import annotations

from serve_asgi.worker.bootstrap import read_arguments
from serve_asgi.worker.main import main

if __name__ == "__main__":
    main(read_arguments("serve_asgi.worker"))
