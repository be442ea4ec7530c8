"""Pages of the site that are made of files outside docs/ (a hook of MkDocs, https://www.mkdocs.org/user-guide/configuration/#hooks).

The home page is README.md. What a page links to elsewhere in the repository (SECURITY.md, deploy/nginx/app.conf,
examples/chat) becomes a page too: Markdown as it is, a file as its text, a directory as its README and its files. So
every link that works in the repository works on the site as well, wherever either is kept.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).resolve().parents[2]
LINK: Final = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")
TABLE_CODE: Final = re.compile(r"(?<=^\|).*`.*", re.MULTILINE)
"""Rows of tables with code: in them Python-Markdown takes `|` as it is and shows the backslash that GitHub wants."""
ALWAYS: Final = ("SECURITY.md", "CHANGELOG.md", "CONTRIBUTING.md")
WIDE: Final = ("reference/options.md",)
"""Pages whose tables have six columns: the table of contents leaves them its place."""
LANGUAGES: Final = {
    ".cfg": "ini",
    ".conf": "nginx",
    ".json": "json",
    ".py": "python",
    ".service": "ini",
    ".sh": "bash",
    ".socket": "ini",
    ".toml": "toml",
    ".yaml": "yaml",
    ".yml": "yaml",
}
UNLISTED: Final = "---\nsearch:\n  exclude: true\n---\n\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the home page and all that is linked to outside docs/."""
    made = {"index.md": _linked(ROOT.joinpath("README.md").read_text(), "README.md", "index.md")}
    wanted = [*ALWAYS, *_outside("README.md")]
    for file in files.documentation_pages():
        wanted += _outside(f"docs/{file.src_uri}")
    while wanted:
        path = wanted.pop()
        if (page := _page_of(path)) not in made:
            made[page] = _text(path)
            wanted += _outside(path)
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links that leave docs/ lead to the pages made above."""
    if page.file.generated_by is None:  # what was made has its links
        markdown = _linked(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)
    if page.file.src_uri in WIDE:
        page.meta["hide"] = ["toc"]
    return TABLE_CODE.sub(lambda match: match[0].replace("\\|", "|"), markdown)


def _outside(path: str) -> list[str]:
    """What a file of the repository links to outside docs/."""
    if not path.endswith(".md"):
        path = f"{path}/README.md"
    if not (source := ROOT / path).is_file():
        return []
    targets = (_target(path, match[2]) for match in LINK.finditer(source.read_text()))
    return [target for target in targets if not target.startswith("docs/")]


def _target(path: str, link: str) -> str:
    return os.path.normpath(PurePosixPath(path).parent / link)


def _page_of(path: str) -> str:
    """Where on the site a file or directory of the repository is found."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path == "README.md":
        return "index.md"
    if path.endswith(".md"):
        return path
    if (ROOT / path).is_dir():
        return f"{path}/README.md"
    return f"{path}.md"


def _linked(text: str, path: str, page: str) -> str:
    """The text of a file of the repository with its links as they are from a page of the site."""

    def link(match: re.Match[str]) -> str:
        relative = os.path.relpath(_page_of(_target(path, match[2])), PurePosixPath(page).parent)
        return f"{match[1]}{relative}{match[3]}"

    return LINK.sub(link, text)


def _text(path: str) -> str:
    """The page that shows a file or a directory."""
    source = ROOT / path
    if path.endswith(".md"):
        return _linked(source.read_text(), path, path)
    if not source.is_dir():
        return f"{UNLISTED}# {path}\n\n{_source(source)}"
    readme = source / "README.md"
    text = _linked(readme.read_text(), f"{path}/README.md", f"{path}/README.md") if readme.is_file() else f"# {path}\n"
    shown = sorted(file for file in source.iterdir() if file.is_file() and file.name != "README.md")
    if path.startswith(("deploy", "examples")):
        text += "".join(f"\n## {file.name}\n\n{_source(file)}" for file in shown)
    else:
        text += "".join(f"\n- `{file.name}`" for file in shown)
    return text if readme.is_file() else UNLISTED + text


def _source(file: Path) -> str:
    return f"````{LANGUAGES.get(file.suffix, 'text')}\n{file.read_text().rstrip()}\n````\n"
