"""Coverage-guided fuzzing of TLS sessions with atheris: `python -m tests.fuzzing.fuzz_tls [CORPUS …]`.

The arguments and options are libFuzzer's; see docs/measured/fuzzing.md. atheris is needed by nothing else and is not
among the project's dependencies.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["serve_asgi.tls"]):
    from tests.fuzzing import tls_inputs


def main() -> None:
    """Fuzz until told to stop."""
    sys.argv[0] = f"{sys.executable} -m tests.fuzzing.fuzz_tls"  # how -merge starts processes of its own
    atheris.Setup(sys.argv, tls_inputs.check_tls)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
