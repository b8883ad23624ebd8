"""Random critics: programs of small steps that every engine of gradients must agree on.

An operation is one function of (choices, weights, tensors). While a critic is drawn, its choices are those of
Hypothesis or of a seed and are written down; when the critic runs, the same function reads them back. What is written
down is the program: a counterexample prints as the list of its steps and shrinks to the few that matter.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

DTYPE = torch.float64
CLASSES = 4
# Entries per sample that a step may produce, so that thousands of networks take a minute.
LARGEST = 480
# Factors and shifts at which no two pieces of an activation meet.
NUMBERS = (0.7, -0.6, 1.3, 0.37, -1.1)


class Inapplicable(Exception):
    """Raised by an operation that cannot take the tensor it is offered."""


def require(condition: bool) -> None:
    if not condition:
        raise Inapplicable


Below = Callable[[int], int]
"""Draws a number: from 0 to less than the count that it is given."""


class Drawing:
    """Choices that are drawn; `made` has what they were."""

    def __init__(self, below: Below, writable: bool = False) -> None:
        self.below = below
        self.writable = writable
        self.made: dict[str, Any] = {}

    def pick(self, *options: Any) -> Any:
        """A choice that the program need not remember."""
        require(bool(options))
        return options[self.below(len(options))] if len(options) > 1 else options[0]

    def __call__(self, name: str, *options: Any) -> Any:
        self.made[name] = self.pick(*options)
        return self.made[name]

    def each(self, name: str, options: Sequence[Sequence[Any]]) -> tuple[Any, ...]:
        self.made[name] = tuple(self.pick(*these) for these in options)
        return self.made[name]

    def inplace(self) -> bool:
        """Whether to write into the first tensor; only where autograd lets one."""
        return self("inplace", *((False, True) if self.writable else (False,)))


class Replay:
    """The same choices again."""

    def __init__(self, made: dict[str, Any]) -> None:
        self.made = made

    def __call__(self, name: str, *options: Any) -> Any:
        return self.made[name]

    def each(self, name: str, options: Sequence[Sequence[Any]]) -> tuple[Any, ...]:
        return self.made[name]

    def inplace(self) -> bool:
        return self.made["inplace"]


class Weights(nn.Module):
    """What a step owns: made when the step first asks for it, found by its name afterwards."""

    labels: Tensor
    given: Tensor
    """(B,), what the critic was given beside x and labels."""

    def parameter(self, name: str, *shape: int) -> nn.Parameter:
        if name not in self._parameters:
            self.register_parameter(name, nn.Parameter(torch.randn(shape, dtype=DTYPE)))
        return self._parameters[name]

    def positive(self, name: str, *shape: int) -> nn.Parameter:
        if name not in self._parameters:
            self.register_parameter(name, nn.Parameter(torch.rand(shape, dtype=DTYPE) + 0.5))
        return self._parameters[name]

    def buffer(self, name: str, *shape: int) -> Tensor:
        if name not in self._buffers:
            self.register_buffer(name, torch.rand(shape, dtype=DTYPE) + 0.2)
        return self._buffers[name]

    def other_dtype(self, name: str, *shape: int) -> Tensor:
        """A float32 parameter: what it meets is computed in float64 all the same."""
        if name not in self._parameters:
            self.register_parameter(name, nn.Parameter(torch.rand(shape) + 0.5))
        return self._parameters[name]

    def whole(self, name: str, *shape: int) -> Tensor:
        if name not in self._buffers:
            self.register_buffer(name, torch.randint(1, 4, shape))
        return self._buffers[name]

    def derived(self, name: str, *shape: int) -> Tensor:
        """No leaf of autograd's graph."""
        return self.positive(name, *shape).log().exp()

    def module(self, name: str, kind: Callable[..., nn.Module], *args: Any, norm: str | None = None, **kwargs: Any):
        if name not in self._modules:
            module = kind(*args, **kwargs, dtype=DTYPE)
            if norm == "spectral":
                module = parametrizations.spectral_norm(module)
            elif norm == "weight":
                module = parametrizations.weight_norm(module)
            self.add_module(name, module.train(self.training))
        return self._modules[name]

    def embedded(self, name: str, *shape: int) -> Tensor:
        """A learned tensor per sample, chosen by the sample's label."""
        table = self.module(name, nn.Embedding, CLASSES, math.prod(shape))
        return table(self.labels).view(-1, *shape)


OPERATIONS: dict[str, Callable[..., Tensor]] = {}
# Operations whose backward reads nothing that it was given, so that their input may be written into later.
SAVES_NOTHING: set[str] = set()
# Operations whose backward reads what they were given but not what they returned.
SAVES_INPUT: set[str] = set()
# Operations whose result may be a view.
VIEWS: set[str] = set()


def operation(*traits: set[str]) -> Callable[..., Any]:
    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        name = function.__name__.rstrip("_")
        OPERATIONS[name] = function
        for trait in traits:
            trait.add(name)
        return function

    return register


def space(h: Tensor) -> tuple[int, ...]:
    require(3 <= h.dim() <= 5)
    return tuple(h.shape[2:])


def divisors(number: int, largest: int = 4) -> list[int]:
    return [d for d in range(1, largest + 1) if number % d == 0]


def axis(c, h: Tensor, name: str = "dim", smallest: int = 1) -> int:
    """An axis other than the batch's, counted from either end."""
    axes = [dim for dim in range(1, h.dim()) if h.shape[dim] >= smallest]
    return c(name, *axes, *(dim - h.dim() for dim in axes))


