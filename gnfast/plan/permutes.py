"""Permutations of axes that follow each other: one, or none where the second undoes the first."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from gnfast.plan.op import LinearCall
from gnfast.plan.plan import Node, reached


def permutation(axes: tuple[int, ...]) -> LinearCall:
    """The op whose axis i is its input's axes[i]."""
    back = tuple(axes.index(axis) for axis in range(len(axes)))
    return LinearCall(torch.permute, (axes,), transposed=LinearCall(torch.permute, (back,)))


def axes_of(node: Node) -> tuple[int, ...] | None:
    """Those of a permutation; None of anything else."""
    is_one = isinstance(node.op, LinearCall) and node.op.function is torch.permute
    return node.op.args[0] if is_one else None


def with_single_permutes(nodes: Sequence[Node], output: int) -> tuple[Node, ...]:
    """The nodes without permutations that undo each other; `output` is the value that the network returns."""
    producers: dict[int, Node] = {}
    same: dict[int, int] = {}
    result = []
    for node in nodes:
        if not same.keys().isdisjoint(node.inputs):
            node = replace(node, inputs=tuple(same.get(value, value) for value in node.inputs))
        before = producers.get(node.inputs[0])
        if axes_of(node) is not None and before is not None and (first := axes_of(before)) is not None:
            axes = tuple(first[axis] for axis in axes_of(node))
            if axes == tuple(range(len(axes))) and node.output != output:
                same[node.output] = before.inputs[0]
                continue
            node = _merged(before, node, axes)
        producers[node.output] = node
        result.append(node)
    return tuple(node for node, need in zip(result, reached(result, output, by_derivatives=False), strict=True) if need)


def _merged(first: Node, second: Node, axes: tuple[int, ...]) -> Node:
    wholes = (first.wholes or (None, None))[0], (second.wholes or (None, None))[1]
    wholes = wholes if any(wholes) else ()
    return replace(
        second,
        op=permutation(axes),
        inputs=first.inputs,
        input_shapes=first.input_shapes,
        wholes=wholes,
        mixes=axes[0] != 0 or bool(wholes),
    )
