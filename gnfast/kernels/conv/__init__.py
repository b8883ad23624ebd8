"""Convolutions, alone and with the pointwise work next to them, each by what was measured to be fastest for its shape.

    y = W * x + b                                                            (conv2d)
    gx = Wᵀ * δ,   the gradient of <δ, W * x> with respect to x              (conv2d_input_grad)
    gW,   its gradient with respect to W                                     (conv2d_weight_grad)
    gx and parts of ‖gx − centre‖² per sample                                (conv2d_input_grad_squares)
    s = W * x + Σ terms + Σ biases,   y = s where s > 0, else slope · s      (conv_join_forward)
    ṡ = W * ẋ + Σ tangents + scale · Σ biases,   ẏ = mask · ṡ                (conv_join_pushforward)
    δs = mask · (Wᵀ * δ + Σ before) + Σ after                                (conv_input_grad_join)

Convolutions are those of `gnfast.kernels.winograd`, which on GPUs are PyTorch's, and what follows one is a kernel
of its own (`gnfast.kernels.join`). With the tuner on (`gnfast.kernels.autotune`), those of `conv.triton`,
which do both at once, compete with that in the configuration that convolves the shape fastest; compiling each of them
in each would take too long. GNFAST_BACKEND=triton takes the first configuration without asking. They know
two-dimensional convolutions of channels_last tensors without groups and dilation.

None of these functions is differentiable itself.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from gnfast.kernels import winograd as conv_winograd
from gnfast.kernels.autotune import choose_fastest, enabled
from gnfast.kernels.backend import choices
from gnfast.kernels.join import Strides, join_forward, join_pullback, join_pushforward, with_strides
from gnfast.kernels.sign_bits import _unpack
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

Result = TypeVar("Result")

# Largest ‖difference‖ / ‖result‖ between two ways to compute the same, two to five times what rounding makes of it:
# results rounded once or twice in half precision (by up to 2^-8 of them in bfloat16, 2^-11 in float16), factors rounded
# to TF32 (2^-11), float32 sums of thousands of products in another order (2^-24 √4608).
_TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5, torch.float64: 1e-12}
_TOLERANCE_TF32 = 2e-3


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, arguments: Arguments) -> Tensor:
    """`conv_winograd.conv2d`: W * x + b in any number of dimensions."""
    if (contest := _contest(x, weight, arguments)) is None:
        return conv_winograd.conv2d(x, weight, bias, arguments)
    return contest.result(
        ("conv2d", bias is not None),
        lambda: conv_winograd.conv2d(x, weight, bias, arguments),
        lambda name: contest.kernels.conv2d(x, weight, bias, arguments, name),
    )


def conv2d_input_grad(cotangent: Tensor, x: Tensor, weight: Tensor, arguments: Arguments) -> Tensor:
    """`conv_winograd.conv2d_input_grad`: the gradient of <cotangent, conv2d(x, weight)> with respect to x.

    Args:
        x: only its shape is read.
    """
    if (contest := _contest(cotangent, weight, arguments, x.shape)) is None:
        return conv_winograd.conv2d_input_grad(cotangent, x, weight, arguments)
    return contest.result(
        ("conv2d_input_grad",),
        lambda: conv_winograd.conv2d_input_grad(cotangent, x, weight, arguments),
        lambda name: contest.kernels.conv2d_input_grad(cotangent, contest.shape, weight, arguments, name),
    )


def fuses(x: Tensor, weight: Tensor, arguments: Arguments) -> bool:
    """Whether kernels that convolve x, the input or the cotangent, and do more may be in use."""
    return _contest(x, weight, arguments) is not None


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
        return conv2d_input_grad(cotangent, _like(cotangent, shape), weight, arguments), None

    if (contest := _contest(cotangent, weight, arguments, shape)) is None:
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

    contest = _contest(x, weight, arguments)
    if contest is None or not contest.kernels.supports_join(weight.shape[0]):
        return apart()
    channels_last = [t.contiguous(memory_format=torch.channels_last) for t in terms]

    @functools.cache
    def size():
        return apart(keep_sum=True)[1].abs()

    def view(result):
        # The signs of sums near zero may differ: a bit counts as much as its sum.
        y, total, bits = result
        return y, total, _unpack(bits, y) * size()

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

    contest, channels = _contest(x, weight, arguments), weight.shape[0]
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
        grad = conv2d_input_grad(cotangent, _like(cotangent, shape), weight, arguments)
        return join_pullback([grad, *before], after, bits, strides, slope, grad)

    contest = _contest(cotangent, weight, arguments, shape)
    if contest is None or not _is_channels_last(strides, shape[1]):
        return apart()
    before, after = ([with_strides(t, strides) for t in group] for group in (before, after))

    def fused(name):
        given = cotangent, contest.shape, weight, arguments, before, after, bits, slope, name
        return contest.kernels.conv_input_grad_join(*given)

    return contest.result(("conv_input_grad_join", len(before), len(after)), apart, fused)


class _Contest(NamedTuple):
    """The Triton kernels against what else there is, at one convolution or one data gradient."""

    kernels: ModuleType
    x: Tensor
    """The input, or the cotangent."""
    weight: Tensor
    arguments: Arguments
    shape: tuple[int, ...] | None
    """That of the data gradient."""

    def result(
        self,
        operation: tuple[object, ...],
        apart: Callable[[], Result],
        fused: Callable[[str], Result],
        view: Callable[[Result], object] | None = None,
    ) -> Result:
        """The result of `apart` or of `fused` with one of the configurations."""
        candidates = {"apart": apart} if "torch" in _backends(self.x.device.type) else {}
        tile = self._configuration()
        candidates[tile] = functools.partial(fused, tile)
        return candidates[self._fastest(operation, candidates, view)]()

    def _configuration(self) -> str:
        """The one that convolves fastest, with nothing fused."""
        kernels, x, weight, arguments, shape = self

        def plain(name):
            if shape is None:
                return kernels.conv2d(x, weight, None, arguments, name)
            return kernels.conv2d_input_grad(x, shape, weight, arguments, name)

        def reference():
            if shape is None:
                return conv_winograd.conv2d(x, weight, None, arguments)
            return conv_winograd.conv2d_input_grad(x, _like(x, shape), weight, arguments)

        if shape is None:
            positions, channels = x.numel() // x.shape[1] // math.prod(self.arguments[0]), weight.shape[0]
        else:
            positions, channels = math.prod(shape) // shape[1], shape[1]
        candidates = {name: functools.partial(plain, name) for name in kernels.promising(positions, channels)}
        operation = "tile", "conv2d" if shape is None else "conv2d_input_grad"
        return self._fastest(operation, candidates, reference=reference)

    def _fastest(
        self,
        operation: tuple[object, ...],
        candidates: Mapping[str, Callable[[], Result]],
        view: Callable[[Result], object] | None = None,
        reference: Callable[[], Result] | None = None,
    ) -> str:
        x, weight, cudnn = self.x, self.weight, torch.backends.cudnn
        rounded = x.dtype == torch.float32 and cudnn.conv.fp32_precision == "tf32"
        tensors = tuple(x.shape), self.shape, tuple(weight.shape), weight.stride(), x.dtype
        key = (*operation, *tensors, *map(tuple, self.arguments[:2]), rounded, cudnn.benchmark)
        tolerance = _TOLERANCE_TF32 if rounded else _TOLERANCE[x.dtype]
        return choose_fastest(key, candidates, x.device, tolerance, view, reference)


def _contest(x: Tensor, weight: Tensor, arguments: Arguments, shape: Sequence[int] | None = None) -> _Contest | None:
    """The contest at a convolution of x or, with `shape`, at a data gradient; None where nothing competes."""
    backends = _backends(x.device.type)
    if "triton" not in backends or not (len(backends) == 1 or enabled()):
        return None
    kernels = _kernels()
    # A tensor that is channels_last and contiguous at once goes with the weight, as in PyTorch.
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    last = last and not (x.is_contiguous() and weight.is_contiguous())
    if not (last and x.numel() and x.dtype == weight.dtype and kernels.supports(x.dtype, weight, arguments)):
        return None
    return _Contest(kernels, x, weight, arguments, None if shape is None else tuple(shape))


def _is_channels_last(strides: Strides, channels: int) -> bool:
    """Whether a dense sum of which samples follow each other has its channels innermost."""
    return strides[1] == 1 and strides[3] == channels


def _like(cotangent: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Memory of an input's shape, never touched, for a backward function that takes the input."""
    layout = torch.channels_last
    return torch.empty(shape, dtype=cotangent.dtype, device=cotangent.device, memory_format=layout)


@functools.cache
def _backends(device_type: str) -> tuple[str, ...]:
    return choices("conv2d", device_type)


@functools.cache
def _kernels() -> ModuleType:
    from gnfast.kernels.conv import triton as conv_triton

    return conv_triton
