"""The Plan: a network as a list of x-dependent operations, ready for the passes."""

import functools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from gnfast.kernels.operands import Fold, Spread
from gnfast.plan.fused import Fused
from gnfast.plan.op import Op, Shape
from gnfast.plan.orders import Schedule, proportional, schedule
from gnfast.plan.table import render

_PASSES = "forward", "input gradient", "tangent", "second reverse", "weights"


@dataclass(frozen=True, eq=False)
class Node:
    """One operation applied to values. Value 0 is x; input and output shapes are without axis 0, the batch's.

    Nodes are interned (`gnfast.plan.tracing`): identity is equality, and a Plan is found again by the ids of its nodes.
    """

    op: Op
    inputs: tuple[int, ...]
    operands: tuple[int | None, ...]
    output: int
    input_shapes: tuple[Shape, ...]
    operand_shapes: tuple[Shape | None, ...]
    output_shape: Shape
    itemsize: int
    """Bytes per entry of the output."""
    submodule: str
    further_outputs: tuple[int, ...] = ()
    """Values besides `output` that a fused node produces, of the same shape and dtype."""
    biases: tuple[int, ...] = ()
    """Slots of what a fused node adds for layers before it, whose nodes take the gradients."""
    mixes: bool = False
    """Whether an entry of the output depends on other samples than its own."""
    wholes: tuple[Shape | None, ...] = ()
    """The whole shape of each input and of the output where axis 0 is not the batch's; empty if it always is."""
    batch: int = 1
    """The size of the batch; 1 where nothing depends on it."""

    @property
    def is_written(self) -> bool:
        """Whether its forward writes into an operand."""
        return any(self.operands[place] is not None for place in self.op.writes if place < len(self.operands))

    @functools.cached_property
    def outputs(self) -> tuple[int, ...]:
        return self.output, *self.further_outputs

    @property
    def flops(self) -> int:
        """Floating-point operations of one forward per sample."""
        flops = self.op.flops(self.input_shapes, self.operand_shapes, self.output_shape)
        whole = self.wholes[-1] if self.wholes else None
        return flops if whole is None else flops * math.prod(whole[:1]) // self.batch

    def input_sizes(self, batch: int) -> list[Shape]:
        """The shapes of the inputs, axis 0 included."""
        shapes = [(batch, *shape) for shape in self.input_shapes]
        wholes = self.wholes or (None,) * len(shapes)
        return [shape if whole is None else whole for whole, shape in zip(wholes, shapes, strict=False)]


def readers(nodes: Sequence[Node], output: int) -> Counter[int]:
    """How many nodes read each value; the network's output has one reader more."""
    counts = Counter(value for node in nodes for value in node.inputs)
    counts[output] += 1
    return counts


def reached(nodes: Sequence[Node], output: int, by_derivatives: bool) -> tuple[bool, ...]:
    """Per node: whether the output, or a running statistic, depends on it; or, of that, what derivatives follow."""
    needed, result = {output}, []
    for node in reversed(nodes):
        if by_derivatives:
            result.append(not needed.isdisjoint(node.outputs) and not node.op.detaches)
        else:
            result.append(not needed.isdisjoint(node.outputs) or node.is_written)
        if result[-1]:
            needed.update(node.inputs[node.op.given * by_derivatives :])
    return tuple(reversed(result))


@dataclass(frozen=True)
class Derived:
    """An operand that a rewrite makes of the recorded one in `slot`."""

    slot: int
    fold: Fold | Spread


NORMALISED = "the network is normalised already"
INDEPENDENT = "a tensor that does not depend on x"
CUT_OFF = "it does not depend on x in a way that derivatives follow"
"""Reasons why neither the passes nor double backward serve."""


@dataclass(frozen=True)
class Refusal:
    """Why a network does not go through the passes."""

    submodule: str
    operation: str
    reason: str
    line: str = ""
    """Of the network's code, as "model.py:31"; empty where that is not known, or PyTorch's."""

    def __str__(self) -> str:
        return f"{self.operation} in {self.place}: {self.reason}"

    @property
    def place(self) -> str:
        """ "submodule '1' (model.py:31)"."""
        where = f"submodule {self.submodule!r}" if self.submodule else "the network's own forward"
        return where + f" ({self.line})" * bool(self.line)


