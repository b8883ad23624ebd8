"""Attention whose queries, keys and values are parts of one layer's output, as one node that reads the whole of it.

Else every part would have a cotangent of the whole's size, most of it zeros.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor

from gnfast.plan.op import Context, LinearCall
from gnfast.plan.ops.attention import Attention, PackedAttention
from gnfast.plan.ops.linear import Linear
from gnfast.plan.ops.shape import Reshape
from gnfast.plan.plan import Node, reached

_VIEWS = {torch.permute, torch.reshape, torch.select, torch.narrow}


def with_packed_attention(nodes: Sequence[Node], output: int) -> tuple[Node, ...]:
    """The nodes, those of attention reading what a linear layer gives where they can."""
    producers = {node.output: node for node in nodes}
    packed = tuple(_packed(node, producers) if type(node.op) is Attention else node for node in nodes)
    needed = reached(packed, output, by_derivatives=False)
    return tuple(node for node, need in zip(packed, needed, strict=True) if need)


def _packed(node: Node, producers: dict[int, Node]) -> Node:
    """The node, of the layer's output if its inputs are all of that in parts."""
    chains = [_chain(value, producers) for value in node.inputs]
    layers = {chain[0].inputs[0] if chain else value for chain, value in zip(chains, node.inputs, strict=True)}
    layer = producers.get(layers.pop())
    if layers or layer is None or type(layer.op) is not Linear or node.wholes or layer.wholes:
        return node
    # Views that state the batch's size are for that one alone.
    batch = max((part.batch for chain in chains for part in chain if part.wholes), default=2)
    times_read = torch.zeros(batch, *layer.output_shape, dtype=torch.uint8)
    parts = [_viewed(times_read, chain) for chain in chains]
    if any(part is None or part.shape != (batch, *shape) for part, shape in zip(parts, node.input_shapes, strict=True)):
        return node
    for part in parts:
        part.add_(1)
    if not times_read.eq(1).all():
        return node
    views = tuple((part.shape[1:], part.stride()[1:], part.storage_offset()) for part in parts)
    op = PackedAttention(**vars(node.op), views=views)
    return replace(node, op=op, inputs=(layer.output,), input_shapes=(layer.output_shape,))


def _chain(value: int, producers: dict[int, Node]) -> list[Node]:
    """The views that lead to this value from a layer's."""
    chain: list[Node] = []
    while (node := producers.get(value)) is not None and (
        isinstance(node.op, Reshape) or (isinstance(node.op, LinearCall) and node.op.function in _VIEWS)
    ):
        chain.insert(0, node)
        value = node.inputs[0]
    return chain


def _viewed(entries: Tensor, chain: Sequence[Node]) -> Tensor | None:
    """That part of these; None if it is not one with the samples as they were."""
    try:
        part = reduce(lambda t, node: node.op.pushforward(Context(), t), chain, entries)
    except (RuntimeError, IndexError):
        # An axis of the batch's length was taken for the batch's, and views state the length of either.
        return None
    is_view = part.untyped_storage().data_ptr() == entries.untyped_storage().data_ptr()
    return part if is_view and part.stride(0) == entries.stride(0) else None