@operation(SAVES_INPUT)
def conv(c, w, h):
    sizes = space(h)
    groups = c("groups", 1, *divisors(h.shape[1]))
    kernel = c.each("kernel", [(3, 1, 2)] * len(sizes))
    dilation = c.each("dilation", [(1, 1, 2)] * len(sizes))
    spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    mode = c("mode", "zeros", "zeros", "zeros", "reflect", "replicate", "circular")
    most = [2 if mode == "zeros" else min(size - (mode == "reflect"), 2) for size in sizes]
    if c("named", False, False, False, True):
        padding = c("padding", "same", "valid")
        halves = [(span + 1) // 2 if padding == "same" else 0 for span in spans]
        require(all(half <= (m if mode != "zeros" else 9) for half, m in zip(halves, most, strict=True)))
        require(padding == "same" or all(span < size for span, size in zip(spans, sizes, strict=True)))
    else:
        fits = [[p for p in (1, 0, 2) if p <= m and s + 2 * p > n] for m, s, n in zip(most, sizes, spans, strict=True)]
        padding = c.each("padding", fits)
    stride = c.each("stride", [(1,) if padding == "same" else (1, 1, 2, 3)] * len(sizes))
    layer = w.module(
        "conv",
        (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(sizes) - 1],
        *(h.shape[1], groups * c("per_group", 2, 1, 3), kernel),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        padding_mode=mode,
        bias=c("bias", True, False),
        norm=c("norm", None, None, None, "spectral", "weight"),
    )
    return layer(h)


@operation(SAVES_INPUT)
def plain_conv(c, w, h):
    """A convolution that may merge with its neighbours."""
    require(h.dim() == 4)
    groups = c("groups", *divisors(h.shape[1]))
    kernel, padding = c("kernel", (3, 3), (1, 1), (2, 3)), c("padding", 1, 0)
    require(all(size + 2 * padding >= k for size, k in zip(h.shape[2:], kernel, strict=True)))
    out = groups * c("per_group", 2, 1, 3)
    return w.module("conv", nn.Conv2d, h.shape[1], out, kernel, 1, padding, 1, groups, bias=c("bias", True, False))(h)


@operation(SAVES_INPUT)
def plain_pool(c, w, h):
    """An average pooling that may merge with what is before it."""
    require(h.dim() == 4)
    kernel = c("kernel", (2, 2), (1, 2), (2, 1), (3, 2))
    require(all(size >= k for size, k in zip(h.shape[2:], kernel, strict=True)))
    return F.avg_pool2d(h, kernel)


@operation(SAVES_NOTHING)
def plain_upsample(c, w, h):
    """An upsampling that may merge with what is behind it."""
    require(h.dim() == 4)
    return F.interpolate(h, scale_factor=c("scale_factor", 2, (1, 2), (3, 1)), mode="nearest")


@operation(SAVES_INPUT)
def conv_transpose(c, w, h):
    sizes = space(h)
    groups = c("groups", 1, *divisors(h.shape[1]))
    kernel = c.each("kernel", [(3, 1, 2, 4)] * len(sizes))
    stride = c.each("stride", [(1, 2, 3)] * len(sizes))
    dilation = c.each("dilation", [(1, 1, 2)] * len(sizes))
    extra = c.each("output_padding", [range(max(s, d)) for s, d in zip(stride, dilation, strict=True)])
    full = [
        (n - 1) * s + d * (k - 1) + 1 + e for n, s, d, k, e in zip(sizes, stride, dilation, kernel, extra, strict=True)
    ]
    padding = c.each("padding", [[p for p in (0, 1, 2) if n > 2 * p] for n in full])
    layer = w.module(
        "conv",
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[len(sizes) - 1],
        *(h.shape[1], groups * c("per_group", 2, 1), kernel, stride, padding, extra, groups),
        bias=c("bias", True, False),
        dilation=dilation,
        norm=c("norm", None, None, None, "spectral"),
    )
    return layer(h)


@operation(SAVES_INPUT)
def linear(c, w, h):
    require(h.dim() >= 2)
    norm = c("norm", None, None, None, "spectral", "weight", "centred")
    out, bias = c("out", 4, 1, 3, 7), c("bias", True, False, *(["per sample"] if h.dim() == 2 else []))
    if norm == "centred" or bias == "per sample":
        weight = w.parameter("weight", out, h.shape[-1]) * h.shape[-1] ** -0.5
        shift = w.embedded("bias", out) if bias == "per sample" else w.parameter("bias", out) if bias else None
        return F.linear(h, weight - 0.5 * weight.mean(1, keepdim=True), shift)
    return w.module("linear", nn.Linear, h.shape[-1], out, bias=bias, norm=norm)(h)


@operation(SAVES_INPUT)
def matmul(c, w, h):
    """Products with a matrix from either side, in the forms in which critics write them."""
    require(h.dim() >= 2)
    n, k, out = h.shape[-2], h.shape[-1], c("out", 3, 1, 4)
    kinds = ["right", "tied", "vector"] if h.dim() > 2 else ["right", "tied", "addmm", "projected"]
    kinds += ["left", "left of each", "einsum", "einsum sums"] if h.dim() > 2 else []
    kinds += ["bmm", "baddbmm"] if h.dim() == 3 else []
    kind = c("kind", *kinds)
    scale = k**-0.5
    if kind == "right":
        return h @ (w.parameter("matrix", k, out) * scale)
    if kind == "tied":
        matrix = w.parameter("matrix", k, out) * scale
        return F.relu(h @ matrix) @ matrix.mT
    if kind == "vector":
        return torch.matmul(h, w.parameter("vector", k) * scale)
    if kind == "addmm":
        return torch.addmm(
            w.parameter("shift", out), h, w.parameter("matrix", k, out), beta=c("beta", 1, 0.7), alpha=scale
        )
    if kind == "projected":
        return torch.einsum("bk,bkm->bm", h, w.embedded("matrices", k, out)) * scale
    if kind == "left":
        return w.parameter("matrix", out, n) @ h * n**-0.5
    if kind == "left of each":
        return torch.matmul(w.embedded("matrices", *h.shape[1:-2], out, n), h) * n**-0.5
    if kind == "bmm":
        return torch.bmm(h, w.embedded("matrices", k, out)) * scale
    if kind == "baddbmm":
        return torch.baddbmm(w.embedded("shift", n, out), h, w.embedded("matrices", k, out), alpha=scale)
    inner = "uvwxy"[: h.dim() - 1]
    if kind == "einsum":
        place = c("place", *range(h.dim() - 1))
        matrix = w.parameter("matrix", h.shape[place + 1], out) * h.shape[place + 1] ** -0.5
        return torch.einsum(f"b{inner},{inner[place]}z->b{inner.replace(inner[place], 'z')}", h, matrix)
    place = c("place", *range(h.dim() - 1))
    vector = w.parameter("vector", h.shape[place + 1])
    return torch.einsum(f"b{inner},{inner[place]}->b{inner[place]}", h, vector) * (2 / math.prod(h.shape[1:])) ** 0.5


@operation(SAVES_INPUT)
def batch_norm(c, w, h):
    # PyTorch's own backward in eval mode is wrong for images with an axis of size 1 in unusual strides.
    require(2 <= h.dim() <= 5 and (h.dim() < 4 or 1 not in h.shape))
    kind = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[h.dim() - 2]
    new = "norm" not in w._modules
    norm = w.module("norm", kind, h.shape[1], affine=c("affine", True, False)).eval()
    if new:
        norm.running_mean.normal_(0, 0.3)
        norm.running_var.uniform_(0.5, 1.5)
        for parameter in norm.parameters():
            nn.init.normal_(parameter, 0.5)
    return norm(h)


@operation()
def dropout(c, w, h):
    # PyTorch draws a mask in the order of memory, which the recording does not follow.
    require(2 <= h.dim() <= 5 and h.is_contiguous())
    kinds = {3: ["dropout1d"], 4: ["dropout2d"], 5: ["dropout3d"]}.get(h.dim(), [])
    return getattr(F, c("kind", "dropout", *kinds))(h, c("p", 0.3, 0.0), w.training, c.inplace())


def _windows(c, sizes, dilated=False):
    kernel = c.each("kernel", [[k for k in (2, 1, 3) if k <= size] for size in sizes])
    stride = (
        c.each("stride", [(None, 1, 2, 3)]) * len(sizes)
        if c("even", True, False)
        else c.each("stride", [(1, 2, 3)] * len(sizes))
    )
    stride = None if stride[0] is None else stride
    padding = c.each("padding", [range(k // 2 + 1) for k in kernel])
    if not dilated:
        return kernel, stride, padding, c("ceil_mode", False, True)
    fits = [[d for d in (1, 2) if d * (k - 1) < n + 2 * p] for k, n, p in zip(kernel, sizes, padding, strict=True)]
    return kernel, stride, padding, c.each("dilation", fits), c("ceil_mode", False, True)


@operation(SAVES_INPUT)
def avg_pool(c, w, h):
    sizes = space(h)
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(sizes) - 1]
    kernel, stride, padding, ceil_mode = _windows(c, sizes)
    more = {"divisor_override": c("divisor", None, None, 3)} if len(sizes) > 1 else {}
    stride = kernel if stride is None and len(sizes) == 1 else stride
    return pool(h, kernel, stride, padding, ceil_mode, c("count_include_pad", True, False), **more)


@operation()
def max_pool(c, w, h):
    sizes = space(h)
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(sizes) - 1]
    kernel, stride, padding, dilation, ceil_mode = _windows(c, sizes, dilated=True)
    if c("indices", False, True):
        return pool(h, kernel, stride, padding, dilation, ceil_mode=ceil_mode, return_indices=True)[0]
    return pool(h, kernel, stride, padding, dilation, ceil_mode)


@operation()
def adaptive_pool(c, w, h):
    sizes = space(h)
    pools = (
        (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
        (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
    )
    own = (None,) if len(sizes) > 1 else ()
    given = c.each("size", [(1, 2, 3, *own)] * len(sizes))
    return pools[c("max", False, True)][len(sizes) - 1](h, given)


@operation(SAVES_NOTHING)
def interpolate(c, w, h):
    sizes = space(h)
    modes = ["nearest", "nearest", "nearest-exact", "area", ("linear", "bilinear", "trilinear")[len(sizes) - 1]]
    mode = c("mode", *modes, *(["bicubic"] if len(sizes) == 2 else []))
    more = {"align_corners": c("align_corners", False, True)} if mode.endswith(("linear", "cubic")) else {}
    if c("by_size", False, True):
        return F.interpolate(h, c.each("size", [(size, 2 * size, 3, 5) for size in sizes]), mode=mode, **more)
    factor = c("scale_factor", 2, 2.0, (2.0,) * len(sizes), 1.5, *((3, 1)[: len(sizes)],) * (len(sizes) == 2))
    if c("recomputed", False, True):
        more["recompute_scale_factor"] = True
    return F.interpolate(h, scale_factor=factor, mode=mode, **more)


@operation(SAVES_INPUT)
def pad(c, w, h):
    require(2 <= h.dim() <= 5)
    mode = c("mode", "constant", "constant", "reflect", "replicate", "circular")
    if mode == "constant":
        axes = c("axes", *range(1, h.dim()))
        ends = [(0, 1, 2, *([-1] if h.shape[-1 - dim] > 2 else [])) for dim in range(axes) for _ in range(2)]
        amounts, value = c.each("pad", ends), c("value", None, 0.0, 0.45)
        return F.pad(h, amounts, value=value) if value is not None else F.pad(h, amounts)
    sizes = space(h)
    most = [size - (mode == "reflect") for size in reversed(sizes)]
    return F.pad(h, c.each("pad", [range(min(m, 2) + 1) for m in most for _ in range(2)]), mode)


@operation(VIEWS, SAVES_NOTHING)
def shuffle(c, w, h):
    require(h.dim() == 4)
    channels, height, width = h.shape[1:]
    kinds = ["channels"] if channels % 2 == 0 else []
    kinds += ["up"] if channels % 4 == 0 else []
    kinds += ["down"] if height % 2 == 0 and width % 2 == 0 else []
    kind = c("kind", *kinds)
    return {"channels": F.channel_shuffle, "up": F.pixel_shuffle, "down": F.pixel_unshuffle}[kind](h, 2)


@operation(VIEWS, SAVES_NOTHING)
def unfold(c, w, h):
    if h.dim() == 4 and c("patches", True, False):
        kernel = c.each("kernel", [[k for k in (2, 1, 3) if k <= size] for size in h.shape[2:]])
        return F.unfold(h, kernel, padding=c("padding", 0, 1), stride=c("stride", 1, 2))
    dim = axis(c, h, smallest=2)
    return h.unfold(dim, 2, c("step", 1, 2))


@operation(VIEWS, SAVES_NOTHING)
def reshape(c, w, h):
    batch, *rest = h.shape
    kinds = ["flatten", "unsqueeze", "merge last"] if h.dim() > 2 else ["unsqueeze"]
    kinds += ["split channels"] if h.shape[1] % 2 == 0 and h.dim() < 5 else []
    kinds += ["squeeze"] if any(n == 1 for n in rest) and h.dim() > 2 else []
    kind = c("kind", *kinds)
    if kind == "flatten":
        return h.flatten(1) if c("how", True, False) else torch.reshape(h, (batch, -1))
    if kind == "merge last":
        return h.reshape(*h.shape[:-2], -1) if c("how", True, False) else h.flatten(-2)
    if kind == "split channels":
        if c("how", True, False):
            return h.unflatten(1, (2, rest[0] // 2))
        return h.reshape(batch, 2, rest[0] // 2, *rest[1:])
    if kind == "unsqueeze":
        require(h.dim() < 5)
        return h.unsqueeze(c("dim", *range(1, h.dim() + 1), -1))
    return h.squeeze(c("dim", *(dim for dim in range(1, h.dim()) if h.shape[dim] == 1)))


@operation(VIEWS, SAVES_NOTHING)
def permute(c, w, h):
    require(h.dim() >= 3)
    kind = c("kind", "permute", "transpose", "movedim", "mT", "swapaxes", "einsum")
    if kind == "einsum":
        return torch.einsum({3: "bij->bji", 4: "bcij->bcji", 5: "bcdij->bcdji"}[h.dim()], h)
    if kind == "mT":
        return h.mT
    if kind == "permute":
        left, order = list(range(1, h.dim())), []
        for place in range(h.dim() - 1):
            order.append(c(f"dim{place}", *left))
            left.remove(order[-1])
        return h.permute(0, *order)
    first, second = axis(c, h, "first"), axis(c, h, "second")
    return getattr(torch, kind)(h, first, second)


@operation(VIEWS, SAVES_NOTHING)
def index(c, w, h):
    """Slices, single entries and new axes."""
    key = [slice(None)]
    for place, size in enumerate(h.shape[1:]):
        options = [slice(None), slice(None), slice(None, None, 2)]
        options += [slice(1, None), slice(0, -1), -1] if size > 1 else []
        key.append(c(f"dim{place + 1}", *options))
    require(h.dim() - sum(isinstance(entry, int) for entry in key) >= 2)
    if c("new_axis", False, False, True):
        key.append(None)
    if c("ellipsis", False, True):
        while key[-1] == slice(None) and len(key) > 1:
            key.pop()
        key.append(Ellipsis)
    require(h.dim() + (None in key) <= 5)
    return h[tuple(key)]


@operation(VIEWS, SAVES_NOTHING)
def part(c, w, h):
    dim = axis(c, h, smallest=2)
    size = h.shape[dim]
    kind = c("kind", "chunk", "split", "narrow", "select", "unbind", "tensor_split")
    if kind == "chunk":
        return h.chunk(2, dim)[c("which", 0, 1)]
    if kind == "split":
        return torch.split(h, [1, size - 1], dim=dim)[c("which", 0, 1)]
    if kind == "narrow":
        return h.narrow(dim, c("start", 0, 1), size - 1)
    if kind == "tensor_split":
        return torch.tensor_split(h, (1,), dim=dim)[c("which", 0, 1)]
    require(h.dim() > 2)
    return h.select(dim, c("which", 0, 1, -1)) if kind == "select" else h.unbind(dim)[c("which", 0, 1)]


@operation(VIEWS, SAVES_NOTHING)
def rearrange(c, w, h):
    dim = axis(c, h)
    kinds = ["flip", "roll", "repeat", "repeat_interleave", "tile", "expand"]
    kind = c("kind", *kinds, *(["rot90"] if h.dim() > 2 else []))
    if kind == "flip":
        return h.flip(dim) if c("method", True, False) else torch.flip(h, (dim,))
    if kind == "roll":
        return torch.roll(h, c("by", 1, 2, -1), dim)
    if kind == "repeat_interleave":
        return h.repeat_interleave(2, dim)
    if kind == "rot90":
        return torch.rot90(h, c("by", 1, 2), (h.dim() - 2, h.dim() - 1)) if h.dim() > 3 else h.rot90(1, (1, 2))
    times = [1] * h.dim()
    times[dim] = 2
    if kind == "expand":
        require(h.dim() < 5)
        return h.unsqueeze(-1).expand(*[-1] * h.dim(), 2)
    return h.repeat(*times) if kind == "repeat" else h.tile(times)


@operation(SAVES_NOTHING)
def reordered(c, w, h):
    """Parts of a tensor, each on its own way and joined again."""
    dim = axis(c, h, smallest=2)
    parts = list(h.chunk(2, dim) if c("cut", True, False) else h.split((h.shape[dim] - 1, 1), dim))
    parts[0] = parts[0] * c("by", *NUMBERS)
    return torch.cat(parts[::-1], dim)


@operation(SAVES_NOTHING)
def stacked(c, w, h):
    dim = axis(c, h)
    dim = dim if dim > 0 else dim + h.dim()
    parts = torch.unbind(h, dim) if c("constant", True, False) else [h.select(dim, 0)]
    require(1 < len(parts) + 1 <= 5)
    return torch.stack([*parts, torch.full_like(parts[0], c("with", *NUMBERS))], dim)


@operation(VIEWS, SAVES_NOTHING)
def layout(c, w, h):
    """The same entries in other memory, or in the same."""
    kind = c("kind", "clone", "contiguous", *(["channels_last"] if h.dim() == 4 else []))
    if kind == "clone":
        return h.clone()
    return h.contiguous(memory_format=torch.channels_last if kind == "channels_last" else torch.contiguous_format)


def _operand(c, w, h, make):
    """A constant that broadcasts against h without moving its axes."""
    kind = c("shape", "channels", "entry", "number", "all", "last", "per sample")
    if kind == "channels":
        return make("operand", h.shape[1], *[1] * (h.dim() - 2))
    if kind == "entry":
        return make("operand", *h.shape[1:])
    if kind == "number":
        return make("operand")
    if kind == "last":
        return make("operand", h.shape[-1]) if h.dim() > 1 else make("operand")
    if kind == "per sample":
        return w.embedded("table", h.shape[1], *[1] * (h.dim() - 2))
    return make("operand", *[1] * h.dim())


@operation(SAVES_NOTHING)
def number(c, w, h):
    by = c("by", *NUMBERS)
    kind = c("kind", "add", "multiply", "divide", "subtract", "from", "negate", "add alpha")
    if c.inplace():
        if kind == "add":
            h += by
        elif kind == "multiply":
            h *= by
        elif kind == "divide":
            h /= by
        elif kind == "add alpha":
            h.add_(1, alpha=by)
        elif kind == "negate":
            h.neg_()
        else:
            h -= by
        return h
    if kind == "add alpha":
        return torch.add(h, 2, alpha=by)
    return {
        "add": lambda: by + h,
        "multiply": lambda: h * by,
        "divide": lambda: h / by,
        "subtract": lambda: h - by,
        "from": lambda: by - h,
        "negate": lambda: -h,
    }[kind]()


@operation(SAVES_NOTHING)
def shift(c, w, h):
    operand = _operand(c, w, h, getattr(w, c("made", "parameter", "buffer", "derived", "other_dtype", "whole")))
    kind = c("kind", "add", "subtract", "from", "alpha")
    if c.inplace():
        return h.sub_(operand, alpha=2) if kind == "alpha" else h.add_(operand)
    if kind == "alpha":
        return torch.sub(operand, h, alpha=0.7) if c("reversed", False, True) else h.add(operand, alpha=0.7)
    return {"add": lambda: h + operand, "subtract": lambda: h - operand, "from": lambda: operand - h}[kind]()


@operation(SAVES_INPUT)
def scale(c, w, h):
    operand = _operand(c, w, h, getattr(w, c("made", "positive", "buffer", "derived", "other_dtype", "whole")))
    if c.inplace():
        h *= operand
        return h
    if c.made["shape"] != "per sample" and c("divide", False, True):
        return h / operand
    return operand * h if c("reversed", False, True) else h.mul(operand)


@operation(SAVES_NOTHING)
def noise(c, w, h):
    """Additions of what is made after h and does not depend on its values."""
    kind = c("kind", "zeros_like", "ones_like", "full_like", "new_full", "randn")
    if kind == "randn":
        return h + 0.3 * torch.randn(h.shape, dtype=h.dtype)
    made = h.new_full(h.shape, 0.21) if kind == "new_full" else getattr(torch, kind)(h, *[0.3] * (kind == "full_like"))
    return h + made if c("add", True, False) else torch.cat([made, h], 1)


@operation(SAVES_INPUT)
def counted(c, w, h):
    """A buffer that every forward moves on, before it is used."""
    count = w.whole("count")
    count += 1
    return h / count


@operation()
def masked(c, w, h):
    """The largest of the entries that a mask leaves."""
    dim = axis(c, h, smallest=2)
    mask = torch.zeros([n if at == dim % h.dim() else 1 for at, n in enumerate(h.shape)], dtype=h.dtype)
    mask.select(dim, c("hidden", 0, 1)).fill_(-math.inf)
    visible = h + mask
    kind = c("kind", "amax", "max", "topk", "maximum")
    if kind == "maximum":
        return torch.maximum(visible, 0.3 * h)
    return (
        visible.topk(1, dim)[0]
        if kind == "topk"
        else visible.max(dim, True)[0]
        if kind == "max"
        else visible.amax(dim, True)
    )


@operation(SAVES_INPUT)
def cast(c, w, h):
    """To another dtype and back: both ways round."""
    return h.float().double() if c("method", True, False) else h.to(torch.float32).to(h.dtype)


@operation(SAVES_NOTHING)
def centred(c, w, h):
    """h minus its mean, or plus its sum, over some axes of a sample."""
    dims = c("dims", *((dim,) for dim in range(1, h.dim())), tuple(range(1, h.dim())))
    if c("sum", False, True):
        return h + h.sum(dims, keepdim=True) / math.prod(h.shape[dim] for dim in dims)
    return h - 0.7 * h.mean(dims, keepdim=True)


@operation(SAVES_NOTHING)
def reduce(c, w, h):
    dim, keepdim = axis(c, h), c("keepdim", True, False)
    require(keepdim or h.dim() > 2)
    if c("mean", True, False):
        return h.mean(dim, keepdim)
    return torch.sum(h, dim=dim, keepdim=keepdim) * h.shape[dim] ** -0.5


@operation()
def choose(c, w, h):
    dim, keepdim = axis(c, h), c("keepdim", True, False)
    require(keepdim or h.dim() > 2)
    kind = c("kind", "max", "min", "median", "kthvalue", "amax", "amin", "sort", "topk")
    if kind in ("max", "min", "median"):
        return (
            getattr(torch, kind)(h, dim, keepdim)[0]
            if c("method", False, True)
            else getattr(h, kind)(dim=dim, keepdim=keepdim).values
        )
    if kind == "kthvalue":
        return h.kthvalue(c("k", 1, h.shape[dim]), dim, keepdim)[0]
    if kind in ("amax", "amin"):
        return getattr(torch, kind)(h, dim if c("one", True, False) else (dim,), keepdim)
    if kind == "sort":
        return torch.sort(h, dim, c("descending", False, True)).values
    return h.topk(c("k", 1, h.shape[dim]), dim, c("largest", True, False))[0]


@operation()
def group_sort(c, w, h):
    """GroupSort or maxout: sorted within groups of channels, or only the largest."""
    size = c("size", *(n for n in (2, 3, 4) if h.shape[1] % n == 0))
    groups = h.reshape(h.shape[0], h.shape[1] // size, size, *h.shape[2:])
    kind = c("kind", "sort", "max", "amax", "maximum")
    if kind == "sort":
        return groups.sort(2)[0].flatten(1, 2)
    if kind == "maximum":
        return torch.maximum(groups[:, :, 0], groups[:, :, -1])
    return groups.max(2)[0] if kind == "max" else groups.amax(2)


@operation()
def bound(c, w, h):
    """The larger or the smaller of h and a constant."""
    operand = _operand(c, w, h, getattr(w, c("made", "parameter", "buffer", "derived")))
    kind = getattr(torch, c("kind", "maximum", "minimum", "max", "min"))
    return kind(operand, h) if c("reversed", False, True) else kind(h, operand)


@operation(SAVES_NOTHING)
def where(c, w, h):
    """Some entries, others replaced."""
    mask = w.buffer("mask", *h.shape[1 if c("per sample", False, True) else 2 :]) > 0.6
    if c.inplace():
        return h.masked_fill_(mask, c("by", *NUMBERS))
    kind = c("kind", "fill", "number", "operand", "number first", "operand first")
    other = _operand(c, w, h, w.parameter) if kind.startswith("operand") else c("by", *NUMBERS)
    if kind == "fill":
        return h.masked_fill(mask, other)
    return torch.where(mask, other, h) if kind.endswith("first") else torch.where(mask, h, other)


@operation(SAVES_NOTHING)
def picked(c, w, h):
    """Entries along an axis, by constant indices."""
    dim = axis(c, h, smallest=2)
    dim %= h.dim()
    before, size = (slice(None),) * dim, h.shape[dim]
    kind = c("kind", "list", "array", "mask", "pairs", "index_select", "gather")
    if kind == "list":
        return h[(*before, [0, -1, 0])]
    if kind == "array":
        return h[(*before, np.arange(size)[::-1].copy())]
    if kind == "mask":
        return h[(*before, torch.arange(size) % 2 == 0)]
    if kind == "pairs":
        require(dim > 1)
        return h[(*before[1:], torch.tensor([0, 0, -1]), [1, 0, 1])]
    if kind == "index_select":
        return torch.index_select(h, dim, torch.tensor([size - 1, 0, 0]))
    shape = [*h.shape[:dim], 2, *h.shape[dim + 1 :]]
    return h.gather(dim, (torch.arange(math.prod(shape)) % size).reshape(shape))


@operation()
def norm(c, w, h):
    dim, keepdim = axis(c, h), c("keepdim", True, False)
    require(keepdim or h.dim() > 2)
    order = c("order", 1, math.inf, -math.inf)
    if c("method", False, True):
        return h.norm(order, dim, keepdim)
    return torch.linalg.vector_norm(h, order, dim, keepdim)


@operation()
def lerped(c, w, h):
    operand = _operand(c, w, h, w.parameter).expand(h.shape)
    weight = c("weight", *NUMBERS, None)
    return torch.lerp(h, operand, w.parameter("weight") if weight is None else weight)


ACTIVATIONS: dict[str, Callable[[Tensor, bool], Tensor]] = {
    "relu": lambda h, inplace: F.relu(h, inplace),
    "leaky_relu": lambda h, inplace: F.leaky_relu(h, 0.2, inplace),
    "torch.relu": lambda h, inplace: torch.relu_(h) if inplace else torch.relu(h),
    "abs": lambda h, inplace: h.abs_() if inplace else h.abs(),
    "leaky_relu above 1": lambda h, inplace: F.leaky_relu(h, 1.7, inplace),
    "hardtanh": lambda h, inplace: F.hardtanh(h, -0.9, 1.2, inplace),
    "relu6": lambda h, inplace: F.relu6(3 * h) if not inplace else F.relu6(h, True),
    "softshrink": lambda h, inplace: F.softshrink(h, 0.2),
    "hardshrink": lambda h, inplace: F.hardshrink(h, 0.3),
    "threshold": lambda h, inplace: F.threshold(h, -0.1, 0.4, inplace),
    "clamp": lambda h, inplace: h.clamp_(-0.8, 1.1) if inplace else h.clamp(-0.8, 1.1),
    "clamp from below": lambda h, inplace: torch.clamp(h, min=-0.3),
    "clamp from above": lambda h, inplace: h.clamp_max(0.8),
    "rrelu": lambda h, inplace: F.rrelu(h, 0.1, 0.4, training=False, inplace=inplace),
    "negative slope": lambda h, inplace: F.leaky_relu(h, -0.4),
}


@operation()
def activation(c, w, h):
    return ACTIVATIONS[c("kind", *ACTIVATIONS)](h, c.inplace())


@operation()
def prelu(c, w, h):
    require(h.dim() >= 2)
    return w.module("prelu", nn.PReLU, c("slopes", 1, h.shape[1]), init=c("init", 0.25, -0.3))(h)


def add(c, w, h, other):
    if c.inplace():
        h += other
        return h
    kind = c("kind", "add", "subtract", "alpha")
    # Never what cancels: a tensor minus itself has a gradient of nothing but rounding.
    return {
        "add": lambda: h + other,
        "subtract": lambda: 0.6 * h - other,
        "alpha": lambda: torch.sub(h, other, alpha=0.7),
    }[kind]()


def extremum(c, w, h, other):
    # Apart, so that copies of one tensor do not tie.
    return getattr(torch, c("kind", "maximum", "minimum", "max", "min"))(h, 0.83 * other + 0.017)


def concatenate(c, w, h, other):
    parts = [h, other] if c("order", True, False) else [other, h]
    if c("constant", False, True):
        shape = (h.shape[0], 1, *h.shape[2:])
        parts.insert(c("place", 0, 1, 2), w.embedded("constant", *shape[1:]))
    return torch.cat(parts, 1)


def blend(c, w, h, other):
    return torch.stack([h, other], 1).mean(1) if c("mean", True, False) else torch.stack([h, other], -1).amax(-1)


def ensemble(c, w, h, other):
    return getattr(torch, c("kind", "mean", "sum", "amax"))(torch.stack([h, 0.83 * other + 0.017]), 0)


def resized(c, w, h, other):
    """A skip connection of another size: fitted to h as U-Nets do it, then joined to its channels."""
    sizes = space(h)
    kind = c("kind", "nearest", "linear", "pool", "crop")
    if kind == "crop":
        other = F.pad(
            other, [n for own, new in zip(other.shape[:1:-1], sizes[::-1], strict=True) for n in (0, new - own)]
        )
    elif kind == "pool":
        other = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[len(sizes) - 1](other, sizes)
    else:
        linear_mode = ("linear", "bilinear", "trilinear")[len(sizes) - 1]
        other = F.interpolate(other, size=sizes, mode=linear_mode if kind == "linear" else kind)
    return torch.cat([h, other], 1)


PAIRS: dict[str, Callable[..., Tensor]] = {
    "add": add,
    "extremum": extremum,
    "concatenate": concatenate,
    "blend": blend,
    "ensemble": ensemble,
    "resized": resized,
}
SAVES_NOTHING.update(("add", "concatenate"))
SAVES_INPUT.add("resized")


def _pairs_with(name: str, h: Tensor, other: Tensor) -> bool:
    if h.dim() != other.dim() or h.dim() < 2 or other is h:
        return False
    if name == "resized":
        return 3 <= h.dim() <= 5
    if name == "concatenate":
        return h.shape[2:] == other.shape[2:]
    if name in ("add", "extremum") and h.shape != other.shape:
        return all(m in (n, 1) for n, m in zip(h.shape[1:], other.shape[1:], strict=True))
    return h.shape == other.shape and h.dim() < 5


def logit(c, w, *leaves):
    """One number per sample from one tensor or several."""
    total = None
    for place, h in enumerate(leaves):
        kinds = ["linear", "matrix", "sum", "einsum", "projection", "weight of one axis"]
        kinds += ["mean"] if h.dim() > 2 else []
        kind = c(f"kind{place}", *kinds)
        size = math.prod(h.shape[1:])
        if kind == "linear":
            y = w.module(f"linear{place}", nn.Linear, size, 1)(h.flatten(1))
        elif kind == "matrix":
            y = h.flatten(1) @ (w.parameter(f"matrix{place}", size, 1) * size**-0.5)
        elif kind == "sum":
            y = (h * w.parameter(f"weight{place}", *h.shape[1:])).sum(tuple(range(1, h.dim())))[:, None] * size**-0.5
        elif kind == "einsum":
            y = torch.einsum("bi,i->b", h.flatten(1), w.parameter(f"vector{place}", size) * size**-0.5).unsqueeze(1)
        elif kind == "weight of one axis":
            y = F.linear(h.flatten(1), w.parameter(f"vector{place}", size) * size**-0.5)[:, None]
        elif kind == "projection":
            y = (h.flatten(1) * w.embedded(f"classes{place}", size)).sum(1, keepdim=True) * size**-0.5
        else:
            y = w.module(f"mean{place}", nn.Linear, h.shape[1], 1)(h.mean(tuple(range(2, h.dim()))))
        total = y if total is None else total + y
    shape = c("shape", "(B, 1)", "(B,)", "(B, 1, 1, 1)")
    total = total.squeeze(1) if shape == "(B,)" else total.view(-1, 1, 1, 1) if shape == "(B, 1, 1, 1)" else total
    bent = c("bent", None, None, "leaky_relu", "prelu", "bounded")
    if bent == "leaky_relu":
        return F.leaky_relu(total, 0.3) + 0.2
    if bent == "bounded":
        return torch.maximum(total, w.parameter("bound"))
    return total if bent is None else w.module("prelu", nn.PReLU)(total)


def _mixed(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Marks a function that is different from an affine one only where there are samples to mix."""
    function.mixes = True
    return function


def _attention(h: Tensor) -> Tensor:
    tokens = h.flatten(1).unsqueeze(2)
    return (torch.softmax(tokens @ tokens.mT, -1) @ tokens).view(h.shape)


def _swapped(h: Tensor) -> Tensor:
    require(h.shape[0] == h.shape[1])
    return h.transpose(0, 1)


SPOILERS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "elu": F.elu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "softmax": lambda h: h.softmax(1),
    "square": lambda h: h * h,
    "square by power": lambda h: h**2,
    "product": lambda h: h * h.mean(tuple(range(1, h.dim())), keepdim=True),
    "quotient": lambda h: h / (h.abs().sum(tuple(range(1, h.dim())), keepdim=True) + 1),
    "attention": _attention,
    "layer norm": lambda h: F.layer_norm(h, h.shape[1:]),
    "detached product": lambda h: h * h.detach().abs().mean(),
    "flip": _mixed(lambda h: h.flip(0)),
    "roll": _mixed(lambda h: h.roll(1, 0)),
    "reordered": _mixed(lambda h: h[[*range(1, len(h)), 0]]),
    "mean over samples": _mixed(lambda h: h - h.mean(0, keepdim=True)),
    "largest of the samples": _mixed(lambda h: h.amax(0, keepdim=True) - h),
    "sorted samples": _mixed(lambda h: h.sort(0)[0]),
    "first sample": _mixed(lambda h: h - h[:1]),
    "swapped axes": _mixed(_swapped),
    "reshaped across samples": _mixed(lambda h: h.reshape(-1, len(h)).mT.reshape(h.shape)),
    "batch norm": _mixed(lambda h: F.batch_norm(h, None, None, training=True)),
    "samples in pairs": _mixed(lambda h: torch.cat([h[1:], h[:1]])),
}


def spoiled(c, w, h):
    spoiler = c("by", *(name for name, f in SPOILERS.items() if h.shape[0] > 1 or not hasattr(f, "mixes")))
    if spoiler == "batch norm":
        require(h.dim() >= 2 and h[:, 0].numel() > 1)
        norm = w.module(
            "norm", (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[h.dim() - 2], h.shape[1]
        )
        return norm.train()(h)
    return SPOILERS[spoiler](h)


def curved(c, w, h):
    """What spoils any network."""
    return h.tanh()


RUNNERS = {**OPERATIONS, **PAIRS, "logit": logit, "spoiled": spoiled, "curved": curved}


@dataclass(frozen=True)
class Step:
    """%output = name(%inputs, arguments), with the weights of step `owner`."""

    name: str
    inputs: tuple[int, ...]
    output: int
    owner: int
    arguments: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        shown = [f"%{value}" for value in self.inputs]
        shown += [f"{name}={getattr(value, '__name__', value)!s}" for name, value in self.arguments.items()]
        shared = f"  # weights of %{self.owner}" if self.owner != self.output else ""
        return f"%{self.output} = {self.name}({', '.join(shown)}){shared}"


class Critic(nn.Module):
    """A drawn program with its weights: x (B, ...), labels (B,) and another tensor (B,) ↦ one logit per sample."""

    def __init__(self, shape: tuple[int, ...], training: bool, seed: int) -> None:
        super().__init__()
        self.shape, self.seed = shape, seed
        self.steps: list[Step] = []
        self.weights = nn.ModuleDict()
        self.last_uses: list[list[int]] = []
        self.train(training)

    def close(self) -> None:
        """Notes after which step each tensor is let go, as the locals of a handwritten forward would be."""
        last = {}
        for place, step in enumerate(self.steps):
            last.update(dict.fromkeys((*step.inputs, step.output), place))
        last.pop(self.steps[-1].output)
        self.last_uses = [[value for value, at in last.items() if at == place] for place in range(len(self.steps))]

    def forward(self, x: Tensor, labels: Tensor, given: Tensor | None = None) -> Tensor:
        values = {0: x}
        for step, last in zip(self.steps, self.last_uses, strict=True):
            weights = self.weights[str(step.owner)]
            weights.labels, weights.given = labels, given
            run, choices = RUNNERS[step.name], Replay(step.arguments)
            values[step.output] = run(choices, weights, *(values[i] for i in step.inputs))
            for value in last:
                del values[value]
        return values[step.output]

    def __repr__(self) -> str:
        head = f"x {self.shape}, {'train' if self.training else 'eval'}, seed {self.seed}"
        return "\n    ".join([f"Critic({head}):", *map(str, self.steps)]) + "\n"


class _Program:
    """A critic while it is drawn: what is alive, what shares memory, what autograd has saved."""

    def __init__(self, below: Below, critic: Critic, x: Tensor, labels: Tensor, given: Tensor) -> None:
        self.below, self.critic, self.labels, self.given = below, critic, labels, given
        self.values = {0: x}
        self.group = {0: 0}
        self.alive = [0]
        self.saved = {0}

    def append(self, name: str, inputs: Sequence[int], owner: Step | None = None) -> bool:
        """Draws and runs a step; False where it does not apply."""
        given = [self.values[i] for i in inputs]
        output = max(self.values) + 1
        weights = Weights().train(self.critic.training) if owner is None else self.critic.weights[str(owner.owner)]
        weights.labels, weights.given = self.labels, self.given
        group = self.group[inputs[0]]
        writable = group not in self.saved and group not in [self.group[i] for i in inputs[1:]]
        writable &= not any(stride == 0 for stride, n in zip(given[0].stride(), given[0].shape, strict=True) if n > 1)
        choices = Drawing(self.below, writable) if owner is None else Replay(owner.arguments)
        try:
            with torch.no_grad():
                result = RUNNERS[name](choices, weights, *given)
        except Inapplicable:
            return False
        fits = 2 <= result.dim() <= 5 and 0 < result[0].numel() <= LARGEST
        if name != "logit" and not fits:
            return False
        step = Step(name, tuple(inputs), output, owner.owner if owner else output, choices.made)
        if owner is None:
            self.critic.weights[str(output)] = weights
        self.critic.steps.append(step)
        written = step.arguments.get("inplace", False)
        shares = name in VIEWS or result.untyped_storage().data_ptr() == given[0].untyped_storage().data_ptr()
        self.values[output] = result
        self.group[output] = group if shares else output
        if written:
            # Autograd and the recorder want no other view of it from now on.
            self.alive = [value for value in self.alive if self.group[value] != group]
        self.alive.append(output)
        if name in ("unfold", "part"):
            # Nothing may be written into entries that overlap, and into one of several parts.
            self.saved.add(self.group[output])
        if name not in SAVES_NOTHING:
            self.saved.update(self.group[value] for value in inputs)
            if name not in SAVES_INPUT:
                self.saved.add(self.group[output])
        return True


# The operations of each family, those that count for more several times.
_ANY = [name for name in OPERATIONS if name != "cast" and not name.startswith("plain")]
_BENT = ["activation"] * 3
FAMILIES: dict[str, tuple[tuple[int, ...], list[str]]] = {
    "images": ((2,), [*_ANY, *["conv"] * 6, *["avg_pool", "interpolate"] * 2, *_BENT]),
    "sequences": ((1,), [*_ANY, *["conv", "conv_transpose"] * 3, *_BENT]),
    "volumes": ((3,), [*_ANY, *["conv", "conv_transpose"] * 3, *_BENT]),
    "vectors": ((0,), [*_ANY, *["linear"] * 6, *_BENT]),
    "rewrites": (
        (2,),
        ["conv", "avg_pool", "activation", *["plain_conv"] * 5, *["plain_pool", "plain_upsample"] * 3],
    ),
    "choices": ((0, 1, 2), ["conv", "linear", "max_pool", "adaptive_pool", *["choose", "group_sort", "bound"] * 3]),
    "shapes": (
        (1, 2, 3),
        ["linear", "matmul", "reshape", "permute", "index", "part", "rearrange", "reordered", "stacked", "activation"],
    ),
    "in place": (
        (0, 1, 2),
        ["conv", "linear", *["number", "shift", "scale", "layout", "reshape", "permute"] * 2, *_BENT],
    ),
    "mixed": ((0, 1, 2, 3), _ANY),
    "casts": ((0, 1, 2), ["conv", "linear", "scale", "matmul", *["cast"] * 3, *_BENT]),
}


def draw_critic(
    below: Below, dims: Sequence[int], names: Sequence[str], *, spoil: bool = False, longest: int = 9
) -> tuple[Critic, Tensor, Tensor]:
    """A critic in float64 with x and labels for it.

    Args:
        below: draws every choice and the seed of the weights.
        dims, names: numbers of axes behind the channels, and operations, to draw from; `FAMILIES` has some.
        spoil: put one step from `SPOILERS` among the others.
        longest: as many steps at most.
    """
    choices = Drawing(below)
    dims = choices.pick(*dims)
    batch = choices.pick(2, 1, 3, 4)
    channels = choices.pick(4, 2, 3, 1)
    sizes = [choices.pick(*((4, 5, 3, 6, 7) if dims < 3 else (3, 2, 4))) for _ in range(dims)]
    shape = (batch, channels * (1 if dims else 2), *sizes)
    seed = below(1 << 16)
    torch.default_generator.manual_seed(seed)
    x = torch.randn(shape, dtype=DTYPE)
    labels = torch.randint(CLASSES, (batch,))
    critic = Critic(shape, choices.pick(True, False), seed)
    program = _Program(below, critic, x, labels, torch.ones(batch, dtype=DTYPE))
    length = choices.pick(*range(2, longest + 1))
    spoiled_at = choices.pick(*range(length)) if spoil else None
    for place in range(length):
        newest = program.alive[-1]
        current = newest if choices.pick(True, True, True, False) else choices.pick(*program.alive)
        if place == spoiled_at:
            if not program.append("spoiled", [current]):
                program.append("curved", [current])
            continue
        kind = choices.pick("one", "one", "one", "pair", "again")
        if kind == "pair" and _append_pair(choices, program, current):
            continue
        if kind == "again" and _append_again(choices, program):
            continue
        for _ in range(3):
            if program.append(choices.pick(*names), [current]):
                break
    # What no step has read must count, or the program would have idle steps.
    read = {value for step in critic.steps for value in step.inputs}
    leaves = [value for value in program.alive if value not in read] or [program.alive[-1]]
    if len(program.alive) > len(leaves) and choices.pick(False, True):
        leaves.append(choices.pick(*(value for value in program.alive if value not in leaves)))
    program.append("logit", leaves)
    critic.close()
    return critic, x, labels


def _append_pair(choices: Drawing, program: _Program, current: int) -> bool:
    h = program.values[current]
    options = [
        (name, other) for other in program.alive for name in PAIRS if _pairs_with(name, h, program.values[other])
    ]
    if not options:
        return False
    name, other = choices.pick(*options)
    return program.append(name, [current, other])


def _append_again(choices: Drawing, program: _Program) -> bool:
    """A step that has weights once more, on another tensor of the same shape."""
    options = []
    for step in program.critic.steps:
        if len(step.inputs) > 1 or step.arguments.get("inplace") or step.name in ("spoiled", "logit"):
            continue
        if next(program.critic.weights[str(step.owner)].parameters(), None) is None:
            continue
        # Shapes do not change in place, so that of the input is what it was.
        shape = program.values[step.inputs[0]].shape
        options += [(step, value) for value in program.alive if program.values[value].shape == shape]
    if not options:
        return False
    step, value = choices.pick(*options)
    return program.append(step.name, [value], owner=step)
