"""Steps of random critics that are stateful, aliasing, hooked, or change a derivative and no value.

They are drawn and replayed as those of `tests/random_layers.py` are. What such a step does must be done
exactly, or refused by name and done by double backward: the value alone never shows the difference.
"""

import contextlib
import functools
import operator
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import tests.random_curves  # noqa: F401  (fills RUNNERS)
from tests.random_layers import NUMBERS, RUNNERS, Inapplicable, axes, require

HOSTILE: list[str] = ["spoiled"]
"""The names of the steps, those that count for more several times."""


def hostile(times: int = 1) -> Callable[..., Any]:
    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(function)
        def run(c, w, h):
            try:
                return function(c, w, h)
            except (RuntimeError, IndexError, ValueError) as error:
                # What PyTorch itself does not do is not drawn; in a critic it would be an error.
                if c.chance:
                    raise Inapplicable from error
                raise

        RUNNERS[function.__name__] = run
        HOSTILE.extend([function.__name__] * times)
        return function

    return register


def dense(w, h: Tensor, name: str = "dense") -> Tensor:
    """A linear layer of the step's own on the last axis, which leaves the shape as it is."""
    return w.module(name, nn.Linear, h.shape[-1], h.shape[-1])(h)


# -------------------------------------------------------------------------------- data-dependent


BY_HAND: dict[str, Callable[[Tensor], Tensor]] = {
    "mask": lambda h: (h > 0).to(h.dtype) * h,
    "where": lambda h: torch.where(h > 0, h, 0.1 * h),
    "where constant": lambda h: torch.where(torch.arange(h.shape[-1]) % 2 == 0, h, 0.5 * h),
    "masked_fill": lambda h: h.masked_fill(h < 0, 0.2),
    "sign": lambda h: h * h.sign(),
    "sign of a copy": lambda h: h * h.detach().sign(),
    "gather": lambda h: h.gather(1, h.argmax(1, keepdim=True)) + h,
    "boolean index": lambda h: h + h[h > 0].sum() * 0.1,
    "index_select": lambda h: h.index_select(1, torch.arange(h.shape[1] - 1, -1, -1)),
    "take_along": lambda h: torch.take_along_dim(h, h.argsort(1), 1),
    "branch": lambda h: h * 2 if h.sum() > 0 else h - 1,
    "item": lambda h: h * (1 + abs(h.mean().item())),
    "float": lambda h: h + float(h.max()),
    "numpy": lambda h: h + torch.as_tensor(np.tanh(h.detach().cpu().float().numpy()).sum(), dtype=h.dtype),
    "tolist": lambda h: h * (1 + (h.flatten().tolist()[0] > 0)),
    "nonzero": lambda h: h + (h > 0).nonzero().shape[0],
    "round": lambda h: h + (h.round() - h).detach(),
    "straight through": lambda h: h.sign() + h - h.detach(),
    "type_as": lambda h: h.type_as(torch.ones((), dtype=h.dtype)),
    "to memory": lambda h: h.to(memory_format=torch.preserve_format) * 2,
    "cpu": lambda h: h.cpu() * 2,
    "plus": lambda h: +h * 2,
    "stack mean": lambda h: torch.stack([h, h.flip(1)]).mean(0),
    "batch flipped twice": lambda h: h.flip(0).relu().flip(0),
    "samples in a loop": lambda h: torch.stack([row.relu() for row in h]),
    "samples in a list": lambda h: torch.cat([h[i : i + 1] * (i + 1) for i in range(len(h))]),
    "batch last": lambda h: h.movedim(0, -1).relu().movedim(-1, 0),
    "batch merged": lambda h: h.reshape(-1, *h.shape[2:]).relu().reshape(h.shape),
    "hstack": lambda h: torch.hstack([h, h]),
    "scatter": lambda h: torch.zeros_like(h).scatter(1, torch.zeros_like(h, dtype=torch.long)[:, :1], h[:, :1]) + h,
    "new tensor": lambda h: h + torch.zeros(h.shape, dtype=h.dtype) + h.new_tensor([0.3]),
    "list of numbers": lambda h: h * torch.tensor([0.5] * h.shape[-1], dtype=h.dtype),
}


