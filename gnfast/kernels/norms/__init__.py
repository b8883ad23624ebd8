"""Derivatives of norms with statistics of x, in two sweeps over memory and without temporaries of h's size.

Of y = x̂ · weight + bias, x̂ = (h - m) r, along a tangent t of h and with cotangents δ and μ of y: the gradients of

    <μ, y> + <δ, ∂y/∂h t>

with respect to h, weight and bias. `gnfast/plan/ops/norms.py` has the formula, and computes it in plain PyTorch where
`implementation("norms", device_type)` is None; elsewhere that has

    rows(h, tangent, cotangent, adjoint, mean, rstd, weight, dims, wants_weight, wants_bias)
        Layer and RMS norm: the entries of the last `dims` axes share statistics, and weight and bias have their shape.
    channels(h, tangent, cotangent, adjoint, mean, rstd, weight, wants_weight, wants_bias)
        Of h (N, C, ...): batch norm with statistics (C,); group and instance norm with statistics (N, groups).
    project_rows(u, h, rstd, weight, dims)
        Of RMS norm, r (v - x̂ <x̂ v>) with v = u · weight and <> the mean over the last `dims` axes.
    MAX_ROW
        How many entries these axes may have.

All tensors are of h's dtype, float32 or float64. `adjoint` is μ; None for 0, and then there is no gradient of a bias.
`mean` is None where m = 0, `weight` where it is 1. The first two return the gradients of h, weight and bias, of h's
dtype; None for a weight or bias that is not wanted. Sums are in float64.
"""
