"""Attention that a network writes out, softmax(q kᵀ) v by two products, as one node, which does not keep the softmax.

That has an entry for every pair of pixels, and so have its cotangents; queries, keys and values are small (SAGAN, Zhang
et al., ICML 2019, after eq. 1; BigGAN).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from gnfast.plan.op import Shape
from gnfast.plan.ops.attention import Attention, attention
from gnfast.plan.ops.elementwise import Scale
from gnfast.plan.ops.factors import Contraction
from gnfast.plan.ops.softmax import Softmax
from gnfast.plan.permutes import axes_of, permutation
from gnfast.plan.plan import Node, readers


class _Term(NamedTuple):
    """A tensor with a label for each axis."""

    value: int
    labels: str
    shape: Shape


def with_attention(nodes: Sequence[Node], output: int) -> tuple[Node, ...]:
    """The nodes, with one in place of each such pair of products; `output` is the value that the network returns."""
    counts, producers = readers(nodes, output), {node.output: node for node in nodes}
    fresh = 1 + max(producers, default=0)
    instead: dict[Node, tuple[Node, ...]] = {}
    for node in nodes:
        for place in (0, 1) if isinstance(node.op, Contraction) and not node.wholes else ():
            chain = _chain(node.inputs[place], producers, counts)
            found = chain and _attention(chain, node, place, fresh)
            if found:
                instead |= {**dict.fromkeys(chain, ()), node: found}
                fresh += len(found)
                break
    return tuple(new for node in nodes for new in instead.get(node, (node,)))


def _chain(value: int, producers: dict[int, Node], counts: dict[int, int]) -> list[Node]:
    """What leads from a product over a softmax to this value, which nothing else reads; empty if that is not so."""
    chain: list[Node] = []
    for is_kind, optional in ((_is_permutation, True), (_is_softmax, False), (_is_scale, True), (_is_product, False)):
        node = producers.get(value)
        if node is None or counts[value] != 1 or node.wholes:
            return []
        if is_kind(node):
            chain.insert(0, node)
            value = node.inputs[0]
        elif not optional:
            return []
    return chain


def _attention(chain: Sequence[Node], second: Node, place: int, fresh: int) -> tuple[Node, ...]:
    """The nodes in place of all; none if the axes are not those of attention."""
    first, scale, softmax = chain[0], 1.0, next(node for node in chain if _is_softmax(node))
    if _is_scale(chain[1]):
        scale = 1 / chain[1].op.factor if chain[1].op.divides else chain[1].op.factor
    labels = first.op.output
    key = labels[softmax.op.dim]
    moved = chain[-1].op.args[0] if _is_permutation(chain[-1]) else range(len(labels))
    # The second product's labels in the first one's terms, and in capitals where it has others.
    names = dict(zip(second.op.terms[place], (labels[axis] for axis in moved), strict=True))
    others = [label for label in second.op.output + second.op.terms[1 - place] if label not in names]
    names |= {label: f"{index}" for index, label in enumerate(dict.fromkeys(others))}
    of_value, of_output = (
        "".join(names[label] for label in term) for term in (second.op.terms[1 - place], second.op.output)
    )
    terms = [_Term(*of) for of in zip(first.inputs, first.op.terms, first.input_shapes, strict=True)]
    terms.append(_Term(second.inputs[1 - place], of_value, second.input_shapes[1 - place]))
    keyed = [term for term in terms[:2] if key in term.labels]
    if len(keyed) != 1:
        return ()
    (k,), (q,), v = keyed, [term for term in terms[:2] if term is not keyed[0]], terms[2]
    shared = "".join(label for label in labels if label in q.labels and label in k.labels and label in of_output)
    query = "".join(label for label in labels if label not in shared + key)
    orders = [_order(term.labels, shared, first) for term, first in ((q, query), (k, key), (v, key))]
    if len(query) != 1 or None in orders or orders[1][-1] != orders[0][-1]:
        return ()
    wanted = shared + query + orders[2][-1]
    if sorted(wanted) != sorted(of_output) or not wanted.startswith(labels[0]):
        return ()
    shapes = [v.shape[v.labels.index(label) - 1] for label in orders[2][-2:]]
    op = attention(shapes, second.itemsize, scale)
    return _nodes((q, k, v), orders, (wanted, of_output), op, second, fresh)


def _order(labels: str, shared: str, first: str) -> str | None:
    """The labels as shared ones, then `first` and one more; None if these are others."""
    rest = [label for label in labels if label not in shared + first]
    return shared + first + rest[0] if sorted(labels) == sorted([*shared, first, *rest]) and len(rest) == 1 else None


def _nodes(
    terms: Sequence[_Term], orders: Sequence[str], outputs: tuple[str, str], op: Attention, like: Node, fresh: int
) -> tuple[Node, ...]:
    nodes, values, shapes = [], [], []
    for term, order in zip(terms, orders, strict=True):
        axes = tuple(term.labels.index(label) for label in order)
        shape = tuple(term.shape[axis - 1] for axis in axes[1:])
        values.append(term.value)
        shapes.append(shape)
        if axes != tuple(range(len(axes))):
            nodes.append(_permutation(like, term.value, term.shape, axes, fresh + len(nodes), shape))
            values[-1] = nodes[-1].output
    made, asked = outputs
    axes = tuple(made.index(label) for label in asked)
    shape = (*shapes[0][:-1], shapes[2][-1])
    is_asked = axes == tuple(range(len(axes)))
    value = like.output if is_asked else fresh + len(nodes)
    nodes.append(
        replace(like, op=op, inputs=tuple(values), input_shapes=tuple(shapes), output=value, output_shape=shape)
    )
    if not is_asked:
        nodes.append(_permutation(like, value, shape, axes, like.output, like.output_shape))
    return tuple(nodes)


def _permutation(like: Node, value: int, shape: Shape, axes: tuple[int, ...], output: int, output_shape: Shape) -> Node:
    shapes = {"input_shapes": (shape,), "output_shape": output_shape}
    return replace(like, op=permutation(axes), inputs=(value,), output=output, **shapes)


def _is_permutation(node: Node) -> bool:
    return axes_of(node) is not None


def _is_softmax(node: Node) -> bool:
    return isinstance(node.op, Softmax) and not node.op.log


def _is_scale(node: Node) -> bool:
    return isinstance(node.op, Scale) and node.op.factor is not None


def _is_product(node: Node) -> bool:
    return isinstance(node.op, Contraction)
