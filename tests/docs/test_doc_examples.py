"""What the documentation shows runs: its Python, page by page, and its commands as far as their options."""

import re
import textwrap
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gnfast
from tests.docs.blocks import PAGES, ROOT, blocks, check, commands, statements
from tests.tiny_runs import quiet, tiny

GIVEN_FROM = ROOT / "docs/start", ROOT / "docs/index.md", ROOT / "docs/faq.md"
"""Pages that say everything themselves: their first block begins with nothing. The others may use what `given` has."""


def given():
    """What the reader of an excerpt has: a critic, images of 32 pixels, a generator's latents."""
    net_D = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 1))
    x = torch.randn(4, 3, 32, 32)
    names = {
        "net_D": net_D,
        "net": net_D,
        "critic": net_D,
        "layer": nn.Linear(3, 3),
        "x": x,
        "x_real": x,
        "x_fake": x.flip(0),
    }
    return names | {"torch": torch, "nn": nn, "F": F, "gnfast": gnfast}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where readers are: with a file that `gnfast export` wrote."""
    from gnfast.train.export import export

    folder = tmp_path_factory.mktemp("reader")
    quiet("digits", tiny(folder / "run", channels=3, z_dim=128, steps=1))
    export(folder / "run", folder / "G.safetensors")
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_on_the_page_runs(page, folder, monkeypatch):
    monkeypatch.chdir(folder)
    alone = any(page.is_relative_to(place) for place in GIVEN_FROM)
    namespace = {"__name__": "reader"} if alone else given()
    for block in blocks(page.read_text()):
        if block.language == "python" and block.is_run:
            # Lines of an error are those of the page.
            code = compile("\n" * block.line + statements(block), str(page), "exec")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", gnfast.FallbackWarning)
                exec(code, namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_on_the_page_are_understood(page, monkeypatch, capsys):
    for words in commands(page.read_text()):
        try:
            check(words, monkeypatch)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{' '.join(words)}: {error}") from error


def test_what_does_not_exist_is_found(monkeypatch):
    """Words that are wrong in each way."""
    wrong = ["gnfast train digits --stepz 3", "gnfast train digitz", "gnfast sing", "make tests", "make hunt MINUTE=1"]
    wrong += [
        "python benchmarks/none.py",
        "python benchmarks/must_reach.py --none",
        "python -m tests.hunt --none  # why",
    ]
    found = list(commands("\n".join(["", "```bash", *wrong, "```", ""])))
    assert len(found) == 8
    for words in found:
        with pytest.raises((Exception, SystemExit)):
            check(words, monkeypatch)


def test_code_of_the_recipes_is_that_of_the_library():
    """Of blocks within a list, which the other tests leave alone."""
    recipes = re.findall(
        r"^   ```python\n(.*?)^   ```", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL
    )
    source = "".join(path.read_text() for path in ROOT.glob("gnfast/plan/ops/*.py"))
    assert recipes and all(textwrap.dedent(code) in source for code in recipes)


def test_few_blocks_are_left_out():
    """And each says why."""
    left_out = [block for page in PAGES for block in blocks(page.read_text()) if not block.is_run]
    assert len(left_out) <= 5
