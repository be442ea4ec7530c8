"""Coverage-guided fuzzing of HTTP/2's core with atheris: `python -m tests.fuzzing.fuzz_h2 [CORPUS …]`.

The arguments and options are libFuzzer's; see docs/measured/fuzzing.md. atheris is needed by nothing else and is not
among the project's dependencies.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["serve_asgi.http.h2"]):
    from tests.fuzzing import h2_inputs


def main() -> None:
    """Fuzz until told to stop."""
    sys.argv[0] = f"{sys.executable} -m tests.fuzzing.fuzz_h2"  # how -merge starts processes of its own
    atheris.Setup(sys.argv, h2_inputs.check_h2)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
