"""The critic's value, input gradient and normalised value as differentiable functions of weights and input."""

import weakref
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn

from gnfast.engine import heads, known
from gnfast.engine import static as static_recordings
from gnfast.engine.advice import advice
from gnfast.engine.head import require_rows
from gnfast.engine.heads import Head, Method
from gnfast.engine.ways import by_double_backward, by_kept, by_passes
from gnfast.errors import InputError, UnsupportedError, warn_user
from gnfast.interop import surroundings
from gnfast.interop.uncompiled import uncompiled
from gnfast.kernels.compiled import warn_uncompiled
from gnfast.plan.opaque import Refused
from gnfast.plan.plan import NORMALISED, Plan
from gnfast.plan.state import modules_of
from gnfast.plan.traced import Traced

Impl = Literal["auto", "reference"]
Memory = Literal["keep", "low"]


@overload
def normalize_gradient(
    net_D: nn.Module,
    x: Tensor,
    *args: Any,
    method: Method = ...,
    tau: float | None = ...,
    eps: float | None = ...,
    return_grad_norm: Literal[False] = ...,
    impl: Impl = ...,
    strict: bool = ...,
    rewrite: bool = ...,
    static: bool = ...,
    memory: Memory = ...,
    **kwargs: Any,
) -> Tensor: ...


@overload
def normalize_gradient(
    net_D: nn.Module,
    x: Tensor,
    *args: Any,
    method: Method = ...,
    tau: float | None = ...,
    eps: float | None = ...,
    return_grad_norm: Literal[True],
    impl: Impl = ...,
    strict: bool = ...,
    rewrite: bool = ...,
    static: bool = ...,
    memory: Memory = ...,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]: ...


@overload
def normalize_gradient(
    net_D: nn.Module,
    x: Tensor,
    *args: Any,
    method: Method = ...,
    tau: float | None = ...,
    eps: float | None = ...,
    return_grad_norm: bool,
    impl: Impl = ...,
    strict: bool = ...,
    rewrite: bool = ...,
    static: bool = ...,
    memory: Memory = ...,
    **kwargs: Any,
) -> Tensor | tuple[Tensor, Tensor]: ...


