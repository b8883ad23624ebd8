"""What a run does besides its steps, on a thread: in order, with the state of its step, and heard of when it fails."""

import contextlib
import dataclasses
import errno
import io
import math
import threading
import time
from pathlib import Path
from unittest import mock

import pytest
import torch

from gnfast.bench.program import as_on_a_gpu
from gnfast.data import ImageDataset
from gnfast.io.rows import read_rows
from gnfast.train import NonFiniteLossError, RunError, loop, session, side_work
from gnfast.train import step as algorithm
from gnfast.train.side_work import HANDED_OVER, SNAPSHOTS, SideWork
from gnfast.train.snapshot import Live, Snapshot, shown
from gnfast.train.state import State
from tests.kills import _content
from tests.tiny_runs import equal, quiet, tiny

IMAGES = ImageDataset(
    "noise", torch.randint(0, 256, (24, 1, 8, 8), dtype=torch.uint8), torch.arange(24) % 3, ("a", "b", "c")
)
CONFIGS = [
    {},
    {"spectral_norm": True, "method": "none", "learn_scale": True, "stable_rank": 0.5},
    {"optimizer": "rmsprop", "weight_clip": 0.01, "ema_start": 3},
    {"weight_norm": "learned", "lr_decay": "linear", "steps": 9},
    {"method": "none", "norm_d": "batch", "impl": "reference"},
    {"rescale": "initial", "accumulate": 2, "batch_d": 8},
    {"precision": "float16"},
]


@pytest.fixture
def threaded(monkeypatch):
    monkeypatch.setattr(loop, "goes_on_beside", lambda device: True)


def state_of(changes):
    return State(tiny("", log_every=2, **changes), IMAGES, torch.device("cpu"))


@pytest.mark.parametrize("changes", CONFIGS, ids=str)
def test_a_snapshot_is_the_state_of_its_step(changes):
    """Also where it is taken again, after an optimiser has made its moments, and after a checkpoint was loaded."""
    state = state_of(changes)
    snapshot = Snapshot(shown(state))
    for step in range(6):
        if step == 4:
            state.load_state_dict(snapshot.state_dict())
        snapshot.take(state)
        expected, losses = torch.load(saved(state), weights_only=True), Live(state).losses(state.logged)
        state.update()
        assert equal(snapshot.state_dict(), expected) and torch.equal(snapshot.losses(state.logged), losses)
        seen = snapshot.state
        assert seen.step == expected["step"]
        for name, network in seen.networks().items():
            assert equal(dict(network), dict(expected[name]))
        if step == 2:
            state.take_losses()


def saved(state):
    """A file in memory with what its checkpoint would hold."""
    file = io.BytesIO()
    torch.save(state.state_dict(), file)
    file.seek(0)
    return file


def test_a_snapshot_on_the_cpu_is_waited_for_on_the_states_device(monkeypatch):
    """A run on `cuda:1` leaves `cuda:0` the current device of the training thread."""
    state, snapshot, waited = state_of({}), Snapshot(), []
    snapshot.take(state)
    monkeypatch.setattr(snapshot, "_taken", object())

    def stream(device):
        return mock.Mock(synchronize=lambda: waited.append(device))

    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    assert snapshot.state_dict()["step"] == 0 and waited == [state.device]


def test_a_snapshot_goes_on_as_the_state_did():
    state, twin = state_of({}), state_of({})
    snapshot = Snapshot()
    state.update()
    snapshot.take(state)
    state.update()
    twin.load_state_dict(snapshot.state_dict())
    twin.update()
    assert equal(twin.state_dict(), state.state_dict())


def test_all_tensors_of_a_dtype_are_copied_at_once(monkeypatch):
    """PyTorch copies the tensors of a list with several dtypes one by one; the moving average begins as a copy."""
    state, copies, copy = state_of({"ema_start": 9}), [], torch._foreach_copy_
    monkeypatch.setattr(
        torch, "_foreach_copy_", lambda targets, sources: copies.append(targets) or copy(targets, sources)
    )
    state.update()
    snapshot = Snapshot(shown(state))
    for _ in range(2):
        snapshot.take(state)
    assert snapshot.state
    kinds = [{target.dtype for target in targets} for targets in copies]
    assert kinds.count({torch.int64}) == 3 and all(len(kind) == 1 for kind in kinds)


