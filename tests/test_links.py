"""Links of the documentation lead somewhere: to a file, and in Markdown to a heading."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "examples" / "README.md"])
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]*)?\)")


def anchors(page):
    """Of its headings, as GitHub makes them; of entries of the API reference, as the site does."""
    headings = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
    entries = re.findall(r"^::: (.*)", page.read_text(), re.MULTILINE)
    named = {"#" + re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}
    return named | {f"#{entry}" for entry in entries}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"`[^`\n]+`", "", page.read_text())
    for name, anchor in LINK.findall(text):
        place = page.parent / name if name else page
        assert place.exists(), name
        assert not anchor or anchor in anchors(place), f"{name}{anchor}"
