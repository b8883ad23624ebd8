"""What `gnfast bench` measures is what it says: counts, costs, baselines, the gate, and the command itself."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import gnfast
from gnfast.bench import agree, cases, cost, networks, plots, run, steps, table, ways
from gnfast.bench.baselines import repaired
from gnfast.bench.ceilings import Ceilings
from gnfast.bench.clock import interleaved_ms
from gnfast.bench.count import peak_bytes, work
from gnfast.bench.mode import PAPERS, tuned
from gnfast.cli import main

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
ROOF = Ceilings(1e9, 1e9)
CRITIC = """
from torch import nn
def critic(channels=4, kind="relu"):
    act = nn.ELU() if kind == "elu" else nn.ReLU()
    return nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), act, nn.Flatten(), nn.Linear(channels * 64, 1))
"""


def small() -> nn.Sequential:
    """Two convolutions with a ReLU between them, and a pooling that a rewrite merges."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3, padding=1),
        nn.AvgPool2d(2),
        nn.LeakyReLU(0.1),
        nn.Flatten(),
        nn.Linear(5 * 3 * 3, 1),
    )


NETWORK = networks.Network("small", (3, 6, 6), lambda: (None, small()))
SETUP = cases.Setup(CPU, batch=4, graphs=True)


@pytest.fixture
def measured():
    """Rows and notes of a case of the small network, measured in one round."""

    def measure(name, setup=SETUP, network=NETWORK):
        found = [run.measure(case, 1, ROOF, 0) for case in cases.CASES[name](network, setup)]
        return [row for rows, _ in found for row in rows], [note for _, notes in found for note in notes]

    return measure


def test_steps_take_turns_and_one_round_is_enough():
    order = []
    times = interleaved_ms({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2, warmup=1)
    assert order == ["a", "b"] * 3
    assert times["a"]["rounds"] == 2
    assert interleaved_ms({"a": list}, rounds=1)["a"]["q25_ms"] >= 0


def test_work_counts_products_and_skips_what_a_backward_does_not_read():
    x, weight = torch.randn(2, 3, 5, 5), torch.randn(7, 3, 3, 3)
    forward = work(lambda: torch.conv2d(x, weight))
    y = torch.conv2d(x, weight)
    assert forward.flops == 2 * y.numel() * 27
    assert forward.product_bytes == 4 * (x.numel() + weight.numel() + y.numel())
    assert forward.launches == 1
    arguments = (y, x, weight, None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1)
    backward = torch.ops.aten.convolution_backward
    data = work(lambda: backward(*arguments, (True, False, False)))
    assert data.product_bytes == 4 * (y.numel() + weight.numel() + x.numel())
    weights = work(lambda: backward(*arguments, (False, True, False)))
    assert weights.product_bytes == 4 * (y.numel() + x.numel() + weight.numel())


def test_peak_bytes_holds_what_lives_at_the_same_time():
    def step():
        a = torch.ones(1000)
        b = a + 1
        del a
        return b, torch.ones(1000)

    # Scalars are tensors too.
    assert 8000 <= peak_bytes(step) < 8100


@pytest.mark.parametrize("batch", [3, 8])
def test_cost_is_what_the_steps_count(batch):
    net, x = small(), torch.randn(batch, 3, 6, 6)
    plan = gnfast.trace(net, x)
    critic = work(partial(steps.critic_step, ways.four_passes, net, x))
    # Gradients of biases are products too, which a Plan does not count.
    assert cost.critic_step(plan, batch).flops == pytest.approx(critic.flops, rel=0.02)
    generator = work(partial(steps.generator_step, ways.four_passes, net, x))
    assert cost.generator_step(plan, batch).flops == pytest.approx(generator.flops, rel=0.01)


def test_bytes_are_those_of_the_traffic_model():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 1))
    passes = cost.critic_passes(gnfast.trace(net, torch.randn(3, 1, 2, 2)), 3)
    conv, linear = 4 + 8, 8 + 1
    weights, bits = (2 + 2) + (8 + 1), 1
    assert passes["forward"].bytes == 3 * (4 * (conv + linear) + bits) + 4 * weights
    assert passes["input gradient"].bytes == passes["forward"].bytes
    # The last layer's output needs no tangent.
    assert passes["tangent"].bytes == 3 * (4 * conv + bits) + 4 * (2 + 2)
    assert passes["weights"].bytes == 3 * 4 * (conv + linear) + 4 * weights
    assert cost.pointwise_bytes(gnfast.trace(net, torch.randn(3, 1, 2, 2)), 3).bytes == 3 * 4 * 2 * 8 * 3