@hostile()
def by_hand(c, w, h):
    """Piecewise-linear functions and constants as people write them by hand."""
    return BY_HAND[c("kind", *BY_HAND)](h)


# ------------------------------------------------------------------------ what changes a derivative and not the value


# What a branch computes; it broadcasts against h.
INNER: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "mean": lambda w, h: h.mean(-1, keepdim=True),
    "dense": dense,
    "itself": lambda w, h: h,
    "relu": lambda w, h: torch.relu(h),
    "amax": lambda w, h: h.amax(1, keepdim=True),
    "tanh": lambda w, h: torch.tanh(h),
    "weight": lambda w, h: w.parameter("weight", h.shape[-1]) * 1.5,
    "mean of the batch": lambda w, h: h.mean(0, keepdim=True),
}


def _inner(c, w, h: Tensor) -> Tensor:
    return INNER[c("inner", *INNER)](w, h)


def _closed(mode: Any) -> Callable[..., Tensor]:
    def run(c, w, h):
        # Weights, which are made while a critic is drawn, are no inference tensors.
        with contextlib.nullcontext() if c.chance else mode():
            return _inner(c, w, h)

    return run


def _decorated(mode: Any) -> Callable[..., Tensor]:
    return lambda c, w, h: _inner(c, w, h) if c.chance else mode()(_inner)(c, w, h)


def _switched(c, w, h):
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    try:
        return _inner(c, w, h)
    finally:
        torch.set_grad_enabled(before)


def _opened_within(c, w, h):
    # With gradients off throughout, as in a validation, they stay off.
    with torch.no_grad(), torch.set_grad_enabled(c("open", True, False)):
        return _inner(c, w, h)


BRANCHES: dict[str, Callable[..., Tensor]] = {
    "no_grad": _closed(torch.no_grad),
    "@no_grad": _decorated(torch.no_grad),
    "set_grad_enabled": _closed(lambda: torch.set_grad_enabled(False)),
    "@set_grad_enabled": _decorated(lambda: torch.set_grad_enabled(False)),
    "set_grad_enabled, called": _switched,
    "no_grad, enable_grad": _opened_within,
    "inference_mode": _closed(torch.inference_mode),
    "@inference_mode": _decorated(torch.inference_mode),
    "detach": lambda c, w, h: _inner(c, w, h).detach(),
    "detach before": lambda c, w, h: _inner(c, w, h.detach()),
    "data": lambda c, w, h: _inner(c, w, h).data,
    "detach_": lambda c, w, h: (_inner(c, w, h) * 1).detach_(),
    "no_grad, clone": lambda c, w, h: _closed(torch.no_grad)(c, w, h).clone(),
    "clone in no_grad": lambda c, w, h: torch.no_grad()(torch.clone)(_inner(c, w, h)),
    "out of a list": lambda c, w, h: [_closed(torch.no_grad)(c, w, h), h][0],
}


COMBINED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "subtract": operator.sub,
    "add": lambda h, part: 0.5 * h + part,
    "product": operator.mul,
    "cat": lambda h, part: torch.cat([h, part.expand_as(h)], 1),
    "maximum": lambda h, part: torch.maximum(h, 0.7 * part + 0.013),
    "in place": lambda h, part: operator.isub(h * 1, part),
    "alone": lambda h, part: part.expand_as(h) + 0.1 * h.mean(axes(h), keepdim=True),
}


@hostile(times=5)
def branch(c, w, h):
    """A part that autograd does not see."""
    part = BRANCHES[c("kind", *BRANCHES)](c, w, h)
    return COMBINED[c("combine", *COMBINED)](h, part)


def _after(change: Callable[[Tensor], Any], h: Tensor) -> Tensor:
    """h itself, once it was changed."""
    change(h)
    return h


def _with_hook(h: Tensor) -> Tensor:
    if h.requires_grad:
        h.register_hook(lambda grad: grad * 3)
    return h


