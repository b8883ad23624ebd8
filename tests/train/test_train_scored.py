"""What a run is scored with where nobody says, that it says so, and that it says how far it is without a terminal."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from gnfast.data import ImageDataset
from gnfast.metrics import classifier
from gnfast.train import first_step, scored, session, train
from gnfast.train.parallel import ALONE
from tests.tiny_runs import quiet, tiny

LABELLED = ImageDataset("toys", torch.zeros(12, 1, 8, 8, dtype=torch.uint8), torch.arange(12) % 2, ("a", "b"))
PLAIN = ImageDataset("plain", torch.zeros(12, 1, 8, 8, dtype=torch.uint8))
WEIGHTS = Path("weights.pth")


@pytest.mark.parametrize(
    ("dataset", "device", "weights", "changes", "chosen"),
    [
        (LABELLED, "cuda", WEIGHTS, {}, "inception"),
        (LABELLED, "cpu", WEIGHTS, {}, "classifier"),
        (PLAIN, "cpu", None, {"extractor_weights": "own.pth"}, "inception"),
        (LABELLED, "cuda", None, {}, "classifier"),
        (PLAIN, "cuda", None, {}, "none"),
        (ImageDataset("one", PLAIN.images, torch.zeros(12).long(), ("a",)), "cpu", None, {}, "none"),
        # A look.
        (LABELLED, "cuda", WEIGHTS, {"steps": 99}, "none"),
        (LABELLED, "cuda", WEIGHTS, {"steps": 99, "eval_every": 0}, "inception"),
        (LABELLED, "cuda", WEIGHTS, {"extractor": "none"}, "none"),
    ],
)
def test_what_is_chosen(monkeypatch, tmp_path, dataset, device, weights, changes, chosen):
    monkeypatch.setattr(scored, "found", lambda: weights)
    config = tiny(tmp_path, **({"steps": 100, "eval_every": 100} | changes))
    found = scored.with_extractor(config, dataset, torch.device(device), tmp_path, ALONE)
    assert found.extractor == chosen
    assert found.n_fake == (5000 if (device, chosen) == ("cpu", "classifier") else config.n_fake)


def test_a_run_says_what_it_is_scored_with_and_keeps_to_it(tmp_path, monkeypatch):
    monkeypatch.setenv("GNFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(classifier, "_MAX_STEPS", 2)
    config = tiny(tmp_path / "run", steps=2, eval_every=2, n_fake=12, probe_every=0)
    _, lines = quiet("digits", config)
    (line,) = [line for line in lines if line.startswith("scores: ")]
    assert "of 12 images in features of digits-classifier (right on " in line and "gnfast weights" in line
    assert "% of held-out images) at step 0, every 2 steps and at the end, not FID" in line
    (warning,) = [line for line in lines if line.startswith("warning: covariance")]
    assert warning.startswith("warning: covariance singular: 12 generated images for 64 features")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["extractor"] == "classifier"
    monkeypatch.setattr(scored, "_chosen", lambda *_: "none")
    again = scored.with_extractor(config, PLAIN, torch.device("cpu"), tmp_path / "run", ALONE)
    assert again.extractor == "classifier"


def test_a_batch_of_more_images_than_there_are_is_said(tmp_path):
    few = [Image.new("L", (8, 8), 40 * number) for number in range(6)]
    for batch, said in ((6, []), (7, ["warning: 6 images for batches of 7: each comes several times"])):
        lines = []
        config = tiny(tmp_path / str(batch), extractor="none", probe_every=0, steps=1, batch_d=batch)
        train("digits", config, dataset=few, progress=False, echo=lines.append)
        assert [line for line in lines if "images for batches of" in line] == said


def test_without_a_terminal_lines_say_how_far_a_run_is(tmp_path, monkeypatch):
    config = tiny(tmp_path / "run", steps=4, extractor="none", probe_every=0)
    assert not [line for line in quiet("digits", config)[1] if "steps/s" in line]
    monkeypatch.setattr(session, "LINE_SECONDS", 0.0)
    _, lines = quiet("digits", tiny(tmp_path / "other", steps=4, extractor="none", probe_every=0))
    told = [
        match for line in lines if (match := re.fullmatch(r"step (\d) of 4, [\d.e+]+ steps/s, \d\d:\d\d left", line))
    ]
    assert [match[1] for match in told] == ["1", "2", "3"]
    assert [line for line in lines if line.startswith("scores: none")]


def test_a_first_step_that_takes_long_says_what_goes_on(tmp_path, monkeypatch, capsys):
    """At once on the bar, whose clock goes on, and after a while in a line; and later steps no more."""
    settings = {"extractor": "none", "probe_every": 0, "steps": 2}
    assert not [line for line in quiet("digits", tiny(tmp_path / "short", **settings))[1] if "so far" in line]
    monkeypatch.setattr(first_step, "TICK", 0.001)
    monkeypatch.setattr(first_step, "LINE_AFTER", 0.0)
    lines, config = [], tiny(tmp_path / "run", **settings)
    train("digits", config, echo=lines.append)
    said = "step 1 has taken 0 s so far; the first one of a session also traces the critic"
    assert [line for line in lines if "so far" in line] == [said]
    bars = [bar for bar in capsys.readouterr().err.split("\r") if bar.strip()]
    begun, later = ([bar for bar in bars if f" {step}/2 " in bar] for step in (0, 2))
    assert len(begun) > 2 and all(bar.startswith("first step:   0%") for bar in begun[1:])
    assert later and not any("first step" in bar for bar in later)
