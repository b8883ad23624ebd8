"""Estimates of a critic's Lipschitz constant: of the whole model, and of its first k layers for every k.

Both are largest values over sampled images, hence lower bounds of the constants; whoever quotes one says over how many.

Source: GN-GAN (Wu et al., ICCV 2021, fig. 3 and Theorem 5).
"""

import math

import torch
from torch import Tensor, nn

from gnfast.engine import heads
from gnfast.measure.gradient_norms import CHUNK, evaluation, gradient_norms, near
from gnfast.measure.singular_values import layers_met


def distributions(real: Tensor, fake: Tensor | None = None, *, seed: int = 0) -> dict[str, Tensor]:
    """The images at which constants are estimated, by name.

    Args:
        real: (N, C, H, W) real images in [-1, 1].
        fake: generated images of the same shape, or None.
        seed: of the mixing and of the noise.

    Returns:
        "real", "noise" (uniform in [-1, 1]) and, with `fake`, "generated" and "between" (a random point on the line
        between each pair), each (N, C, H, W) on the device of `real`.
    """
    random = torch.Generator().manual_seed(seed)
    found = {"real": real}
    if fake is not None:
        place = torch.rand(len(real), *[1] * (real.dim() - 1), generator=random).to(real)
        found |= {"generated": fake, "between": torch.lerp(real, fake, place)}
    noise = torch.rand(real.shape, generator=random).mul(2).sub(1).to(real)
    return found | {"noise": noise}


def model_lipschitz(
    net: nn.Module,
    images: dict[str, Tensor],
    labels: Tensor | None = None,
    *,
    method: heads.Method | None = None,
    tau: float | None = None,
    eps: float | None = None,
) -> dict[str, float]:
    """The largest gradient norm of the (normalised) critic over the images of each distribution.

    Args:
        net: the critic; left as it was.
        images: name to (N, ...) images.
        labels: (N,) of the images of each, for a class-conditional critic; None for others.
        method, tau, eps: the normaliser, as in `gnfast.normalize_gradient`; None for the plain critic.
    """
    options = {"method": method, "tau": tau, "eps": eps}
    return {name: float(gradient_norms(net, x, labels, **options).normalized_norm.max()) for name, x in images.items()}


def prefix_lipschitz(
    net: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    iterations: int = 20,
    chunk: int = CHUNK,
    seed: int = 0,
) -> dict[str, float]:
    """The Lipschitz constants of the maps from the image to each layer's output, before its activation.

    At each image the spectral norm of the Jacobian, by power iteration through the network and its adjoint; of these
    the largest. The last is that of the whole critic without normalisation.

    Args:
        net: the critic, whose convolutions and linears come in the order of its forward; left as it was.
        images: (N, ...) floating point in the network's dtype.
        labels: (N,) for a class-conditional critic; None for others.
        iterations: power iterations per image; an estimate rises to the norm as they grow.
        chunk: images at a time.
        seed: of the first directions.

    Raises:
        ValueError: the critic has no such layer.
    """
    random = torch.Generator().manual_seed(seed)
    largest: dict[str, float] = {}
    with evaluation(net), torch.enable_grad():
        for start in range(0, len(images), chunk):
            part = slice(start, start + chunk)
            x = near(net, images[part]).detach().clone().requires_grad_()
            args = () if labels is None else (near(net, labels[part]),)
            norms = {
                name: _jacobian_norm(output, x, iterations, random)
                for name, (_, _, output) in layers_met(net, x, *args).items()
            }
            largest = {name: max(largest.get(name, 0.0), float(norm.max())) for name, norm in norms.items()}
    return largest


def range_bound(constant: float, shape: tuple[int, ...], span: float = 2.0) -> float:
    """How long the interval of a critic's values can be, on images whose values span `span`.

    Two images differ by at most span · √(number of values), and a k-Lipschitz critic by k times that. For colour images
    of m × n pixels in [-1, 1] this is the k √(12 m n) of Theorem 1 of Qin et al. (ECCV 2020).

    Args:
        constant: the critic's Lipschitz constant k.
        shape: of an image, (C, H, W).
        span: largest minus least value of a pixel.
    """
    return constant * span * math.sqrt(math.prod(shape))


def _jacobian_norm(output: Tensor, x: Tensor, iterations: int, random: torch.Generator) -> Tensor:
    """The spectral norm (B,) of ∂output/∂x at each image."""
    # J v is the derivative of Jᵀ u, which is linear in u, along v: forward mode out of two backward passes.
    cotangent = torch.zeros_like(output, requires_grad=True)
    (pulled,) = torch.autograd.grad(output, x, cotangent, create_graph=True)
    v = torch.randn(x.shape, generator=random).to(x)
    norm = x.new_zeros(len(x))
    for _ in range(1 if output[0].numel() == 1 else iterations):
        v = v / _per_sample_norm(v).clamp_min(torch.finfo(v.dtype).tiny)
        (pushed,) = torch.autograd.grad(pulled, cotangent, v, retain_graph=True)
        u = pushed / _per_sample_norm(pushed).clamp_min(torch.finfo(v.dtype).tiny)
        (v,) = torch.autograd.grad(output, x, u, retain_graph=True)
        norm = _per_sample_norm(v).flatten()
    return norm.detach()


def _per_sample_norm(tensor: Tensor) -> Tensor:
    return heads.grad_norm(tensor).reshape(-1, *[1] * (tensor.dim() - 1))