def test_work_is_done_in_order_and_training_waits_where_it_falls_behind():
    state, gate, done = state_of({}), threading.Event(), []
    side = SideWork(state, threaded=True)

    def look(seen):
        gate.wait(60)
        done.append((seen.step, threading.current_thread().name))

    for _ in range(SNAPSHOTS - 1):
        state.update()
        side.submit([("look", look)])
    late = threading.Thread(target=side.submit, args=([("look", look)],))
    late.start()
    late.join(0.2)
    assert late.is_alive() and not done
    gate.set()
    late.join(60)
    side.finish()
    assert done == [(step, "gnfast-side-work") for step in (1, 2, 2)]
    entries = side.spent.entries
    assert entries["look"].elsewhere > 0 == entries["look"].here and entries[HANDED_OVER].here > 0
    side.close()
    assert "gnfast-side-work" not in {thread.name for thread in threading.enumerate()}


def test_work_that_never_ends_does_not_keep_a_run_that_fails(monkeypatch):
    """Nor where as much waits as may."""
    monkeypatch.setattr(side_work, "PATIENCE", 0.1)
    monkeypatch.setattr(side_work, "WAITING", 1)
    gate, begun, closed = threading.Event(), threading.Event(), []
    side = SideWork(state_of({}), threaded=True)
    side.submit([("look", lambda seen: begun.set() or gate.wait(60))])
    assert begun.wait(60)
    side.submit([("look", lambda seen: None)])
    closing = threading.Thread(target=lambda: closed.append(side.close()))
    closing.start()
    closing.join(10)
    assert closed
    gate.set()
    side.finish()


@pytest.mark.parametrize("in_thread", [False, True])
def test_the_state_to_go_back_to_is_the_last_that_was_proved(in_thread, monkeypatch):
    monkeypatch.setattr(side_work, "COPY_SHARE", math.inf)
    state = state_of({})
    side = SideWork(state, threaded=in_thread)

    def fails(seen):
        raise ValueError("no")

    def submit(tasks, proves):
        state.update()
        side.submit([("task", task) for task in tasks], proves=proves)

    submit([lambda seen: None], True)
    submit([lambda seen: None], False)
    # Proved by its first task, whatever becomes of the others.
    with pytest.raises(ValueError, match="no"):
        submit([lambda seen: None, fails], True)
        side.finish()
    assert side.good.step == 3
    side = SideWork(state, threaded=in_thread)
    with pytest.raises(ValueError, match="no"):
        submit([fails], True)
        side.finish()
    assert side.good.step == 3 and state.step == 4
    side.close()


def test_copies_in_its_place_take_a_small_share_of_the_time(monkeypatch):
    monkeypatch.setattr(side_work, "COPY_SHARE", 1e-9)
    state = state_of({})
    side = SideWork(state, threaded=False)
    for _ in range(3):
        state.update()
        side.submit([("row", lambda seen: None)], proves=True, rows=True)
    assert side.good.step == 1


def test_nothing_is_done_after_a_failure_and_training_hears_of_it():
    state, done = state_of({}), []
    side = SideWork(state, threaded=True)
    side.submit([("first", lambda seen: 1 / 0)])
    end = time.monotonic() + 60
    while not side.failed and time.monotonic() < end:
        time.sleep(0.001)
    # More than there are snapshots: none is lost.
    for _ in range(3 * SNAPSHOTS):
        side.submit([("then", done.append)])
    with pytest.raises(ZeroDivisionError):
        side.finish()
    assert not done
    side.close()


