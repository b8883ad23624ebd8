"""Thousands of random critics against double backward: every output, every gradient, buffers and random numbers.

The same critics in every run; GNFAST_RANDOM_CASES=20000 draws that many per family instead, other ones each time.
`make hunt` draws critics that are more hostile, for as long as one likes; some of them are here.
"""

import os
import warnings
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import gnfast
from gnfast import FallbackWarning, UnsupportedError, reference
from tests.hunt import cases as hunted
from tests.hunt import critics as hunt
from tests.oracle import loss_of
from tests.random_networks import FAMILIES, Critic, draw_critic

CASES = int(os.environ.get("GNFAST_RANDOM_CASES", "0"))
RUN = settings(
    max_examples=CASES or 60,
    derandomize=not CASES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
RUN_FEWER = settings(RUN, max_examples=CASES or 30)
METHODS = ("gn", "gn1", "gran", "pgn", "pgn-table", "gradient", "norm")


def call(which, case, x, net=None, **options):
    method, net, labels = case.method, net or case.net, case.labels
    module = reference if which == "reference" else gnfast
    if method == "gradient":
        return module.value_and_input_grad(net, x, labels, **options)
    if method == "norm":
        return module.value_and_grad_norm(net, x, labels, **options)
    return (module.normalize_gradient(net, x, labels, method=method, **options),)


def observe(which, case, net=None, **options):
    """Everything that a user can see of one call and its backward, by name; the network's buffers stay changed."""
    run, net, x = net, case.net, case.x.detach().clone().requires_grad_(case.x.requires_grad)
    net.zero_grad()
    torch.manual_seed(net.seed)
    outputs = call(which, case, x, run, **options)
    seen = {"random state": torch.get_rng_state()}
    seen |= {f"buffer {name}": buffer.clone() for name, buffer in net.named_buffers()}
    seen |= {f"output {place}": output.detach() for place, output in enumerate(outputs)}
    if outputs[0].requires_grad:
        loss_of(*outputs).backward()
    seen["gradient of x"] = x.grad
    seen |= {f"gradient of {name}": parameter.grad for name, parameter in net.named_parameters()}
    assert torch.equal(x, case.x), f"{which} changed x"
    return seen


def compare(actual, expected, tolerance):
    """Relative errors, of gradients relative to the largest where they are nearly zero themselves."""
    assert actual.keys() == expected.keys()
    largest = max(
        (value.norm().item() for name, value in expected.items() if name.startswith("gradient") and value is not None),
        default=0.0,
    )
    for name, value in expected.items():
        other = actual[name]
        if value is None or other is None:
            assert value is None or not value.abs().max() > tolerance * max(largest, 1.0), f"{name} is missing"
            assert other is None or not other.abs().max() > tolerance * max(largest, 1.0), f"{name} is not zero"
            continue
        if not value.is_floating_point() or name.startswith("buffer"):
            assert torch.equal(other, value), f"{name} differs"
            continue
        assert other.shape == value.shape and other.dtype == value.dtype, f"{name}: {other.shape}, {other.dtype}"
        floor = 1e-2 * max(largest, 1.0)
        error = (other - value).norm().item() / max(value.norm().item(), floor)
        # The gradient of a float32 parameter is a sum of parts that are rounded to float32.
        allowed = tolerance if value.dtype == torch.float64 else 1e-4
        assert error <= allowed, f"{name} differs by {error:.1e}"


@dataclass
class Case:
    """A critic, what it is given, and how it is called."""

    net: Critic
    x: Tensor
    labels: Tensor
    layout: str
    frozen: int
    method: str

    def __repr__(self):
        needs = "with" if self.x.requires_grad else "without"
        return f"{self.net!r}    {self.method}, x {self.layout} {needs} gradient, freezing {self.frozen}"


@st.composite
def cases(draw, family, spoil=False):
    net, x, labels = draw_critic(lambda count: draw(st.integers(0, count - 1)), *FAMILIES[family], spoil=spoil)
    layout = draw(st.sampled_from(["contiguous", "channels_last", "transposed"]))
    if any(step.name == "dropout" for step in net.steps):
        # PyTorch draws a mask in the order of memory, which the recording does not follow.
        layout = "contiguous"
    if layout == "channels_last" and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
        for parameter in net.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    elif layout == "transposed" and x.dim() > 2:
        x = x.mT.contiguous().mT
    # 1: all of them, n: every n-th, -n: all but every n-th.
    frozen = draw(st.sampled_from([0, 0, 0, 2, 3, -2, 1]))
    for place, parameter in enumerate(net.parameters()):
        parameter.requires_grad_(not frozen or (place % abs(frozen) == 0) == (frozen < 0))
    return Case(net, x.requires_grad_(draw(st.booleans())), labels, layout, frozen, draw(st.sampled_from(METHODS)))


def restored(net, buffers):
    with torch.no_grad():
        for buffer, value in zip(net.buffers(), buffers, strict=True):
            buffer.copy_(value)


def expected_of(case):
    """What double backward shows, and the network's buffers, which are as before."""
    buffers = [buffer.clone() for buffer in case.net.buffers()]
    expected = observe("reference", case)
    restored(case.net, buffers)
    return expected, buffers


@pytest.mark.parametrize("family", FAMILIES)
def test_random_networks(family):
    @RUN
    @given(cases(family), st.booleans())
    def check(case, rewrite):
        expected, _ = expected_of(case)
        # Casts in the middle of a network round cotangents to float32.
        tolerance = 1e-3 if family == "casts" else 1e-10
        compare(observe("gnfast", case, strict=True, rewrite=rewrite), expected, tolerance)

    check()


@pytest.mark.parametrize("family", ["rewrites", "images"])
def test_rewritten_random_networks(family):
    @RUN_FEWER
    @given(cases(family), st.sampled_from(["reference", "gnfast"]))
    def check(case, which):
        assume(not any(step.arguments.get("inplace") for step in case.net.steps))
        expected, _ = expected_of(case)
        options = {"strict": True} if which == "gnfast" else {}
        compare(observe(which, case, gnfast.rewrite(case.net), **options), expected, 1e-10)

    check()


@pytest.mark.parametrize("family", ["images", "sequences", "vectors", "mixed"])
def test_what_is_not_piecewise_linear_is_refused_and_falls_back_exactly(family):
    @RUN_FEWER
    @given(cases(family, spoil=True), st.booleans())
    def check(case, strict_first):
        expected, buffers = expected_of(case)
        if strict_first:
            assert_refused(case, buffers)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            actual = observe("gnfast", case)
        assert len([w for w in caught if issubclass(w.category, FallbackWarning)]) == 1
        compare(actual, expected, 1e-10)
        restored(case.net, buffers)
        assert_refused(case, buffers)

    check()


def assert_refused(case, buffers):
    """Raised under `strict`, with buffers and random numbers as they were."""
    torch.manual_seed(case.net.seed)
    state = torch.get_rng_state()
    with pytest.raises(UnsupportedError):
        call("gnfast", case, case.x, strict=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(*pair) for pair in zip(case.net.buffers(), buffers, strict=True))


@pytest.mark.parametrize(
    ("precision", "count"), [("float64", 100), ("float32", 20), ("bfloat16", 20), ("autocast", 20)]
)
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
    drawn = (hunted.draw_case(seed, "float64") for seed in range(100))
    verdicts = [hunt.judge(case) for case in drawn if case.call == "value_and_input_grad"]
    assert any(verdict.kind == hunt.FAILED and reason in verdict.reason for verdict in verdicts)
