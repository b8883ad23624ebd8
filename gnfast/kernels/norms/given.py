"""What the Triton kernels of norms are given: checked, and as it is to lie in memory."""

import torch
from torch import Tensor

from gnfast.errors import InputError
from gnfast.kernels.layout import with_strides


def check(h: Tensor, least: int, adjoint: Tensor | None, wants_bias: bool) -> None:
    """Raises InputError unless h has `least` axes or more, of float32 or float64, and a bias wanted has its adjoint."""
    if h.dim() < least or h.dtype not in (torch.float32, torch.float64):
        wanted = f"{least} axes or more of float32 or float64"
        raise InputError(f"h: got {tuple(h.shape)} of {h.dtype}, wanted {wanted}")
    if adjoint is None and wants_bias:
        raise InputError("adjoint: got None, wanted a tensor, from which the bias's gradient comes")


def like_h(name: str, t: Tensor | None, h: Tensor) -> Tensor | None:
    """The tensor in h's order of memory."""
    return t if t is None else with_strides(_checked(name, t, h, t.shape == h.shape, f"{tuple(h.shape)}"), h.stride())


def entries(name: str, t: Tensor | None, h: Tensor, count: int) -> Tensor | None:
    """The tensor, of so many entries, contiguous."""
    return t if t is None else _checked(name, t, h, t.numel() == count, f"{count} entries").contiguous()


def _checked(name: str, t: Tensor, h: Tensor, fits: bool, sizes: str) -> Tensor:
    if not fits or t.dtype != h.dtype or t.device != h.device:
        wanted = f"{sizes} of h's {h.dtype} on {h.device}"
        raise InputError(f"{name}: got {tuple(t.shape)} of {t.dtype} on {t.device}, wanted {wanted}")
    # Kernels read memory, in which negative views have the numbers before the sign.
    return t.resolve_neg()