# Weights read or changed where autograd does not look.
UNSEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "no_grad": torch.no_grad()(lambda weight: weight * 0.5),
    "detach": lambda weight: weight.detach() * 0.5 + weight * 0.1,
    "data": lambda weight: weight.data * 0.5,
    "clipped": lambda weight: _after(lambda weight: weight.data.clamp_(-0.8, 0.8), weight),
    "clipped under no_grad": lambda weight: _after(torch.no_grad()(lambda weight: weight.clamp_(-0.8, 0.8)), weight),
    "normalised": lambda weight: weight / weight.detach().norm(),
    "hooked": lambda weight: _with_hook(weight * 0.5),
    "copied": lambda weight: torch.empty_like(weight).copy_(weight) * 0.5,
}


@hostile(times=2)
def weight_without_gradient(c, w, h):
    weight = w.parameter("weight", h.shape[-1], h.shape[-1])
    return F.linear(h, UNSEEN[c("kind", *UNSEEN)](weight) * 0.5)


# The conditions under which people register hooks.
IN_GRAPH: dict[str, Callable[[Tensor], bool]] = {
    "always": lambda h: torch.is_grad_enabled() and h.requires_grad,
    "requires_grad": lambda h: h.requires_grad,
    "grad_fn": lambda h: h.grad_fn is not None,
    "not is_leaf": lambda h: not h.is_leaf,
}


@hostile(times=3)
def hook(c, w, h):
    """A hook on a tensor."""
    h = h * 1.1 if c("fresh", True, True, False) else h
    condition, kind = c("if", *IN_GRAPH), c("kind", *HOOKS)
    if IN_GRAPH[condition](h):
        HOOKS[kind](w, h)
    return dense(w, h)


HOOKS: dict[str, Callable[..., Any]] = {
    "scale": lambda w, h: h.register_hook(lambda grad: grad * 3),
    "clip": lambda w, h: h.register_hook(lambda grad: grad.clamp(-0.1, 0.1)),
    "observe": lambda w, h: h.register_hook(functools.partial(_observe, w)),
    "node": lambda w, h: h.grad_fn.register_hook(lambda ins, outs: tuple(None if g is None else g * 2 for g in ins)),
    "before node": lambda w, h: h.grad_fn.register_prehook(lambda outs: tuple(g * 2 for g in outs)),
    "retain_grad": lambda w, h: h.retain_grad(),
    "removed": lambda w, h: h.register_hook(lambda grad: grad * 3).remove(),
}


def _observe(w, grad: Tensor) -> None:
    w.seen = [*getattr(w, "seen", []), float(grad.detach().norm())]


def _counts(module, *rest):
    module.calls = getattr(module, "calls", 0) + 1


def _doubles(module, grads, *rest):
    return tuple(None if g is None else g * 2 for g in grads)


# What changes as what passes through a module, by what it is registered as.
MODULE_HOOKS: dict[str, Callable[..., Any]] = {
    "forward_hook": lambda module, inputs, output: output * 0.5,
    "forward_pre_hook": lambda module, inputs: (inputs[0] + 0.3,),
    "full_backward_hook": _doubles,
    "full_backward_pre_hook": _doubles,
    "backward_hook": _doubles,
}


@hostile(times=2)
def module_hook(c, w, h):
    """A layer with hooks on it."""
    kind, changes = c("kind", *MODULE_HOOKS), c("changes", True, False)
    new = not hasattr(w, "layer")
    layer = w.module("layer", nn.Linear, h.shape[-1], 3)
    if new:
        getattr(layer, f"register_{kind}")(MODULE_HOOKS[kind] if changes else _counts)
    return layer(h)


def custom(**methods: Callable[..., Any]) -> Callable[..., Any]:
    """`apply` of a custom autograd Function."""
    static = {name: staticmethod(method) for name, method in methods.items()}
    return type("Custom", (torch.autograd.Function,), static).apply


def _doubled_in_place(ctx, h):
    ctx.mark_dirty(h)
    return h.mul_(2)


