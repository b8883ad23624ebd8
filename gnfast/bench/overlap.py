"""What of the all-reduces of an update outlasts its backward: a timeline of the buckets that training sends."""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import nn

from gnfast.bench.cost import node_costs
from gnfast.kernels.operands import Fold
from gnfast.plan.plan import Plan


class Layer(NamedTuple):
    """A layer's part of a backward.

    Attributes:
        seconds: from the gradient of the layer before it to its own.
        size: bytes of its gradient in float32.
    """

    seconds: float
    size: int


def exposed_s(layers: Iterable[Layer], bucket_bytes: int, all_reduce_s: Callable[[int], float]) -> float:
    """Seconds from the end of a backward to the end of its last all-reduce, one after the other and at full speed.

    Args:
        layers: in the order in which their gradients come; one without a gradient at the end for what follows them.
        bucket_bytes: a bucket leaves when it holds so much, the last one at the end.
        all_reduce_s: bytes to seconds.
    """
    now = free = 0.0
    filling = 0
    for layer in layers:
        now += layer.seconds
        filling += layer.size
        if filling >= bucket_bytes:
            free, filling = max(free, now) + all_reduce_s(filling), 0
    if filling:
        free = max(free, now) + all_reduce_s(filling)
    return max(0.0, free - now)


def critic_layers(plan: Plan, batch: int, flop_per_s: float, bytes_per_s: float) -> list[Layer]:
    """The tangent pass over a batch: first layer first, biases at its end."""
    layers, seconds, biases = [], 0.0, 0
    for node, costs in zip(plan.nodes, node_costs(plan, batch), strict=True):
        of_weights, of_tangent = (costs[name].seconds(flop_per_s, bytes_per_s) for name in ("weights", "tangent"))
        weight, *others = zip(node.operands, node.operand_shapes, strict=True) if node.operands else [(None, None)]
        biases += sum(4 * math.prod(shape) for slot, shape in others if slot in plan.trainable)
        seconds += of_weights
        if of_weights and weight[0] is not None:
            layers.append(Layer(seconds, 4 * _recorded_size(plan, *weight)))
            seconds = 0.0
        seconds += of_tangent
    return [*layers, Layer(seconds, biases)]


def generator_layers(net: nn.Module, z_dim: int, seconds: float) -> list[Layer]:
    """A backward of so many seconds, shared as its products' operations are: last layer first.

    Args:
        net: the generator, on any device; it is called with latent vectors.
    """
    found: list[tuple[int, int]] = []

    def note(layer: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        size = sum(parameter.numel() for parameter in layer.parameters())
        # A transposed convolution multiplies at each of its inputs.
        pixels = min(math.prod(images.shape[2:]) for images in (*inputs, output))
        found.append((layer.weight.numel() * pixels, size))

    kinds = nn.Linear, nn.Conv2d, nn.ConvTranspose2d
    hooks = [layer.register_forward_hook(note) for layer in net.modules() if isinstance(layer, kinds)]
    place = next(net.parameters())
    with torch.no_grad():
        net(torch.zeros(2, z_dim, device=place.device, dtype=place.dtype))
    for hook in hooks:
        hook.remove()
    total = sum(products for products, _ in found)
    layers = [Layer(seconds * products / total, 4 * size) for products, size in reversed(found)]
    rest = 4 * sum(parameter.numel() for parameter in net.parameters()) - sum(layer.size for layer in layers)
    return [*layers, Layer(0.0, rest)]


def _recorded_size(plan: Plan, slot: int, shape: tuple[int, ...]) -> int:
    """Entries of the parameter that an operand is, or is made of."""
    recorded = len(plan.dtypes)
    fold = plan.derived[slot - recorded].fold if slot >= recorded else None
    if isinstance(fold, Fold):
        extents = (extent - wide + 1 for extent, wide in zip(shape[2:], fold.window, strict=True))
        return math.prod(shape[:2]) * math.prod(extents)
    return math.prod(shape) // (math.prod(shape[2:]) if fold is not None and fold.divisor else 1)
