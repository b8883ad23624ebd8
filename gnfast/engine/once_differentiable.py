"""Gradients that must not be differentiated again or come in batches, with an error that says what to do instead."""

import functools
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from gnfast.errors import UnsupportedError
from gnfast.interop.uncompiled import uncompiled


class _Final(torch.autograd.Function):
    """Identity of its first `count` tensors, whose backward raises; the others are what those were computed from."""

    @staticmethod
    def forward(ctx, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.clone() for t in tensors[:count])

    @staticmethod
    def backward(ctx, *grads: Tensor) -> NoReturn:
        raise UnsupportedError(
            "second derivative: gnfast's passes are differentiable once; "
            "use impl='reference' to differentiate their gradients again"
        )


def once_differentiable(backward: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """Decorates an autograd Function's backward: it runs without a graph, and differentiating its results raises.

    The Function must save its inputs. Then every call of autograd's that differentiates with respect to them passes
    through here.
    """

    # Where a compiled step calls `backward()`, the compiler would look into every function that this runs.
    @uncompiled("gnfast's passes run as the Python that they are")
    @functools.wraps(backward)
    def wrapper(ctx, *grads: Tensor | None) -> tuple[Any, ...]:
        _require_one_gradient(*grads)
        create_graph = torch.is_grad_enabled()
        # From before: a backward may let go of them.
        saved = ctx.saved_tensors if create_graph else ()
        with torch.no_grad():
            results = backward(ctx, *grads)
        present = [r for r in results if isinstance(r, Tensor)]
        if not create_graph or not present:
            return results
        sources = [t for t in (*saved, *grads) if t is not None and t.requires_grad]
        final = iter(_Final.apply(len(present), *present, *sources))
        return tuple(next(final) if isinstance(r, Tensor) else r for r in results)

    return wrapper


def _require_one_gradient(*grads: Tensor | None) -> None:
    """Raises UnsupportedError in a backward that is to go over a batch of gradients at once."""
    wrapped = torch._C._functorch.is_batchedtensor, torch._C._functorch.is_legacy_batchedtensor
    if any(is_batched(grad) for grad in grads if grad is not None for is_batched in wrapped):
        raise UnsupportedError(
            "is_grads_batched (jacobian's vectorize=True): gnfast's backward takes one gradient at a time; "
            "call it in a loop, or use impl='reference'"
        )
