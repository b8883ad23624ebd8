"""Convolutions of 4-D tensors in channels_last, with what precedes and follows them in the same kernel, in Triton.

    y  = W * x + b                                                                              (conv2d)
    gx = the transposed convolution of gy by W, and ‖gx − centre‖² per sample                   (conv2d_input_grad*)
    s  = W * x + Σ terms + Σ biases,  y = s where s > 0, else slope · s                         (conv_join_forward)
    ṡ  = W * ẋ + Σ terms + scale · Σ biases,  ẏ = mask · ṡ                                      (conv_join_pushforward)
    gs = mask · (gx + Σ before) + Σ after                                                       (conv_input_grad_join)

Sums are float32, joins those of `gnfast.kernels.join` on sums that were not rounded in between.

Every function takes the name of one of `CONFIGURATIONS`, among which `gnfast.kernels.conv` chooses. Tensors are as
`supports` says, channels_last, and of one dtype, weights with any strides; biases have any floating-point dtype.
Imported when it is chosen, as Triton may be missing. None of these functions is differentiable itself.
"""

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from gnfast.kernels.conv.tiles import CONFIGURATIONS, promising, tile
from gnfast.kernels.conv.triton_kernel import MASK, NO_SIGNS, PACK, conv_kernel
from gnfast.kernels.layout import channels_last_like, filled
from gnfast.kernels.winograd import Arguments

__all__ = [
    "CONFIGURATIONS",
    "conv2d",
    "conv2d_input_grad",
    "conv2d_input_grad_squares",
    "conv_input_grad_join",
    "conv_join_forward",
    "conv_join_pushforward",
    "promising",
    "supports",
    "supports_join",
]

# Entries of a tensor from which its addresses take 64 bits: indices go a tile beyond the end.
WIDE_FROM = 2**31 - 2**16


def supports(x_dtype: torch.dtype, weight: Tensor, arguments: Arguments) -> bool:
    """Whether the functions below take an input of that dtype, this weight and these arguments."""
    stride, padding, dilation, transposed, _, groups = arguments
    return (
        x_dtype in (torch.bfloat16, torch.float16, torch.float32)
        and weight.dtype == x_dtype
        and weight.dim() == 4
        and weight.numel() < 2**31
        and len(stride) == len(padding) == 2
        and tuple(dilation) == (1, 1)
        and not transposed
        and groups == 1
    )


def supports_join(channels: int) -> bool:
    """Whether `conv_join_forward` and `conv_join_pushforward` make results with that many channels: words of signs must
    not straddle pixels."""
    return channels % 32 == 0


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, arguments: Arguments, configuration: str) -> Tensor:
    """`torch.convolution(x, weight, bias, *arguments)`.

    Args:
        x: (B, C_in, H, W).
        weight: (C_out, C_in, KH, KW).
        bias: (C_out,).
        arguments: stride, padding, dilation, transposed, output_padding, groups.
    """
    y = _output(x, weight, arguments)
    _launch(x, weight, y, arguments, configuration, biases=() if bias is None else (bias,))
    return y


def conv2d_input_grad(
    cotangent: Tensor, shape: Sequence[int], weight: Tensor, arguments: Arguments, configuration: str
) -> Tensor:
    """The gradient of <cotangent, conv2d(x, weight)> with respect to x of that shape."""
    grad = channels_last_like(cotangent, shape)
    _launch(cotangent, weight, grad, arguments, configuration, gradient=True)
    return grad


def conv2d_input_grad_squares(
    cotangent: Tensor,
    shape: Sequence[int],
    weight: Tensor,
    arguments: Arguments,
    centre: float,
    configuration: str,
) -> tuple[Tensor, Tensor]:
    """`conv2d_input_grad`, and (B, P) float64 whose sums over P are those of (gx − centre)² before gx was rounded."""
    grad = channels_last_like(cotangent, shape)
    sums = _launch(cotangent, weight, grad, arguments, configuration, gradient=True, centre=centre)
    return grad, sums


