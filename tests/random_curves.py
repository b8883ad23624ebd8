"""The layers of random critics that are curved, couple entries of a sample or mix samples, and how such critics end.

Written as those of `tests/random_layers.py`. Values stay of the size of their input, so that nine of them in a row
leave numbers that double precision can tell apart.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.random_layers import (
    RUNNERS,
    Operation,
    axes,
    axis,
    axis_to_reduce,
    divisors,
    entries,
    logit,
    operand,
    operation,
    require,
    version,
)

SMOOTH: dict[str, Operation] = {}
"""Curved ones, each entry by itself."""
COUPLED: dict[str, Operation] = {}
"""Of several entries or samples."""
PRODUCTS: dict[str, Operation] = {}
"""Of two tensors."""
REFUSED: set[str] = set()
"""Those of the above that go through double backward."""


def tame(h: Tensor) -> Tensor:
    """What would grow from step to step, bounded."""
    return h.clamp(-2.5, 2.5)


# -------------------------------------------------------------------------------- entry by entry

CURVES: dict[str, Callable[[Tensor, bool], Tensor]] = {
    "tanh": lambda h, inplace: h.tanh_() if inplace else torch.tanh(h),
    "sigmoid": lambda h, inplace: h.sigmoid_() if inplace else h.sigmoid(),
    "elu": lambda h, inplace: F.elu(h, inplace=inplace),
    "elu, alpha": lambda h, inplace: F.elu(h, 0.6, inplace),
    "celu": lambda h, inplace: F.celu(h, 1.75, inplace),
    "selu": lambda h, inplace: F.selu(h, inplace),
    "silu": lambda h, inplace: F.silu(h, inplace),
    "mish": lambda h, inplace: F.mish(h, inplace),
    "hardswish": lambda h, inplace: F.hardswish(h, inplace),
    "gelu": lambda h, inplace: F.gelu(h),
    "gelu by tanh": lambda h, inplace: F.gelu(h, approximate="tanh"),
    "softplus": lambda h, inplace: F.softplus(h),
    "softplus, beta": lambda h, inplace: F.softplus(h, beta=2.5),
    "softplus, threshold": lambda h, inplace: F.softplus(h, 1.3, 0.9),
    "logsigmoid": lambda h, inplace: F.logsigmoid(h),
    "softsign": lambda h, inplace: F.softsign(h),
    "tanhshrink": lambda h, inplace: F.tanhshrink(h),
    "sin": lambda h, inplace: h.sin_() if inplace else torch.sin(2 * h),
    "cos": lambda h, inplace: torch.cos(h),
    "sinc": lambda h, inplace: torch.sinc(0.3 * h + 0.05),
    "erf": lambda h, inplace: torch.erf(h),
    "atan": lambda h, inplace: torch.atan(h),
    "asinh": lambda h, inplace: torch.asinh(h),
    "exp": lambda h, inplace: torch.exp(-h.square()),
    "exp2": lambda h, inplace: torch.exp2(0.5 * tame(h)),
    "expm1": lambda h, inplace: torch.expm1(0.5 * tame(h)),
    "square": lambda h, inplace: 0.4 * tame(h).square(),
    "square by power": lambda h, inplace: 0.4 * tame(h) ** 2,
    "cube": lambda h, inplace: 0.2 * tame(h).pow(3),
    "power": lambda h, inplace: (h.abs() + 0.3) ** 0.7,
    "base": lambda h, inplace: 1.4 ** tame(h),
    "root": lambda h, inplace: torch.sqrt(h.square() + 0.5),
    "rsqrt": lambda h, inplace: torch.rsqrt(h.square() + 0.5),
    "log": lambda h, inplace: torch.log(h.abs() + 0.4),
    "log1p": lambda h, inplace: torch.log1p(h.square()),
    "reciprocal": lambda h, inplace: 1 / (1 + h.square()),
    "itself squared": lambda h, inplace: 0.4 * tame(h) * tame(h),
    "swish by hand": lambda h, inplace: h * torch.sigmoid(1.3 * h),
    "sine and slope": lambda h, inplace: h + torch.sin(3 * h).square() / 3,
    # Those that are defined on a part of the line.
    "tan": lambda h, inplace: torch.tan(0.4 * tame(h)),
    "sinh": lambda h, inplace: torch.sinh(0.5 * tame(h)),
    "cosh": lambda h, inplace: torch.cosh(0.5 * tame(h)),
    "asin": lambda h, inplace: torch.asin(0.3 * tame(h)),
    "acos": lambda h, inplace: torch.acos(0.3 * tame(h)),
    "atanh": lambda h, inplace: torch.atanh(0.3 * tame(h)),
    "acosh": lambda h, inplace: torch.acosh(1.3 + h.abs()),
}


@operation(among=SMOOTH)
def curve(c, w, h):
    return CURVES[c("kind", *CURVES)](h, c.inplace())


@operation(among=SMOOTH)
def curve_of_two(c, w, h):
    """A function of h and a constant, with curvature in both."""
    other = operand(c, w, h, "positive", "buffer", "derived")
    kind = c("kind", "power", "hypot", "atan2", "logaddexp", "addcmul", "square", "lerp")
    if kind == "power":
        return (h.abs() + 0.3) ** other
    if kind == "addcmul":
        return torch.addcmul(h, tame(h), other * torch.ones_like(h), value=0.3)
    if kind == "square":
        return 0.3 * (tame(h) - other) ** 2
    if kind == "lerp":
        return torch.lerp(h, h.tanh(), 0.3)
    return getattr(torch, kind)(h, other * torch.ones_like(h))


@operation(among=SMOOTH)
def loss(c, w, h):
    """A loss of each entry."""
    target = torch.zeros_like(h) + c("target", *(0.3, -0.4))
    function = c("function", F.smooth_l1_loss, F.huber_loss, F.mse_loss, F.soft_margin_loss)
    return function(tame(h), target, reduction="none")


# -------------------------------------------------------------------------------- within a sample


@operation(among=COUPLED)
def softened(c, w, h):
    dim = axis(c, h)
    kind = c("kind", "softmax", "log_softmax", "softmin", "logsumexp", "weighted", "hot")
    if kind == "logsumexp":
        return torch.logsumexp(h, dim, keepdim=True)
    if kind == "weighted":
        return h * h.softmax(dim)
    if kind == "hot":
        return torch.softmax(3 * h, dim) * 2
    return getattr(F, kind)(h, dim=dim)


@operation(among=COUPLED)
def spread(c, w, h):
    """Variances and deviations over some axes of a sample."""
    dims = c("dims", *((dim,) for dim in axes(h)), axes(h))
    correction = c("correction", 0, 1)
    require(math.prod(h.shape[dim] for dim in dims) > 1)
    kind = c("kind", "var", "std", "var_mean", "standardised", "only")
    if kind == "only":
        return 0.3 * tame(h).var(dims, keepdim=True, correction=correction)
    if kind == "var_mean":
        variance, mean = torch.var_mean(h, dims, keepdim=True, correction=correction)
        return (h - mean) * torch.rsqrt(variance + 0.2)
    if kind == "standardised":
        mean = h.mean(dims, keepdim=True)
        return (h - mean) / ((h - mean).square().mean(dims, keepdim=True) + 0.1).sqrt()
    if kind == "var":
        return h / (h.var(dims, keepdim=True, correction=correction) + 0.5)
    return h / (h.std(dims, keepdim=True, correction=correction) + 0.5)


@operation(among=COUPLED)
def length(c, w, h):
    """Norms of parts of a sample, which do not reach 0."""
    kind = c("kind", "pixel norm", "normalize", "vector_norm", "norm", "order", "reduced", "local_response_norm")
    if kind == "pixel norm":
        return h * torch.rsqrt(h.square().mean(1, keepdim=True) + 0.1)
    if kind == "normalize":
        return F.normalize(h + 0.2, dim=axis(c, h))
    if kind == "local_response_norm":
        require(h.dim() > 2)
        return F.local_response_norm(h, c("size", 2, 3), alpha=0.7)
    if kind == "reduced":
        dim, keepdim = axis_to_reduce(c, h)
        return torch.linalg.vector_norm(h + 0.2, 2, dim, keepdim)
    norm = (h + 0.2).norm(c("p", 3, 1.5) if kind == "order" else 2, axis(c, h), keepdim=True)
    if kind == "vector_norm":
        norm = torch.linalg.vector_norm(h + 0.2, 2, axes(h), keepdim=True)
    return h / (norm + 0.3)


@operation(among=COUPLED)
def normed(c, w, h):
    """Layers of statistics, with weights."""
    kind = c("kind", "layer", "last", "group", "instance", "rms")
    new = not hasattr(w, "norm")
    if kind == "layer":
        norm = w.module("norm", nn.LayerNorm, h.shape[1:])
    elif kind == "last":
        norm = w.module("norm", nn.LayerNorm, h.shape[-1], elementwise_affine=c("affine", True, False))
    elif kind == "rms":
        norm = w.module("norm", nn.RMSNorm, h.shape[-1], eps=1e-2)
    elif kind == "group":
        require(entries(h) > 1)
        norm = w.module("norm", nn.GroupNorm, c("groups", *divisors(h.shape[1])), h.shape[1])
    else:
        require(h.dim() > 2 and h[0, 0].numel() > 1)
        tracks = c("track_running_stats", False, True)
        options = {"affine": c("affine", True, False), "track_running_stats": tracks}
        norm = w.module("norm", version(nn, "InstanceNorm", h), h.shape[1], **options)
    return _randomised(norm, new)(h)


@operation(among=COUPLED)
def training_batch_norm(c, w, h):
    # PyTorch's own backward is wrong for images with an axis of size 1 in unusual strides, as in eval mode.
    require(h[:, 0].numel() > 1 and (h.dim() < 4 or 1 not in h.shape))
    options = {"momentum": c("momentum", 0.1, None), "track_running_stats": c("track_running_stats", True, False)}
    new = not hasattr(w, "norm")
    norm = w.module("norm", version(nn, "BatchNorm", h), h.shape[1], affine=c("affine", True, False), **options)
    return _randomised(norm, new).train()(h)


def _randomised(norm: nn.Module, new: bool) -> nn.Module:
    # Statistics of one entry, or of equal ones, are ill-conditioned.
    norm.eps = 0.05
    for parameter in norm.parameters() if new else ():
        nn.init.normal_(parameter, 0.7, 0.4)
    return norm


@contextlib.contextmanager
def _math() -> Iterator[None]:
    """Attention of which PyTorch's backward can be differentiated."""
    with sdpa_kernel([SDPBackend.MATH]):
        yield


