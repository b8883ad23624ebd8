"""A convolution as the linear operator that it is on images: its singular values are not those of the reshaped weight.

Spectral normalisation divides by the largest singular value of the weight as a matrix of (out, in · kh · kw). The
operator applies that matrix at every position, to windows that overlap; at stride 1 its largest singular value is up to
√(kh · kw) times larger.
"""

import copy
from itertools import product

import torch
from torch import Tensor, nn

from gnfast.measure.lanczos import largest_singular_value


@torch.no_grad()
def circular_singular_values(weight: Tensor, size: tuple[int, int]) -> Tensor:
    """All singular values of a stride-1 convolution on a map that wraps around.

    The discrete Fourier transform of the kernel, padded to the map, is one (out, in) matrix per frequency; their
    singular values together are the operator's.

    Source: Sedghi, Gupta and Long, "The singular values of convolutional layers" (ICLR 2019, Theorem 6).

    Args:
        weight: (out, in, kh, kw) float32 or float64; a kernel larger than the map is wrapped around it.
        size: height and width of the map, in pixels.

    Returns:
        (height · width · min(out, in),) of the weight's dtype, largest first.
    """
    kernel = weight.new_zeros(*weight.shape[:2], *size)
    for row, column in product(range(weight.shape[2]), range(weight.shape[3])):
        kernel[:, :, row % size[0], column % size[1]] += weight[:, :, row, column]
    frequencies = torch.fft.fft2(kernel).permute(2, 3, 0, 1)
    return torch.linalg.svdvals(frequencies).flatten().sort(descending=True).values


def operator_norm(
    layer: nn.Module, shape: tuple[int, ...], *, tol: float = 1e-9, steps: int = 300, seed: int = 0
) -> float:
    """The largest singular value of an affine layer as it acts, with its stride, padding and groups.

    The adjoint is the layer's own backward: for a convolution, its transpose.

    Args:
        layer: a convolution, transposed convolution or linear layer, or any other module that is affine in its input; a
            copy of it in float64 and evaluation mode does the work.
        shape: of one input without the batch, (in, height, width) for a 2-d convolution.
        tol, steps: as in `gnfast.measure.lanczos.largest_singular_value`.
        seed: of the first direction.

    Returns:
        σ, to well within `tol` of itself unless `steps` ran out; then it is a lower bound.
    """
    linear = copy.deepcopy(layer).double().eval()
    if getattr(linear, "bias", None) is not None:
        linear.bias = None
    # Drawn on the CPU, so that a seed means the same on every device.
    start = torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    start = start.to(next(linear.parameters()).device).requires_grad_()
    with torch.enable_grad():
        image = linear(start)
    adjoint = lambda cotangent: torch.autograd.grad(image, start, cotangent, retain_graph=True)[0]  # noqa: E731
    return largest_singular_value(linear, adjoint, start, tol=tol, steps=steps)[0]
