"""One text for GitHub and for the site: links out of docs/ lead somewhere on both.

On GitHub a page links to files beside docs/ as to any other. On the site, those of `PAGES` are pages as well. A link
to another file leads to the repository where `repo_url` in mkdocs.yml says where that is; until then only its text is
left.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
# File of the repository: page of the site.
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "README.md": "index.md"}
COPIED = ("CONTRIBUTING.md", "CHANGELOG.md")
"""Those that are shown as they are."""

_CODE = re.compile(r"(^ *```.*?^ *```|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[((?:[^\]\[]|\[[^\]\[]*\])+)\]\((?!\w+:)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name in COPIED:
        files.append(File.generated(config, PAGES[name], content=(ROOT / name).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    copied = next((name for name in COPIED if PAGES[name] == page.file.src_uri), None)
    return with_links(markdown, copied or f"docs/{page.file.src_uri}", page.file.src_uri, config.repo_url)


def with_links(markdown: str, source: str, page: str, repository: str | None) -> str:
    """The text of a page with its links as the site has them.

    Args:
        markdown: the text.
        source: its file, from the root of the repository.
        page: the same from docs/.
        repository: its address; None: it has none.
    """

    def link(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        place = PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if place is not None:
            return f"[{text}]({posixpath.relpath(place, posixpath.dirname(page) or '.')}{anchor})"
        if not (ROOT / path).exists():
            return found[0]
        return f"[{text}]({repository.rstrip('/')}/blob/main/{path}{anchor})" if repository else text

    # Links may have code as their text, and code may look like a link.
    codes: list[str] = []

    def hide(found: re.Match[str]) -> str:
        codes.append(found[0])
        return f"\x00{len(codes) - 1}\x00"

    linked = _LINK.sub(link, _CODE.sub(hide, markdown))
    return re.sub(r"\x00(\d+)\x00", lambda found: codes[int(found[1])], linked)
