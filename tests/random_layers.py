"""The layers of random critics.

An operation is one function of (choices, weights, tensors). While a critic is drawn, its choices are drawn and written
down; when the critic runs, the same function reads them back.
"""

import itertools
import math
import operator
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

DTYPE = torch.float64
CLASSES = 4
# Factors and shifts at which no two pieces of an activation meet.
NUMBERS = (0.7, -0.6, 1.3, 0.37, -1.1)


class Inapplicable(Exception):
    """Raised by an operation that cannot take the tensor it is offered."""


def require(condition: bool) -> None:
    if not condition:
        raise Inapplicable


Operation = Callable[..., Tensor]


class Choices:
    """Choices that are drawn by `chance`, or without it those that were `made` before."""

    def __init__(
        self, chance: random.Random | None = None, made: dict[str, Any] | None = None, writable: bool = False
    ) -> None:
        self.chance = chance
        self.made = made or {}
        self.writable = writable

    def __call__(self, name: str, *options: Any) -> Any:
        if self.chance:
            require(bool(options))
            self.made[name] = self.chance.choice(options)
        return self.made[name]

    def each(self, name: str, options: Sequence[Sequence[Any]]) -> tuple[Any, ...]:
        if self.chance:
            require(all(options))
            self.made[name] = tuple(map(self.chance.choice, options))
        return self.made[name]

    def inplace(self) -> bool:
        """Whether to write into the first tensor; only where autograd lets one."""
        return self("inplace", False, *[True] * self.writable)


NORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "spectral": parametrizations.spectral_norm,
    "weight": parametrizations.weight_norm,
    "spectral by a hook": nn.utils.spectral_norm,
}


class Weights(nn.Module):
    """What a step owns: made when the step first asks for it, found by its name afterwards."""

    labels: Tensor
    given: Tensor
    """(B,), what the critic was given beside x and labels."""

    def owned(self, name: str, make: Callable[[], Any]) -> Any:
        if not hasattr(self, name):
            made = make()
            if isinstance(made, Tensor) and not isinstance(made, nn.Parameter):
                self.register_buffer(name, made)
            else:
                setattr(self, name, made)
        return getattr(self, name)

    def parameter(self, name: str, *shape: int) -> nn.Parameter:
        return self.owned(name, lambda: nn.Parameter(torch.randn(shape, dtype=DTYPE)))

    def positive(self, name: str, *shape: int) -> nn.Parameter:
        return self.owned(name, lambda: nn.Parameter(torch.rand(shape, dtype=DTYPE) + 0.5))

    def other_dtype(self, name: str, *shape: int) -> nn.Parameter:
        """A float32 parameter: what it meets is computed in float64 all the same."""
        return self.owned(name, lambda: nn.Parameter(torch.rand(shape) + 0.5))

    def buffer(self, name: str, *shape: int) -> Tensor:
        return self.owned(name, lambda: torch.rand(shape, dtype=DTYPE) + 0.2)

    def whole(self, name: str, *shape: int) -> Tensor:
        return self.owned(name, lambda: torch.randint(1, 4, shape))

    def derived(self, name: str, *shape: int) -> Tensor:
        """No leaf of autograd's graph."""
        return self.positive(name, *shape).log().exp()

    def scaled(self, name: str, rows: int, *columns: int) -> Tensor:
        """A parameter to be multiplied by from the right, scaled so that products keep their size."""
        return self.parameter(name, rows, *columns) * rows**-0.5

    def module(self, name: str, kind: Callable[..., nn.Module], *args: Any, norm: str | None = None, **kwargs: Any):
        def make() -> nn.Module:
            module = kind(*args, **kwargs, dtype=DTYPE)
            return NORMS.get(norm, lambda module: module)(module).train(self.training)

        return self.owned(name, make)

    def embedded(self, name: str, *shape: int) -> Tensor:
        """A learned tensor per sample, chosen by the sample's label."""
        table = self.module(name, nn.Embedding, CLASSES, math.prod(shape))
        return table(self.labels).view(-1, *shape)


