"""Tensors that are in the graph before their values are computed, so that a consumer may do without the values."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from gnfast.errors import UnsupportedError
from gnfast.interop.surroundings import saved_tensor_hooks
from gnfast.interop.uncompiled import uncompiled

Parts = Sequence[Tensor | None]
PutOff = Callable[[Callable[[], Tensor], torch.dtype], Tensor]
"""What makes a tensor without values of a kernel that would compute them, and of their dtype."""


class Deferred(Tensor):
    """A tensor without its values. Everything else is there: shape, dtype, device and the graph as PyTorch records it.

    Whoever looks at the values computes them first, and from then on this is the ordinary tensor that it would have
    been. One that a consumer has merged with stays a Deferred, because the consumer's gradient does not come by here:
    it refuses those who ask for its gradient, and is computed for all others.
    """

    statement: "Statement"

    def set_(self, *args: Any, **kwargs: Any) -> Tensor:
        """PyTorch's, which it does not offer to `__torch_function__`."""
        became = self.statement.became
        compute(self)
        return Tensor.set_(self if became is None else became, *args, **kwargs)

    @classmethod
    @uncompiled("Dynamo could not go on in a compiled submodule")
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return call(func, args, kwargs or {})


# Where a call of these arrives below autograd and autocast, or, in inference mode, before it is taken apart.
_KERNELS = {"aten::convolution", "aten::conv2d", "aten::add", "aten::upsample_nearest2d", "gnfast::winograd_conv2d"}


