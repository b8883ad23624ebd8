"""The documentation site: it builds without a warning, no link in it is dead, nothing comes from elsewhere, and every
public name has its entry.
"""

import html
import inspect
import logging
import pkgutil
import re
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

import gnfast
from gnfast import heads, losses, measure, metrics, penalties, reference
from tests.docs.blocks import ROOT
from website.formulas import mathml
from website.lists import with_wide_lists
from website.pages import with_links

NAMES = {f"gnfast.{name}" for name in gnfast.__all__ if not inspect.ismodule(getattr(gnfast, name))}
NAMES |= {f"gnfast.metrics.{name}" for name in metrics.__all__} | {f"gnfast.measure.{name}" for name in measure.__all__}
# Modules without a list of their public names: what they define.
for module, shown in ((reference, "reference"), (penalties, "penalties"), (heads, "heads"), (losses, "losses")):
    NAMES |= {
        f"gnfast.{shown}.{name}"
        for name, member in vars(module).items()
        if name[0] != "_" and inspect.isfunction(member) and member.__module__ == module.__name__
    }
# What the engine alone calls.
NAMES -= {f"gnfast.heads.{name}" for name in ("normalize", "plain", "pull")}
NAMES |= {f"gnfast.heads.{name}" for name, member in vars(heads).items() if isinstance(member, heads.Head)}
NAMES |= {"gnfast.heads.METHODS"}
NAMES |= {"gnfast.losses.LOSSES", "gnfast.penalties.PENALTIES", "gnfast.models.build", "gnfast.data.load"}


class Page(HTMLParser):
    """What a page of the site leads to, and what can be led to."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.sources, self.text = set(), [], [], text
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids.add(given.get("id"))
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        sources = [given.get("src"), given.get("href") if tag == "link" else None]
        self.sources += filter(None, sources)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Its pages, by their paths."""
    folder = tmp_path_factory.mktemp("site")
    warnings = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())
    logger = logging.getLogger("mkdocs")
    logger.addHandler(handler)
    try:
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=False))
    finally:
        logger.removeHandler(handler)
    assert not warnings
    return {path: Page(path.read_text()) for path in folder.rglob("*.html")}


def test_no_link_is_dead(site):
    dead = []
    for path, page in site.items():
        for link in {*page.links, *page.sources}:
            if re.match(r"\w+:", link):
                continue
            name, _, anchor = link.partition("#")
            target = (path.parent / unquote(name)).resolve() if name else path
            if path.name == "404.html":
                # Its links are from the root of a server.
                continue
            if not target.is_file() or (anchor and target in site and unquote(anchor) not in site[target].ids):
                dead.append(f"{path.name}: {link}")
    assert len(site) > 25
    assert not dead


def test_nothing_comes_from_elsewhere(site):
    for path, page in site.items():
        assert not [source for source in page.sources if re.match(r"(https?:)?//", source)], path


def test_every_public_name_has_an_entry_that_says_something(site):
    ids = set().union(*(page.ids for page in site.values()))
    assert not NAMES - ids
    assert len(NAMES) > 90
    text = "".join(page.text for page in site.values())
    for name in NAMES:
        # What stands between its heading and the next.
        entry = text.partition(f'id="{name}" class="doc doc-heading"')[2].partition('class="doc doc-heading"')[0]
        entry = entry.partition('class="doc doc-contents')[2].partition(">")[2]
        said = re.findall(r"\w+", html.unescape(re.sub(r"<[^>]*>", "", entry)))
        assert len(said) >= 5, name
        found = pkgutil.resolve_name(name)
        if inspect.isfunction(found) or inspect.isclass(found):
            begins = re.findall(r"\w+", (inspect.getdoc(found) or "").partition("\n")[0])[:5]
            assert begins == said[: len(begins)], name


def test_formulas_and_code_are_not_left_as_text(site):
    """A list right after a line of text, a formula that no one turned: they would stand there as they are written."""
    for path, page in site.items():
        body = re.sub(r"<(pre|code|script|title).*?</\1>", "", page.text, flags=re.DOTALL)
        assert not re.findall(r"\\\(|\\\[|\$\$|\$\\|<p>(?:[*-]|\d+\.) |\n\* |```|:::|\*\*", body), path
    assert not [path for path, page in site.items() if "\\|</code>" in page.text or r"\| " in page.text]
    assert "<math" in next(page.text for path, page in site.items() if path.name == "algorithm.html")


def test_every_environment_variable_is_in_the_table():
    files = [ROOT / "setup.py", *(ROOT / "gnfast").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    files += [*(ROOT / "tests").rglob("*.py")]
    code = {name for file in files for name in re.findall(r"\bGNFAST_[A-Z_]+\b", file.read_text())}
    # Macros of C++.
    code -= {"GNFAST_X86_KERNELS"}
    assert code == set(re.findall(r"\bGNFAST_[A-Z_]+\b", (ROOT / "docs/environment.md").read_text()))


@pytest.mark.parametrize(
    ("github", "site"),
    [
        ("a\n* b\n  c\n* d\n\n  e\n", "a\n\n*   b\n    c\n*   d\n\n    e\n"),
        (
            "1. a\n   * b\n\n   ```\n   c\n     d\n   ```\n2. e\n",
            "1.  a\n    *   b\n\n    ```\n    c\n      d\n    ```\n\n2.  e\n",
        ),
        ("a 1.\n2. b\n", "a 1.\n2. b\n"),
        ("* a\n\n  b\n* c\n", "*   a\n\n    b\n\n*   c\n"),
        ("* a\n  b\n  * c\n  * d\n", "*   a\n    b\n\n    *   c\n    *   d\n"),
        ("```\n* a\n```\n", "```\n* a\n```\n"),
        ("a\n\n    * code\n", "a\n\n    * code\n"),
    ],
)
def test_lists_are_those_of_github(github, site):
    assert with_wide_lists(github) == site


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("[a](docs/faq.md#b)", "[a](faq.md#b)"),
        ("[`a`](docs/faq.md) `[a](docs/faq.md)`", "[`a`](faq.md) `[a](docs/faq.md)`"),
        ("[a](setup.py)", "[a](https://example.org/x/blob/main/setup.py)"),
        ("[a](https://b.c) ![a](docs/d.png)", "[a](https://b.c) ![a](docs/d.png)"),
    ],
)
def test_links_out_of_the_docs_lead_to_the_repository(given, wanted):
    assert with_links(given, "CHANGELOG.md", "changelog.md", "https://example.org/x/") == wanted
    assert with_links("[a](setup.py)", "CHANGELOG.md", "changelog.md", None) == "a"


def test_a_formula_of_unknown_commands_is_an_error():
    assert "<msubsup><mi>x</mi><mn>1</mn><mn>2</mn></msubsup>" in mathml("x_1^2")
    bar = '<mo stretchy="false" lspace="0" rspace="0">&#x02016;</mo>'
    assert f"{bar}<mi>g</mi><msub>{bar}<mn>2</mn></msub>" in mathml(r"\lVert g \rVert_2")
    with pytest.raises(ValueError, match="unknown"):
        mathml(r"\frac{a}{b} \unknown")
