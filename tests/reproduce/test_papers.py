"""The files of the papers' tables: their form, their runs, and every number against a second reading of the papers."""

import re
import tomllib
from pathlib import Path

import pytest

from gnfast.analysis.compare import COMPARED
from gnfast.analysis.drawings import DRAWINGS
from gnfast.config.config import Config
from gnfast.config.papers import PAPERS, SCORES, STATES, items, printed, read_item, reported
from gnfast.config.presets import PRESETS
from gnfast.reproduce.runs import wanted
from gnfast.reproduce.scale import Scale, scale_of

ROOT = Path(__file__).parents[2]
# By item, "row | column | score" = what the paper prints: read from the papers by someone who had not seen the files.
SECOND = tomllib.loads((Path(__file__).parent / "second_reading.toml").read_text())


def numbers(item):
    """`row | column | score` -> as printed."""
    return {
        f"{cell.row} | {cell.column} | {score}": number.text
        for cell in item.cells
        for score, number in cell.printed.items()
    }


def test_every_paper_has_its_items():
    counts = {paper: sum(item.paper == paper for item in items().values()) for paper in PAPERS}
    # Tables and figures as numbered in each paper, and GN-GAN's search for λ, which its text tells of.
    assert counts == {"GN-GAN": 4 + 5 + 1, "GraN-GAN": 3 + 4, "PGN-GAN": 6 + 8, "SN-GAN": 8 + 15, "Lipschitz": 5 + 5}


@pytest.mark.parametrize("name", items())
def test_numbers_are_those_of_a_second_reading(name):
    assert numbers(items()[name]) == SECOND.get(name, {})


def test_no_number_of_the_second_reading_is_lost():
    assert not SECOND.keys() - items().keys()


@pytest.mark.parametrize("name", items())
def test_every_cell_has_a_run_or_a_reason(name, tmp_path):
    item = items()[name]
    for one in wanted(item, Scale(), 0, tmp_path):
        assert one.left_out or len(one.cases) == item.seeds
        assert one.cell.preset or one.left_out
        for case in one.cases:
            assert isinstance(case.config(), Config)
    assert set(item.scores) <= SCORES.keys() and item.state in STATES
    assert set(item.analyses) <= COMPARED.keys()
    assert item.kind != "drawn" or item.drawing in DRAWINGS
    assert len(item.title) <= 75, "a line of `gnfast reproduce` has 120 columns"


def test_docs_list_every_item():
    text = (ROOT / "docs" / "papers.md").read_text()
    for item in items().values():
        title = item.title.replace("|", r"\|")
        assert f"| `{item.name}` | {item.item} | {title} | {item.state} |" in text


def test_presets_report_what_the_files_say():
    assert "IS 7.71±.14" in PRESETS["gngan-cifar10-cnn"].reported
    for name, preset in PRESETS.items():
        assert preset.reported == reported(name, preset.config)


@pytest.mark.parametrize(
    ("text", "mean", "std", "interval"),
    [
        ("7.42±.08", 7.42, 0.08, None),
        ("8.22 ±.05", 8.22, 0.05, None),
        (25.5, 25.5, None, None),
        ("0", 0.0, None, None),
        ("[-8.130, 126.501]", None, None, (-8.13, 126.501)),
    ],
)
def test_printed_numbers_are_read(text, mean, std, interval):
    number = printed(text)
    assert (number.mean, number.std, number.interval) == (mean, std, interval)


@pytest.mark.parametrize("text", ["", "7.42±", "seven", "[1, 2", "1.2.3", "7.42+.08"])
def test_what_is_no_number_is_refused(text):
    with pytest.raises(ValueError, match="wanted a number"):
        printed(text)


GOOD = """
paper = "SN-GAN"
item = "Table 2"
title = "t"
kind = "table"
state = "full"
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('paper = "SN-GAN"', 'paper = "SNGAN"'), "paper: unknown name 'SNGAN'; did you mean 'SN-GAN'"),
        (('state = "full"', 'state = "reduced"'), "note: state 'reduced' needs one"),
        (('kind = "table"', 'kind = "analysis"'), "analyses, drawing: wanted with kind"),
        (('title = "t"\n', ""), "title: missing"),
        (('title = "t"', "title = 5"), "the file, title: got 5, wanted str"),
        (('title = "t"', 'title = "t"\nseeds = 0'), "seeds: got 0, wanted at least 1"),
        (('title = "t"', 'title = "t"\nseeds = true'), "the file, seeds: got True, wanted int"),
        (('title = "t"', 'title = "t"\ncell = [5]'), "cell: got 5, wanted a table"),
        (('title = "t"', 'title = "t"\ncell = [{preset = "p", options = 5}]'), "cell, options: got 5, wanted dict"),
        (('title = "t"', 'title = "t"\ncell = [{preset = "p", vary = {alpha = 5}}]'), "wanted one option and a list"),
        (('title = "t"', 'title = "t"\nbase = {seed = 1}'), "seed: got 1, wanted none: every run has its own"),
        (
            ('title = "t"', 'title = "t"\ncell = [{preset = "p", options = {run_dir = "."}}]'),
            "run_dir: got '.', wanted none: every run has its own",
        ),
        (
            ('title = "t"', 'title = "t"\ncell = [{row = "r", why = "w"}, {row = "r", why = "w"}]'),
            "cell 'r', '': there are 2, wanted one",
        ),
        (('title = "t"', 'titel = "t"'), "the file: unknown name 'titel'; did you mean 'title'"),
        (('title = "t"', 'title = "t"\ncell = [{row = "r"}]'), "cell 'r', '': why: a cell without a preset needs one"),
        (('title = "t"', 'title = "t"\ncell = [{row = "r", why = "w", fid = "x"}]'), "cell 'r', '': got 'x'"),
        (
            ('title = "t"', 'title = "t"\ncell = [{row = "r", preset = "p", vary = {k_sn = [1.0, 2.0]}, fid = ["1"]}]'),
            "cell 'r', '': vary: 2 values, wanted as many of each score",
        ),
    ],
)
def test_files_that_are_wrong_say_where(tmp_path, change, message):
    path = tmp_path / "sngan-table2.toml"
    path.write_text(GOOD.replace(*change))
    with pytest.raises(ValueError, match=f"^sngan-table2.toml: .*{re.escape(message)}"):
        read_item(path)


def test_scale_shrinks_a_run_in_every_respect():
    config = PRESETS["gngan-cifar10-biggan"].config
    found = Scale(factor=0.01).settings(config)
    assert (found["steps"], found["ema_start"]) == (1250, 10)
    assert found["width"] == 0.1 and found["n_fake"] == 500
    # As many half-lives of the average in the run as before.
    assert (1 - found["ema_decay"]) * found["steps"] == pytest.approx((1 - config.ema_decay) * config.steps)
    assert found["eval_every"] == 125 and found["extractor"] == "classifier"
    assert Scale().settings(config) == {"extractor": "inception"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((0.0, [], []), "--scale: got 0.0"),
        ((2.0, [], []), "--scale: got 2.0"),
        ((1.0, ["digits", "mnist"], []), "--data: got digits, mnist"),
        ((1.0, ["digits", "cifar10=x"], []), "--data: got digits, cifar10=x"),
        ((1.0, [], ["width"]), "--set: got 'width'"),
        ((1.0, [], ["widht=1"]), "--widht: this version of gnfast has no such setting"),
        ((1.0, [], ["width=-1"]), "--width: got -1, wanted a positive number"),
    ],
)
def test_words_that_make_no_scale_are_refused(words, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        scale_of(*words)