_doubled = custom(forward=_doubled_in_place, backward=lambda ctx, grad: grad * 6)
_pair = custom(forward=lambda ctx, h: (h * 2, h * 3), backward=lambda ctx, first, second: first * 2)
_constant = custom(forward=lambda ctx, h: h + 0.3, backward=lambda ctx, grad: None)

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "half its gradient": custom(forward=lambda ctx, h: h.view_as(h), backward=lambda ctx, grad: grad / 2),
    "itself": custom(forward=lambda ctx, h: h, backward=lambda ctx, grad: grad / 2),
    "straight through": custom(forward=lambda ctx, h: h.sign(), backward=lambda ctx, grad: grad),
    "relu": custom(
        forward=lambda h: h.clamp(min=0),
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
        backward=lambda ctx, grad: grad * (ctx.saved_tensors[0] > 0),
    ),
    "in place": lambda h: _doubled(h * 1),
    "in place, result ignored": lambda h: _after(_doubled, h * 1),
    "pair": lambda h: torch.add(*_pair(h)),
    "first of a pair": lambda h: _pair(h)[0],
    "no gradient": lambda h: _constant(h) + h,
}

# The same entries, in other memory or in the same.
SAME_ENTRIES: dict[str, Callable[[Tensor], Tensor]] = {
    "itself": lambda h: h,
    "clone": lambda h: h.clone(),
    "contiguous": lambda h: h.contiguous(),
    "to": lambda h: h.to(h.dtype),
    "type_as": lambda h: h.type_as(h),
    "view_as": lambda h: h.view_as(h),
    "expand": lambda h: h.expand_as(h),
    "flatten": lambda h: h.flatten(1),
    "reshape": lambda h: h.reshape(len(h), -1),
    "transpose": lambda h: h.transpose(1, -1),
    "einsum": lambda h: torch.einsum("bi->bi", h.flatten(1)),
    "identity": nn.Identity(),
}
AFTERWARDS: dict[str, Callable[[Tensor], Tensor]] = {
    **SAME_ENTRIES,
    "channels_last": lambda h: h.contiguous(memory_format=torch.channels_last) if h.dim() == 4 else h,
    "copy": lambda h: h.to(h.dtype, copy=True),
    "there and back": lambda h: h.float().to(h.dtype),
    "slice": lambda h: h[:, :1],
    "number": lambda h: h * 0.7,
    "iadd": lambda h: operator.iadd(h, 0.3),
    "relu_": lambda h: F.relu(h, inplace=True),
    "cat": lambda h: torch.cat([h, h], 1),
    "stack": lambda h: torch.stack([h, h], 1).mean(1),
    "mean": lambda h: h.mean(-1, keepdim=True),
    "dropout": lambda h: F.dropout(h, 0.0, True),
    "chunk": lambda h: torch.cat(h.chunk(2, -1)[::-1], -1),
    "detached mean": lambda h: h - h.detach().mean(-1, keepdim=True),
    "positive": lambda h: +h,
}


@hostile(times=4)
def function(c, w, h):
    """A custom autograd Function and what comes behind it."""
    h = FUNCTIONS[c("kind", *FUNCTIONS)](dense(w, h) if c("behind dense", False, True) else h)
    return AFTERWARDS[c("after", *AFTERWARDS)](h)


@hostile()
def packed(c, w, h):
    """Tensors that are saved for backward, and come out otherwise."""
    kind = c("kind", "halved", "as they are", "checkpoint", "checkpoint with weights")
    if kind == "checkpoint":
        return checkpoint(torch.relu, h, use_reentrant=False)
    if kind == "checkpoint with weights":
        return checkpoint(lambda h: dense(w, h).relu(), h, use_reentrant=False)
    factor = 0.5 if kind == "halved" else 1
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t * factor, lambda t: t):
        return dense(w, h)


# -------------------------------------------------------------------------------- aliasing and in place

