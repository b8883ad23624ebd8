"""Exact rewrites of a Plan's nodes that shrink its passes (docs/algorithm.md, Rewrites)."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch

from gnfast.kernels.operands.plain import folded
from gnfast.plan.ops.conv import Conv
from gnfast.plan.ops.elementwise import Add
from gnfast.plan.ops.pool import AvgPool2d
from gnfast.plan.ops.resample import Upsample
from gnfast.plan.plan import Derived, Node, readers
from gnfast.rewriting import merges


def rewrite(nodes: Sequence[Node], output: int, slots: int) -> tuple[tuple[Node, ...], tuple[Derived, ...]]:
    """Merges nodes by the rules of `gnfast.rewriting.merges`, where nothing else reads what is between them.

    Returns the nodes, and the operands that they read from slot `slots` on, after those that were recorded.
    """
    rewriter = _Rewriter(nodes, output, slots)
    index = 0
    while index < len(rewriter.nodes):
        index += -1 if rewriter.merge(index) else 1
    return tuple(rewriter.nodes), tuple(rewriter.derived)


class _Rewriter:
    def __init__(self, nodes: Sequence[Node], output: int, slots: int) -> None:
        self.output, self.slots = output, slots
        self.derived: list[Derived] = []
        self.fresh = itertools.count(1 + max((node.output for node in nodes), default=0))
        self._set_nodes(list(nodes))

    def merge(self, index: int) -> bool:
        """Merges a node with what computes its input, if a rule says so; their place is then one earlier."""
        second = self.nodes[index]
        first, merged = self.producers.get(second.inputs[0]), None
        if first is not None:
            merged = merges.merge(self._operation(second.inputs[0]), self._described(second))
        if merged is None:
            return False
        if merged == "swap":
            nodes = _swapped(first, second)
        elif merged == "term by term":
            nodes = self._term_by_term(first, second)
        else:
            nodes = [self._folded(merged, first, second)]
        # They read nothing that was not there for the first of the two.
        before, after = self.nodes[:index], self.nodes[index + 1 :]
        before.remove(first)
        self._set_nodes([*before, *nodes, *after])
        return True

    def _set_nodes(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.producers = {node.output: node for node in nodes}
        self.readers = readers(nodes, self.output)

    def _operation(self, value: int) -> merges.Operation | None:
        """What computes a value that has one reader."""
        return self._described(self.producers[value]) if value in self.producers and self.readers[value] == 1 else None

    def _described(self, node: Node) -> merges.Operation | None:
        if node.wholes:
            return None
        match node.op:
            case Conv(stride=(1, 1), transposed=False) as op:
                return merges.Conv(node.operand_shapes[0][2:], op.padding, op.dilation, op.groups)
            case AvgPool2d(padding=(0, 0), ceil_mode=False, divisor=None) as op:
                return merges.AvgPool(op.kernel, op.stride)
            case Upsample(factor):
                return merges.Upsample(factor)
            case Add() if node.input_shapes[0] == node.input_shapes[1]:
                return merges.Sum(tuple(map(self._operation, node.inputs)))
        return None

    def _folded(self, merged: merges.Fold, first: Node, second: Node) -> Node:
        """One convolution from the input of `first` to the output of `second`."""
        conv = second if merged.transposed else first
        fold = Derived(conv.operands[0], merged.kernel)
        shape = tuple(folded(torch.empty(conv.operand_shapes[0], device="meta"), merged.kernel).shape)
        if fold not in self.derived:
            self.derived.append(fold)
        op = replace(conv.op, stride=merged.stride, padding=merged.padding)
        return replace(
            conv,
            op=replace(op, transposed=True, output_padding=(0, 0)) if merged.transposed else op,
            inputs=first.inputs,
            input_shapes=first.input_shapes,
            operands=(self.slots + self.derived.index(fold), conv.operands[1]),
            operand_shapes=(shape, conv.operand_shapes[1]),
            output=second.output,
            output_shape=second.output_shape,
        )

    def _term_by_term(self, total: Node, pool: Node) -> list[Node]:
        """The sum of the pooled terms."""
        pools = [replace(pool, inputs=(term,), output=next(self.fresh)) for term in total.inputs]
        inputs, shape = tuple(node.output for node in pools), pool.output_shape
        total = replace(total, inputs=inputs, input_shapes=(shape, shape), output=pool.output, output_shape=shape)
        return [*pools, total]


def _swapped(first: Node, second: Node) -> list[Node]:
    """The two nodes in the other order: a map of pixels commutes with their mean and with their repetition."""
    # The channels of the one that maps pixels, and the pixels of the other.
    between = (first.input_shapes[0][0], *second.output_shape[1:])
    if isinstance(second.op, Conv):
        between = (second.output_shape[0], *first.input_shapes[0][1:])
    value, outcome = first.output, {"output": second.output, "output_shape": second.output_shape}
    return [
        replace(second, inputs=first.inputs, input_shapes=first.input_shapes, output=value, output_shape=between),
        replace(first, inputs=(value,), input_shapes=(between,), **outcome),
    ]
