"""Convolutions to one channel, which close PatchGAN critics, as products of matrices: PyTorch pads that channel to 16.

Each pixel's product with every tap, (B, H·W, C) by (C, taps), is summed where the taps meet; the gradients read the
cotangents that meet a pixel's taps. All is in channels_last.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# With fewer channels the sums over taps take longer than the products save.
_MIN_CHANNELS = 128


def serves(x: Tensor, weight: Tensor, arguments) -> bool:
    """Whether such products are faster; `x` is the input or the cotangent."""
    stride, padding, dilation, transposed, _, groups = arguments
    plain = not transposed and groups == 1 and {*stride, *dilation} == {1}
    if not (plain and weight.dim() == 4 and weight.shape[0] == 1 and weight.shape[1] >= _MIN_CHANNELS):
        return False
    # The output is at most a pixel smaller: a kernel as large as the input, without padding, meets it only once.
    reaches = all(p < k <= 2 * p + 2 for p, k in zip(padding, weight.shape[2:], strict=True))
    return reaches and x.dtype == weight.dtype == torch.float32


def conv2d(x, weight, bias, arguments):
    """`conv2d`."""
    size = [n + 2 * p - k + 1 for n, p, k in zip(x.shape[2:], arguments[1], weight.shape[2:], strict=True)]
    y = F.fold((_pixels(x) @ _taps(weight)).mT, size, **_reach(weight, arguments))
    return y if bias is None else y.add_(bias)


def conv2d_input_grad(cotangent, x, weight, arguments):
    """`conv2d_input_grad`."""
    met = F.unfold(cotangent, **_reach(weight, arguments))
    grad = (met.mT @ _taps(weight).t()).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
    # A single channel, or tap, is in channels_last and contiguous.
    return grad if weight.is_contiguous(memory_format=torch.channels_last) else grad.contiguous()


def conv2d_weight_grad(cotangent, x, weight, arguments, total=None):
    """`conv2d_weight_grad`."""
    met = F.unfold(cotangent, **_reach(weight, arguments)).transpose(0, 1).flatten(1)
    taps = (met @ _pixels(x).flatten(0, 1)).view(*weight.shape[2:], -1).permute(2, 0, 1).flip(1, 2)
    return torch.empty_like(weight).copy_(taps) if total is None else total.add_(taps)


def _pixels(x: Tensor) -> Tensor:
    """(B, H·W, C)."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _taps(weight: Tensor) -> Tensor:
    """(C, taps), the last one first, as a cotangent's pixels meet them."""
    return weight[0].flip(1, 2).flatten(1)


def _reach(weight: Tensor, arguments):
    sides = weight.shape[2:]
    return {"kernel_size": tuple(sides), "padding": tuple(k - 1 - p for p, k in zip(arguments[1], sides, strict=True))}
