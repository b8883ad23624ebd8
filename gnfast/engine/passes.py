"""The passes over a Plan: forward, input gradient, tangent with weight gradients. They know no operation by name.

`gnfast.engine.second_reverse` has the last one, for what is curved or mixes samples.
"""

import functools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gnfast.engine.apart import Apart
from gnfast.engine.branch import branch
from gnfast.engine.handout import Handout, by_slot
from gnfast.kernels.layout import accumulator
from gnfast.kernels.scaled_sums import scaled_sums
from gnfast.plan.fused import Contribution, Fused, Pending, contribute, summed
from gnfast.plan.op import Context, ScaledSum
from gnfast.plan.plan import Node, Plan


def forward(
    plan: Plan, x: Tensor, operands: Sequence[Tensor], keep: frozenset[int] = frozenset()
) -> tuple[Tensor, list[Any], dict[int, Tensor]]:
    """Pass 1: the output, per node what fixes its mask, and the values to `keep`.

    All others are freed as soon as they are used.
    """
    values = {0: x}
    kept = {0: x} if 0 in keep else {}
    saved = []
    for node, overwrite, last_uses in zip(plan.nodes, plan.overwrites, plan.last_uses, strict=True):
        inputs = [values[i] for i in node.inputs]
        for value in last_uses:
            del values[value]
        given = _select(operands, node.operands)
        ctx = Context(given, None, overwrite, (), None, (), _select(operands, node.biases))
        result, mask = node.op.forward(ctx, *inputs)
        _keep(values, node, result)
        saved.append(mask)
        del result
        kept.update((value, values[value]) for value in node.outputs if value in keep)
    return values[plan.output], saved, kept


def values_again(
    plan: Plan, x: Tensor, operands: Sequence[Tensor], saved: Sequence[Any], wanted: frozenset[int]
) -> dict[int, Tensor]:
    """Pass 1 once more, as far as it leads to the values `wanted`, which are among those that a schedule keeps.

    Masks and statistics are those that pass 1 found, and nothing is written to operands.
    """
    needed, steps = set(wanted), []
    for index in reversed(range(len(plan.nodes))):
        if not needed.isdisjoint(plan.nodes[index].outputs):
            steps.insert(0, index)
            needed.update(plan.nodes[index].inputs)
    last_use = {value: index for index in steps for value in plan.nodes[index].inputs}
    values = {0: x}
    for index in steps:
        node = plan.nodes[index]
        inputs = [values[value] for value in node.inputs]
        for value in {*node.inputs} - wanted:
            if last_use[value] == index:
                del values[value]
        given, biases = _select(operands, node.operands), _select(operands, node.biases)
        ctx = Context(given, saved[index], plan.overwrites[index], (), None, (), biases)
        _keep(values, node, node.op.again(ctx, *inputs))
        del inputs
    return {value: values[value] for value in wanted}


def pending_input_gradient(
    plan: Plan,
    batch: int,
    seed: Tensor | None,
    operands: Sequence[Tensor],
    saved: Sequence[Any],
    values: Mapping[int, Tensor],
    keep: Sequence[bool],
) -> tuple[Sequence[Contribution | Pending], list[Tensor | None]]:
    """Pass 2, from `seed`, the cotangent of the output; None for ones where `plan.takes_ones`.

    Args:
        values: the inputs of curved nodes.
        keep: per node, whether the cotangent of its output is returned.

    Returns:
        One or two parts of g, of x's shape, yet to be added up, of which the last step may be yet to be done by
        `tensor` or `with_squares(centre)`; and per node the cotangent of its output, if that is to be kept.
    """
    received: dict[int, list[Contribution | Pending]] = {plan.output: [Contribution(seed, False)]}
    kept: list[Tensor | None] = [None] * len(plan.nodes)
    differentiated = plan.differentiated
    for index in range(len(plan.nodes) - 1, -1, -1):
        node, mask = plan.nodes[index], saved[index]
        op = node.op
        contributions = [received.pop(value, []) for value in node.outputs]
        if not differentiated[index]:
            continue
        cotangent, owned = op.gather(mask, contributions) if isinstance(op, Fused) else summed(contributions[0])
        if keep[index]:
            kept[index] = cotangent
            owned = False
        ctx = Context(_select(operands, node.operands), mask, owned, node.input_sizes(batch))
        if op.curved:
            ctx = ctx._replace(inputs=[values[value] for value in node.inputs])
        pulled = op.pullback(ctx, cotangent)
        fresh = not (cotangent is None or op.shares_cotangent)
        del cotangent
        contribute(received, node.inputs, pulled, fresh)
        del pulled
    return received[0], kept


