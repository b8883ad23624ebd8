"""`gnfast reproduce`: from a file to a page, on small images, for a table or figure of each paper."""

import dataclasses
import json
import math
import statistics
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from gnfast.cli import main
from gnfast.config.papers import Cell, items, printed
from gnfast.config.presets import PRESETS
from gnfast.reproduce.page import figure
from gnfast.reproduce.runs import Wanted, wanted
from gnfast.reproduce.scale import Scale, scale_of
from gnfast.reproduce.scores import Measured, column_scores, measure_further, measured, ordered_pairs
from gnfast.runs.record import best, last, read_run
from gnfast.runs.sweep_file import Case
from tests.cli.commands import fails

SMALL = [
    *("--data", "digits", "--scale", "0.00003", "--processes", "1", "--set"),
    *(
        "resolution=32",
        "batch_d=4",
        "batch_g=4",
        "n_fake=24",
        "n_samples=4",
        "width=0.03",
        "probe_every=1",
        "device=cpu",
    ),
]
"""Runs of a few steps of the smallest networks."""


def reproduce(out, *words):
    """The folder of the pages."""
    assert main(["reproduce", *words, "--out", str(out), *SMALL]) == 0
    (folder,) = out.iterdir()
    return folder


def scores(folder, name):
    """(row, column) -> the cell of scores.json."""
    found = json.loads((folder / name / "scores.json").read_text())
    assert found["item"] == name
    return {(cell["row"], cell["column"]): cell for cell in found["cells"]}


# A table or figure of each paper, and what of it is trained.
SOME = {
    "gngan-table4": "GN-BigGAN",
    "grangan-fig3": "GraND",
    "pgngan-table2": "PGN-GAN-CR",
    "sngan-table2": "Layer Norm. CIFAR",
    "lipschitz-table2": "NS-GAN-SN",
}


def test_a_table_of_each_paper_runs_to_its_page(tmp_path, capsys):
    folder = reproduce(tmp_path, *SOME, "--only", *SOME.values())
    for name in SOME:
        check_page(folder, items()[name])


def check_page(folder, item):
    """The page of an item has a place for each of its cells, what is published, and what the runs have measured."""
    page = (folder / item.name / "index.html").read_text()
    found = scores(folder, item.name)
    assert found.keys() == {(cell.row, cell.column) for cell in item.cells}
    trained = [cell for cell in found.values() if cell["runs"]]
    assert trained
    for cell in found.values():
        assert bool(cell["runs"]) != bool(cell["left_out"])
        # A row of the page for every cell, trained or not.
        assert cell["row"].replace("&", "&amp;") in page
        for text in cell["published"].values():
            assert f"published {text}" in page
    choose = best if item.at_best else last
    for cell in trained:
        assert cell["measured"]
        for score, values in cell["measured"].items():
            records = [read_run(folder / "runs" / run).rows for run in cell["runs"]]
            if score.startswith("fid"):
                assert values == [choose(rows, "distance_ema")[1] for rows in records]
            if score == "omega":
                probed = [[row for row in rows if "omega_min" in row][-1] for rows in records]
                assert values == [[row["omega_min"], row["omega_max"]] for row in probed]
    assert "at reduced size" in page.lower()
    if item.kind == "analysis":
        assert list((folder / item.name).glob("*.png")) and "data:image/png" in page


def test_runs_are_shared_kept_and_told_apart(tmp_path, capsys):
    """Two tables that ask for the same run share it, and a repeated command trains what is missing."""
    only = ["--only", "Weight clipping CIFAR"]
    folder = reproduce(tmp_path, "sngan-table2", "sngan-fig3", *only)
    runs = sorted(path.name for path in (folder / "runs").glob("sngan-*"))
    shared = "sngan-cifar10-weight-clip,seed=0"
    assert runs == [shared]
    before = (folder / "runs" / shared / "metrics.jsonl").stat().st_mtime_ns
    capsys.readouterr()
    # Another seed is another run.
    reproduce(tmp_path, "sngan-table2", *only, "--seeds", "2")
    assert "1 of 2 runs" in capsys.readouterr().out
    assert before == (folder / "runs" / shared / "metrics.jsonl").stat().st_mtime_ns
    cell = scores(folder, "sngan-table2")["Weight clipping", "CIFAR-10"]
    assert cell["runs"] == [shared, shared.replace("seed=0", "seed=1")] and len(cell["measured"]["fid"]) == 2
    assert " ± " in (folder / "sngan-table2" / "index.html").read_text()


