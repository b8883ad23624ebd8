"""The passes as one autograd Function, which is all that PyTorch sees of them."""

import itertools

import torch
from torch import Tensor

from gnfast.engine import heads, operands, passes, small_critics
from gnfast.engine.handout import Handout, Receiver, by_slot, current_receiver
from gnfast.engine.heads import Head
from gnfast.engine.once_differentiable import once_differentiable
from gnfast.engine.operands import Made
from gnfast.engine.second_reverse import gradients as six_passes
from gnfast.interop.surroundings import without_autocast
from gnfast.plan.fused import summed
from gnfast.plan.plan import Plan
from gnfast.steps.memory import reuse_memory


def four_passes(
    plan: Plan, x: Tensor, recorded: list[Tensor], head: Head | None, low: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """f̂ by a head that has partial derivatives of its own, or f and g = ∇ₓf (of x's shape) without one.

    All are differentiable once, with respect to x and the recorded operands. A Plan that takes six passes comes without
    a head. `low`: such a Plan keeps no values for its backward, which computes them again.
    """
    if plan.halves is not None:
        body, tail = plan.halves
        z, below = four_passes(body, x, recorded, None, low)
        f, above = four_passes(tail, z, recorded, None, low)
        return f, below * above.reshape(-1, *[1] * (x.dim() - 1)).to(below.dtype)
    keep = torch.is_grad_enabled() and bool(plan.trainable or (plan.takes_six and x.requires_grad))
    # Kernels read biases entry by entry.
    recorded = [t.contiguous() if t.dim() == 1 else t for t in recorded]
    if head is not None:
        chain = small_critics.chain_for_kernels(plan, head, recorded, x.device.type)
        if chain is not None:
            f_hat = small_critics.TwoKernels.apply(chain, head.formula, keep, x, *recorded)
            return f_hat.reshape(len(x), *plan.nodes[-1].output_shape)
    last = _prefers_channels_last(plan, x)
    laid_out = x.contiguous(memory_format=torch.channels_last) if last else x
    made = operands.made_of(plan, recorded, last)
    result = _FourPasses.apply(plan, made, head, keep, low, current_receiver(), laid_out, *recorded)
    if head is not None:
        return result
    f, g = result
    return f, g.contiguous() if x.is_contiguous() else g


class _FourPasses(torch.autograd.Function):
    """(x, recorded operands) ↦ f̂, or (f, g) without a head: passes 1 and 2 forward, pass 3 backward.

    docs/algorithm.md has the passes.
    """

    @staticmethod
    def forward(
        ctx,
        plan: Plan,
        made: Made,
        head: Head | None,
        keep: bool,
        low: bool,
        receiver: Receiver | None,
        x: Tensor,
        *recorded: Tensor,
    ) -> Tensor | tuple[Tensor, Tensor]:
        entered, new = operands.prepare(plan, made, x, recorded)
        given = operands.by_slot(plan, made, recorded, new)
        schedule = plan.for_both if x.requires_grad else plan.for_critic
        wanted = (schedule.values if keep and not low else plan.curved_inputs) if plan.takes_six else frozenset()
        f, masks, values = passes.forward(plan, entered, given, wanted)
        del entered
        seed = None if plan.takes_ones else torch.ones_like(f)
        kept = schedule.cotangents if keep else [False] * len(plan.nodes)
        parts, cotangents = passes.pending_input_gradient(plan, x.shape[0], seed, given, masks, values, kept)
        if head is None:
            g, saved = summed(parts).tensor.to(x.dtype), ()
            result = f, g
        else:
            result, g, saved = heads.normalize(head, f, parts, x.dtype)
        ctx.set_materialize_grads(False)
        ctx.plan, ctx.made, ctx.head, ctx.receiver, ctx.masks = plan, made, head, receiver, masks
        if low:
            values = {}
        ctx.schedule, ctx.values, ctx.low = schedule, [*values], low
        ctx.sizes = len(saved), len(recorded), len(new), len(cotangents), len(values)
        # What was made of an operand without gradient serves alone.
        as_they_are = plan.slots - {slot for slot, *_ in made}
        needed = [t if t.requires_grad or slot in as_they_are else None for slot, t in enumerate(recorded)]
        ctx.save_for_backward(x, g, *saved, *needed, *new, *cotangents, *values.values())
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        x, g, *rest = ctx.saved_tensors
        rest = iter(rest)
        saved, recorded, new, cotangents, values = ([*itertools.islice(rest, count)] for count in ctx.sizes)
        # What the passes have used, they drop as they go, if nobody asked for the graph to be retained.
        del rest
        ctx.maybe_clear_saved_tensors()
        needs_x, *needs = ctx.needs_input_grad[6:]
        grads, start = [None] * len(recorded), None
        plan = ctx.plan
        with without_autocast(x.device.type), reuse_memory(x.device):
            given = operands.by_slot(plan, ctx.made, recorded, new)
            all_needs = [*needs, *(needs[derived.slot] for derived in plan.derived)]
            handout = ctx.receiver and Handout(ctx.receiver, plan, ctx.made, recorded)
            if plan.takes_six:
                found = dict(zip(ctx.values, values, strict=True))
                values.clear()
                if ctx.low:
                    entered = x if plan.entry is None else x.to(plan.entry)
                    found = passes.values_again(plan, entered, given, ctx.masks, ctx.schedule.values)
                kept = ctx.masks, cotangents, found
                grad_x, found = six_passes(plan, ctx.schedule, x, g, *upstream, given, all_needs, *kept)
                if handout is not None:
                    found = by_slot(
                        handout([(s, grad) for s, grad in enumerate(found) if grad is not None]), len(found)
                    )
                grads = operands.gradients(plan, ctx.made, recorded, found)
            elif ctx.head is None:
                scale, start, grad_x = passes.merged(*upstream, x, g, any(needs), needs_x, plan.entry)
            else:
                saved_of_head = ctx.head, saved, *upstream, x, g, any(needs), needs_x, plan.entry
                scale, start, grad_x = heads.pull(*saved_of_head)
            if start is not None:
                found = passes.tangent(plan, start, scale, given, all_needs, ctx.masks, cotangents, handout)
                grads = operands.gradients(plan, ctx.made, recorded, found)
        if ctx.head is None and upstream[0] is None and ctx.receiver is None:
            slots, of_x = plan.zeroed
            grads = [
                _or_zeros(grad, t, slot in slots and needs[slot])
                for slot, (grad, t) in enumerate(zip(grads, recorded, strict=True))
            ]
            grad_x = _or_zeros(grad_x, x, of_x and needs_x)
        return None, None, None, None, None, None, grad_x, *grads


def _or_zeros(grad: Tensor | None, like: Tensor, wanted: bool) -> Tensor | None:
    """The gradient, or the zeros that double backward has for it: optimisers pass over what has none."""
    return torch.zeros_like(like) if grad is None and wanted else grad


_CHANNELS_LAST_DTYPES = {
    "cpu": (torch.float32,),
    # The kernels for tensor cores want it; those for float64 do not.
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}


def _prefers_channels_last(plan: Plan, x: Tensor) -> bool:
    """Whether the passes are fastest with x in channels_last; all that they make follows it.

    Convolutions would reorder a contiguous tensor and put it back, one by one and in every pass: the images and what
    comes of them, and the weights too, of which `prepare` makes one small copy per call instead. Gradients arrive in
    the layout of what they belong to.
    """
    return bool(plan.kernels) and x.dim() == 4 and x.dtype in _CHANNELS_LAST_DTYPES.get(x.device.type, ())
