"""The means of a loss's terms in one kernel, and their gradients in another, where there are such kernels."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch._C._functorch import is_legacy_batchedtensor

from gnfast.interop.surroundings import autocast_dtype, transform, without_autocast
from gnfast.kernels.backend import implementation
from gnfast.kernels.loss import MAX_ENTRIES

if TYPE_CHECKING:
    from gnfast.losses import Term

_HALF = torch.float16, torch.bfloat16
_DTYPES = (*_HALF, torch.float32, torch.float64)


def means(terms: Sequence["Term"], logits: Sequence[Tensor], cut: int | None = None) -> Tensor | None:
    """The mean of each term on its logits, (number of terms,), as often differentiable as PyTorch's.

    Args:
        terms: one or two.
        logits: of each term; or of two terms together.
        cut: how many rows are the first term's, where the logits of two are together.

    Returns:
        None where PyTorch serves: on CPUs, for terms without a formula, for too many logits or none, for what are not
        ordinary tensors of one dtype, and where more than ordinary autograd must see what is computed.
    """
    # The compiler does not get further than here.
    if torch.compiler.is_compiling() or implementation("loss", logits[0].device.type) is None:
        return None
    parts = _parts(logits, cut)
    if any(term.formula is None for term in terms) or not _ordinary(parts) or torch.jit.is_tracing() or transform():
        return None
    return _Means.apply(terms, cut, *logits)


def _parts(logits: Sequence[Tensor], cut: int | None) -> Sequence[Tensor]:
    return logits if cut is None else logits[0].split([cut, len(logits[0]) - cut])


def _ordinary(parts: Sequence[Tensor]) -> bool:
    """Whether the kernels read what PyTorch reads, and add it up in the same precision."""
    dtype, device = parts[0].dtype, parts[0].device
    widened = dtype in _HALF and autocast_dtype(device.type) is not None
    return (
        dtype in _DTYPES
        and not widened
        and all(type(t) in (Tensor, nn.Parameter) and t.layout == torch.strided and not t.is_neg() for t in parts)
        and all(t.dtype == dtype and t.device == device and t.numel() for t in parts)
        and sum(t.numel() for t in parts) <= MAX_ENTRIES
    )


class _Means(torch.autograd.Function):
    """What `means` returns."""

    @staticmethod
    def forward(ctx, terms: Sequence["Term"], cut: int | None, *logits: Tensor) -> Tensor:
        ctx.save_for_backward(*logits)
        ctx.terms, ctx.cut = terms, cut
        formulas = [term.formula for term in terms]
        return implementation("loss", logits[0].device.type).means(formulas, _parts(logits, cut))

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor | None, ...]:
        logits = ctx.saved_tensors
        recorded = torch.is_grad_enabled() or transform()
        if recorded or is_legacy_batchedtensor(upstream) or not _ordinary([upstream]):
            return None, None, *_by_pytorch(ctx.terms, ctx.cut, logits, upstream)
        formulas, kernels = [term.formula for term in ctx.terms], implementation("loss", upstream.device.type)
        grads = kernels.pull(formulas, _parts(logits, ctx.cut), upstream)
        shaped = zip(grads.split([t.numel() for t in logits]), logits, ctx.needs_input_grad[2:], strict=True)
        return None, None, *(grad.view(t.shape) if needed else None for grad, t, needed in shaped)


def _by_pytorch(
    terms: Sequence["Term"], cut: int | None, logits: Sequence[Tensor], upstream: Tensor
) -> list[Tensor | None]:
    """The gradients, to be differentiated again if gradients are recorded, or a batch of them."""
    again = torch.is_grad_enabled()
    with torch.enable_grad(), without_autocast(upstream.device.type):
        # One tensor of the logits may have been computed from another.
        own = [t.view_as(t) for t in logits]
        stated = torch.stack([term.value(t).mean() for term, t in zip(terms, _parts(own, cut), strict=True)])
        found = torch.autograd.grad(stated, [t for t in own if t.requires_grad], upstream, create_graph=again)
    grads = iter(found)
    return [next(grads) if t.requires_grad else None for t in logits]