VIEWS_OF: dict[str, Callable[[Tensor], Tensor]] = {
    **SAME_ENTRIES,
    "view": lambda h: h.view(h.shape),
    "einsum, itself": lambda h: torch.einsum("b...->b...", h),
    "einsum, transposed": lambda h: torch.einsum("bij->bji", h.flatten(2)) if h.dim() > 2 else h,
    "half": lambda h: h[:, : (h.shape[1] + 1) // 2],
    "strided": lambda h: h[..., ::2],
    "first": lambda h: h[:, 0],
    "last": lambda h: h[..., -1],
    "narrow": lambda h: h.narrow(-1, 0, 1),
    "select": lambda h: h.select(1, 0),
    "unsqueeze": lambda h: h.unsqueeze(1),
    "squeeze": lambda h: h.unsqueeze(1).squeeze(1),
    "chunk": lambda h: h.chunk(2, -1)[0],
    "split": lambda h: h.split(1, 1)[0],
    "unbind": lambda h: h.unbind(1)[0],
    "tensor_split": lambda h: h.tensor_split(2, -1)[0],
    "unfold": lambda h: h.unfold(-1, 1, 1),
    "diagonal": lambda h: h.diagonal(0, 1, 2),
    "broadcast": lambda h: torch.broadcast_to(h, h.shape),
    "permute": lambda h: h.permute(0, *reversed(range(1, h.dim()))),
    "as_strided": lambda h: h.as_strided((len(h), 1), (h.stride(0), 1)),
    "no dropout": lambda h: F.dropout(h, 0.5, False),
    "detach": lambda h: h.detach(),
    "data": lambda h: h.data,
    "sample": lambda h: h[0],
    "samples": lambda h: h[1:],
    "real": lambda h: h.real,
    "pad nothing": lambda h: F.pad(h, (0, 0)),
    "atleast": lambda h: torch.atleast_2d(h),
    "ravel": lambda h: h.flatten(1).view(h.shape),
    "moved": lambda h: h.movedim(1, -1),
    "rolled by nothing": lambda h: h.roll(0, 1),
    "flattened twice": lambda h: h.flatten(1)[:, 1:].flatten(1),
}


_FIRST = (slice(None), slice(1))

WRITES: dict[str, Callable[[Tensor, float, Any], Any]] = {
    "mul_": lambda view, by, w: view.mul_(by),
    "add_": lambda view, by, w: view.add_(by),
    "neg_": lambda view, by, w: view.neg_(),
    "relu_": lambda view, by, w: torch.relu_(view),
    "F.relu": lambda view, by, w: F.relu(view, inplace=True),
    "leaky_relu_": lambda view, by, w: F.leaky_relu_(view, 0.2),
    "clamp_": lambda view, by, w: view.clamp_(-0.5, 0.6),
    "zero_": lambda view, by, w: view.zero_(),
    "fill_": lambda view, by, w: view.fill_(by),
    "copy_": lambda view, by, w: view.copy_(w.parameter("written", *view.shape[1:])),
    "add_ weight": lambda view, by, w: view.add_(w.parameter("written", *view.shape[1:])),
    "mul_ weight": lambda view, by, w: view.mul_(w.positive("written", *view.shape[1:])),
    "set": lambda view, by, w: operator.setitem(view, ..., by),
    "set part": lambda view, by, w: operator.setitem(view, _FIRST, by),
    "multiply part": lambda view, by, w: operator.setitem(view, _FIRST, operator.imul(view[_FIRST], by)),
    "set from itself": lambda view, by, w: operator.setitem(view, _FIRST, view[:, -1:] * by),
    "masked_fill_": lambda view, by, w: view.masked_fill_(torch.arange(view.shape[-1]) % 2 == 0, by),
    "sub_ itself": lambda view, by, w: view.sub_(view.detach() * 0.5),
    "add_ mean": lambda view, by, w: view.add_(view.mean(-1, keepdim=True)),
    "div_": lambda view, by, w: view.div_(by),
    "tanh_": lambda view, by, w: view.tanh_(),
    "index_fill_": lambda view, by, w: view.index_fill_(1, torch.tensor([0]), by),
    "dropout_": lambda view, by, w: F.dropout(view, 0.3, True, inplace=True),
}


COPIES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "number": lambda w, h: h * 1.1,
    "weight": lambda w, h: h + w.parameter("shift", h.shape[-1]),
    "clone": lambda w, h: h.clone(),
    "dense": dense,
    "cat": lambda w, h: torch.cat([h, h * 0.3], 1),
}


