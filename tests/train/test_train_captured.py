"""Runs whose steps go through a CUDA graph, from the start to the last step.

`CapturedStep` calls its function where there is no GPU, so that all of a run but the graph itself is tested on a CPU:
optimisers and draws are arranged as for a capture. Rates and steps are powers of 2, so that the float32 of a captured
rate holds them exactly.
"""

from pathlib import Path

import pytest
import torch

from gnfast.bench.program import as_on_a_gpu
from gnfast.data import ImageDataset
from gnfast.interop.device import moved
from gnfast.io.rows import read_rows
from gnfast.runs import checkpoint
from gnfast.steps.captured import CapturedStep, CaptureError
from gnfast.train import NonFiniteLossError, step
from gnfast.train.state import State
from tests.tiny_runs import quiet, tiny

STEPS = 32


@pytest.fixture(autouse=True, scope="module")
def arranged():
    """With `cuda_graph` steps are captured."""
    with as_on_a_gpu():
        yield


def settings(folder, **changes):
    """A run with all that a run does on the way."""
    every = {"log_every": 5, "probe_every": 8, "sample_every": 8, "eval_every": 16, "checkpoint_every": 8}
    rates = {"lr_d": 2**-10, "lr_g": 2**-11, "lr_decay": "linear", "lr_decay_start": 16}
    extra = {"steps": STEPS, "n_samples": 4, "n_dis": 2, "n_fake": 20, "extractor": "tests.cli.test_metrics_cli:pixels"}
    extra |= {"ema_start": 11, "orthonormal": 2**-10, "adam_eps": 2**-20}
    return tiny(folder, **(every | rates | extra | changes))


def saved(config):
    return checkpoint.load_newest(Path(config.run_dir) / "checkpoints")["state"]


def assert_same_run(one, other):
    """Same weights, averages, moments, random states and logs; the optimisers' rates may be kept in other forms."""
    assert read_rows(Path(one.run_dir) / "metrics.jsonl") == read_rows(Path(other.run_dir) / "metrics.jsonl")
    a, b = saved(one), saved(other)
    assert a["step"] == b["step"] == STEPS
    for name in ("generator", "critic", "ema"):
        assert all(torch.equal(value, b[name][key]) for key, value in a[name].items())
    for name in ("optim_d", "optim_g"):
        for key, moments in a[name]["state"].items():
            assert all(torch.equal(value, b[name]["state"][key][part]) for part, value in moments.items())
        assert [float(group["lr"]) for group in a[name]["param_groups"]] == [
            float(group["lr"]) for group in b[name]["param_groups"]
        ]
    assert torch.equal(a["noise"], b["noise"])


@pytest.fixture(scope="module")
def eager(tmp_path_factory):
    """A run of which no step was captured."""
    config = settings(tmp_path_factory.mktemp("eager") / "run", cuda_graph=False)
    assert quiet("digits", config)[0].finished
    return config


@pytest.mark.parametrize("modes", [(True, True), (True, False), (False, True)], ids=str)
def test_a_run_that_fails_and_goes_on_ends_as_one_that_never_was_captured(modes, eager, tmp_path, monkeypatch):
    """Poisoned in update 13: the guard computes 11 and 12 again, and the next session starts from there."""
    first, second = (settings(tmp_path / "run", cuda_graph=captured) for captured in modes)
    original, calls = step.critic_update, []

    def poisoned(state, draw):
        calls.append(state.captured is not None)
        if state.step == 12:
            next(state.critic.parameters()).data.fill_(float("nan"))
        return original(state, draw)

    with monkeypatch.context() as patch:
        patch.setattr(step, "critic_update", poisoned)
        with pytest.raises(NonFiniteLossError, match="step 13"):
            quiet("digits", first)
    assert set(calls) == {modes[0]}
    assert saved(first)["step"] == 12
    assert saved(first)["optim_d"]["param_groups"][0]["capturable"] == modes[0]
    outcome, lines = quiet("digits", second)
    assert outcome.finished and "continuing after step 12" in lines[0]
    assert saved(second)["optim_d"]["param_groups"][0]["capturable"] == modes[1]
    assert_same_run(second, eager)
    rows = read_rows(Path(second.run_dir) / "metrics.jsonl")
    assert [row["lr_d"] for row in rows if "lr_d" in row][2:5] == [
        2**-10 * min(1, (STEPS - step) / 16) for step in (14, 19, 24)
    ]
    for name in ("report.html", "curves.png", "samples/ema-000032.png", "config.json"):
        assert (Path(second.run_dir) / name).stat().st_size
    assert any("distance_ema" in row for row in rows)


def test_a_step_that_cannot_be_captured_leaves_nothing_behind(tmp_path, monkeypatch):
    """The capture fails in the generator's update, while the critic's weights are frozen."""
    images = ImageDataset("noise", torch.randint(0, 256, (24, 1, 8, 8), dtype=torch.uint8))
    eager, run = (
        State(settings(tmp_path, cuda_graph=captured), images, torch.device("cpu")) for captured in (False, True)
    )

    def fails(_):
        try:
            with monkeypatch.context() as patch:
                patch.setattr(run, "generate", lambda *_: 1 / 0)
                step.generator_update(run, run.device_draws(run.clock)[-1])
        except ZeroDivisionError as error:
            raise CaptureError("a reason") from error

    monkeypatch.setattr(CapturedStep, "__call__", fails)
    with pytest.warns(UserWarning, match="training goes on without CUDA graphs: a reason"):
        run.update()
    assert run.captured is None
    run.update()
    for _ in range(2):
        eager.update()
    assert run.take_losses() == eager.take_losses()
    for name in ("generator", "critic"):
        ours, theirs = getattr(run, name).state_dict(), getattr(eager, name).state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


class Host:
    """A tensor on the CPU that notes what is done with it."""

    device = torch.device("cpu")

    def __init__(self, *done):
        self.done = done

    def pin_memory(self):
        return Host(*self.done, "pinned")

    def to(self, device, non_blocking):
        return Host(*self.done, f"to {device}", non_blocking)


def test_copies_to_a_gpu_start_from_pinned_memory():
    assert moved(Host(), "cuda:1").done == ("pinned", "to cuda:1", True)
    assert moved(Host(), "cpu").done == ("to cpu", True)
    x = torch.ones(3)
    assert moved(x, "cpu") is x


@pytest.mark.gpu
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_a_step_takes_nothing_from_the_host(cuda_graph, tmp_path):
    images = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8)
    config = settings(
        tmp_path / "run", cuda_graph=cuda_graph, device="cuda", flip=True, consistency=1.0, penalty="1-gp"
    )
    run = State(config, ImageDataset("noise", images), torch.device("cuda"))
    for _ in range(6):
        run.update()
    assert cuda_graph == (run.captured is not None and run.captured.captured)
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        run.update()
        torch.cuda.synchronize()
    assert not [event.name for event in profile.events() if "HtoD" in event.name or "DtoH" in event.name]


@pytest.mark.gpu
def test_a_run_on_a_gpu_goes_through_its_graph_to_the_end(tmp_path):
    config = settings(tmp_path / "run", device="cuda")
    outcome, _ = quiet("digits", config)
    assert outcome.finished and saved(config)["optim_d"]["param_groups"][0]["capturable"]
