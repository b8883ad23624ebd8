"""The critic's value, input gradient and normalised value as differentiable functions of weights and input."""

import contextlib
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.modules.module as torch_modules
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

from gnfast.engine import heads, passes, reference
from gnfast.engine.heads import Head, Method
from gnfast.engine.once_differentiable import once_differentiable
from gnfast.engine.small_critics import normalized_by_two_kernels
from gnfast.errors import FallbackWarning, InputError
from gnfast.interop import surroundings
from gnfast.interop.uncompiled import uncompiled
from gnfast.plan.fused import Contribution, Pending
from gnfast.plan.op import autocast_dtype, per_sample
from gnfast.plan.plan import Plan, Refusal
from gnfast.plan.recorder import Refused
from gnfast.plan.state import capturing, unchanged
from gnfast.plan.trace import record
from gnfast.plan.traced import has_own_rules
from gnfast.steps.memory import reuse_memory


def normalize_gradient(
    net_D: nn.Module,
    x: Tensor,
    *args: Any,
    method: Method = "gn",
    tau: float | None = None,
    eps: float | None = None,
    return_grad_norm: bool = False,
    impl: str = "auto",
    strict: bool = False,
    rewrite: bool = True,
    **kwargs: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """The gradient-normalised critic f̂, exact and without double backward; GN-GAN's f / (‖∇ₓf‖ + |f|) by default.

    A drop-in for the function of that name in the papers' code (GN-GAN, Wu et al., ICCV 2021, eq. 9).

    Args:
        net_D: the critic: x ↦ one logit per sample, shape (B,), (B, 1) or (B, 1, 1, 1).
        x: (B, ...) floating point, on the device of `net_D`. Not modified; need not require a gradient.
        *args, **kwargs: passed to `net_D` after x (labels, say).
        method: the normaliser: "gn", "gn0", "gn1" (GN-GAN with ζ = |f|, 0, 1), "gran" (GraN-GAN), "pgn" (PGN-GAN as its
            code has it), "pgn-table" (as its Table I has it); or a function φ(f, n) of two broadcastable tensors, or a
            `gnfast.Head`. `gnfast.heads` has the formulas.
        tau, eps: GraN's τ (1) and ε (0.1).
        return_grad_norm: return also ‖∇ₓf̂‖₂ (B,), which costs no further pass; a third derivative where double
            backward is used.
        impl: "auto" takes the four passes and falls back to exact double backward, with one warning, where they do
            not apply; "reference" is double backward.
        strict: raise instead of falling back.
        rewrite: merge operations where that is exact and cheaper (a convolution with the pooling behind it, say).

    Returns:
        f̂, of f's shape, differentiable once with respect to the weights, x and other tensors that require gradients
        (any number of times with impl="reference"); and ‖∇ₓf̂‖₂ (B,) if asked for, differentiable in the same way. What
        holds at n = 0 and f = 0 is said in `gnfast.heads`.

    Raises:
        UnsupportedError: `strict` and the network is outside what the four passes do, named by submodule and operation;
            or `torch.jit.trace` or `torch.export` records the call.
        InputError: an argument of the wrong kind, shape, dtype or device, or a network with DDP or FSDP inside.
    """
    head = heads.find(method, tau=tau, eps=eps)

    def finish(f: Tensor, g: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        f_hat = heads.apply_head(head, f, g)
        return (f_hat, heads.normalized_grad_norm(head, f, g)) if return_grad_norm else f_hat

    def fall_back(critic: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor | tuple[Tensor, Tensor]:
        def normalized(x: Tensor) -> Tensor:
            f, g = critic(x)
            if return_grad_norm and f.numel() != len(x):
                raise InputError(
                    f"return_grad_norm: wanted one logit per sample, got {tuple(f.shape)} from the network"
                )
            with _without_autocast(x):
                return heads.apply_head(heads.plain(head), f, g)

        if not return_grad_norm:
            return normalized(x)
        f_hat, g = reference.input_grad(normalized, x)
        return f_hat, heads.grad_norm(g)

    whole = head if head.partials is not None and not return_grad_norm else None
    return _run(finish, net_D, x, args, kwargs, impl, strict, rewrite, whole, fall_back)


def value_and_grad_norm(
    net: nn.Module, x: Tensor, *args: Any, impl: str = "auto", strict: bool = False, rewrite: bool = True, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """The critic's value and the norm of its input gradient per sample.

    Arguments and errors as for `normalize_gradient`.

    Returns:
        f as `net` returns it, and n (B,) = ‖∇ₓf‖₂ over all entries of a sample, in float32 or better; both
        differentiable once with respect to weights and x (n's gradient with respect to x is 0 almost everywhere, and 0
        at n = 0).
    """
    return _run(lambda f, g: (f, heads.grad_norm(g)), net, x, args, kwargs, impl, strict, rewrite)


def value_and_input_grad(
    net: nn.Module, x: Tensor, *args: Any, impl: str = "auto", strict: bool = False, rewrite: bool = True, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """The critic's value and its gradient with respect to the input.

    Arguments and errors as for `normalize_gradient`.

    Returns:
        f as `net` returns it, and g of x's shape = ∇ₓf; both differentiable once with respect to weights and x.
    """
    return _run(lambda f, g: (f, g), net, x, args, kwargs, impl, strict, rewrite)


class _FourPasses(torch.autograd.Function):
    """(x, operands) ↦ (f, g): passes 1 and 2 forward, pass 3 backward (docs/algorithm.md)."""

    @staticmethod
    def forward(ctx, plan: Plan, keep: bool, x: Tensor, *operands: Tensor) -> tuple[Tensor, Tensor]:
        f, g, masks, cotangents = _value_and_input_grad(plan, keep, x, operands)
        g = g.tensor
        ctx.set_materialize_grads(False)
        ctx.plan, ctx.masks, ctx.operand_count = plan, masks, len(operands)
        ctx.save_for_backward(x, g, *operands, *cotangents)
        return f, g

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_f: Tensor | None, grad_g: Tensor | None) -> tuple[Tensor | None, ...]:
        x, g, *rest = ctx.saved_tensors
        operands, cotangents = rest[: ctx.operand_count], rest[ctx.operand_count :]
        _, _, needs_x, *needs = ctx.needs_input_grad
        scale = None if grad_f is None else grad_f.reshape(-1)
        grad_x = per_sample(scale, g) * g if needs_x and scale is not None else None
        grads = [None] * len(operands)
        if any(needs) and not (grad_f is None and grad_g is None):
            start = passes.merged_tangent(x, scale, grad_g)
            with _without_autocast(x), reuse_memory(x.device):
                grads = passes.tangent(ctx.plan, start, scale, operands, needs, ctx.masks, cotangents)
        return None, None, grad_x, *grads


class _Normalized(torch.autograd.Function):
    """(x, operands) ↦ f̂: passes 1 and 2 and the head forward, pass 3 backward."""

    @staticmethod
    def forward(ctx, plan: Plan, head: Head, keep: bool, x: Tensor, *operands: Tensor) -> Tensor:
        f, g, masks, cotangents = _value_and_input_grad(plan, keep, x, operands)
        g, squares = g.with_squares(head.centre)
        f_hat, saved = heads.normalize(head, f, g, squares)
        ctx.plan, ctx.head, ctx.masks, ctx.counts = plan, head, masks, (len(saved), len(operands))
        ctx.save_for_backward(x, g, *saved, *operands, *cotangents)
        return f_hat

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, g, *rest = ctx.saved_tensors
        saved, rest = rest[: ctx.counts[0]], rest[ctx.counts[0] :]
        operands, cotangents = rest[: ctx.counts[1]], rest[ctx.counts[1] :]
        _, _, _, needs_x, *needs = ctx.needs_input_grad
        grads = [None] * len(operands)
        with _without_autocast(x), reuse_memory(x.device):
            scale, start, grad_x = heads.pull(ctx.head, tuple(saved), grad, x, g, any(needs), needs_x)
            if start is not None:
                grads = passes.tangent(ctx.plan, start, scale, operands, needs, ctx.masks, cotangents)
        return None, None, None, grad_x, *grads


def _value_and_input_grad(
    plan: Plan, keep: bool, x: Tensor, operands: tuple[Tensor, ...]
) -> tuple[Tensor, Contribution | Pending, list[Any], list[Tensor | None]]:
    """Passes 1 and 2: f, g, the masks and the cotangents that pass 3 needs."""
    f, masks = passes.forward(plan, x, operands)
    g, cotangents = passes.pending_input_gradient(plan, x.shape[0], torch.ones_like(f), operands, masks, keep)
    return f, g, masks, cotangents


@uncompiled("gnfast runs the network's own Python on every call")
def _run(
    finish: Callable[[Tensor, Tensor], Any],
    net: nn.Module,
    x: Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    impl: str,
    strict: bool,
    rewrite: bool,
    head: Head | None = None,
    fall_back: Callable[[Callable[[Tensor], tuple[Tensor, Tensor]]], Any] | None = None,
) -> Any:
    """finish(f, g) by the four passes, or what is the same by double backward where they do not apply.

    With `head`, the passes go on to f̂, which is then what finish(f, g) would return. Double backward goes through
    fall_back(x ↦ (f, g)) where finish(f, g) would not be exact for any critic.
    """
    _validate(net, x, impl)
    refusal = None
    if impl == "auto":
        try:
            plan, operands = _record(net, x, args, kwargs, rewrite)
        except Refused as error:
            if strict:
                raise
            refusal = error.refusal
        else:
            keep = torch.is_grad_enabled() and bool(plan.trainable)
            # Autocast has had its say when the network was recorded.
            with _without_autocast(x), reuse_memory(x.device):
                if head is not None:
                    f_hat = normalized_by_two_kernels(plan, head, keep, x, operands)
                    if f_hat is not None:
                        return f_hat
                    return _Normalized.apply(plan, head, keep, *_laid_out(plan, x, operands))
                f, g = _FourPasses.apply(plan, keep, *_laid_out(plan, x, operands))
                return finish(f, g.contiguous() if x.is_contiguous() else g)

    # The network's own errors, which a failed trace may have met first, come from here: no warning precedes them.
    def critic(x: Tensor) -> tuple[Tensor, Tensor]:
        return reference.value_and_input_grad(net, x, *args, **kwargs)

    if fall_back is not None:
        result = fall_back(critic)
    else:
        f, g = critic(x)
        with _without_autocast(x):
            result = finish(f, g)
    if refusal is not None:
        _warn_once(net, refusal)
    return result


_CHANNELS_LAST_DTYPES = {
    "cpu": (torch.float32,),
    # The kernels for tensor cores want it; those for float64 do not.
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}
_CHANNELS_LAST_WEIGHTS = ("cuda",)


def _laid_out(plan: Plan, x: Tensor, operands: list[Tensor]) -> list[Tensor]:
    """x and the operands in the memory format in which the passes are fastest; all that they make follows it.

    Convolutions would reorder a contiguous tensor and put it back, one by one and in every pass: the images and what
    comes of them, and on a GPU the weights too, of which this makes one small copy per call instead. Gradients arrive
    in the layout of what they belong to.
    """
    kind, layout = x.device.type, torch.channels_last
    if not plan.prefers_channels_last or x.dim() != 4 or x.dtype not in _CHANNELS_LAST_DTYPES.get(kind, ()):
        return [x, *operands]
    if kind in _CHANNELS_LAST_WEIGHTS:
        kernels = plan.kernels
        operands = [t.contiguous(memory_format=layout) if i in kernels else t for i, t in enumerate(operands)]
    return [x.contiguous(memory_format=layout), *operands]


def _without_autocast(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if autocast_dtype(kind) else contextlib.nullcontext()


@dataclass
class _Verdict:
    """What came of recording a network: why it was refused, if it was, and how many calls have relied on that."""

    refusal: Refusal | None = None
    calls: int = 0

    def holds(self) -> bool:
        """Whether a refusal stands for this call.

        A network may be refused on one call alone (a first one that initialises by its data), so it is recorded again,
        ever more rarely: the 2nd, 3rd, 5th, 9th, ... time. Under hooks on saved tensors it is every time:
        `torch.utils.checkpoint` takes what a second run saves for what the first has, in the order of saving.
        """
        self.calls += 1
        return self.calls & (self.calls - 1) != 0 and not surroundings.saved_tensor_hooks()


_Key = tuple[Any, ...]
_VERDICTS: "weakref.WeakKeyDictionary[nn.Module, dict[_Key, _Verdict]]" = weakref.WeakKeyDictionary()
_VERDICTS_PER_NETWORK = 64


def _record(
    net: nn.Module, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], rewrite: bool
) -> tuple[Plan, list[Tensor]]:
    """`record`, but a network that was refused before, in the same state, is mostly refused without running it."""
    if way := surroundings.transform():
        raise Refused(Refusal("", way, "the four passes have no rule for this transform"))
    if not (torch.is_grad_enabled() and x.requires_grad) and any(leaf is x for leaf in tree_leaves((args, kwargs))):
        raise Refused(Refusal("", "forward", "x itself is among its further arguments"))
    verdicts = _VERDICTS.setdefault(net, {})
    key = *_state_key(net, x), _static(args), _static(tuple(sorted(kwargs.items())))
    known = verdicts.get(key)
    if known is not None and known.refusal is not None and (known.holds() or capturing()):
        raise Refused(known.refusal)
    if known is None and len(verdicts) >= _VERDICTS_PER_NETWORK:
        verdicts.clear()
    # A refused recording must leave no trace: the fallback is about to run the same forward again.
    accepted = known is not None and known.refusal is None
    with unchanged(net, thorough=not accepted) as before:
        try:
            if before.irrevocable and not accepted:
                raise Refused(Refusal("", "forward", before.irrevocable))
            recording = _recorded(net, x, args, kwargs, rewrite, careful=not (accepted or capturing() or x.is_meta))
        except Refused as error:
            # An exception of the network's own may have to do with this call's arguments alone.
            if error.__cause__ is None:
                verdicts[key] = _Verdict(error.refusal, known.calls if known else 0)
            raise
        before.accept()
    if not accepted:
        verdicts[key] = _Verdict()
    return recording


def _recorded(
    net: nn.Module, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], rewrite: bool, careful: bool
) -> tuple[Plan, list[Tensor]]:
    try:
        plan, operands = record(net, x, args, kwargs, rewritten=rewrite, careful=careful)
    except (Refused, InputError):
        raise
    except Exception as error:
        reason = f"recording it raised {type(error).__name__}: {error}"
        raise Refused(Refusal("", "forward", reason)) from error
    if torch.is_grad_enabled() and x.requires_grad and any(_depends_on(operand, x) for operand in operands):
        raise Refused(Refusal("", "forward", "another tensor that it uses was computed from x, beside x itself"))
    return plan, operands


def _depends_on(tensor: Tensor, x: Tensor) -> bool:
    """Whether autograd leads from `tensor` back to x: then the input gradient has a part that the recording misses."""
    if tensor is x or tensor.grad_fn is None:
        return tensor is x
    source = tuple(torch.autograd.graph.get_gradient_edge(x)[:2])
    pending, seen = [(tensor.grad_fn, tensor.output_nr)], set()
    while pending:
        edge = pending.pop()
        if edge == source:
            return True
        node, _ = edge
        if node is not None and node not in seen:
            seen.add(node)
            pending += node.next_functions
    return False


def _state_key(net: nn.Module, x: Tensor) -> _Key:
    """What decides, beside the network's own Python, whether it can be recorded; refuses backward hooks on the way."""
    hooks = (x._backward_hooks or {}).values() if torch.is_grad_enabled() and x.requires_grad else ()
    # PyTorch's hooks on several tensors (`register_multi_grad_hook`) look on and change nothing.
    if any(getattr(hook, "__module__", None) != "torch.autograd.graph" for hook in hooks):
        raise Refused(Refusal("", "Tensor.register_hook", "a hook on x would not see the gradient of f"))
    if has_own_rules(type(x)):
        raise Refused(Refusal("", type(x).__name__, "x is of a subclass of Tensor with rules of its own"))
    if isinstance(x, FakeTensor):
        raise Refused(Refusal("", "FakeTensor", "it has no values, which a recording compares"))
    if torch_modules._global_backward_hooks or torch_modules._global_backward_pre_hooks:
        hook = "register_module_full_backward_hook"
        raise Refused(Refusal("", hook, "a backward hook for all modules would not see their gradients"))
    modules = []
    for module in net.modules():
        modules.append((id(module), module.training))
        if module._backward_hooks or module._backward_pre_hooks:
            name = next(name for name, m in net.named_modules() if m is module)
            raise Refused(Refusal(name, "register_full_backward_hook", "a backward hook would not see its gradients"))
    modes = torch.is_grad_enabled(), x.requires_grad, autocast_dtype(x.device.type)
    return (tuple(x.shape[1:]), x.dtype, x.device.type, *modes, *modules)


def _static(value: Any) -> Any:
    """What of an argument may decide which way the network's Python goes: numbers, strings, shapes; hashable."""
    if isinstance(value, Tensor):
        return tuple(value.shape[1:]), value.dtype
    if isinstance(value, (tuple, list)):
        return tuple(map(_static, value))
    return value if isinstance(value, (int, float, str, type(None))) else type(value)


def _warn_once(net: nn.Module, refusal: Refusal) -> None:
    warned = _WARNED.setdefault(net, set())
    if refusal not in warned:
        warned.add(refusal)
        warnings.warn(
            f"{type(net).__name__} goes through exact double backward, not the four passes: {refusal}",
            FallbackWarning,
            stacklevel=4,
        )


_WARNED: "weakref.WeakKeyDictionary[nn.Module, set[Refusal]]" = weakref.WeakKeyDictionary()


def _validate(net: nn.Module, x: Tensor, impl: str) -> None:
    if impl not in ("auto", "reference"):
        raise InputError(f"impl: got {impl!r}, wanted 'auto' or 'reference'")
    if not isinstance(net, nn.Module):
        raise InputError(f"net: got a {type(net).__name__}, wanted a torch.nn.Module")
    if not isinstance(x, Tensor):
        raise InputError(f"x: got a {type(x).__name__}, wanted a torch.Tensor of shape (B, ...)")
    if not x.is_floating_point():
        raise InputError(f"x: got dtype {x.dtype}, wanted a floating-point dtype (x.float() for images in bytes)")
    if x.dim() < 2:
        raise InputError(f"x: got shape {tuple(x.shape)}, wanted (B, ...) with the batch in axis 0")
    parameter = next(net.parameters(), None)
    if parameter is not None and parameter.device != x.device:
        devices = {p.device for p in net.parameters()}
        if x.device not in devices:
            raise InputError(f"x: got a tensor on {x.device}, wanted one on the network's device {parameter.device}")
    surroundings.require_unshared(net)
    surroundings.require_ordinary_execution()