def test_seconds_are_the_longer_of_arithmetic_and_memory():
    assert cost.Cost(6, 2).seconds(2, 1) == 3
    assert (cost.Cost(6, 2) * 2 + cost.Cost(0, 9)).seconds(2, 1) == 13


def test_repaired_double_backward_is_exact_and_does_no_more():
    net, x = small().double(), torch.randn(4, 3, 6, 6, dtype=torch.float64)
    slow = partial(steps.critic_step, ways.double_backward, net, x)
    fast = partial(steps.critic_step, repaired, net, x)
    error = agree.error_of(fast(), slow())
    assert max(error.values, error.gradients) < 1e-12
    # It takes the first layer's data gradient once too often, and no weight gradient.
    first = 2 * 4 * 4 * 36 * 27
    assert work(fast).flops <= work(slow).flops + first
    error = agree.error_of(steps.generator_step(repaired, net, x), steps.generator_step(ways.double_backward, net, x))
    assert error.values < 1e-12


def test_rescaled_generator_step_is_exact():
    net, x = small().double(), torch.randn(4, 3, 6, 6, dtype=torch.float64)
    truth = steps.generator_step(ways.double_backward, net, x)
    assert agree.error_of(steps.rescaled_generator_step(net, x), truth).values < 1e-12


def test_the_gate():
    truth = steps.Result(torch.ones(4, 2), [torch.ones(3)])
    wrong = steps.Result(torch.ones(4, 2), [torch.tensor([1.0, 1.0, float("nan")])])
    assert agree.error_of(wrong, truth).gradients == float("inf")
    assert not agree.within(agree.error_of(wrong, truth), agree.Error(1, 1), "bfloat16")
    floor = agree.FLOORS["float32"]
    assert agree.within(agree.Error(2e-3, 3e-3), agree.Error(1e-3, 2e-3), "float32")
    assert not agree.within(agree.Error(2e-3, 0), agree.Error(0, 0), "float32")
    assert agree.within(floor, agree.Error(0, 0), "float32")
    assert not agree.within(agree.Error(0, 0.6), agree.Error(0, 1), "bfloat16")
    zero_bias = steps.Result(truth.values, [torch.ones(3), torch.tensor([1e-9])])
    nothing = steps.Result(truth.values, [torch.ones(3), torch.zeros(1)])
    assert agree.error_of(zero_bias, nothing).gradients < 1e-8


def test_modes_put_everything_back():
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    with tuned("bfloat16").active(CPU):
        assert torch.backends.cudnn.benchmark
        assert torch.ones(2, 2).mm(torch.ones(2, 2)).dtype == torch.bfloat16
    with PAPERS.active(CPU):
        assert not torch.is_autocast_enabled("cpu")
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark) == before
    with pytest.raises(ValueError, match="precision: got 'int8'"):
        tuned("int8")


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("name", ["critic", "generator", "penalties", "spectral"])
def test_every_variant_passes_the_gate(measured, name, precision):
    rows, notes = measured(name, replace(SETUP, precision=precision))
    assert not notes
    assert {row["gate"] for row in rows} <= {"green", "not checked"}
    assert all(row["ratio"] is not None for row in rows)
    assert rows[0]["variant"] == cases.OURS
    assert rows[0]["least_flops"] > 0 and rows[0]["least_bytes"] > 0


@pytest.mark.parametrize("name", ["sampling", "iteration"])
def test_cases_with_a_generator(measured, name):
    rows, notes = measured(name, replace(SETUP, batch=2), networks.shipped("CNN 32", width=0.05))
    assert not notes
    assert {row["gate"] for row in rows} == {"green"} | ({"not checked"} if name == "sampling" else set()) - {
        "not checked"
    }


def test_a_wrong_result_gets_no_ratio(measured, monkeypatch):
    monkeypatch.setattr(cases, "four_passes", lambda net, x: 1.1 * ways.four_passes(net, x))
    rows, notes = measured("critic")
    assert rows[0]["gate"] == "red"
    assert all(row["ratio"] is None for row in rows)
    text = table.render(rows, notes)
    assert "gate red" in text and "0." in text


def test_a_wrong_baseline_gets_no_ratio_and_a_broken_one_a_note(measured, monkeypatch):
    def broken(net, x):
        raise RuntimeError("out of luck\nwith details")

    monkeypatch.setattr(cases, "repaired", broken)
    monkeypatch.setattr(cases, "without_rewrites", lambda net, x: -ways.four_passes(net, x))
    rows, notes = measured("critic")
    gates = {row["variant"]: (row["gate"], row["ratio"]) for row in rows}
    assert gates["gnfast, no rewrites"] == ("red", None)
    assert gates[cases.OURS] == ("green", 1.0)
    assert notes == [f"{name}: left out, RuntimeError: out of luck" for name in (cases.C, cases.E)]


