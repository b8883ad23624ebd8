"""What a forward computes without x, as a small program: embedded labels, standardised weights, casts.

A recording that is kept needs these tensors anew for every call.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from gnfast.interop.surroundings import autocast_dtype
from gnfast.plan.names import function_name, submodule_name
from gnfast.plan.operands import version_of
from gnfast.plan.traced import METADATA, Traced
from gnfast.plan.unseen import Like


class _Place(NamedTuple):
    """Stands in a step's arguments for the tensor in this place."""

    index: int


class _Step(NamedTuple):
    first: int
    """The place of its first result."""
    shapes: tuple[torch.Size, ...]
    """Those of its results."""
    function: Callable[..., Any]
    leaves: tuple[Any, ...]
    spec: pytree.TreeSpec
    grad: bool
    by_values: bool
    """Whether shapes of results may depend on values (`unique`, masks)."""


class Program(TorchFunctionMode):
    """Watches what a forward does with tensors that do not depend on x, and does the same again.

    The tensors that are there before are those of the arguments, for which others come, and what the network holds,
    which is read again. What is computed from none of them is a constant. A tensor of another origin has no place.

    Args:
        net: for names in `refusal`.
        device: whose autocast has a say.
        given: the tensors among the arguments.
        held: what the network holds.
    """

    def __init__(self, net: nn.Module, device: torch.device, given: Sequence[Tensor], held: Iterable[Tensor]) -> None:
        super().__init__()
        self.refusal = ""
        """Why it cannot be done again; empty if it can."""
        self._net, self._given, self._device = net, len(given), device
        self._autocast = autocast_dtype(device.type)
        # Held, so that an id is not given out twice.
        self._tensors: list[Any] = []
        self._places: dict[int, int] = {}
        self._constants: set[int] = set()
        self._made_without_grad: set[int] = set()
        self._steps: list[_Step] = []
        # What the network holds of an earlier graph is not to be read from there again.
        for tensor in (*given, *(tensor for tensor in held if tensor.is_leaf)):
            self._add(tensor)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves, spec = pytree.tree_flatten((args, kwargs))
        if any(isinstance(leaf, Traced) for leaf in leaves) and torch._C._is_torch_function_enabled():
            # What recording it computes is watched as well.
            with self:
                return Traced.__torch_function__(func, types, args, kwargs)
        read = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        versions = [version_of(tensor) for tensor in read]
        result = func(*args, **kwargs)
        if not self.refusal and not _reads_form(func, result):
            outputs = pytree.tree_leaves(result)
            self._note(func, leaves, spec, read, outputs, versions != [version_of(tensor) for tensor in read])
        return result

    def _note(
        self,
        func: Callable[..., Any],
        leaves: list[Any],
        spec: pytree.TreeSpec,
        read: list[Tensor],
        outputs: list[Any],
        writes: bool,
    ) -> None:
        if any(isinstance(leaf, torch.Generator) for leaf in leaves):
            self.refuse("draws at random", func)
        elif all(id(tensor) in self._constants for tensor in read):
            self._tensors += outputs
            self._constants.update(map(id, outputs))
        elif writes:
            self.refuse("writes in place", func)
        elif func in _STATE or not all(isinstance(output, Tensor) for output in outputs):
            self.refuse("reads values", func)
        elif not all(id(tensor) in self._places or id(tensor) in self._constants for tensor in read):
            self.refuse("reads a tensor of unknown origin", func)
        elif any(tensor.requires_grad and id(tensor) in self._made_without_grad for tensor in read):
            self.refuse("reads what a custom autograd Function returned", func)
        elif autocast_dtype(self._device.type) != self._autocast:
            self.refuse("runs under an autocast of its own", func)
        else:
            places = [_Place(self.place(leaf)) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            first, grad = len(self._tensors), torch.is_grad_enabled()
            shapes = _shapes(outputs)
            by_values = _shapes_without_data(func, leaves, spec) != shapes
            self._steps.append(_Step(first, shapes, func, tuple(places), spec, grad, by_values))
            for output in outputs:
                self._add(output)
                if not grad:
                    self._made_without_grad.add(id(output))

    def refuse(self, reason: str, function: Callable[..., Any]) -> None:
        """Notes why it cannot be done again; the first reason stays."""
        if not self.refusal:
            where = submodule_name(self._net)
            where = f"submodule {where!r}" if where else "the network's own forward"
            self.refusal = f"{function_name(function)} in {where} {reason}"

    def place(self, tensor: Tensor) -> int | None:
        """Where `run` gives the tensor; None for one that it does not know."""
        if id(tensor) in self._constants and id(tensor) not in self._places:
            self._add(tensor)
        return self._places.get(id(tensor))

    def is_fixed(self, place: int) -> bool:
        """Whether, once closed, it gives the same tensor there every time."""
        return self._tensors[place] is not None

    def close(self, wanted: Iterable[int]) -> None:
        """Frees everything but what `run` needs for the places `wanted`, and to see that no shape is another."""
        needed, steps, made = set(wanted), [], set(range(self._given))
        for step in reversed(self._steps):
            results = range(step.first, step.first + len(step.shapes))
            made.update(results)
            if step.by_values or not needed.isdisjoint(results):
                steps.append(step)
                needed.update(leaf.index for leaf in step.leaves if type(leaf) is _Place)
        self._steps = steps[::-1]
        self._tensors = [t if i in needed and i not in made else None for i, t in enumerate(self._tensors)]
        self._net, self._places, self._constants = None, {}, set()

    def run(self, given: Sequence[Tensor]) -> list[Any] | None:
        """All tensors by their places, those of the arguments now being `given`.

        None if one has another shape than when it was recorded, on which may depend what the forward does.
        """
        tensors = [*given, *self._tensors[self._given :]]
        for step in self._steps:
            leaves = [tensors[leaf.index] if type(leaf) is _Place else leaf for leaf in step.leaves]
            args, kwargs = pytree.tree_unflatten(leaves, step.spec)
            with torch.inference_mode(False), torch.set_grad_enabled(step.grad):
                outputs = pytree.tree_leaves(step.function(*args, **kwargs))
            if step.by_values and _shapes(outputs) != step.shapes:
                return None
            tensors[step.first : step.first + len(outputs)] = outputs
        return tensors

    def _add(self, tensor: Tensor) -> None:
        self._places[id(tensor)] = len(self._tensors)
        self._tensors.append(tensor)


def _reads_form(func: Callable[..., Any], result: Any) -> bool:
    """Whether a call asks for shape, dtype and the like, not for values."""
    is_form = func in _FORM or (getattr(func, "__name__", "") == "__get__" and func not in _STATE)
    return is_form and not isinstance(result, Tensor)


def _shapes(tensors: Sequence[Tensor]) -> tuple[torch.Size, ...]:
    return tuple([tensor.shape for tensor in tensors])


def _shapes_without_data(
    func: Callable[..., Any], leaves: Sequence[Any], spec: pytree.TreeSpec
) -> tuple[torch.Size, ...] | None:
    """The shapes of what a call returns, None where they cannot be told by shapes and dtypes alone."""
    leaves = [Like(t.shape, t.dtype).on_meta() if isinstance(t, Tensor) else t for t in leaves]
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    try:
        with torch._C._DisableTorchDispatch():
            return _shapes(pytree.tree_leaves(func(*args, **kwargs)))
    except Exception:
        return None


_FORM = METADATA | {Tensor.__len__, Tensor.__hash__, Tensor.is_inference, Tensor.__repr__}
_STATE = {Tensor._version.__get__, Tensor.grad.__get__}
"""Of these attributes it depends on what was done with the tensor before."""
