"""Runs that are killed, run out of disk or diverge: a clear end, and nothing lost."""

import contextlib
import dataclasses
import errno
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch

from gnfast.bench.program import as_on_a_gpu
from gnfast.io.rows import read_rows
from gnfast.io.tensors import load_tensors
from gnfast.metrics import Scores
from gnfast.runs import checkpoint, evaluations
from gnfast.runs.record import best, read_run
from gnfast.train import NonFiniteLossError, RunError, session, step
from gnfast.train.state import State
from tests.kills import Runs, concurrent_starts, kills
from tests.tiny_runs import equal, quiet, tiny


@pytest.fixture
def config(tmp_path):
    return tiny(tmp_path / "run", steps=30, n_samples=4, sample_every=0, checkpoint_every=8, log_every=5)


@pytest.mark.parametrize("as_on_gpu", [False, True])
def test_runs_that_are_killed_or_started_twice_end_like_one_that_was_left_alone(as_on_gpu, tmp_path):
    whole = Runs(tmp_path, as_on_gpu)
    outcomes = [next(kind(random.Random(3), tmp_path, whole=whole)) for kind in (kills, concurrent_starts)]
    assert outcomes[0].kills and not any(outcome.faults for outcome in outcomes), outcomes


def test_a_full_disk_ends_the_run_clearly_and_it_continues(config, monkeypatch):
    class FullDisk:
        """A file on a disk with no room for it."""

        def __init__(self, file):
            self.file = file

        def write(self, content):
            raise OSError(errno.ENOSPC, "No space left on device")

        def __getattr__(self, name):
            return getattr(self.file, name)

    save = torch.save

    def fail_at_16(state, file):
        save(state, FullDisk(file) if state["state"]["step"] == 16 else file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fail_at_16)
        with pytest.raises(RunError, match=r"no space left on the disk of .*run; free some and repeat the command"):
            quiet("digits", config)
    outcome, lines = quiet("digits", config)
    assert "continuing after step 8" in lines[0]
    assert outcome.finished


def test_a_log_on_a_full_disk_ends_the_run_clearly(config, monkeypatch):
    from gnfast.train.logs import RunLog

    def full(self, step, **values):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RunLog, "row", full)
    with pytest.raises(RunError, match="no space left"):
        quiet("digits", config)


def test_a_report_that_cannot_be_written_does_not_end_the_run(config):
    quiet("digits", config)
    page = Path(config.run_dir) / "report.html"
    page.unlink()
    page.mkdir()
    outcome, lines = quiet("digits", dataclasses.replace(config, steps=35))
    assert outcome.finished and any(line.startswith("warning: no report.html (OccupiedError") for line in lines)


def test_rows_that_a_continued_run_lacks_are_told(config):
    config = dataclasses.replace(config, steps=11)
    quiet("digits", config)
    path = Path(config.run_dir) / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 3
    for kept, missing in ((None, "1 to 11"), (0, "1 to 11"), (1, "6 to 11"), (2, ""), (3, "")):
        path.unlink()
        if kept is not None:
            path.write_text("".join(lines[:kept]))
        _, said = quiet("digits", config)
        told = f"warning: {path} has no rows of steps {missing}"
        assert [line for line in said if "no rows" in line] == ([told] if missing else []), kept


@pytest.mark.parametrize("tensorboard", [True, False])
def test_a_run_folder_that_is_deleted_is_named(config, tensorboard, capfd, monkeypatch):
    folder = Path(config.run_dir)
    update = State.update

    def deleting(state):
        update(state)
        if state.step == 7:
            shutil.rmtree(folder)

    monkeypatch.setattr(State, "update", deleting)
    with pytest.raises(RunError, match=f"{folder} or its metrics.jsonl was deleted or moved"):
        quiet("digits", dataclasses.replace(config, tensorboard=tensorboard))
    assert not folder.exists() and "Traceback" not in capfd.readouterr().err


def test_the_guard_saves_the_state_before_a_nan(config, monkeypatch):
    """The critic's weights are poisoned in update 13: seen at 15, found in 13, saved after 12."""
    original = step.critic_update

    def poisoned(state, draw):
        if state.step == 12:
            next(state.critic.parameters()).data.fill_(float("nan"))
        return original(state, draw)

    with monkeypatch.context() as patch:
        patch.setattr(step, "critic_update", poisoned)
        with pytest.raises(NonFiniteLossError, match=r"step 13: loss_real is nan.*--lr-d") as caught:
            quiet("digits", config)
    assert caught.value.step == 13
    saved = checkpoint.load_newest(Path(config.run_dir) / "checkpoints")["state"]
    assert saved["step"] == 12
    assert all(value.isfinite().all() for value in saved["critic"].values())
    assert "the state after step 12 is saved" in (Path(config.run_dir) / "log.txt").read_text()
    # What is saved is the state of a run that nothing happened to.
    outcome, lines = quiet("digits", config)
    assert "continuing after step 12" in lines[0]
    whole = dataclasses.replace(config, run_dir=config.run_dir + "-whole")
    quiet("digits", whole)
    a, b = (checkpoint.load_newest(Path(c.run_dir) / "checkpoints")["state"] for c in (config, whole))
    assert outcome.finished
    assert equal(a, b)
    assert read_rows(Path(config.run_dir) / "metrics.jsonl") == read_rows(Path(whole.run_dir) / "metrics.jsonl")


