"""What a step costs at least, from the critic's Plan: operations, and bytes that must move.

The traffic model: a product (convolution, matrix product) reads its operand and its weight once and writes its result
once; activations are fused into the products beside them and move their sign bits only; an addition reads what its
producer does not hand it; whatever else computes reads its inputs and writes its output; views are free. Nothing is
found in a cache. `docs/scaling.md` has the formulae and how far they are from measurements.
"""

import math
from dataclasses import dataclass

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


def critic_passes(plan: Plan, batch: int) -> dict[str, Cost]:
    """The four passes over a batch, each by its name in `Plan.flops`."""
    flops = plan.flops()
    totals = {name: Cost(batch * flops[name]) for name in flops}
    for index, node in enumerate(plan.nodes):
        weights, bits = _weight_bytes(node), _bits(node)
        entering, leaving = _moved(plan, node)
        product = node.flops > 0
        once = weights * product
        totals["forward"] += Cost(0, batch * (entering + leaving + bits) + once)
        # Cotangents that are kept for the weights are those that were written anyway.
        totals["input gradient"] += Cost(0, batch * (entering + leaving + bits) + once)
        if plan.pushes_forward[index]:
            totals["tangent"] += Cost(0, batch * (entering + leaving + bits) + once)
        if plan.has_param_grads[index]:
            totals["weights"] += Cost(0, batch * (_input_bytes(plan, node) * product + _output_bytes(node)) + weights)
    return totals


def critic_step(plan: Plan, batch: int) -> Cost:
    """All four passes: what gnfast's critic step does at least."""
    return sum(critic_passes(plan, batch).values(), Cost())


def generator_step(plan: Plan, batch: int) -> Cost:
    """The critic's part of a generator step: a forward and the input gradient, of which nothing is kept."""
    passes = critic_passes(plan, batch)
    return passes["forward"] + passes["input gradient"]


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


def _moved(plan: Plan, node: Node) -> tuple[int, int]:
    """Bytes per sample that a forward of the node reads and writes."""
    if node.op.mask_bits or (node.op.is_view and not node.flops and _size_kept(node)):
        return 0, 0
    if isinstance(node.op, Add):
        return _output_bytes(node) * (len(node.inputs) - 1), 0
    return _input_bytes(plan, node), _output_bytes(node)


def _size_kept(node: Node) -> bool:
    return math.prod(node.output_shape) == math.prod(node.input_shapes[0])


def _input_bytes(plan: Plan, node: Node) -> int:
    itemsize = {n.output: n.itemsize for n in plan.nodes}
    return sum(
        math.prod(shape) * itemsize.get(value, node.itemsize)
        for value, shape in zip(node.inputs, node.input_shapes, strict=True)
    )


def _output_bytes(node: Node) -> int:
    return math.prod(node.output_shape) * node.itemsize


def _weight_bytes(node: Node) -> int:
    return sum(math.prod(shape) * node.itemsize for shape in node.operand_shapes if shape is not None)


def _bits(node: Node) -> int:
    return math.ceil(math.prod(node.output_shape) * node.op.mask_bits / 8)