class Statement(TorchDispatchMode):
    """What a Deferred is the result of. While it is open, the kernel that a call ends in does not run."""

    def __init__(self, operation: Any, parts: Parts, shape: Sequence[int]) -> None:
        super().__init__()
        self.operation, self.parts, self.shape = operation, parts, shape
        self.kernel: Callable[[], Tensor] | None = None
        """Computes the values; None once that has been done."""
        self.reads = [part for part in parts if part is not None]
        """All tensors that `kernel`, or who merges, reads: they must not change before that."""
        self.result: Tensor | None = None
        self.merged = False
        self.became: Tensor | None = None
        """What an operation in place has made of it, under the name of which it goes on."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.kernel is not None and args and args[0] is self.result:
            # Winograd's result, into the layout that PyTorch would give it; mostly it has that already.
            kernel = self.kernel
            self.kernel = lambda: kernel().contiguous(**kwargs)
        elif func._schema.name in _KERNELS:
            self.kernel = functools.partial(func, *args, **kwargs)
            given = [arg for arg in args if isinstance(arg, Tensor)]
            self.reads += given
            # Of the dtype that autocast gave them, which autograd notes for the gradient of the result.
            self.result = _without_values(given[0], self.shape)
        else:
            return func(*args, **kwargs)
        return self.result

    def close(self, deferred: Tensor) -> None:
        """Makes the result a Deferred, and notes how things are."""
        self.result = None
        self.versions, self.node, self.conditions = _versions(self.reads), deferred.grad_fn, _conditions(deferred)
        deferred.statement, deferred.__class__ = self, Deferred

    def check(self) -> None:
        """Raises UnsupportedError where an input is not what it was."""
        if self.versions != _versions(self.reads):
            raise UnsupportedError(
                f"gnfast.rewrite put off {self.operation}, and before its result was used an input was changed in "
                "place by a call that does not show it: clone the input or the result, or rewrite the submodules "
                "around it"
            )


def put_off(operation: Any, parts: Parts, shape: Sequence[int], stated: Callable[[], Tensor]) -> Tensor:
    """The result of `stated`, of which autograd and autocast do their part now, and the kernel runs when it must.

    A Deferred of that shape; the ordinary result where none of `_KERNELS` was called. Consumers that can merge need to
    know the operation and what it is applied to, its parts.
    """
    with Statement(operation, parts, shape) as statement:
        result = stated()
    if statement.kernel is not None:
        statement.close(result)
    return result


def put_off_call(operation: Any, parts: Parts, call: Callable[[PutOff], Tensor]) -> Tensor:
    """What `call` returns, as a Deferred: an autograd Function's result, whose kernel that hands to its `PutOff`.

    It has the shape of the first part, and lies on its device.
    """
    statement = Statement(operation, parts, parts[0].shape)

    def without_values(kernel: Callable[[], Tensor], dtype: torch.dtype) -> Tensor:
        statement.kernel = kernel
        return _without_values(parts[0].new_empty((), dtype=dtype), statement.shape)

    deferred = call(without_values)
    statement.close(deferred)
    return deferred


def as_here(deferred: Tensor) -> Tensor:
    """A Deferred, if it is one, that depends on the conditions here no more than on those it was made under."""
    if is_pending(deferred):
        deferred.statement.conditions = _conditions(deferred)
    return deferred


def is_pending(tensor: Any) -> bool:
    """Whether the values are still to be computed."""
    return isinstance(tensor, Deferred) and tensor.statement.kernel is not None


def can_merge(tensor: Any) -> bool:
    """Whether nobody could tell if this were computed where its consumer is."""
    with torch._C.DisableTorchFunction():
        return (
            is_pending(tensor)
            and tensor.statement.node is tensor.grad_fn
            and tensor.statement.conditions == _conditions(tensor)
        )


def claim(deferred: Deferred) -> Parts:
    """The parts, for a consumer that needs no more than them."""
    deferred.statement.check()
    deferred.statement.merged = True
    return deferred.statement.parts


def replace(deferred: Deferred, result: Tensor) -> Tensor:
    """The result of an operation in place on a Deferred that can merge: who holds that has the result from here on."""
    deferred.statement.became, deferred.statement.kernel = result, None
    return result


def memory(deferred: Deferred) -> Iterator[Tensor]:
    """The tensors whose values computing this would read."""
    for tensor in deferred.statement.reads:
        yield from memory(tensor) if is_pending(tensor) else [tensor]


def compute(deferred: Deferred) -> None:
    """Gives it its values, where it has none yet."""
    statement = deferred.statement
    if statement.became is not None:
        return
    with torch._C.DisableTorchFunction():
        if statement.kernel is not None:
            statement.check()
            for tensor in filter(is_pending, statement.reads):
                compute(tensor)
            inference, autocast = deferred.is_inference(), torch.autocast(deferred.device.type, enabled=False)
            with temporarily_clear_interpreter_stack(), torch.inference_mode(inference), torch.no_grad(), autocast:
                deferred.data = statement.kernel()
            statement.kernel, statement.parts, statement.reads = None, (), []
        if not (statement.merged and deferred.requires_grad):
            del deferred.statement
            deferred.__class__ = Tensor


def real(tensor: Any) -> Any:
    """An ordinary tensor with the values and the gradient of a Deferred; anything else is itself."""
    if isinstance(tensor, Deferred):
        compute(tensor)
    if isinstance(tensor, Deferred):
        if tensor.statement.became is not None:
            return tensor.statement.became
        with torch._C.DisableTorchFunction():
            return tensor.view_as(tensor)
    return tensor


# What is told without computing. Not `dim()`: `torch.vmap` asks for it before it takes the tensor.
_METADATA = {getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "requires_grad")}
_METADATA |= {Tensor.size}

# What asks for the gradient of its first argument or of its `inputs`, and how it is called.
_ASKING = {
    Tensor.register_hook: "register_hook",
    Tensor.retain_grad: "retain_grad",
    Tensor.grad.__get__: "grad",
    Tensor.grad_fn.__get__: "grad_fn",
    torch.autograd.grad: "autograd.grad",
    torch.autograd.backward: "autograd.backward",
}


def call(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """func(*args, **kwargs), with values for the Deferreds among them where it needs any."""
    if func in _METADATA:
        with torch._C.DisableTorchFunction():
            return func(*args, **kwargs)
    if func in _ASKING:
        asked = kwargs.get("inputs", args[1:2]) if _ASKING[func].startswith("autograd") else args[:1]
        deferreds = [leaf for leaf in tree_leaves(asked) if isinstance(leaf, Deferred) and leaf.requires_grad]
        if any(deferred.statement.merged for deferred in deferreds):
            raise UnsupportedError(
                f"{_ASKING[func]}: gnfast.rewrite has merged this tensor with its consumer, so its gradient is not "
                "computed; ask before it is consumed, or use the module without the rewrite"
            )
    args, kwargs = tree_map_only(Deferred, real, (args, kwargs))
    return func(*args, **kwargs)


def eager() -> bool:
    """Whether nothing but ordinary autograd watches; transforms, tracers and checkpoints must see what is stated."""
    return not (
        torch._C._are_functorch_transforms_active()
        or torch.jit.is_tracing()
        or torch.autograd.forward_ad._current_level >= 0
        or saved_tensor_hooks()
    )


def _without_values(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Takes no memory. On a CPU it is NaN for code that is handed it directly and can read it."""
    # On a GPU a fill would be one more launch.
    scalar = like.new_full((), float("nan")) if like.device.type == "cpu" else like.new_empty(())
    tensor = scalar.as_strided_(shape, [0] * len(shape))
    # PyTorch without CUDA can forbid writing only.
    forbid = getattr(torch._C, "_set_storage_access_error_msg", None)
    if forbid is None:
        torch._C._set_throw_on_mutable_data_ptr(tensor)
    else:
        forbid(tensor, "gnfast.rewrite put off this tensor, and it came to code that is not Python")
    return tensor


def _versions(tensors: Sequence[Tensor]) -> list[int]:
    """Counts that writing to the tensors in place changes."""
    return [0 if tensor.is_inference() else tensor._version for tensor in tensors]


def _conditions(tensor: Tensor) -> tuple[Any, ...]:
    """What a computation on the device of `tensor` depends on besides its arguments."""
    device = tensor.device.type
    autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
    return torch.is_inference_mode_enabled(), torch.is_grad_enabled(), autocast
