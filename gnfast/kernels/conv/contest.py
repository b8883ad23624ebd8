"""The Triton kernels against what else there is, by measurement: this machine's, or the table that ships."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from gnfast.kernels import winograd
from gnfast.kernels.autotune import choose_fastest, enabled, table
from gnfast.kernels.backend import choices, implementation
from gnfast.kernels.layout import channels_last_like
from gnfast.kernels.winograd import Arguments

Result = TypeVar("Result")

# Largest ‖difference‖ / ‖result‖ between two ways to compute the same, two to five times what rounding makes of it:
# results rounded once or twice in half precision (by up to 2^-8 of them in bfloat16, 2^-11 in float16), factors rounded
# to TF32 (2^-11), float32 sums of thousands of products in another order (2^-24 √4608).
_TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5, torch.float64: 1e-12}
_TOLERANCE_TF32 = 2e-3


class Contest(NamedTuple):
    """The Triton kernels against what else there is, at one convolution or one data gradient."""

    kernels: ModuleType
    x: Tensor
    """The input, or the cotangent."""
    weight: Tensor
    arguments: Arguments
    shape: tuple[int, ...] | None
    """That of the data gradient."""
    place: tuple[object, ...]
    """What a choice depends on besides the operation."""
    listed: Mapping[tuple[object, ...], str] | None
    """What ships for this place, operation ↦ configuration; None where the tuner or a single backend decides."""

    def result(
        self,
        operation: tuple[object, ...],
        apart: Callable[[], Result],
        fused: Callable[[str], Result],
        view: Callable[[Result], object] | None = None,
    ) -> Result:
        """The result of `apart` or of `fused` with one of the configurations."""
        if self.listed is not None:
            tile = self.listed.get(operation)
            return fused(tile) if tile in self.kernels.CONFIGURATIONS else apart()
        candidates = {"apart": apart} if "torch" in choices("conv", self.x.device.type) else {}
        tile = self._configuration()
        candidates[tile] = functools.partial(fused, tile)
        return candidates[self._fastest(operation, candidates, view)]()

    def _configuration(self) -> str:
        """The one that convolves fastest, with nothing fused."""
        kernels, x, weight, arguments, shape, place, _ = self

        def plain(name):
            if shape is None:
                return kernels.conv2d(x, weight, None, arguments, name)
            return kernels.conv2d_input_grad(x, shape, weight, arguments, name)

        def reference():
            if shape is None:
                return winograd.conv2d(x, weight, None, arguments)
            return winograd.conv2d_input_grad(x, channels_last_like(x, shape), weight, arguments)

        if shape is None:
            positions, channels = x.numel() // x.shape[1] // math.prod(self.arguments[0]), weight.shape[0]
        else:
            positions, channels = math.prod(shape) // shape[1], shape[1]
        candidates = {name: functools.partial(plain, name) for name in kernels.promising(positions, channels)}
        operation = "tile", "conv2d" if shape is None else "conv2d_input_grad"
        # A place of its own: what ships of tiles alone changes nothing where PyTorch is a rival.
        return self._replace(place=("tile", *place))._fastest(operation, candidates, reference=reference)

    def _fastest(
        self,
        operation: tuple[object, ...],
        candidates: Mapping[str, Callable[[], Result]],
        view: Callable[[Result], object] | None = None,
        reference: Callable[[], Result] | None = None,
    ) -> str:
        x = self.x
        tolerance = _TOLERANCE_TF32 if _rounded(x) else _TOLERANCE[x.dtype]
        return choose_fastest((operation, self.place), candidates, x.device, tolerance, view, reference)


def contest_of(x: Tensor, weight: Tensor, arguments: Arguments, shape: Sequence[int] | None = None) -> Contest | None:
    """The contest at a convolution of x or, with `shape`, at a data gradient; None where nothing competes."""
    backends = choices("conv", x.device.type)
    if "triton" not in backends:
        return None
    places = table(x.device) if len(backends) > 1 else None
    # The environment is read once at most.
    measures = places is None and (len(backends) == 1 or enabled())
    if not (measures or places):
        return None
    place = _place(x, weight, arguments, shape)
    listed = None if measures else places.get(place)
    if not (measures or listed):
        return None
    kernels = implementation("conv", x.device.type, "triton")
    # A tensor that is channels_last and contiguous at once goes with the weight, as in PyTorch.
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    last = last and not (x.is_contiguous() and weight.is_contiguous())
    if not (last and x.numel() and x.dtype == weight.dtype and kernels.supports(x.dtype, weight, arguments)):
        return None
    return Contest(kernels, x, weight, arguments, place[1], place, listed)


def _place(x: Tensor, weight: Tensor, arguments: Arguments, shape: Sequence[int] | None) -> tuple[object, ...]:
    tensors = x.shape, None if shape is None else tuple(shape), weight.shape, weight.stride(), x.dtype
    return *tensors, tuple(arguments[0]), tuple(arguments[1]), _rounded(x), torch.backends.cudnn.benchmark


def _rounded(x: Tensor) -> bool:
    """Whether factors are rounded to TF32."""
    return x.dtype == torch.float32 and torch.backends.cudnn.conv.fp32_precision == "tf32"
