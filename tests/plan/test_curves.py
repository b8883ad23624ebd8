"""Functions entry by entry where they bend, saturate or overflow: derivatives against autograd's, and never NaN."""

import pytest
import torch
import torch.nn.functional as F

from gnfast.plan.op import Context
from gnfast.plan.ops.curves import CURVES, Elementwise

# name: arguments of the op, the PyTorch function
FUNCTIONS = {
    **{name: ((), getattr(torch, name, getattr(F, name, None))) for name in CURVES},
    "softplus, beta": ((2.5, 20.0), lambda h: F.softplus(h, 2.5)),
    "softplus, threshold": ((1.3, 0.9), lambda h: F.softplus(h, 1.3, 0.9)),
    "softplus, a threshold at 0": ((1.3, 0.0), lambda h: F.softplus(h, 1.3, 0.0)),
    "elu, alpha": ((0.6,), lambda h: F.elu(h, 0.6)),
    # PyTorch's celu rounds 1/α to float32 in its backward.
    "celu, alpha": ((1.75,), lambda h: F.celu(h, 1.75)),
    "gelu, tanh": (("tanh",), lambda h: F.gelu(h, approximate="tanh")),
}
ORDINARY = torch.linspace(-9, 9, 601, dtype=torch.float64)
LARGE = torch.tensor([12.0, 19.9, 20.1, 35, 90, 700, 1e4, 1e10])
CORNERS = torch.cat([-LARGE.flip(0), torch.tensor([-1e-30, -0.0, 0.0, 1e-30]), LARGE])
BOUNDED = {name: CORNERS.abs() <= 80 if name in ("exp", "square") else CORNERS.abs() <= 1e10 for name in FUNCTIONS}


def derivatives(name, h, t, cotangent, adjoint):
    """y, φ' δ, φ' t and φ'' δ t + φ' μ by the op; and by autograd."""
    args, function = FUNCTIONS[name]
    op = Elementwise(name.split(",")[0], args)
    ctx = Context(inputs=[h])
    (second,), _ = op.second(ctx, cotangent, [t], adjoint)
    found = op.forward(ctx, h)[0], *op.pullback(ctx, cotangent), op.pushforward(ctx, t), second
    leaf, seed = h.clone().requires_grad_(), cotangent.clone().requires_grad_()
    y = function(leaf)
    (pulled,) = torch.autograd.grad(y, leaf, seed, create_graph=True)
    total = (pulled * t).sum() + (y * adjoint).sum()
    (pushed,) = torch.autograd.grad(pulled, seed, t, retain_graph=True)
    return found, (y.detach(), pulled.detach(), pushed, *torch.autograd.grad(total, leaf))


def given(h, dtype):
    generator = torch.Generator().manual_seed(0)
    rest = (torch.randn(h.shape, generator=generator, dtype=torch.float64) for _ in range(3))
    return [value.to(dtype) for value in (h, *rest)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_between_the_corners(name):
    for found, expected in zip(*derivatives(name, *given(ORDINARY, torch.float64)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_in_the_corners(name, dtype):
    """Saturated, at the kink, beyond the threshold: PyTorch's numbers, but for NaN where it gives that (mish)."""
    h, *others = given(CORNERS[BOUNDED[name]], dtype)
    eps = torch.finfo(dtype).eps
    for found, expected in zip(*derivatives(name, h, *others), strict=True):
        assert found.dtype == expected.dtype == dtype
        assert found.isfinite().all()
        known = expected.isfinite()
        assert known.sum() >= len(h) - 4
        torch.testing.assert_close(found[known], expected[known], rtol=20 * eps, atol=20 * eps)


# Those two overflow themselves; of the last one's first derivative PyTorch makes NaN.
@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() - {"exp", "square", "gelu, tanh"}))
def test_beyond_the_square_root_of_the_largest_number(name):
    """Where h² overflows and the function does not."""
    h, *others = given(torch.tensor([-1e30, 1e30]), torch.float32)
    for found in derivatives(name, h, *others)[0]:
        assert found.isfinite().all()
