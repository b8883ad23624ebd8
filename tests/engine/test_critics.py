"""Some hundred critics in the manner of published ones through the passes: none falls back, all are exact."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import gnfast
from gnfast import reference
from tests.critics import CRITICS
from tests.oracle import PAIRS, assert_same, assert_same_state, outputs_and_gradients, relative_error

RECORDED_AS_MORE = {
    # Folds of the batch and indices that name samples, near x: the layers above take four passes.
    *("stylegan2-ada-filters", "diffaugment", "wavegan-phase-shuffle-per-sample"),
    # What is complex is differentiated by autograd, linear or not.
    "fourier-mixing",
}


def seeded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose network draws the same numbers each time."""

    def run(*args: Any, **kwargs: Any) -> Any:
        torch.manual_seed(0)
        return function(*args, **kwargs)

    return run


@contextlib.contextmanager
def twice_differentiable() -> Iterator[None]:
    """Attention's fused kernels have no second derivative, which double backward would need."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@twice_differentiable()
def by_double_backward(function: Callable[..., Any], net: torch.nn.Module, x: Tensor, *args: Any) -> dict[str, Any]:
    return outputs_and_gradients(seeded(function), net, x, *args)


@pytest.mark.parametrize("name", CRITICS)
def test_every_part_of_a_critic_takes_part(name):
    critic = CRITICS[name]
    net, x, args = critic.make()
    seen = by_double_backward(reference.normalize_gradient, net, x, *args)
    trained = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    taking_part = {key for key, value in seen.items() if value is not None and value.norm() > 1e-9}
    assert all(value.isfinite().all() for value in seen.values() if value is not None)
    asleep = {name for name in trained if name.startswith(critic.idle)} if critic.idle else set()
    assert taking_part == {"output 0", "x.grad"} | trained - asleep, "a gradient that is zero tests nothing"
    f, g = seeded(reference.value_and_input_grad)(net, x, *args)
    assert g.flatten(1).norm(dim=1).min() > 1e-6 and f.std() > 1e-6, "samples must differ"


@pytest.mark.parametrize("name", CRITICS)
def test_verdict_is_what_the_mathematics_says(name):
    """Four passes need one logit per sample, without curvature in x and without the other samples of the batch."""
    net, x, args = CRITICS[name].make()
    plan = seeded(gnfast.trace)(net, x, *args)
    assert not plan.refusals, plan.refusals
    twin = copy.deepcopy(net)
    with twice_differentiable():
        f, g = seeded(reference.value_and_input_grad)(net, x.requires_grad_(), *args)
        (curvature,) = torch.autograd.grad((g * torch.randn_like(g)).sum(), x, allow_unused=True)
    straight = curvature is None or curvature.norm() < 1e-11
    # What becomes of one sample where another changes.
    moved = x.detach().clone()
    moved[0] = moved[0].flip(-1) * 1.1
    other = seeded(twin)(moved, *args)
    independent = relative_error(other[1:], f[1:]) < 1e-12
    four = f.numel() == len(x) and straight and bool(independent)
    assert plan.takes_six == (not four or name in RECORDED_AS_MORE)
    verdict = next(line for line in str(plan).splitlines() if line.startswith("Exact in"))
    assert ("six passes" in verdict) == (plan.takes_six and plan.halves is None)


@pytest.mark.parametrize("name", CRITICS)
def test_critics_match_double_backward(name):
    net, x, args = CRITICS[name].make()
    twin = copy.deepcopy(net)
    for (fast, oracle), what in zip(PAIRS.values(), PAIRS, strict=True):
        if what == "value_and_grad_norm" and len(oracle(copy.deepcopy(net), x, *args)[0]) != len(x):
            continue
        expected = by_double_backward(oracle, twin, x, *args)
        actual = outputs_and_gradients(seeded(lambda *a, f=fast: f(*a, strict=True)), net, x, *args)
        assert_same(actual, expected, 1e-10, f"{what}: ")
        # Running statistics and power iterations have gone on, and as far.
        for (key, buffer), other in zip(net.named_buffers(), twin.buffers(), strict=True):
            assert relative_error(buffer.double(), other.double()) < 1e-12, key


@pytest.mark.filterwarnings("ignore::gnfast.FallbackWarning")
@pytest.mark.parametrize("name", CRITICS)
def test_further_ways(name):
    """Without rewrites; from a recording that is kept, where one can be; with frozen weights, as in generator steps."""
    net, x, args = CRITICS[name].make()
    for options in ({"rewrite": False}, {"static": True}, {}):
        net.requires_grad_(bool(options))
        own = copy.deepcopy(net)
        expected = by_double_backward(reference.normalize_gradient, copy.deepcopy(net), x, *args)
        # What is kept serves the second call.
        for _ in range(2 if "static" in options and not net.training else 1):
            way = seeded(partial(gnfast.normalize_gradient, strict="static" not in options, **options))
            assert_same(outputs_and_gradients(way, own, x, *args), expected, 1e-10, f"{options}: ")


@pytest.mark.parametrize("name", CRITICS)
def test_inference_mode(name):
    """What PyTorch makes in inference mode its autograd does not take; some operations derive by that."""
    net, x, args = CRITICS[name].make()
    nets = [copy.deepcopy(net) for _ in range(4)]
    with twice_differentiable():
        f, g = seeded(reference.value_and_input_grad)(nets[0], x, *args)
        one_logit = f.numel() == len(x)
        normalise = seeded(partial(gnfast.normalize_gradient, return_grad_norm=one_logit))
        normalised = normalise(nets[1], x, *args, impl="reference")
    with torch.inference_mode():
        # What is made here.
        x = x.clone()
        found = seeded(partial(gnfast.value_and_input_grad, strict=True))(nets[2], x, *args)
        found += (
            normalise(nets[3], x, *args, strict=True) if one_logit else (normalise(nets[3], x, *args, strict=True),)
        )
    for a, b in zip(found, (f, g, *(normalised if one_logit else (normalised,))), strict=True):
        assert relative_error(a, b) < 1e-10


@pytest.mark.parametrize("name", ["sngan", "biggan", "unet-bilinear"])
def test_spectral_norm_in_training_mode(name):
    net, x, args = CRITICS[name].make()
    net.train()
    twin = copy.deepcopy(net)
    for _ in range(2):
        actual = outputs_and_gradients(gnfast.normalize_gradient, net, x, *args, strict=True)
        assert_same(actual, outputs_and_gradients(reference.normalize_gradient, twin, x, *args))
        assert_same_state(net, twin)


@pytest.mark.parametrize("name", ["resnet-batch-norm", "unet", "cyclegan", "projected-gan", "vit-sdpa"])
def test_batches_without_samples(name):
    """Norms of none, products of no entries and sizes that -1 stands for: as double backward has them."""
    net, x, args = CRITICS[name].make()
    given = net, x.detach()[:0].clone(), *(a[:0] if torch.is_tensor(a) else a for a in args)
    expected = by_double_backward(reference.normalize_gradient, *given)
    assert_same(outputs_and_gradients(seeded(partial(gnfast.normalize_gradient, strict=True)), *given), expected)