def tangent(
    plan: Plan,
    start: Tensor,
    scale: Tensor | None,
    operands: Sequence[Tensor],
    needs: Sequence[bool],
    saved: Sequence[Any],
    cotangents: list[Tensor | None],
    handout: Handout | None = None,
    apart: Apart | None = None,
) -> list[Tensor | None]:
    """Pass 3: the merged tangent from the input up, and the gradient of each operand on the way.

    Args:
        start: c₀ = s·x + ∂L/∂g, of x's shape; not modified. With `apart`, t₀ = ∂L/∂g.
        scale: s (B,) = ∂L/∂f per sample, None for 0.
        needs: per operand, whether its gradient is wanted; it is None where not, or where it is zero.
        cotangents: what pass 2 kept; None afterwards, but for those that pass 4 needs.
        handout: gets some of the gradients as soon as they are found; they are None here.
        apart: for a Plan with nodes that take tangent and value each by itself: of what their operands' gradients
            consist besides δ and t, pass 4 adds.
    """
    values = {0: start}
    found: list[tuple[int, Tensor]] = []
    sums: list[tuple[int, ScaledSum]] = []
    aside = branch()
    pushes_forward = plan.pushes_forward if apart is None else apart.schedule.pushes
    for index, node in enumerate(plan.nodes):
        cotangent = cotangents[index]
        # Those that nothing from here on reads were not computed.
        inputs = [values.get(i) for i in node.inputs]
        wanted = [plan.has_param_grads[index] and slot is not None and needs[slot] for slot in node.operands]
        given, biases = _select(operands, node.operands), _select(operands, node.biases)
        ctx = Context(given, saved[index], plan.overwrites[index], (), scale, wanted, biases)
        if apart is not None:
            ctx, inputs = apart.entered(plan, index, ctx, inputs, cotangent)
        if any(wanted) and not node.op.curved:
            if apart is not None:
                cotangent = apart.cotangent(plan, index, cotangents)
            param_grad = partial(node.op.param_grad, ctx, cotangent, inputs[0])
            for slot, grad in zip(node.operands, aside.run(param_grad, (cotangent, inputs[0])), strict=True):
                if isinstance(grad, ScaledSum):
                    sums.append((slot, grad))
                elif grad is not None:
                    found.append((slot, grad))
            if handout is not None and handout.is_due(found):
                found = aside.run(partial(handout, found), ())
        if apart is None or not apart.needs_cotangent(plan, index):
            cotangents[index] = None
        for value in plan.last_uses[index]:
            values.pop(value, None)
        if pushes_forward[index]:
            push = node.op.pushforward if apart is None else partial(apart.pushed, node, index, cotangent)
            _keep(values, node, push(ctx, *inputs))
        param_grad = push = cotangent = inputs = None
    if sums:
        totals = scaled_sums([s.cotangent for _, s in sums], [s.axis for _, s in sums], scale)
        found += [(slot, total) for (slot, _), total in zip(sums, totals, strict=True)]
    aside.join()
    return by_slot(found if handout is None else handout(found), len(operands))


def merged(
    grad_f: Tensor | None,
    grad_g: Tensor | None,
    x: Tensor,
    g: Tensor,
    wants_start: bool,
    wants_grad_x: bool,
    entry: torch.dtype | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """What the passes need for the gradient of f and g (docs/algorithm.md, One merged tangent).

    Args:
        grad_f, grad_g: ∂L/∂f, with as many entries as samples, and ∂L/∂g, of g's shape; None for 0.
        x, g: (B, ...) the input and its gradient.
        entry: the dtype of c₀; None for x's.

    Returns:
        s (B,) = ∂L/∂f in float32 or better, c₀ = s·x + ∂L/∂g and ∂L/∂x = s·g of x's shape where they are wanted.
    """
    # Kernels read it entry by entry; the gradient of a sum is one number, expanded.
    scale = None if grad_f is None else grad_f.reshape(-1).to(accumulator(grad_f.dtype)).contiguous()
    start = grad_x = None
    if wants_start and not (scale is None and grad_g is None):
        start = merged_tangent(x, scale, grad_g, entry)
    if wants_grad_x and scale is not None:
        grad_x = torch.empty_like(x).copy_(scale.reshape(-1, *[1] * (g.dim() - 1)) * g)
    return scale, start, grad_x


def merged_tangent(
    x: Tensor, scale: Tensor | None, input_grad_cotangent: Tensor | None, dtype: torch.dtype | None = None
) -> Tensor:
    """c₀ = s·x + ∂L/∂g, of x's shape and memory format, in `dtype` or else x's.

    s (B,) and ∂L/∂g may be wider; None stands for 0.
    """
    parts = [] if scale is None else [x * scale.reshape(-1, *[1] * (x.dim() - 1))]
    parts += [] if input_grad_cotangent is None else [input_grad_cotangent]
    total = functools.reduce(torch.add, parts)
    is_x_like = len(parts) == 2 and total.dtype == (dtype or x.dtype) and total.stride() == x.stride()
    return total if is_x_like else torch.empty_like(x, dtype=dtype).copy_(total)


def _keep(values: dict[int, Tensor], node: Node, result: Any) -> None:
    if isinstance(node.op, Fused):
        values.update(zip(node.outputs, result, strict=True))
    else:
        values[node.output] = result


def _select(operands: Sequence[Tensor], slots: Sequence[int | None]) -> Sequence[Tensor | None]:
    # Most nodes have none.
    return [None if slot is None else operands[slot] for slot in slots] if slots else ()
