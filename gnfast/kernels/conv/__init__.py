"""Convolutions, alone and with the pointwise work next to them, each by what was measured to be fastest for its shape.

    y = W * x + b                                                            (conv2d)
    gx = Wᵀ * δ,   the gradient of <δ, W * x> with respect to x              (conv2d_input_grad)
    gW,   its gradient with respect to W                                     (conv2d_weight_grad)
    gx and parts of ‖gx − centre‖² per sample                                (conv2d_input_grad_squares)
    s = W * x + Σ terms + Σ biases,   y = s where s > 0, else slope · s      (conv_join_forward)
    ṡ = W * ẋ + Σ tangents + scale · Σ biases,   ẏ = mask · ṡ                (conv_join_pushforward)
    δs = mask · (Wᵀ * δ + Σ before) + Σ after                                (conv_input_grad_join)

Convolutions are those of `gnfast.kernels.winograd`, which on GPUs are PyTorch's. What follows one is a kernel of its
own (`gnfast.kernels.join`). With the tuner on (`gnfast.kernels.autotune`), the kernels of `triton.py`, which do both at
once, compete with that (`contest.py`), in the configuration that convolves the shape fastest; compiling each of them in
each would take too long. Without it they run where the table that ships for the device has them. GNFAST_BACKEND=triton
always runs them, in the configuration that the tuner or the table names, or in the first. They know two-dimensional
convolutions of channels_last tensors without groups and dilation.

None of these functions is differentiable itself.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from gnfast.kernels import winograd
from gnfast.kernels.conv.contest import contest_of
from gnfast.kernels.join import join_forward, join_pullback, join_pushforward
from gnfast.kernels.layout import Strides, channels_last_like, with_strides
from gnfast.kernels.sign_bits.plain import from_words
from gnfast.kernels.winograd import Arguments, conv2d_weight_grad

__all__ = [
    "Arguments",
    "conv2d",
    "conv2d_input_grad",
    "conv2d_input_grad_squares",
    "conv2d_weight_grad",
    "conv_input_grad_join",
    "conv_join_forward",
    "conv_join_pushforward",
    "fuses",
]


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, arguments: Arguments) -> Tensor:
    """`winograd.conv2d`: W * x + b in any number of dimensions."""
    if (contest := contest_of(x, weight, arguments)) is None:
        return winograd.conv2d(x, weight, bias, arguments)
    return contest.result(
        ("conv2d", bias is not None),
        lambda: winograd.conv2d(x, weight, bias, arguments),
        lambda name: contest.kernels.conv2d(x, weight, bias, arguments, name),
    )


def conv2d_input_grad(cotangent: Tensor, x: Tensor, weight: Tensor, arguments: Arguments) -> Tensor:
    """`winograd.conv2d_input_grad`: the gradient of <cotangent, conv2d(x, weight)> with respect to x.

    Args:
        x: only its shape is read.
    """
    if (contest := contest_of(cotangent, weight, arguments, x.shape)) is None:
        return winograd.conv2d_input_grad(cotangent, x, weight, arguments)
    return contest.result(
        ("conv2d_input_grad",),
        lambda: winograd.conv2d_input_grad(cotangent, x, weight, arguments),
        lambda name: contest.kernels.conv2d_input_grad(cotangent, contest.shape, weight, arguments, name),
    )


def fuses(cotangent: Tensor, shape: Sequence[int], weight: Tensor, arguments: Arguments) -> bool:
    """Whether kernels that make a data gradient of that shape, and do more, may be in use."""
    return contest_of(cotangent, weight, arguments, shape) is not None


def conv2d_input_grad_squares(
    cotangent: Tensor, shape: Sequence[int], weight: Tensor, arguments: Arguments, centre: float
) -> tuple[Tensor, Tensor | None]:
    """`conv2d_input_grad`, and numbers that add up to ‖gx − centre‖² per sample where the same kernel makes them.

    Args:
        cotangent: channels_last, such that `fuses`.
        shape: of x.

    Returns:
        gx, and float64 (B, parts) or None.
    """

    def apart():
        return conv2d_input_grad(cotangent, channels_last_like(cotangent, shape), weight, arguments), None

    if (contest := contest_of(cotangent, weight, arguments, shape)) is None:
        return apart()

    def view(result):
        grad, sums = result
        squares = (grad.double() - centre).square().sum((1, 2, 3)) if sums is None else sums.sum(1)
        return grad, squares.sqrt()

    def fused(name):
        given = cotangent, contest.shape, weight, arguments, centre, name
        return contest.kernels.conv2d_input_grad_squares(*given)

    return contest.result(("conv2d_input_grad_squares",), apart, fused, view)


def conv_join_forward(
    x: Tensor,
    weight: Tensor,
    arguments: Arguments,
    terms: Sequence[Tensor],
    biases: Sequence[Tensor],
    slope: float,
    keep_sum: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """`pointwise.join_forward` of W * x and at most one more term; biases lie along axis 1.

    Returns:
        y, s (None unless wanted), and the sign bits of s in y's memory order.
    """

    def apart(keep_sum=keep_sum):
        y = conv2d(x, weight, None, arguments)
        return join_forward([y, *terms], biases, 1, slope, keep_sum, overwrite=True)

    contest = contest_of(x, weight, arguments)
    if contest is None or not contest.kernels.supports_join(weight.shape[0]):
        return apart()
    channels_last = [t.contiguous(memory_format=torch.channels_last) for t in terms]

    @functools.cache
    def size():
        return apart(keep_sum=True)[1].abs()

    def view(result):
        # The signs of sums near zero may differ: a bit counts as much as its sum.
        y, total, bits = result
        return y, total, from_words(bits, y) * size()

    def fused(name):
        given = x, weight, arguments, channels_last, biases, slope, keep_sum, name
        return contest.kernels.conv_join_forward(*given)

    return contest.result(("conv_join_forward", len(terms), len(biases), keep_sum), apart, fused, view)


def conv_join_pushforward(
    x: Tensor,
    weight: Tensor,
    arguments: Arguments,
    terms: Sequence[Tensor],
    biases: Sequence[Tensor],
    scale: Tensor | None,
    bits: Tensor,
    strides: Strides,
    slope: float,
    keep_sum: bool,
) -> tuple[Tensor, Tensor | None]:
    """`pointwise.join_pushforward` of W * x and the tangents of the other terms.

    Args:
        x: the tangent of the convolution's input.
        bits, strides: of the s that `conv_join_forward` saw.
    """

    def apart():
        y = conv2d(x, weight, None, arguments)
        return join_pushforward([y, *terms], biases, scale, 1, bits, strides, slope, keep_sum, overwrite=True)

    contest, channels = contest_of(x, weight, arguments), weight.shape[0]
    if contest is None or not _is_channels_last(strides, channels) or not contest.kernels.supports_join(channels):
        return apart()
    biases = () if scale is None else biases
    channels_last = [with_strides(t, strides) for t in terms]

    def fused(name):
        given = x, weight, arguments, channels_last, biases, scale, bits, slope, keep_sum, name
        return contest.kernels.conv_join_pushforward(*given)

    return contest.result(("conv_join_pushforward", len(terms), len(biases), keep_sum), apart, fused)


def conv_input_grad_join(
    cotangent: Tensor,
    shape: Sequence[int],
    weight: Tensor,
    arguments: Arguments,
    before: Sequence[Tensor],
    after: Sequence[Tensor],
    bits: Tensor,
    strides: Strides,
    slope: float,
) -> Tensor:
    """`pointwise.join_pullback` where Wᵀ * cotangent is one of the cotangents of y.

    Args:
        cotangent: channels_last, such that `fuses`.
        shape: of x, which is y and s.
        before: the other cotangent of y, if any.
        after: the cotangents of s, none to two.
        bits, strides: of s.
    """

    def apart():
        grad = conv2d_input_grad(cotangent, channels_last_like(cotangent, shape), weight, arguments)
        return join_pullback([grad, *before], after, bits, strides, slope, grad)

    contest = contest_of(cotangent, weight, arguments, shape)
    if contest is None or not _is_channels_last(strides, shape[1]):
        return apart()
    before, after = ([with_strides(t, strides) for t in group] for group in (before, after))

    def fused(name):
        given = cotangent, contest.shape, weight, arguments, before, after, bits, slope, name
        return contest.kernels.conv_input_grad_join(*given)

    return contest.result(("conv_input_grad_join", len(before), len(after)), apart, fused)


def _is_channels_last(strides: Strides, channels: int) -> bool:
    """Whether a dense sum of which samples follow each other has its channels innermost."""
    return strides[1] == 1 and strides[3] == channels
