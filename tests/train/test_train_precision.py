"""What `--precision auto` is, where it is known, and what a run says that goes on in another arithmetic."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from benchmarks.precision import first_gradients, relative
from gnfast.config.config import as_json, differences
from gnfast.config.precision import resolved
from gnfast.config.presets import PRESETS
from gnfast.runs import checkpoint
from gnfast.train import RunError
from gnfast.train import state as state_module
from gnfast.train.state import State
from tests.tiny_runs import equal, quiet, tiny
from tests.train.test_train_exact import SMALL, dataset, updated

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def with_gpu(monkeypatch):
    """A machine with a GPU of a compute capability, as far as settings ask."""

    def set_capability(*capability):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    return set_capability


@pytest.mark.parametrize(
    ("capability", "auto", "tf32"),
    [((7, 5), "float32", "float32"), ((8, 0), "bfloat16", "tf32"), ((9, 0), "bfloat16", "tf32")],
)
def test_auto_is_what_a_device_multiplies_fast(with_gpu, capability, auto, tf32):
    with_gpu(*capability)
    assert (resolved("auto", GPU), resolved("tf32", GPU)) == (auto, tf32)
    assert resolved("auto", CPU) == resolved("tf32", CPU) == "float32"
    for named in ("float32", "float64", "bfloat16", "float16"):
        assert resolved(named, GPU) == resolved(named, CPU) == named


def test_every_preset_leaves_it_to_the_device():
    assert {preset.config.precision for preset in PRESETS.values()} == {"auto"}


def test_settings_differ_where_the_arithmetic_does(with_gpu, tmp_path):
    def differ(saved, wanted, device):
        config = tiny(tmp_path, device=device)
        settings = as_json(config) | {"precision": saved}
        return [line[:11] for line in differences(settings, dataclasses.replace(config, precision=wanted))] == [
            "--precision"
        ]

    # Of an earlier version, whose default was TF32, on a CPU; on a GPU it would go on in bfloat16.
    assert not differ("tf32", "auto", "cpu") and not differ("auto", "float32", "cpu")
    assert differ("auto", "bfloat16", "cpu") and differ("float64", "auto", "cpu") and differ(3, "auto", "cpu")
    # That GPU is of another machine.
    assert not differ("auto", "auto", "cuda") and differ("auto", "bfloat16", "cuda")
    with_gpu(9, 0)
    assert not differ("auto", "bfloat16", "cuda") and not differ("bfloat16", "auto", "auto")
    assert differ("tf32", "auto", "cuda") and differ("auto", "float32", "auto")
    # Not a difference of settings: the run says that it computes in another arithmetic.
    assert not differ("auto", "auto", "cpu") and not differ("auto", "auto", "cuda")


def test_a_run_from_before_there_was_a_precision_had_tf32(with_gpu, tmp_path):
    config = tiny(tmp_path)
    saved = {name: value for name, value in as_json(config).items() if name != "precision"}
    assert not differences(saved, config)
    with_gpu(9, 0)
    assert differences(saved, dataclasses.replace(config, device="cuda"))


def test_a_run_of_an_earlier_version_goes_on_with_the_same_bits(tmp_path):
    ends = []
    for name, first in (("new", "auto"), ("old", "tf32")):
        config = tiny(tmp_path / name, steps=6, checkpoint_every=3)
        quiet("digits", dataclasses.replace(config, steps=3, precision=first))
        outcome, lines = quiet("digits", config)
        assert (outcome.trained, outcome.finished) == (3, True)
        assert not [line for line in lines if line.startswith("warning")]
        ends.append(checkpoint.load_newest(tmp_path / name / "checkpoints")["state"])
    assert equal(*ends)


def test_a_run_says_its_arithmetic_and_when_it_changes(tmp_path):
    config = tiny(tmp_path / "run", steps=2)
    _, lines = quiet("digits", config)
    assert any("small on cpu in float32, 2 steps" in line for line in lines)
    written = tmp_path / "run" / "environment.json"
    (session,) = json.loads(written.read_text())
    assert session["precision"] == "float32"
    # As a session on a GPU would have left it.
    written.write_text(json.dumps([session | {"precision": "bfloat16"}]))
    _, lines = quiet("digits", dataclasses.replace(config, steps=4))
    assert "warning: computes in float32 from here on, until now in bfloat16" in lines
    with pytest.raises(RunError, match="--precision: the run has 'auto', the command says 'float64'"):
        quiet("digits", dataclasses.replace(config, steps=6, precision="float64"))
    assert "bfloat16" in Path(written).read_text()


def losses(precision, device=CPU):
    config = dataclasses.replace(PRESETS["gngan-cifar10-cnn"].config, **SMALL | {"precision": precision})
    state = State(config, dataset(config.resolution), device)
    return state, updated(state, 2).cpu()


def test_auto_trains_as_what_it_stands_for(monkeypatch):
    (full, of_full), (_, of_low), (_, of_auto) = map(losses, ("float32", "bfloat16", "auto"))
    assert full.precision == "float32" and torch.equal(of_auto, of_full) and not torch.equal(of_low, of_full)
    # On a GPU it stands for autocast, which a CPU has too.
    monkeypatch.setattr(state_module, "resolved", lambda precision, device: "bfloat16")
    state, found = losses("auto")
    assert torch.equal(found, of_low) and {p.dtype for p in state.critic.parameters()} == {torch.float32}


def test_the_script_of_the_docs_measures_rounding_and_batches():
    config = dataclasses.replace(PRESETS["gngan-cifar10-cnn"].config, **SMALL, n_dis=2)
    images = dataset(config.resolution)
    exact, other = first_gradients(config, images, "float64", batches=2)
    (again,), (full,), (low,) = (first_gradients(config, images, p) for p in ("float64", "float32", "bfloat16"))
    assert (
        relative(again, exact) == 0 < relative(full, exact) < 1e-3 < relative(low, exact) < relative(other, exact) / 2
    )


@pytest.mark.gpu
def test_auto_is_bfloat16_on_a_gpu_with_float32_weights():
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("a GPU without bfloat16")
    (state, of_auto), (_, of_low), (_, of_full) = (losses(p, GPU) for p in ("auto", "bfloat16", "float32"))
    torch.testing.assert_close(of_auto, of_low, rtol=0, atol=1e-2)
    torch.testing.assert_close(of_auto, of_full, rtol=0, atol=0.1)
    networks = (state.critic, state.generator, state.ema.module)
    assert {p.dtype for net in networks for p in net.parameters()} == {torch.float32}
    moments = (v for o in (state.optim_d, state.optim_g) for s in o.state.values() for v in s.values())
    assert state.precision == "bfloat16" and {v.dtype for v in moments if v.dim()} == {torch.float32}