OPERATIONS: dict[str, Operation] = {}
"""Of one tensor."""
PAIRS: dict[str, Operation] = {}
"""Of two."""
# Operations whose backward reads nothing that it was given, so that their input may be written into later.
SAVES_NOTHING: set[str] = set()
# Operations whose backward reads what they were given but not what they returned.
SAVES_INPUT: set[str] = set()
# Operations whose result may be a view.
VIEWS: set[str] = set()


def operation(*traits: set[str], among: dict[str, Operation] = OPERATIONS) -> Callable[[Operation], Operation]:
    def register(function: Operation) -> Operation:
        among[function.__name__] = function
        for trait in traits:
            trait.add(function.__name__)
        return function

    return register


def space(h: Tensor) -> tuple[int, ...]:
    """The sizes of the axes behind the channels."""
    require(h.dim() > 2)
    return tuple(h.shape[2:])


def version(namespace: Any, name: str, h: Tensor) -> Any:
    """PyTorch's function or layer for as many axes: Conv2d for images."""
    return getattr(namespace, f"{name}{max(h.dim() - 2, 1)}d")


def entries(h: Tensor) -> int:
    """How many a sample has."""
    return math.prod(h.shape[1:])


def axes(h: Tensor) -> tuple[int, ...]:
    """Those of a sample."""
    return tuple(range(1, h.dim()))


def divisors(number: int, largest: int = 4) -> list[int]:
    return [d for d in range(1, largest + 1) if number % d == 0]


def axis(c, h: Tensor, name: str = "dim", smallest: int = 1) -> int:
    """An axis other than the batch's, counted from either end."""
    found = [dim for dim in axes(h) if h.shape[dim] >= smallest]
    return c(name, *found, *(dim - h.dim() for dim in found))


def axis_to_reduce(c, h: Tensor) -> tuple[int, bool]:
    """An axis, and whether the result keeps it."""
    dim, keepdim = axis(c, h), c("keepdim", True, False)
    require(keepdim or h.dim() > 2)
    return dim, keepdim


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
    layer = w.module(
        "conv",
        version(nn, "Conv", h),
        *(h.shape[1], groups * c("per_group", 2, 1, 3), kernel),
        stride=c.each("stride", [(1,) if padding == "same" else (1, 1, 2, 3)] * len(sizes)),
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
        version(nn, "ConvTranspose", h),
        *(h.shape[1], groups * c("per_group", 2, 1), kernel, stride, padding, extra, groups),
        bias=c("bias", True, False),
        dilation=dilation,
        norm=c("norm", None, None, None, "spectral"),
    )
    return layer(h)


@operation(SAVES_INPUT)
def linear(c, w, h):
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
    n, k, out = h.shape[-2], h.shape[-1], c("out", 3, 1, 4)
    kinds = ["right", "tied", "vector"] if h.dim() > 2 else ["right", "tied", "addmm", "projected"]
    kinds += ["left", "left of each", "einsum", "einsum sums"] if h.dim() > 2 else []
    kinds += ["bmm", "baddbmm"] if h.dim() == 3 else []
    kind = c("kind", *kinds)
    scale = k**-0.5
    if kind == "right":
        return h @ w.scaled("matrix", k, out)
    if kind == "tied":
        matrix = w.scaled("matrix", k, out)
        return F.relu(h @ matrix) @ matrix.mT
    if kind == "vector":
        return torch.matmul(h, w.scaled("vector", k))
    if kind == "addmm":
        matrix, beta = w.parameter("matrix", k, out), c("beta", 1, 0.7)
        return torch.addmm(w.parameter("shift", out), h, matrix, beta=beta, alpha=scale)
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
    letters, dim = "buvwxy"[: h.dim()], c("dim", *axes(h))
    letter, size = letters[dim], h.shape[dim]
    if kind == "einsum":
        return torch.einsum(f"{letters},{letter}z->{letters.replace(letter, 'z')}", h, w.scaled("matrix", size, out))
    vector = w.parameter("vector", size) * (2 / entries(h)) ** 0.5
    return torch.einsum(f"{letters},{letter}->b{letter}", h, vector)