def conv_join_forward(
    x: Tensor,
    weight: Tensor,
    arguments: Arguments,
    terms: Sequence[Tensor],
    biases: Sequence[Tensor],
    slope: float,
    keep_sum: bool,
    configuration: str,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """`join_forward` of the convolution and at most one more term of its shape.

    Args:
        x, weight, arguments: as for `conv2d`.
        terms, biases, slope, keep_sum: as for `join_forward`.

    Returns:
        y, s (None unless wanted) and bits.
    """
    y = _output(x, weight, arguments)
    total = torch.empty_like(y) if keep_sum else None
    bits = torch.empty((y.numel() // 32,), dtype=torch.int32, device=x.device)
    _launch(
        x, weight, y, arguments, configuration,
        terms=terms, biases=biases, total=total, signs=PACK, bits=bits, slope=slope,
    )  # fmt: skip
    return y, total, bits


def conv_join_pushforward(
    x: Tensor,
    weight: Tensor,
    arguments: Arguments,
    terms: Sequence[Tensor],
    biases: Sequence[Tensor],
    scale: Tensor | None,
    bits: Tensor,
    slope: float,
    keep_sum: bool,
    configuration: str,
) -> tuple[Tensor, Tensor | None]:
    """`join_pushforward` of the convolution of a tangent and at most one more tangent.

    Args:
        x: the tangent of the convolution's input.
        weight, arguments: as for `conv2d`.
        terms, biases, scale, bits, slope, keep_sum: as for `join_pushforward`, the first with at most one tensor.

    Returns:
        The tangents of y and of s (None unless wanted).
    """
    y = _output(x, weight, arguments)
    total = torch.empty_like(y) if keep_sum else None
    _launch(
        x, weight, y, arguments, configuration,
        terms=terms, biases=() if scale is None else biases, scale=scale, total=total, signs=MASK, bits=bits,
        slope=slope,
    )  # fmt: skip
    return y, total


def conv_input_grad_join(
    cotangent: Tensor,
    shape: Sequence[int],
    weight: Tensor,
    arguments: Arguments,
    before: Sequence[Tensor],
    after: Sequence[Tensor],
    bits: Tensor,
    slope: float,
    configuration: str,
) -> Tensor:
    """`join_pullback` of the data gradient.

    Args:
        cotangent, shape, weight, arguments: as for `conv2d_input_grad`.
        before: at most one more cotangent of y, of that shape.
        after: at most two cotangents of s.
        bits, slope: of the s that `join_forward` saw, any number of channels.
    """
    grad = channels_last_like(cotangent, shape)
    _launch(
        cotangent, weight, grad, arguments, configuration,
        gradient=True, terms=before, after=after, signs=MASK, bits=bits, slope=slope,
    )  # fmt: skip
    return grad


def _launch(
    source: Tensor,
    weight: Tensor,
    out: Tensor,
    arguments: Arguments,
    configuration: str,
    *,
    gradient: bool = False,
    terms: Sequence[Tensor] = (),
    biases: Sequence[Tensor] = (),
    scale: Tensor | None = None,
    after: Sequence[Tensor] = (),
    total: Tensor | None = None,
    signs: int = NO_SIGNS,
    bits: Tensor | None = None,
    slope: float = 0.0,
    centre: float | None = None,
) -> Tensor | None:
    """Writes `out`; with `centre` returns the shares of the squared distances, (B, P)."""
    (stride_h, stride_w), padding = arguments[0], arguments[1]
    batch, channels, height, width = out.shape
    phases = stride_h * stride_w if gradient else 1
    positions = triton.cdiv(height, stride_h) * triton.cdiv(width, stride_w) if gradient else height * width
    precision = "tf32" if torch.backends.cudnn.conv.fp32_precision == "tf32" else "ieee"
    aligned = signs != NO_SIGNS and channels % 32 == 0
    epilogue = signs != NO_SIGNS or centre is not None
    constants = tile(configuration, source.dtype, source.shape[1], epilogue, aligned, precision)
    tiles_m = triton.cdiv(positions if centre is not None else batch * positions, constants["BM"])
    tiles_n = triton.cdiv(channels, constants["BN"])
    sums = None
    if centre is not None:
        sums = out.new_empty((batch, tiles_m * tiles_n * phases), dtype=torch.float64)
        tiles_m *= batch
    if out.numel():
        weight_n, weight_c, weight_h, weight_w = weight.stride()
        if gradient:
            weight_n, weight_c = weight_c, weight_n
        with torch.cuda.device_of(source):
            conv_kernel[(tiles_m * tiles_n, phases)](
                source, weight, out, *filled(terms, 1, out), *filled(biases, 2, out), *filled(after, 2, out),
                *(out if t is None else t for t in (scale, total, bits, sums)),
                batch, *source.shape[2:], source.shape[1], height, width, channels, *padding,
                weight_n, weight_c, weight_h, weight_w,
                KERNEL_H=weight.shape[2], KERNEL_W=weight.shape[3], STRIDE_H=stride_h, STRIDE_W=stride_w,
                GRADIENT=gradient, TERMS=len(terms), BIASES=len(biases), SCALED=scale is not None, AFTER=len(after),
                KEEP_SUM=total is not None, SIGNS=signs, ALIGNED=aligned, SLOPE=slope, SQUARES=centre is not None,
                CENTRE=centre or 0.0, WIDE=max(source.numel(), out.numel()) >= WIDE_FROM, **constants,
            )  # fmt: skip
    return sums


def _output(x: Tensor, weight: Tensor, arguments: Arguments) -> Tensor:
    """Memory for `conv2d`'s result."""
    space = [
        (extent + 2 * padding - kernel) // stride + 1
        for extent, kernel, stride, padding in zip(x.shape[2:], weight.shape[2:], *arguments[:2], strict=True)
    ]
    return channels_last_like(x, (len(x), len(weight), *space))
