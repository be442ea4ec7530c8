"""The modules that are used on every platform, and what the type checker says of them as on macOS and Windows.

`python -m tests.in_process.portable_modules` is one of the checks of tests/run.py. Other modules may be imported only
where `sys.platform` is "linux"; tests/in_process/test_elsewhere.py compares this list with what is imported.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "server"
ROOTS = (
    *("serve_asgi.__main__", "serve_asgi.cli.main", "serve_asgi.in_process.development"),
    *("serve_asgi.in_process.run", "serve_asgi.http.https_redirect", "serve_asgi.http2.connection"),
    *("serve_asgi.listener.certificate_loading", "serve_asgi.tls.server_contexts", "serve_asgi.worker.tls_handshakes"),
    *("serve_asgi.app.after_fork", "serve_asgi.app.canary", "serve_asgi.app.schedule", "serve_asgi.app.thread_loop"),
    *("serve_asgi.app.shared", "serve_asgi.app.wsgi", "serve_asgi.http.static_files"),
)
"""From which the others are imported; also those that functions import when they are called."""
PLATFORMS = ("darwin", "win32")


def files() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in SOURCE.rglob("*.py")
    }


def imported(tree: ast.AST, known: dict[str, Path]) -> Iterator[str]:
    """What a module imports when it is imported itself."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in known else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from imported(node, known)


def portable() -> dict[str, Path]:
    """The modules, by name."""
    known, found, left = files(), {}, list(ROOTS)
    while left:
        name = left.pop()
        if name in known and name not in found:
            found[name] = known[name]
            left += [*imported(ast.parse(known[name].read_text()), known), name.rpartition(".")[0]]
    return found


def main() -> int:
    paths = sorted(str(path.relative_to(ROOT)) for path in portable().values())
    for platform in PLATFORMS:
        command = [sys.executable, "-m", "mypy", "--platform", platform, "--follow-imports", "silent"]
        command += ["--cache-dir", f".mypy_cache/{platform}", *paths]
        told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        print(f"as on {platform}: {told.stdout}{told.stderr}", end="")
        if told.returncode:
            return told.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
