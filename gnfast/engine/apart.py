"""What pass 3 needs where tangents and values are not merged (docs/algorithm.md, Six passes)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gnfast.plan.op import Context, per_sample
from gnfast.plan.orders import Schedule
from gnfast.plan.plan import Node, Plan


@dataclass
class Apart:
    """What pass 3 needs besides, where tangents and values are apart, and what it leaves for pass 4."""

    schedule: Schedule
    values: dict[int, Tensor]
    """h, of those that were kept."""
    scale: Tensor | None
    """a = ∂L/∂f (B,), of one logit per sample; None for 0, or where there are more."""
    operands: Sequence[Tensor | None]
    saved: Sequence[Any]
    """What fixes the mask of each node."""
    tangents: dict[int, Sequence[Tensor]] = field(default_factory=dict)
    """t of the inputs of each curved node, by its index."""
    bends: dict[int, Sequence[Tensor | None]] = field(default_factory=dict)
    """Instead, of nodes that are bent early, what they add to the μ of their inputs."""
    _merged: dict[int, Tensor] = field(default_factory=dict)

    def entered(
        self, plan: Plan, index: int, ctx: Context, inputs: Sequence[Tensor | None], cotangent: Tensor | None
    ) -> tuple[Context, Sequence[Tensor | None]]:
        """A node's context and tangents in pass 3: plain ones if it is apart, else merged ones."""
        node = plan.nodes[index]
        if not plan.apart[index]:
            if not (self.schedule.pushes[index] or plan.has_param_grads[index]):
                return ctx, inputs
            return ctx, [
                self._begun(plan, value, t) if value in plan.begins and t is not None else t
                for value, t in zip(node.inputs, inputs, strict=True)
            ]
        if node.op.curved:
            ctx = ctx._replace(inputs=[self.values[value] for value in node.inputs])
            if self.schedule.pulls[index] and not node.op.bends_early:
                self.tangents[index] = inputs
            elif self.schedule.pulls[index] and not self.schedule.pushes[index]:
                self.bends[index], _ = node.op.second(ctx, cotangent, inputs, None)
        return ctx._replace(scale=None), inputs

    def pushed(self, node: Node, index: int, cotangent: Tensor | None, ctx: Context, *tangents: Tensor) -> Any:
        """The tangent of a node's output; one that is bent early is bent at once."""
        if not (self.schedule.pulls[index] and node.op.bends_early):
            return node.op.pushforward(ctx, *tangents)
        pushed, self.bends[index] = node.op.pushed_and_bent(ctx, cotangent, *tangents)
        return pushed

    def needs_cotangent(self, plan: Plan, index: int) -> bool:
        """Whether pass 4 reads δ of the node's output."""
        node = plan.nodes[index]
        is_seed = not plan.proportional.isdisjoint(node.outputs)
        return self.schedule.pulls[index] and (is_seed or (node.op.curved and not node.op.bends_early))

    def value(self, plan: Plan, value: int) -> Tensor:
        """h, kept or computed again."""
        if value in self.values:
            return self.values[value]
        index = self.schedule.again[value]
        node = plan.nodes[index]
        return node.op.again(self._context(node, index), *(self.value(plan, v) for v in node.inputs))

    def cotangent(self, plan: Plan, index: int, cotangents: Sequence[Tensor | None]) -> Tensor | None:
        """δ of a node's output, kept or computed again."""
        reader = self.schedule.pulled_again.get(index)
        if reader is None:
            return cotangents[index]
        node = plan.nodes[reader]
        ctx = self._context(node, reader)._replace(inputs=[self.values[v] for v in node.inputs])
        return node.op.pullback(ctx, cotangents[reader])[0]

    def _context(self, node: Node, index: int) -> Context:
        return Context([None if slot is None else self.operands[slot] for slot in node.operands], self.saved[index])

    def _begun(self, plan: Plan, value: int, t: Tensor) -> Tensor:
        """c = t + a·h."""
        if self.scale is None:
            return t
        if value not in self._merged:
            h = self.value(plan, value).to(t.dtype)
            self._merged[value] = torch.addcmul(t, per_sample(self.scale, h), h)
        return self._merged[value]
