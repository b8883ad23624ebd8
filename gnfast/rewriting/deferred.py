"""A tensor that is stated but not computed yet, so that its consumer may choose how. It knows no operation by name."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from gnfast.errors import UnsupportedError
from gnfast.interop.surroundings import saved_tensor_hooks
from gnfast.interop.uncompiled import uncompiled

Recipe = Callable[..., Tensor]
Parts = Sequence[Tensor | None]


class Deferred(Tensor):
    """`recipe(*parts)`: shape, dtype and device are real, and whatever else is asked of it computes it, once.

    It is computed under the grad mode and autocast of where it was stated, from parts that must not have changed since.
    """

    recipe: Recipe
    parts: Parts
    """Tensors, None, or Deferreds that were not computed when this was stated; none once this is computed."""
    result: Tensor | None
    merged: bool
    """Whether a consumer has taken the parts instead of the result."""
    watched: list[str]
    """How its gradient has been asked for. The graph that a custom autograd Function saw before shares this list."""

    @staticmethod
    def __new__(cls, recipe: Recipe, parts: Parts, shape: Sequence[int], dtype: torch.dtype, conditions: Any):
        deferred = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=parts[0].device)
        # Extensions that are handed it directly shall fail, not crash.
        torch._C._set_throw_on_mutable_data_ptr(deferred)
        deferred.recipe, deferred.parts, deferred.conditions = recipe, parts, conditions
        deferred.versions = [_version(part) for part in parts]
        deferred.result, deferred.merged, deferred.watched = None, False, []
        return deferred

    def compute(self) -> Tensor:
        """The ordinary tensor that this stands for, always the same one."""
        if self.result is None:
            with _restored(self.conditions):
                self.result = self.recipe(*map(real, self._unchanged()))
            self.version, self.parts = _version(self.result), ()
            self.followed = self.node, self.version
        return self.result

    def follow(self) -> None:
        """Makes its place in the graph that of the result, which may have been written to or hooked.

        That is where custom autograd Functions look: they are given this, not the result.
        """
        if self.result is None or self.result.is_inference():
            return
        origin, version = _origin(self.result), _version(self.result)
        if self.followed == (origin, version):
            return
        with torch._C.DisableTorchFunction(), torch.inference_mode(False), torch.enable_grad():
            if origin is not self.followed[0]:
                with torch.autograd._unsafe_preserve_version_counter(self):
                    self.detach_()
                    if origin is not None:
                        _Follow.apply(self, self.result)
            if version != self.followed[1]:
                # For those who have saved this; what they were given is another value.
                torch.autograd.graph.increment_version(self)
                self.watched = []
        self.followed, self.node = (origin, version), _node(self)

    def claim(self) -> Parts:
        """The parts, for a consumer that needs no more than them."""
        self.merged = True
        return self._unchanged()

    def can_merge(self) -> bool:
        """Whether it makes no difference if this is computed here and now or was computed where it was stated."""
        device_type = self.conditions[0]
        return self.result is None and self.conditions == _conditions(device_type) and _node(self) is self.node

    def memory(self) -> Iterator[Tensor]:
        """The tensors that computing this would read."""
        for part in self.parts:
            if isinstance(part, Deferred):
                yield from part.memory() if part.result is None else [part.result]
            elif part is not None:
                yield part

    def set_(self, *args: Any, **kwargs: Any) -> Tensor:
        """Refused here, as PyTorch does not offer this call to `__torch_function__`."""
        raise UnsupportedError(
            f"set_: gnfast.rewrite has put off {self.recipe}, and its result cannot be given other memory; "
            "clone it first, or use the module without the rewrite"
        )

    @classmethod
    @uncompiled("Dynamo could not go on in a compiled submodule")
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return call(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        # Below autograd, a result could not be kept for those who want its graph.
        raise UnsupportedError(f"{func} came to a tensor that gnfast.rewrite has put off by a way that is not Python")

    def _unchanged(self) -> Parts:
        if [_version(part) for part in self.parts] != self.versions:
            raise UnsupportedError(
                f"gnfast.rewrite put off {self.recipe}, and before its result was used an input was changed in place "
                "by a call that does not show it: clone the input or the result, or rewrite the submodules around it"
            )
        return self.parts


def defer(recipe: Recipe, parts: Parts, shape: Sequence[int], dtype: torch.dtype) -> Deferred:
    """States recipe(*parts), a pure function whose result will have this shape and dtype. `parts[0]` is a tensor."""
    conditions = _conditions(parts[0].device.type)
    if torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in parts):
        deferred = _Link.apply(recipe, shape, dtype, conditions, *parts)
    else:
        deferred = Deferred(recipe, parts, shape, dtype, conditions)
    deferred.node = _node(deferred)
    return deferred


def real(tensor: Any) -> Any:
    """The ordinary tensor that a Deferred stands for; anything else is itself."""
    if not isinstance(tensor, Deferred):
        return tensor
    if _node(tensor) is not tensor.node:
        with torch.inference_mode(False), torch.enable_grad():
            tensor.result = _Relink.apply(tensor)
        tensor.node, tensor.version = _node(tensor), _version(tensor.result)
        tensor.followed, tensor.watched = (tensor.node, tensor.version), []
    result = tensor.compute()
    tensor.follow()
    return result


_METADATA = frozenset(
    [
        *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "layout", "requires_grad")),
        *(getattr(Tensor, name) for name in ("size", "dim", "numel", "is_floating_point", "is_complex", "__len__")),
    ]
)


# What asks for a tensor's gradient, and its name: as a method, or by a list of inputs.
_ASKING = {
    Tensor.register_hook: "register_hook",
    Tensor.retain_grad: "retain_grad",
    Tensor.grad.__get__: "grad",
    Tensor.grad_fn.__get__: "grad_fn",
}
_ASKING_FOR_INPUTS = {torch.autograd.grad: "autograd.grad", torch.autograd.backward: "autograd.backward"}


def call(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """func(*args, **kwargs) with what the Deferreds stand for; shapes and dtypes are told without computing."""
    subject = args[0] if args and isinstance(args[0], Deferred) else None
    if subject is not None and subject.result is None and func in _METADATA:
        with torch._C.DisableTorchFunction():
            return func(*args, **kwargs)
    if subject is not None and func in _ASKING:
        _check_asked(_ASKING[func], [subject])
    if func in _ASKING_FOR_INPUTS:
        asked = [leaf for leaf in tree_leaves(kwargs.get("inputs", args[1:2])) if isinstance(leaf, Deferred)]
        _check_asked(_ASKING_FOR_INPUTS[func], asked)
        seen = _lists_in_graph([real(leaf).grad_fn for leaf in tree_leaves(args[0]) if isinstance(leaf, Tensor)])
        if any(deferred.watched is other for deferred in asked for other in seen):
            raise _missed(_ASKING_FOR_INPUTS[func])
    deferreds = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Deferred)]
    if func in _ASKING:
        # A custom autograd Function that was given it before would be missed.
        for deferred in deferreds:
            deferred.watched.append(_ASKING[func])
    args, kwargs = tree_map_only(Deferred, real, (args, kwargs))
    result = func(*args, **kwargs)
    for deferred in deferreds:
        deferred.follow()
    return result


def _check_asked(how: str, asked: Sequence[Deferred]) -> None:
    with torch._C.DisableTorchFunction():
        gone = any(deferred.merged and deferred.requires_grad for deferred in asked)
    if gone:
        raise UnsupportedError(
            f"{how}: gnfast.rewrite has merged this tensor with its consumer, so no gradient comes by; "
            "ask before it is consumed, or use the module without the rewrite"
        )


def _lists_in_graph(roots: Sequence[Any]) -> list[list[str]]:
    """`watched` of the Deferreds that custom autograd Functions were given, as far as a backward from here gets."""
    nodes, todo = set(), list(roots)
    while todo:
        node = todo.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            todo += [following for following, _ in node.next_functions]
    return [node.watched for node in nodes if isinstance(node, _Link._backward_cls)]


def _missed(how: str) -> UnsupportedError:
    return UnsupportedError(
        f"{how}: gnfast.rewrite had given this tensor to a custom autograd Function, whose gradient "
        "would be missed; ask before that, or use the module without the rewrite"
    )


def eager() -> bool:
    """Whether nothing but ordinary autograd watches; transforms, tracers and checkpoints must see what is stated."""
    return not (
        torch._C._are_functorch_transforms_active()
        or torch.jit.is_tracing()
        or torch.autograd.forward_ad._current_level >= 0
        or saved_tensor_hooks()
    )


class _Link(torch.autograd.Function):
    """Gives a Deferred a place in the graph, for those who pass by `__torch_function__`: custom autograd Functions.

    Whoever else uses it gets the result, which has a graph of its own.
    """

    @staticmethod
    def forward(ctx, recipe, shape, dtype, conditions, *parts: Tensor | None) -> Deferred:
        ctx.recipe, ctx.conditions = recipe, conditions
        ctx.save_for_backward(*parts)
        deferred = Deferred(recipe, parts, shape, dtype, conditions)
        ctx.watched = deferred.watched
        return deferred

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.watched:
            raise _missed(ctx.watched[0])
        create_graph, needs = torch.is_grad_enabled(), ctx.needs_input_grad[4:]
        parts = [real(part) for part in ctx.saved_tensors]
        with _restored(ctx.conditions):
            # Views: what reaches one part through another is not this function's to count.
            views = [None if part is None else part.view_as(part) for part in parts]
            result = ctx.recipe(*views)
            wanted = [view for view, need in zip(views, needs, strict=True) if need]
            grads = iter(torch.autograd.grad(result, wanted, grad, create_graph=create_graph))
        return None, None, None, None, *(next(grads) if need else None for need in needs)


class _Relink(torch.autograd.Function):
    """The value of a Deferred that a custom autograd Function returned, and its place in the graph."""

    @staticmethod
    def forward(ctx, deferred: Deferred) -> Tensor:
        return deferred.compute().detach()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad


class _Follow(torch.autograd.Function):
    """The place in the graph of a computed Deferred: behind its result."""

    @staticmethod
    def forward(ctx, deferred: Deferred, result: Tensor) -> Deferred:
        ctx.mark_dirty(deferred)
        return deferred

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad


def _origin(tensor: Tensor) -> Any:
    """What in the graph a tensor's gradient goes to: its node, itself if it is a leaf, None if it has no gradient."""
    return (tensor.grad_fn or tensor) if tensor.requires_grad else None


