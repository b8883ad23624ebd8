"""Upsampling, padding and other maps between grids of pixels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gnfast.plan.op import Context, LinearCall, LinearMap, frozen
from gnfast.plan.ops.conv import Sizes
from gnfast.plan.records import records
from gnfast.plan.unseen import Like
from gnfast.rewriting.merges import whole_factor


@dataclass(frozen=True)
class Upsample(LinearMap):
    """Nearest-neighbour upsampling of h (B, C, H, W) by whole factors."""

    factor: Sizes

    def pullback(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor]:
        return (F.avg_pool2d(cotangent, self.factor, self.factor, divisor_override=1),)

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor:
        size = [extent * factor for extent, factor in zip(tangents[0].shape[2:], self.factor, strict=True)]
        return torch.ops.aten.upsample_nearest2d(tangents[0], size)

    def label(self) -> str:
        return f"upsample nearest ×{self.factor[0] if self.factor[0] == self.factor[1] else self.factor}"


@dataclass(frozen=True)
class Interpolate(LinearCall):
    """F.interpolate in any mode."""

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor:
        if not tangents[0].is_meta:
            return super().pushforward(ctx, *tangents)
        # Without data, PyTorch takes other modes apart, in Python and for up to 50 ms. The shape is the same.
        size, scale_factor, _, _, recompute_scale_factor, _ = self.args
        return F.interpolate(tangents[0], size, scale_factor, "nearest", None, recompute_scale_factor)


@dataclass(frozen=True)
class SampledAt(LinearMap):
    """h (B, C, …) at the places that the operand (B, …, 2 or 3) names: F.grid_sample, whose arguments follow."""

    mode: str
    padding_mode: str
    align_corners: bool

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor:
        return F.grid_sample(tangents[0], ctx.operands[0], self.mode, self.padding_mode, self.align_corners)

    def label(self) -> str:
        return f"grid_sample {self.mode}"


@records(F.interpolate, self_checked=True)
def _interpolate(
    trace, input, size=None, scale_factor=None, mode="nearest", align_corners=None, recompute_scale_factor=None,
    antialias=False,
):  # fmt: skip
    dims = input.dim() - 2
    input = trace.autocast(F.interpolate, input, 1, None, mode)
    # What nearest neighbours do not take, PyTorch refuses when it is run.
    plain = not antialias and align_corners is None
    factor = whole_factor(input.shape[2:], size, scale_factor) if plain else None
    if factor and mode in ("nearest", "nearest-exact") and dims == 2:
        return trace.emit(Upsample(factor), [input])
    if factor and mode == "nearest" and dims == 1:
        return trace.emit(Upsample((1, *factor)), [input.unsqueeze(2)]).squeeze(2)
    args = frozen((size, scale_factor, mode, align_corners, recompute_scale_factor, antialias))
    return trace.emit(Interpolate(F.interpolate, args), [input])


@records(F.grid_sample)
def _grid_sample(trace, input, grid, mode="bilinear", padding_mode="zeros", align_corners=None):
    options = (mode, padding_mode, bool(align_corners))
    if trace.depends_on_x(grid) or grid.requires_grad:
        return trace.curved(F.grid_sample, input, grid, *options)
    dtype = trace.autocasts_to(F.grid_sample, input, Like((*[1] * (grid.dim() - 1), grid.shape[-1]), grid.dtype))
    op = SampledAt(*options)
    return trace.emit(op, [trace.cast(input, dtype)], [grid.to(dtype)])


@records(F.pad)
def _pad(trace, input, pad, mode="constant", value=None):
    pad = tuple(pad)
    mixes = len(pad) // 2 >= input.dim()
    if mode != "constant":
        input = trace.autocast(F.pad, input, (0,) * len(pad), mode)
        return trace.emit(LinearCall(F.pad, (pad, mode)), [input])
    cropping = LinearCall(F.pad, (tuple(-extent for extent in pad),))
    padded = trace.emit(LinearCall(F.pad, (pad,), transposed=cropping), [input], mixes=mixes)
    if not value:
        return padded
    shape = tuple(input.shape) if mixes else (1, *input.shape[1:])
    inside = torch.zeros(shape, dtype=input.dtype, device=input.device)
    return padded + F.pad(inside, pad, value=value)


@records(F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle, F.unfold, told=True)
def _grid_map(function, trace, input, *args, **kwargs):
    batched = trace.batched(input, 4)
    y = trace.emit(LinearCall(function, frozen(args), frozen(kwargs)), [batched])
    return y if batched is input else y.squeeze(0)
