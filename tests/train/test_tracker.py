"""Weights & Biases, as its module would be called: the real one was tried by hand, offline."""

import json
import sys
from types import SimpleNamespace

import pytest

from gnfast.cli import main
from gnfast.errors import InputError
from gnfast.io.rows import read_rows
from gnfast.train import NonFiniteLossError, session
from gnfast.train.tracker import ID
from tests.cli.commands import TINY, fails
from tests.tiny_runs import quiet, tiny


class Fake:
    """The module wandb, with what was done to each of its runs."""

    def __init__(self, monkeypatch, step=0, fails_at=None):
        self.runs, self.step, self.fails_at = [], step, fails_at
        self.Settings, self.Image = SimpleNamespace, lambda picture: ("image", picture.size)
        monkeypatch.setitem(sys.modules, "wandb", self)

    def init(self, **given):
        run = SimpleNamespace(given=given, id=given["id"], step=self.step, logged=[], finished=None)

        def log(values, step):
            if step == self.fails_at:
                raise OSError("no room")
            run.step = step
            run.logged.append((step, values))

        run.log, run.finish = log, lambda exit_code: setattr(run, "finished", exit_code)
        self.runs.append(run)
        return run


def tracked(folder, **changes):
    how = {"log_every": 2, "sample_every": 2, "n_samples": 4, "probe_every": 0, "eval_every": 0}
    return tiny(folder, wandb="faces", **{"extractor": "none", **how, **changes})


def test_a_run_sends_its_numbers_pictures_and_settings(tmp_path, monkeypatch):
    fake = Fake(monkeypatch)
    assert quiet("digits", tracked(tmp_path / "run", steps=4))[0].finished
    (run,) = fake.runs
    assert (run.given["project"], run.given["name"], run.given["resume"]) == ("faces", "run", None)
    assert run.given["dir"] == str(tmp_path / "run") and run.given["settings"].console == "off"
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert run.given["config"] == {"preset": "digits", **saved["config"]}
    numbers = [(row.pop("step"), row) for row in read_rows(tmp_path / "run" / "metrics.jsonl")]
    assert [step for step, _ in numbers] == [2, 4]
    assert [entry for entry in run.logged if "loss_real" in entry[1]] == numbers
    pictures = [(step, *values) for step, values in run.logged if values.keys() & {"ema", "raw"}]
    assert sorted(pictures) == [(2, "ema"), (2, "raw"), (4, "ema"), (4, "raw")]
    assert sum("steps_per_second" in values for _, values in run.logged) == 2
    assert run.finished == 0


def test_a_continued_run_continues_there(tmp_path, monkeypatch):
    fake = Fake(monkeypatch)
    quiet("digits", tracked(tmp_path / "run", steps=4))
    # As after a kill: more is known there than the last checkpoint knows.
    fake.step = 7
    quiet("digits", tracked(tmp_path / "run", steps=8))
    first, second = fake.runs
    assert second.given["id"] == first.given["id"] and second.given["resume"] == "allow"
    assert {step for step, _ in second.logged} == {8}
    (tmp_path / "run" / ID).write_text("../x")
    quiet("digits", tracked(tmp_path / "run", steps=10))
    assert fake.runs[2].given["resume"] is None and fake.runs[2].given["id"].isalnum()


def test_what_fails_there_does_not_end_the_run(tmp_path, monkeypatch):
    fake = Fake(monkeypatch, fails_at=2)
    outcome, lines = quiet("digits", tracked(tmp_path / "run", steps=4))
    assert outcome.finished
    assert [line for line in lines if "Weights & Biases" in line] == [
        "warning: nothing goes to Weights & Biases from step 2 on: no room"
    ]
    assert fake.runs[0].logged == []


def test_a_run_that_fails_is_a_failed_one_there(tmp_path, monkeypatch):
    fake = Fake(monkeypatch)

    def diverged(*_):
        raise NonFiniteLossError(2, "loss_real is nan")

    monkeypatch.setattr(session, "means", diverged)
    with pytest.raises(NonFiniteLossError):
        quiet("digits", tracked(tmp_path / "run", steps=4))
    assert fake.runs[0].finished == 1


@pytest.mark.parametrize("module", [None, SimpleNamespace()])
def test_without_the_package_nothing_is_begun(tmp_path, monkeypatch, capsys, module):
    monkeypatch.setitem(sys.modules, "wandb", module)
    words = ("train", "digits", *TINY, "--extractor=none", f"--run-dir={tmp_path / 'run'}")
    line = fails(capsys, *words, "--wandb=faces")
    assert "--wandb: got 'faces', wanted none without the package wandb: pip install wandb" in line
    assert not (tmp_path / "run").exists()
    # Nobody else needs it.
    assert main([*words, "--steps=1"]) == 0


def test_what_keeps_it_from_beginning_is_one_line(tmp_path, monkeypatch):
    fake = Fake(monkeypatch)

    def init(**_):
        raise RuntimeError("No API key configured.\nUse `wandb login`")

    fake.init = init
    with pytest.raises(InputError, match=r"--wandb: No API key configured\. Use `wandb login`"):
        quiet("digits", tracked(tmp_path / "run", steps=4))
