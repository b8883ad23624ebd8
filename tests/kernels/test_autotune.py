"""The tuner: numbers before time, a win beyond noise, choices on disk."""

import json
from unittest import mock

import pytest
import torch

from gnfast.errors import InputError
from gnfast.kernels import autotune, tuning_table

CPU = torch.device("cpu")
KEY = ("operation",), ((4, 3), torch.float32)
OTHER = ("other",), ()


@pytest.fixture
def clock(tuner, monkeypatch):
    """Seconds per call by candidate, in place of measurements."""
    seconds = {}
    monkeypatch.setattr(autotune, "_seconds", lambda call, device: seconds[call.__name__]())
    return seconds


def candidate(name, value):
    call = mock.Mock(return_value=value)
    call.__name__ = name
    return call


def failing():
    # What Triton raises derives from Exception alone.
    raise Exception("out of resources")


def must_not_run():
    pytest.fail("was run")


def noisy(mean, spread=0.0):
    turns = iter(range(1000))
    return lambda: mean + spread * (next(turns) % 5 - 2)


def test_the_fastest_right_one_wins(clock):
    x = torch.randn(5)
    clock.update(default=noisy(1.0, 0.01), fast=noisy(0.5, 0.01), slow=noisy(2.0))
    candidates = {"default": candidate("default", x), "wrong": candidate("wrong", x + 1), "slow": candidate("slow", x)}
    candidates |= {"fast": candidate("fast", x * (1 + 1e-6))}
    assert autotune.choose_fastest(KEY, candidates, CPU, tolerance=1e-5) == "fast"
    # With no room for rounding, it does not count.
    assert autotune.choose_fastest(OTHER, candidates, CPU, tolerance=1e-8) == "default"


def test_a_win_within_noise_is_none(clock):
    x = torch.randn(5)
    clock.update(default=noisy(1.0, 0.1), other=noisy(0.95, 0.1))
    candidates = {name: candidate(name, x) for name in ("default", "other")}
    assert autotune.choose_fastest(KEY, candidates, CPU, tolerance=0.0) == "default"


def test_what_fails_or_returns_nan_is_no_candidate(clock):
    x = torch.randn(5)
    clock.update(default=noisy(1.0), failing=noisy(0.1), nan=noisy(0.1))
    candidates = {"default": candidate("default", x), "failing": failing, "nan": candidate("nan", x * float("nan"))}
    assert autotune.choose_fastest(KEY, candidates, CPU, tolerance=1.0) == "default"


def test_what_is_compared(clock):
    x = torch.randn(5)
    clock.update(default=noisy(1.0), other=noisy(0.5))
    candidates = {"default": candidate("default", (x, x)), "other": candidate("other", (x, x + 1))}
    assert autotune.choose_fastest(KEY, candidates, CPU, tolerance=1e-5) == "default"
    assert autotune.choose_fastest((("first",), ()), candidates, CPU, 1e-5, lambda result: result[0]) == "other"
    assert autotune.choose_fastest((("second",), ()), candidates, CPU, 1e-5, lambda result: result[1]) == "default"


def test_a_reference_beside_the_candidates(clock):
    x = torch.randn(5)
    clock.update({"wrong": noisy(0.1), "right": noisy(0.5), "slow": noisy(1.0)})
    values = {"wrong": x + 1, "slow": x, "right": x}
    candidates = {name: candidate(name, value) for name, value in values.items()}
    for key, default in (("failing", failing), ("wrong", candidates["wrong"])):
        given = {key: default, **candidates}
        assert autotune.choose_fastest(((key,), ()), given, CPU, 0.0, reference=lambda: x) == "right"
    given = {"failing": failing, "wrong": candidates["wrong"]}
    assert autotune.choose_fastest((("none",), ()), given, CPU, 0.0, reference=lambda: x) == "failing"


def test_nothing_is_measured_during_capture(clock, monkeypatch, tmp_path):
    monkeypatch.setattr(autotune, "cache_file", lambda device: tmp_path / "choices.json")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    candidates = {"default": must_not_run, "other": must_not_run}
    assert autotune.choose_fastest(KEY, candidates, torch.device("cuda"), tolerance=0.0) == "default"
    tuning_table.write(tmp_path / "choices.json", {tuning_table.text_of(KEY): ("other", 0.5)}, CPU)
    autotune._loaded.cache_clear()
    assert autotune.choose_fastest(KEY, candidates, torch.device("cuda"), tolerance=0.0) == "other"


def test_without_a_home(clock, monkeypatch):
    for name in ("HOME", "GNFAST_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda _: {}[0])
    with pytest.raises(InputError, match="there is no home folder for the cache: set GNFAST_CACHE"):
        autotune.choose_fastest(KEY, {"default": candidate("default", torch.randn(5))}, CPU, tolerance=0.0)


def test_choices_are_kept_on_disk(clock):
    x = torch.randn(5)
    clock.update(default=noisy(1.0), fast=noisy(0.5))
    candidates = {name: candidate(name, x) for name in ("default", "fast")}
    assert autotune.choose_fastest(KEY, candidates, CPU, tolerance=0.0) == "fast"
    autotune._loaded.cache_clear()
    not_run = dict.fromkeys(candidates, must_not_run)
    assert autotune.choose_fastest(KEY, not_run, CPU, tolerance=0.0) == "fast"
    path = autotune.cache_file(CPU)
    assert list(json.loads(path.read_text())["choices"].values()) == [["fast", 0.5]] and torch.__version__ in path.name
    # A choice that no longer exists is measured anew, and so is an unreadable file.
    assert autotune.choose_fastest(KEY, {"default": candidates["default"]}, CPU, tolerance=0.0) == "default"
    path.write_text("{")
    autotune._loaded.cache_clear()
    assert autotune.choose_fastest(KEY, candidates, CPU, tolerance=0.0) == "fast"


def test_off_by_default(monkeypatch):
    monkeypatch.delenv("GNFAST_AUTOTUNE", raising=False)
    candidates = {"default": must_not_run, "other": must_not_run}
    assert autotune.choose_fastest(KEY, candidates, CPU, tolerance=0.0) == "default"


@pytest.mark.gpu
@pytest.mark.usefixtures("tuner")
def test_tuned_kernels_and_none_during_capture():
    from gnfast.kernels.join import triton as join

    device = torch.device("cuda", torch.cuda.current_device())
    x, bias = torch.randn(64, 128, 32, 32, device=device), torch.randn(128, device=device)
    bias_first = torch.relu(x + bias[:, None, None])
    join.forward([x], [bias], 1, 0.0, False, None)
    assert len(json.loads(autotune.cache_file(device).read_text())["choices"]) == 1
    graph = torch.cuda.CUDAGraph()
    y = join.forward([x[:32]], [bias], 1, 0.0, False, None, "64x4")
    with torch.cuda.graph(graph):
        y = join.forward([x[:32]], [bias], 1, 0.0, False, None)[0]
    graph.replay()
    torch.testing.assert_close(y, bias_first[:32])
    assert len(json.loads(autotune.cache_file(device).read_text())["choices"]) == 1
