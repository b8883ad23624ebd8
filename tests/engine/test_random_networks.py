"""Hundreds of random critics against double backward: every output, every gradient, buffers and random numbers.

The same critics in every run. `make hunt` draws others, and more hostile ones, for as long as one likes.
"""

import copy
import dataclasses
import itertools
from functools import partial

import pytest
import torch

import gnfast
from gnfast import heads
from gnfast.engine import autograd
from gnfast.kernels.join import plain
from tests.hunt import cases as hunted
from tests.hunt import critics as hunt
from tests.hunt.cases import Engine, Plain
from tests.random_networks import FAMILIES, Critic

CALLS = [("normalize_gradient", method) for method in hunted.FORMULAS]
CALLS += [("value_and_input_grad", ""), ("value_and_grad_norm", "")]


def test_every_normaliser_has_a_formula():
    assert hunted.FORMULAS.keys() == heads.METHODS.keys()


def draw(family, spoil=False, **settings):
    """One case after another, each of one step by one of `CALLS`, with nothing around it that must fall back."""
    for seed, (call, method) in zip(itertools.count(), itertools.cycle(CALLS)):
        case = hunted.draw_case(seed, "float64", family, spoil)
        x_kind = "requires grad" if case.x_kind == "hooked" else case.x_kind
        plain = {"surroundings": "nothing", "given": "a tensor", "two_before_backward": False, "x_kind": x_kind}
        yield dataclasses.replace(case, xs=case.xs[:1], call=call, method=method, **(plain | settings))


def compare(case, tolerance=1e-10, state_tolerance=1e-14):
    """Value, gradients and state by gnfast, and what double backward says; the network after it, and the warnings."""
    net = copy.deepcopy(case.net)
    steps = hunted.run(case, Plain, copy.deepcopy(case.net), torch.float64)
    results = hunted.run(case, Engine, net, torch.float64)
    warned = sum(actual.fell_back for actual in results)
    for actual, expected in zip(results, steps, strict=True):
        if not hunt.finite([expected]):
            # Where f and its gradient are 0, gnfast's f̂ is 0 and the papers' code's NaN.
            return net, warned
        assert not hunted.difference(actual.state, expected.state, state_tolerance), case
        for name, error in hunt.relative_errors(actual, expected).items():
            # The gradient of a float32 parameter is a sum of parts that are rounded to float32.
            allowed = max(tolerance, 1e-4) if hunt.rounds_to_float32(case, name) else tolerance
            assert error <= allowed, f"{name} differs by {error:.1e}\n{case}"
    return net, warned


@pytest.mark.parametrize("family", FAMILIES)
def test_random_networks(family):
    for case in itertools.islice(draw(family, strict=True), 45):
        # Casts in the middle of a network round cotangents to float32.
        _, warned = compare(case, tolerance=1e-3 if family == "casts" else 1e-10)
        assert not warned, case


@pytest.mark.parametrize("family", FAMILIES)
def test_random_networks_in_plans_for_gpus(family, monkeypatch):
    monkeypatch.setattr(plain, "FUSES", True)
    monkeypatch.setitem(autograd._CHANNELS_LAST_DTYPES, "cpu", (torch.float64, torch.float32))
    for case in itertools.islice(draw(family, strict=True), 45, 60):
        _, warned = compare(case, tolerance=1e-3 if family == "casts" else 1e-10)
        assert not warned, case


@pytest.mark.parametrize("family", FAMILIES)
def test_kept_recordings_of_random_networks(family, monkeypatch):
    """Three steps, whose forward runs once where the recording can be kept."""
    for name in ("normalize_gradient", "value_and_input_grad", "value_and_grad_norm"):
        monkeypatch.setattr(hunted.Engine, name, staticmethod(partial(getattr(gnfast, name), static=True)))
    forwards, forward = [], Critic.forward

    def counted(net, *args, **kwargs):
        forwards.append(net)
        try:
            return forward(net, *args, **kwargs)
        finally:
            forget_arguments(net)

    def forget_arguments(net):
        # Attributes of its modules, which would be seen to change.
        for weights in net.weights.values():
            weights.labels = weights.given = None

    monkeypatch.setattr(Critic, "forward", counted)
    count = 10
    for case in itertools.islice(draw(family), count):
        forget_arguments(case.net)
        # Rounding grows from step to step.
        tolerances = (1e-3, 1e-3) if family == "casts" else (1e-7, 1e-9)
        compare(dataclasses.replace(case, xs=[*case.xs] * 3), *tolerances)
    # Three by double backward, and one or three by gnfast.
    assert len(forwards) < 5.5 * count


@pytest.mark.parametrize("family", ["rewrites", "images", "modern"])
def test_rewritten_random_networks(family):
    drawn = draw(family, strict=True, surroundings="rewritten")
    drawn = (case for case in drawn if not any(step.arguments.get("inplace") for step in case.net.steps))
    for case in itertools.islice(drawn, 30):
        _, warned = compare(case)
        assert not warned, case


@pytest.mark.parametrize("family", ["images", "sequences", "vectors", "mixed", "coupled"])
def test_what_the_passes_cannot_do_is_refused_and_falls_back_exactly(family):
    for place, case in enumerate(itertools.islice(draw(family, spoil=True), 30)):
        net, warned = compare(dataclasses.replace(case, strict=place % 2 == 0))
        assert warned == 1, case
        assert hunted.strictly(case, net, case.xs[0], (case.labels,), {}) is None, case


@pytest.mark.parametrize(("precision", "count"), [("float64", 80), ("float32", 20), ("bfloat16", 20), ("autocast", 20)])
def test_hostile_critics(precision, count):
    for seed in range(count):
        verdict = hunt.judge(hunted.draw_case(seed, precision))
        again = f"python -m tests.hunt critics --seed {seed} --dtype {precision}"
        assert verdict.kind != hunt.FAILED, f"{verdict.reason}\n{again}"


def _slightly_wrong(net, x, *args, **kwargs):
    f, g = gnfast.value_and_input_grad(net, x, *args, **kwargs)
    return f, 1.0001 * g


def _advancing_twice(net, x, *args, strict=False, rewrite=True, **kwargs):
    net(x.detach(), *args, **kwargs)
    return gnfast.value_and_input_grad(net, x, *args, strict=strict, rewrite=rewrite, **kwargs)


def _raising(net, x, *args, **kwargs):
    raise TypeError("not one of ours")


@pytest.mark.parametrize(
    ("broken", "reason"), [(_slightly_wrong, "differs by"), (_advancing_twice, "state after"), (_raising, "TypeError")]
)
def test_the_hunt_finds_what_is_wrong(broken, reason, monkeypatch):
    monkeypatch.setattr(hunted.Engine, "value_and_input_grad", broken)
    drawn = (hunted.draw_case(seed, "float64") for seed in range(300))
    verdicts = (hunt.judge(case) for case in drawn if case.call == "value_and_input_grad")
    assert any(verdict.kind == hunt.FAILED and reason in verdict.reason for verdict in verdicts)