def test_a_table_of_what_there_is_knows_the_classes_of_its_runs(tmp_path, capsys):
    """Images that stand in may have other classes than the paper's; --table does not load them and shows the same."""
    rng = np.random.default_rng(0)
    for index in range(16):
        picture = tmp_path / "my images" / "ab"[index % 2] / f"{index}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(picture)
    small = [str(picture.parent.parent) if word == "digits" else word for word in SMALL]
    words = ["reproduce", "gngan-table4", "--only", "GN-BigGAN", "--out", str(tmp_path / "out"), *small]
    assert main(words) == 0
    (folder,) = (tmp_path / "out").iterdir()
    before = scores(folder, "gngan-table4")
    assert before["GN-BigGAN", "CIFAR-10"]["measured"]
    assert main([*words, "--table"]) == 0
    assert scores(folder, "gngan-table4") == before


def test_what_cannot_be_had_is_named(tmp_path, capsys):
    """Images that are nowhere, ImageNet without a path, rows that are not asked for: each with its reason."""
    absent = str(tmp_path / "nowhere.tar")
    words = [
        "--scale",
        "0.00001",
        "--data",
        f"cifar10={absent}",
        "--only",
        "Weight clipping",
        "--set",
        "download=false",
    ]
    assert main(["reproduce", "sngan-table2", "sngan-fig7", "--out", str(tmp_path / "out"), *words]) == 0
    (folder,) = (tmp_path / "out").iterdir()
    found = scores(folder, "sngan-table2")
    assert found["Weight clipping", "CIFAR-10"]["left_out"].startswith("no data: ")
    assert "cells that are not run: " in capsys.readouterr().out
    assert absent in found["Weight clipping", "CIFAR-10"]["left_out"]
    assert found["GAN-GP", "CIFAR-10"]["left_out"] == "not asked for (--only)"
    assert found["Real data", "CIFAR-10"]["left_out"] == "real images"
    assert not (folder / "runs").exists()
    assert main(["reproduce", "sngan-fig7", "--out", str(tmp_path / "out"), "--scale", "0.00001"]) == 0
    (cell,) = scores(folder.parent / "scale=1e-05", "sngan-fig7").values()
    assert "ImageNet's training images" in cell["left_out"]


def test_columns_have_the_scores_that_the_paper_prints_there():
    table = items()["gngan-table3"]
    assert column_scores(table, "CIFAR-10") == ["is", "fid_train", "fid_test"]
    assert column_scores(table, "STL-10") == ["is", "fid_50k", "fid_10k"]
    assert column_scores(items()["gngan-fig4"], "elu") == ("is", "fid")  # bars without numbers
    assert column_scores(items()["grangan-fig3"], "CIFAR-10") == ("fid",)  # no scores


def test_what_training_does_not_measure_is_measured_where_the_paper_prints_it(monkeypatch, tmp_path):
    """GN-GAN's Table 3: FID(test) of the runs on CIFAR-10, FID(10k) of those on STL-10, at the best checkpoint."""
    table = items()["gngan-table3"]
    found = wanted(table, Scale(), 1, tmp_path, ["CNN: GN-GAN"])
    ended = SimpleNamespace(status="finished")
    runs = {
        case.name: SimpleNamespace(case=case, record=SimpleNamespace(rows=[]), state=ended)
        for one in found
        for case in one.cases
    }
    commands = []
    monkeypatch.setattr(subprocess, "run", lambda words, **_: commands.append(words) or SimpleNamespace(returncode=0))
    measure_further(table, found, runs, Scale(), print)
    assert len(commands) == len(runs) == 4
    for words in commands:
        assert words[:5] == [*words[:3], "eval", words[4]] and "--best" in words
        assert ("--split" in words) == ("cifar10" in words[4]) != ("--n" in words) == ("stl10" in words[4])
    commands.clear()
    measure_further(table, found, runs, Scale(stand_in="digits"), print)
    assert not commands