def _node(deferred: Deferred) -> Any:
    with torch._C.DisableTorchFunction():
        return deferred.grad_fn


def _version(tensor: Tensor | None) -> int:
    """A count that writing to the tensor in place changes, and computing it does not."""
    if isinstance(tensor, Deferred):
        return 0 if tensor.result is None else _version(tensor.result) - tensor.version
    return 0 if tensor is None or tensor.is_inference() else tensor._version


def _conditions(device_type: str) -> tuple[str, bool, bool, bool, torch.dtype]:
    """What a computation depends on besides its arguments."""
    autocast, dtype = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
    return device_type, torch.is_inference_mode_enabled(), torch.is_grad_enabled(), autocast, dtype


@contextlib.contextmanager
def _restored(conditions: tuple[str, bool, bool, bool, torch.dtype]) -> Iterator[None]:
    """Things as they were when a Deferred was stated, out of sight of function modes and saved-tensor hooks."""
    device_type, inference, grad, autocast, dtype = conditions
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch._C.DisableTorchFunction())
        if conditions != _conditions(device_type):
            stack.enter_context(torch.inference_mode(inference))
            stack.enter_context(torch.set_grad_enabled(grad))
            stack.enter_context(torch.autocast(device_type, dtype, autocast))
        if saved_tensor_hooks():
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t))
        yield
