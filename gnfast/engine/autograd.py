"""The four passes as one autograd Function, which is all that PyTorch sees of them."""

import torch
from torch import Tensor

from gnfast.engine import heads, passes, small_critics
from gnfast.engine.heads import Head
from gnfast.engine.once_differentiable import once_differentiable
from gnfast.interop.surroundings import without_autocast
from gnfast.plan.plan import Plan
from gnfast.steps.memory import reuse_memory


def four_passes(plan: Plan, x: Tensor, operands: list[Tensor], head: Head | None) -> Tensor | tuple[Tensor, Tensor]:
    """f̂ by a head that has partial derivatives of its own, or f and g = ∇ₓf (of x's shape) without one.

    All are differentiable once, with respect to x and the operands.
    """
    keep = torch.is_grad_enabled() and bool(plan.trainable)
    if head is None:
        f, g = _FourPasses.apply(plan, None, keep, *_laid_out(plan, x, operands))
        return f, g.contiguous() if x.is_contiguous() else g
    chain = small_critics.chain_for_kernels(plan, head, operands, x.device.type)
    if chain is not None:
        f_hat = small_critics.TwoKernels.apply(chain, head.formula, keep, x, *operands)
        return f_hat.reshape(len(x), *plan.nodes[-1].output_shape)
    return _FourPasses.apply(plan, head, keep, *_laid_out(plan, x, operands))


class _FourPasses(torch.autograd.Function):
    """(x, operands) ↦ f̂, or (f, g) without a head: passes 1 and 2 forward, pass 3 backward (docs/algorithm.md)."""

    @staticmethod
    def forward(
        ctx, plan: Plan, head: Head | None, keep: bool, x: Tensor, *operands: Tensor
    ) -> Tensor | tuple[Tensor, Tensor]:
        f, masks = passes.forward(plan, x, operands)
        g, cotangents = passes.pending_input_gradient(plan, x.shape[0], torch.ones_like(f), operands, masks, keep)
        if head is None:
            g, saved = g.tensor, ()
            result = f, g
        else:
            g, squares = g.with_squares(head.centre)
            result, saved = heads.normalize(head, f, g, squares)
        ctx.set_materialize_grads(False)
        ctx.plan, ctx.head, ctx.masks, ctx.sizes = plan, head, masks, (len(saved), len(operands))
        ctx.save_for_backward(x, g, *saved, *operands, *cotangents)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        x, g, *rest = ctx.saved_tensors
        first, second = ctx.sizes[0], sum(ctx.sizes)
        saved, operands, cotangents = rest[:first], rest[first:second], rest[second:]
        _, _, _, needs_x, *needs = ctx.needs_input_grad
        grads = [None] * len(operands)
        with without_autocast(x.device.type), reuse_memory(x.device):
            if ctx.head is None:
                scale, start, grad_x = heads.merged(*upstream, x, g, any(needs), needs_x)
            else:
                scale, start, grad_x = heads.pull(ctx.head, saved, *upstream, x, g, any(needs), needs_x)
            if start is not None:
                grads = passes.tangent(ctx.plan, start, scale, operands, needs, ctx.masks, cotangents)
        return None, None, None, grad_x, *grads


_CHANNELS_LAST_DTYPES = {
    "cpu": (torch.float32,),
    # The kernels for tensor cores want it; those for float64 do not.
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}
_CHANNELS_LAST_WEIGHTS = ("cuda",)


def _laid_out(plan: Plan, x: Tensor, operands: list[Tensor]) -> list[Tensor]:
    """x and the operands in the memory format in which the passes are fastest; all that they make follows it.

    Convolutions would reorder a contiguous tensor and put it back, one by one and in every pass: the images and what
    comes of them, and on a GPU the weights too, of which this makes one small copy per call instead. Gradients arrive
    in the layout of what they belong to.
    """
    kind, layout = x.device.type, torch.channels_last
    if not plan.kernels or x.dim() != 4 or x.dtype not in _CHANNELS_LAST_DTYPES.get(kind, ()):
        return [x, *operands]
    if kind in _CHANNELS_LAST_WEIGHTS:
        operands = [t.contiguous(memory_format=layout) if i in plan.kernels else t for i, t in enumerate(operands)]
    return [x.contiguous(memory_format=layout), *operands]