def test_an_analysis_that_shows_scores_has_their_curves():
    """GN-GAN's Fig. 3a is the IS over training; GraN-GAN's Fig. 3 has no score."""
    rows = [{"step": step, "distance_ema": 1.0, "is_ema": 1.0 + step} for step in (1, 2)]
    run = SimpleNamespace(record=SimpleNamespace(rows=rows))
    for name, shown in (("gngan-fig3", True), ("grangan-fig3", False)):
        item = items()[name]
        assert bool(figure(item, [Measured(item.cells[0], (run,), "", {})])) == shown


def a_run(folder, rows):
    """A finished run of a single cell, whose newest checkpoint is of step 20, and the cell."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "step-000000020.pt").touch()
    case, record = Case({}, "digits", {}, folder), SimpleNamespace(rows=rows)
    return SimpleNamespace(case=case, record=record, state=SimpleNamespace(status="finished", message=""))


def found(folder, paper, rows, **printed_):
    """The values of a cell that prints these scores, of a run with these rows."""
    cell = Cell("r", "", "digits", {}, {name: printed(text) for name, text in printed_.items()}, "")
    item = dataclasses.replace(items()[f"{paper}-fig1"], scores=tuple(printed_), cells=(cell,))
    (one,) = measured(item, [Wanted(cell, (Case({}, "digits", {}, folder),))], {folder.name: a_run(folder, rows)})
    return one.values


@pytest.mark.parametrize(("paper", "step"), [("gngan", 10), ("sngan", 20)])
def test_what_eval_found_counts_at_its_checkpoint_alone(tmp_path, paper, step):
    """A run that went on after it was measured, or whose best came later, is not shown with what it was before."""
    rows = [{"step": 10, "distance_ema": 1.0}, {"step": 20, "distance_ema": 2.0}]
    for of_step in (10, 20):
        folder = tmp_path / f"run{of_step}"
        folder.mkdir()
        (folder / "fid_test.json").write_text(json.dumps({"step": of_step, "distance": 7.5}))
        assert found(folder, paper, rows, fid_test="7") == ({"fid_test": [7.5]} if of_step == step else {})


@pytest.mark.parametrize(
    "content",
    ["{", "5", "[]", "", *(f'{{"step": 20, "distance": {value}}}' for value in ('"x"', "[1]", "NaN", "1e999", "true"))],
)
def test_damaged_results_of_eval_are_none(tmp_path, content):
    (tmp_path / "fid_test.json").write_text(content)
    rows = [{"step": 20, "distance_ema": 2.0, "is_ema": "high", "kid_ema": [1], "omega_min": math.nan, "omega_max": 1}]
    assert found(tmp_path, "sngan", rows, fid_test="7", fid="3", **{"is": "1"}, kid="2", omega="[0, 1]") == {
        "fid": [2.0]
    }


def test_figures_without_runs_are_drawn(tmp_path, capsys):
    assert main(["reproduce", "sngan-fig14", "lipschitz-fig2", "--out", str(tmp_path)]) == 0
    for name in ("sngan-fig14", "lipschitz-fig2"):
        assert "data:image/png" in (tmp_path / "full" / name / "index.html").read_text()


def test_a_dry_run_lists_commands_and_hours(tmp_path, capsys):
    assert main(["reproduce", "gngan-table4", "--dry-run", "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "gnfast train gngan-cifar10-biggan --extractor=inception --seed=4" in text
    assert "15 runs, about" in text and not (tmp_path / "out").exists()


def test_the_list_names_all_with_hours(capsys):
    assert main(["reproduce"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in items():
        assert sum(line.startswith(f"{name} ") for line in lines) == 1


def test_mistakes_are_one_line(tmp_path, capsys):
    assert "did you mean 'sngan-table2'" in fails(capsys, "reproduce", "sngan-tabel2")
    assert "--scale: got 0.0" in fails(capsys, "reproduce", "sngan-table2", "--scale", "0")
    assert "--seeds: got -1" in fails(capsys, "reproduce", "sngan-table2", "--seeds", "-1")
    assert "--processes: got 100000" in fails(capsys, "reproduce", "sngan-table2", "--processes", "100000")
    assert "widht" in fails(capsys, "reproduce", "sngan-table2", "--set", "widht=1")
    assert "--data: unknown data set 'cifr10'; did you mean 'cifar10'" in fails(
        capsys, "reproduce", "sngan-table2", "--data", "cifr10=cifar10.tar"
    )
    assert "--only: got 'Resnt'" in fails(capsys, "reproduce", "sngan-table2", "--only", "ResNet", "Resnt")
    assert "--set: got width twice" in fails(capsys, "reproduce", "sngan-table2", "--set", "width=1", "width=0.5")
    for word in ("run_dir=x", "run-dir=x", "seed=1", "classes=3"):
        assert "which follows from" in fails(capsys, "reproduce", "sngan-table2", "--set", word)
    assert "--data: got cifar10 twice" in fails(capsys, "reproduce", "sngan-table2", "--data", "cifar10=a", "cifar10=b")
    for word in ("", "cifar10="):
        assert f"--data: got {word}, wanted NAME=PATH" in fails(capsys, "reproduce", "sngan-table2", "--data", word)
    stand_in = str(tmp_path / "nowhere")
    for words in (["sngan-table2"], ["sngan-table2", "--scale", "0.00001"]):
        assert stand_in in fails(capsys, "reproduce", *words, "--data", stand_in, "--out", str(tmp_path / "out"))


def test_a_failed_run_is_status_1(tmp_path, capsys):
    words = ["reproduce", "sngan-table2", "--only", "Weight clipping CIFAR", "--out", str(tmp_path), *SMALL]
    assert main([*words, "extractor=nowhere:anything"]) == 1
    assert "nowhere" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("data", "options", "name"),
    [
        ((), (), "full"),
        ((), ("device=cpu", "threads=2"), "full"),
        (("cifar10=somewhere",), (), "full"),
        ((), ("width=0.5",), "width=0.5"),
        (("digits",), (), "digits"),
        (("full",), (), "data=full"),
        ((".",), (), "data=."),
        (("..",), (), "data=.."),
        (("../x",), (), "..-x"),
    ],
)
def test_full_size_is_no_other(data, options, name):
    """Runs of full size are the paper's, wherever they are computed, and have a folder that no other scale has."""
    scale = scale_of(1, data, options)
    assert scale.name == name and scale.is_full == (name == "full")


