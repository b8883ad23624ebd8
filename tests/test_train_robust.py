"""Runs that are killed, run out of disk or diverge: a clear end, and nothing lost."""

import dataclasses
import errno
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from gnfast.train import NonFiniteLossError, RunError, checkpoint
from gnfast.train.record import read_rows
from gnfast.train.state import State
from tests.tiny_runs import quiet, tiny

# 3 in CI; `GNFAST_KILLS=20` for the figure in the documentation.
KILLS = int(os.environ.get("GNFAST_KILLS", "3"))
STEPS = 60 * KILLS


@pytest.fixture
def config(tmp_path):
    return tiny(tmp_path / "run", steps=30, n_samples=4, sample_every=0, checkpoint_every=8, log_every=5)


def launch(folder):
    words = ["--resolution=8", "--width=0.1", "--z-dim=5", f"--steps={STEPS}", "--batch-d=4", "--batch-g=6"]
    words += ["--n-samples=4", "--sample-every=50", "--checkpoint-every=10", "--lr-decay=linear", "--ema-start=20"]
    words += ["--extractor=none", "--no-tensorboard", "--device=cpu", "--threads=1", f"--run-dir={folder}"]
    return subprocess.Popen(
        [sys.executable, "-m", "gnfast", "train", "digits", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def test_a_run_killed_at_random_moments_ends_with_the_same_weights(tmp_path):
    whole, often = tmp_path / "whole", tmp_path / "often"
    assert launch(whole).wait(timeout=300) == 0
    chance = random.Random(0)
    kills = 0
    while kills < KILLS:
        run = launch(often)
        start, goal = newest(often), chance.randrange(1, STEPS // KILLS)
        deadline = time.monotonic() + 120
        while run.poll() is None and newest(often) - start < goal and time.monotonic() < deadline:
            time.sleep(0.01)
        # Also in the middle of what a step writes.
        time.sleep(chance.random() * 0.05)
        run.send_signal(signal.SIGKILL)
        assert run.wait(timeout=60) == -signal.SIGKILL, "the run ended before it could be killed"
        kills += 1
    assert launch(often).wait(timeout=300) == 0
    a, b = (checkpoint.load_newest(folder / "checkpoints") for folder in (whole, often))
    assert a["state"]["step"] == STEPS
    assert_equal(a["state"], b["state"])
    for name in ("metrics.jsonl", f"samples/ema-{STEPS:06d}.png"):
        assert (whole / name).read_bytes() == (often / name).read_bytes()


def newest(folder):
    found = checkpoint.paths(folder / "checkpoints")
    return int(found[0].stem.removeprefix("step-")) if found else 0


def assert_equal(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list):
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


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


def test_the_guard_saves_the_state_before_a_nan(config, monkeypatch):
    """The critic's weights are poisoned in update 13: seen at 15, found in 13, saved after 12."""
    original = State.critic_update

    def poisoned(self):
        if self.step == 12:
            next(self.critic.parameters()).data.fill_(float("nan"))
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(State, "critic_update", poisoned)
        with pytest.raises(NonFiniteLossError, match="step 13: loss_real is nan") as caught:
            quiet("digits", config)
    assert caught.value.step == 13
    saved = checkpoint.load_newest(config_folder(config) / "checkpoints")["state"]
    assert saved["step"] == 12
    assert all(value.isfinite().all() for value in saved["critic"].values())
    assert "the state after step 12 is saved" in (config_folder(config) / "log.txt").read_text()
    # What is saved is the state of a run that nothing happened to.
    outcome, lines = quiet("digits", config)
    assert "continuing after step 12" in lines[0]
    whole = dataclasses.replace(config, run_dir=config.run_dir + "-whole")
    quiet("digits", whole)
    a, b = (checkpoint.load_newest(config_folder(c) / "checkpoints")["state"] for c in (config, whole))
    assert outcome.finished
    assert_equal(a, b)
    assert read_rows(config_folder(config) / "metrics.jsonl") == read_rows(config_folder(whole) / "metrics.jsonl")


def config_folder(config):
    from pathlib import Path

    return Path(config.run_dir)


def test_the_best_checkpoint_is_kept(config, monkeypatch):
    from gnfast.train import loop

    distances = iter([9.0, 5.0, 7.0, 6.0])

    def evaluation(config, dataset, extractor, log, progress):
        def evaluate(state):
            value = next(distances)
            log.row(state.step, distance_raw=value, distance_ema=value, extractor="none", n_real=2, n_fake=2)

        return evaluate

    monkeypatch.setattr(loop, "evaluation", evaluation)
    quiet("digits", dataclasses.replace(config, eval_every=10))
    folder = config_folder(config) / "checkpoints"
    assert torch.load(folder / "best.pt", weights_only=True)["state"]["step"] == 10
    assert [path.name for path in checkpoint.paths(folder)] == ["step-000000030.pt", "step-000000024.pt"]


def test_data_that_vanish_are_named(config, tmp_path):
    quiet("digits", dataclasses.replace(config, steps=3))
    with pytest.raises(ValueError, match="nowhere"):
        quiet("digits", dataclasses.replace(config, data=str(tmp_path / "nowhere")))
    outcome, _ = quiet("digits", config)
    assert outcome.finished