@pytest.mark.parametrize("arranged", [contextlib.nullcontext, as_on_a_gpu], ids=["cpu", "gpu"])
@pytest.mark.parametrize("ends", ["checkpoint", "signal"])
def test_no_checkpoint_has_a_loss_that_is_not_finite(arranged, ends, config, monkeypatch):
    """Also where it is due, or a signal comes, between two rows of the log, in the step that fails."""
    config = dataclasses.replace(config, checkpoint_every=13 if ends == "checkpoint" else 0)
    original = step.critic_update

    def poisoned(state, draw):
        if state.step == 12:
            next(state.critic.parameters()).data.fill_(float("nan"))
            if ends == "signal":
                os.kill(os.getpid(), signal.SIGTERM)
        return original(state, draw)

    monkeypatch.setattr(step, "critic_update", poisoned)
    for _ in range(2):
        with arranged(), pytest.raises(NonFiniteLossError, match="step 13"):
            quiet("digits", config)
        saved = checkpoint.load_newest(Path(config.run_dir) / "checkpoints")["state"]
        assert saved["step"] == 12 and all(value.isfinite().all() for value in saved["critic"].values())
        assert "the state after step 12 is saved" in (Path(config.run_dir) / "log.txt").read_text()


@pytest.mark.parametrize(
    ("distances", "step"),
    [((9.0, 5.0, 7.0, 6.0), 10), ((9.0, 5.0, float("nan"), 5.0), 10), ((4.0, 5.0, 6.0, 7.0), 0)],
)
def test_the_best_checkpoint_is_kept(config, monkeypatch, distances, step):
    scores = (Scores(distance, "pixels", 2, 2) for distance in distances)
    monkeypatch.setattr(session, "evaluate", lambda *_: [next(scores)] * 2)
    quiet("digits", dataclasses.replace(config, eval_every=10, extractor="tests.kills:pixels"))
    folder = Path(config.run_dir) / "checkpoints"
    assert torch.load(folder / "best.pt", weights_only=True)["state"]["step"] == step
    record = read_run(Path(config.run_dir))
    assert best(record.rows, "distance_ema") == (step, min(distances))
    assert [path.name for path in checkpoint.paths(folder)] == ["step-000000030.pt", "step-000000024.pt"]


def test_a_run_without_its_newest_checkpoints_goes_on_from_its_best(config, monkeypatch):
    def run():
        scores = iter((9.0, 5.0, 7.0, 6.0) if not folder.exists() else (7.0, 6.0))
        monkeypatch.setattr(session, "evaluate", lambda *_: [Scores(next(scores), "pixels", 2, 2)] * 2)
        return quiet("digits", dataclasses.replace(config, eval_every=10, extractor="tests.kills:pixels"))[1]

    folder = Path(config.run_dir) / "checkpoints"
    run()
    rows, last = read_run(folder.parent).rows, load_tensors(checkpoint.paths(folder)[0])
    for path in checkpoint.paths(folder):
        path.unlink()
    results = [{"step": step, "scores": f"FID {step}"} for step in (10, 30)]
    for result in results:
        evaluations.add(folder.parent, result)
    lines = run()
    # The weights of the other are no more.
    assert evaluations.read(folder.parent) == results[:1]
    aside = folder.parent / "evaluations.jsonl.before"
    assert read_rows(aside) == results[1:]
    assert f"warning: {folder} has no step-*.pt that can be read; taking best.pt, of step 10" in lines
    assert any("continuing after step 10 of 30" in line for line in lines)
    assert read_run(folder.parent).rows == rows
    assert equal(load_tensors(checkpoint.paths(folder)[0]), last)
    for path in [*checkpoint.paths(folder), folder / "best.pt"]:
        path.unlink()
    monkeypatch.setattr(session, "evaluate", lambda *_: [Scores(3.0, "pixels", 2, 2)] * 2)
    lines = quiet("digits", dataclasses.replace(config, eval_every=10, extractor="tests.kills:pixels"))[1]
    assert f"warning: {folder.parent} has rows of 30 steps and no checkpoint: it starts again" in lines
    assert read_rows(aside) == results[::-1]
    moved = "scores by gnfast eval of steps after {} are of weights that are no more: now in {}"
    assert [line.partition("warning: ")[2] for line in read_run(folder.parent).log if "warning: " in line] == [
        moved.format(10, aside),
        f"{folder} has no step-*.pt that can be read; taking best.pt, of step 10",
        moved.format(0, aside),
        f"{folder.parent} has rows of 30 steps and no checkpoint: it starts again",
    ]


def test_what_is_not_measured_is_not_the_best(config, monkeypatch):
    """A run that goes on without an extractor has the old rows, but no distance of its later weights."""
    scores = (Scores(distance, "pixels", 2, 2) for distance in (9.0, 8.0, 7.0))
    monkeypatch.setattr(session, "evaluate", lambda *_: [next(scores)] * 2)
    measured = dataclasses.replace(config, steps=6, lr_decay="none", eval_every=3, extractor="tests.kills:pixels")
    quiet("digits", measured)
    path = Path(config.run_dir) / "checkpoints" / "best.pt"
    before = path.read_bytes()
    quiet("digits", dataclasses.replace(measured, steps=9, extractor="none"))
    assert path.read_bytes() == before


def test_data_that_vanish_are_named(config, tmp_path):
    quiet("digits", dataclasses.replace(config, steps=3))
    with pytest.raises(ValueError, match="nowhere"):
        quiet("digits", dataclasses.replace(config, data=str(tmp_path / "nowhere")))
    outcome, _ = quiet("digits", dataclasses.replace(config, steps=4))
    assert outcome.finished
