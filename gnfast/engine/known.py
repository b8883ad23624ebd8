"""Recordings that are kept with no promise needed: of networks whose code is known (`gnfast.plan.stateless`).

What such a forward does is decided by what a `Guard` sees and by the form of the call, and by nothing else: running it
once more would give the same recording.
"""

import operator
import sys
import weakref
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from gnfast.engine import recording
from gnfast.engine.guard import Guard, form_of_call, is_comparable, is_ordinary
from gnfast.plan.plan import Plan
from gnfast.plan.records import RECORDERS
from gnfast.plan.state import is_fixed, modules_of
from gnfast.plan.stateless import CALLS, FORWARDS, is_as_it_came, is_known, is_stateless

_MOST = 16
"""Recordings kept per network: critic and generator steps, sizes of batches."""
_functions = operator.itemgetter(*(name for name, value in vars(F).items() if callable(value) and value in RECORDERS))
_files = {kind.__module__ for kind in FORWARDS if hasattr(sys.modules[kind.__module__], "F")}
_calls = (f"Module.{name}" for name in (*CALLS, "__getattribute__"))
_code = operator.attrgetter(*_calls, *(f"{file.removeprefix('torch.nn.')}.F" for file in sorted(_files)))
_CODE = _functions(vars(F)), _code(nn)
"""What known code calls, which others may have replaced."""
_WORTH = 4
"""Calls that a recording must have served to be worth its guard."""
_NOT_READ = frozenset(nn.Module().__dict__)
"""Attributes of which a `Guard` sees all."""
_OF_PADDING = "_reversed_padding_repeated_twice"
"""A list, which convolutions read that do not pad with zeros."""


class _Kept(NamedTuple):
    guard: Guard
    plan: Plan
    places: tuple[int, ...]
    """Of the recorded operands, among the network's tensors."""


class _Calls:
    """How often a network was recorded in one way, and the recording that serves for it."""

    def __init__(self) -> None:
        self.count = self.served = 0
        self.kept: _Kept | None = None

    def is_time(self) -> bool:
        """Whether to try to keep this call's recording: not the first one's, then ever more rarely, to every 64th."""
        self.count += 1
        return self.count > 1 and (self.count & (self.count - 1) == 0 or self.count % 64 == 0)

    def drop(self) -> None:
        """Forgets a recording that no longer stands. Where changes take turns, the next is not kept so soon."""
        if self.served >= _WORTH:
            self.count = 0
        self.kept, self.served = None, 0


_WAYS: "weakref.WeakKeyDictionary[nn.Module, dict[Any, _Calls]]" = weakref.WeakKeyDictionary()


def plan_for(
    net: nn.Module, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], rewrite: bool, normed: bool = False
) -> tuple[Plan, list[Tensor]]:
    """As `recording.plan_for`, which this calls where nothing is kept."""
    is_as_it_was = (_functions(vars(F)), _code(nn)) == _CODE
    if not (is_as_it_was and is_known(type(net)) and is_ordinary()):
        return recording.plan_for(net, x, args, kwargs, rewrite, normed)
    ways, form = _WAYS.setdefault(net, {}), (net.training, *form_of_call(x, args, kwargs, rewrite, []))
    calls = ways.get(form)
    # Read once: another thread may drop it.
    if calls is not None and (kept := calls.kept) is not None:
        guard, plan, places = kept
        if (tensors := guard.tensors(net)) is not None:
            recording.require_recordable(x, args, kwargs)
            operands = [tensors[place] for place in places]
            recording.require_independent(x, operands)
            recording.require_norm(plan, normed)
            calls.served += 1
            return plan, operands
        calls.drop()
    if calls is None:
        if len(ways) >= _MOST:
            ways.clear()
        calls = ways[form] = _Calls()
    # From before: a hook may go in the forward in which it ran.
    guard = _guard(net) if calls.is_time() and is_comparable(form) else None
    plan, operands = recording.plan_for(net, x, args, kwargs, rewrite, normed)
    if guard is not None:
        calls.kept = _keep(net, guard, plan, operands)
    return plan, operands


def _guard(net: nn.Module) -> Guard | None:
    """What a recording of the network depends on; None where that is not known."""
    modules = [*modules_of(net)]
    known = is_stateless(modules) and all(map(is_as_it_came, {*map(type, modules)}))
    if not (known and all(map(_has_plain_attributes, modules))):
        return None
    guard = Guard(net)
    return None if guard.opaque else guard


def _keep(net: nn.Module, guard: Guard, plan: Plan, operands: list[Tensor]) -> _Kept | None:
    if (tensors := guard.tensors(net)) is None:
        return None
    places = {id(tensor): place for place, tensor in enumerate(tensors)}
    found = tuple([places.get(id(operand)) for operand in operands])
    return None if None in found else _Kept(guard, plan, found)


def _has_plain_attributes(module: nn.Module) -> bool:
    """Whether its attributes are no objects that may change, or that may lead back to the network."""
    attributes = vars(module)
    unread = _OF_PADDING if attributes.get("padding_mode") == "zeros" else ""
    return all(is_fixed(value) for name, value in attributes.items() if name not in _NOT_READ and name != unread)