@operation(among=COUPLED)
def attended(c, w, h):
    """Attention between the places, channels or entries of a sample."""
    tokens = h.unsqueeze(2) if h.dim() == 2 else h.flatten(2).mT if c("places", True, False) else h.flatten(2)
    width = tokens.shape[2]
    layer = partial(w.module, kind=nn.Linear, in_features=width, out_features=width)
    kind = c("kind", "by hand", "einsum", "fused", "masked", "heads", "multihead", "encoder")
    heads = c("heads", *divisors(width))
    if kind in ("by hand", "einsum"):
        query, key, value = layer("query")(tokens), layer("key")(tokens), layer("value")(tokens)
        if kind == "einsum":
            weights = torch.einsum("bid,bjd->bij", query, key).softmax(-1)
            return torch.einsum("bij,bjd->bid", weights, value)
        return tokens + torch.softmax(query @ key.mT * width**-0.5, -1) @ value
    with _math():
        if kind in ("fused", "masked", "heads"):
            qkv = layer("query")(tokens), layer("key")(tokens), tokens
            if kind == "heads":
                qkv = [t.unflatten(2, (heads, -1)).transpose(1, 2) for t in qkv]
            y = F.scaled_dot_product_attention(*qkv, is_causal=kind == "masked")
            return y.transpose(1, 2).flatten(2) if kind == "heads" else y
        if kind == "multihead":
            attention = w.module("attention", nn.MultiheadAttention, width, heads, batch_first=True)
            return attention(tokens, tokens, tokens, need_weights=c("need_weights", False, True))[0]
        options = {"dropout": 0.0, "batch_first": True, "norm_first": c("norm_first", True, False)}
        activation = c("activation", F.relu, F.gelu)
        return w.module("encoder", nn.TransformerEncoderLayer, width, heads, 3, activation=activation, **options)(
            tokens
        )