def normalize_gradient(
    net_D: nn.Module,
    x: Tensor,
    *args: Any,
    method: Method = "gn",
    tau: float | None = None,
    eps: float | None = None,
    return_grad_norm: bool = False,
    impl: Impl = "auto",
    strict: bool = False,
    rewrite: bool = True,
    static: bool = False,
    memory: Memory = "keep",
    **kwargs: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """The gradient-normalised critic f̂, exact and without double backward; GN-GAN's f / (‖∇ₓf‖ + |f|) by default.

    A drop-in for the function of that name in the papers' code (GN-GAN, Wu et al., ICCV 2021, eq. 11).

    Args:
        net_D: the critic: x ↦ one logit per sample, (B,) or (B, 1) say; of several, the gradient of their sum.
        x: (B, ...) floating point, on the device of `net_D`. Not modified; need not require a gradient.
        *args, **kwargs: passed to `net_D` after x (labels, say).
        method: the normaliser: "gn", "gn0", "gn1" (GN-GAN with ζ = |f|, 0, 1), "gran" (GraN-GAN), "gran-shift" (its
            1 / (n + ε)), "pgn" (PGN-GAN as its code has it), "pgn-table" (as its Table I has it); or a function φ(f, n)
            of two broadcastable tensors, or a `gnfast.Head`. `gnfast.heads` has the formulas.
        tau, eps: GraN's τ (1) and ε (0.1).
        return_grad_norm: also return ‖∇ₓf̂‖₂ (B,). It costs no further pass. A critic that is curved in x takes two more
            under `no_grad`, and double backward, for third derivatives, with a graph.
        impl: "auto" takes the passes and falls back to exact double backward, with one warning, where they do
            not apply; "reference" is double backward.
        strict: raise instead of falling back.
        rewrite: merge operations where that is exact and cheaper (a convolution with the pooling after it, say).
        static: a promise that `net_D` does the same operations on every call, with the same constants: its forward then
            runs once for each form of arguments and state, not on every call. Weights, buffers and tensor arguments are
            read anew, and what the forward computes from them is computed anew. What is seen to have changed (modules,
            their classes, the attributes of both, `train()`/`eval()`, `requires_grad`, shapes, strides, dtypes,
            autocast) makes it run again. Where more than this is needed (random numbers, forward hooks, values read,
            custom autograd Functions for weights), it runs on every call, with one warning. On a GPU the passes become
            CUDA graphs; a `method` of your own runs on every call.
        memory: "low": a critic that is curved in x keeps no activations between forward and backward, which costs its
            backward one more forward; masks, statistics and cotangents are kept. Other critics keep none anyway, and
            double backward keeps them all.

    Returns:
        f̂, of f's shape, differentiable once with respect to the weights, x and other tensors that require gradients
        (any number of times with impl="reference"); and ‖∇ₓf̂‖₂ (B,) if asked for, differentiable in the same way. What
        holds at n = 0 and f = 0 is said in `gnfast.heads`.

    Raises:
        UnsupportedError: `strict` and the network is outside what the passes do, named by submodule and operation;
            or `torch.jit.trace` or `torch.export` records the call.
        InputError: an argument of the wrong kind, shape, dtype or device, or a network with DDP or FSDP inside.
    """
    head = heads.find(method, tau=tau, eps=eps)
    options = _Options(impl, strict, rewrite, static, memory)
    return _run(net_D, x, args, kwargs, options, head, return_grad_norm)


def value_and_grad_norm(
    net: nn.Module,
    x: Tensor,
    *args: Any,
    impl: Impl = "auto",
    strict: bool = False,
    rewrite: bool = True,
    static: bool = False,
    memory: Memory = "keep",
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """The critic's value and the norm of its input gradient per sample.

    Arguments and errors as for `normalize_gradient`.

    Returns:
        f as `net` returns it, and n (B,) = ‖∇ₓf‖₂ over all entries of a sample, in float32 or better; both
        differentiable once with respect to weights and x (n's gradient with respect to x is 0 almost everywhere, and 0
        at n = 0).
    """
    f, g = _run(net, x, args, kwargs, _Options(impl, strict, rewrite, static, memory))
    require_rows(f, g)
    return f, heads.grad_norm(g)


def value_and_input_grad(
    net: nn.Module,
    x: Tensor,
    *args: Any,
    impl: Impl = "auto",
    strict: bool = False,
    rewrite: bool = True,
    static: bool = False,
    memory: Memory = "keep",
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """The critic's value and its gradient with respect to the input.

    Arguments and errors as for `normalize_gradient`.

    Returns:
        f as `net` returns it, and g of x's shape = ∇ₓf; both differentiable once with respect to weights and x.
    """
    return _run(net, x, args, kwargs, _Options(impl, strict, rewrite, static, memory))


class _Options(NamedTuple):
    """As in `normalize_gradient`."""

    impl: Impl
    strict: bool
    rewrite: bool
    static: bool
    memory: Memory

    @property
    def low(self) -> bool:
        return self.memory == "low"


@uncompiled("gnfast runs the network's own Python on every call")
def _run(
    net: nn.Module,
    x: Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: _Options,
    head: Head | None = None,
    with_norm: bool = False,
) -> Any:
    """(f, g), or with a head f̂, or (f̂, ‖∇ₓf̂‖): by the passes, or by double backward where they do not apply."""
    _validate(net, x, options)
    if isinstance(x, Traced) and options.impl == "auto":
        x.recorder.refuse(NORMALISED, operation="a call of gnfast")
    refusal = ""
    # Without samples there is nothing to gain, and shapes that do not say what they are made of.
    if options.impl == "auto" and len(x):
        warn_uncompiled(x.device.type)
        try:
            plan, operands, kept = _recording(net, x, args, kwargs, options, with_norm)
        except Refused as error:
            if error.refusal.reason == NORMALISED and (head is not None or torch.is_grad_enabled()):
                raise InputError(f"net: normalised already in {error.refusal.place}. {advice(error.refusal)}") from None
            refusal = f"{error.refusal}; print(gnfast.explain(net, x)) says what to write instead"
            if options.strict:
                raise UnsupportedError(refusal) from None
        else:
            if kept is None or (with_norm and plan.takes_six):
                return by_passes(plan, head, with_norm, options.low, x, operands)
            return by_kept(kept, head, with_norm, options.low, x, operands)
    # The network's own errors, which a failed trace may have met first, come from here: no warning precedes them.
    try:
        result = by_double_backward(net, x, args, kwargs, head, with_norm)
    except TypeError as error:
        if kwargs:
            error.add_note(f"gnfast passes on to the network what is no option of its own: {', '.join(kwargs)}")
        raise
    if refusal:
        _warn_once(net, refusal, "goes through exact double backward, not the passes")
    return result


def _recording(
    net: nn.Module,
    x: Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: _Options,
    with_norm: bool,
) -> tuple[Plan, list[Tensor], static_recordings.Kept | None]:
    """The Plan, its recorded operands, and what is kept of them; raises Refused where the passes do not apply."""
    normed = with_norm and torch.is_grad_enabled()
    if not options.static:
        return *known.plan_for(net, x, args, kwargs, options.rewrite, normed), None
    given = net, x, args, kwargs, options.strict, options.rewrite, normed
    plan, operands, kept = static_recordings.plan_for(*given)
    if not isinstance(kept, str):
        return plan, operands, kept
    if kept:
        _warn_once(net, kept, "is recorded on every call, static or not")
    return plan, operands, None


_WARNED: "weakref.WeakKeyDictionary[nn.Module, set[str]]" = weakref.WeakKeyDictionary()


def _warn_once(net: nn.Module, reason: str, what: str) -> None:
    warned = _WARNED.setdefault(net, set())
    if reason not in warned:
        warned.add(reason)
        warn_user(f"{type(net).__name__} {what}: {reason}")


def _validate(net: nn.Module, x: Tensor, options: _Options) -> None:
    if options.impl not in ("auto", "reference"):
        raise InputError(f"impl: got {options.impl!r}, wanted 'auto' or 'reference'")
    if options.memory not in ("keep", "low"):
        raise InputError(f"memory: got {options.memory!r}, wanted 'keep' or 'low'")
    require_critic(net, x)
    surroundings.require_ordinary_execution()


def require_critic(net: nn.Module, x: Tensor) -> None:
    """Raises InputError where these cannot be a critic and its input."""
    if not isinstance(net, nn.Module):
        raise InputError(f"net: got a {type(net).__name__}, wanted a torch.nn.Module")
    require_batch("x", x)
    parameter = next((p for module in modules_of(net) for p in module._parameters.values() if p is not None), None)
    if parameter is not None and parameter.device != x.device:
        devices = {p.device for p in net.parameters()}
        if x.device not in devices:
            raise InputError(f"x: got a tensor on {x.device}, wanted one on the network's device {parameter.device}")
    surroundings.require_unshared(net)


def require_batch(name: str, x: Tensor) -> None:
    """Raises InputError where an argument cannot be a batch of a critic's inputs."""
    if not isinstance(x, Tensor):
        raise InputError(f"{name}: got a {type(x).__name__}, wanted a torch.Tensor of shape (B, ...)")
    if not x.is_floating_point():
        raise InputError(
            f"{name}: got dtype {x.dtype}, wanted a floating-point dtype ({name}.float() for images in bytes)"
        )
    if x.dim() < 2:
        raise InputError(f"{name}: got shape {tuple(x.shape)}, wanted (B, ...) with the batch in axis 0")
