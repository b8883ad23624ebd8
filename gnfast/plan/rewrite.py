"""Exact rewrites of a Plan's nodes that shrink its passes (docs/algorithm.md, Rewrites)."""

import dataclasses
from collections.abc import Sequence

import torch

from gnfast.plan.ops.conv import Conv
from gnfast.plan.ops.elementwise import Add
from gnfast.plan.ops.pool import AvgPool2d
from gnfast.plan.ops.resample import Upsample
from gnfast.plan.plan import Derived, Node, readers
from gnfast.rewriting.folding import fold_avg_pool, fold_pays, fold_upsample


def rewrite(nodes: Sequence[Node], output: int, slots: int) -> tuple[tuple[Node, ...], tuple[Derived, ...]]:
    """Merges every convolution with the average pooling behind it or the upsampling before it, where that is cheaper.

    Args:
        nodes: in order, without dead ones.
        output: the value that the network returns.
        slots: how many operands were recorded.

    Returns:
        the nodes, and the operands that they read from slot `slots` on.
    """
    rewriter = _Rewriter(_pool_terms_of_sums(nodes, output), output, slots)
    return tuple(rewriter.nodes), tuple(rewriter.derived)


class _Rewriter:
    def __init__(self, nodes: Sequence[Node], output: int, slots: int) -> None:
        self.slots = slots
        self.derived: list[Derived] = []
        self.nodes: list[Node] = []
        counts = readers(nodes, output)
        position: dict[int, int] = {}
        for node in nodes:
            index = position.get(node.inputs[0])
            first = None if index is None or counts[node.inputs[0]] > 1 else self.nodes[index]
            merged = None if first is None else self._merge(first, node)
            if merged is None:
                position[node.output] = len(self.nodes)
                self.nodes.append(node)
                continue
            # Behind what lies between: the merged nodes read nothing that was not there for the first of the two.
            position = {value: at - (at > index) for value, at in position.items()}
            del self.nodes[index]
            for replacement in merged:
                position[replacement.output] = len(self.nodes)
                self.nodes.append(replacement)

    def _merge(self, first: Node, second: Node) -> tuple[Node, ...] | None:
        """What replaces a node and the one that alone reads it, or None."""
        if _is_stride_one(first) and _is_mean(second):
            if _is_pixelwise(first):
                return _swapped(first, second)
            kernel, pool = first.operand_shapes[0][2:], second.op.kernel
            if fold_pays(kernel, pool) and first.op.dilation == (1, 1) and second.op.stride == pool:
                op = dataclasses.replace(first.op, stride=pool)
                return (self._folded(first, second, op, first, Derived(fold_avg_pool, first.operands[0], (pool,))),)
        if isinstance(first.op, Upsample) and _is_stride_one(second):
            if _is_pixelwise(second):
                return _swapped(first, second)
            kernel, factor = second.operand_shapes[0][2:], first.op.factor
            padding = tuple(k - 1 - p for k, p in zip(kernel, second.op.padding, strict=True))
            if fold_pays(kernel, factor) and second.op.dilation == (1, 1) and min(padding) >= 0:
                op = Conv(factor, padding, (1, 1), second.op.groups, True, (0, 0))
                fold = Derived(fold_upsample, second.operands[0], (factor, second.op.groups))
                return (self._folded(first, second, op, second, fold),)
        return None

    def _folded(self, first: Node, second: Node, op: Conv, conv: Node, fold: Derived) -> Node:
        """One convolution from the input of `first` to the output of `second`, its kernel made from that of `conv`."""
        shape = tuple(fold.function(torch.empty(conv.operand_shapes[0], device="meta"), *fold.args).shape)
        if fold not in self.derived:
            self.derived.append(fold)
        operands = (self.slots + self.derived.index(fold), conv.operands[1])
        return dataclasses.replace(
            conv,
            op=op,
            inputs=first.inputs,
            input_shapes=first.input_shapes,
            operands=operands,
            operand_shapes=(shape, conv.operand_shapes[1]),
            output=second.output,
            output_shape=second.output_shape,
        )


def _pool_terms_of_sums(nodes: Sequence[Node], output: int) -> list[Node]:
    """Pools the terms of a sum instead of the sum, where the pooling of one of them then merges with a convolution."""
    counts = readers(nodes, output)
    producers = {node.output: node for node in nodes}
    fresh = max(producers, default=0) + 1
    result: list[Node] = []
    for node in nodes:
        total = producers.get(node.inputs[0])
        terms = total.inputs if total is not None and isinstance(total.op, Add) else ()
        same_shape = terms and total.input_shapes[0] == total.input_shapes[1]
        if not (_is_mean(node) and same_shape and counts[total.output] == 1) or not any(
            term in producers and _is_stride_one(producers[term]) and counts[term] == 1 for term in terms
        ):
            result.append(node)
            continue
        result.remove(total)
        for term in terms:
            result.append(dataclasses.replace(node, inputs=(term,), output=fresh))
            fresh += 1
        pooled = dataclasses.replace(total, inputs=(fresh - 2, fresh - 1), output=node.output)
        result.append(
            dataclasses.replace(pooled, input_shapes=(node.output_shape,) * 2, output_shape=node.output_shape)
        )
        return _pool_terms_of_sums([*result, *nodes[nodes.index(node) + 1 :]], output)
    return result


def _swapped(first: Node, second: Node) -> tuple[Node, Node]:
    """The two nodes in the other order: a map of pixels commutes with their mean and with their repetition."""
    conv = first if isinstance(first.op, Conv) else second
    between = (
        (conv.operand_shapes[0][0], *first.input_shapes[0][1:])
        if conv is second
        else (first.input_shapes[0][0], *second.output_shape[1:])
    )
    now_first = dataclasses.replace(
        second, inputs=first.inputs, input_shapes=first.input_shapes, output=first.output, output_shape=between
    )
    now_second = dataclasses.replace(
        first, inputs=(first.output,), input_shapes=(between,), output=second.output, output_shape=second.output_shape
    )
    return now_first, now_second


def _is_stride_one(node: Node) -> bool:
    return isinstance(node.op, Conv) and not node.op.transposed and node.op.stride == (1, 1)


def _is_pixelwise(node: Node) -> bool:
    return node.operand_shapes[0][2:] == (1, 1) and node.op.padding == (0, 0)


def _is_mean(node: Node) -> bool:
    op = node.op
    return isinstance(op, AvgPool2d) and op.padding == (0, 0) and op.divisor is None and not op.ceil_mode