@operation(among=COUPLED)
def excited(c, w, h):
    """h times a function of itself."""
    kind = c(
        "kind", "squeeze", "gate", "mean", "detached", "quotient", "modulated", "prod", "cumprod", "lerp", "fourier"
    )
    if kind == "squeeze":
        mean = h.flatten(2).mean(2) if h.dim() > 2 else h
        gate = w.module("gate", nn.Linear, h.shape[1], h.shape[1])(mean).sigmoid()
        return h * gate.view(*gate.shape, *[1] * (h.dim() - 2))
    if kind == "modulated":
        # As StyleGAN2 does it: a linear layer whose weight each sample scales by a function of itself.
        style = 1 + 0.3 * h.flatten(1).mean(1, keepdim=True)
        weight = w.scaled("weight", h.shape[-1], 3)[None] * style[:, :, None]
        weight = weight * torch.rsqrt(weight.square().sum(1, keepdim=True) + 0.1)
        return (h.flatten(1, -2) if h.dim() > 2 else h[:, None]) @ weight
    if kind == "prod":
        return h + (1 + 0.2 * tame(h)[:, :3]).prod(1, keepdim=True)
    if kind == "cumprod":
        return h * (1 + 0.1 * tame(h)).cumprod(1)
    return {
        "gate": lambda: h * torch.sigmoid(h.flip(1)),
        "mean": lambda: 0.5 * tame(h) * h.mean(axes(h), keepdim=True),
        "detached": lambda: h * h.detach().square().mean(axes(h), keepdim=True).tanh(),
        "quotient": lambda: h / (h.abs().sum(axes(h), keepdim=True) + 1),
        "lerp": lambda: torch.lerp(h, h.flip(-1), h.sigmoid()),
        "fourier": lambda: torch.fft.rfft(h, dim=-1).abs().sum(-1, keepdim=True) * 0.3 + h,
    }[kind]()