@hostile(times=6)
def alias(c, w, h):
    """Writes through a view, and reads what lies under it."""
    base = COPIES[c("copy", *COPIES)](w, h)
    before = base * 0.5 if c("read before", False, False, True) else None
    view = VIEWS_OF[c("view", *VIEWS_OF)](base)
    if c("view of the view", False, False, True):
        view = VIEWS_OF[c("second view", *VIEWS_OF)](view)
    require(view.dim() > 0 and view.numel() > 0)
    write, by = c("write", *WRITES), c("by", *NUMBERS)
    # PyTorch draws a mask in the order of memory, which the recording does not follow.
    require(write != "dropout_" or not c.chance or view.is_contiguous())
    WRITES[write](view, by, w)
    read = c("read", "base", "base", "view", "both")
    require(read == "base" or len(view) == len(base))
    result = base if read == "base" else view
    if read == "both":
        result = base + 0.3 * view.reshape(len(base), -1).sum(1).view(-1, *[1] * (base.dim() - 1))
    return result if before is None else torch.cat([result.flatten(1), before.flatten(1)], 1)


@hostile(times=2)
def written_into(c, w, h):
    """An x-dependent value written into a tensor that was made for it."""
    made = c("made", "empty_like", "zeros_like", "new_zeros", "zeros", "buffer")
    out = {
        "empty_like": lambda: torch.empty_like(h),
        "zeros_like": lambda: torch.zeros_like(h),
        "new_zeros": lambda: h.new_zeros(h.shape),
        "zeros": lambda: torch.zeros(h.shape, dtype=h.dtype),
        "buffer": lambda: w.buffer("out", *h.shape[1:]).clone().expand(h.shape).clone(),
    }[made]()
    how = c("how", "copy_", "set", "set part", "add_", "iadd", "set samples")
    if how == "copy_":
        out.copy_(h)
    elif how == "set":
        out[:] = h
    elif how == "set part":
        out.zero_()
        out[:, :1] = h[:, -1:] * 0.5
        out = out + h
    elif how == "set samples":
        for i in range(len(h)):
            out[i] = h[i] * 2
    else:
        out.fill_(0.25)
        out = out.add_(h) if how == "add_" else out.__iadd__(h)
    return out * 1.1


# -------------------------------------------------------------------------------- stateful


_REMEMBERED = ("calls", "log", "notes", "moving", "moved", "last", "generator", "flips", "features", "cache", "seen")
_REMEMBERED += ("initialised", "lazy")


def forget(critic: nn.Module) -> None:
    """Takes away what the forwards that drew the critic left, so that its first call is a first call."""
    for module in critic.modules():
        for name in _REMEMBERED:
            if name in vars(module) or name in module._parameters:
                delattr(module, name)
        if "initialised" in module._buffers:
            module.initialised.fill_(1)


def kept(w, name: str, make: Callable[[], Any]) -> Any:
    """An attribute that is no buffer, made when it is first asked for."""
    if not hasattr(w, name):
        setattr(w, name, make())
    return getattr(w, name)


def calls(w) -> int:
    """How many there were with this one."""
    w.calls = getattr(w, "calls", 0) + 1
    return w.calls


def _counter_in_list(w, h):
    log = kept(w, "log", list)
    log.append(len(log))
    return h * (1 + 0.1 * len(log))


def _counter_in_dict(w, h):
    notes = kept(w, "notes", Counter)
    notes["calls"] += 1
    return h + notes["calls"]


def _tensor_attribute(w, h):
    w.moving = kept(w, "moving", lambda: torch.ones(h.shape[-1], dtype=h.dtype)) * 0.9
    return h * w.moving


def _reassigned_buffer(w, h):
    w.buffer("count", h.shape[-1])
    w.count = w.count * 0.9 + 0.1
    return h * w.count


def _buffer_through_data(w, h):
    level = w.buffer("level", h.shape[-1])
    level.data = level.data * 0.9
    return h * level


