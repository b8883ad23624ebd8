"""The ways to an output, normalised or with its input gradient: by passes, by a recording that is kept, by autograd."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gnfast.engine import heads, reference
from gnfast.engine.autograd import four_passes
from gnfast.engine.heads import Head
from gnfast.engine.static import Kept
from gnfast.errors import InputError
from gnfast.interop import surroundings
from gnfast.plan.plan import Plan
from gnfast.steps.memory import reuse_memory


def by_passes(plan: Plan, head: Head | None, with_norm: bool, low: bool, x: Tensor, operands: list[Tensor]) -> Any:
    """By four or six passes over the Plan."""
    # Autocast has had its say when the network was recorded.
    with surroundings.without_autocast(x.device.type), reuse_memory(x.device):
        if head is None or (head.partials is not None and not (with_norm or plan.takes_six)):
            return four_passes(plan, x, operands, head, low)
        if with_norm and plan.takes_six:
            return _normalized_along_x(plan, head, low, x, operands)
        return _normalized(head, *four_passes(plan, x, operands, None, low), with_norm)


def _normalized_along_x(plan: Plan, head: Head, low: bool, x: Tensor, operands: list[Tensor]) -> tuple[Tensor, Tensor]:
    """f̂ and ‖∇ₓf̂‖ of a curved critic, without a graph: n depends on x as well, by passes 3 and 4."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = (x.clone() if x.is_inference() else x.detach()).requires_grad_()
        f_hat = heads.apply_head(head, *four_passes(plan, leaf, operands, None, low))
        (g,) = torch.autograd.grad(f_hat.sum(), leaf)
    return f_hat.detach(), heads.grad_norm(g)


def by_kept(kept: Kept, head: Head | None, with_norm: bool, low: bool, x: Tensor, operands: list[Tensor]) -> Any:
    """As `by_passes`, by what is kept of the recording: on GPUs one CUDA graph."""
    # A normaliser of the user's own is Python that runs on every call: only what comes before it may be a graph.
    own = head is not None and head.formula is None
    form = (None, False, low) if own else (head, with_norm, low)
    result = kept.run(partial(by_passes, kept.plan, *form), x, operands, *form)
    if not own:
        return result
    with surroundings.without_autocast(x.device.type):
        return _normalized(head, *result, with_norm)


def _normalized(head: Head, f: Tensor, g: Tensor, with_norm: bool) -> Any:
    f_hat = heads.apply_head(head, f, g)
    return (f_hat, heads.normalized_grad_norm(head, f, g)) if with_norm else f_hat


def by_double_backward(
    net: nn.Module, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], head: Head | None, with_norm: bool
) -> Any:
    """By autograd's derivative of a derivative, exact for whatever PyTorch differentiates twice."""
    if head is None:
        return reference.value_and_input_grad(net, x, *args, **kwargs)

    def normalized(x: Tensor) -> Tensor:
        f, g = reference.value_and_input_grad(net, x, *args, **kwargs)
        if with_norm and f.numel() != len(x):
            raise InputError(f"return_grad_norm: wanted one logit per sample, got {tuple(f.shape)} from the network")
        with surroundings.without_autocast(x.device.type):
            return heads.apply_head(heads.plain(head), f, g)

    if not with_norm:
        return normalized(x)
    f_hat, g = reference.input_grad(normalized, x)
    return f_hat, heads.grad_norm(g)