@operation(among=COUPLED)
def contracted(c, w, h):
    """Matrix products of x-dependent tensors."""
    require(h.dim() > 2)
    a = tame(h).flatten(2)
    scale = a.shape[2] ** -0.5
    kinds = ["gram", "bmm", "baddbmm", "einsum", "three", "all pairs", "twice"]
    kind = c("kind", *kinds, *(["bilinear"] if a.shape[1] > 1 else []))
    if kind == "bilinear":
        layer = w.module("pairs", nn.Bilinear, a.shape[2], a.shape[2], 2)
        return layer(a[:, 0], a[:, 1]) * scale
    gram = (a @ a.mT) * scale
    return {
        "gram": lambda: gram,
        "bmm": lambda: torch.bmm(torch.tanh(gram), a),
        "baddbmm": lambda: torch.baddbmm(gram, gram.tanh(), gram, alpha=0.3),
        "einsum": lambda: torch.einsum("bcn,bdn->bdc", a, a.flip(1)) * scale,
        "three": lambda: torch.einsum("bcn,bdn,bcd->bd", a, a, gram.tanh()) * scale * 0.3,
        "all pairs": lambda: a.unsqueeze(1) * a.unsqueeze(2) * 0.4,
        "twice": lambda: torch.matmul(gram.sigmoid(), torch.matmul(gram.sigmoid(), a)) * 0.2,
    }[kind]()


# -------------------------------------------------------------------------------- two tensors


@operation(among=PRODUCTS)
def product(c, w, h, other):
    kind = c("kind", "multiply", "gate", "addcmul", "addcdiv", "divide", "where", "mul_")
    if kind == "mul_":
        return (h * 1.1).mul_(0.4 * tame(other))
    if kind == "where":
        return torch.where(w.buffer("mask", *h.shape[2:]) > 0.6, h, h * other.tanh())
    return {
        "multiply": lambda: 0.4 * tame(h) * tame(other),
        "gate": lambda: h * other.sigmoid(),
        "addcmul": lambda: torch.addcmul(h, tame(h), tame(other), value=0.3),
        "addcdiv": lambda: torch.addcdiv(h, tame(h), other.square() + 1, value=0.7),
        "divide": lambda: h / (other.abs() + 0.7),
    }[kind]()


# -------------------------------------------------------------------------------- across samples


def _swapped(c, w, h):
    require(h.shape[0] == h.shape[1])
    return h.transpose(0, 1)