@operation(SAVES_INPUT)
def batch_norm(c, w, h):
    # PyTorch's own backward in eval mode is wrong for images with an axis of size 1 in unusual strides.
    require(h.dim() < 4 or 1 not in h.shape)
    new = not hasattr(w, "norm")
    norm = w.module("norm", version(nn, "BatchNorm", h), h.shape[1], affine=c("affine", True, False)).eval()
    if new:
        norm.running_mean.normal_(0, 0.3)
        norm.running_var.uniform_(0.5, 1.5)
        for parameter in norm.parameters():
            nn.init.normal_(parameter, 0.5)
    return norm(h)


@operation()
def dropout(c, w, h):
    # PyTorch draws a mask in the order of memory, which the recording does not follow.
    require(h.is_contiguous())
    function = c("function", F.dropout, *([version(F, "dropout", h)] if h.dim() > 2 else []))
    return function(h, c("p", 0.3, 0.0), w.training, c.inplace())


def _windows(c, sizes: tuple[int, ...]) -> tuple[Any, ...]:
    """Kernel, stride (None: as the kernel) and padding."""
    kernel = c.each("kernel", [[k for k in (2, 1, 3) if k <= size] for size in sizes])
    if c("even", True, False):
        stride = c("stride", None, 1, 2, 3)
        stride = stride and (stride,) * len(sizes)
    else:
        stride = c.each("stride", [(1, 2, 3)] * len(sizes))
    return kernel, stride, c.each("padding", [range(k // 2 + 1) for k in kernel])


@operation(SAVES_INPUT)
def avg_pool(c, w, h):
    kernel, stride, padding = _windows(c, space(h))
    more = {"divisor_override": c("divisor", None, None, 3)} if h.dim() > 3 else {}
    stride = kernel if stride is None and h.dim() == 3 else stride
    ceil_mode, whole = c("ceil_mode", False, True), c("count_include_pad", True, False)
    return version(F, "avg_pool", h)(h, kernel, stride, padding, ceil_mode, whole, **more)


@operation()
def max_pool(c, w, h):
    sizes, pool = space(h), version(F, "max_pool", h)
    kernel, stride, padding = _windows(c, sizes)
    fits = [[d for d in (1, 2) if d * (k - 1) < n + 2 * p] for k, n, p in zip(kernel, sizes, padding, strict=True)]
    dilation, ceil_mode = c.each("dilation", fits), c("ceil_mode", False, True)
    if c("indices", False, True):
        return pool(h, kernel, stride, padding, dilation, ceil_mode=ceil_mode, return_indices=True)[0]
    return pool(h, kernel, stride, padding, dilation, ceil_mode)


@operation()
def adaptive_pool(c, w, h):
    own = (None,) if h.dim() > 3 else ()
    given = c.each("size", [(1, 2, 3, *own)] * len(space(h)))
    return version(F, f"adaptive_{c('kind', 'avg', 'max')}_pool", h)(h, given)


def linear_mode(h: Tensor) -> str:
    """Of interpolation."""
    return ("linear", "bilinear", "trilinear")[len(space(h)) - 1]


@operation(SAVES_NOTHING)
def interpolate(c, w, h):
    sizes = space(h)
    modes = ["nearest", "nearest", "nearest-exact", "area", linear_mode(h)]
    mode = c("mode", *modes, *(["bicubic"] if len(sizes) == 2 else []))
    more = {"align_corners": c("align_corners", False, True)} if mode.endswith(("linear", "cubic")) else {}
    if c("by_size", False, True):
        return F.interpolate(h, c.each("size", [(size, 2 * size, 3, 5) for size in sizes]), mode=mode, **more)
    factor = c("scale_factor", 2, 2.0, (2.0,) * len(sizes), 1.5, *[(3, 1)] * (len(sizes) == 2))
    if c("recomputed", False, True):
        more["recompute_scale_factor"] = True
    return F.interpolate(h, scale_factor=factor, mode=mode, **more)


@operation(SAVES_INPUT)
def pad(c, w, h):
    mode = c("mode", "constant", "constant", "reflect", "replicate", "circular")
    if mode == "constant":
        padded = reversed(axes(h)[-c("axes", *axes(h)) :])
        ends = [(0, 1, 2, *([-1] if h.shape[dim] > 2 else [])) for dim in padded for _ in range(2)]
        amounts, value = c.each("pad", ends), c("value", None, 0.0, 0.45)
        return F.pad(h, amounts, value=value) if value is not None else F.pad(h, amounts)
    most = [size - (mode == "reflect") for size in reversed(space(h))]
    return F.pad(h, c.each("pad", [range(min(m, 2) + 1) for m in most for _ in range(2)]), mode)


@operation(VIEWS, SAVES_NOTHING)
def shuffle(c, w, h):
    require(h.dim() == 4)
    channels, height, width = h.shape[1:]
    fits = {
        F.channel_shuffle: channels % 2 == 0,
        F.pixel_shuffle: channels % 4 == 0,
        F.pixel_unshuffle: height % 2 == 0 and width % 2 == 0,
    }
    return c("function", *(function for function, fit in fits.items() if fit))(h, 2)


@operation(VIEWS, SAVES_NOTHING)
def unfold(c, w, h):
    if h.dim() == 4 and c("patches", True, False):
        kernel = c.each("kernel", [[k for k in (2, 1, 3) if k <= size] for size in h.shape[2:]])
        return F.unfold(h, kernel, padding=c("padding", 0, 1), stride=c("stride", 1, 2))
    return h.unfold(axis(c, h, smallest=2), 2, c("step", 1, 2))


@operation(VIEWS, SAVES_NOTHING)
def reshape(c, w, h):
    batch, channels, *sizes = h.shape
    kinds = ["flatten", "unsqueeze", "merge last"] if h.dim() > 2 else ["unsqueeze"]
    kinds += ["split channels"] if channels % 2 == 0 and h.dim() < 5 else []
    kinds += ["squeeze"] if 1 in h.shape[1:] and h.dim() > 2 else []
    kind = c("kind", *kinds)
    if kind == "flatten":
        return h.flatten(1) if c("how", True, False) else torch.reshape(h, (batch, -1))
    if kind == "merge last":
        return h.reshape(*h.shape[:-2], -1) if c("how", True, False) else h.flatten(-2)
    if kind == "split channels":
        if c("how", True, False):
            return h.unflatten(1, (2, channels // 2))
        return h.reshape(batch, 2, channels // 2, *sizes)
    if kind == "unsqueeze":
        require(h.dim() < 5)
        return h.unsqueeze(c("dim", *axes(h), h.dim(), -1))
    return h.squeeze(c("dim", *(dim for dim in axes(h) if h.shape[dim] == 1)))


@operation(VIEWS, SAVES_NOTHING)
def permute(c, w, h):
    require(h.dim() >= 3)
    kind = c("kind", "permute", "transpose", "movedim", "mT", "swapaxes", "einsum")
    if kind == "einsum":
        return torch.einsum({3: "bij->bji", 4: "bcij->bcji", 5: "bcdij->bcdji"}[h.dim()], h)
    if kind == "mT":
        return h.mT
    if kind == "permute":
        return h.permute(0, *c("order", *itertools.permutations(axes(h))))
    return getattr(torch, kind)(h, axis(c, h, "first"), axis(c, h, "second"))


@operation(VIEWS, SAVES_NOTHING)
def index(c, w, h):
    """Slices, single entries and new axes."""
    key = [slice(None)]
    for dim in axes(h):
        options = [slice(None), slice(None), slice(None, None, 2)]
        options += [slice(1, None), slice(0, -1), -1] if h.shape[dim] > 1 else []
        key.append(c(f"dim{dim}", *options))
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
    dim = axis(c, h) % h.dim()
    parts = torch.unbind(h, dim) if c("constant", True, False) else [h.select(dim, 0)]
    require(len(parts) < 5)
    return torch.stack([*parts, torch.full_like(parts[0], c("with", *NUMBERS))], dim)


@operation(VIEWS, SAVES_NOTHING)
def layout(c, w, h):
    """The same entries in other memory, or in the same."""
    kind = c("kind", "clone", "contiguous", *(["channels_last"] if h.dim() == 4 else []))
    if kind == "clone":
        return h.clone()
    return h.contiguous(memory_format=torch.channels_last if kind == "channels_last" else torch.contiguous_format)


def operand(c, w, h, *makers: str) -> Tensor:
    """A constant, by one of the weights' `makers`, that broadcasts against h without moving its axes."""
    make, ones = getattr(w, c("made", *makers)), [1] * (h.dim() - 2)
    shapes = {
        "channels": (h.shape[1], *ones),
        "entry": h.shape[1:],
        "number": (),
        "all": [1] * h.dim(),
        "last": h.shape[-1:],
    }
    kind = c("shape", *shapes, "per sample")
    return w.embedded("table", h.shape[1], *ones) if kind == "per sample" else make("operand", *shapes[kind])


# With a number: a new tensor; in place.
BY_NUMBER: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "add": (lambda h, by: by + h, operator.iadd),
    "multiply": (operator.mul, operator.imul),
    "divide": (operator.truediv, operator.itruediv),
    "subtract": (operator.sub, operator.isub),
    "from": (lambda h, by: by - h, operator.isub),
    "negate": (lambda h, by: -h, lambda h, by: h.neg_()),
    "add alpha": (lambda h, by: torch.add(h, 2, alpha=by), lambda h, by: h.add_(1, alpha=by)),
}


@operation(SAVES_NOTHING)
def number(c, w, h):
    new, inplace = BY_NUMBER[c("kind", *BY_NUMBER)]
    return (inplace if c.inplace() else new)(h, c("by", *NUMBERS))


@operation(SAVES_NOTHING)
def shift(c, w, h):
    other = operand(c, w, h, "parameter", "buffer", "derived", "other_dtype", "whole")
    kind = c("kind", "add", "subtract", "from", "alpha")
    if c.inplace():
        return h.sub_(other, alpha=2) if kind == "alpha" else h.add_(other)
    if kind == "alpha":
        return torch.sub(other, h, alpha=0.7) if c("reversed", False, True) else h.add(other, alpha=0.7)
    return {"add": lambda: h + other, "subtract": lambda: h - other, "from": lambda: other - h}[kind]()


@operation(SAVES_INPUT)
def scale(c, w, h):
    other = operand(c, w, h, "positive", "buffer", "derived", "other_dtype", "whole")
    if c.inplace():
        h *= other
        return h
    if c.made["shape"] != "per sample" and c("divide", False, True):
        return h / other
    return other * h if c("reversed", False, True) else h.mul(other)


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
    if kind == "topk":
        return visible.topk(1, dim)[0]
    return visible.max(dim, True)[0] if kind == "max" else visible.amax(dim, True)


@operation(SAVES_INPUT)
def cast(c, w, h):
    """To another dtype and back: both ways round."""
    return h.float().double() if c("method", True, False) else h.to(torch.float32).to(h.dtype)


@operation(SAVES_NOTHING)
def centred(c, w, h):
    """h minus its mean, or plus its sum, over some axes of a sample."""
    dims = c("dims", *((dim,) for dim in axes(h)), axes(h))
    if c("sum", False, True):
        return h + h.sum(dims, keepdim=True) / math.prod(h.shape[dim] for dim in dims)
    return h - 0.7 * h.mean(dims, keepdim=True)


@operation(SAVES_NOTHING)
def reduce(c, w, h):
    dim, keepdim = axis_to_reduce(c, h)
    if c("mean", True, False):
        return h.mean(dim, keepdim)
    return torch.sum(h, dim=dim, keepdim=keepdim) * h.shape[dim] ** -0.5


@operation()
def choose(c, w, h):
    dim, keepdim = axis_to_reduce(c, h)
    kind = c("kind", "max", "min", "median", "kthvalue", "amax", "amin", "sort", "topk")
    if kind in ("max", "min", "median"):
        if c("method", False, True):
            return getattr(h, kind)(dim=dim, keepdim=keepdim).values
        return getattr(torch, kind)(h, dim, keepdim)[0]
    if kind == "kthvalue":
        return h.kthvalue(c("k", 1, h.shape[dim]), dim, keepdim)[0]
    if kind in ("amax", "amin"):
        return getattr(torch, kind)(h, c("dims", dim, (dim,)), keepdim)
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


EXTREMUM = (torch.maximum, torch.minimum, torch.max, torch.min)


@operation()
def bound(c, w, h):
    """The larger or the smaller of h and a constant."""
    other = operand(c, w, h, "parameter", "buffer", "derived")
    function = c("function", *EXTREMUM)
    return function(other, h) if c("reversed", False, True) else function(h, other)


@operation(SAVES_NOTHING)
def where(c, w, h):
    """Some entries, others replaced."""
    mask = w.buffer("mask", *h.shape[1 if c("per sample", False, True) else 2 :]) > 0.6
    if c.inplace():
        return h.masked_fill_(mask, c("by", *NUMBERS))
    kind = c("kind", "fill", "number", "operand", "number first", "operand first")
    other = operand(c, w, h, "parameter") if kind.startswith("operand") else c("by", *NUMBERS)
    if kind == "fill":
        return h.masked_fill(mask, other)
    return torch.where(mask, other, h) if kind.endswith("first") else torch.where(mask, h, other)


@operation(SAVES_NOTHING)
def picked(c, w, h):
    """Entries along an axis, by constant indices."""
    dim = axis(c, h, smallest=2) % h.dim()
    before, size = (slice(None),) * dim, h.shape[dim]
    keys = {
        "list": [0, -1, 0],
        "array": np.arange(size)[::-1].copy(),
        "mask": torch.arange(size) % 2 == 0,
    }
    kind = c("kind", *keys, "pairs", "index_select", "gather")
    if kind in keys:
        return h[(*before, keys[kind])]
    if kind == "pairs":
        require(dim > 1)
        return h[(*before[1:], torch.tensor([0, 0, -1]), [1, 0, 1])]
    if kind == "index_select":
        return torch.index_select(h, dim, torch.tensor([size - 1, 0, 0]))
    shape = [*h.shape[:dim], 2, *h.shape[dim + 1 :]]
    return h.gather(dim, (torch.arange(math.prod(shape)) % size).reshape(shape))


@operation()
def norm(c, w, h):
    dim, keepdim = axis_to_reduce(c, h)
    function, order = c("function", torch.linalg.vector_norm, Tensor.norm), c("order", 1, math.inf, -math.inf)
    return function(h, order, dim, keepdim)


@operation()
def lerped(c, w, h):
    other = operand(c, w, h, "parameter").expand(h.shape)
    weight = c("weight", *NUMBERS, None)
    return torch.lerp(h, other, w.parameter("weight") if weight is None else weight)


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
    # At exactly 0 (of h - h.amax().detach(), say) the second derivative that PyTorch has is that of the other side.
    return w.module("prelu", nn.PReLU, c("slopes", 1, h.shape[1]), init=c("init", 0.25, -0.3))(h + 1 / 64)


@operation(SAVES_NOTHING, among=PAIRS)
def add(c, w, h, other):
    if c.inplace():
        h += other
        return h
    kind = c("kind", "add", "subtract", "alpha")
    if kind == "alpha":
        return torch.sub(h, other, alpha=0.7)
    # Never what cancels: a tensor minus itself has a gradient of nothing but rounding.
    return h + other if kind == "add" else 0.6 * h - other


@operation(among=PAIRS)
def extremum(c, w, h, other):
    # Apart, so that copies of one tensor do not tie.
    return c("function", *EXTREMUM)(h, 0.83 * other + 0.017)


@operation(SAVES_NOTHING, among=PAIRS)
def concatenate(c, w, h, other):
    parts = [h, other] if c("order", True, False) else [other, h]
    if c("constant", False, True):
        parts.insert(c("place", 0, 1, 2), w.embedded("constant", 1, *h.shape[2:]))
    return torch.cat(parts, 1)


@operation(among=PAIRS)
def blend(c, w, h, other):
    return torch.stack([h, other], 1).mean(1) if c("mean", True, False) else torch.stack([h, other], -1).amax(-1)


@operation(among=PAIRS)
def ensemble(c, w, h, other):
    return c("function", torch.mean, torch.sum, torch.amax)(torch.stack([h, 0.83 * other + 0.017]), 0)


@operation(SAVES_INPUT, among=PAIRS)
def resized(c, w, h, other):
    """A skip connection of another size: fitted to h as U-Nets do it, then joined to its channels."""
    sizes = space(h)
    kind = c("kind", "nearest", linear_mode(h), "pool", "crop")
    if kind == "crop":
        ends = [(0, new - own) for own, new in zip(space(other), sizes, strict=True)]
        other = F.pad(other, [end for pair in reversed(ends) for end in pair])
    elif kind == "pool":
        other = version(F, "adaptive_avg_pool", h)(other, sizes)
    else:
        other = F.interpolate(other, size=sizes, mode=kind)
    return torch.cat([h, other], 1)


# Numbers per sample, of shape (B, 1), by weights of that name.
LOGITS: dict[str, Callable[[Weights, str, Tensor], Tensor]] = {
    "linear": lambda w, name, h: w.module(name, nn.Linear, entries(h), 1)(h.flatten(1)),
    "matrix": lambda w, name, h: h.flatten(1) @ w.scaled(name, entries(h), 1),
    "sum": lambda w, name, h: (h * w.parameter(name, *h.shape[1:])).sum(axes(h))[:, None] * entries(h) ** -0.5,
    "einsum": lambda w, name, h: torch.einsum("bi,i->b", h.flatten(1), w.scaled(name, entries(h))).unsqueeze(1),
    "projection": lambda w, name, h: (h.flatten(1) * w.embedded(name, entries(h))).sum(1, True) * entries(h) ** -0.5,
    "weight of one axis": lambda w, name, h: F.linear(h.flatten(1), w.scaled(name, entries(h)))[:, None],
    "mean": lambda w, name, h: w.module(name, nn.Linear, h.shape[1], 1)(h.mean(axes(h)[1:])),
}
BENT: dict[str, Callable[[Weights, Tensor], Tensor]] = {
    "leaky_relu": lambda w, f: F.leaky_relu(f, 0.3) + 0.2,
    # As in `prelu`: f may be 0.
    "prelu": lambda w, f: w.module("prelu", nn.PReLU)(f + 1 / 64),
    "bounded": lambda w, f: torch.maximum(f, w.parameter("bound")),
}


def logit(c, w, *leaves):
    """One number per sample from one tensor or several."""
    total = None
    for place, h in enumerate(leaves):
        kind = c(f"kind{place}", *(kind for kind in LOGITS if kind != "mean" or h.dim() > 2))
        y = LOGITS[kind](w, f"weight{place}", h)
        total = y if total is None else total + y
    shape = c("shape", (1,), (), (1, 1, 1))
    total = total.squeeze(1) if shape == () else total if shape == (1,) else total.view(-1, *shape)
    bent = c("bent", None, None, *BENT)
    return total if bent is None else BENT[bent](w, total)


RUNNERS = {**OPERATIONS, **PAIRS, "logit": logit}
