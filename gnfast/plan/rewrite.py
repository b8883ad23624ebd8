"""Exact rewrites of a Plan's nodes that shrink its passes (docs/algorithm.md, Rewrites)."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

from gnfast.plan.ops.conv import Conv2d
from gnfast.plan.ops.conv_pool import ConvAvgPool2d
from gnfast.plan.ops.pool import AvgPool2d
from gnfast.plan.plan import Node


def rewrite(nodes: Sequence[Node], output: int) -> tuple[Node, ...]:
    """The nodes with every convolution that only feeds an average pooling merged with it or moved behind it."""
    uses = Counter(value for node in nodes for value in node.inputs)
    uses[output] += 1
    rewritten: list[Node] = []
    position: dict[int, int] = {}
    for node in nodes:
        index = position.get(node.inputs[0])
        first = None if index is None or uses[node.inputs[0]] > 1 else rewritten[index]
        merged = None if first is None else _merge(first, node)
        if merged is None:
            position[node.output] = len(rewritten)
            rewritten.append(node)
        else:
            # Behind what lies between: the merged nodes read nothing that was not there for the first of the two.
            position = {value: at - (at > index) for value, at in position.items()}
            del rewritten[index]
            for replacement in merged:
                position[replacement.output] = len(rewritten)
                rewritten.append(replacement)
    return tuple(rewritten)


def _merge(conv: Node, pool: Node) -> tuple[Node, ...] | None:
    """What replaces a convolution and the pooling that alone reads it, or None."""
    if not (isinstance(conv.op, Conv2d) and isinstance(pool.op, AvgPool2d)):
        return None
    mean = pool.op.padding == (0, 0) and pool.op.divisor is None and not pool.op.ceil_mode
    if not mean or conv.op.stride != (1, 1):
        return None
    kernel = conv.operand_shapes[0][2:]
    if kernel == (1, 1) and conv.op.padding == (0, 0):
        # The mean of a pixelwise map is the map of the mean.
        pooled = (conv.input_shapes[0][0], *pool.output_shape[1:])
        first = dataclasses.replace(pool, inputs=conv.inputs, output=conv.output, input_shapes=conv.input_shapes)
        first = dataclasses.replace(first, output_shape=pooled)
        second = dataclasses.replace(conv, inputs=(conv.output,), output=pool.output, input_shapes=(pooled,))
        return first, dataclasses.replace(second, output_shape=pool.output_shape)
    if conv.op.dilation == (1, 1) and pool.op.kernel == pool.op.stride and _shrinks(kernel, pool.op.kernel):
        op = ConvAvgPool2d(conv.op.padding, conv.op.groups, pool.op.kernel)
        return (dataclasses.replace(conv, op=op, output=pool.output, output_shape=pool.output_shape),)
    return None


def _shrinks(kernel: Sequence[int], pool: Sequence[int]) -> bool:
    """Whether one strided convolution takes fewer products per input pixel than the two operations."""
    (height, width), (down, across) = kernel, pool
    return (height + down - 1) * (width + across - 1) < height * width * down * across
