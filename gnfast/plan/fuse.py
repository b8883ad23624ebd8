"""Fusion of what lies between two matrix products of a Plan: biases, a residual sum and the activation become a Join.

A two-dimensional convolution before a Join and the Join become a ConvJoin, which may run as one kernel. For devices on
which every pointwise step is a kernel of its own. Exact up to rounding: fewer intermediate results are rounded.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from gnfast.kernels.join import MAX_TERMS
from gnfast.plan.ops.activation import LeakyReLU
from gnfast.plan.ops.conv import Conv
from gnfast.plan.ops.elementwise import Add
from gnfast.plan.ops.join import ConvJoin, Join
from gnfast.plan.plan import Node, readers


def fuse(nodes: Sequence[Node], output: int) -> tuple[Node, ...]:
    """The nodes, of which none may be dead, with those fused; `output` is the value that the network returns."""
    return _with_convolutions(_with_joins(nodes, output), output)


def _with_joins(nodes: Sequence[Node], output: int) -> tuple[Node, ...]:
    """Every (leaky) ReLU, the sum before it and the biases before that as one node."""
    counts = readers(nodes, output)
    producers = {node.output: node for node in nodes}
    fresh = max(producers, default=0) + 1
    instead: dict[Node, tuple[Node, ...]] = {}
    for activation in nodes:
        producer = producers.get(activation.inputs[0])
        # Of two activations of one sum, the second reads it.
        if not isinstance(activation.op, LeakyReLU) or producer is None or producer in instead or activation.wholes:
            continue
        if _is_sum(producer):
            layers = [producers[v] for v in producer.inputs if v in producers and counts[v] == 1]
            layers = [layer for layer in layers if _has_bias(layer)]
            layers = [layer for layer in layers if _kind(layer) == _kind(layers[0])]
            instead |= {layer: (_without_bias(layer, layer.output),) for layer in layers}
            instead[producer] = (_join(producer.inputs, layers, producer, activation, counts),)
        elif _has_bias(producer) or (producer.op.is_layer and _is_read_only_by(activation, counts)):
            # Other readers of the layer's value read the Join's sum.
            value = producer.output if counts[producer.output] == 1 else fresh
            layer = _without_bias(producer, value)
            instead[producer] = layer, _join((value,), [layer], producer, activation, counts)
            fresh += 1
        else:
            continue
        instead[activation] = ()
    return tuple(new for node in nodes for new in instead.get(node, (node,)))


def _with_convolutions(nodes: Sequence[Node], output: int) -> tuple[Node, ...]:
    """Every Join and the convolution that only it reads, of two the larger one, as one node."""
    counts = readers(nodes, output)
    producers = {node.output: node for node in nodes}
    instead: dict[Node, tuple[Node, ...]] = {}
    for node in nodes:
        # The biases of linear layers on images lie along another axis.
        if not isinstance(node.op, Join) or (node.biases and node.op.axis != 1):
            continue
        before = [producers[value] for value in node.inputs if value in producers and counts[value] == 1]
        if convs := [conv for conv in before if _is_plain_conv(conv)]:
            conv = max(convs, key=lambda conv: conv.flops)
            instead |= {conv: (), node: (_conv_join(conv, node),)}
    return tuple(new for node in nodes for new in instead.get(node, (node,)))


def _conv_join(conv: Node, join: Node) -> Node:
    """The node in place of both."""
    terms = tuple(value for value in join.inputs if value != conv.output)
    return dataclasses.replace(
        join,
        op=ConvJoin(conv.op, join.op),
        inputs=(*conv.inputs, *terms),
        input_shapes=(*conv.input_shapes, *join.input_shapes[1:]),
        operands=conv.operands,
        operand_shapes=conv.operand_shapes,
        submodule=conv.submodule,
    )


def _is_plain_conv(node: Node) -> bool:
    """Whether it is a convolution of the kind that `gnfast.kernels.conv` may fuse with what follows."""
    op = node.op
    if not isinstance(op, Conv) or op.transposed or op.groups > 1 or op.dilation != (1, 1):
        return False
    return not (op.adds_bias and _has_bias(node))


def _join(
    terms: Sequence[int], layers: Sequence[Node], producer: Node, activation: Node, counts: Mapping[int, int]
) -> Node:
    """The node in place of `producer` and `activation`, with the biases of `layers`."""
    from_layers = [layer.output for layer in layers]
    # What a layer has just written may be overwritten: such a term comes first.
    terms = tuple(sorted(terms, key=lambda value: value not in from_layers))
    keeps_sum = counts[producer.output] > 1
    adds_biases, axis = _kind(layers[0]) if layers else (True, 1)
    return dataclasses.replace(
        activation,
        op=Join(len(terms), activation.op.slope, axis, keeps_sum, adds_biases),
        inputs=terms,
        input_shapes=(producer.output_shape,) * len(terms),
        biases=tuple(layer.operands[1] for layer in layers if _has_bias(layer)),
        further_outputs=(producer.output,) if keeps_sum else (),
    )


def _is_sum(node: Node) -> bool:
    op, shapes = node.op, node.input_shapes
    alike = len(shapes) == MAX_TERMS and shapes[0] == shapes[1] and not node.wholes
    return isinstance(op, Add) and op.alpha == 1 and alike


def _has_bias(node: Node) -> bool:
    return node.op.is_layer and node.operands[1] is not None


def _is_read_only_by(activation: Node, counts: Mapping[int, int]) -> bool:
    """Whether its input has no other reader, and its output several, whose cotangents are to be added up."""
    return counts[activation.inputs[0]] == 1 and counts[activation.output] > 1


def _kind(layer: Node) -> tuple[bool, int]:
    """Whether the Join adds its bias in the forward too, and along which axis."""
    return isinstance(layer.op, Conv), _axis(layer)


def _axis(layer: Node) -> int:
    return 1 if isinstance(layer.op, Conv) else len(layer.output_shape)


def _without_bias(layer: Node, output: int) -> Node:
    op = dataclasses.replace(layer.op, adds_bias=False)
    return dataclasses.replace(layer, op=op, output=output)
