"""What a step costs at least, from the critic's Plan: operations, and bytes that must move.

The traffic model: a product (convolution, matrix product) reads its operand and its weight once and writes its result
once; activations are fused into the products next to them and move their sign bits only; an addition reads what its
producer does not hand it; whatever else computes reads its inputs and writes its output; views are free. Nothing is
found in a cache. `docs/scaling.md` has the formulae and how far they are from measurements.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from gnfast.bench.count import work
from gnfast.plan.ops.elementwise import Add
from gnfast.plan.plan import Node, Plan


@dataclass(frozen=True)
class Cost:
    """Floating-point operations of products, bytes through memory."""

    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, factor: float) -> "Cost":
        return Cost(self.flops * factor, self.bytes * factor)

    def seconds(self, flop_per_s: float, bytes_per_s: float) -> float:
        """The least time at these rates: arithmetic and memory overlap perfectly."""
        return max(self.flops / flop_per_s, self.bytes / bytes_per_s)


def node_costs(plan: Plan, batch: int) -> list[dict[str, Cost]]:
    """Per operation, what it costs over a batch in each of the four passes, by the names of `Plan.flops`."""
    return [_node_costs(plan, index, batch) for index in range(len(plan.nodes))]


def critic_passes(plan: Plan, batch: int) -> dict[str, Cost]:
    """The four passes over a batch, summed over operations."""
    nodes = node_costs(plan, batch)
    return {name: sum((node[name] for node in nodes), Cost()) for name in plan.flops()}


def seconds(plan: Plan, batch: int, flop_per_s: float, bytes_per_s: float) -> dict[str, float]:
    """A prediction per pass: each operation takes the longer of its arithmetic and its bytes, one after the other."""
    nodes = node_costs(plan, batch)
    return {name: sum(node[name].seconds(flop_per_s, bytes_per_s) for node in nodes) for name in plan.flops()}


def critic_step(plan: Plan, batch: int) -> Cost:
    """All four passes: what gnfast's critic step does at least."""
    return sum(critic_passes(plan, batch).values(), Cost())


def generator_step(plan: Plan, batch: int) -> Cost:
    """The critic's part of a generator step: a forward and the input gradient, of which nothing is kept."""
    passes = critic_passes(plan, batch)
    return passes["forward"] + passes["input gradient"]


def generator(net: nn.Module, z_dim: int) -> tuple[Cost, Cost]:
    """What a generator costs per image at least: its forward, and its forward with its backward.

    Its batch norm couples the images of a batch, so that it has no Plan: its products are counted in a run of two
    images, and everything between them is taken to be fused. On the device `meta`, `gnfast.rewrite` merges nothing.
    """
    parameter = next(net.parameters())
    z = torch.randn(2, z_dim, device=parameter.device, dtype=parameter.dtype)
    with torch.no_grad():
        forward = work(lambda: net(z))
    both = work(lambda: net(z).sum().backward())
    net.zero_grad(set_to_none=True)
    return tuple(Cost(found.flops / 2, found.product_bytes / 2) for found in (forward, both))


def pointwise_bytes(plan: Plan, batch: int) -> Cost:
    """What activations and additions move beyond the minimum, in all passes, while they are kernels of their own."""
    extra = 0
    for index, node in enumerate(plan.nodes):
        passes = 2 + plan.pushes_forward[index]
        if node.op.mask_bits:
            extra += 2 * _output_bytes(node) * passes
        elif isinstance(node.op, Add):
            # The pullback of a sum is the sum's cotangent itself.
            extra += 2 * _output_bytes(node) * (passes - 1)
    return Cost(0, batch * extra)


def _node_costs(plan: Plan, index: int, batch: int) -> dict[str, Cost]:
    node, flops = plan.nodes[index], plan._node_flops(index)
    weights = sum(math.prod(shape) * node.itemsize for shape in node.operand_shapes if shape is not None)
    bits = math.ceil(math.prod(node.output_shape) * node.op.mask_bits / 8)
    # Cotangents that are kept for the weights are those that were written anyway.
    through = batch * (_moved(plan, node) + bits) + weights * bool(node.flops)
    outer = batch * (_input_bytes(plan, node) * bool(node.flops) + _output_bytes(node)) + weights
    moved = {
        "forward": through,
        "input gradient": through,
        "tangent": through * plan.pushes_forward[index],
        "second reverse": through * plan.runs(index)[3],
        "weights": outer * plan.runs(index)[4],
    }
    return {name: Cost(batch * flops[name], count) for name, count in moved.items()}


def _moved(plan: Plan, node: Node) -> int:
    """Bytes per sample that a forward of the node reads and writes, but for weights and sign bits."""
    size_kept = math.prod(node.output_shape) == math.prod(node.input_shapes[0])
    if node.op.mask_bits or (node.op.is_view and not node.flops and size_kept):
        return 0
    if isinstance(node.op, Add):
        return _output_bytes(node) * (len(node.inputs) - 1)
    return _input_bytes(plan, node) + _output_bytes(node)


def _input_bytes(plan: Plan, node: Node) -> int:
    itemsize = {n.output: n.itemsize for n in plan.nodes}
    return sum(
        math.prod(shape) * itemsize.get(value, node.itemsize)
        for value, shape in zip(node.inputs, node.input_shapes, strict=True)
    )


def _output_bytes(node: Node) -> int:
    return math.prod(node.output_shape) * node.itemsize