def test_reduced_settings():
    config = PRESETS["sngan-cifar10-weight-clip"].config
    assert config.n_real == 10_000
    # However small, a network has a width, and images that stand in for others need not be as many.
    assert scale_of(1e-300, (), ()).settings(config)["width"] == 1e-4
    assert scale_of(1, ("digits",), ()).settings(config)["n_real"] == 0


def test_settings_that_are_lists_reach_the_runs():
    options = scale_of(1, (), ("betas=[0.5, 0.99]",)).options
    assert Case({}, "digits", dict(options), Path("run")).words() == [
        *("train", "digits", "--betas", "0.5", "0.99", "--run-dir=run")
    ]


def cell(text, value):
    return Measured(Cell("r", "c", "p", {}, {"fid": printed(text)}, ""), tuple(value), "", {"fid": value})


def test_pairs_in_the_published_order():
    cells = [cell("10.0", [1.0, 3.0]), cell("20.0", [4.0]), cell("30±1", [3.0]), cell("30", [9.0]), cell("5", [])]
    # 10 < 20, 10 < 30, 10 < 30 as measured; 20 < 30 not, then yes; the two of 30 do not differ.
    assert ordered_pairs(cells, "fid") == [(True, False), (True, False), (True, False), (False, False), (True, False)]
    # Each seed has the first two in this order, and the first and the last; the other two change places.
    several = [cell("10", [1.0, 20.0]), cell("20", [2.0, 30.0]), cell("5", [3.0, 28.0])]
    assert ordered_pairs(several, "fid") == [(True, True), (False, True), (True, False)]
    # Of which seed a score is missing, its runs say, not the list.
    short = Measured(several[0].cell, ("seed 0", "seed 1", "seed 2"), "", several[0].values)
    assert ordered_pairs([short, several[1]], "fid") == [(True, False)]
    assert cells[0].shown("fid") == "2.0 ± 1.4" and cells[0].difference("fid") == f"{2 - 10:+.4g}"
    assert cells[4].shown("fid") == "–" and not cells[4].difference("fid")
    assert statistics.mean(cells[0].values["fid"]) == 2
