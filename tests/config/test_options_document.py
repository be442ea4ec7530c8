"""docs/reference/options.md says what the definitions say."""

from __future__ import annotations

from pathlib import Path

from serve_asgi.cli.options_page import document


def test_the_document_is_up_to_date() -> None:
    written = (Path(__file__).parents[2] / "docs" / "reference" / "options.md").read_text()
    assert written == document(), "run: python -m serve_asgi.cli.options_page > docs/reference/options.md"