def _deviation_of_the_batch(c, w, h):
    """Minibatch stddev as in StyleGAN2, with ε inside of the root."""
    groups = c("groups", *divisors(len(h)))
    y = h.reshape(len(h) // groups, groups, -1)
    y = (y - y.mean(0)).square().mean(0).add(1e-2).sqrt().mean(1)
    y = y.view(1, groups, 1).expand(len(h) // groups, groups, 1).reshape(-1, *[1] * (h.dim() - 1))
    return torch.cat([h, y.expand(len(h), 1, *h.shape[2:])], 1)


def _packed(c, w, h):
    """PacGAN: pairs of samples seen as one."""
    require(len(h) % 2 == 0)
    pairs = h.reshape(len(h) // 2, 2, *h.shape[1:]).flatten(1, 2)
    return pairs.relu().repeat_interleave(2, 0)


def _folded(c, w, h):
    """The batch folded into the channels, as for a convolution in groups, and back."""
    require(h.dim() > 2)
    return F.leaky_relu(h.reshape(1, -1, *h.shape[2:]), 0.2).view(h.shape) * 1.1


def _across(c, w, h):
    weight = w.parameter("across", 4, 4)[: len(h), : len(h)]
    return (weight @ h.flatten(1)).view(h.shape) * 0.5


MIXING: dict[str, Operation] = {
    "flip": lambda c, w, h: h.flip(0),
    "roll": lambda c, w, h: h.roll(1, 0),
    "reordered": lambda c, w, h: h[[*range(1, len(h)), 0]],
    "index_select": lambda c, w, h: h.index_select(0, torch.arange(len(h) - 1, -1, -1)),
    "mean over samples": lambda c, w, h: h - h.mean(0, keepdim=True),
    "sum over samples": lambda c, w, h: h + 0.3 * h.sum(0),
    "largest of the samples": lambda c, w, h: h.amax(0, keepdim=True) - 0.7 * h,
    "sorted samples": lambda c, w, h: h.sort(0)[0],
    "first sample": lambda c, w, h: h - 0.6 * h[:1],
    "samples in pairs": lambda c, w, h: torch.cat([h[1:], h[:1]]),
    "twice the batch": lambda c, w, h: torch.cat([h, 0.7 * h]).relu().chunk(2)[1],
    "summed up": lambda c, w, h: h.cumsum(0) * 0.5,
    "swapped axes": _swapped,
    "batch last": lambda c, w, h: h.movedim(0, -1).relu().movedim(-1, 0),
    "reshaped across samples": lambda c, w, h: h.reshape(-1, len(h)).mT.reshape(h.shape),
    "softmax over samples": lambda c, w, h: h * h.softmax(0),
    "deviation": lambda c, w, h: h + (h.var(0, unbiased=False) + 0.1).sqrt().mean(),
    "deviation of the batch": _deviation_of_the_batch,
    "packed": _packed,
    "folded": _folded,
    "across": _across,
    "einsum across": lambda c, w, h: torch.einsum("bi,ci->ci", tame(h).flatten(1), tame(h).flatten(1)).view_as(h) * 0.2,
    "distances": lambda c, w, h: (h.flatten(1)[:, None] - h.flatten(1)).abs().mean(2),
}


@operation(among=COUPLED)
def mixed(c, w, h):
    """A step in which samples meet, or move; of one sample alone, what is left of that."""
    return MIXING[c("kind", *MIXING)](c, w, h)


# -------------------------------------------------------------------------------- how they end

ENDS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": lambda f: torch.sigmoid(0.5 * f),
    "tanh": lambda f: 2 * torch.tanh(0.3 * f),
    "softplus": F.softplus,
    "log of a probability": lambda f: torch.log(torch.sigmoid(f) + 1e-3),
    "square": lambda f: 0.3 * tame(f).square(),
    "difference to the batch": lambda f: f - f.mean(0, keepdim=True),
}


def smooth_logit(c, w, *leaves):
    """One number per sample, or a function of it."""
    f, end = logit(c, w, *leaves), c("end", None, None, *ENDS)
    return f if end is None else ENDS[end](f)


def logit_map(c, w, *leaves):
    """Several numbers per sample."""
    h, end = leaves[0], c("end", None, None, None, *ENDS)
    require(entries(h) > 1)
    for place, other in enumerate(leaves[1:]):
        more = (other.flatten(1) * w.parameter(f"weight{place}", entries(other))).sum(1) * entries(other) ** -0.5
        h = h + more.view(-1, *[1] * (h.dim() - 1))
    f = h * w.positive("scale", *h.shape[1:])
    return f if end is None else ENDS[end](f)


# -------------------------------------------------------------------------------- what the passes cannot do


class _Rounded(torch.autograd.Function):
    """Rounds forward, and lets gradients straight through."""

    @staticmethod
    def forward(ctx, h: Tensor) -> Tensor:
        return torch.round(8 * h) / 8

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad


SPOILING: dict[str, Callable[[Tensor], Tensor]] = {
    "custom function": _Rounded.apply,
    "vmap": lambda h: torch.vmap(lambda row: row * row.mean())(tame(h)),
    "number": lambda h: h * (1 + abs(math.tanh(h.mean().item()))),
}


def spoiled(c, w, h):
    """What the passes cannot do."""
    return SPOILING[c("by", *SPOILING)](h)


RUNNERS.update({**SMOOTH, **COUPLED, **PRODUCTS})
RUNNERS.update({run.__name__: run for run in (smooth_logit, logit_map, spoiled)})