def _refreshed(use: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """A buffer that is read, then moved on in place: what the passes would read is not what the forward read."""

    def run(w, h):
        level = w.buffer("level", h.shape[-1])
        y = use(h, level)
        level.mul_(0.5)
        return y

    return run


def _statistics(w, h):
    mean = w.buffer("mean", h.shape[-1])
    with torch.no_grad():
        mean.lerp_(h.detach().flatten(0, -2).mean(0), 0.1)
    return h - mean.clone()


def _statistics_unused(w, h):
    """As a running mean that only validation reads."""
    mean = w.buffer("mean", h.shape[-1])
    mean.copy_(0.9 * mean + 0.1 * h.detach().flatten(0, -2).mean(0))
    return h * 1.3


def _statistics_as_attribute(w, h):
    w.last = float(h.detach().mean())
    return h * 1.3


def _own_generator(w, h):
    generator = kept(w, "generator", lambda: torch.Generator().manual_seed(7))
    return h + 0.3 * torch.rand(h.shape[1:], generator=generator, dtype=h.dtype)


def _dropped_layer(w, h):
    """Stochastic depth."""
    layer = dense(w, h)
    return h + layer if float(torch.rand(())) < 0.7 else h * 1


def _power_iteration(w, h):
    """The widely copied spectral norm, which keeps u and v in Parameters and moves them through `.data`."""
    weight = w.parameter("weight_bar", h.shape[-1], h.shape[-1])
    u, v = w.parameter("weight_u", h.shape[-1]), w.parameter("weight_v", h.shape[-1])
    u.requires_grad_(False), v.requires_grad_(False)
    v.data = F.normalize(torch.mv(weight.data.t(), u.data), dim=0, eps=1e-12)
    u.data = F.normalize(torch.mv(weight.data, v.data), dim=0, eps=1e-12)
    return F.linear(h, weight / u.dot(weight.mv(v)))


def _power_iteration_in_place(w, h):
    weight = w.parameter("weight_bar", h.shape[-1], h.shape[-1])
    u = w.buffer("weight_u", h.shape[-1])
    with torch.no_grad():
        v = F.normalize(weight.t() @ u, dim=0)
        u.copy_(F.normalize(weight @ v, dim=0))
    return F.linear(h, weight / u.clone().dot(weight.mv(v)))


def _act_norm(w, h):
    """Sets its shift by the first batch that it sees."""
    shift = w.parameter("shift", h.shape[-1])
    if not getattr(w, "initialised", False):
        shift.data.copy_(-h.detach().flatten(0, -2).mean(0))
        w.initialised = True
    return h + shift


def _act_norm_by_buffer(w, h):
    shift, done = w.parameter("shift", h.shape[-1]), w.whole("initialised", 1)
    if done.item() < 8:
        with torch.no_grad():
            shift.copy_(-h.mean(axes(h)[:-1] if h.dim() > 2 else 0).reshape(-1, h.shape[-1]).mean(0))
        done.fill_(8)
    return h + shift


def _lazy_weight(w, h):
    """Makes its weight when it is first called, as lazy modules do."""
    return h * kept(w, "lazy", lambda: nn.Parameter(torch.full((h.shape[-1],), 0.7, dtype=h.dtype)))


def _training_flag(w, h):
    w.flips = not getattr(w, "flips", False)
    return h.relu() if w.flips else h.tanh()


def _features(w, h):
    """Keeps an activation, for feature matching."""
    w.features = h
    return h.relu()


STATEFUL: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "counter": lambda w, h: h / calls(w),
    "counter in a list": _counter_in_list,
    "counter in a dict": _counter_in_dict,
    "tensor attribute": _tensor_attribute,
    "tensor attribute in place": lambda w, h: (
        h + kept(w, "moved", lambda: torch.ones(h.shape[-1], dtype=h.dtype)).mul_(0.9)
    ),
    "reassigned buffer": _reassigned_buffer,
    "buffer in place": lambda w, h: h * w.buffer("level", h.shape[-1]).mul_(0.9).add_(0.05),
    "buffer through data": _buffer_through_data,
    "buffer refreshed": _refreshed(operator.add),
    "buffer used, then refreshed": _refreshed(operator.mul),
    "statistics": _statistics,
    "statistics, unused": _statistics_unused,
    "statistics as an attribute": _statistics_as_attribute,
    "own generator": _own_generator,
    "random": lambda w, h: h * (1 + random.random()),
    "numpy.random": lambda w, h: h * (1 + np.random.random()),  # noqa: NPY002 (as critics do it)
    "torch.rand": lambda w, h: h * 2 if torch.rand(()) < 0.5 else h - 1,
    "dropped layer": _dropped_layer,
    "power iteration through data": _power_iteration,
    "power iteration in place": _power_iteration_in_place,
    "hooked spectral norm": lambda w, h: w.module("layer", nn.Linear, h.shape[-1], 3, norm="spectral by a hook")(h),
    "ActNorm": _act_norm,
    "ActNorm, flag in a buffer": _act_norm_by_buffer,
    "lazy weight": _lazy_weight,
    "flag": _training_flag,
    "curved every other time": lambda w, h: torch.tanh(h) if calls(w) % 2 == 0 else torch.relu(h),
    "curved from the second on": lambda w, h: torch.tanh(h) if calls(w) > 1 else torch.relu(h),
    "curved by batch": lambda w, h: torch.tanh(h) if h.shape[0] % 2 else torch.relu(h),
    "features": _features,
    "frozen in forward": lambda w, h: h * w.parameter("frozen", h.shape[-1]).requires_grad_(False),
    # Draws once and keeps what it drew.
    "cached": lambda w, h: h + kept(w, "cache", lambda: torch.randn(h.shape[-1], dtype=h.dtype)),
}


