"""Scaled sums in plain PyTorch: the test oracle, and what runs where there are no kernels."""

import torch

from gnfast.kernels.layout import accumulator


def scaled_sums(cotangents, axes, scale):
    """`scaled_sums`."""
    totals = []
    for cotangent, axis in zip(cotangents, axes, strict=True):
        if cotangent is None:
            totals.append(scale.sum(0, keepdim=True, dtype=accumulator(scale.dtype)))
            continue
        dtype = accumulator(torch.promote_types(cotangent.dtype, scale.dtype))
        factors = scale if scale.dtype == dtype else scale.to(dtype)
        others = [d for d in range(1, cotangent.dim()) if d != axis]
        totals.append(factors @ (cotangent.sum(others, dtype=dtype) if others else cotangent.to(dtype)))
    return totals