def test_a_network_outside_the_passes_is_named(measured):
    network = networks.Network("elu", (3, 6, 6), lambda: (None, nn.Sequential(*small()[:1], nn.ELU(), *small()[2:])))
    rows, notes = measured("critic", network=network)
    assert cases.OURS not in {row["variant"] for row in rows}
    assert any("falls back to double backward" in note and "elu" in note.lower() for note in notes)
    assert "note: falls back" in table.render(rows, notes)


def test_plots_are_drawn(measured, tmp_path):
    rows, _ = measured("critic")
    for suffix in ("png", "svg"):
        plots.draw(rows, ROOF, tmp_path / f"plot.{suffix}", "a title")
        assert (tmp_path / f"plot.{suffix}").stat().st_size > 1000


def test_shipped_networks_are_the_same_every_time():
    network = networks.shipped("resnet-32", width=0.05)
    first, second = (network.critic(torch.float32, torch.channels_last) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    with pytest.raises(ValueError, match="critic: got 'resnet-33', want one of cnn-32, resnet-32"):
        networks.shipped("resnet-33")


def fails(capsys, *words):
    assert main(["bench", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gnfast: ")
    return line


def test_command_on_a_critic_of_the_users_own(capsys, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(CRITIC)
    monkeypatch.chdir(tmp_path)
    words = ["--net", "mine:critic", "--shape", "3,8,8", "--args", "channels=3", "--quick", "--device", "cpu"]
    assert main(["bench", "critic", *words, "--json", "rows.json", "--plot", "plot.png"]) == 0
    text = capsys.readouterr().out
    assert "critic, critic step: batch 4 of 3×8×8, float32" in text
    assert "gnfast / this" in text
    record = json.loads((tmp_path / "rows.json").read_text())
    assert record["environment"]["torch"] == torch.__version__
    assert {row["variant"] for row in record["rows"]} >= {cases.OURS, cases.A, cases.B, cases.C}
    assert (tmp_path / "plot.png").exists()
    assert main(["bench", "critic", "sampling", *words[:4], "--args", "kind='elu'", *words[6:]]) == 0
    text = capsys.readouterr().out
    assert "falls back to double backward" in text
    assert "sampling needs a generator" in text


def test_command_says_when_results_differ(capsys, tmp_path, monkeypatch):
    (tmp_path / "wrong.py").write_text(CRITIC)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cases, "four_passes", lambda net, x: 1.1 * ways.four_passes(net, x))
    words = ["--net", "wrong:critic", "--shape", "3,8,8", "--quick", "--device", "cpu"]
    assert main(["bench", "critic", *words]) == 1
    assert "results differ from double backward's" in capsys.readouterr().out


def test_bad_input_is_one_line(capsys, tmp_path, monkeypatch):
    (tmp_path / "bad.py").write_text(CRITIC)
    monkeypatch.chdir(tmp_path)
    assert "did you mean 'critic'" in fails(capsys, "critc")
    assert "--net: got 'bad', want module:Class" in fails(capsys, "--net", "bad", "--shape", "3,8,8")
    assert "--net: cannot import" in fails(capsys, "--net", "bad:nothing", "--shape", "3,8,8")
    assert "--shape: got '3,x'" in fails(capsys, "--net", "bad:critic", "--shape", "3,x")
    assert "want Python literals" in fails(capsys, "--net", "bad:critic", "--shape", "3,8,8", "--args", "open('x')")
    assert "--args: bad:critic(depth=3)" in fails(capsys, "--net", "bad:critic", "--shape", "3,8,8", "--args=depth=3")
    assert "--rounds" in fails(capsys, "--rounds", "0")
    assert "--device: got 'abacus'" in fails(capsys, "--device", "abacus")
    assert "critic: got 'cnn-33'" in fails(capsys, "--critics", "cnn-33")
    assert "its folder does not exist" in fails(capsys, "--json", "/nowhere/rows.json")


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as end:
        main(["bench", "--help"])
    assert not end.value.code
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "gnfast bench critic --net mymodels:Critic --shape 3,64,64" in text
    assert all(name in text for name in cases.CASES)


def test_make_bench_finds_its_benchmarks():
    options = ["-o", "python_files=bench_*.py", "-o", "python_functions=bench_*", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "benchmarks", "--collect-only", "-q", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-2000:]
    files = [file for file in (ROOT / "benchmarks").glob("bench_*.py") if "\ndef bench_" in file.read_text()]
    assert len(files) >= 4
    for file in files:
        assert f"{file.name}::" in done.stdout
