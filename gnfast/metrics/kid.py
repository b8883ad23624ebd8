"""The kernel distance between two sets of features: unbiased, whatever their number."""

import torch
from torch import Tensor


def kernel_distance(
    real: Tensor, fake: Tensor, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float | None]:
    """Squared maximum mean discrepancy under the kernel (x·y/D + 1)³: with Inception's features, KID.

    The unbiased estimate on random subsets, drawn without replacement within each: mean and standard deviation over
    them (divisor: their number), None where there is but one: a subset of the size of both sides is all there is, and
    is taken once. A mean a little below zero says that the sets cannot be told apart.

    Source: Bińkowski et al., "Demystifying MMD GANs" (2018), section 4.

    Args:
        real, fake: (N, D) and (M, D) floating point; it is computed on the device of `fake`.
        subsets: how many, >= 1.
        subset_size: images of each side in one, >= 2; no more than the smaller side has are taken.
        seed: of the draws.

    Raises:
        ValueError: the shapes do not fit, or a side has fewer than two vectors.
    """
    if real.dim() != 2 or fake.dim() != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(f"real and fake: got {tuple(real.shape)} and {tuple(fake.shape)}, wanted (N, D) and (M, D)")
    size = min(subset_size, len(real), len(fake))
    if size < 2 or subsets < 1:
        raise ValueError(
            f"subsets: got {subsets} of {subset_size} with {len(real)} real and {len(fake)} fake vectors, wanted at "
            f"least 1 of at least 2 of each side"
        )
    if size == len(real) == len(fake):
        subsets = 1
    generator = torch.Generator().manual_seed(seed)

    def draw(features: Tensor) -> Tensor:
        chosen = torch.randperm(len(features), generator=generator)[:size]
        return features[chosen.to(features.device)].to(fake.device, torch.float64)

    values = torch.stack([_discrepancy(draw(real), draw(fake)) for _ in range(subsets)])
    return float(values.mean()), float(values.std(correction=0)) if subsets > 1 else None


def _discrepancy(x: Tensor, y: Tensor) -> Tensor:
    """The unbiased estimate for two sets of the same size, (n, D) float64."""
    n = len(x)
    xx, yy, xy = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    within = xx.sum() - xx.trace() + yy.sum() - yy.trace()
    return within / (n * (n - 1)) - 2 * xy.sum() / n**2


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T).div_(x.shape[1]).add_(1).pow_(3)
