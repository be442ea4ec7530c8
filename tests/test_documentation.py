"""The documentation: links lead somewhere, in the repository and on the site, which MkDocs builds without a warning."""

from __future__ import annotations

import functools
import html.parser
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from serve_asgi.config.options import flag, flag_off, kind, options

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    page
    for page in (
        *ROOT.glob("*.md"),
        *(path for part in ("docs", "deploy", "examples") for path in (ROOT / part).rglob("*.md")),
    )
)
LINK = re.compile(r"\]\(([^)#\s]*)(#[^)\s]*)?\)")
CODE = re.compile(r"^(```+|~~~+).*?^\1|`[^`\n]*`", re.MULTILINE | re.DOTALL)


@functools.cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    made: set[str] = set()
    for heading in re.findall(
        r"^#+ (.*)", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    ):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        anchor = base = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number = 0
        while anchor in made:
            anchor = f"{base}-{(number := number + 1)}"
        made.add(anchor)
    return made


@pytest.mark.once
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_in_the_repository_lead_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(CODE.sub("", page.read_text())):
        if urlsplit(target).scheme:
            continue
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), target
        if anchor and there.suffix == ".md":
            assert anchor[1:] in anchors(there), target + anchor


def test_other_servers_options_are_translated_to_options_that_exist() -> None:
    ours = {flag(name) for name in options()}
    ours |= {flag_off(name) for name in options() if kind(name) is bool}
    page = (ROOT / "docs" / "get-started" / "from-other-servers.md").read_text()
    rows = [re.split(r"(?<!\\)\|", row)[2] for row in re.findall(r"^\| [^-].*$", page, re.MULTILINE)]
    named = {option for cell in rows for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", cell)}
    assert len(named) > 50
    assert named - ours == {"--listener"}  # of `serve reload`


class _Document(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.add(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


@pytest.mark.once
@pytest.mark.skipif(importlib.util.find_spec("material") is None, reason="the extra `docs` is not installed")
@pytest.mark.timeout(180)
def test_the_site_is_built_and_every_link_in_it_leads_somewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    document = functools.cache(lambda path: _Document(path.read_text()))
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) > 35
    broken = []
    for page in pages:
        for link in document(page).links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or (page.name == "404.html"):
                continue
            there = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            there = there / "index.html" if there.is_dir() else there
            if not there.exists() or (
                parts.fragment and there.suffix == ".html" and unquote(parts.fragment) not in document(there).anchors
            ):
                broken.append((str(page.relative_to(tmp_path)), link))
    assert not broken
    assert not [link for page in pages for link in document(page).links if "fonts.g" in link or "unpkg" in link]
