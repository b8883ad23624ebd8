"""The two ends of a Plan in fewer kernels, for devices on which each is one: the images, and the last map.

    x in another dtype for all that reads it                  the passes begin with x in that dtype
    avg_pool m×m of images, then conv 1×1                     one convolution with stride m, whose kernel is repeated
    a map flattened, or its mean or sum, then linear          one product with the map, in whatever order it is stored

Exact up to rounding: fewer intermediate results are rounded.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from gnfast.kernels.operands import Fold, Spread
from gnfast.plan.ops.conv import Conv
from gnfast.plan.ops.copies import Cast
from gnfast.plan.ops.linear import Linear, MapLinear
from gnfast.plan.ops.pool import AvgPool2d
from gnfast.plan.ops.reduce import Sum
from gnfast.plan.ops.shape import Reshape
from gnfast.plan.plan import Derived, Node, readers

# Of images: convolving all their pixels costs next to nothing. Of later maps it would cost more than the pooling.
_FEW_CHANNELS = 4
# Of a linear layer: its weight is reordered, or repeated for all pixels, instead of the maps of a batch.
_FEW_OUTPUTS = 8


def shorten(
    nodes: Sequence[Node], output: int, derived: Sequence[Derived], dtypes: Sequence[torch.dtype]
) -> tuple[tuple[Node, ...], tuple[Derived, ...], torch.dtype | None]:
    """The nodes, the derived operands, and the dtype in which the passes begin if that is not x's.

    Args:
        output: the value that the network returns.
        dtypes: those in which the recorded operands are wanted, whose slots come before the derived ones'.
    """
    ends = _Ends(output, list(derived), dtypes)
    nodes = ends.with_products_of_maps(ends.with_convolutions_of_images(nodes))
    nodes, entry = _entered(nodes, output)
    return nodes, tuple(ends.derived), entry


class _Ends:
    def __init__(self, output: int, derived: list[Derived], dtypes: Sequence[torch.dtype]) -> None:
        self.output, self.derived, self.dtypes = output, derived, dtypes

    def with_convolutions_of_images(self, nodes: Sequence[Node]) -> tuple[Node, ...]:
        """Instead of pooling images, and converting what comes out, before a convolution of pixels."""
        before = _Before(nodes, self.output)
        instead: dict[Node, tuple[Node, ...]] = {}
        for conv in nodes:
            if (
                conv.wholes
                or not (isinstance(conv.op, Conv) and _is_pixelwise(conv))
                or conv.operands[0] >= len(self.dtypes)
            ):
                continue
            pool = cast = before.only_reader_of(conv)
            if cast is not None and isinstance(cast.op, Cast):
                pool = before.only_reader_of(cast)
            if pool is None or not _pools_images(pool):
                continue
            window, images = pool.op.kernel, {"inputs": pool.inputs, "input_shapes": pool.input_shapes}
            if cast is not pool:
                instead[cast] = (replace(cast, output_shape=pool.input_shapes[0], **images),)
                images = {"input_shapes": pool.input_shapes}
            shape = (*conv.operand_shapes[0][:2], *window)
            conv_of_images = self._with_weight(conv, Derived(conv.operands[0], Fold(window)), shape)
            # A dilation of single pixels meant nothing.
            op = replace(conv.op, stride=window, dilation=(1, 1))
            instead |= {pool: (), conv: (replace(conv_of_images, op=op, **images),)}
        return tuple(new for node in nodes for new in instead.get(node, (node,)))

    def with_products_of_maps(self, nodes: Sequence[Node]) -> tuple[Node, ...]:
        """Instead of reordering maps into vectors, or of means and sums of them, before a linear layer."""
        if not any(node.op.prefers_channels_last for node in nodes):
            return tuple(nodes)
        before = _Before(nodes, self.output)
        instead: dict[Node, tuple[Node, ...]] = {}
        for linear in nodes:
            if linear.wholes or not isinstance(linear.op, Linear) or linear.operands[0] >= len(self.dtypes):
                continue
            if len(linear.input_shapes[0]) > 1 or linear.operand_shapes[0][0] > _FEW_OUTPUTS:
                continue
            between, spread = self._map_before(linear, before)
            if spread is not None:
                shape = (linear.operand_shapes[0][0], *spread.shape)
                product = self._with_weight(linear, Derived(linear.operands[0], spread), shape)
                maps = {"inputs": between[-1].inputs, "input_shapes": between[-1].input_shapes}
                instead |= {linear: (replace(product, op=MapLinear(linear.op.adds_bias), **maps),)}
                instead |= dict.fromkeys(between, ())
        return tuple(new for node in nodes for new in instead.get(node, (node,)))

    def _map_before(self, linear: Node, before: "_Before") -> tuple[list[Node], Spread | None]:
        """What lies between a map and the vector that the layer takes, the last first, and the layer's weight for maps.

        None where there is no map, or one of another dtype.
        """
        between: list[Node] = []
        dtype = wanted = self.dtypes[linear.operands[0]]
        while (node := before.only_reader_of(between[-1] if between else linear)) is not None:
            between.append(node)
            shape = node.input_shapes[0]
            is_map = len(shape) == 3 and shape[1:] != (1, 1)
            if isinstance(node.op, Cast):
                dtype = node.op.source
                # A rounding to less is the network's own.
                if torch.promote_types(dtype, wanted) != dtype:
                    break
            elif isinstance(node.op, Sum) and is_map and node.op.dims == (2, 3):
                dtype = node.op.dtypes[0] if node.op.dtypes else dtype
                divisor = math.prod(shape[1:]) if node.op.mean else 1
                return between, Spread(shape, divisor) if dtype == wanted else None
            elif isinstance(node.op, Reshape) and is_map and node.output_shape == linear.input_shapes[0]:
                return between, Spread(shape) if dtype == wanted else None
            elif not isinstance(node.op, Reshape) or node.output_shape[:1] != linear.input_shapes[0]:
                break
        return between, None

    def _with_weight(self, layer: Node, weight: Derived, shape: tuple[int, ...]) -> Node:
        """The layer with a derived weight of that shape."""
        if weight not in self.derived:
            self.derived.append(weight)
        slot = len(self.dtypes) + self.derived.index(weight)
        shapes = (shape, *layer.operand_shapes[1:])
        return replace(layer, operands=(slot, *layer.operands[1:]), operand_shapes=shapes)


class _Before:
    """What computes the inputs of nodes."""

    def __init__(self, nodes: Sequence[Node], output: int) -> None:
        self._counts = readers(nodes, output)
        self._producers = {node.output: node for node in nodes}

    def only_reader_of(self, node: Node) -> Node | None:
        """The node of which this one is the only reader."""
        value = node.inputs[0]
        return self._producers.get(value) if self._counts[value] == 1 else None


def _is_pixelwise(node: Node) -> bool:
    op = node.op
    plain = not (node.wholes or op.transposed) and op.groups == 1 and op.stride == (1, 1) and op.padding == (0, 0)
    return plain and tuple(node.operand_shapes[0][2:]) == (1, 1)


def _pools_images(node: Node) -> bool:
    op = node.op
    if not isinstance(op, AvgPool2d) or op.kernel != op.stride or op.padding != (0, 0) or op.ceil_mode:
        return False
    return op.divisor is None and node.input_shapes[0][0] <= _FEW_CHANNELS


def _entered(nodes: Sequence[Node], output: int) -> tuple[tuple[Node, ...], torch.dtype | None]:
    """The nodes without the conversion of x, where all that read it begin with the same one."""
    first = [node for node in nodes if 0 in node.inputs]
    targets = {node.op.target if isinstance(node.op, Cast) else None for node in first}
    converted = {node.output for node in first}
    if len(targets) != 1 or None in targets or output in converted:
        return tuple(nodes), None
    rest = [node for node in nodes if node not in first]
    entered = (replace(node, inputs=tuple([0 if v in converted else v for v in node.inputs])) for node in rest)
    return tuple(entered), targets.pop()
