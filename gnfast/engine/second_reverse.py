"""Six passes: the backward of Plans that are curved or mix samples, of which the last pass is a second reverse.

For a value, δ is the cotangent of Σ f, and μ that of ⟨a, f⟩ + Σ ḟ with a = ∂L/∂f and ḟ the tangent along ∂L/∂g
(docs/algorithm.md, Six passes).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gnfast.engine import passes
from gnfast.engine.apart import Apart
from gnfast.kernels.layout import accumulator
from gnfast.plan.curved import Grads
from gnfast.plan.fused import Contribution, Fused, Pending, contribute, summed
from gnfast.plan.op import Context, ScaledSum, per_sample
from gnfast.plan.orders import Schedule
from gnfast.plan.plan import Node, Plan


def gradients(
    plan: Plan,
    schedule: Schedule,
    x: Tensor,
    g: Tensor,
    grad_f: Tensor | None,
    grad_g: Tensor | None,
    operands: Sequence[Tensor],
    needs: Sequence[bool],
    saved: Sequence[Any],
    cotangents: list[Tensor | None],
    values: dict[int, Tensor],
) -> tuple[Tensor | None, list[Tensor | None]]:
    """∂L/∂x, where the schedule is for it, and the gradient of each operand; None for 0.

    Args:
        grad_f, grad_g: ∂L/∂f, of f's shape, and ∂L/∂g; None for 0.
        needs: per operand, whether its gradient is wanted.
        saved, cotangents, values: what passes 1 and 2 kept.
    """
    scale = None
    if plan.one_logit and grad_f is not None:
        scale = grad_f.reshape(-1).to(accumulator(grad_f.dtype)).contiguous()
    along = torch.zeros_like(x) if grad_g is None else grad_g
    start = passes.merged_tangent(x, None, along, plan.entry)
    apart = Apart(schedule, values, scale, operands, saved)
    found = passes.tangent(plan, start, scale, operands, needs, saved, cotangents, apart=apart)
    grad_x = second_reverse(plan, len(x), apart, grad_f, operands, needs, saved, cotangents, found)
    if 0 in plan.proportional and scale is not None:
        grad_x = per_sample(scale, g) * g
    return None if grad_x is None else torch.empty_like(x).copy_(grad_x), found


def second_reverse(
    plan: Plan,
    batch: int,
    apart: Apart,
    seed: Tensor | None,
    operands: Sequence[Tensor],
    needs: Sequence[bool],
    saved: Sequence[Any],
    cotangents: Sequence[Tensor | None],
    grads: list[Tensor | None],
) -> Tensor | None:
    """Pass 4: μ from the output down to x, None for 0 or where it is not wanted.

    Args:
        seed: a = ∂L/∂f; None for 0.
        cotangents: δ, per node.
        grads: the gradients of operands as pass 3 has them, to which this one adds on the way.
    """
    received: dict[int, list[Contribution | Pending]] = {}
    ones_of: dict[tuple[torch.Size, torch.dtype], Tensor] = {}
    if plan.output not in plan.proportional and seed is not None:
        received[plan.output] = [Contribution(seed, False)]
    for index in reversed(range(len(plan.nodes))):
        node = plan.nodes[index]
        contributions = [received.pop(value, []) for value in node.outputs]
        if not apart.schedule.pulls[index]:
            continue
        adjoint, owned = _adjoint(plan, node, apart.scale, saved[index], cotangents[index], contributions)
        del contributions
        wanted = [plan.apart[index] and slot is not None and needs[slot] for slot in node.operands]
        wanted = [want and plan.has_param_grads[index] for want in wanted]
        given = [None if slot is None else operands[slot] for slot in node.operands]
        ctx = Context(given, saved[index], owned, node.input_sizes(batch), None, wanted)
        if node.op.curved:
            ctx = ctx._replace(inputs=[apart.values[value] for value in node.inputs], overwrite=False)
        found: Grads = ()
        if index in apart.bends:
            bends = apart.bends.pop(index)
            pulled = bends if adjoint is None else node.op.pulled_onto(bends, ctx, adjoint)
        elif node.op.curved:
            pulled, found = node.op.second(ctx, cotangents[index], apart.tangents.pop(index), adjoint)
        elif adjoint is None:
            continue
        else:
            if any(wanted):
                of = adjoint.shape[:1], adjoint.dtype
                if of not in ones_of:
                    ones_of[of] = adjoint.new_ones(of[0])
                h = apart.value(plan, node.inputs[0])
                total = _own_total(grads, node, h.dtype)
                _collect(grads, node, node.op.param_grad(ctx._replace(scale=ones_of[of], total=total), adjoint, h))
                del h, total
            pulled = _pulled(node, apart.schedule.adjoints, ctx, adjoint)
        _collect(grads, node, found)
        contribute(received, node.inputs, pulled, not node.op.shares_cotangent)
        for value in node.outputs:
            apart.values.pop(value, None)
        del ctx, pulled, adjoint, found
    return summed(received[0]).tensor if received.get(0) else None


def _collect(grads: list[Tensor | None], node: Node, found: Sequence[Tensor | ScaledSum | None]) -> None:
    """Adds what was found for a node; in sums of biases, samples have the weight 1."""
    for slot, grad in zip(node.operands, found, strict=False):
        if isinstance(grad, ScaledSum):
            others = [axis for axis in range(grad.cotangent.dim()) if axis != grad.axis]
            grad = grad.cotangent.sum(others, dtype=accumulator(grad.cotangent.dtype))
        if grad is not None and grad is not grads[slot]:
            grads[slot] = grad if grads[slot] is None else grads[slot] + grad


def _own_total(grads: Sequence[Tensor | None], node: Node, dtype: torch.dtype) -> Tensor | None:
    """What pass 3 found for a layer's weight, if it may be added to: weights' gradients are large."""
    total = grads[node.operands[0]] if node.op.is_layer else None
    return total if total is not None and total.dtype == dtype and not total._is_view() else None


def _adjoint(
    plan: Plan,
    node: Node,
    scale: Tensor | None,
    saved: Any,
    cotangent: Tensor | None,
    contributions: Sequence[Sequence[Contribution | Pending]],
) -> tuple[Tensor | None, bool]:
    """μ of a node's output, None for 0, and whether it may be overwritten."""
    if plan.proportional.issuperset(node.outputs):
        return (None, False) if scale is None else (cotangent * per_sample(scale, cotangent), True)
    if isinstance(node.op, Fused):
        return node.op.gather(saved, contributions) if any(contributions) else (None, False)
    return summed(contributions[0]) if contributions[0] else (None, False)


def _pulled(node: Node, adjoints: frozenset[int], ctx: Context, adjoint: Tensor) -> Sequence[Tensor | Pending | None]:
    """The μ of the inputs; None where nothing below needs it."""
    if adjoints.isdisjoint(node.inputs):
        return [None] * len(node.inputs)
    pulled = node.op.pullback(ctx, adjoint)
    return [p if value in adjoints else None for p, value in zip(pulled, node.inputs, strict=True)]
