"""Comparison of the four passes with double backward: every output and every gradient."""

import copy
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gnfast
from gnfast import FallbackWarning, UnsupportedError, reference


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h: Tensor) -> Tensor:
        return h.cos()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad


class Unseen(nn.Module):
    """An activation of a kind that no recording can see through: a custom autograd Function."""

    def forward(self, h: Tensor) -> Tensor:
        return _Straight.apply(h)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖; the absolute norm where the expected tensor is a zero up to rounding."""
    assert actual.shape == expected.shape
    scale = expected.norm().item()
    return (actual - expected).norm().item() / (scale if scale > 1e-9 else 1)


def loss_of(*outputs: Tensor) -> Tensor:
    """A scalar that depends on every entry of every output with a different, curved weight."""
    total = outputs[0].new_zeros(())
    for output in outputs:
        weights = torch.linspace(0.5, 2, output.numel(), dtype=output.dtype, device=output.device)
        total = total + ((output.reshape(-1) * weights).sin() + output.reshape(-1) * weights**2).sum()
    return total


def outputs_and_gradients(
    function: Callable[..., Any], net: nn.Module, x: Tensor, *args: Any, **kwargs: Any
) -> dict[str, Tensor | None]:
    """Everything that a user can see of one call and its backward, by name."""
    x = x.detach().clone().requires_grad_()
    net.zero_grad()
    result = function(net, x, *args, **kwargs)
    result = result if isinstance(result, tuple) else (result,)
    loss_of(*result).backward()
    seen = {f"output {i}": output.detach() for i, output in enumerate(result)}
    seen["x.grad"] = x.grad
    seen |= {name: None if p.grad is None else p.grad.clone() for name, p in net.named_parameters()}
    return seen


PAIRS = {
    "normalize_gradient": (gnfast.normalize_gradient, reference.normalize_gradient),
    "value_and_grad_norm": (gnfast.value_and_grad_norm, reference.value_and_grad_norm),
    "value_and_input_grad": (gnfast.value_and_input_grad, reference.value_and_input_grad),
}


def assert_matches_double_backward(
    net: nn.Module, x: Tensor, *args: Any, tolerance: float = 1e-10, rewrite: bool = True, **kwargs: Any
) -> None:
    """All three functions against their twins; strict, so that a fallback cannot pass for the four passes."""
    for name, (fast, oracle) in PAIRS.items():
        expected = outputs_and_gradients(oracle, net, x, *args, **kwargs)
        actual = outputs_and_gradients(fast, net, x, *args, strict=True, rewrite=rewrite, **kwargs)
        assert_same(actual, expected, tolerance, f"{name}: ")


def assert_same(
    actual: Mapping[str, Tensor | None], expected: Mapping[str, Tensor | None], tolerance: float = 1e-10, of: str = ""
) -> None:
    """What `outputs_and_gradients` saw twice; zeros may stand for a gradient that there is not."""
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        if value is None:
            assert actual[key] is None or not actual[key].any(), f"{of}{key} has a gradient"
            continue
        assert actual[key] is not None, f"{of}{key} has no gradient"
        error = relative_error(actual[key], value)
        assert error <= tolerance, f"{of}{key} differs by {error:.2e}"


def assert_agree(call: Callable[[ModuleType], Any], tolerance: float = 1e-10) -> None:
    """The tensors that `call` makes with the functions of gnfast, and with their twins in gnfast.reference."""
    for actual, expected in zip(call(gnfast), call(reference), strict=True):
        assert relative_error(actual, expected) <= tolerance


def assert_same_state(net: nn.Module, twin: nn.Module) -> None:
    """Running statistics and power iterations have gone the same way."""
    for (name, buffer), other in zip(net.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(buffer, other), name


def assert_falls_back(net: nn.Module, x: Tensor, *args: Any, match: str, tolerance: float = 1e-12) -> None:
    """Refused by name where `strict`; else one warning and double backward's outputs, gradients and state."""
    twin = copy.deepcopy(net)
    with pytest.raises(UnsupportedError, match=match):
        gnfast.normalize_gradient(net, x, *args, strict=True)
    assert_same_state(net, twin)
    with pytest.warns(FallbackWarning, match=match) as caught:
        actual = outputs_and_gradients(gnfast.normalize_gradient, net, x, *args)
        gnfast.normalize_gradient(net, x, *args)
    assert [warning.category for warning in caught].count(FallbackWarning) == 1, "one warning per network"
    expected = outputs_and_gradients(reference.normalize_gradient, twin, x, *args)
    reference.normalize_gradient(twin, x, *args)
    assert_same(actual, expected, tolerance)
    assert_same_state(net, twin)
