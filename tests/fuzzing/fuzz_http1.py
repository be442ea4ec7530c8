"""Coverage-guided fuzzing of client connections with atheris: `python -m tests.fuzzing.fuzz_http1 TARGET [CORPUS …]`.

TARGET is `http1` (both parsers on every input) or `websocket`. The other arguments and options are libFuzzer's; see
docs/measured/fuzzing.md. atheris is needed by nothing else and is not among the project's dependencies.
"""

from __future__ import annotations

import logging
import sys

import atheris

with atheris.instrument_imports(include=["serve_asgi.http"]):
    from tests.fuzzing import inputs

TARGETS = {"http1": inputs.check_http1, "websocket": inputs.check_websocket}


def main() -> None:
    """Fuzz until told to stop."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"Name a target: {' or '.join(TARGETS)}.")
    name = sys.argv.pop(1)
    sys.argv[0] = f"{sys.executable} -m tests.fuzzing.fuzz_http1 {name}"  # how -merge starts processes of its own
    logging.disable()  # applications that raise are part of it
    atheris.Setup(sys.argv, TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
