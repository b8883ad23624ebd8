"""What is recorded when traced code calls PyTorch's functions: a table, which the files of operations fill."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from gnfast.plan.recorder import Recorder

RECORDERS: dict[Callable[..., Any], Callable[..., Any]] = {}
SELF_CHECKED: set[Callable[..., Any]] = set()
"""Those of which the recorder asks PyTorch itself, or where there is nothing to ask."""

# What recorders call their arguments, by NumPy's names for them, which PyTorch takes as well, and by those of functions
# that share a recorder with others.
_OTHER_NAMES = {"axis": "dim", "keepdims": "keepdim", "x": "input", "a": "input", "x1": "input", "x2": "other"}
_OTHER_NAMES |= {"other": "mat2", "vec": "mat2", "tensor": "other", "vec2": "other", "A": "input", "train": "training"}


def records(
    *functions: Callable[..., Any] | str | None, self_checked: bool = False, told: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers `recorder(trace, *args, **kwargs)` as what happens when traced code calls one of the functions.

    Args:
        functions: a name stands for what `torch`, `Tensor` and `torch.nn.functional` have of that name; None is passed
            over: `getattr(torch, name, None)` is for what only some versions of PyTorch have.
        self_checked: the recorder sees all arguments, else those that PyTorch has accepted for tensors without data.
        told: the recorder is told which function was called, before `trace`.

    Raises:
        AttributeError: none of them has anything of a name.
    """

    def register(recorder: "Callable[[Recorder, ...], Any]") -> Callable[..., Any]:
        code = recorder.__code__
        own = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        renamed = {given: name for given, name in _OTHER_NAMES.items() if name in own and given not in own}
        for given in filter(None, functions):
            for function in _named(given) if isinstance(given, str) else [given]:
                RECORDERS[function] = _renaming(functools.partial(recorder, function) if told else recorder, renamed)
                if self_checked:
                    SELF_CHECKED.add(function)
        return recorder

    return register


def _named(name: str) -> list[Callable[..., Any]]:
    found = [getattr(owner, name) for owner in (torch, Tensor, F) if hasattr(owner, name)]
    if not found:
        raise AttributeError(f"records: got {name!r}, wanted a name in torch, Tensor or torch.nn.functional")
    return found


def _renaming(recorder: Callable[..., Any], renamed: dict[str, str]) -> Callable[..., Any]:
    def called(trace: "Recorder", *args: Any, **kwargs: Any) -> Any:
        # Once per operation and call of a network: most come without names.
        if kwargs:
            kwargs = {renamed.get(name, name): value for name, value in kwargs.items()}
        return recorder(trace, *args, **kwargs)

    return called if renamed else recorder
