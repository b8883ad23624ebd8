"""Rescaling a critic's weights without changing its gradient-normalised value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from gnfast.errors import UnsupportedError
from gnfast.plan.plan import Node, Refusal, readers
from gnfast.plan.state import unchanged
from gnfast.plan.tracing import record


@torch.no_grad()
def rescale_(
    net: nn.Module, x: Tensor, *args: Any, norm: float | Mapping[str, float] | None = None, **kwargs: Any
) -> float:
    """Rescales every layer's weight in place, and its bias with it, so that f becomes c · f for one number c.

    Weights of deep critics drift to sizes at which the input gradient over- or underflows. GN's f / (‖∇f‖ + |f|) and
    f / ‖∇f‖ do not see a positive factor of f, so it can be taken out; the other normalisers change with it. From the
    follow-up of GN-GAN (Wu et al., Faster-GNGAN, its code).

    A weight becomes s · W, and the bias that belongs to it the product of all s so far times b. Where branches meet,
    the last layer of a branch takes the ratio of the products, so that all scale alike.

    Args:
        net: a critic of convolutions and linear layers, positively homogeneous activations ((Leaky, P)ReLU, abs, max),
            linear maps without constants, and branches.
        x: (B, ...) example input; only its shape, dtype and device matter.
        *args, **kwargs: passed to `net` after x.
        norm: the Frobenius norm that weights get, for all or by the parameter's name; their standard deviation becomes
            √2 · √(2 / (fan_in + fan_out)) if None.

    Returns:
        c.

    Raises:
        UnsupportedError: the network is not homogeneous, or a weight is shared, zero, or not a parameter of its own
            (parametrised, for instance); nothing was changed.
    """
    factors, total = rescaling(net, x, *args, norm=norm, **kwargs)
    for name, parameter in net.named_parameters():
        parameter.mul_(factors.get(name, 1.0))
    return total


@torch.no_grad()
def rescaling(
    net: nn.Module, x: Tensor, *args: Any, norm: float | Mapping[str, float] | None = None, **kwargs: Any
) -> tuple[dict[str, float], float]:
    """What `rescale_`, with the same arguments and errors, multiplies parameters with, by their names; and c."""
    with unchanged(net):
        plan, operands = record(net, x, args, kwargs, rewritten=False, fused=False)
    counts = readers(plan.nodes, plan.output)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    scaled: dict[int, _Scaled] = {0: _Scaled(1.0, None)}
    layers: list[_Layer] = []
    for node in plan.nodes:
        # Only a value that is read once may be scaled without touching something else.
        inputs = [scaled[v] if counts[v] == 1 else _Scaled(scaled[v].factor, None) for v in node.inputs]
        if node.op.is_layer:
            weight, bias = (None if slot is None else operands[slot] for slot in node.operands)
            _require_own(node, weight, bias, names, layers)
            wanted = norm[names[id(weight)]] if isinstance(norm, Mapping) else norm
            before = inputs[0].factor
            layers.append(_Layer(weight, bias, before, product=before * _factor(node, weight, wanted)))
            scaled[node.output] = _Scaled(layers[-1].product, layers[-1])
        elif not node.op.homogeneous:
            _refuse(node, "it is not positively homogeneous")
        else:
            scaled[node.output] = inputs[0] if len(inputs) == 1 else _joined(node, inputs)
    factors = {}
    for layer in layers:
        factors[names[id(layer.weight)]] = layer.product / layer.before
        if layer.bias is not None:
            factors[names[id(layer.bias)]] = layer.product
    return factors, scaled[plan.output].factor


@dataclass
class _Layer:
    """A weight whose input is scaled by `before` and whose output is to be scaled by `product`."""

    weight: Tensor
    bias: Tensor | None
    before: float
    product: float


@dataclass(frozen=True)
class _Scaled:
    """What multiplies a value, and the layer that may still change that, if nothing between them is read twice."""

    factor: float
    layer: _Layer | None


def _joined(node: Node, inputs: Sequence[_Scaled]) -> _Scaled:
    """What multiplies the result where branches meet, once their last layers make all scale alike."""
    fixed = [entry.factor for entry in inputs if entry.layer is None]
    target = fixed[0] if fixed else inputs[0].factor
    if any(abs(factor / target - 1) > 1e-12 for factor in fixed):
        _refuse(node, "branches without a layer of their own scale differently")
    for entry in inputs:
        if entry.layer is not None:
            entry.layer.product = target
    return _Scaled(target, None)


def _factor(node: Node, weight: Tensor, norm: float | None) -> float:
    if norm is None:
        fans = weight.shape[0] + weight.shape[1]
        wanted = (4 / (fans * weight[0, 0].numel())) ** 0.5
        present = weight.std().item()
    else:
        wanted, present = norm, weight.norm().item()
    if not present > 0:
        _refuse(node, "its weight has no scale")
    return wanted / present


def _require_own(
    node: Node, weight: Tensor, bias: Tensor | None, names: Mapping[int, str], layers: list[_Layer]
) -> None:
    for tensor in (weight, bias):
        if tensor is not None and id(tensor) not in names:
            _refuse(node, "its weight or bias is computed (parametrised), not a parameter")
        if tensor is not None and any(tensor is layer.weight or tensor is layer.bias for layer in layers):
            _refuse(node, "its weight or bias is used by another layer too")


def _refuse(node: Node, reason: str) -> NoReturn:
    raise UnsupportedError(f"rescale_: {Refusal(node.submodule, node.op.label(), reason)}")
