"""The two ways to the weight gradient that double backward takes: the real one, and PyTorch's of second order."""

from typing import Any

import torch
from torch import Tensor

from gnfast.bench.agree import relative_error
from gnfast.plan.op import Context

aten = torch.ops.aten


@torch.no_grad()
def weight_gradient_errors(op: Any, x: Tensor, weight: Tensor, delta: Tensor) -> dict[str, float]:
    """How far each weight gradient of a convolution is from the one in float64, relatively.

    PyTorch's of second order is a convolution whose kernel is a whole feature map. In bfloat16 it loses all digits on
    some CPUs, which is no fault of whoever is compared with it.

    Args:
        op: a `gnfast.plan.ops.conv.Conv`.
        x: (B, C_in, H, W), the input, or the tangent at it.
        weight: (C_out, C_in / groups, k, l).
        delta: (B, C_out, H', W'), the cotangent of the output.

    Returns:
        by "gnfast" and "PyTorch, second order".
    """
    mask = (False, True, False)
    wide = (t.double() for t in (delta, x, weight))
    truth = aten.convolution_backward(*wide, None, *op.arguments(), mask)[1]
    ours = op.param_grad(Context((weight, None), needs=(True, False)), delta, x)[0]
    theirs = aten._convolution_double_backward(x, None, None, delta, weight, x, *op.arguments(), (False, False, True))[
        2
    ]
    return {"gnfast": relative_error(ours, truth), "PyTorch, second order": relative_error(theirs, truth)}