@hostile(times=5)
def stateful(c, w, h):
    """Something that moves on with every forward, and moves the result."""
    return STATEFUL[c("kind", *STATEFUL)](w, h)


# Random numbers from PyTorch's own state.
DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda h: F.dropout(h, 0.4, True),
    "alpha_dropout": lambda h: F.alpha_dropout(h, 0.4, True),
    "feature_alpha_dropout": lambda h: F.feature_alpha_dropout(h, 0.4, True),
    "rand_like": lambda h: h + torch.rand_like(h),
    "bernoulli": lambda h: h * torch.bernoulli(torch.full(h.shape, 0.6, dtype=h.dtype)),
    "normal_": lambda h: h + h.new_empty(h.shape).normal_(),
    "randint": lambda h: h * torch.randint(1, 3, h.shape[1:]),
}


@hostile()
def draws(c, w, h):
    require(h.is_contiguous())
    return DRAWS[c("kind", *DRAWS)](h)


# -------------------------------------------------------------------------------- and the rest


@hostile()
def region(c, w, h):
    """A part with autocast of its own."""
    with torch.autocast("cpu", torch.bfloat16, enabled=c("enabled", True, False)):
        y = dense(w, h)
        y = y if c("within", True, False) else y.to(h.dtype)
    return y.to(h.dtype)


@hostile()
def argument(c, w, h):
    """The critic's further argument."""
    given = w.given.to(h.dtype).view(-1, *[1] * (h.dim() - 1))
    how = c("how", "add", "multiply", "cat", "maximum")
    if how == "cat":
        return torch.cat([h, given.expand(len(h), 1, *h.shape[2:])], 1)
    return {"add": torch.add, "multiply": torch.mul, "maximum": torch.maximum}[how](h, given)


@hostile()
def containers(c, w, h):
    """Modules that hold others."""
    kind = c("kind", "parallel", "sequential", "list", "dict", "nested call")
    layer = w.module("layer", nn.Linear, h.shape[-1], 3)
    if kind == "parallel":
        return w.owned("parallel", lambda: nn.DataParallel(layer))(h)
    if kind == "sequential":
        return nn.Sequential(layer, nn.ReLU())(h)
    if kind == "list":
        return sum(part(h) for part in nn.ModuleList([layer, layer]))
    if kind == "dict":
        return nn.ModuleDict({"a": layer})["a"](input=h)
    return layer.forward(h) + layer(h)
