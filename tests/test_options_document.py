"""docs/options.md says what the definitions say."""

from __future__ import annotations

from pathlib import Path

from serve_asgi.options_document import document


def test_the_document_is_up_to_date() -> None:
    written = (Path(__file__).parent.parent / "docs" / "options.md").read_text()
    assert written == document(), "run: python -m serve_asgi.options_document > docs/options.md"