@dataclass(frozen=True, eq=False)
class Plan:
    """A traced network. `print(plan)` shows every operation, its cost per pass and the bytes it keeps.

    Nothing in a Plan depends on the batch size or on the values of weights.
    """

    name: str
    input_shape: Shape
    nodes: tuple[Node, ...]
    output: int
    trainable: frozenset[int]
    """Slots of the operands that require a gradient."""
    dtypes: tuple[torch.dtype, ...] = ()
    """Those in which nodes take the recorded operands, by slot."""
    derived: tuple[Derived, ...] = ()
    """What the slots after those of the recorded operands hold."""
    stated_flops: int = 0
    """Floating-point operations per sample of a forward as the network states it, before any rewrite."""
    refusals: tuple[Refusal, ...] = ()
    entry: torch.dtype | None = None
    """The dtype in which the passes begin; None for x's own."""

    @functools.cached_property
    def overwrites(self) -> tuple[bool, ...]:
        """Per node: whether forward and pushforward may write into its first input, which nothing else reads."""
        owned = {value for node in self.nodes if not node.op.is_view for value in node.outputs}
        held = {value for node in self.nodes if node.op.saves_output for value in node.outputs}
        owned -= held | self.for_both.values
        return tuple(node.inputs[0] in owned and self.is_read_once(node.inputs[0]) for node in self.nodes)

    def is_read_once(self, value: int) -> bool:
        """Whether one node alone reads a value, which is not the output."""
        return self._readers[value] == 1

    @functools.cached_property
    def _readers(self) -> Counter[int]:
        return readers(self.nodes, self.output)

    @functools.cached_property
    def last_uses(self) -> tuple[tuple[int, ...], ...]:
        """Per node: the values that no later node reads."""
        last_use = {value: index for index, node in enumerate(self.nodes) for value in node.inputs}
        last_use.pop(self.output, None)
        return tuple(
            tuple(value for value in dict.fromkeys(node.inputs) if last_use.get(value) == index)
            for index, node in enumerate(self.nodes)
        )

    @functools.cached_property
    def differentiated(self) -> tuple[bool, ...]:
        """Per node: whether the output's derivative passes through it."""
        return reached(self.nodes, self.output, by_derivatives=True)

    @functools.cached_property
    def has_param_grads(self) -> tuple[bool, ...]:
        """Per node: whether it has an operand that requires a gradient, so that its cotangent must be kept."""
        return tuple(
            differentiated and not self.trainable.isdisjoint(node.operands)
            for node, differentiated in zip(self.nodes, self.differentiated, strict=True)
        )

    @functools.cached_property
    def zeroed(self) -> tuple[frozenset[int], bool]:
        """The recorded operands, and whether x, to which autograd gives zeros where g alone has a gradient."""
        below: set[int] = set()
        slots: set[int | None] = set()
        followed = {self.output}
        for node, follows in zip(reversed(self.nodes), reversed(self.differentiated), strict=True):
            if not follows:
                continue
            is_below = not below.isdisjoint(node.outputs)
            slots.update(node.operands if is_below else ())
            if is_below or node.op.curved or (node.op.zeros_below and node.output in followed):
                below.update(node.inputs[node.op.given :])
            followed.update(node.inputs[node.op.given :])
        slots.update(derived.slot for index, derived in enumerate(self.derived, len(self.dtypes)) if index in slots)
        return self.trainable.intersection(slots, range(len(self.dtypes))), 0 in below

    @functools.cached_property
    def takes_ones(self) -> bool:
        """Whether pass 2 begins with None for ones: its first node takes that, the next one what is expanded."""
        fused = {value for node in self.nodes if isinstance(node.op, Fused) for value in node.outputs}
        last = [node for node in self.nodes if node.op.takes_ones and node.output == self.output]
        return any(node.output_shape == (1,) and node.inputs[0] in fused for node in last)

    @functools.cached_property
    def curved_inputs(self) -> frozenset[int]:
        """The values that curved nodes read."""
        followed = zip(self.nodes, self.differentiated, strict=True)
        return frozenset(value for node, follows in followed if node.op.curved and follows for value in node.inputs)

    @functools.cached_property
    def writes(self) -> bool:
        """Whether a forward writes to operands, running statistics."""
        operands = ((node.op, place, slot) for node in self.nodes for place, slot in enumerate(node.operands))
        return any(place in op.writes and slot is not None for op, place, slot in operands)

    @functools.cached_property
    def slots(self) -> frozenset[int]:
        """Those of the operands that nodes read, and do not write to."""
        read = [
            slot
            for node in self.nodes
            for place, slot in enumerate((*node.operands, *node.biases))
            if slot is not None and place not in node.op.writes
        ]
        return frozenset(read)

    @functools.cached_property
    def kernels(self) -> frozenset[int]:
        """The slots of what is convolved with, (C, C', kH, kW): where there are any, channels_last suits x better."""
        return frozenset(node.operands[0] for node in self.nodes if node.op.prefers_channels_last)

    @functools.cached_property
    def one_logit(self) -> bool:
        """Whether it is one logit per sample."""
        last = next((node for node in reversed(self.nodes) if self.output in node.outputs), None)
        shape = self.input_shape if last is None else last.output_shape
        return math.prod(shape) == 1 and not (last and last.wholes and last.wholes[-1])

    @functools.cached_property
    def proportional(self) -> frozenset[int]:
        """The values of which one cotangent is a multiple of the other (`gnfast.plan.orders`)."""
        return proportional(self.nodes, self.output, self.one_logit, self.differentiated)

    @functools.cached_property
    def apart(self) -> tuple[bool, ...]:
        """Per node: whether it takes tangent and value, and both cotangents, each by itself."""
        return tuple(
            (differentiated and (node.op.curved or node.mixes)) or not self.proportional.issuperset(node.outputs)
            for node, differentiated in zip(self.nodes, self.differentiated, strict=True)
        )

    @functools.cached_property
    def begins(self) -> frozenset[int]:
        """The values at which the merged tangent begins, for nodes that are not apart."""
        apart = {value for node, apart in zip(self.nodes, self.apart, strict=True) if apart for value in node.outputs}
        return frozenset({0, *apart})

    @functools.cached_property
    def takes_six(self) -> bool:
        """Whether there is a node that does not go through four passes."""
        return any(self.apart) or self.output not in self.proportional

    @functools.cached_property
    def for_critic(self) -> Schedule:
        """What is done in the passes where x needs no gradient."""
        return schedule(self, needs_x=False)

    @functools.cached_property
    def for_both(self) -> Schedule:
        """What is done in the passes where x needs one."""
        return schedule(self, needs_x=True)

    @property
    def pushes_forward(self) -> tuple[bool, ...]:
        """Per node: whether pass 3 needs its output, that is, whether a later node has parameter gradients."""
        return self.for_critic.pushes

    @functools.cached_property
    def halves(self) -> "tuple[Plan, Plan] | None":
        """A Plan of four passes from x to one number per sample, and one from there to the output.

        So end critics with a sigmoid, and losses inside a critic that compare logits. None where there are no such two.
        """
        for index, node in enumerate(self.nodes):
            rest = self.nodes[index + 1 :]
            if not self.takes_six or node.op.curved or node.mixes or not rest:
                return None
            later = {node.output, *(value for n in rest for value in n.outputs)}
            if math.prod(node.output_shape) == 1 and all(later.issuperset(n.inputs) for n in rest):
                above = tuple(replace(n, inputs=tuple(0 if v == node.output else v for v in n.inputs)) for n in rest)
                body = replace(self, nodes=self.nodes[: index + 1], output=node.output)
                return body, replace(self, nodes=above, input_shape=node.output_shape, entry=None)
        return None

    def flops(self, needs_x: bool = False) -> dict[str, float]:
        """Convolution and linear floating-point operations per sample of each pass of a critic step; as for `runs`."""
        counts = [self._node_flops(index, needs_x) for index in range(len(self.nodes))]
        return {name: sum(count[name] for count in counts) for name in _PASSES}

    def generator_flops(self) -> float:
        """As `flops`, of a generator's step: of x the gradient is needed, of the operands none."""
        return sum(replace(self, trainable=frozenset()).flops(needs_x=True).values())

    def kept_bytes(self) -> int:
        """Bytes per sample that a critic step keeps between its forward and its backward: cotangents and sign bits, and
        where it is curved values.
        """
        return sum(self._node_bytes(index) for index in range(len(self.nodes)))

    def runs(self, index: int, needs_x: bool = False) -> tuple[int, ...]:
        """How often each pass of a critic step goes through a node; with products, that many times as often.

        Args:
            needs_x: whether x needs a gradient too.
        """
        if self.halves is not None:
            body, tail = self.halves
            below = len(body.nodes)
            return body.runs(index, needs_x) if index < below else tail.runs(index - below, needs_x=True)
        node, schedule = self.nodes[index], self.for_both if needs_x else self.for_critic
        second = schedule.pulls[index] and not schedule.adjoints.isdisjoint(node.inputs)
        weights = self.has_param_grads[index] and node.operands[0] in self.trainable
        times = True, self.differentiated[index], schedule.pushes[index], second, weights * (1 + self.apart[index])
        return tuple(map(int, times))

    def _node_flops(self, index: int, needs_x: bool = False) -> dict[str, float]:
        node = self.nodes[index]
        counts = zip(_PASSES, self.runs(index, needs_x), node.op.products, strict=True)
        return {name: node.flops * runs * products for name, runs, products in counts}

    def _node_bytes(self, index: int) -> int:
        if self.halves is not None:
            body, tail = self.halves
            below = len(body.nodes)
            return body._node_bytes(index) if index < below else tail._node_bytes(index - below)
        node, schedule = self.nodes[index], self.for_critic
        entries = math.prod(node.output_shape)
        kept = schedule.cotangents[index] + len(schedule.values.intersection(node.outputs)) * self.takes_six
        return entries * node.itemsize * kept + math.ceil(entries * node.op.mask_bits / 8)

    def __str__(self) -> str:
        return render(self)
