"""Six passes: the backward of Plans that are curved or mix samples, of which the last pass is a second reverse.

For a value, δ is the cotangent of Σ f, and μ that of ⟨a, f⟩ + Σ ḟ with a = ∂L/∂f and ḟ the tangent along ∂L/∂g
(docs/algorithm.md, Six passes).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gnfast.engine import passes
from gnfast.engine.apart import Apart
from gnfast.engine.handout import by_slot
from gnfast.kernels.layout import accumulator
from gnfast.kernels.scaled_sums import scaled_sums
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
    cotangents: Sequence[Tensor | None],
    values: Mapping[int, Tensor],
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
    apart = Apart(schedule, values, scale)
    found = passes.tangent(plan, start, scale, operands, needs, saved, cotangents, apart=apart)
    grad_x, more = second_reverse(plan, len(x), apart, grad_f, operands, needs, saved, cotangents)
    more += [(slot, grad) for slot, grad in enumerate(found) if grad is not None]
    if 0 in plan.proportional and scale is not None:
        grad_x = per_sample(scale, g) * g
    return None if grad_x is None else torch.empty_like(x).copy_(grad_x), by_slot(more, len(operands))


def second_reverse(
    plan: Plan,
    batch: int,
    apart: Apart,
    seed: Tensor | None,
    operands: Sequence[Tensor],
    needs: Sequence[bool],
    saved: Sequence[Any],
    cotangents: Sequence[Tensor | None],
) -> tuple[Tensor | None, list[tuple[int, Tensor]]]:
    """Pass 4: μ from the output down to x, and the gradients of operands on the way.

    Args:
        seed: a = ∂L/∂f; None for 0.
        cotangents: δ, per node.

    Returns:
        μ of x, None for 0 or where it is not wanted; and slots with what their gradients have besides pass 3's.
    """
    received: dict[int, list[Contribution | Pending]] = {}
    if plan.output not in plan.proportional and seed is not None:
        received[plan.output] = [Contribution(seed, False)]
    found: list[tuple[int, Tensor]] = []
    sums: list[tuple[int, ScaledSum]] = []
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
            pulled, grads = node.op.second(ctx, cotangents[index], apart.tangents.pop(index), adjoint)
        elif adjoint is None:
            continue
        else:
            grads = ()
            if any(wanted):
                ones = adjoint.new_ones(adjoint.shape[:1])
                h = apart.value(plan, node.inputs[0])
                grads = node.op.param_grad(ctx._replace(scale=ones), adjoint, h)
            pulled = _pulled(node, apart.schedule.adjoints, ctx, adjoint)
        for slot, grad in zip(node.operands, grads, strict=False):
            if isinstance(grad, ScaledSum):
                sums.append((slot, grad))
            elif grad is not None:
                found.append((slot, grad))
        contribute(received, node.inputs, pulled, not node.op.shares_cotangent)
        del pulled, adjoint
    for slot, grad in sums:
        ones = grad.cotangent.new_ones(grad.cotangent.shape[0])
        found.append((slot, scaled_sums([grad.cotangent], [grad.axis], ones)[0]))
    grad_x = summed(received[0]).tensor if received.get(0) else None
    return grad_x, found


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