def test_a_run_with_a_thread_leaves_what_one_without_leaves(tmp_path, monkeypatch):
    every = {
        "log_every": 3,
        "probe_every": 4,
        "sample_every": 4,
        "eval_every": 7,
        "checkpoint_every": 5,
        "n_samples": 4,
    }
    further = {"extractor": "tests.kills:pixels", "n_fake": 20, "lr_decay": "linear", "steps": 23, "ema_start": 6}
    contents, threads = [], []
    write = session.Session._checkpoint

    def noting(self, *given, **options):
        threads.append(threading.current_thread().name)
        write(self, *given, **options)

    monkeypatch.setattr(session.Session, "_checkpoint", noting)
    for in_thread in (False, True):
        monkeypatch.setattr(loop, "goes_on_beside", lambda device, answer=in_thread: answer)
        config = tiny(tmp_path / f"run-{in_thread}", **(every | further))
        assert quiet("digits", config)[0].finished
        contents.append(_content(Path(config.run_dir)))
    assert contents[0] == contents[1] and "samples/ema-000023.png" in contents[0]
    assert set(threads) == {"MainThread", "gnfast-side-work"} and len(threads) % 2 == 0


def test_a_disk_that_is_full_for_the_thread_ends_the_run_clearly(threaded, tmp_path, monkeypatch):
    config = tiny(tmp_path / "run", steps=30, n_samples=4, sample_every=0, checkpoint_every=8)
    save = session.checkpoint.save

    def full(folder, step, content, best):
        if step == 16:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(folder, step, content, best=best)

    with monkeypatch.context() as patch:
        patch.setattr(session.checkpoint, "save", full)
        with pytest.raises(RunError, match=r"no space left on the disk of .*run; free some and repeat the command"):
            quiet("digits", config)
    outcome, lines = quiet("digits", dataclasses.replace(config, tensorboard=True))
    assert "continuing after step 8" in lines[0] and outcome.finished


@pytest.mark.parametrize("first", [True, False])
def test_a_run_goes_on_on_another_kind_of_device(first, tmp_path):
    """Where the data stand means nothing there: a GPU's step knows it, a CPU's order begins anew."""
    config = tiny(tmp_path / "run", steps=8, n_samples=4, lr_decay="none", n_dis=2)
    for arranged, steps in ((first, 8), (not first, 12), (first, 16)):
        with as_on_a_gpu() if arranged else contextlib.nullcontext():
            outcome, _ = quiet("digits", dataclasses.replace(config, steps=steps))
        assert outcome.finished and outcome.step == steps
    batches = session.checkpoint.load_newest(Path(config.run_dir) / "checkpoints")["state"]["batches"]
    assert batches == {"number": 32} if first else batches["position"] == 7 * 2 * 4


def test_rows_that_waited_for_no_copy_are_not_written_again(threaded, tmp_path, monkeypatch):
    """While a picture takes its time, rows do without copies: the one to go back to is older than they are."""
    every = {"log_every": 1, "sample_every": 8, "n_samples": 4, "steps": 20}
    whole, config = (tiny(tmp_path / name, **every) for name in ("whole", "failing"))
    quiet("digits", whole)
    picture, update, went_back = session.Session._picture, algorithm.critic_update, []

    def slow(self, seen):
        time.sleep(1.0)
        picture(self, seen)

    def poisoned(state, draw):
        if state.step == 12:
            next(state.critic.parameters()).data.fill_(float("nan"))
        return update(state, draw)

    def noting(self, error):
        went_back.append(self.side.good.step)
        go_back(self, error)

    go_back = session.Session._go_back_before
    with monkeypatch.context() as patch:
        patch.setattr(session.Session, "_picture", slow)
        patch.setattr(session.Session, "_go_back_before", noting)
        patch.setattr(algorithm, "critic_update", poisoned)
        with pytest.raises(NonFiniteLossError, match="step 13"):
            quiet("digits", config)
    assert went_back[0] < 12
    quiet("digits", config)
    assert read_rows(Path(config.run_dir) / "metrics.jsonl") == read_rows(Path(whole.run_dir) / "metrics.jsonl")
